package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// manager stands in for systemd: it hears what a service says of itself
// (sd_notify(3)).
type manager struct {
	t      testing.TB
	socket string

	mu   sync.Mutex
	said []notice
}

// notice is one datagram of a service, as its variables.
type notice struct {
	at   time.Time
	vars map[string]string
}

func newManager(t testing.TB) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	ok(t, err)
	m := &manager{t: t, socket: filepath.Join(dir, "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	ok(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			vars := map[string]string{}
			for line := range strings.Lines(string(b[:n])) {
				key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				vars[key] = value
			}
			m.mu.Lock()
			m.said = append(m.said, notice{time.Now(), vars})
			m.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
		os.RemoveAll(dir)
	})
	return m
}

// all returns the notices so far that have a variable.
func (m *manager) all(key string) (found []notice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.said {
		if _, has := n.vars[key]; has {
			found = append(found, n)
		}
	}
	return found
}

// wait waits for the count-th notice with a variable and returns it.
func (m *manager) wait(timeout time.Duration, key string, count int) notice {
	m.t.Helper()
	waitFor(m.t, timeout, fmt.Sprintf("%s is said %d times", key, count), func() bool { return len(m.all(key)) >= count })
	return m.all(key)[count-1]
}

// service is a syncd that is started as systemd would, and not waited for.
type service struct {
	*firewall
	*manager
}

// startService starts syncd with variables in its environment. PID in a variable
// stands for the process number of the daemon.
func startService(t testing.TB, node *lab.Node, config string, env ...string) *service {
	t.Helper()
	m := newManager(t) // outlives the daemon
	f := newFirewall(t, node, "syncd")
	f.write(fmt.Sprintf("[node]\nsocket = %q\nstate_dir = \"\"\n%s", f.socket, config))
	var err error
	f.ctl, err = ctl.Dial(f.socket)
	ok(t, err)
	s := &service{f, m}
	s.start(append(env, "NOTIFY_SOCKET="+s.manager.socket)...)
	return s
}

func (s *service) start(env ...string) {
	s.firewall.t.Helper()
	t := s.firewall.t
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ok(t, err)
	defer log.Close()
	// A shell that becomes the daemon knows its process number beforehand.
	cmd := s.node.Command("sh", "-c", `eval "$0"; exec "$@"`,
		"export "+strings.ReplaceAll(strings.Join(append(env, "A=a"), " "), "PID=PID", "PID=$$"), bin, "run", "-c", s.config)
	cmd.Stdout, cmd.Stderr = log, log
	s.proc, err = s.node.Start(cmd)
	ok(t, err)
}

func (s *service) signal(sig syscall.Signal) {
	s.firewall.t.Helper()
	ok(s.firewall.t, s.proc.Cmd.Process.Signal(sig))
}

// alone is a node with a link on which nobody answers, and its kernel.
func alone(t testing.TB) (*lab.Node, *conntrack.Conn) {
	t.Helper()
	a, _ := cabled(t, newLab(t), 1)
	return a, openKernel(t, a)
}

func TestServiceReady(t *testing.T) {
	t.Parallel()
	node, k := alone(t)
	const flows = 8000
	create(t, k, 0, flows)
	s := startService(t, node, syncdConfig("", newLink(udp4, 0, 1)), "WATCHDOG_USEC=1000000", "WATCHDOG_PID=PID")
	ready := s.wait(10*time.Second, "READY", 1)
	// At this very moment everything must work.
	if have := len(s.Internal().only(isTestFlow)); have != flows {
		t.Errorf("ready with %d of %d flows", have, flows)
	}
	if n := s.Stats().Events.Dumps; n != 1 {
		t.Errorf("ready after %d dumps", n)
	}
	says(t, ready.vars["STATUS"], fmt.Sprintf("%d flows of this node", flows), ", 0 of ", "has not been heard")
	calm(t, ready.vars["STATUS"])

	// The status line follows what happens.
	destroy(t, k, 0, flows)
	waitFor(t, 15*time.Second, "the status line follows", func() bool {
		all := s.all("STATUS")
		return strings.Contains(all[len(all)-1].vars["STATUS"], "; 0 flows of this node") ||
			strings.HasPrefix(all[len(all)-1].vars["STATUS"], "0 flows of this node")
	})

	// Twice in the interval, so that one late beat is no death.
	begin := len(s.all("WATCHDOG"))
	time.Sleep(3 * time.Second)
	if n := len(s.all("WATCHDOG")) - begin; n < 5 || n > 7 {
		t.Errorf("%d beats for the watchdog in 3 s, want 6", n)
	}
	if n := len(s.all("READY")); n != 1 {
		t.Errorf("ready %d times", n)
	}
	for _, n := range s.all("STATUS") {
		calm(t, n.vars["STATUS"])
	}
}

// A watchdog that is meant for another process is not this one's.
func TestServiceForeignWatchdog(t *testing.T) {
	t.Parallel()
	node, _ := alone(t)
	s := startService(t, node, syncdConfig("", newLink(udp4, 0, 1)), "WATCHDOG_USEC=200000", "WATCHDOG_PID=1")
	s.wait(10*time.Second, "READY", 1)
	time.Sleep(time.Second)
	if n := len(s.all("WATCHDOG")); n != 0 {
		t.Errorf("%d beats for the watchdog of another process", n)
	}
}

// monotonic is the clock that a reload is told by, in microseconds.
func monotonic(t testing.TB) int64 {
	t.Helper()
	var ts unix.Timespec
	ok(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return ts.Nano() / 1000
}

func TestServiceReload(t *testing.T) {
	t.Parallel()
	node, k := alone(t)
	config := func(extra string) string { return syncdConfig(extra, newLink(udp4, 0, 1)) }
	s := startService(t, node, config(""))
	s.wait(10*time.Second, "READY", 1)
	rewrite := func(level, extra string) {
		t.Helper()
		s.write(fmt.Sprintf("[node]\nsocket = %q\nlog_level = %q\n%s", s.firewall.socket, level, config(extra)))
	}
	// reload asks for the count-th reload and waits until it is over.
	reload := func(count int) {
		t.Helper()
		before := monotonic(t)
		s.signal(syscall.SIGHUP)
		n := s.wait(5*time.Second, "RELOADING", count)
		at, err := strconv.ParseInt(n.vars["MONOTONIC_USEC"], 10, 64)
		if err != nil || at < before || at > monotonic(t) {
			t.Errorf("MONOTONIC_USEC=%s, want %d or a little more", n.vars["MONOTONIC_USEC"], before)
		}
		if r := s.wait(5*time.Second, "READY", count+1); r.at.Before(n.at) {
			t.Error("ready before reloading")
		}
	}
	// log returns what the daemon has logged since the last call.
	read := 0
	log := func() string {
		all := s.Log()
		defer func() { read = len(all) }()
		return all[read:]
	}
	tcp, udp := numbered(0), numbered(1)
	replicated := func(f conntrack.Flow) bool {
		t.Helper()
		ok(t, k.Create(f))
		_, err := s.ctl.Resync(t.Context(), true) // nothing is on its way after this
		ok(t, err)
		_, there := s.Internal()[kernelTuple(&f)]
		ok(t, k.Delete(f))
		return there
	}
	if !replicated(udp) || !replicated(tcp) {
		t.Fatal("without a filter not everything is replicated")
	}

	log()
	rewrite("info", "ack_window = 77\n[purge]\nafter = \"3s\"\n[filter]\nprotocols = { accept = [\"tcp\"] }")
	reload(1)
	says(t, log(), "filter.protocols", "purge.after", "need_restart", "sync.ack_window")
	if replicated(udp) || !replicated(tcp) {
		t.Error("the new filter is not in force")
	}

	// What can wait for a restart is said again as long as it does.
	out, code := runSyncd(t, node, nil, "ctl", "reload", "--socket", s.firewall.socket)
	if code != 0 {
		t.Errorf("ctl reload: exit status %d", code)
	}
	says(t, out, "restart", "sync.ack_window")

	log()
	rewrite("info", "ack_window = \"many\"\n[filter]\nprotocols = { accept = [\"udp\"] }")
	reload(2)
	says(t, log(), "error", s.config+":7: sync.ack_window", "accepted: an integer", "old configuration stays")
	if replicated(udp) || !replicated(tcp) {
		t.Error("a broken configuration has changed the filter")
	}
	if out, code := runSyncd(t, node, nil, "ctl", "reload", "--socket", s.firewall.socket); code != 1 || !strings.Contains(out, "sync.ack_window") {
		t.Errorf("ctl reload of a broken configuration: exit status %d\n%s", code, out)
	}

	log()
	rewrite("warn", "ack_window = 77")
	reload(3)
	if said := log(); !strings.Contains(said, "sync.ack_window") {
		t.Errorf("a log of warnings does not say what needs a restart:\n%s", said)
	}
	if !replicated(udp) {
		t.Error("the filter that is gone is still in force")
	}
	log()
	_, err := s.ctl.Flush(t.Context(), ctl.Both)
	ok(t, err)
	if said := log(); strings.Contains(said, "info") {
		t.Errorf("log_level = \"warn\" is not in force:\n%s", said)
	}
	rewrite("debug", "ack_window = 77")
	reload(4)
	_, err = s.ctl.Flush(t.Context(), ctl.Both)
	ok(t, err)
	says(t, log(), "info", "caches flushed")

	s.signal(syscall.SIGHUP)
	s.signal(syscall.SIGHUP)
	s.signal(syscall.SIGHUP) // may be one or two
	s.wait(5*time.Second, "RELOADING", 5)
	s.Status()
}

// Neither a client that says nothing nor one that does not read holds the end up.
func TestServiceStop(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			node, k := alone(t)
			create(t, k, 0, 6000) // more of a dump than socket buffers take
			s := startService(t, node, syncdConfig("", newLink(udp4, 0, 1)))
			s.wait(10*time.Second, "READY", 1)
			hang := func(request string) {
				t.Helper()
				c, err := net.Dial("unix", s.firewall.socket)
				ok(t, err)
				t.Cleanup(func() { c.Close() })
				_, err = io.WriteString(c, request)
				ok(t, err)
			}
			hang("")
			hang("GET /v1/status HT")
			hang("GET /v1/dump/internal HTTP/1.1\r\nHost: x\r\n\r\n")
			hang("GET /v1/dump/internal HTTP/1.1\r\nHost: x\r\n\r\n")
			s.Status() // the daemon has seen them all

			begin := time.Now()
			s.signal(sig)
			stopping := s.wait(2*time.Second, "STOPPING", 1)
			if d := stopping.at.Sub(begin); d > 500*time.Millisecond {
				t.Errorf("said STOPPING=1 after %v", d)
			}
			select {
			case <-s.proc.Done():
			case <-time.After(5 * time.Second):
				t.Fatal("still there after 5 s")
			}
			took := time.Since(begin)
			t.Logf("ended after %v", took.Round(time.Millisecond))
			if took > 2*time.Second {
				t.Errorf("took %v to end", took)
			}
			if err := s.proc.Wait(); err != nil {
				t.Errorf("ended with %v", err)
			}
			s.proc = nil
			if _, err := os.Lstat(s.firewall.socket); !os.IsNotExist(err) {
				t.Errorf("the socket is left: %v", err)
			}
			says(t, s.Log(), "stopped")
			calm(t, s.Log())
		})
	}
}

// A daemon that was killed leaves nothing that keeps the next one from starting at
// once; two at a time are one too many.
func TestServiceRestart(t *testing.T) {
	t.Parallel()
	node, k := alone(t)
	create(t, k, 0, 100)
	s := startService(t, node, syncdConfig("", newLink(udp4, 0, 1)))
	s.wait(10*time.Second, "READY", 1)
	for i := range 3 {
		second, code := runSyncd(t, node, nil, "run", "-c", s.config)
		if code != 1 {
			t.Errorf("a second daemon: exit status %d, want 1", code)
		}
		says(t, second, "another syncd", fmt.Sprint(s.proc.Cmd.Process.Pid))
		if n := len(s.Internal().only(isTestFlow)); n != 100 {
			t.Errorf("the first daemon has %d flows, want 100", n)
		}
		s.Kill()
		begin := time.Now()
		s.start("NOTIFY_SOCKET=" + s.manager.socket)
		s.wait(5*time.Second, "READY", i+2)
		t.Logf("ready %v after kill -9", time.Since(begin).Round(time.Millisecond))
	}
}

// switches returns how often all threads of a process went to sleep so far, and
// the processor time that they took.
func switches(t testing.TB, pid int) (voluntary int, busy time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	ok(t, err)
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(b)) {
			if rest, is := strings.CutPrefix(line, "voluntary_ctxt_switches:"); is {
				n, err := strconv.Atoi(strings.TrimSpace(rest))
				ok(t, err)
				voluntary += n
			}
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	ok(t, err)
	// Fields 14 and 15, after the name in brackets (proc_pid_stat(5)), of 10 ms.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		ok(t, err)
		busy += time.Duration(n) * 10 * time.Millisecond
	}
	return voluntary, busy
}

// A daemon without traffic sleeps.
func TestServiceIdle(t *testing.T) {
	t.Parallel()
	a, b := cabled(t, newLab(t), 1)
	create(t, openKernel(t, a), 0, 1000)
	fa := newSyncd(t, a, syncdConfig("", newLink(udp4, 0, 1)))
	fb := newSyncd(t, b, syncdConfig("", newLink(udp4, 0, 2)))
	waitFor(t, 30*time.Second, "the nodes are in sync", func() bool { return fa.Status().InSync && fb.Status().InSync })
	const watched = 10 * time.Second
	count := func(f *firewall) (int, time.Duration) { return switches(t, f.proc.Cmd.Process.Pid) }
	n1, t1 := count(fa)
	m1, u1 := count(fb)
	time.Sleep(watched)
	n2, t2 := count(fa)
	m2, u2 := count(fb)
	for _, d := range []struct {
		name string
		n    int
		busy time.Duration
	}{{"the node with flows", n2 - n1, t2 - t1}, {"the other", m2 - m1, u2 - u1}} {
		perSecond := float64(d.n) / watched.Seconds()
		t.Logf("%s: %.1f switches a second over all threads, %v of processor time in %v", d.name, perSecond, d.busy, watched)
		if perSecond > 60 {
			t.Errorf("%s wakes %.1f times a second", d.name, perSecond)
		}
		if d.busy > watched/100 {
			t.Errorf("%s took %v of %v", d.name, d.busy, watched)
		}
	}
}

// What the documents tell people to type exists.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	// In a sentence the name has a space before it.
	command := regexp.MustCompile("(?:[`\"]|/sbin/)syncd ((?:ctl )?[a-z-]+)")
	seen := map[string]bool{}
	for _, file := range []string{
		"README.md", "docs/architecture.md", "docs/check.md", "docs/conntrackd.md", "deploy/keepalived/README.md",
		"deploy/keepalived/keepalived.conf", "deploy/systemd/syncd.service", "configs/reference.toml",
	} {
		b, err := os.ReadFile(filepath.Join("../..", file))
		ok(t, err)
		for _, m := range command.FindAllStringSubmatch(string(b), -1) {
			if seen[m[1]] {
				continue
			}
			seen[m[1]] = true
			out, code := runSyncd(t, nil, nil, append(strings.Fields(m[1]), "--help")...)
			// Help for an unknown command is that of the command above it.
			if code != 0 || !strings.Contains(out, "Usage:\n  syncd "+m[1]) {
				t.Errorf("%s says %q, which is no command:\n%s", file, m[0], out)
			}
		}
	}
	for _, want := range []string{"run", "check", "ctl status", "ctl stats", "ctl primary", "ctl backup", "ctl fault", "ctl commit", "ctl resync"} {
		if !seen[want] {
			t.Errorf("no document says syncd %s; the search for commands is broken", want)
		}
	}
}

func TestManualPage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, code := runSyncd(t, nil, nil, "man", "--dir", dir); code != 0 {
		t.Fatalf("exit status %d\n%s", code, out)
	}
	page, err := os.ReadFile(filepath.Join(dir, "syncd.8"))
	ok(t, err)
	for _, want := range []string{".TH", `syncd \- keep`, "syncd ctl primary", "syncd ctl resync", `\-\-kernel`, "syncd check", "/etc/syncd/syncd.toml"} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("the page does not say %s", want)
		}
	}
	need(t, "groff")
	var stderr bytes.Buffer
	groff := exec.Command("groff", "-man", "-Tutf8", "-ww", "-z", filepath.Join(dir, "syncd.8"))
	groff.Stderr = &stderr
	if err := groff.Run(); err != nil || stderr.Len() > 0 {
		t.Errorf("groff: %v\n%s", err, stderr.String())
	}
}

// The version of the program is in what it says, and in its status.
func TestVersion(t *testing.T) {
	t.Parallel()
	out, code := runSyncd(t, nil, nil, "version")
	if code != 0 || !strings.HasPrefix(out, "syncd ") {
		t.Errorf("exit status %d: %s", code, out)
	}
	node, _ := alone(t)
	f := newSyncd(t, node, syncdConfig("", newLink(udp4, 0, 1)))
	if v := f.Status().Version; v == "" || !strings.Contains(out, v) {
		t.Errorf("status says version %q, the program %q", v, out)
	}
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// firewall is one daemon, syncd or the real conntrackd, on a node of a lab.
// Commands that fail end the test; so they must be called from its goroutine.
type firewall struct {
	t    testing.TB
	node *lab.Node
	real bool // conntrackd, not syncd

	without string // a capability that the daemon does not get, as setpriv(1) names it

	config string // file
	socket string // of control
	log    string // file
	ctl    *ctl.Client

	proc *lab.Process // of the daemon; nil while it is stopped
}

// firewalls numbers the daemons of this process, for names of files.
var firewalls atomic.Int64

// newSyncd starts syncd on a node and waits until it is ready. config follows
// directly on the keys of the [node] table that a test needs: it may begin with
// more of them, and goes on with [sync].
func newSyncd(t testing.TB, node *lab.Node, config string) *firewall {
	t.Helper()
	f := newFirewall(t, node, "syncd")
	// What the machine's own syncd keeps is not ours, nor what parallel tests keep.
	f.write(fmt.Sprintf("[node]\nname = %q\nsocket = %q\nstate_dir = \"\"\n%s", node.Name(), f.socket, config))
	var err error
	f.ctl, err = ctl.Dial(f.socket)
	ok(t, err)
	f.Start()
	return f
}

// newConntrackd starts the real conntrackd on a node and waits until it answers.
// sync is the inside of the Sync block of its configuration.
func newConntrackd(t testing.TB, node *lab.Node, sync string) *firewall {
	t.Helper()
	need(t, "conntrackd")
	f := newFirewall(t, node, "conntrackd")
	f.real = true
	// With 8192 buckets or less its first commit never ends, so to speak: it
	// refuses to flush ever after. The links are tracked here: not replicated.
	f.write(fmt.Sprintf(`Sync {
%s}
General {
	HashSize 32768
	HashLimit 131072
	LogFile %s
	LockFile %s.lock
	UNIX { Path %s }
	Systemd off
	NetlinkBufferSize 33554432
	NetlinkBufferSizeMaxGrowth 134217728
	NetlinkOverrunResync 5
	Filter From Userspace {
		Address Ignore {
			IPv4_address 127.0.0.1
			IPv4_address 192.0.2.0/24
			IPv6_address ::1
			IPv6_address 2001:db8:3::0/64
			IPv6_address 2001:db8:4::0/64
			IPv6_address fe80::0/10
		}
	}
}
`, sync, f.log, f.config, f.socket))
	f.Start()
	return f
}

func newFirewall(t testing.TB, node *lab.Node, kind string) *firewall {
	t.Helper()
	// The path of a socket is short: not in t.TempDir, whose name has the test's.
	dir, err := os.MkdirTemp("", "e2e-")
	ok(t, err)
	name := fmt.Sprintf("%s-%d", node.Name(), firewalls.Add(1))
	f := &firewall{
		t: t, node: node,
		config: filepath.Join(dir, name+".conf"),
		socket: filepath.Join(dir, name+".sock"),
		log:    filepath.Join(dir, name+".log"),
	}
	t.Cleanup(func() {
		if f.proc != nil {
			f.Stop()
		}
		if t.Failed() {
			t.Logf("the log of %s on %s:\n%s", kind, node.Name(), tail(f.Log(), 60))
		}
		os.RemoveAll(dir)
	})
	return f
}

func (f *firewall) write(config string) {
	f.t.Helper()
	ok(f.t, os.WriteFile(f.config, []byte(config), 0o600))
}

// Start starts the daemon and waits until it answers, which for syncd is when it
// knows its kernel's table.
func (f *firewall) Start() {
	f.t.Helper()
	args := []string{"run", "-c", f.config}
	name := bin
	if f.real {
		name, args = "conntrackd", []string{"-C", f.config}
	}
	if f.without != "" {
		name, args = "setpriv", append([]string{"--bounding-set=-" + f.without, name}, args...)
	}
	out, err := os.OpenFile(f.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ok(f.t, err)
	defer out.Close()
	earlier := len(f.Log())
	cmd := f.node.Command(name, args...)
	cmd.Stderr = out // conntrackd writes its log to the standard output as well
	f.proc, err = f.node.Start(cmd)
	ok(f.t, err)
	waitFor(f.t, 15*time.Second, "the daemon on "+f.node.Name()+" answers", func() bool {
		select {
		case <-f.proc.Done():
			f.t.Fatalf("the daemon on %s ended: %v\n%s", f.node.Name(), f.proc.Wait(), tail(f.Log(), 30))
		default:
		}
		if f.real {
			_, err := f.try("-s", "runtime")
			return err == nil
		}
		_, err := f.ctl.Stats(context.Background())
		return err == nil && strings.Contains(f.Log()[earlier:], "ready")
	})
}

// Stop ends the daemon gracefully and fails the test if it does not end well.
func (f *firewall) Stop() {
	f.t.Helper()
	p := f.proc
	f.proc = nil
	if err := p.Stop(10 * time.Second); err != nil {
		f.t.Errorf("the daemon on %s: %v", f.node.Name(), err)
	}
}

// Kill ends the daemon with SIGKILL and cleans up what keeps conntrackd from
// starting again.
func (f *firewall) Kill() {
	f.t.Helper()
	f.proc.Kill()
	<-f.proc.Done()
	f.proc = nil
	if f.real {
		ok(f.t, os.Remove(f.config+".lock"))
	}
}

// Freeze stops the process in its tracks (SIGSTOP); Thaw lets it go on.
func (f *firewall) Freeze() { f.t.Helper(); ok(f.t, f.proc.Cmd.Process.Signal(syscall.SIGSTOP)) }
func (f *firewall) Thaw()   { f.t.Helper(); ok(f.t, f.proc.Cmd.Process.Signal(syscall.SIGCONT)) }

// Log returns what the daemon has logged so far.
func (f *firewall) Log() string {
	b, err := os.ReadFile(f.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Errorf("%v", err)
	}
	return string(b)
}

// try runs a command of the conntrackd client.
func (f *firewall) try(args ...string) (string, error) {
	b, err := f.node.Output(f.node.Command("conntrackd", append([]string{"-C", f.config}, args...)...))
	return string(b), err
}

// conntrackd runs a command of the conntrackd client and returns its output.
func (f *firewall) conntrackd(args ...string) string {
	f.t.Helper()
	out, err := f.try(args...)
	if err != nil {
		f.t.Fatalf("conntrackd %v: %v\n%s", args, err, out)
	}
	return out
}

// Commit puts the external cache into the kernel. The report is nil for
// conntrackd, which has none.
func (f *firewall) Commit() *ctl.CommitReport {
	f.t.Helper()
	if f.real {
		f.conntrackd("-c")
		return nil
	}
	r, err := f.ctl.Commit(context.Background(), ctl.CommitOptions{})
	ok(f.t, err)
	return r
}

// Primary does what keepalived's script does on the new master.
func (f *firewall) Primary() {
	f.t.Helper()
	if f.real {
		f.conntrackd("-c")
		f.conntrackd("-f")
		f.conntrackd("-R")
		f.conntrackd("-B")
		return
	}
	_, err := f.ctl.SetRole(context.Background(), ctl.RolePrimary, nil)
	ok(f.t, err)
}

// Backup does what keepalived's script does on the new backup.
func (f *firewall) Backup() {
	f.t.Helper()
	if f.real {
		f.conntrackd("-t")
		f.conntrackd("-n")
		return
	}
	_, err := f.ctl.SetRole(context.Background(), ctl.RoleBackup, nil)
	ok(f.t, err)
}

// Bulk sends everything to the peer.
func (f *firewall) Bulk() {
	f.t.Helper()
	if f.real {
		f.conntrackd("-B")
		return
	}
	_, err := f.ctl.Bulk(context.Background())
	ok(f.t, err)
}

// Resync asks the peer for everything.
func (f *firewall) Resync() {
	f.t.Helper()
	if f.real {
		f.conntrackd("-n")
		return
	}
	_, err := f.ctl.Resync(context.Background(), false)
	ok(f.t, err)
}

// Flush empties a cache: ctl.Internal or ctl.External.
func (f *firewall) Flush(which string) {
	f.t.Helper()
	if f.real {
		f.conntrackd("-f", which)
		return
	}
	_, err := f.ctl.Flush(context.Background(), which)
	ok(f.t, err)
}

// Status returns the status of syncd.
func (f *firewall) Status() *ctl.Status {
	f.t.Helper()
	s, err := f.ctl.Status(context.Background())
	ok(f.t, err)
	return s
}

// Stats returns the counters of syncd.
func (f *firewall) Stats() *ctl.Stats {
	f.t.Helper()
	s, err := f.ctl.Stats(context.Background())
	ok(f.t, err)
	return s
}

// Internal returns the flows of the internal cache, External those of the external
// cache, without those that are deleted and only wait for an acknowledgement.
func (f *firewall) Internal() table { f.t.Helper(); return f.cache(ctl.Internal) }
func (f *firewall) External() table { f.t.Helper(); return f.cache(ctl.External) }

func (f *firewall) cache(which string) table {
	f.t.Helper()
	t := table{}
	if f.real {
		for line := range strings.Lines(f.conntrackd("-" + which[:1])) {
			e, err := parseLine(line)
			ok(f.t, err)
			t[e.tuple] = e
		}
		return t
	}
	ok(f.t, f.ctl.Dump(context.Background(), which, func(d *ctl.DumpEntry) error {
		if !d.Dead && d.Expect == nil {
			e := fromDump(&d.Flow)
			t[e.tuple] = e
		}
		return nil
	}))
	return t
}

// Malformed returns what the daemon counted as malformed messages of its peer, by
// reason; reasons that have not occurred are left out.
func (f *firewall) Malformed() map[string]uint64 {
	f.t.Helper()
	if !f.real {
		counts := map[string]uint64{}
		for why, n := range f.Stats().Sync.Malformed {
			if n != 0 {
				counts[why] = n
			}
		}
		return counts
	}
	lines := malformedLine.FindAllStringSubmatch(f.conntrackd("-s", "network")+f.conntrackd("-s"), -1)
	if want := 9; len(lines) != want { // seven of reception, one of sending, one of -s
		f.t.Errorf("conntrackd's statistics have %d lines about malformed messages, want %d", len(lines), want)
	}
	counts := map[string]uint64{}
	for _, m := range lines {
		if n := m[1] + m[2]; n != "0" {
			counts[strings.TrimSpace(m[0])]++
		}
	}
	return counts
}

// malformedLine matches the lines of conntrackd's statistics that count bad
// messages: "Bad message size:  0" and "0 Malformed msgs".
var malformedLine = regexp.MustCompile(`(?m)^\s*(?:Malformed messages|Wrong protocol version|Malformed header|Malformed payload|Bad message type|Truncated message|Bad message size):\s*(\d+)|^\s*(\d+) Malformed msgs`)

// waitFor waits until cond holds, and ends the test if that takes too long.
func waitFor(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := 5 * time.Millisecond; !cond(); pause = min(2*pause, 200*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not so: %s", timeout, what)
		}
		time.Sleep(pause)
	}
}

// tail returns the last lines of a text.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/lab"
	"syncd/internal/wire"
)

// patience is how long a command that must fail may take to do so.
const patience = 10 * time.Second

// runSyncd runs the program to its end, inside of a node if there is one, and
// returns what it said and its exit status. cmd may be nil for the plain program;
// a stack trace fails the test whatever else it expects.
func runSyncd(t testing.TB, node *lab.Node, cmd *exec.Cmd, args ...string) (string, int) {
	t.Helper()
	if cmd == nil {
		cmd = exec.Command(bin, args...)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	if node != nil {
		p, startErr := node.Start(cmd)
		ok(t, startErr)
		select {
		case <-p.Done():
		case <-time.After(patience):
			p.Kill()
			<-p.Done()
			t.Errorf("still running after %v: %v\n%s", patience, cmd.Args, out.String())
		}
		err = p.Wait()
	} else {
		timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		err = cmd.Run()
		if !timer.Stop() {
			t.Errorf("still running after %v: %v", patience, cmd.Args)
		}
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	calm(t, out.String())
	return out.String(), cmd.ProcessState.ExitCode()
}

// calm fails the test when a text has the traces of a crash.
func calm(t testing.TB, out string) {
	t.Helper()
	for _, bad := range []string{"goroutine ", "panic", "DATA RACE", "SIGSEGV", "runtime error", "%!", "<nil>"} {
		if strings.Contains(out, bad) {
			t.Errorf("the output has %q:\n%s", bad, out)
		}
	}
}

// says fails the test when a text lacks one of the words.
func says(t testing.TB, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("does not say %q:\n%s", w, out)
		}
	}
}

// goodConfig is a configuration with which nothing is wrong. Line 1 is [node].
const goodConfig = `[node]
name = "a"
socket = "/run/syncd-e2e-none/s"
[sync]
wire = "conntrackd"
insecure = true
[[link]]
type = "udp"
interface = "sync0"
local = "192.0.2.1"
peers = ["192.0.2.2"]
`

// Everything that can be wrong with a configuration is told with its place and
// what would be right, by "check" and by "run" alike, before anything is touched.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	second := "[[link]]\ntype = \"udp\"\ninterface = \"sync0\"\nlocal = \"192.0.2.1\"\npeers = [\"192.0.2.2\"]\n"
	for _, tt := range []struct {
		name, old, with string
		line            int
		words           []string
	}{
		{"unknown key", "insecure = true", "insecure = true\nack_windw = 3", 7, []string{`"ack_windw"`, "did you mean ack_window", "resend_queue"}},
		{"unknown table", "[sync]", "[sink]\na = 1\n[sync]", 4, []string{`"sink"`, "node, sync"}},
		{"wrong type", `name = "a"`, "name = 7", 2, []string{"node.name", "7 is an integer", "a string"}},
		{"wrong type of a list", `peers = ["192.0.2.2"]`, `peers = "192.0.2.2"`, 11, []string{"link.peers", "a string", "an array"}},
		{"size without a unit", "[[link]]", "[events]\nbuffer = \"64 parsecs\"\n[[link]]", 8, []string{"events.buffer", "64 parsecs", "64KiB"}},
		{"number out of range", "insecure = true", "insecure = true\nack_window = 1", 7, []string{"sync.ack_window", "out of range", "2 to"}},
		{"duration out of range", "insecure = true", "insecure = true\npeer_dead_after = \"1ms\"", 7, []string{"2s to 1h"}},
		{"bad address", `local = "192.0.2.1"`, `local = "192.0.2.256"`, 10, []string{"192.0.2.256", "IPv4 or IPv6 address"}},
		{"address with a port", `peers = ["192.0.2.2"]`, `peers = ["192.0.2.2:3780"]`, 11, []string{"192.0.2.2:3780", "IPv4 or IPv6 address"}},
		{"multicast address as own", `local = "192.0.2.1"`, `local = "225.0.0.50"`, 10, []string{"225.0.0.50", "unicast"}},
		{"mixed families", `peers = ["192.0.2.2"]`, `peers = ["2001:db8::2"]`, 11, []string{"same family as local", "IPv4"}},
		{"own address as peer", `peers = ["192.0.2.2"]`, `peers = ["192.0.2.1"]`, 11, []string{"this node itself"}},
		{"two peers of a dialect of two", `peers = ["192.0.2.2"]`, `peers = ["192.0.2.2", "192.0.2.3"]`, 11, []string{"joins two", "one address"}},
		{"no peers", "peers = [\"192.0.2.2\"]\n", "", 7, []string{"link.peers", "missing"}},
		{"no link", goodConfig[strings.Index(goodConfig, "[[link]]"):], "", 1, []string{"link: missing", "[[link]]"}},
		{"link as a table", "[[link]]", "[link]", 7, []string{"link:", "[[link]]"}},
		{"no type", "type = \"udp\"\n", "", 7, []string{"link.type: missing", "udp, multicast"}},
		{"no interface", "interface = \"sync0\"\n", "", 7, []string{"link.interface: missing"}},
		{"name of no interface", `"sync0"`, `"an interface"`, 9, []string{"not the name of an interface", "1 to 15"}},
		{"unknown mode", `wire =`, "mode = \"fttw\"\nwire =", 5, []string{"sync.mode", `"fttw"`, "ftfw"}},
		{"transport of another version", `"udp"`, `"tcp"`, 8, []string{"not available in this version", "udp, multicast"}},
		{"unknown dialect", `"conntrackd"`, `"conntrack"`, 5, []string{"sync.wire", "conntrackd"}},
		{"not consented to plain datagrams", "insecure = true\n", "", 4, []string{"sync.insecure", "accepted: true"}},
		{"key of another transport", "type = \"udp\"", "type = \"udp\"\ngroup = \"225.0.0.50\"", 9, []string{"link.group", "peers"}},
		{"ttl of another transport", "type = \"udp\"", "type = \"udp\"\nttl = 2", 9, []string{"link.ttl", "no ttl"}},
		{"multicast without a group", `type = "udp"`, `type = "multicast"`, 7, []string{"link.group", "missing"}},
		{"the same link twice", "[[link]]", second + "[[link]]", 12, []string{"the same", "link 1"}},
		{"port 0", "type = \"udp\"", "type = \"udp\"\nport = 0", 9, []string{"link.port", "1 to 65535"}},
		{"path of the socket too long", "/run/syncd-e2e-none/s", "/run/" + strings.Repeat("s", 120), 3, []string{"node.socket", "107"}},
		{"path of the socket relative", "/run/syncd-e2e-none/s", "syncd.sock", 3, []string{"absolute path"}},
		{"unknown protocol in a filter", "[[link]]", "[filter]\nprotocols = { accept = [\"tpc\"] }\n[[link]]", 8, []string{`"tpc"`, "tcp"}},
		{"network with host bits", "[[link]]", "[filter]\naddresses = { ignore = [\"192.0.2.1/24\"] }\n[[link]]", 8, []string{"host bits", "192.0.2.0/24"}},
		{"no TOML", `name = "a"`, `name = "a`, 2, []string{"not TOML"}},
		{"a key twice", `name = "a"`, "name = \"a\"\nname = \"b\"", 3, []string{"not TOML", "name"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(goodConfig, tt.old) {
				t.Fatalf("the good configuration does not say %q", tt.old)
			}
			file := filepath.Join(t.TempDir(), "syncd.toml")
			ok(t, os.WriteFile(file, []byte(strings.Replace(goodConfig, tt.old, tt.with, 1)), 0o600))
			for _, command := range []string{"check", "run"} {
				out, code := runSyncd(t, nil, nil, command, "-c", file)
				if code != 1 {
					t.Errorf("%s: exit status %d, want 1", command, code)
				}
				says(t, out, append(tt.words, fmt.Sprintf("%s:%d: ", file, tt.line))...)
				if !strings.Contains(out, "accepted: ") && !strings.Contains(out, "not TOML") {
					t.Errorf("does not say what is accepted:\n%s", out)
				}
			}
		})
	}
}

// All mistakes of a file are told at once, in the order of its lines.
func TestBadConfigAtOnce(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "syncd.toml")
	text := strings.NewReplacer(`name = "a"`, "name = 7", "192.0.2.1", "nowhere", `"udp"`, `"avian"`).Replace(goodConfig)
	ok(t, os.WriteFile(file, []byte(text), 0o600))
	out, _ := runSyncd(t, nil, nil, "check", "-c", file)
	at := -1
	for _, place := range []string{":2: node.name", ":8: link.type", ":10: link.local"} {
		i := strings.Index(out, file+place)
		if i <= at {
			t.Errorf("%s is missing or not in its place:\n%s", place, out)
		}
		at = i
	}
}

func TestBadConfigFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		ok(t, os.WriteFile(path, content, 0o600))
		return path
	}
	binary, err := os.ReadFile(bin)
	ok(t, err)
	for _, tt := range []struct{ name, file, says string }{
		{"missing", filepath.Join(dir, "nowhere.toml"), "no such file or directory"},
		{"directory", dir, "is a directory"},
		{"binary", write("binary", binary[:64<<10]), "not TOML"},
		{"empty", write("empty", nil), "link: missing"},
		{"invalid UTF-8", write("utf8", []byte("[node]\nname = \"\xff\xfe\"\n")), "utf8:2: "},
		{"huge", write("huge", bytes.Repeat([]byte("#\n"), 2<<20)), "octets"},
		{"below a file", filepath.Join(write("file", nil), "syncd.toml"), "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, command := range []string{"check", "run"} {
				out, code := runSyncd(t, nil, nil, command, "-c", tt.file)
				if code != 1 {
					t.Errorf("%s: exit status %d, want 1", command, code)
				}
				says(t, out, tt.says, filepath.Base(tt.file))
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		need(t, "setpriv")
		file := write("unreadable", []byte(goodConfig))
		ok(t, os.Chmod(file, 0))
		// Root reads everything unless it lacks the capabilities for that.
		cmd := exec.Command("setpriv", "--bounding-set=-dac_override,-dac_read_search", bin, "run", "-c", file)
		out, code := runSyncd(t, nil, cmd)
		if code != 1 {
			t.Errorf("exit status %d, want 1", code)
		}
		says(t, out, file, "permission denied")
	})
}

// badHost is a node with one dedicated link on which a good configuration works.
func badHost(t *testing.T) (node *lab.Node, dir, config string) {
	t.Helper()
	a, _ := cabled(t, newLab(t), 1)
	dir, err := os.MkdirTemp("", "e2e-")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	config = filepath.Join(dir, "syncd.toml")
	return a, dir, config
}

// What is wrong with the host ends the start with a plain sentence.
func TestBadHost(t *testing.T) {
	t.Parallel()
	node, dir, config := badHost(t)
	socket := filepath.Join(dir, "s")
	good := strings.Replace(goodConfig, "/run/syncd-e2e-none/s", socket, 1)
	refused := func(t *testing.T, text string, cmd *exec.Cmd, words ...string) {
		t.Helper()
		ok(t, os.WriteFile(config, []byte(text), 0o644))
		out, code := runSyncd(t, node, cmd, "run", "-c", config)
		if code != 1 {
			t.Errorf("exit status %d, want 1:\n%s", code, out)
		}
		says(t, out, words...)
		if strings.Contains(out, " ready\n") {
			t.Errorf("it was ready:\n%s", out)
		}
	}
	t.Run("no capability", func(t *testing.T) {
		need(t, "setpriv")
		cmd := exec.Command("setpriv", "--bounding-set=-net_admin", bin, "run", "-c", config)
		refused(t, good, cmd, "CAP_NET_ADMIN", "missing")
	})
	t.Run("another user", func(t *testing.T) {
		// The program and the directory of the socket must not be the reason.
		public := filepath.Join(dir, "public")
		ok(t, os.Chmod(dir, 0o755), os.Mkdir(public, 0o755), os.Chown(public, 65534, 65534))
		program, err := os.ReadFile(bin)
		ok(t, err)
		copied := filepath.Join(public, "syncd")
		ok(t, os.WriteFile(copied, program, 0o755))
		cmd := exec.Command(copied, "run", "-c", config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		refused(t, strings.Replace(good, socket, filepath.Join(public, "s"), 1), cmd, "CAP_NET_ADMIN", "missing")
	})
	t.Run("no directory for the socket", func(t *testing.T) {
		refused(t, strings.Replace(good, socket, filepath.Join(dir, "nowhere", "s"), 1), nil, filepath.Join(dir, "nowhere"), "does not exist")
	})
	t.Run("a file in the place of the socket", func(t *testing.T) {
		ok(t, os.WriteFile(socket, nil, 0o600))
		refused(t, good, nil, socket, "no socket")
		ok(t, os.Remove(socket))
	})
	t.Run("no such interface", func(t *testing.T) {
		refused(t, strings.Replace(good, "sync0", "sync7", 1), nil, "sync7", "no such interface")
	})
	t.Run("an address of nobody", func(t *testing.T) {
		refused(t, strings.Replace(good, `local = "192.0.2.1"`, `local = "192.0.2.33"`, 1), nil, "192.0.2.33", "this host")
	})
	t.Run("port in use", func(t *testing.T) {
		taken, err := node.ListenUDP(netip.AddrPortFrom(newLink(udp4, 0, 1).local, port))
		ok(t, err)
		defer taken.Close()
		refused(t, good, nil, "192.0.2.1", "3780", "address already in use")
	})
	t.Run("no events", func(t *testing.T) {
		const events = "net.netfilter.nf_conntrack_events"
		ok(t, node.Sysctl(events, "0"))
		defer node.Sysctl(events, "1")
		refused(t, good, nil, "nf_conntrack_events is 0", "must be 1")
		out, code := runSyncd(t, node, nil, "check", "-c", config)
		if code != 1 {
			t.Errorf("check: exit status %d, want 1", code)
		}
		says(t, out, "nf_conntrack_events", "error")
	})
	t.Run("long timeouts and instant takeover", func(t *testing.T) {
		const timeout = "net.netfilter.nf_conntrack_tcp_timeout_established"
		was, err := node.ReadSysctl(timeout)
		ok(t, err)
		ok(t, node.Sysctl(timeout, "1000001"))
		defer node.Sysctl(timeout, was)
		refused(t, good+instant, nil, timeout+" is 1000001 s", `takeover.mode = "instant"`)
	})
	t.Run("socket in use", func(t *testing.T) {
		fw := newSyncd(t, node, strings.SplitAfterN(good, "\n", 4)[3])
		refused(t, strings.Replace(good, socket, fw.socket, 1), nil, fw.socket, "another syncd", fmt.Sprint(fw.proc.Cmd.Process.Pid))
		fw.Status() // and it is still there
	})
	// Nothing of all that is left behind.
	if left, _ := filepath.Glob(socket); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadUsage(t *testing.T) {
	t.Parallel()
	nobody := filepath.Join(t.TempDir(), "nobody")
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{nil, 2, []string{"a command is missing"}},
		{[]string{"rnu"}, 2, []string{`"rnu"`, "did you mean run"}},
		{[]string{"ctl"}, 2, []string{"a command is missing"}},
		{[]string{"ctl", "stat"}, 2, []string{"stats or status"}},
		{[]string{"ctl", "dump"}, 2, []string{"internal or external"}},
		{[]string{"ctl", "dump", "both"}, 2, []string{`"both"`, "internal or external"}},
		{[]string{"ctl", "flush", "kernel"}, 2, []string{`"kernel"`, "internal or external"}},
		{[]string{"ctl", "primary", "now"}, 2, []string{`"now"`}},
		{[]string{"ctl", "status", "--jsno"}, 2, []string{"--jsno"}},
		{[]string{"run", "-c"}, 2, []string{"-c"}},
		{[]string{"run", "a.toml"}, 2, []string{`"a.toml"`}},
		{[]string{"ctl", "status", "--socket", nobody}, 3, []string{nobody, "no syncd is running"}},
		{[]string{"ctl", "dump", "internal", "--socket", nobody}, 3, []string{"no syncd is running"}},
		{[]string{"ctl", "primary", "--json", "--socket", nobody}, 3, []string{"no syncd is running"}},
		{[]string{"ctl", "status", "--socket", strings.Repeat("s", 120)}, 1, []string{"107"}},
		{[]string{"ctl", "status", "--socket", ""}, 1, []string{"empty"}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			out, code := runSyncd(t, nil, nil, tt.args...)
			if code != tt.code {
				t.Errorf("exit status %d, want %d:\n%s", code, tt.code, out)
			}
			says(t, out, tt.words...)
			if tt.code == 2 {
				says(t, out, "--help")
			}
		})
	}
}

// dataMessage is a good message of the protocol about a flow that nobody has.
func dataMessage(seq wire.Seq) []byte {
	f := flow.Flow{Has: flow.HasStatus | flow.HasTimeout, Status: flow.StatusConfirmed | flow.StatusSeenReply, Timeout: 600}
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: 17, SrcPort: 1, DstPort: 2}
	copy(f.Orig.Src[:], []byte{198, 18, 255, 1})
	copy(f.Orig.Dst[:], []byte{198, 18, 255, 2})
	f.Reply = flow.Tuple{Family: flow.IPv4, Proto: 17, Src: f.Orig.Dst, Dst: f.Orig.Src, SrcPort: 2, DstPort: 1}
	return wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, seq, &f)
}

// Datagrams that no peer of this version would send, from the peer's own address
// and from a foreign one: counted, without any effect, and without a word for
// each.
func TestBadDatagrams(t *testing.T) {
	t.Parallel()
	a, b := cabled(t, newLab(t), 1)
	ok(t, b.AddAddr("sync0", netip.MustParsePrefix("192.0.2.9/26")))
	const calmStart = "startup_resync = false" // so that every resync has a reason
	fa := newSyncd(t, a, syncdConfig(calmStart, newLink(udp4, 0, 1)))
	fb := newSyncd(t, b, syncdConfig(calmStart, newLink(udp4, 0, 2)))
	waitFor(t, 15*time.Second, "the nodes are in sync", func() bool { return fa.Status().InSync && fb.Status().InSync })
	kb := openKernel(t, b)
	create(t, kb, 0, 100)
	inStep := func(what string) {
		t.Helper()
		waitEqual(t, 20*time.Second, what, fa.External, func() table { return kernelTable(t, kb, isTestFlow) }, form{})
	}
	inStep("before")
	before, lines := fa.Stats(), strings.Count(fa.Log(), "\n")

	// taken is how many datagrams the link has read. The receive buffer is not what
	// is tested: every now and then the sender waits until all is read.
	taken := func() uint64 {
		s := fa.Stats().Links[0]
		return s.DatagramsReceived + s.Drops["foreign sender"]
	}
	begin, sent := taken(), uint64(0)
	drain := func() {
		t.Helper()
		waitFor(t, 10*time.Second, "all that was sent is read", func() bool { return taken() >= begin+sent })
	}
	sendFrom := func(from string) func(datagram []byte) {
		c, err := b.Dial(t.Context(), "udp", netip.MustParseAddr(from), netip.AddrPortFrom(newLink(udp4, 0, 1).local, port))
		ok(t, err)
		t.Cleanup(func() { c.Close() })
		return func(datagram []byte) {
			if _, err := c.Write(datagram); err != nil {
				t.Fatal(err)
			}
			if sent++; sent%1024 == 0 {
				drain()
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		d := make([]byte, n)
		for i := range d {
			d[i] = byte(rng.Uint32())
		}
		return d
	}
	// Each kind is recognised before the number of a message matters.
	kinds := map[string]func() []byte{
		"wrong protocol version": func() []byte {
			d := dataMessage(wire.Seq(rng.Uint32()))
			d[0] = d[0]&0x0f | 2<<4
			return d
		},
		"truncated message": func() []byte { return dataMessage(7)[:1+rng.IntN(wire.HeaderLen-1)] },
		"bad message size": func() []byte {
			d := dataMessage(wire.Seq(rng.Uint32()))
			switch n := len(d); rng.IntN(3) {
			case 0: // huge
				d[2], d[3] = 0xff, 0xff
			case 1: // shorter than its own header
				d[2], d[3] = 0, byte(rng.IntN(wire.HeaderLen))
			default: // a good message cut off
				d = d[:wire.HeaderLen+rng.IntN(n-wire.HeaderLen)]
			}
			return d
		},
		"malformed header": func() []byte {
			d := wire.AppendControl(nil, wire.FlagAck, wire.Seq(rng.Uint32()), 9, 3) // a range backwards
			return d
		},
	}
	const each = 4000
	peer, foreign := sendFrom("192.0.2.2"), sendFrom("192.0.2.9")
	for range each {
		for _, make := range kinds {
			peer(make())
		}
	}
	for range each {
		foreign(dataMessage(wire.Seq(rng.Uint32()))) // perfectly good, but from a stranger
		foreign(random(rng.IntN(1400)))
	}
	drain()

	now := fa.Stats()
	if n := now.Links[0].Drops["receive buffer full"]; n != 0 {
		t.Fatalf("the kernel dropped %d datagrams: the test sends too fast", n)
	}
	if n := now.Links[0].Drops["foreign sender"]; n != 2*each {
		t.Errorf("counted %d datagrams of strangers, want %d", n, 2*each)
	}
	for kind := range kinds {
		if n := now.Sync.Malformed[kind] - before.Sync.Malformed[kind]; n != each {
			t.Errorf("counted %d times %q, want %d", n, kind, each)
		}
	}
	if n := now.Sync.Lost - before.Sync.Lost; n != 0 {
		t.Errorf("the stream was moved: %d numbers count as lost", n)
	}
	if now.Sync.ResyncsAsked != before.Sync.ResyncsAsked {
		t.Errorf("asked for %d resyncs because of garbage", now.Sync.ResyncsAsked-before.Sync.ResyncsAsked)
	}
	inStep("after garbage")
	create(t, kb, 100, 200)
	destroy(t, kb, 0, 50)
	inStep("replication goes on")

	// Noise may be a good message by chance, and on a plain link whoever has the
	// peer's address can forge one, with any number. That cannot be told from the
	// peer; but what it spoils must heal.
	for range each {
		d := random(8 + rng.IntN(200))
		d[0], d[1] = 1<<4|d[0]&0x0f, d[1]&0x7f
		d[2], d[3] = 0, byte(len(d)&^3)
		peer(d)
	}
	for range 20 {
		peer(dataMessage(wire.Seq(rng.Uint32())))
	}
	create(t, kb, 200, 300)
	destroy(t, kb, 50, 100)
	waitEqual(t, 45*time.Second, "after forged messages", fa.External, func() table { return kernelTable(t, kb, isTestFlow) }, form{})
	waitFor(t, 30*time.Second, "the node is in sync again", func() bool { return fa.Status().InSync && fb.Status().InSync })

	if n := strings.Count(fa.Log(), "\n") - lines; n > 20 {
		t.Errorf("%d lines of log for %d bad datagrams:\n%s", n, 7*each, tail(fa.Log(), 30))
	}
	calm(t, fa.Log())
}

// What is no request on the control socket is refused, and hurts nobody.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	a, _ := cabled(t, newLab(t), 1)
	fa := newSyncd(t, a, syncdConfig("", newLink(udp4, 0, 1)))
	lines := strings.Count(fa.Log(), "\n")
	rng := rand.New(rand.NewPCG(3, 4))
	ask := func(request string) string {
		c, err := net.Dial("unix", fa.socket)
		ok(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(request))
		c.(*net.UnixConn).CloseWrite()
		var answer bytes.Buffer
		answer.ReadFrom(c)
		return answer.String()
	}
	for _, tt := range []struct{ request, status string }{
		{"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		{"GET /v1/commit HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		{"POST /v1/flush?which=everything HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"POST /v1/role/king HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /v1/dump/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "30"},
		{"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "431"},
		{"nonsense\r\n\r\n", "400"},
	} {
		if answer := ask(tt.request); !strings.HasPrefix(answer, "HTTP/1.1 "+tt.status) {
			t.Errorf("%.40q: answered %.80q, want status %s", tt.request, answer, tt.status)
		}
	}
	for range 200 {
		noise := make([]byte, rng.IntN(400))
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		ask(string(noise))
	}
	fa.Status()
	if n := strings.Count(fa.Log(), "\n") - lines; n > 20 {
		t.Errorf("%d lines of log for bad requests:\n%s", n, tail(fa.Log(), 30))
	}
	calm(t, fa.Log())
}

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

const prefix = "syncd-lab-"

// newLab is labtest.New for the tests inside this package.
func newLab(t *testing.T) *Lab {
	t.Helper()
	if err := Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l, err := New(prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func newNode(t *testing.T, l *Lab, name string) *Node {
	t.Helper()
	n, err := l.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNodeIsNamedAndPrepared(t *testing.T) {
	l := newLab(t)
	n := newNode(t, l, "a")
	path := filepath.Join(netnsDir, n.Namespace())
	dir, err := l.Dir()
	if err != nil {
		t.Error(err)
	}
	for _, p := range []string{path, dir} {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]string{
		"net.netfilter.nf_conntrack_events": "1",
		"net.ipv4.conf.default.rp_filter":   "0",
	} {
		if got, err := n.ReadSysctl(name); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	var flags net.Flags
	if err := n.Do(func() error {
		lo, err := net.InterfaceByName("lo")
		if err == nil {
			flags = lo.Flags
		}
		return err
	}); err != nil || flags&net.FlagUp == 0 {
		t.Errorf("loopback: %v, %v", flags, err)
	}
	if _, err := l.Node("a"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second node of that name: %v", err)
	}

	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	for _, p := range []string{path, dir} {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", p, err)
		}
	}
	if _, err := l.Node("b"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a node of a closed lab: %v", err)
	}
}

func TestDoLeavesNoThreadInside(t *testing.T) {
	n := newNode(t, newLab(t), "a")
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()

	boom := errors.New("boom")
	if err := n.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error of the function: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic did not reach the caller")
			}
		}()
		_ = n.Do(func() error { panic("in the namespace") })
	}()
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that left its goroutine had no error")
	}

	// Every thread of the process is where it was.
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		if got, err := os.Readlink(task); err == nil && got != want {
			t.Errorf("%s is %s, want %s", task, got, want)
		}
	}
}

func TestConnect(t *testing.T) {
	l := newLab(t)
	a, b := newNode(t, l, "a"), newNode(t, l, "b")
	err := l.Connect(
		End{a, "sync0", LinkOptions{MTU: 1400, MAC: "02:00:00:00:00:01", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30"), netip.MustParsePrefix("2001:db8::1/64")}}},
		End{b, "sync0", LinkOptions{MTU: 1400, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30"), netip.MustParsePrefix("2001:db8::2/64")}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
		s, err := Serve(b, netip.MustParseAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, network := range []string{"tcp", "udp"} {
			c, err := Open(t.Context(), Spec{From: a, Network: network, To: netip.MustParseAddrPort(to), Interval: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			time.Sleep(100 * time.Millisecond)
			if r := c.Record(); r.Received == 0 || !r.Alive(50*time.Millisecond) {
				t.Errorf("%s %s: %+v", network, to, r)
			}
			if err := errors.Join(a.Unplug(), waitFor(func() bool { return c.Record().Overdue > 50*time.Millisecond })); err != nil {
				t.Errorf("%s %s lives without its cable: %v", network, to, err)
			}
			if err := errors.Join(a.Replug(), waitFor(func() bool { return c.Record().Alive(50 * time.Millisecond) })); err != nil {
				t.Errorf("%s %s does not come back with its cable: %v", network, to, err)
			}
		}
	}
	if err := a.Do(func() error {
		i, err := net.InterfaceByName("sync0")
		if err == nil && (i.MTU != 1400 || i.HardwareAddr.String() != "02:00:00:00:00:01") {
			err = fmt.Errorf("MTU %d, address %s", i.MTU, i.HardwareAddr)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// waitFor waits a few seconds for a condition.
func waitFor(condition func() bool) error {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return nil
		}
	}
	return errors.New("it did not come")
}

// TestMain lets the test binary stand for programs that labs start.
func TestMain(m *testing.M) {
	switch os.Getenv("LAB_TEST_PROGRAM") {
	case "namespace": // prints its network namespace
		link, _ := os.Readlink("/proc/self/ns/net")
		fmt.Print(link)
		os.Exit(0)
	case "sleep":
		time.Sleep(time.Minute)
		os.Exit(0)
	case "crash": // builds a lab with a process in it, says so, and dies
		l, err := New(prefix)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		n, err := l.Node("left")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		p, err := n.Start(program("sleep"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if _, err := l.Dir(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(n.Namespace(), p.Cmd.Process.Pid)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	os.Exit(m.Run())
}

func program(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LAB_TEST_PROGRAM="+name)
	return cmd
}

func TestProcesses(t *testing.T) {
	l := newLab(t)
	n := newNode(t, l, "a")
	var want string
	if err := n.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	got, err := n.Output(program("namespace"))
	if err != nil || string(got) != want {
		t.Errorf("the program runs in %q (%v), want %s", got, err, want)
	}

	stopped, err := n.Start(program("sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stopped.Stop(5 * time.Second); err == nil {
		t.Error("a process that was told to stop ended well")
	}
	if err := stopped.Stop(time.Second); err == nil {
		t.Error("the second stop lost how the process ended")
	}

	left, err := n.Start(program("sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if alive(left.Cmd.Process.Pid) {
		t.Error("a process outlived its lab")
	}
	if _, err := n.Start(program("sleep")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("start in a closed lab: %v", err)
	}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	living := newNode(t, newLab(t), "living")
	out, _ := program("crash").Output() // it kills itself
	name, pidText, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	child, err := strconv.Atoi(pidText)
	if err != nil {
		t.Fatalf("the crashing program wrote %q", out)
	}
	// The child becomes somebody else's to reap; a zombie has no command line.
	if err := waitFor(func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
		return err != nil || len(b) == 0
	}); err != nil {
		t.Errorf("the child of the crashed process lives: %v", err)
	}
	left := []string{filepath.Join(netnsDir, name), filepath.Join(filesDir, strings.TrimSuffix(name, "left")+filesSuffix)}
	for _, path := range left {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("nothing is left to sweep: %v", err)
		}
	}
	if _, err := Sweep(prefix); err != nil {
		t.Error(err)
	}
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(netnsDir, living.Namespace())); err != nil {
		t.Errorf("the sweep took a living lab's namespace: %v", err)
	}
}

func TestOwnerOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		pid  int
		ok   bool
	}{
		{"syncd-lab-12-3-fw1", 12, true},
		{"syncd-lab-12-3-a-b", 12, true},
		{"syncd-lab-0-3-a", 0, false},
		{"syncd-lab--1-3-a", 0, false},
		{"syncd-lab-12-x-a", 0, false},
		{"syncd-lab-12-3", 0, false},
		{"syncd-lab-", 0, false},
		{"syncd-labour-12-3-a", 0, false},
		{"syncd-lab-99999999999999-3-a", 0, false},
		{"other-12-3-a", 0, false},
	} {
		pid, ok := ownerOf(tt.name, prefix)
		if ok != tt.ok || ok && pid != tt.pid {
			t.Errorf("ownerOf(%q) = %d, %v", tt.name, pid, ok)
		}
	}
}

func TestMessageShowsDamage(t *testing.T) {
	for _, seen := range []string{"203.0.113.1:65535", "[2001:db8::1]:1"} {
		want := message{kind: kindPush, pattern: Push, id: 7, interval: 250 * time.Millisecond, number: 1 << 40, seen: netip.MustParseAddrPort(seen)}
		b := want.append(nil)
		got, err := parse(b)
		if err != nil || got != want {
			t.Fatalf("parse = %+v, %v, want %+v", got, err, want)
		}
		for i := range b {
			b[i]++
			got, err := parse(b)
			// Octets 6, 7 and 42 to 47 carry nothing.
			if err == nil && got == want && i != 6 && i != 7 && (i < 42 || i > 47) {
				t.Errorf("octet %d damaged and not noticed", i)
			}
			b[i]--
		}
		if _, err := parse(b[:messageSize-1]); err == nil {
			t.Error("a short message was taken")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message{kind: kindAsk, id: 1, number: 2}.append(nil))
	f.Add(message{kind: kindAnswer, id: 1, number: 2, seen: netip.MustParseAddrPort("203.0.113.1:9")}.append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if again, err := parse(m.append(nil)); err != nil || again != m {
			t.Errorf("%+v came back as %+v, %v", m, again, err)
		}
	})
}

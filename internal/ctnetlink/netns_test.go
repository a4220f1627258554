package ctnetlink

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"syncd/internal/flow"
)

// needRoot skips a test that changes network namespaces; CI may not skip.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("not root: network namespaces cannot be made, and CI=true allows no skip")
	}
	t.Skip("not root: network namespaces cannot be made")
}

// needCommand skips a test for which a program is missing; CI may not skip.
func needCommand(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing, and CI=true allows no skip", name)
	}
	t.Skipf("%s is missing", name)
}

// testNS is a network namespace of a test.
type testNS struct {
	t      testing.TB
	name   string
	handle netns.NsHandle
}

var nsCount atomic.Uint32

// newNS makes a namespace in which events are on and lo is up, and deletes it at the
// end of the test.
func newNS(t testing.TB, what string) *testNS {
	t.Helper()
	needRoot(t)
	ns := &testNS{t: t, name: fmt.Sprintf("syncd-cn-%s-%d-%d", what, os.Getpid(), nsCount.Add(1))}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the new namespace
		var err error
		ns.handle, err = netns.NewNamed(ns.name)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.handle.Close()
		if err := netns.DeleteNamed(ns.name); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	ns.sysctl("net/netfilter/nf_conntrack_events", "1")
	ns.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

func (ns *testNS) fd() int { return int(ns.handle) }

// do runs fn in the namespace.
func (ns *testNS) do(fn func() error) {
	ns.t.Helper()
	if err := inNetNS(ns.fd(), fn); err != nil {
		ns.t.Fatal(err)
	}
}

func (ns *testNS) sysctl(name, value string) {
	ns.t.Helper()
	ns.do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

func (ns *testNS) run(stdin string, command ...string) string {
	ns.t.Helper()
	var out []byte
	ns.do(func() (err error) {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return err
	})
	return string(out)
}

// connect joins two namespaces by a veth pair with the given addresses.
func connect(t testing.TB, a, b *testNS, dev string, addrsA, addrsB []string) {
	t.Helper()
	a.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: dev, PeerNamespace: netlink.NsFd(b.fd()),
		})
	})
	for _, end := range []struct {
		ns    *testNS
		addrs []string
	}{{a, addrsA}, {b, addrsB}} {
		// Before the addresses: they must be usable at once.
		end.ns.sysctl("net/ipv6/conf/"+dev+"/accept_dad", "0")
		end.ns.do(func() error {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			for _, s := range end.addrs {
				addr, err := netlink.ParseAddr(s)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
	}
}

func (ns *testNS) defaultRoute(gateways ...string) {
	ns.t.Helper()
	ns.do(func() error {
		for _, gw := range gateways {
			if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
				return fmt.Errorf("route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

// writer opens a Writer in the namespace.
func (ns *testNS) writer() *Writer {
	ns.t.Helper()
	w, err := NewWriter(WriterConfig{NetNS: ns.fd()})
	if err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(func() { w.Close() })
	return w
}

// dump returns all entries of the namespace by original tuple.
func (ns *testNS) dump(filter DumpFilter) map[flow.Tuple]flow.Flow {
	ns.t.Helper()
	flows := make(map[flow.Tuple]flow.Flow)
	filter.NetNS = ns.fd()
	if err := Dump(ns.t.Context(), filter, func(ev *flow.Event) error {
		if ev.Kind != flow.EventDump {
			return fmt.Errorf("dumped an event of kind %v", ev.Kind)
		}
		flows[ev.Flow.Orig] = ev.Flow
		return nil
	}); err != nil {
		ns.t.Fatal(err)
	}
	return flows
}

func diff(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: -want +got\n%s", what, d)
	}
}

package channel

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// needRoot skips a test that needs namespaces, or fails it on CI, where nothing
// may be skipped.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("root (CAP_SYS_ADMIN, CAP_NET_ADMIN) is missing")
	}
	t.Skip("root (CAP_SYS_ADMIN, CAP_NET_ADMIN) is missing")
}

// namespaces numbers them, for their names.
var namespaces atomic.Uint32

// A namespace is a network namespace of one test.
type namespace struct {
	handle netns.NsHandle
	*netlink.Handle
}

// newNamespace makes a namespace, and deletes it at the end of the test.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	needRoot(t)
	name := fmt.Sprintf("syncd-ch-%d-%d", os.Getpid(), namespaces.Add(1))
	ns := &namespace{}
	onThread(t, func() error {
		var err error
		ns.handle, err = netns.NewNamed(name)
		return err
	})
	t.Cleanup(func() {
		ns.handle.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	var err error
	if ns.Handle, err = netlink.NewHandleAt(ns.handle); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Handle.Close)
	return ns
}

// do runs f on a thread inside the namespace.
func (ns *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	onThread(t, func() error {
		if err := netns.Set(ns.handle); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which dies with it, and so cannot carry
// its namespace to another goroutine.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("ended early") // by t.Fatal in f
		defer func() { done <- err }()
		err = f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// addVeth joins two namespaces by a cable: both ends have the same name, are up,
// and have the addresses 192.0.2.N/24, 2001:db8::N/64 and fe80::N/64.
func addVeth(t testing.TB, name string, a, b *namespace) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, a.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(b.handle)}))
	for i, ns := range []*namespace{a, b} {
		l := ns.link(t, name)
		for _, format := range []string{"192.0.2.%d/24", "2001:db8::%d/64", "fe80::%d/64"} {
			ns.address(t, name, fmt.Sprintf(format, i+1))
		}
		must(t, ns.LinkSetUp(l))
	}
	a.ready(t, name, 1)
	b.ready(t, name, 2)
}

// ready waits for node n's end of a cable. The carrier is announced a moment after
// both ends are up, and only then does a node listen for neighbour solicitations
// (RFC 4861 7.2.1). One that comes too early is repeated after a whole second.
func (ns *namespace) ready(t testing.TB, name string, n int) {
	t.Helper()
	solicited := fmt.Sprintf("ff0200000000000000000001ff%06x", n)
	ns.do(t, func() error {
		eventually(t, name+" is ready", func() bool {
			groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
			return err == nil && hasLine(groups, name, solicited) &&
				ns.link(t, name).Attrs().OperState == netlink.OperUp
		})
		return nil
	})
}

// hasLine reports whether a line of a table has both words.
func hasLine(table []byte, one, other string) bool {
	for line := range strings.Lines(string(table)) {
		if words := strings.Fields(line); slices.Contains(words, one) && slices.Contains(words, other) {
			return true
		}
	}
	return false
}

func (ns *namespace) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := ns.LinkByName(name)
	must(t, err)
	return l
}

// address adds an address, usable at once.
func (ns *namespace) address(t testing.TB, name, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	must(t, ns.AddrAdd(ns.link(t, name), a))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// controlDevice binds the sockets of a net.Dialer to an interface.
func controlDevice(name string) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return bindToDevice(fd, name) })
	}
}

package netwatch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
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

// A namespace is a network namespace of one test.
type namespace struct {
	handle netns.NsHandle
	*netlink.Handle
}

// newNamespace makes a namespace, and deletes it at the end of the test.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	needRoot(t)
	name := fmt.Sprintf("syncd-ch-w%d-%s", os.Getpid(), t.Name())
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

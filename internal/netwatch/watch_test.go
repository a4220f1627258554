package netwatch

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// watching runs a watcher in ns and returns where its snapshots arrive.
func watching(t *testing.T, ns *namespace, w *watcher) <-chan Snapshot {
	t.Helper()
	snapshots := make(chan Snapshot, 1024)
	if w.notify == nil {
		w.notify = func(s Snapshot) { snapshots <- s }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread dies
		if err := netns.Set(ns.handle); err != nil {
			done <- err
			return
		}
		done <- w.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("watcher ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the watcher does not end with its context")
		}
	})
	return snapshots
}

// until reads snapshots until one is as wanted, and returns it.
func until(t *testing.T, snapshots <-chan Snapshot, what string, want func(Snapshot) bool) Snapshot {
	t.Helper()
	timeout := time.After(5 * time.Second)
	var last Snapshot
	for {
		select {
		case last = <-snapshots:
			if want(last) {
				return last
			}
		case <-timeout:
			t.Fatalf("no snapshot with %s; the last one: %+v", what, last)
		}
	}
}

// truth is the oracle: what the standard library reads in the namespace.
func truth(t *testing.T, ns *namespace) Snapshot {
	t.Helper()
	snap := Snapshot{Links: make(map[string]LinkState)}
	ns.do(t, func() error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, ifi := range interfaces {
			snap.Links[ifi.Name] = LinkState{
				Index:   ifi.Index,
				Up:      ifi.Flags&net.FlagUp != 0,
				Running: ifi.Flags&net.FlagRunning != 0,
				MTU:     ifi.MTU,
			}
			addrs, err := ifi.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				p := netip.MustParsePrefix(a.String())
				snap.Addrs = append(snap.Addrs, p)
				if snap.Links[ifi.Name].Up {
					snap.InUse = append(snap.InUse, p.Addr())
				}
			}
		}
		return nil
	})
	slices.SortFunc(snap.Addrs, netip.Prefix.Compare)
	slices.SortFunc(snap.InUse, netip.Addr.Compare)
	return snap
}

func same(a, b Snapshot) bool {
	a.Addrs, b.Addrs = slices.Clone(a.Addrs), slices.Clone(b.Addrs)
	slices.SortFunc(a.Addrs, netip.Prefix.Compare)
	slices.SortFunc(b.Addrs, netip.Prefix.Compare)
	return maps.Equal(a.Links, b.Links) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.InUse, b.InUse)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (ns *namespace) addVeth(t *testing.T, name, peer string) netlink.Link {
	t.Helper()
	must(t, ns.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	l, err := ns.LinkByName(name)
	must(t, err)
	return l
}

func (ns *namespace) address(t *testing.T, l netlink.Link, cidr string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	must(t, ns.AddrAdd(l, a))
	return a
}

func TestWatchFollowsTheKernel(t *testing.T) {
	ns := newNamespace(t)
	first := ns.addVeth(t, "a0", "b0")
	ns.address(t, first, "192.0.2.1/24")
	snapshots := watching(t, ns, &watcher{})

	snap := <-snapshots
	if want := truth(t, ns); !same(snap, want) {
		t.Fatalf("first snapshot %+v, want %+v", snap, want)
	}

	t.Log("up alone is not running: the other end of the cable is down")
	must(t, ns.LinkSetUp(first))
	snap = until(t, snapshots, "a0 up", func(s Snapshot) bool { return s.Links["a0"].Up })
	if snap.Links["a0"].Running {
		t.Error("a0 is running without a carrier")
	}
	second, err := ns.LinkByName("b0")
	must(t, err)
	must(t, ns.LinkSetUp(second))
	until(t, snapshots, "a0 running", func(s Snapshot) bool { return s.Links["a0"].Running && s.Links["b0"].Running })

	t.Log("the cable is pulled")
	must(t, ns.LinkSetDown(second))
	snap = until(t, snapshots, "a0 not running", func(s Snapshot) bool { return !s.Links["a0"].Running })
	if !snap.Links["a0"].Up {
		t.Error("a0 is not up any more")
	}
	must(t, ns.LinkSetUp(second))

	t.Log("MTU")
	must(t, ns.LinkSetMTU(first, 1300))
	until(t, snapshots, "MTU 1300", func(s Snapshot) bool { return s.Links["a0"].MTU == 1300 })

	t.Log("addresses of both families, one of them with another one at the far end")
	for _, cidr := range []string{"198.51.100.7/25", "2001:db8::7/64"} {
		a := ns.address(t, first, cidr)
		prefix := netip.MustParsePrefix(cidr)
		until(t, snapshots, cidr, func(s Snapshot) bool { return slices.Contains(s.Addrs, prefix) })
		must(t, ns.AddrDel(first, a))
		until(t, snapshots, "no "+cidr, func(s Snapshot) bool { return !slices.Contains(s.Addrs, prefix) })
	}
	far, err := netlink.ParseAddr("203.0.113.1/32")
	must(t, err)
	far.Peer = &net.IPNet{IP: net.IPv4(203, 0, 113, 2), Mask: net.CIDRMask(32, 32)}
	must(t, ns.AddrAdd(first, far))
	snap = until(t, snapshots, "203.0.113.1", func(s Snapshot) bool {
		return slices.Contains(s.Addrs, netip.MustParsePrefix("203.0.113.1/32"))
	})
	if slices.Contains(snap.Addrs, netip.MustParsePrefix("203.0.113.2/32")) {
		t.Error("the far end's address counts as ours")
	}

	t.Log("an address is out of use while its interface is down, and the same one elsewhere keeps it in use")
	shared := netip.MustParseAddr("192.0.2.1")
	inUse := func(s Snapshot) bool { return slices.Contains(s.InUse, shared) }
	until(t, snapshots, "192.0.2.1 in use", inUse)
	must(t, ns.LinkSetDown(first))
	snap = until(t, snapshots, "192.0.2.1 out of use", func(s Snapshot) bool { return !inUse(s) })
	if !slices.Contains(snap.Addrs, netip.MustParsePrefix("192.0.2.1/24")) {
		t.Error("the address is gone with its interface down")
	}
	again := ns.address(t, second, "192.0.2.1/32")
	until(t, snapshots, "192.0.2.1 in use on b0", inUse)
	must(t, ns.AddrDel(second, again))
	until(t, snapshots, "192.0.2.1 out of use again", func(s Snapshot) bool { return !inUse(s) })
	must(t, ns.LinkSetUp(first))
	until(t, snapshots, "192.0.2.1 in use again", inUse)

	t.Log("deleted, with its addresses, and made again with another index")
	old := snap.Links["a0"].Index
	must(t, ns.LinkDel(first))
	snap = until(t, snapshots, "no a0", func(s Snapshot) bool { _, there := s.Links["a0"]; return !there })
	if slices.Contains(snap.Addrs, netip.MustParsePrefix("192.0.2.1/24")) {
		t.Error("the address has outlived its interface")
	}
	ns.addVeth(t, "a0", "b0")
	want := truth(t, ns)
	if want.Links["a0"].Index == old {
		t.Fatal("the new interface has the old index")
	}
	until(t, snapshots, "the kernel's state", func(s Snapshot) bool { return same(s, want) })
}

// A port that leaves its bridge is announced by RTM_DELLINK with family AF_BRIDGE.
func TestLeavingABridgeIsNotDeletion(t *testing.T) {
	ns := newNamespace(t)
	port := ns.addVeth(t, "a0", "b0")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	must(t, ns.LinkAdd(bridge))
	must(t, ns.LinkSetMaster(port, bridge))
	snapshots := watching(t, ns, &watcher{})
	<-snapshots
	must(t, ns.LinkSetNoMaster(port))
	must(t, ns.LinkSetMTU(port, 1400))
	timeout := time.After(5 * time.Second)
	for {
		select {
		case s := <-snapshots:
			if _, there := s.Links["a0"]; !there {
				t.Fatal("a0 is gone")
			}
			if s.Links["a0"].MTU == 1400 {
				return
			}
		case <-timeout:
			t.Fatal("the MTU has not changed")
		}
	}
}

func TestOverrunReadsEverythingAgain(t *testing.T) {
	ns := newNamespace(t)
	l := ns.addVeth(t, "a0", "b0")
	inside, resume := make(chan struct{}), make(chan struct{})
	snapshots := make(chan Snapshot, 1024)
	calls := 0
	w := &watcher{readBuffer: 1, notify: func(s Snapshot) {
		if calls++; calls == 1 {
			close(inside)
			<-resume
		}
		snapshots <- s
	}}
	// Cleanups run last first: this one after the watcher has ended.
	t.Cleanup(func() {
		if w.overruns == 0 {
			t.Error("no overrun: the test has tested nothing")
		}
	})
	watching(t, ns, w)

	<-inside
	for range 50 {
		must(t, ns.LinkSetMTU(l, 1400))
		a := ns.address(t, l, "192.0.2.1/24")
		must(t, ns.LinkSetMTU(l, 1300))
		must(t, ns.AddrDel(l, a))
	}
	ns.address(t, l, "198.51.100.1/24")
	must(t, ns.LinkSetMTU(l, 1280))
	want := truth(t, ns)
	close(resume)
	until(t, snapshots, "the kernel's state", func(s Snapshot) bool { return same(s, want) })
	t.Log("and changes after the overrun are followed")
	must(t, ns.LinkSetMTU(l, 1350))
	until(t, snapshots, "MTU 1350", func(s Snapshot) bool { return s.Links["a0"].MTU == 1350 })
}

func TestWatchEndsBeforeItBegins(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Watch(ctx, func(Snapshot) { t.Error("called after the end") }); err != nil {
		t.Error(err)
	}
}

func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	started := make(chan struct{})
	go func() { done <- Watch(ctx, func(Snapshot) { close(started) }) }()
	<-started
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

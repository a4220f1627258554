package tap_test

import (
	"net/netip"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/lab"
	"syncd/internal/lab/labtest"
	"syncd/internal/tap"
)

// A tap sees what comes to its host, of both families, also what no rule would let in; it
// does not see what the host sends.
func TestTap(t *testing.T) {
	l := labtest.New(t)
	node := func(name string) *lab.Node {
		n, err := l.Node(name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b := node("a"), node("b")
	end := func(n *lab.Node, addrs ...string) lab.End {
		e := lab.End{Node: n, If: "eth0"}
		for _, p := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParsePrefix(p))
		}
		return e
	}
	if err := l.Connect(end(a, "198.51.100.1/24", "2001:db8:1::1/64"), end(b, "198.51.100.2/24", "2001:db8:1::2/64")); err != nil {
		t.Fatal(err)
	}
	if err := a.Settle(); err != nil {
		t.Fatal(err)
	}
	// Everything from there is dropped.
	if err := b.LoadRules(lab.Ruleset{Inside: "none", Outside: "none"}); err != nil {
		t.Fatal(err)
	}
	var p *tap.Tap
	if err := b.Do(func() (err error) { p, err = tap.Open(); return err }); err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	var want []flow.Tuple
	for _, at := range []string{"198.51.100.2:7000", "[2001:db8:1::2]:7000"} {
		to := netip.MustParseAddrPort(at)
		c, err := a.Dial(t.Context(), "udp", netip.Addr{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		from := netip.MustParseAddrPort(c.LocalAddr().String())
		k := flow.Tuple{Family: flow.IPv6, Proto: flow.UDP, SrcPort: from.Port(), DstPort: to.Port()}
		if to.Addr().Is4() {
			k.Family = flow.IPv4
		}
		copy(k.Src[:], from.Addr().AsSlice())
		copy(k.Dst[:], to.Addr().AsSlice())
		want = append(want, k)
		back, err := b.Dial(t.Context(), "udp", to.Addr(), netip.AddrPortFrom(from.Addr(), 7001))
		if err != nil {
			t.Fatal(err)
		}
		defer back.Close()
		for range 2 {
			if _, err := c.Write(make([]byte, 1200)); err != nil {
				t.Fatal(err)
			}
			_, _ = back.Write([]byte("x")) // nobody listens there
		}
	}
	seen := map[flow.Tuple]int{}
	buffer := make([]flow.Tuple, 3)
	for begin := time.Now(); time.Since(begin) < 5*time.Second && (seen[want[0]] < 2 || seen[want[1]] < 2); time.Sleep(5 * time.Millisecond) {
		for {
			n, err := p.Read(buffer)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range buffer[:n] {
				seen[k]++
			}
			if n < len(buffer) {
				break
			}
		}
	}
	for _, k := range want {
		if seen[k] != 2 {
			t.Errorf("%d packets of %+v were seen, want 2", seen[k], k)
		}
	}
	for k, n := range seen {
		if k.DstPort == 7001 {
			t.Errorf("%d packets that left were seen: %+v", n, k)
		}
	}
	if got := testing.AllocsPerRun(100, func() { _, _ = p.Read(buffer) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

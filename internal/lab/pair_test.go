package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"syncd/internal/lab"
	"syncd/internal/lab/labtest"
)

// interval is how often connections speak in these tests.
const interval = 50 * time.Millisecond

// grace is the silence after which a connection counts as dead.
const grace = 900 * time.Millisecond

// path is one way through a firewall, in one family.
type path struct {
	name string
	from *lab.Node
	src  netip.Addr
	to   netip.AddrPort
	seen netip.Addr // of the dialing side, by the far side
}

func paths(p *lab.Pair) []path {
	var all []path
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		family := "v4"
		if a.Server.Is6() {
			family = "v6"
		}
		service := netip.AddrPortFrom(a.Server, lab.PortService)
		all = append(all,
			path{family + " plain", p.Client, a.Plain, service, a.Plain},
			path{family + " snat", p.Client, a.Hidden, service, a.OutsideVIP},
			path{family + " forward", p.Server, a.Server, netip.AddrPortFrom(a.OutsideVIP, lab.PortForward), a.Server})
	}
	return all
}

// traffic is a set of connections over every path, in every protocol and pattern.
type traffic map[string]*lab.Connection

// startTraffic opens each connections of every kind.
func startTraffic(t *testing.T, p *lab.Pair, each int) traffic {
	t.Helper()
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		serve(t, p.Server, netip.AddrPortFrom(a.Server, lab.PortService))
		serve(t, p.Client, netip.AddrPortFrom(a.Plain, lab.PortForward))
	}
	tr := traffic{}
	for _, path := range paths(p) {
		for _, network := range []string{"tcp", "udp"} {
			for _, pattern := range []lab.Pattern{lab.Echo, lab.Push} {
				for i := range each {
					name := fmt.Sprintf("%s %s %s %d", network, path.name, patternNames[pattern], i)
					c := open(t, lab.Spec{From: path.from, Network: network, Local: path.src, To: path.to, Pattern: pattern, Interval: interval})
					if got := c.Seen().Addr(); got != path.seen {
						t.Errorf("%s: the far side sees %s, want %s", name, got, path.seen)
					}
					tr[name] = c
				}
			}
		}
	}
	return tr
}

var patternNames = map[lab.Pattern]string{lab.Echo: "echo", lab.Push: "push"}

func serve(t *testing.T, n *lab.Node, at netip.AddrPort) {
	t.Helper()
	s, err := lab.Serve(n, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
}

func open(t *testing.T, spec lab.Spec) *lab.Connection {
	t.Helper()
	c, err := lab.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// check waits until every connection is as want says, and fails the test for
// those that do not get there: on a busy machine TCP waits long before it tries
// again.
func (tr traffic) check(t *testing.T, want func(c *lab.Connection) bool) {
	t.Helper()
	wrong := func() (names []string) {
		for name, c := range tr {
			if c.Record().Alive(grace) != want(c) {
				names = append(names, name)
			}
		}
		return names
	}
	for end := time.Now().Add(10 * time.Second); len(wrong()) > 0 && time.Now().Before(end); {
		time.Sleep(interval)
	}
	for _, name := range wrong() {
		r := tr[name].Record()
		t.Errorf("%s: alive is %v after %d messages, overdue %v, gap %v, error %v",
			name, r.Alive(grace), r.Received, r.Overdue, r.Gap, r.Err)
	}
}

func allAlive(*lab.Connection) bool { return true }

func TestTrafficThroughOneFirewall(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	tr := startTraffic(t, p, 1)
	time.Sleep(2 * grace)
	tr.check(t, allAlive)
	for name, c := range tr {
		if r := c.Record(); r.Received < 10 {
			t.Errorf("%s: %d messages, gap %v", name, r.Received, r.Gap)
		}
	}
	if n, err := p.FW1.FlowCount(); err != nil || n < len(tr) {
		t.Errorf("fw1 has %d flows (%v), want %d", n, err, len(tr))
	}
	if n, err := p.FW2.FlowCount(); err != nil || n > 4 {
		t.Errorf("fw2 has %d flows (%v), want next to none", n, err)
	}
}

// Without rules a router needs no state: everything but NAT lives. This is the
// proof that moving the addresses works.
func TestTakeOverWithoutRules(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	if err := errors.Join(p.FW1.ClearRules(), p.FW2.ClearRules()); err != nil {
		t.Fatal(err)
	}
	tr := traffic{}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		to := netip.AddrPortFrom(a.Server, lab.PortService)
		serve(t, p.Server, to)
		for _, network := range []string{"tcp", "udp"} {
			for _, pattern := range []lab.Pattern{lab.Echo, lab.Push} {
				name := network + " " + patternNames[pattern] + " " + to.String()
				tr[name] = open(t, lab.Spec{From: p.Client, Network: network, Local: a.Plain, To: to, Pattern: pattern, Interval: interval})
			}
		}
	}
	time.Sleep(10 * interval)
	if err := p.TakeOver(p.FW1, p.FW2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * grace)
	tr.check(t, allAlive)
	before, _, err := p.FW2.Received(lab.IfInside)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * interval)
	if after, _, _ := p.FW2.Received(lab.IfInside); after < before+4 {
		t.Errorf("fw2 carried %d packets in %v", after-before, 4*interval)
	}

	// And back again: a replugged firewall has all its routes.
	if err := p.FW1.Replug(); err != nil {
		t.Fatal(err)
	}
	if err := p.TakeOver(p.FW2, p.FW1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * grace)
	tr.check(t, allAlive)
}

// With the usual rules and nobody who carries state over, all TCP dies, and all
// UDP that is not begun anew by its dialing side.
func TestTakeOverWithoutState(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	tr := startTraffic(t, p, 1)
	time.Sleep(10 * interval)
	if err := p.TakeOver(p.FW1, p.FW2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * grace)
	tr.check(t, func(c *lab.Connection) bool {
		return c.Spec().Network == "udp" && c.Spec().Pattern == lab.Echo
	})
	for name, c := range tr {
		// Silence, not a reset: a firewall that drops leaves time for the state.
		if r := c.Record(); errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
}

func TestNewFlowsNeedPermission(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	serve(t, p.Server, netip.AddrPortFrom(p.V4.Server, 7001))
	serve(t, p.Client, netip.AddrPortFrom(p.V4.Plain, lab.PortForward))
	for _, tt := range []struct {
		name string
		from *lab.Node
		to   netip.AddrPort
	}{
		{"a port that is not allowed", p.Client, netip.AddrPortFrom(p.V4.Server, 7001)},
		{"from the outside past the port forward", p.Server, netip.AddrPortFrom(p.V4.Plain, lab.PortForward)},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if c, err := tt.from.Dial(ctx, "tcp", netip.Addr{}, tt.to); err == nil {
			_ = c.Close()
			t.Errorf("%s: connected to %s", tt.name, tt.to)
		}
		cancel()
	}
}

func TestLoss(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	at := netip.AddrPortFrom(p.V4.Sync2, 3780)
	in, err := p.FW2.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := p.FW1.Dial(t.Context(), "udp", p.V4.Sync1, at)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()

	const sent = 2000
	count := func() int {
		n, b := 0, make([]byte, 16)
		for i := range sent {
			if _, err := out.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if (i+1)%100 != 0 { // a socket buffer holds some 250 packets
				continue
			}
			_ = in.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			for {
				if _, err := in.Read(b); err != nil {
					break
				}
				n++
			}
		}
		return n
	}
	for _, tt := range []struct{ percent, atLeast, atMost int }{
		{0, sent, sent}, {30, sent * 6 / 10, sent * 8 / 10}, {100, 0, 0}, {0, sent, sent},
	} {
		if err := p.FW2.SetLoss(lab.Loss{Interface: lab.IfSync, UDPPort: at.Port(), Percent: tt.percent}); err != nil {
			t.Fatal(err)
		}
		if got := count(); got < tt.atLeast || got > tt.atMost {
			t.Errorf("loss of %d %%: %d of %d came", tt.percent, got, sent)
		}
	}
	// Another port is not meant.
	if err := p.FW2.SetLoss(lab.Loss{Interface: lab.IfSync, UDPPort: 1, Percent: 100}); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != sent {
		t.Errorf("loss on another port: %d of %d came", got, sent)
	}
	if n, err := p.FW2.FlowCount(); err != nil || n > 4 {
		t.Errorf("the sync link made %d flows (%v): it should not be tracked", n, err)
	}
}

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// interval is how often connections speak, grace the silence after which one counts
// as dead.
const (
	interval = 50 * time.Millisecond
	grace    = 1500 * time.Millisecond
)

// newPair builds a pair of firewalls with the usual rules.
func newPair(t testing.TB) *lab.Pair {
	t.Helper()
	p, err := lab.FirewallPair(newLab(t))
	ok(t, err)
	ok(t, p.LoadRules(p.Rules()))
	return p
}

// traffic is a set of live connections by name.
type traffic map[string]*lab.Connection

// openTraffic opens TCP and UDP connections over IPv4 and IPv6 on every way through
// a firewall: routed, with source NAT, and through a port forward; each speaking
// from both sides and from the far side alone.
func openTraffic(t testing.TB, p *lab.Pair) traffic {
	t.Helper()
	tr := traffic{}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		service := netip.AddrPortFrom(a.Server, lab.PortService)
		forward := netip.AddrPortFrom(a.OutsideVIP, lab.PortForward)
		serve(t, p.Server, service)
		serve(t, p.Client, netip.AddrPortFrom(a.Plain, lab.PortForward))
		for _, way := range []struct {
			name string
			from *lab.Node
			src  netip.Addr
			to   netip.AddrPort
			seen netip.Addr
		}{
			{"plain", p.Client, a.Plain, service, a.Plain},
			{"source NAT", p.Client, a.Hidden, service, a.OutsideVIP},
			{"port forward", p.Server, a.Server, forward, a.Server},
		} {
			for _, network := range []string{"tcp", "udp"} {
				for _, pattern := range []lab.Pattern{lab.Echo, lab.Push} {
					name := fmt.Sprintf("%s %s to %s, pattern %d", way.name, network, way.to, pattern)
					c, err := lab.Open(t.Context(), lab.Spec{
						From: way.from, Network: network, Local: way.src, To: way.to, Pattern: pattern, Interval: interval})
					ok(t, err)
					t.Cleanup(func() { _ = c.Close() })
					if c.Seen().Addr() != way.seen {
						t.Errorf("%s: the far side sees %v", name, c.Seen())
					}
					tr[name] = c
				}
			}
		}
	}
	return tr
}

func serve(t testing.TB, n *lab.Node, at netip.AddrPort) {
	t.Helper()
	s, err := lab.Serve(n, at)
	ok(t, err)
	t.Cleanup(func() { _ = s.Close() })
}

// forgetGaps begins the search for the longest gap anew.
func (tr traffic) forgetGaps() {
	for _, c := range tr {
		c.ForgetGap()
	}
}

// check fails the test for every connection that is not alive, and returns the
// longest gap.
func (tr traffic) check(t testing.TB, when string) time.Duration {
	t.Helper()
	var longest time.Duration
	for name, c := range tr {
		r := c.Record()
		if !r.Alive(grace) {
			t.Errorf("%s: %s is dead: overdue %v after %d messages, error %v", when, name, r.Overdue, r.Received, r.Err)
		}
		longest = max(longest, r.Gap)
	}
	t.Logf("%s: %d connections, longest gap %v", when, len(tr), longest.Round(time.Millisecond))
	return longest
}

// passes reports whether the flow goes through the firewall, so is replicated.
func passes(p *lab.Pair) func(tuple) bool {
	ends := map[netip.Addr]bool{}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, end := range []netip.Addr{a.Plain, a.Hidden, a.Hidden.Next(), a.Server} {
			ends[end] = true
		}
	}
	return func(k tuple) bool { return ends[k.src] && k.proto != flow.ICMPv6 || ends[k.src] && k.dport == 128<<8 }
}

// The firewall in charge dies; the other one commits, and all connections live.
// Then the dead one comes back as backup, and takes over again.
func TestFailover(t *testing.T) {
	for _, kinds := range []struct{ first, second daemonKind }{{ours, ours}, {ours, theirs}, {theirs, ours}} {
		for _, tr := range []transport{udp4, multicast6} {
			t.Run(fmt.Sprintf("%s dies, %s lives/%s", kinds.first, kinds.second, tr.name), func(t *testing.T) {
				t.Parallel()
				testFailover(t, kinds.first, kinds.second, tr)
			})
		}
	}
}

func testFailover(t *testing.T, first, second daemonKind, tr transport) {
	p := newPair(t)
	start := func(kind daemonKind, n *lab.Node, number int) *firewall {
		var f *firewall
		if kind == ours {
			f = newSyncd(t, n, syncdConfig("", newLink(tr, 0, number)))
		} else {
			f = newConntrackd(t, n, conntrackdConfig("TCPWindowTracking off", newLink(tr, 0, number)))
		}
		t.Cleanup(func() {
			if bad := f.Malformed(); len(bad) > 0 {
				t.Errorf("the %s on %s found messages of its peer malformed: %v", kind, n.Name(), bad)
			}
		})
		return f
	}
	fw1, fw2 := start(first, p.FW1, 1), start(second, p.FW2, 2)
	fw1.Primary()
	fw2.Backup()
	live := openTraffic(t, p)
	k1, k2 := openKernel(t, p.FW1), openKernel(t, p.FW2)
	through := passes(p)
	onWire := func(f *firewall) func() table {
		return func() table { return f.External().only(through) }
	}
	waitEqual(t, 10*time.Second, "the backup knows the connections", onWire(fw2),
		func() table { return kernelTable(t, k1, through) }, form{})
	live.check(t, "before")
	live.forgetGaps()

	ok(t, p.TakeOver(p.FW1, p.FW2))
	fw2.Primary()
	committed := kernelFlows(t, k2, through)
	for key, a := range kernelFlows(t, k1, through) {
		b, there := committed[key]
		if !there {
			t.Errorf("%v is not in the survivor's kernel", key)
			continue
		}
		// Packets have come since the commit: what they change is not compared.
		a.ProtoInfo.TCP, b.ProtoInfo.TCP, a.Timeout, b.Timeout = nil, nil, 0, 0
		if b.Status.Assured() {
			a.Status |= conntrack.StatusAssured
		}
		if bad := compareCommitted(roles{first, second}, duoOptions{}, a, b); bad != "" {
			t.Errorf("%v differs in the survivor's kernel:\n%s", key, bad)
		}
	}
	time.Sleep(2 * grace)
	live.check(t, "after the takeover")

	// The old one comes back, learns, and takes over again.
	more := openMore(t, p)
	ok(t, p.FW1.Replug())
	fw1.Backup()
	waitEqual(t, 20*time.Second, "the returned one knows the connections", onWire(fw1),
		func() table { return kernelTable(t, k2, through) }, form{})
	live.forgetGaps()
	ok(t, p.TakeOver(p.FW2, p.FW1))
	fw1.Primary()
	time.Sleep(2 * grace)
	live.check(t, "after the return")
	more.check(t, "opened on the survivor, after the return")
}

// openMore opens some connections beside those of openTraffic.
func openMore(t testing.TB, p *lab.Pair) traffic {
	t.Helper()
	tr := traffic{}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, network := range []string{"tcp", "udp"} {
			for _, src := range []netip.Addr{a.Plain, a.Hidden} {
				c, err := lab.Open(t.Context(), lab.Spec{From: p.Client, Network: network, Local: src,
					To: netip.AddrPortFrom(a.Server, lab.PortService), Interval: interval})
				ok(t, err)
				t.Cleanup(func() { _ = c.Close() })
				tr[fmt.Sprintf("%s from %s", network, src)] = c
			}
		}
	}
	return tr
}

// A ping with source NAT arrives at the other kernel with its translation, by way
// of real traffic: nothing else makes such a flow.
func TestTranslatedPing(t *testing.T) {
	for _, r := range allRoles {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			p, err := lab.FirewallPair(newLab(t))
			ok(t, err)
			rules := p.Rules()
			rules.Allow = nil // everything from the inside, ping too
			ok(t, p.LoadRules(rules))
			var fws [2]*firewall
			for i, kind := range []daemonKind{r.sender, r.receiver} {
				n := []*lab.Node{p.FW1, p.FW2}[i]
				if kind == ours {
					fws[i] = newSyncd(t, n, syncdConfig("", newLink(udp4, 0, i+1)))
				} else {
					fws[i] = newConntrackd(t, n, conntrackdConfig("", newLink(udp4, 0, i+1)))
				}
			}
			for _, a := range []lab.Addresses{p.V4, p.V6} {
				for _, src := range []netip.Addr{a.Plain, a.Hidden} {
					ping(t, p.Client, src, a.Server)
				}
			}
			k1, k2 := openKernel(t, p.FW1), openKernel(t, p.FW2)
			pings := func(k tuple) bool {
				return k.proto == flow.ICMP && k.dport == 8<<8 || k.proto == flow.ICMPv6 && k.dport == 128<<8
			}
			if n := len(kernelFlows(t, k1, pings)); n != 4 {
				t.Fatalf("%d flows of four pings", n)
			}
			waitEqual(t, 10*time.Second, "the pings", func() table { return fws[1].External().only(pings) },
				func() table { return kernelTable(t, k1, pings) }, form{})
			fws[1].Commit()
			got := kernelFlows(t, k2, pings)
			for key, a := range kernelFlows(t, k1, pings) {
				if bad := compareCommitted(r, duoOptions{}, a, got[key]); bad != "" {
					t.Errorf("%v was not committed as it is:\n%s", key, bad)
				}
			}
		})
	}
}

// ping sends an echo request and waits for the answer.
func ping(t testing.TB, from *lab.Node, src, dst netip.Addr) {
	t.Helper()
	network, echo, answer := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if dst.Is6() {
		network, echo, answer = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	ok(t, from.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, src.String())
		return err
	}))
	defer c.Close()
	request, err := (&icmp.Message{Type: echo, Body: &icmp.Echo{ID: 0x4d2, Seq: 1, Data: make([]byte, 56)}}).Marshal(nil)
	ok(t, err)
	b := make([]byte, 1500)
	waitFor(t, 5*time.Second, fmt.Sprintf("ping from %s to %s", src, dst), func() bool {
		_, err := c.WriteTo(request, &net.IPAddr{IP: dst.AsSlice()})
		ok(t, err)
		ok(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return false
			}
			if m, err := icmp.ParseMessage(answer.Protocol(), b[:n]); err == nil && m.Type == answer {
				return true
			}
		}
	})
}

package e2e

import (
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"syncd/internal/lab"
)

// openKernel opens the conntrack table of a node.
func openKernel(t testing.TB, n *lab.Node) *conntrack.Conn {
	t.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: n.FD()})
	ok(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// testFlows are the addresses that flows have which tests make by ctnetlink; with
// them they are told apart from everything else in a node.
var testFlows = []netip.Prefix{
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("2001:db8:100::/40"),
}

// isTestFlow reports whether the source of a flow is one of testFlows.
func isTestFlow(k tuple) bool {
	for _, p := range testFlows {
		if p.Contains(k.src) {
			return true
		}
	}
	return false
}

// kernelFlows reads all flows of a kernel, by identity, that accept wants (nil:
// all).
func kernelFlows(t testing.TB, c *conntrack.Conn, accept func(tuple) bool) map[tuple]conntrack.Flow {
	t.Helper()
	flows, err := c.Dump(nil)
	ok(t, err)
	m := map[tuple]conntrack.Flow{}
	for _, f := range flows {
		if k := kernelTuple(&f); accept == nil || accept(k) {
			m[k] = f
		}
	}
	return m
}

// kernelTable reads the flows of a kernel in the form of a cache's.
func kernelTable(t testing.TB, c *conntrack.Conn, accept func(tuple) bool) table {
	t.Helper()
	tab := table{}
	for k, f := range kernelFlows(t, c, accept) {
		e := entry{tuple: k, mark: f.Mark, assured: f.Status.Assured(), unreplied: !f.Status.SeenReply()}
		if f.ProtoInfo.TCP != nil {
			e.state = tcpStates[f.ProtoInfo.TCP.State]
		}
		if f.ProtoInfo.SCTP != nil {
			e.state = sctpStates[f.ProtoInfo.SCTP.State]
		}
		tab[k] = e
	}
	return tab
}

func kernelTuple(f *conntrack.Flow) tuple {
	o := &f.TupleOrig
	k := tuple{
		proto: o.Proto.Protocol,
		src:   o.IP.SourceAddress, dst: o.IP.DestinationAddress,
		sport: o.Proto.SourcePort, dport: o.Proto.DestinationPort,
		zone: f.Zone,
	}
	if k.zone == 0 {
		k.zone = o.Zone // of the original direction alone
	}
	if o.Proto.ICMPv4 || o.Proto.ICMPv6 {
		k.sport, k.dport = o.Proto.ICMPID, uint16(o.Proto.ICMPType)<<8|uint16(o.Proto.ICMPCode)
	}
	return k
}

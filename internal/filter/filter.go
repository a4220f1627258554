package filter

import (
	"net/netip"

	"syncd/internal/flow"
)

// Rules are the criteria of a filter, all of which a flow has to pass.
type Rules struct {
	Protocols List[uint8]        // IP protocol numbers
	Addresses List[netip.Prefix] // original source or reply source
	TCPStates List[uint8]        // flow.TCP* states
	Expects   Expects            // those of flows that pass
}

// Expects says whose expectations are replicated. The zero value means nobody's.
type Expects struct {
	All     bool     // of every helper
	Helpers []string // of these, whatever their port: "ftp" is also "ftp-2121"
}

// List is one criterion. What Accept names passes, or everything if Accept is
// empty; of that, what Ignore names does not.
type List[T any] struct {
	Accept []T
	Ignore []T
}

// Filter is a predicate on flows. Make it with Compile.
type Filter struct {
	protocols octets
	tcpStates octets
	accept    networks
	ignore    networks
	local     networks // addresses of this host
	keepLocal bool     // false once the local addresses were given
	expects   Expects
}

// Compile makes the filter of some rules. It looks at the network of a prefix
// only, not at its host bits, and leaves invalid prefixes out.
func Compile(r Rules) *Filter {
	return &Filter{
		protocols: makeOctets(r.Protocols),
		tcpStates: makeOctets(r.TCPStates),
		accept:    makeNetworks(r.Addresses.Accept),
		ignore:    makeNetworks(r.Addresses.Ignore),
		keepLocal: true,
		expects:   r.Expects,
	}
}

// WithLocal returns a filter with the same rules that, besides, does not match
// the flows of this host itself, which no other host can carry on: those whose
// original source or reply source is in addrs or a loopback address, and those
// to a multicast or the broadcast address. Zones of addrs do not count.
//
// A flow that only passes through and is translated to an address of this host
// does match: the reply source is the server, not us. Virtual addresses that
// move between the nodes belong into addrs on all of them, or else only the
// present owner would take its own sessions for local ones.
func (f *Filter) WithLocal(addrs []netip.Addr) *Filter {
	prefixes := []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
		netip.PrefixFrom(netip.IPv6Loopback(), 128),
	}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	g := *f
	g.local = makeNetworks(prefixes)
	g.keepLocal = false
	return &g
}

// Match reports whether a flow is replicated. Do not ask it about destroy
// events; the package comment says why.
//
// A flow is in a network if its original source or its reply source is: the
// client, or the server itself after destination NAT. The entries of an address
// list concern flows of their own family only, so a list without entries of a
// family says nothing about that family; conntrackd's kernel-side filter differs
// here and drops all IPv6 flows for an Accept list of IPv4 addresses. The TCP
// states concern TCP flows whose state is known.
func (f *Filter) Match(fl *flow.Flow) bool {
	if !f.protocols.has(fl.Orig.Proto) {
		return false
	}
	if fl.Orig.Proto == flow.TCP && fl.Has&flow.HasTCP != 0 && !f.tcpStates.has(fl.TCPState) {
		return false
	}
	if !f.keepLocal && f.isLocal(fl) {
		return false
	}
	family := familyOf(&fl.Orig)
	if len(f.accept[family]) > 0 && !f.accept.hold(fl) {
		return false
	}
	return !f.ignore.hold(fl)
}

// isLocal reports whether one end of the flow is this host, or everyone.
func (f *Filter) isLocal(fl *flow.Flow) bool {
	return isGroup(&fl.Orig) || f.local.hold(fl)
}

// isGroup reports whether the destination of t is 224.0.0.0/4, ff00::/8 or the
// limited broadcast address.
func isGroup(t *flow.Tuple) bool {
	if t.Family == flow.IPv6 {
		return t.Dst[0] == 0xff
	}
	return t.Dst[0]>>4 == 0xe || [4]byte(t.Dst[:4]) == [4]byte{255, 255, 255, 255}
}

package demo

import (
	"net/netip"

	"syncd/internal/lab"
)

// path is the way of a connection through a firewall.
type path int

const (
	plain   path = iota // routed as it is
	snat                // source address translated
	forward             // from the outside, by a port forward
	pathCount
)

func (p path) String() string { return [...]string{"plain", "source NAT", "port forward"}[p] }

// kind is what connections are told apart by.
type kind struct {
	udp  bool
	v6   bool
	path path
}

// kinds are all kinds in the order in which they are shown.
var kinds = func() (all []kind) {
	for _, udp := range [...]bool{false, true} {
		for p := range pathCount {
			for _, v6 := range [...]bool{false, true} {
				all = append(all, kind{udp, v6, p})
			}
		}
	}
	return all
}()

func (k kind) protocol() string {
	if k.udp {
		return "UDP"
	}
	return "TCP"
}

func (k kind) family() string {
	if k.v6 {
		return "IPv6"
	}
	return "IPv4"
}

// spec returns how to open a connection of the kind. The far side of every UDP
// connection speaks of its own accord, because a dialing side that spoke first
// would make a flow anew and hide that the old one was lost.
func (k kind) spec(p *lab.Pair) lab.Spec {
	a := p.V4
	if k.v6 {
		a = p.V6
	}
	s := lab.Spec{Network: "tcp", Pattern: lab.Echo, Interval: interval}
	if k.udp {
		s.Network, s.Pattern = "udp", lab.Push
	}
	s.From, s.Local, s.To = p.Client, a.Plain, netip.AddrPortFrom(a.Server, lab.PortService)
	switch k.path {
	case snat:
		s.Local = a.Hidden
	case forward:
		s.From, s.Local, s.To = p.Server, a.Server, netip.AddrPortFrom(a.OutsideVIP, lab.PortForward)
	}
	return s
}

// share divides n connections among the kinds: three fifths TCP, the rest UDP,
// evenly otherwise.
func share(n int) map[kind]int {
	tcp := n * 3 / 5
	perKind := map[kind]int{}
	half := len(kinds) / 2
	for i := range tcp {
		perKind[kinds[i%half]]++
	}
	for i := range n - tcp {
		perKind[kinds[half+i%half]]++
	}
	return perKind
}

package host

import (
	"net/netip"
	"slices"
)

// Setup is what the configuration asks of the host.
type Setup struct {
	Node  string
	Mode  string // how changes travel
	Wire  string // the dialect
	Links []Link

	EventBuffer    int // octets, of the socket that events come from
	EventBufferMax int // octets, where it stops growing

	Labels       bool   // connection labels are replicated
	MarkMask     uint32 // bits of the mark that are replicated
	Expectations Helpers
	Instant      bool // entries of the peers are in the kernel before a takeover
	UsedFirst    bool // a commit looks at packets
}

// Helpers says for which helpers expectations are replicated.
type Helpers struct {
	All   bool
	Names []string // if not All
}

// Has reports whether the expectations of a helper are replicated.
func (h Helpers) Has(helper string) bool {
	return h.All || slices.Contains(h.Names, helper)
}

// Link is a dedicated link as it is configured.
type Link struct {
	Interface  string
	Local      netip.Addr   // invalid: the link-local address
	Peers      []netip.Addr // empty with multicast: everyone
	Group      netip.Addr   // invalid: unicast
	Port       uint16
	RecvBuffer int // octets
	SendBuffer int // octets
}

// is6 reports whether the link speaks IPv6.
func (l *Link) is6() bool {
	for _, a := range append([]netip.Addr{l.Local, l.Group}, l.Peers...) {
		if a.IsValid() {
			return a.Is6() && !a.Is4In6()
		}
	}
	return true
}

package netwatch

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
)

// LinkState is the state of one interface.
type LinkState struct {
	Index   int  // changes when an interface is deleted and made again
	Up      bool // administratively up (IFF_UP)
	Running bool // has a carrier, as far as its driver can tell (IFF_RUNNING)
	MTU     int
}

// A Snapshot is the state of all interfaces at one time.
type Snapshot struct {
	Links map[string]LinkState // by interface name
	Addrs []netip.Prefix       // of all interfaces, sorted, each once, not masked
	// InUse are the addresses of interfaces that are administratively up, sorted, each
	// once. What the kernel masquerades ends with an address that leaves this list.
	InUse []netip.Addr
}

// state is what is known so far, by index: names may change hands.
type state struct {
	links map[int]namedLink
	addrs map[ifaddr]struct{}
}

type namedLink struct {
	name string
	LinkState
}

// ifaddr is an address on an interface. The same one may be on several.
type ifaddr struct {
	index  int
	prefix netip.Prefix
}

func newState() *state {
	return &state{links: make(map[int]namedLink), addrs: make(map[ifaddr]struct{})}
}

// apply takes one change in, and reports whether anything is different now.
func (s *state) apply(c change) bool {
	switch c.kind {
	case linkSet:
		old, known := s.links[c.link.Index]
		s.links[c.link.Index] = c.link
		return !known || old != c.link
	case linkGone:
		_, known := s.links[c.link.Index]
		delete(s.links, c.link.Index)
		for a := range s.addrs {
			if a.index == c.link.Index {
				delete(s.addrs, a)
			}
		}
		return known
	case addrSet:
		_, known := s.addrs[c.addr]
		s.addrs[c.addr] = struct{}{}
		return !known
	case addrGone:
		_, known := s.addrs[c.addr]
		delete(s.addrs, c.addr)
		return known
	}
	return false
}

// applyAll takes messages in, and reports whether anything is different now.
func (s *state) applyAll(messages []netlink.Message) (changed bool, err error) {
	for _, m := range messages {
		c, err := decode(m)
		if err != nil {
			return changed, err
		}
		if s.apply(c) {
			changed = true
		}
	}
	return changed, nil
}

func (s *state) equal(t *state) bool {
	return maps.Equal(s.links, t.links) && maps.Equal(s.addrs, t.addrs)
}

func (s *state) snapshot() Snapshot {
	snap := Snapshot{Links: make(map[string]LinkState, len(s.links))}
	for _, l := range s.links {
		snap.Links[l.name] = l.LinkState
	}
	for a := range s.addrs {
		snap.Addrs = append(snap.Addrs, a.prefix)
		if s.links[a.index].Up {
			snap.InUse = append(snap.InUse, a.prefix.Addr())
		}
	}
	slices.SortFunc(snap.Addrs, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	snap.Addrs = slices.Compact(snap.Addrs)
	slices.SortFunc(snap.InUse, netip.Addr.Compare)
	snap.InUse = slices.Compact(snap.InUse)
	return snap
}

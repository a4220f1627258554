package filter

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"syncd/internal/flow"
)

// networks is a set of addresses, apart for IPv4 and IPv6.
type networks [2]spans

// Indices of networks.
const (
	ipv4 = 0
	ipv6 = 1
)

// familyOf treats everything that is not IPv6 as IPv4, as flow.Tuple does.
func familyOf(t *flow.Tuple) int {
	if t.Family == flow.IPv6 {
		return ipv6
	}
	return ipv4
}

// makeNetworks puts prefixes into spans; overlapping and adjacent ones become
// one, so that a table may shrink but never grows.
func makeNetworks(prefixes []netip.Prefix) networks {
	var n networks
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		family := ipv4
		if p.Addr().Is6() {
			family = ipv6
		}
		n[family] = append(n[family], spanOf(p))
	}
	for family := range n {
		n[family] = n[family].merge()
	}
	return n
}

// hold reports whether the original source or the reply source of fl is in n.
func (n *networks) hold(fl *flow.Flow) bool {
	family := familyOf(&fl.Orig)
	s := n[family]
	if len(s) == 0 { // has needs one
		return false
	}
	return s.has(numberOf(&fl.Orig.Src, family)) || s.has(numberOf(&fl.Reply.Src, family))
}

// number is an address as a number, in host order. IPv4 addresses leave high
// zero; they never meet IPv6 addresses in one table.
type number struct{ high, low uint64 }

// numberOf reads the octets of a tuple, of which IPv4 uses the first four.
func numberOf(a *[16]byte, family int) number {
	if family == ipv6 {
		return number{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
	}
	return number{0, uint64(binary.BigEndian.Uint32(a[:4]))}
}

func (a number) less(b number) bool { return a.borrow(b) != 0 }

// borrow returns 1 if a is less than b, and else 0.
func (a number) borrow(b number) uint64 {
	_, borrow := bits.Sub64(a.low, b.low, 0)
	_, borrow = bits.Sub64(a.high, b.high, borrow)
	return borrow
}

// next returns the number after a, and zero after the last.
func (a number) next() number {
	a.low++
	if a.low == 0 {
		a.high++
	}
	return a
}

// span is a range of addresses. Invariant: !last.less(first).
type span struct{ first, last number }

// spanOf returns the addresses of a valid prefix.
func spanOf(p netip.Prefix) span {
	p = p.Masked()
	var first, host number // host has the bits that vary
	octets := p.Addr().As16()
	if p.Addr().Is4() {
		first.low = uint64(binary.BigEndian.Uint32(octets[12:])) // IPv4 stands last in As16
		host.low = 1<<(32-p.Bits()) - 1
	} else {
		first = numberOf(&octets, ipv6)
		// Shifts by 64 and more yield zero.
		host = number{^uint64(0) >> p.Bits(), ^uint64(0) >> max(p.Bits()-64, 0)}
	}
	return span{first, number{first.high | host.high, first.low | host.low}}
}

// spans is a set of addresses of one family. Invariant after merge: ascending,
// and no two overlap or touch.
type spans []span

func (s spans) merge() spans {
	slices.SortFunc(s, func(a, b span) int {
		switch {
		case a.first.less(b.first):
			return -1
		case b.first.less(a.first):
			return 1
		}
		return 0
	})
	merged := s[:0]
	for _, x := range s {
		if n := len(merged); n > 0 {
			top := &merged[n-1]
			after := top.last.next()
			if !top.last.less(x.first) || after == x.first {
				if top.last.less(x.last) {
					top.last = x.last
				}
				continue
			}
		}
		merged = append(merged, x)
	}
	return slices.Clip(merged)
}

// has looks for the last span that begins at or before a: it alone can hold a.
// The way through the table depends on a and cannot be foretold, so no step
// branches on it. s must not be empty.
func (s spans) has(a number) bool {
	at := 0 // the span lies in s[at:at+n], or there is none
	for n := len(s); n > 1; {
		half := n / 2
		at += half & int(a.borrow(s[at+half].first)-1) // half, or 0 if a is less
		n -= half
	}
	return !a.less(s[at].first) && !s[at].last.less(a)
}

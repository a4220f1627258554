package wire

import (
	"bytes"
	"encoding/binary"

	"syncd/internal/flow"
)

// MaxExpectLen is the most that AppendExpect appends, in octets.
const MaxExpectLen = 308

// Attributes of an expectation.
const (
	expMasterIPv4 = iota
	expMasterIPv6
	expMasterL4Proto
	expMasterPort
	expExpectIPv4
	expExpectIPv6
	expExpectL4Proto
	expExpectPort
	expMaskIPv4
	expMaskIPv6
	expMaskL4Proto
	expMaskPort
	expTimeout
	expFlags
	expClass
	expNATIPv4
	expNATPort
	expNATL4Proto
	expNATDir
	expHelperName
	expFn

	expOwn // here begin those of our own
)

// Attributes of an expectation that only the syncd dialect has, as cutAttr numbers
// them.
const (
	expZone = expOwn + iota
	expNATIPv6
	expHelperNameLong

	expOwnToWire = firstOwn - expOwn // add it for the number on the wire
)

// expSizes is for cutAttr.
var expSizes = [...]int16{
	expMasterIPv4: 12, expMasterIPv6: 36, expMasterL4Proto: 5, expMasterPort: 8,
	expExpectIPv4: 12, expExpectIPv6: 36, expExpectL4Proto: 5, expExpectPort: 8,
	expMaskIPv4: 12, expMaskIPv6: 36, expMaskL4Proto: 5, expMaskPort: 8,
	expTimeout: 8, expFlags: 8, expClass: 8,
	expNATIPv4: 12, expNATPort: 8, expNATL4Proto: 5, expNATDir: 8,
	expHelperName: -16, expFn: -32,
	expZone: 6, expNATIPv6: 36, expHelperNameLong: -20,
}

// parseExpect reads the attributes of b into e and reports whether they make an
// expectation: well-formed, with addresses and protocol of the master and of
// what is expected. A mask without addresses, or of another family than what is
// expected, is no mask: e.Mask is then zero. e is undefined when the result is
// false.
func parseExpect(b []byte, d Dialect, strict bool, e *flow.Expect) bool {
	*e = flow.Expect{}
	sizes := d.known(expSizes[:], expOwn)
	var seen uint64 // bit n: attribute n was there
	for len(b) > attrHeaderLen {
		num, p, rest, ok := cutAttr(b, sizes, expOwn, strict)
		if !ok {
			return false
		}
		b = rest
		seen |= 1 << num
		switch num {
		case expMasterIPv4, expMasterIPv6:
			setAddrs(&e.Master, p)
		case expMasterL4Proto:
			e.Master.Proto = p[0]
		case expMasterPort:
			setPorts(&e.Master, p)
		case expExpectIPv4, expExpectIPv6:
			setAddrs(&e.Tuple, p)
		case expExpectL4Proto:
			e.Tuple.Proto = p[0]
		case expExpectPort:
			setPorts(&e.Tuple, p)
		case expMaskIPv4, expMaskIPv6:
			setAddrs(&e.Mask, p)
		case expMaskL4Proto:
			e.Mask.Proto = p[0]
		case expMaskPort:
			setPorts(&e.Mask, p)
		case expTimeout:
			e.Timeout = binary.BigEndian.Uint32(p)
			e.Has |= flow.ExpectHasTimeout
		case expFlags:
			e.Flags = binary.BigEndian.Uint32(p)
			e.Has |= flow.ExpectHasFlags
		case expClass:
			e.Class = binary.BigEndian.Uint32(p)
			e.Has |= flow.ExpectHasClass
		case expNATIPv4, expNATIPv6:
			setAddrs(&e.NAT, p)
		case expNATPort:
			setPorts(&e.NAT, p)
		case expNATL4Proto:
			e.NAT.Proto = p[0]
		case expNATDir:
			e.NATDir = binary.BigEndian.Uint32(p)
		case expZone:
			e.Tuple.Zone = binary.BigEndian.Uint16(p)
		case expHelperName, expHelperNameLong:
			e.Has &^= flow.ExpectHasHelper
			if setName(e.Helper[:], p) {
				e.Has |= flow.ExpectHasHelper
			}
		case expFn:
			e.Has &^= flow.ExpectHasFn
			if setName(e.Fn[:], p) {
				e.Has |= flow.ExpectHasFn
			}
		}
	}
	const protocols = 1<<expMasterL4Proto | 1<<expExpectL4Proto
	if e.Master.Family == 0 || e.Tuple.Family == 0 || seen&protocols != protocols {
		return false
	}
	e.Master.Zone = e.Tuple.Zone // the kernel looks for the master in the zone of the expectation
	if !e.Master.HasPorts() {
		e.Master.SrcPort, e.Master.DstPort = 0, 0
	}
	if e.Mask.Family != e.Tuple.Family {
		e.Mask = flow.Tuple{}
	}

	// conntrackd has no attribute for an IPv6 address here: the address of such a
	// tuple is then the unspecified one.
	const nat = 1<<expNATL4Proto | 1<<expNATDir
	if e.NAT.Family == 0 {
		e.NAT.Family = e.Tuple.Family
	}
	if seen&nat == nat && e.NAT.Family == e.Tuple.Family {
		e.Has |= flow.ExpectHasNAT
	} else {
		e.NAT, e.NATDir = flow.Tuple{}, 0
	}
	return true
}

// AppendExpect appends a message of type t (ExpNew, ExpUpd or ExpDel) about e to
// b, at most MaxExpectLen octets. The order of the attributes is conntrackd's.
//
// A mask whose family is not set is not sent. What the format has no room for
// stays behind: the identifier, and in conntrackd's dialect also the zone, a helper name
// of more than 11 characters, a translation to an IPv6 address, and all ports when the
// master has none.
func AppendExpect(b []byte, d Dialect, t Type, f Flags, seq Seq, e *flow.Expect) []byte {
	start := len(b)
	b = appendHeader(b, t, f, 0, seq)
	// To a conntrackd it depends on the master alone whether any of the tuples shows
	// its ports. Among ourselves they are never left out: they belong to the identity.
	ports := d == Syncd || carriesPorts(&e.Master)

	// Each tuple has its four attributes in the same order.
	b = appendTuple(b, expMasterIPv4, e.Master.Family, ports, &e.Master)
	b = appendTuple(b, expExpectIPv4, e.Tuple.Family, ports, &e.Tuple)
	if e.Mask.Family != 0 {
		b = appendTuple(b, expMaskIPv4, e.Tuple.Family, ports, &e.Mask)
	}
	if e.Has&flow.ExpectHasTimeout != 0 {
		b = append32(b, expTimeout, e.Timeout)
	}
	flags := e.Flags
	if e.Has&flow.ExpectHasFlags == 0 {
		flags = 0 // FLAGS are never missing
	}
	b = append32(b, expFlags, flags)
	if e.Has&flow.ExpectHasClass != 0 {
		b = append32(b, expClass, e.Class)
	}
	if e.Has&flow.ExpectHasNAT != 0 {
		b = appendExpectNAT(b, d, ports, e)
	}
	if e.Has&flow.ExpectHasHelper != 0 {
		b = appendName(b, expHelperName, e.Helper[:], maxHelper)
	}
	if e.Has&flow.ExpectHasFn != 0 {
		b = appendName(b, expFn, e.Fn[:], len(e.Fn)-1)
	}
	if d == Syncd {
		b = appendExpectOwn(b, e)
	}
	setLen(b, start)
	return b
}

// appendExpectOwn appends the attributes that only the syncd dialect has.
func appendExpectOwn(b []byte, e *flow.Expect) []byte {
	if e.Tuple.Zone != 0 {
		b = append16(b, expZone+expOwnToWire, e.Tuple.Zone)
	}
	if e.Has&flow.ExpectHasNAT != 0 && e.Tuple.Family == flow.IPv6 {
		// appendAddrs counts from the attribute for IPv4.
		b = appendAddrs(b, expNATIPv6+expOwnToWire-1, flow.IPv6, &e.NAT)
	}
	if e.Has&flow.ExpectHasHelper != 0 && bytes.IndexByte(e.Helper[:], 0) > maxHelper {
		b = appendName(b, expHelperNameLong+expOwnToWire, e.Helper[:], len(e.Helper)-1)
	}
	return b
}

// appendTuple appends addresses, protocol and ports of a tuple of the given
// family; num is the first of its four attributes.
func appendTuple(b []byte, num uint16, family uint8, ports bool, t *flow.Tuple) []byte {
	b = appendAddrs(b, num, family, t)
	b = append8(b, num+2, t.Proto)
	if ports {
		b = appendPorts(b, num+3, t)
	}
	return b
}

// appendExpectNAT appends the translation, or nothing if it is to an IPv6
// address and conntrackd's dialect has none: without that address it would be
// another translation.
func appendExpectNAT(b []byte, d Dialect, ports bool, e *flow.Expect) []byte {
	switch {
	case e.Tuple.Family != flow.IPv6:
		b = appendAddrs(b, expNATIPv4, flow.IPv4, &e.NAT)
	case d == Syncd: // the address follows at the end
	case e.NAT.Src != [16]byte{} || e.NAT.Dst != [16]byte{}:
		return b
	}
	b = append8(b, expNATL4Proto, e.NAT.Proto)
	if ports {
		b = appendPorts(b, expNATPort, &e.NAT)
	}
	return append32(b, expNATDir, e.NATDir)
}

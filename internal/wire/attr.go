package wire

import (
	"bytes"
	"encoding/binary"

	"syncd/internal/flow"
)

const (
	attrHeaderLen = 4
	attrAlign     = 4

	maxHelper = 11 // characters of a helper name on the wire; conntrackd drops a message with more

	// firstOwn is the first number of the attributes of our own, which only the syncd
	// dialect has.
	firstOwn = 0x101
)

// Dialect says which attributes are sent and understood.
type Dialect uint8

const (
	// Conntrackd has conntrackd's attributes and no others: it drops a message with any
	// that it does not know.
	Conntrackd Dialect = iota
	// Syncd has those of our own too (docs/protocol.md, section 9).
	Syncd
)

// known cuts sizes to what the dialect has. Attributes of our own begin at own.
func (d Dialect) known(sizes []int16, own uint) []int16 {
	if d == Syncd {
		return sizes
	}
	return sizes[:own]
}

// unknownAttr stands for all attributes that the format does not have. It is
// more than any of their numbers, and less than 64 so that it has a bit too.
const unknownAttr = 63

// cutAttr cuts the first attribute off b, which must be longer than
// attrHeaderLen: what follows the last attribute of a message and is shorter is
// let pass, as no payload fits there. sizes has, by number, the length that an
// attribute must have, or minus the length it may have; so a payload that is
// returned need not be measured again. An attribute of our own is returned with own
// for the number firstOwn and so on, which is also where sizes has it. An unknown
// attribute is returned as unknownAttr, or refused if strict. ok false means that
// the whole message is unusable.
//
// There is no state between attributes but rest, so that it all stays in
// registers.
func cutAttr(b []byte, sizes []int16, own uint, strict bool) (num uint, payload, rest []byte, ok bool) {
	header := binary.BigEndian.Uint32(b)
	n := int(header >> 16)
	num = uint(header & 0xffff)
	if n < attrHeaderLen || n > len(b) {
		return 0, nil, nil, false
	}
	if num >= own {
		if num < firstOwn {
			num = unknownAttr
		} else {
			num += own - firstOwn
		}
	}
	if num < uint(len(sizes)) {
		if want := int(sizes[num]); n != want && (want > 0 || n > -want) {
			return 0, nil, nil, false
		}
	} else {
		if strict {
			return 0, nil, nil, false
		}
		num = unknownAttr
	}
	// The last attribute of a message may lack its padding.
	padded := min((n+attrAlign-1)&^(attrAlign-1), len(b))
	return num, b[attrHeaderLen:n], b[padded:], true
}

// setAddrs reads the two addresses of p, of 8 or 32 octets, into t. The family
// that is stated last is the one that counts.
func setAddrs(t *flow.Tuple, p []byte) {
	if len(p) == 32 {
		t.Family = flow.IPv6
		copy(t.Src[:], p[:16])
		copy(t.Dst[:], p[16:])
		return
	}
	t.Family = flow.IPv4
	t.Src, t.Dst = [16]byte{}, [16]byte{}
	copy(t.Src[:4], p[:4])
	copy(t.Dst[:4], p[4:8])
}

// setPorts reads the two ports of p, of 4 octets, into t.
func setPorts(t *flow.Tuple, p []byte) {
	t.SrcPort = binary.BigEndian.Uint16(p)
	t.DstPort = binary.BigEndian.Uint16(p[2:])
}

// setName reads a name that ends at the first NUL of p, or with p, and cuts it
// so that one NUL at least remains in name. It reports whether there is a name.
func setName(name, p []byte) bool {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	clear(name)
	copy(name[:len(name)-1], p)
	return len(p) > 0
}

// Attributes of up to 4 octets are header, payload and padding in one 64-bit
// word.

func append8(b []byte, num uint16, v uint8) []byte {
	return binary.BigEndian.AppendUint64(b, 5<<48|uint64(num)<<32|uint64(v)<<24)
}

func append16(b []byte, num, v uint16) []byte {
	return binary.BigEndian.AppendUint64(b, 6<<48|uint64(num)<<32|uint64(v)<<16)
}

// append16LE is for the three fields that are little-endian on the wire.
func append16LE(b []byte, num, v uint16) []byte {
	return append16(b, num, v<<8|v>>8)
}

func append32(b []byte, num uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint64(b, 8<<48|uint64(num)<<32|uint64(v))
}

// appendAttrHeader appends the header of an attribute with n octets of payload.
func appendAttrHeader(b []byte, num uint16, n int) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(attrHeaderLen+n)<<16|uint32(num))
}

// appendAddrs appends the addresses of t, which has the given family. num is the
// number of the attribute for IPv4; the one for IPv6 is always the next.
func appendAddrs(b []byte, num uint16, family uint8, t *flow.Tuple) []byte {
	if family == flow.IPv6 {
		b = appendAttrHeader(b, num+1, 32)
		b = append(b, t.Src[:]...)
		return append(b, t.Dst[:]...)
	}
	b = appendAttrHeader(b, num, 8)
	b = append(b, t.Src[:4]...)
	return append(b, t.Dst[:4]...)
}

func appendPorts(b []byte, num uint16, t *flow.Tuple) []byte {
	return append32(b, num, uint32(t.SrcPort)<<16|uint32(t.DstPort))
}

// carriesPorts reports whether the ports of t are sent. conntrackd sends none
// for UDP-Lite and GRE, so that its flows of these collide, but takes them.
// Kernels without a tracker for DCCP know no ports of it: two zeros would claim
// that they are known.
func carriesPorts(t *flow.Tuple) bool {
	if t.Proto == flow.DCCP {
		return t.SrcPort != 0 || t.DstPort != 0
	}
	return t.HasPorts()
}

// appendName appends name, which is padded with NULs and has one at least, with
// one NUL. A name that is empty or has more than limit characters is left out: a
// conntrackd would drop the whole message for it.
func appendName(b []byte, num uint16, name []byte, limit int) []byte {
	n := bytes.IndexByte(name, 0)
	if n <= 0 || n > limit {
		return b
	}
	b = appendAttrHeader(b, num, n+1)
	b = append(b, name[:n]...)
	var zero [attrAlign]byte
	return append(b, zero[:attrAlign-n%attrAlign]...)
}

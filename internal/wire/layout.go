package wire

import (
	"encoding/binary"

	"syncd/internal/flow"
	"syncd/internal/skeleton"
)

// maxLayout is the length of the longest attributes with a layout, whose places fit an octet.
const maxLayout = 255

// layouts are those that a Reader knows, by dialect.
type layouts struct{ skeleton.Table[layout] }

// layout says where a message of a known skeleton has its values (see package skeleton).
// Only what is frequent has one: addresses, ports and all that TCP and UDP need, with
// translation of IPv4. A message that has it is read in half the time, and means exactly
// what the walk over its attributes would find.
type layout struct {
	family, proto uint8

	// Where payloads begin; 0 for what is not there.
	addrs, ports, status, timeout, mark uint8
	state, scaleOrig, scaleRepl, flags  uint8
	sourceAddr, targetAddr, sourcePort  uint8
	targetPort, packed                  uint8      // packed: the state in STATE, the last attribute
	has                                 flow.Attrs // with HasTCP if there is a state, which may turn out to be none
}

// find returns the layout of attributes b, or nil.
func (k *layouts) find(b []byte, d Dialect) *layout { return k.Find(b, uint8(d)) }

// miss takes note of attributes that have been walked and make a flow, and have no layout.
func (k *layouts) miss(b []byte, d Dialect) {
	if !k.Missed() || len(b) > maxLayout {
		return
	}
	var l layout
	var mask skeleton.Mask
	if l.learn(b, d, &mask) {
		k.Learn(b, uint8(d), &mask, l)
	}
}

// learn makes l the layout of b, which the walk has accepted, and mask what is not values.
// It returns false if they have none.
func (l *layout) learn(b []byte, d Dialect, mask *skeleton.Mask) bool {
	var seen uint64
	sizes := d.known(ctSizes[:], ctOwn)
	for rest := b; len(rest) > 0; {
		if len(rest) <= attrHeaderLen {
			return false
		}
		at := len(b) - len(rest)
		num, p, next, ok := cutAttr(rest, sizes, ctOwn, true)
		if !ok || seen&(1<<num) != 0 {
			return false
		}
		seen |= 1 << num
		rest = next
		for i := range attrHeaderLen {
			mask[at+i] = 0xff
		}
		payload := uint8(at + attrHeaderLen)
		switch num {
		case ctIPv4, ctIPv6:
			if l.family != 0 {
				return false
			}
			l.addrs, l.family = payload, flow.IPv4
			if num == ctIPv6 {
				l.family = flow.IPv6
			}
		case ctL4Proto:
			l.proto = p[0]
			mask[payload] = 0xff
		case ctPort:
			l.ports = payload
		case ctStatus:
			l.status = payload
			l.has |= flow.HasStatus
		case ctTimeout:
			l.timeout = payload
			l.has |= flow.HasTimeout
		case ctMark:
			l.mark = payload
			l.has |= flow.HasMark
		case ctTCPState:
			l.state = payload
			l.has |= flow.HasTCP
		case ctTCPWScaleOrig:
			l.scaleOrig = payload
			l.has |= flow.HasTCPWScale
		case ctTCPWScaleRepl:
			l.scaleRepl = payload
		case ctTCPFlags:
			l.flags = payload
			l.has |= flow.HasTCPFlags
		case ctSNATIPv4:
			l.sourceAddr = payload
		case ctDNATIPv4:
			l.targetAddr = payload
		case ctSPATPort:
			l.sourcePort = payload
		case ctDPATPort:
			l.targetPort = payload
		case ctState:
			l.packed = payload + 4
		default:
			return false
		}
	}
	const (
		ofTCP    = flow.HasTCP | flow.HasTCPWScale | flow.HasTCPFlags
		ofIPv4   = 1<<ctSNATIPv4 | 1<<ctDNATIPv4
		anyNAT   = ofIPv4 | 1<<ctSPATPort | 1<<ctDPATPort
		atLeast  = 1 << ctL4Proto
		notAlone = 1<<ctTCPWScaleOrig | 1<<ctTCPWScaleRepl
		inState  = 1<<ctStatus | 1<<ctTimeout | 1<<ctTCPState | 1<<ctTCPFlags | notAlone
	)
	switch {
	case l.family == 0, seen&atLeast != atLeast:
		return false
	case l.family == flow.IPv6 && seen&ofIPv4 != 0:
		return false
	case seen&notAlone != 0 && seen&notAlone != notAlone:
		return false
	case l.packed != 0 && (int(l.packed)+stateLen != len(b) || seen&inState != 0):
		return false
	case l.proto != flow.TCP && (l.proto != flow.UDP || l.has&ofTCP != 0):
		return false
	}
	if seen&anyNAT != 0 {
		l.has |= flow.HasReply
	}
	return true
}

// flow reads attributes of this layout into f.
func (l *layout) flow(b []byte, f *flow.Flow) {
	*f = flow.Flow{Has: l.has}
	o, r := &f.Orig, &f.Reply
	o.Family, o.Proto = l.family, l.proto
	r.Family, r.Proto = l.family, l.proto
	// The reply is read from b too: reading it from Orig would wait for stores of a
	// moment ago.
	if l.family == flow.IPv4 {
		p := (*[8]byte)(b[l.addrs:])
		copy(o.Src[:4], p[:4])
		copy(o.Dst[:4], p[4:])
		copy(r.Dst[:4], p[:4])
		copy(r.Src[:4], p[4:])
	} else {
		p := (*[32]byte)(b[l.addrs:])
		copy(o.Src[:], p[:16])
		copy(o.Dst[:], p[16:])
		copy(r.Dst[:], p[:16])
		copy(r.Src[:], p[16:])
	}
	if l.ports != 0 {
		p := binary.BigEndian.Uint32(b[l.ports:])
		src, dst := uint16(p>>16), uint16(p)
		o.SrcPort, o.DstPort, r.SrcPort, r.DstPort = src, dst, dst, src
	}
	if l.status != 0 {
		f.Status = binary.BigEndian.Uint32(b[l.status:])
	}
	if l.timeout != 0 {
		f.Timeout = binary.BigEndian.Uint32(b[l.timeout:])
	}
	if l.mark != 0 {
		f.Mark = binary.BigEndian.Uint32(b[l.mark:])
	}
	if l.state != 0 {
		if f.TCPState = b[l.state]; f.TCPState > flow.TCPSynSent2 {
			f.TCPState = 0
			f.Has &^= flow.HasTCP
		}
	}
	if l.scaleOrig != 0 {
		f.TCPWScale = [2]uint8{min(b[l.scaleOrig], maxWScale), min(b[l.scaleRepl], maxWScale)}
	}
	if l.packed != 0 {
		f.SetState(stateAt(b[l.packed:]).Of(l.proto))
	}
	if l.flags != 0 {
		f.TCPFlags = [2]uint8{b[l.flags] & flow.TCPFlagsReplicated, b[l.flags+1] & flow.TCPFlagsReplicated}
	}
	if l.has&flow.HasReply == 0 {
		return
	}
	if l.sourceAddr != 0 {
		copy(r.Dst[:4], b[l.sourceAddr:][:4])
	}
	if l.targetAddr != 0 {
		copy(r.Src[:4], b[l.targetAddr:][:4])
	}
	if l.sourcePort != 0 {
		r.DstPort = binary.LittleEndian.Uint16(b[l.sourcePort:])
	}
	if l.targetPort != 0 {
		r.SrcPort = binary.LittleEndian.Uint16(b[l.targetPort:])
	}
}

// hashes is FlowHashes of a message with attributes b of this layout, and the handle that
// it tells.
func (l *layout) hashes(seed uint64, b []byte) (hash, fixed uint64, handle uint32) {
	if l.packed != 0 {
		fixed = Hash(seed, b[:len(b)-stateTail])
		return StateHash(fixed, stateAt(b[l.packed:])), fixed, binary.BigEndian.Uint32(b[l.packed-4:])
	}
	if l.timeout == 0 {
		return Hash(Hash(seed, b), nil), 0, 0
	}
	at := int(l.timeout) - attrHeaderLen
	return Hash(Hash(seed, b[:at]), b[at+8:]), 0, 0
}

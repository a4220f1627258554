package ctnetlink

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// What can be wrong with a message. Fixed values, because the event path only
// counts them.
var (
	errMessageLength = errors.New("ctnetlink: message length wrong")
	errMessageType   = errors.New("ctnetlink: not a conntrack entry")
	errAttribute     = errors.New("ctnetlink: attribute length wrong")
	errTuple         = errors.New("ctnetlink: tuple incomplete")
)

// DecodeEvent decodes one netlink message, header included, into ev and keeps
// nothing of msg. msg may be longer than the length in its header. Everything in
// ev is overwritten; after an error its content means nothing.
//
// The kind follows from type and flags as ctnetlink sets them for multicasts, so
// that a reply to a get or dump looks like EventUpdate. Beyond the bare attributes:
// CTA_ZONE is the zone of both directions; a master is in the zone of its child's
// original direction, because the kernel looks for it nowhere else; a Reply that
// was not sent is the inverse of Orig, without HasReply; and a SYNPROXY of zeros is not
// reported, for the kernel shows one in every entry that ctnetlink made.
func DecodeEvent(msg []byte, ev *flow.Event) error {
	kind, port, attrs, err := splitMessage(msg, msgNew, msgDelete)
	if err != nil {
		return err
	}
	*ev = flow.Event{Kind: kind, PortID: port}
	return decodeFlow(attrs, &ev.Flow)
}

// splitMessage returns what the header of a message tells that is of one of two types, and
// the attributes behind it.
func splitMessage(msg []byte, typeNew, typeDelete uint16) (kind flow.EventKind, port uint32, attrs []byte, err error) {
	if len(msg) < headerLen {
		return 0, 0, nil, errMessageLength
	}
	n := native.Uint32(msg)
	if n < headerLen || uint64(n) > uint64(len(msg)) {
		return 0, 0, nil, errMessageLength
	}
	switch native.Uint16(msg[4:]) {
	case typeNew:
		kind = flow.EventUpdate
		if native.Uint16(msg[6:])&(unix.NLM_F_CREATE|unix.NLM_F_EXCL) != 0 {
			kind = flow.EventNew
		}
	case typeDelete:
		kind = flow.EventDestroy
	default:
		return 0, 0, nil, errMessageType
	}
	return kind, native.Uint32(msg[12:]), msg[headerLen:n], nil
}

// decoder remembers the first fault, so that the walk over the attributes needs
// no error from each value.
type decoder struct{ err error }

// next splits the first attribute off b, which has at least attrHeaderLen octets. After a
// bad length rest is empty, which ends the caller's loop.
func (d *decoder) next(b []byte) (typ uint16, v, rest []byte) {
	n := int(native.Uint16(b))
	if n < attrHeaderLen || n > len(b) {
		d.err = errAttribute
		return 0, nil, nil
	}
	typ = native.Uint16(b[2:]) & attrTypeMask
	v = b[attrHeaderLen:n]
	if n = (n + 3) &^ 3; n < len(b) {
		rest = b[n:]
	}
	return typ, v, rest
}

func (d *decoder) u8(v []byte) uint8 {
	if len(v) < 1 {
		d.err = errAttribute
		return 0
	}
	return v[0]
}

func (d *decoder) u16(v []byte) uint16 {
	if len(v) < 2 {
		d.err = errAttribute
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

func (d *decoder) u32(v []byte) uint32 {
	if len(v) < 4 {
		d.err = errAttribute
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func (d *decoder) u64(v []byte) uint64 {
	if len(v) < 8 {
		d.err = errAttribute
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

// decodeFlow decodes the attributes of an entry into f, which must be zero.
func decodeFlow(b []byte, f *flow.Flow) error {
	var (
		d    decoder
		has  flow.Attrs
		zone uint16
	)
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaTupleOrig:
			d.tuple(v, &f.Orig)
		case ctaTupleReply:
			d.tuple(v, &f.Reply)
			has |= flow.HasReply
		case ctaTupleMaster:
			d.tuple(v, &f.Master)
			has |= flow.HasMaster
		case ctaZone:
			zone = d.u16(v)
		case ctaID:
			f.ID = d.u32(v)
			has |= flow.HasID
		case ctaStatus:
			f.Status = d.u32(v)
			has |= flow.HasStatus
		case ctaTimeout:
			f.Timeout = d.u32(v)
			has |= flow.HasTimeout
		case ctaMark:
			f.Mark = d.u32(v)
			has |= flow.HasMark
		case ctaUse:
			f.Use = d.u32(v)
			has |= flow.HasUse
		case ctaProtoInfo:
			has |= d.protoInfo(v, f)
		case ctaEventTime:
			f.EventTime = d.u64(v)
			has |= flow.HasEventTime
		case ctaTimestamp:
			has |= d.timestamp(v, f)
		case ctaCountersOrig:
			d.counter(v, &f.Counters[flow.DirOriginal])
			has |= flow.HasCounters
		case ctaCountersRepl:
			d.counter(v, &f.Counters[flow.DirReply])
			has |= flow.HasCounters
		case ctaHelp:
			has |= d.name(v, ctaHelpName, f.Helper[:len(f.Helper)-1], flow.HasHelper)
		case ctaSecctx:
			has |= d.name(v, ctaSecctxName, f.Secctx[:], flow.HasSecctx)
		case ctaLabels:
			copy(f.Labels[:], v)
			swapLabels(&f.Labels, hostLabelWord)
			has |= flow.HasLabels
		case ctaSeqAdjOrig:
			d.seqAdj(v, &f.SeqAdj[flow.DirOriginal])
			has |= flow.HasSeqAdjOrig
		case ctaSeqAdjRepl:
			d.seqAdj(v, &f.SeqAdj[flow.DirReply])
			has |= flow.HasSeqAdjRepl
		case ctaSynproxy:
			d.synproxy(v, &f.Synproxy)
			if f.Synproxy != (flow.Synproxy{}) {
				has |= flow.HasSynproxy
			}
		}
	}
	if d.err != nil {
		return d.err
	}
	if f.Orig.Family == 0 {
		return errTuple
	}
	if has&flow.HasReply == 0 {
		f.Reply, _ = f.Orig.Inverse()
	}
	if zone != 0 {
		f.Orig.Zone, f.Reply.Zone = zone, zone
	}
	if has&flow.HasMaster != 0 {
		f.Master.Zone = f.Orig.Zone
	}
	f.Has = has
	return nil
}

// Headers of the attributes of a tuple as a little-endian host sees them, and where
// its parts begin when they come in the kernel's order.
const (
	usualIPv4     = 20 | (ctaTupleIP|attrNested)<<16
	usualIPv4Src  = 8 | ctaIPv4Src<<16
	usualIPv4Dst  = 8 | ctaIPv4Dst<<16
	usualIPv4Len  = 20
	usualIPv6     = 44 | (ctaTupleIP|attrNested)<<16
	usualIPv6Src  = 20 | ctaIPv6Src<<16
	usualIPv6Dst  = 20 | ctaIPv6Dst<<16
	usualIPv6Len  = 44
	usualProto    = 28 | (ctaTupleProto|attrNested)<<16
	usualNum      = 5 | ctaProtoNum<<16
	usualSrcPort  = 6 | ctaProtoSrcPort<<16
	usualDstPort  = 6 | ctaProtoDstPort<<16
	usualProtoLen = 28
)

// usualTuple decodes what nearly every tuple looks like: addresses and ports in
// the kernel's order. It returns what follows them, or b and leaves t alone if b looks
// otherwise, as it always does on big-endian hosts. This halves the time of an event.
func usualTuple(b []byte, t *flow.Tuple) (rest []byte) {
	le := binary.LittleEndian
	var proto []byte
	switch {
	case len(b) >= usualIPv4Len+usualProtoLen &&
		le.Uint32(b) == usualIPv4 && le.Uint32(b[4:]) == usualIPv4Src && le.Uint32(b[12:]) == usualIPv4Dst:
		proto = b[usualIPv4Len:]
	case len(b) >= usualIPv6Len+usualProtoLen &&
		le.Uint32(b) == usualIPv6 && le.Uint32(b[4:]) == usualIPv6Src && le.Uint32(b[24:]) == usualIPv6Dst:
		proto = b[usualIPv6Len:]
	default:
		return b
	}
	if len(proto) < usualProtoLen || le.Uint32(proto) != usualProto || le.Uint32(proto[4:]) != usualNum ||
		le.Uint32(proto[12:]) != usualSrcPort || le.Uint32(proto[20:]) != usualDstPort {
		return b
	}
	if le.Uint32(b) == usualIPv4 {
		t.Family = flow.IPv4
		copy(t.Src[:4], b[8:12])
		copy(t.Dst[:4], b[16:20])
	} else {
		t.Family = flow.IPv6
		copy(t.Src[:], b[8:24])
		copy(t.Dst[:], b[28:44])
	}
	t.Proto = proto[8]
	t.SrcPort = binary.BigEndian.Uint16(proto[16:])
	t.DstPort = binary.BigEndian.Uint16(proto[24:])
	return proto[usualProtoLen:]
}

func (d *decoder) tuple(b []byte, t *flow.Tuple) {
	for b = usualTuple(b, t); len(b) >= attrHeaderLen; {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaTupleIP:
			d.addresses(v, t)
		case ctaTupleProto:
			d.proto(v, t)
		case ctaTupleZone:
			t.Zone = d.u16(v)
		}
	}
	if t.Family == 0 {
		d.err = errTuple
	}
}

// addresses sets the family too, if source and destination have the same.
func (d *decoder) addresses(b []byte, t *flow.Tuple) {
	var seen uint
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaIPv4Src, ctaIPv4Dst:
			if len(v) < 4 {
				d.err = errAttribute
				return
			}
		case ctaIPv6Src, ctaIPv6Dst:
			if len(v) < 16 {
				d.err = errAttribute
				return
			}
		default:
			continue
		}
		switch typ {
		case ctaIPv4Src:
			copy(t.Src[:4], v)
		case ctaIPv4Dst:
			copy(t.Dst[:4], v)
		case ctaIPv6Src:
			copy(t.Src[:], v)
		case ctaIPv6Dst:
			copy(t.Dst[:], v)
		}
		seen |= 1 << typ
	}
	switch seen {
	case 1<<ctaIPv4Src | 1<<ctaIPv4Dst:
		t.Family = flow.IPv4
	case 1<<ctaIPv6Src | 1<<ctaIPv6Dst:
		t.Family = flow.IPv6
	default:
		d.err = errTuple
	}
}

func (d *decoder) proto(b []byte, t *flow.Tuple) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaProtoNum:
			t.Proto = d.u8(v)
		case ctaProtoSrcPort, ctaProtoICMPID, ctaProtoICMPv6ID:
			t.SrcPort = d.u16(v)
		case ctaProtoDstPort:
			t.DstPort = d.u16(v)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			t.DstPort |= uint16(d.u8(v)) << 8
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			t.DstPort |= uint16(d.u8(v))
		}
	}
}

func (d *decoder) protoInfo(b []byte, f *flow.Flow) (has flow.Attrs) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaProtoInfoTCP:
			has |= d.tcp(v, f)
		case ctaProtoInfoSCTP:
			has |= d.sctp(v, f)
		}
	}
	return has
}

// tcp takes scales and flags only as pairs: one direction alone cannot be
// restored, and the kernel sends both or (in DESTROY) none.
func (d *decoder) tcp(b []byte, f *flow.Flow) (has flow.Attrs) {
	const scales = 1<<ctaTCPWScaleOrig | 1<<ctaTCPWScaleRepl
	const flags = 1<<ctaTCPFlagsOrig | 1<<ctaTCPFlagsRepl
	var seen uint
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaTCPState:
			f.TCPState = d.u8(v)
			has |= flow.HasTCP
		case ctaTCPWScaleOrig, ctaTCPWScaleRepl:
			f.TCPWScale[typ-ctaTCPWScaleOrig] = d.u8(v)
			seen |= 1 << typ
		case ctaTCPFlagsOrig, ctaTCPFlagsRepl:
			// struct nf_ct_tcp_flags {flags, mask}; the mask of a message from the
			// kernel is 0 and means nothing.
			f.TCPFlags[typ-ctaTCPFlagsOrig] = d.u8(v)
			seen |= 1 << typ
		}
	}
	if seen&scales == scales {
		has |= flow.HasTCPWScale
	} else {
		f.TCPWScale = [2]uint8{}
	}
	if seen&flags == flags {
		has |= flow.HasTCPFlags
	} else {
		f.TCPFlags = [2]uint8{}
	}
	return has
}

func (d *decoder) sctp(b []byte, f *flow.Flow) (has flow.Attrs) {
	const vtags = 1<<ctaSCTPVtagOrig | 1<<ctaSCTPVtagRepl
	var seen uint
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaSCTPState:
			f.SCTPState = d.u8(v)
			has |= flow.HasSCTP
		case ctaSCTPVtagOrig, ctaSCTPVtagRepl:
			f.SCTPVtag[typ-ctaSCTPVtagOrig] = d.u32(v)
			seen |= 1 << typ
		}
	}
	if seen&vtags == vtags {
		has |= flow.HasSCTPVtags
	} else {
		f.SCTPVtag = [2]uint32{}
	}
	return has
}

func (d *decoder) counter(b []byte, c *flow.Counter) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaCountersPackets:
			c.Packets = d.u64(v)
		case ctaCountersBytes:
			c.Bytes = d.u64(v)
		case ctaCountersPackets32:
			c.Packets = uint64(d.u32(v))
		case ctaCountersBytes32:
			c.Bytes = uint64(d.u32(v))
		}
	}
}

func (d *decoder) timestamp(b []byte, f *flow.Flow) (has flow.Attrs) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaTimestampStart:
			f.Start = d.u64(v)
			has |= flow.HasStart
		case ctaTimestampStop:
			f.Stop = d.u64(v)
			has |= flow.HasStop
		}
	}
	return has
}

func (d *decoder) seqAdj(b []byte, s *flow.SeqAdj) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaSeqAdjPos:
			s.Pos = d.u32(v)
		case ctaSeqAdjBefore:
			s.Before = int32(d.u32(v))
		case ctaSeqAdjAfter:
			s.After = int32(d.u32(v))
		}
	}
}

func (d *decoder) synproxy(b []byte, s *flow.Synproxy) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaSynproxyISN:
			s.ISN = d.u32(v)
		case ctaSynproxyITS:
			s.ITS = d.u32(v)
		case ctaSynproxyTSOff:
			s.TSOff = d.u32(v)
		}
	}
}

// name copies the NUL-terminated string in attribute want of the nest b into
// dst, cut to its length, and returns bit if it was there.
func (d *decoder) name(b []byte, want uint16, dst []byte, bit flow.Attrs) (has flow.Attrs) {
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		if typ != want {
			continue
		}
		clear(dst)
		for i := 0; i < len(v) && i < len(dst) && v[i] != 0; i++ {
			dst[i] = v[i]
		}
		has = bit
	}
	return has
}

package ctnetlink

import (
	"encoding/binary"

	"syncd/internal/flow"
	"syncd/internal/skeleton"
)

// layout says where an event of a known skeleton has its values (see package skeleton).
// Only what is frequent has one. An event that has it is decoded in half the time, and
// means exactly what DecodeEvent finds.
type layout struct {
	kind flow.EventKind
	has  flow.Attrs

	// Where values begin; 0 for those that are not there.
	orig, reply                     tupleLayout
	status, timeout, mark, use, id  uint16
	tcpState, scaleOrig, scaleReply uint16
	flagsOrig, flagsReply           uint16
	eventTime, start, stop          uint16
	counters                        [2]struct{ packets, bytes uint16 }
}

// tupleLayout is that of one direction.
type tupleLayout struct {
	family, proto uint8
	src, dst      uint16
	srcPort       uint16 // 0: no ports
	dstPort       uint16
}

// layouts are those that a reader of events knows.
type layouts struct{ skeleton.Table[layout] }

// decode is DecodeEvent, faster for events like those before.
func (k *layouts) decode(msg []byte, ev *flow.Event) error {
	if len(msg) < headerLen {
		return errMessageLength
	}
	n := native.Uint32(msg)
	if n < headerLen || uint64(n) > uint64(len(msg)) {
		return errMessageLength
	}
	msg = msg[:n]
	if l := k.Find(msg, 0); l != nil {
		l.event(msg, ev)
		return nil
	}
	if err := DecodeEvent(msg, ev); err != nil || !k.Missed() || n > skeleton.MaxLen {
		return err
	}
	d := draft{layout: layout{kind: ev.Kind, has: ev.Flow.Has}}
	if d.learn(msg) {
		k.Learn(msg, 0, &d.mask, d.layout)
	}
	return nil
}

// event decodes an event of this layout.
func (l *layout) event(b []byte, ev *flow.Event) {
	*ev = flow.Event{Kind: l.kind, PortID: native.Uint32(b[12:])}
	f := &ev.Flow
	f.Has = l.has
	l.orig.tuple(b, &f.Orig)
	l.reply.tuple(b, &f.Reply)
	be := binary.BigEndian
	if l.status != 0 {
		f.Status = be.Uint32(b[l.status:])
	}
	if l.timeout != 0 {
		f.Timeout = be.Uint32(b[l.timeout:])
	}
	if l.mark != 0 {
		f.Mark = be.Uint32(b[l.mark:])
	}
	if l.use != 0 {
		f.Use = be.Uint32(b[l.use:])
	}
	if l.id != 0 {
		f.ID = be.Uint32(b[l.id:])
	}
	if l.tcpState != 0 {
		f.TCPState = b[l.tcpState]
	}
	if l.scaleOrig != 0 {
		f.TCPWScale = [2]uint8{b[l.scaleOrig], b[l.scaleReply]}
	}
	if l.flagsOrig != 0 {
		f.TCPFlags = [2]uint8{b[l.flagsOrig], b[l.flagsReply]}
	}
	if l.has&flow.HasCounters != 0 {
		for i := range l.counters {
			if at := l.counters[i].packets; at != 0 {
				f.Counters[i].Packets = be.Uint64(b[at:])
			}
			if at := l.counters[i].bytes; at != 0 {
				f.Counters[i].Bytes = be.Uint64(b[at:])
			}
		}
	}
	if l.eventTime != 0 {
		f.EventTime = be.Uint64(b[l.eventTime:])
	}
	if l.start != 0 {
		f.Start = be.Uint64(b[l.start:])
	}
	if l.stop != 0 {
		f.Stop = be.Uint64(b[l.stop:])
	}
}

func (l *tupleLayout) tuple(b []byte, t *flow.Tuple) {
	t.Family, t.Proto = l.family, l.proto
	if l.family == flow.IPv4 {
		copy(t.Src[:4], b[l.src:][:4])
		copy(t.Dst[:4], b[l.dst:][:4])
	} else {
		copy(t.Src[:], b[l.src:][:16])
		copy(t.Dst[:], b[l.dst:][:16])
	}
	if l.srcPort != 0 {
		t.SrcPort = binary.BigEndian.Uint16(b[l.srcPort:])
		t.DstPort = binary.BigEndian.Uint16(b[l.dstPort:])
	}
}

// draft is a layout being learned.
type draft struct {
	layout
	mask skeleton.Mask
	b    []byte
}

// learn learns from an event that DecodeEvent has accepted and whose kind and attributes
// the layout has already. It returns false if there is anything in it that a layout has no
// place for, or that is not where it usually is: nothing is guessed.
func (d *draft) learn(b []byte) bool {
	d.b = b
	d.keep(0, 8) // length, type and flags
	ok := d.attrs(headerLen, len(b), func(typ uint16, at, end int) bool {
		switch typ {
		case ctaTupleOrig:
			return d.orig.family == 0 && d.tuple(&d.orig, at, end)
		case ctaTupleReply:
			return d.reply.family == 0 && d.tuple(&d.reply, at, end)
		case ctaStatus:
			return place(&d.status, at, end, 4)
		case ctaTimeout:
			return place(&d.timeout, at, end, 4)
		case ctaMark:
			return place(&d.layout.mark, at, end, 4)
		case ctaUse:
			return place(&d.use, at, end, 4)
		case ctaID:
			return place(&d.id, at, end, 4)
		case ctaEventTime:
			return place(&d.eventTime, at, end, 8)
		case ctaCountersOrig, ctaCountersRepl:
			c := &d.counters[typ-ctaCountersOrig]
			return d.attrs(at, end, func(typ uint16, at, end int) bool {
				switch typ {
				case ctaCountersPackets:
					return place(&c.packets, at, end, 8)
				case ctaCountersBytes:
					return place(&c.bytes, at, end, 8)
				}
				return false
			})
		case ctaTimestamp:
			return d.attrs(at, end, func(typ uint16, at, end int) bool {
				switch typ {
				case ctaTimestampStart:
					return place(&d.start, at, end, 8)
				case ctaTimestampStop:
					return place(&d.stop, at, end, 8)
				}
				return false
			})
		case ctaProtoInfo:
			return d.attrs(at, end, func(typ uint16, at, end int) bool {
				return typ == ctaProtoInfoTCP && d.attrs(at, end, d.tcp)
			})
		case ctaSynproxy: // of zeros, as nearly always
			return d.has&flow.HasSynproxy == 0 && d.keep(at, end)
		}
		return false
	})
	// What DecodeEvent makes of half a pair it should go on making.
	return ok && d.orig.family != 0 && d.reply.family != 0 &&
		(d.scaleOrig != 0) == (d.scaleReply != 0) && (d.flagsOrig != 0) == (d.flagsReply != 0)
}

func (d *draft) tcp(typ uint16, at, end int) bool {
	switch typ {
	case ctaTCPState:
		return place(&d.tcpState, at, end, 1)
	case ctaTCPWScaleOrig:
		return place(&d.scaleOrig, at, end, 1)
	case ctaTCPWScaleRepl:
		return place(&d.scaleReply, at, end, 1)
	case ctaTCPFlagsOrig:
		return place(&d.flagsOrig, at, end, 2)
	case ctaTCPFlagsRepl:
		return place(&d.flagsReply, at, end, 2)
	}
	return false
}

// tuple learns one direction.
func (d *draft) tuple(t *tupleLayout, at, end int) bool {
	num := uint16(0)
	ok := d.attrs(at, end, func(typ uint16, at, end int) bool {
		switch typ {
		case ctaTupleIP:
			return d.attrs(at, end, func(typ uint16, at, end int) bool {
				switch typ {
				case ctaIPv4Src:
					t.family = flow.IPv4
					return place(&t.src, at, end, 4)
				case ctaIPv4Dst:
					return place(&t.dst, at, end, 4)
				case ctaIPv6Src:
					t.family = flow.IPv6
					return place(&t.src, at, end, 16)
				case ctaIPv6Dst:
					return place(&t.dst, at, end, 16)
				}
				return false
			})
		case ctaTupleProto:
			return d.attrs(at, end, func(typ uint16, at, end int) bool {
				switch typ {
				case ctaProtoNum:
					t.proto = d.b[at]
					return place(&num, at, end, 1) && d.keep(at, end)
				case ctaProtoSrcPort:
					return place(&t.srcPort, at, end, 2)
				case ctaProtoDstPort:
					return place(&t.dstPort, at, end, 2)
				}
				return false
			})
		}
		return false
	})
	// DecodeEvent has seen to it that both addresses are of one family.
	return ok && t.src != 0 && t.dst != 0 && num != 0 && (t.srcPort != 0) == (t.dstPort != 0)
}

// attrs calls fn with type and value of each attribute of octets at to end, until it
// returns false. It returns false then, and if the attributes do not fill the octets.
func (d *draft) attrs(at, end int, fn func(typ uint16, at, end int) bool) bool {
	for at < end {
		if end-at < attrHeaderLen {
			return false
		}
		n := int(native.Uint16(d.b[at:]))
		if n < attrHeaderLen || n > end-at {
			return false
		}
		d.keep(at, at+attrHeaderLen)
		if !fn(native.Uint16(d.b[at+2:])&attrTypeMask, at+attrHeaderLen, at+n) {
			return false
		}
		at += (n + 3) &^ 3
	}
	return true
}

// keep says that octets at to end are no value.
func (d *draft) keep(at, end int) bool {
	for i := at; i < end; i++ {
		d.mask[i] = 1
	}
	return true
}

// place notes where a value of n octets begins, and reports whether it is there, as long
// as it should be, for the first time.
func place(p *uint16, at, end, n int) bool {
	if *p != 0 || end-at != n {
		return false
	}
	*p = uint16(at)
	return true
}

package ctnetlink

import (
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// Message types of expectations.
const (
	msgExpectNew    = unix.NFNL_SUBSYS_CTNETLINK_EXP << 8 // | IPCTNL_MSG_EXP_NEW, which is 0
	msgExpectGet    = unix.NFNL_SUBSYS_CTNETLINK_EXP<<8 | 1
	msgExpectDelete = unix.NFNL_SUBSYS_CTNETLINK_EXP<<8 | 2
)

// Attributes of an expectation (CTA_EXPECT_*), and of its translation.
const (
	ctaExpectMaster  = 1
	ctaExpectTuple   = 2
	ctaExpectMask    = 3
	ctaExpectTimeout = 4
	ctaExpectID      = 5
	ctaExpectHelper  = 6
	ctaExpectZone    = 7
	ctaExpectFlags   = 8
	ctaExpectClass   = 9
	ctaExpectNAT     = 10
	ctaExpectFn      = 11

	ctaExpectNATDir   = 1
	ctaExpectNATTuple = 2
)

// DecodeExpect decodes one netlink message about an expectation, as DecodeEvent does
// for entries, into x. The kind and the netlink port of who made the change are those
// of an event.
//
// The kernel tells the zone of an expectation nowhere: a zone in the message is that
// of all tuples, and is only in what some kernel may send one day.
func DecodeExpect(msg []byte, x *flow.Expect) (kind flow.EventKind, port uint32, err error) {
	kind, port, attrs, err := splitMessage(msg, msgExpectNew, msgExpectDelete)
	if err != nil {
		return 0, 0, err
	}
	*x = flow.Expect{}
	return kind, port, decodeExpect(attrs, x)
}

// decodeExpect decodes the attributes of an expectation into x, which must be zero.
func decodeExpect(b []byte, x *flow.Expect) error {
	var (
		d    decoder
		zone uint16
	)
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaExpectMaster:
			d.tuple(v, &x.Master)
		case ctaExpectTuple:
			d.tuple(v, &x.Tuple)
		case ctaExpectMask:
			d.tuple(v, &x.Mask)
		case ctaExpectTimeout:
			x.Timeout = d.u32(v)
			x.Has |= flow.ExpectHasTimeout
		case ctaExpectID:
			x.ID = d.u32(v)
			x.Has |= flow.ExpectHasID
		case ctaExpectHelper:
			if cut(x.Helper[:len(x.Helper)-1], v) {
				x.Has |= flow.ExpectHasHelper
			}
		case ctaExpectZone:
			zone = d.u16(v)
		case ctaExpectFlags:
			x.Flags = d.u32(v)
			x.Has |= flow.ExpectHasFlags
		case ctaExpectClass:
			x.Class = d.u32(v)
			x.Has |= flow.ExpectHasClass
		case ctaExpectNAT:
			x.Has |= d.expectNAT(v, x)
		case ctaExpectFn:
			if cut(x.Fn[:len(x.Fn)-1], v) {
				x.Has |= flow.ExpectHasFn
			}
		}
	}
	if d.err != nil {
		return d.err
	}
	if x.Tuple.Family == 0 || x.Master.Family == 0 {
		return errTuple
	}
	x.Tuple.Zone, x.Master.Zone = zone, zone
	return nil
}

func (d *decoder) expectNAT(b []byte, x *flow.Expect) flow.ExpectAttrs {
	const all = 1<<ctaExpectNATDir | 1<<ctaExpectNATTuple
	var seen uint
	for len(b) >= attrHeaderLen {
		var typ uint16
		var v []byte
		typ, v, b = d.next(b)
		switch typ {
		case ctaExpectNATDir:
			x.NATDir = d.u32(v)
		case ctaExpectNATTuple:
			d.tuple(v, &x.NAT)
		default:
			continue
		}
		seen |= 1 << typ
	}
	if seen != all {
		x.NAT, x.NATDir = flow.Tuple{}, 0
		return 0
	}
	return flow.ExpectHasNAT
}

// cut copies the NUL-terminated string v into dst, cut to its length, and reports
// whether there is one.
func cut(dst, v []byte) bool {
	clear(dst)
	for i := 0; i < len(v) && i < len(dst) && v[i] != 0; i++ {
		dst[i] = v[i]
	}
	return dst[0] != 0
}

// appendExpect appends a request about x, or returns b as it was and an error if the
// kernel would refuse or misread it.
//
// A create cannot set the timeout: the kernel takes that of the helper. An update can
// change nothing else.
func appendExpect(b []byte, op Op, seq uint32, x *flow.Expect) ([]byte, error) {
	for _, t := range []*flow.Tuple{&x.Tuple, &x.Master} {
		if t.Family != flow.IPv4 && t.Family != flow.IPv6 {
			return b, ErrFamily
		}
	}
	start := len(b)
	switch op {
	case OpCreate:
		b = appendHeader(b, msgExpectNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, seq, x.Tuple.Family)
		b = appendExpectCreate(b, x)
	case OpUpdate:
		b = appendHeader(b, msgExpectNew, 0, seq, x.Tuple.Family)
		b = appendExpectTuples(b, x)
		if x.Has&flow.ExpectHasTimeout != 0 {
			b = appendU32(b, ctaExpectTimeout, max(x.Timeout, 1))
		}
	case OpDelete:
		b = appendHeader(b, msgExpectDelete, 0, seq, x.Tuple.Family)
		b = appendTuple(b, ctaExpectTuple, &x.Tuple, 0)
		b = appendExpectZone(b, x)
		if x.Has&flow.ExpectHasID != 0 {
			b = appendU32(b, ctaExpectID, x.ID)
		}
	}
	return finish(b, start), nil
}

func appendExpectCreate(b []byte, x *flow.Expect) []byte {
	b = appendExpectTuples(b, x)
	b = appendU32(b, ctaExpectFlags, x.Flags&(flow.ExpectFlagPermanent|flow.ExpectFlagInactive))
	if x.Has&flow.ExpectHasClass != 0 {
		b = appendU32(b, ctaExpectClass, x.Class)
	}
	if x.Has&flow.ExpectHasNAT != 0 {
		var at int
		b, at = beginNest(b, ctaExpectNAT)
		b = appendU32(b, ctaExpectNATDir, x.NATDir)
		b = endNest(appendTuple(b, ctaExpectNATTuple, &x.NAT, 0), at)
	}
	if x.Has&flow.ExpectHasFn != 0 {
		b = appendString(b, ctaExpectFn, x.Fn[:len(x.Fn)-1])
	}
	return b
}

// appendExpectTuples appends what every create and update must carry. The kernel
// insists on a mask and a timeout attribute of the right form in both.
func appendExpectTuples(b []byte, x *flow.Expect) []byte {
	mask := x.Mask
	if mask.Family == 0 {
		mask = exactMask(&x.Tuple)
	}
	mask.Proto = x.Tuple.Proto // the number as such: it says which ports follow
	b = appendTuple(b, ctaExpectMaster, &x.Master, 0)
	b = appendTuple(b, ctaExpectTuple, &x.Tuple, 0)
	b = appendTuple(b, ctaExpectMask, &mask, 0)
	return appendExpectZone(b, x)
}

func appendExpectZone(b []byte, x *flow.Expect) []byte {
	if x.Tuple.Zone != 0 {
		b = appendU16(b, ctaExpectZone, x.Tuple.Zone)
	}
	return b
}

// exactMask is a mask under which t means what it says, with a source port of 0
// for any.
func exactMask(t *flow.Tuple) (m flow.Tuple) {
	m.Family, m.Proto = t.Family, t.Proto
	for i := range t.AddrLen() {
		m.Src[i], m.Dst[i] = 0xff, 0xff
	}
	if m.DstPort = 0xffff; t.SrcPort != 0 {
		m.SrcPort = 0xffff
	}
	return m
}

// appendString appends a NUL-padded string with one NUL.
func appendString(b []byte, typ uint16, s []byte) []byte {
	n := 0
	for n < len(s) && s[n] != 0 {
		n++
	}
	b = appendHeaderOf(b, typ, n+1)
	b = append(b, s[:n]...)
	return pad(append(b, 0))
}

package ctnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// Op is what a request does to an entry.
type Op uint8

const (
	// OpCreate makes a new entry, or fails with EEXIST when its original tuple (in
	// either direction of an entry) or its translated reply tuple is taken.
	OpCreate Op = iota
	// OpUpdate changes the entry that holds the original tuple in either direction;
	// ENOENT when there is none. It carries timeout, status, protocol state, mark,
	// sequence adjustments, synproxy and, on request, labels; the kernel refuses a change of
	// translation, master or helper, so these are left out.
	OpUpdate
	// OpDelete removes the entry that holds the original tuple in either direction;
	// ENOENT when there is none.
	OpDelete
)

func (op Op) String() string {
	switch op {
	case OpCreate:
		return "create"
	case OpUpdate:
		return "update"
	case OpDelete:
		return "delete"
	}
	return "?"
}

// CreateOptions says what a request carries beyond the plain state of the flow.
type CreateOptions struct {
	// Liberal exempts a TCP flow from the window check in both directions. Its
	// windows cannot be restored: without this the first packets that cross a
	// takeover may count as invalid.
	Liberal bool
	// Labels sends the labels. An update fails with ENOSPC for an entry that was made
	// before any rule used labels.
	Labels bool
	// MarkMask names the bits of the mark that an update changes; 0 means all of them.
	MarkMask uint32
	// GuardID makes a delete fail with ENOENT unless the entry still has the id of
	// the flow. Ids are those of this kernel only, and may be used again.
	GuardID bool
}

// What cannot be put into a request.
var (
	ErrFamily = errors.New("address family is neither IPv4 nor IPv6")
	ErrICMP   = errors.New("ICMP type has no answer, so it is no flow")
	ErrZones  = errors.New("directions are in two different zones")
	ErrState  = errors.New("protocol state out of range")
)

// statusSettable are the status bits that ctnetlink lets a request set. The kernel
// sets those of translation, helper and sequence adjustment itself.
const statusSettable = flow.StatusSeenReply | flow.StatusAssured | flow.StatusFixedTimeout

// maxRequestLen is more than any request needs: three IPv6 tuples and every
// attribute come to some 600 octets.
const maxRequestLen = 1024

// maxWScale is the largest window scale (RFC 7323, section 2.3).
const maxWScale = 14

// appendRequest appends a request for f, or returns b as it was and an error if
// the kernel would refuse or misread it.
func appendRequest(b []byte, op Op, seq uint32, f *flow.Flow, o CreateOptions) ([]byte, error) {
	if err := check(op, f); err != nil {
		return b, fmt.Errorf("ctnetlink: %v: %w", op, err)
	}
	start := len(b)
	switch op {
	case OpCreate:
		b = appendHeader(b, msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, seq, f.Orig.Family)
		b = appendCreate(b, f)
		b = appendState(b, op, f, o)
	case OpUpdate:
		b = appendHeader(b, msgNew, 0, seq, f.Orig.Family)
		b = appendIdentity(b, &f.Orig)
		b = appendState(b, op, f, o)
	case OpDelete:
		b = appendHeader(b, msgDelete, 0, seq, f.Orig.Family)
		b = appendIdentity(b, &f.Orig)
		if o.GuardID && f.Has&flow.HasID != 0 {
			b = appendU32(b, ctaID, f.ID)
		}
	}
	return finish(b, start), nil
}

// check refuses what no kernel can hold. The ranges of the protocol states are
// checked here because older kernels took them unchecked as array indices; a delete
// carries none.
func check(op Op, f *flow.Flow) error {
	if f.Orig.Family != flow.IPv4 && f.Orig.Family != flow.IPv6 {
		return ErrFamily
	}
	if _, ok := f.Orig.Inverse(); !ok {
		return ErrICMP
	}
	if f.Orig.Zone != 0 && f.Reply.Zone != 0 && f.Orig.Zone != f.Reply.Zone {
		return ErrZones
	}
	if op == OpDelete {
		return nil
	}
	if f.Has&flow.HasTCP != 0 && f.TCPState > flow.TCPSynSent2 ||
		f.Has&flow.HasTCPWScale != 0 && max(f.TCPWScale[0], f.TCPWScale[1]) > maxWScale ||
		f.Has&flow.HasSCTP != 0 && f.SCTPState > flow.SCTPHeartbeatSent {
		return ErrState
	}
	return nil
}

// appendCreate appends what only a create may carry: both tuples, translation,
// master and helper.
func appendCreate(b []byte, f *flow.Flow) []byte {
	// The reply tuple is the plain inverse; the translation goes into the NAT
	// attributes. An entry created with a translated reply tuple matches packets but
	// does not translate them.
	reply, _ := f.Orig.Inverse()
	both := f.Orig.Zone != 0 && f.Orig.Zone == f.Reply.Zone
	if both {
		b = appendTuple(b, ctaTupleOrig, &f.Orig, 0)
		b = appendTuple(b, ctaTupleReply, &reply, 0)
		b = appendU16(b, ctaZone, f.Orig.Zone)
	} else {
		b = appendTuple(b, ctaTupleOrig, &f.Orig, f.Orig.Zone)
		b = appendTuple(b, ctaTupleReply, &reply, f.Reply.Zone)
	}
	if f.Has&flow.HasReply != 0 {
		if snat, dnat := f.Translated(); snat || dnat {
			// Both, with exact addresses and ports, also for the half that is not
			// changed: for a missing or inexact one the kernel silently picks
			// another port on a clash, instead of failing with EEXIST.
			srcPort, dstPort := f.Reply.DstPort, f.Reply.SrcPort
			if f.Orig.IsICMP() {
				// There is one identifier, which source translation changes.
				srcPort, dstPort = f.Reply.SrcPort, f.Orig.SrcPort
			}
			b = appendNAT(b, ctaNATSrc, &f.Reply, &f.Reply.Dst, srcPort)
			b = appendNAT(b, ctaNATDst, &f.Reply, &f.Reply.Src, dstPort)
		}
	}
	if f.Has&flow.HasMaster != 0 {
		// The kernel looks for the master in the zone of the child and refuses a
		// zone in this nest.
		b = appendTuple(b, ctaTupleMaster, &f.Master, 0)
	}
	if f.Has&flow.HasHelper != 0 && f.Helper[0] != 0 {
		var at int
		b, at = beginNest(b, ctaHelp)
		n := 0
		for n < len(f.Helper)-1 && f.Helper[n] != 0 {
			n++
		}
		// With the NUL, which the kernel insists on.
		b = appendHeaderOf(b, ctaHelpName, n+1)
		b = append(b, f.Helper[:n]...)
		b = pad(append(b, 0))
		b = endNest(b, at)
	}
	return b
}

// appendState appends what creates and updates have in common.
func appendState(b []byte, op Op, f *flow.Flow, o CreateOptions) []byte {
	switch {
	case op == OpCreate:
		// A create needs a timeout, and 0 means expired.
		b = appendU32(b, ctaTimeout, max(f.Timeout, 1))
		b = appendU32(b, ctaStatus, f.Status&statusSettable|flow.StatusConfirmed)
	default:
		if f.Has&flow.HasTimeout != 0 {
			b = appendU32(b, ctaTimeout, max(f.Timeout, 1))
		}
		if f.Has&flow.HasStatus != 0 {
			// EXPECTED must be repeated as it is, else EBUSY.
			b = appendU32(b, ctaStatus, f.Status&(statusSettable|flow.StatusExpected)|flow.StatusConfirmed)
		}
	}
	switch {
	case f.Orig.Proto == flow.TCP && f.Has&flow.HasTCP != 0:
		b = appendTCP(b, f, o.Liberal)
	case f.Orig.Proto == flow.SCTP && f.Has&flow.HasSCTP != 0 && f.Has&flow.HasSCTPVtags != 0:
		// All three or none: the kernel refuses less.
		b = appendSCTP(b, f)
	}
	switch {
	case f.Has&flow.HasMark == 0:
	case op == OpUpdate && o.MarkMask != 0:
		// The kernel turns over what the value has outside of the mask.
		b = appendU32(b, ctaMark, f.Mark&o.MarkMask)
		b = appendU32(b, ctaMarkMask, o.MarkMask)
	case op == OpUpdate || f.Mark != 0:
		b = appendU32(b, ctaMark, f.Mark)
	}
	if f.Has&flow.HasSeqAdjOrig != 0 {
		b = appendSeqAdj(b, ctaSeqAdjOrig, &f.SeqAdj[flow.DirOriginal])
	}
	if f.Has&flow.HasSeqAdjRepl != 0 {
		b = appendSeqAdj(b, ctaSeqAdjRepl, &f.SeqAdj[flow.DirReply])
	}
	if f.Has&flow.HasSynproxy != 0 && f.Synproxy != (flow.Synproxy{}) {
		var at int
		b, at = beginNest(b, ctaSynproxy)
		b = appendU32(b, ctaSynproxyISN, f.Synproxy.ISN)
		b = appendU32(b, ctaSynproxyITS, f.Synproxy.ITS)
		b = appendU32(b, ctaSynproxyTSOff, f.Synproxy.TSOff)
		b = endNest(b, at)
	}
	if o.Labels && f.Has&flow.HasLabels != 0 {
		l := f.Labels
		swapLabels(&l, hostLabelWord)
		b = appendHeaderOf(b, ctaLabels, len(l))
		b = append(b, l[:]...)
	}
	return b
}

func appendTCP(b []byte, f *flow.Flow, liberal bool) []byte {
	b, info := beginNest(b, ctaProtoInfo)
	b, tcp := beginNest(b, ctaProtoInfoTCP)
	b = appendU8(b, ctaTCPState, f.TCPState)
	if f.Has&flow.HasTCPFlags != 0 && f.Has&flow.HasTCPWScale != 0 {
		// The kernel takes the scales only if both directions have the flag, in the same message;
		// otherwise the connection does not scale.
		if f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0 {
			b = appendU8(b, ctaTCPWScaleOrig, f.TCPWScale[flow.DirOriginal])
			b = appendU8(b, ctaTCPWScaleRepl, f.TCPWScale[flow.DirReply])
		}
		for dir, flags := range f.TCPFlags {
			v, mask := flags&flow.TCPFlagsReplicated, uint8(flow.TCPFlagsReplicated)
			if liberal || flags&flow.TCPFlagBeLiberal != 0 {
				v |= flow.TCPFlagBeLiberal
				mask |= flow.TCPFlagBeLiberal
			}
			b = appendPair(b, ctaTCPFlagsOrig+uint16(dir), v, mask)
		}
	} else {
		// Without scales the window check would refuse nearly every packet, so
		// the flow is exempt from it whatever was asked.
		b = appendPair(b, ctaTCPFlagsOrig, flow.TCPFlagBeLiberal, flow.TCPFlagBeLiberal)
		b = appendPair(b, ctaTCPFlagsRepl, flow.TCPFlagBeLiberal, flow.TCPFlagBeLiberal)
	}
	return endNest(endNest(b, tcp), info)
}

func appendSCTP(b []byte, f *flow.Flow) []byte {
	b, info := beginNest(b, ctaProtoInfo)
	b, sctp := beginNest(b, ctaProtoInfoSCTP)
	b = appendU8(b, ctaSCTPState, f.SCTPState)
	b = appendU32(b, ctaSCTPVtagOrig, f.SCTPVtag[flow.DirOriginal])
	b = appendU32(b, ctaSCTPVtagRepl, f.SCTPVtag[flow.DirReply])
	return endNest(endNest(b, sctp), info)
}

func appendSeqAdj(b []byte, typ uint16, s *flow.SeqAdj) []byte {
	b, at := beginNest(b, typ)
	b = appendU32(b, ctaSeqAdjPos, s.Pos)
	b = appendU32(b, ctaSeqAdjBefore, uint32(s.Before))
	b = appendU32(b, ctaSeqAdjAfter, uint32(s.After))
	return endNest(b, at)
}

// appendNAT maps to exactly addr and, where the protocol has one, port or ICMP
// identifier.
func appendNAT(b []byte, typ uint16, t *flow.Tuple, addr *[16]byte, port uint16) []byte {
	b, at := beginNest(b, typ)
	addrType := uint16(ctaNATIPv4Min)
	if t.Family == flow.IPv6 {
		addrType = ctaNATIPv6Min
	}
	b = appendAddr(b, addrType, addr, t.AddrLen())
	if t.HasPorts() || t.IsICMP() {
		var proto int
		b, proto = beginNest(b, ctaNATProto)
		b = appendU16(b, ctaNATPortMin, port)
		b = appendU16(b, ctaNATPortMax, port)
		b = endNest(b, proto)
	}
	return endNest(b, at)
}

// appendIdentity appends the original tuple and its zone for a lookup. The zone of
// a request counts for the direction that is looked for, so CTA_ZONE also finds
// entries whose zone is that of the original direction alone.
func appendIdentity(b []byte, t *flow.Tuple) []byte {
	b = appendTuple(b, ctaTupleOrig, t, 0)
	if t.Zone != 0 {
		b = appendU16(b, ctaZone, t.Zone)
	}
	return b
}

func appendTuple(b []byte, typ uint16, t *flow.Tuple, zone uint16) []byte {
	b, tuple := beginNest(b, typ)
	b, ip := beginNest(b, ctaTupleIP)
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.Family == flow.IPv6 {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	b = appendAddr(b, src, &t.Src, t.AddrLen())
	b = appendAddr(b, dst, &t.Dst, t.AddrLen())
	b = endNest(b, ip)
	b, proto := beginNest(b, ctaTupleProto)
	b = appendU8(b, ctaProtoNum, t.Proto)
	switch {
	case t.HasPorts():
		b = appendU16(b, ctaProtoSrcPort, t.SrcPort)
		b = appendU16(b, ctaProtoDstPort, t.DstPort)
	case t.Proto == flow.ICMP:
		b = appendU16(b, ctaProtoICMPID, t.SrcPort)
		b = appendU8(b, ctaProtoICMPType, uint8(t.DstPort>>8))
		b = appendU8(b, ctaProtoICMPCode, uint8(t.DstPort))
	case t.Proto == flow.ICMPv6:
		b = appendU16(b, ctaProtoICMPv6ID, t.SrcPort)
		b = appendU8(b, ctaProtoICMPv6Type, uint8(t.DstPort>>8))
		b = appendU8(b, ctaProtoICMPv6Code, uint8(t.DstPort))
	}
	b = endNest(b, proto)
	if zone != 0 {
		b = appendU16(b, ctaTupleZone, zone)
	}
	return endNest(b, tuple)
}

// appendHeader appends nlmsghdr, without the length, and nfgenmsg.
func appendHeader(b []byte, typ, flags uint16, seq uint32, family uint8) []byte {
	b = native.AppendUint32(b, 0)
	b = native.AppendUint16(b, typ)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0)
	return append(b, family, unix.NFNETLINK_V0, 0, 0)
}

// finish writes the length of the message that begins at start.
func finish(b []byte, start int) []byte {
	native.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendHeaderOf(b []byte, typ uint16, valueLen int) []byte {
	b = native.AppendUint16(b, uint16(attrHeaderLen+valueLen))
	return native.AppendUint16(b, typ)
}

func pad(b []byte) []byte {
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	return b
}

func beginNest(b []byte, typ uint16) ([]byte, int) {
	return appendHeaderOf(b, typ|attrNested, 0), len(b)
}

func endNest(b []byte, at int) []byte {
	native.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

func appendU8(b []byte, typ uint16, v uint8) []byte {
	return append(appendHeaderOf(b, typ, 1), v, 0, 0, 0)
}

func appendPair(b []byte, typ uint16, v, w uint8) []byte {
	return append(appendHeaderOf(b, typ, 2), v, w, 0, 0)
}

func appendU16(b []byte, typ, v uint16) []byte {
	return append(binary.BigEndian.AppendUint16(appendHeaderOf(b, typ, 2), v), 0, 0)
}

func appendU32(b []byte, typ uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHeaderOf(b, typ, 4), v)
}

func appendAddr(b []byte, typ uint16, a *[16]byte, n int) []byte {
	return append(appendHeaderOf(b, typ, n), a[:n]...)
}

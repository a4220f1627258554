package wire

import (
	"bytes"
	"encoding/binary"

	"syncd/internal/flow"
)

// MaxFlowLen is the most that AppendFlow appends, in octets.
const MaxFlowLen = 312

// Attributes of a flow.
const (
	ctIPv4 = iota
	ctIPv6
	ctL4Proto
	ctPort
	ctTCPState
	ctStatus
	ctTimeout
	ctMark
	ctMasterIPv4
	ctMasterIPv6
	ctMasterL4Proto
	ctMasterPort
	ctSNATIPv4
	ctDNATIPv4
	ctSPATPort
	ctDPATPort
	ctNATSeqAdj
	ctSCTPState
	ctSCTPVtagOrig
	ctSCTPVtagRepl
	ctDCCPState
	ctDCCPRole
	ctICMPType
	ctICMPCode
	ctICMPID
	ctTCPWScaleOrig
	ctTCPWScaleRepl
	ctHelperName
	ctLabels
	ctSNATIPv6
	ctDNATIPv6
	ctSynproxy
	ctZone

	ctOwn // here begin those of our own
)

// Attributes of a flow that only the syncd dialect has, as cutAttr numbers them.
const (
	ctZoneOrig = ctOwn + iota
	ctZoneRepl
	ctTCPFlags
	ctNATICMPID
	ctSeqAdjOrig
	ctSeqAdjRepl
	ctHelperNameLong
	ctState

	ownToWire = firstOwn - ctOwn // add it for the number on the wire
)

// ctSizes is for cutAttr.
var ctSizes = [...]int16{
	ctIPv4: 12, ctIPv6: 36, ctL4Proto: 5, ctPort: 8, ctTCPState: 5,
	ctStatus: 8, ctTimeout: 8, ctMark: 8,
	ctMasterIPv4: 12, ctMasterIPv6: 36, ctMasterL4Proto: 5, ctMasterPort: 8,
	ctSNATIPv4: 8, ctDNATIPv4: 8, ctSPATPort: 6, ctDPATPort: 6, ctNATSeqAdj: 28,
	ctSCTPState: 5, ctSCTPVtagOrig: 8, ctSCTPVtagRepl: 8, ctDCCPState: 5, ctDCCPRole: 5,
	ctICMPType: 5, ctICMPCode: 5, ctICMPID: 6,
	ctTCPWScaleOrig: 5, ctTCPWScaleRepl: 5,
	ctHelperName: -16, ctLabels: -1028,
	ctSNATIPv6: 20, ctDNATIPv6: 20, ctSynproxy: 16, ctZone: 6,
	ctZoneOrig: 6, ctZoneRepl: 6, ctTCPFlags: 6, ctNATICMPID: 6,
	ctSeqAdjOrig: 16, ctSeqAdjRepl: 16, ctHelperNameLong: -20, ctState: stateTail,
}

// maxWScale is the greatest window scale; what is above counts as this (RFC
// 7323, section 2.3).
const maxWScale = 14

// scratch holds attributes whose meaning depends on others, which may come in
// any order, until the walk is over.
type scratch struct {
	seen                uint64 // bit n: attribute n was there
	spat, dpat, icmpID  uint16
	zoneOrig, zoneRepl  uint16
	natICMPID           uint16
	icmpType, icmpCode  uint8
	tcpState, sctpState uint8
	wscale, tcpFlags    [2]uint8
	vtag                [2]uint32
	snat4, dnat4        [4]byte
	snat6, dnat6        [16]byte
	state               flow.State
}

func (s *scratch) has(num int) bool { return s.seen&(1<<num) != 0 }

// parseFlow reads the attributes of b into f and reports whether they make a
// flow: well-formed, with addresses and a protocol. Where an attribute comes
// twice the last one counts. Attributes that do not belong to the protocol of
// the flow are checked and then ignored, and so is a protocol state that no
// kernel has, so that whoever reads f may index a table with it. f is undefined
// when the result is false.
func parseFlow(b []byte, d Dialect, strict bool, f *flow.Flow) bool {
	*f = flow.Flow{}
	var s scratch
	sizes := d.known(ctSizes[:], ctOwn)
	for len(b) > attrHeaderLen {
		num, p, rest, ok := cutAttr(b, sizes, ctOwn, strict)
		if !ok {
			return false
		}
		b = rest
		s.seen |= 1 << num
		switch num {
		case ctIPv4, ctIPv6:
			setAddrs(&f.Orig, p)
		case ctL4Proto:
			f.Orig.Proto = p[0]
		case ctPort:
			setPorts(&f.Orig, p)
		case ctTCPState:
			s.tcpState = p[0]
		case ctStatus:
			f.Status = binary.BigEndian.Uint32(p)
			f.Has |= flow.HasStatus
		case ctTimeout:
			f.Timeout = binary.BigEndian.Uint32(p)
			f.Has |= flow.HasTimeout
		case ctMark:
			f.Mark = binary.BigEndian.Uint32(p)
			f.Has |= flow.HasMark
		case ctMasterIPv4, ctMasterIPv6:
			setAddrs(&f.Master, p)
		case ctMasterL4Proto:
			f.Master.Proto = p[0]
		case ctMasterPort:
			setPorts(&f.Master, p)
		case ctSNATIPv4:
			s.snat4 = [4]byte(p)
		case ctDNATIPv4:
			s.dnat4 = [4]byte(p)
		case ctSPATPort:
			s.spat = binary.LittleEndian.Uint16(p)
		case ctDPATPort:
			s.dpat = binary.LittleEndian.Uint16(p)
		case ctNATSeqAdj:
			for i := range f.SeqAdj {
				f.SeqAdj[i] = seqAdj(p[12*i:])
			}
			f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		case ctSeqAdjOrig, ctSeqAdjRepl:
			f.SeqAdj[num-ctSeqAdjOrig] = seqAdj(p)
			f.Has |= flow.HasSeqAdjOrig << (num - ctSeqAdjOrig)
		case ctSCTPState:
			s.sctpState = p[0]
		case ctSCTPVtagOrig, ctSCTPVtagRepl:
			s.vtag[num-ctSCTPVtagOrig] = binary.BigEndian.Uint32(p)
		case ctICMPType:
			s.icmpType = p[0]
		case ctICMPCode:
			s.icmpCode = p[0]
		case ctICMPID:
			s.icmpID = binary.LittleEndian.Uint16(p)
		case ctTCPWScaleOrig, ctTCPWScaleRepl:
			s.wscale[num-ctTCPWScaleOrig] = min(p[0], maxWScale)
		case ctTCPFlags:
			s.tcpFlags = [2]uint8{p[0] & flow.TCPFlagsReplicated, p[1] & flow.TCPFlagsReplicated}
		case ctNATICMPID:
			s.natICMPID = binary.BigEndian.Uint16(p)
		case ctHelperName, ctHelperNameLong:
			f.Has &^= flow.HasHelper
			if setName(f.Helper[:], p) {
				f.Has |= flow.HasHelper
			}
		case ctLabels:
			// Other lengths are let pass without effect, as conntrackd does.
			if len(p) > 0 && len(p)%4 == 0 {
				f.Labels = labels(p)
				f.Has |= flow.HasLabels
			}
		case ctSNATIPv6:
			s.snat6 = [16]byte(p)
		case ctDNATIPv6:
			s.dnat6 = [16]byte(p)
		case ctSynproxy:
			f.Synproxy = flow.Synproxy{
				ITS:   binary.BigEndian.Uint32(p),
				ISN:   binary.BigEndian.Uint32(p[4:]),
				TSOff: binary.BigEndian.Uint32(p[8:]),
			}
			f.Has |= flow.HasSynproxy
		case ctZone:
			f.Orig.Zone = binary.BigEndian.Uint16(p)
		case ctZoneOrig:
			s.zoneOrig = binary.BigEndian.Uint16(p)
		case ctZoneRepl:
			s.zoneRepl = binary.BigEndian.Uint16(p)
		case ctState:
			s.state = stateAt(p[4:])
		}
	}
	if f.Orig.Family == 0 || !s.has(ctL4Proto) {
		return false
	}
	s.finish(f)
	return true
}

// finish gives f what s holds, and the reply tuple.
func (s *scratch) finish(f *flow.Flow) {
	const zones = 1<<ctZoneOrig | 1<<ctZoneRepl
	o := &f.Orig
	if s.seen&zones != 0 {
		o.Zone = s.zoneOrig
	}
	switch o.Proto {
	case flow.TCP:
		if s.has(ctTCPState) && s.tcpState <= flow.TCPSynSent2 {
			f.TCPState = s.tcpState
			f.Has |= flow.HasTCP
		}
		if s.has(ctTCPWScaleOrig) && s.has(ctTCPWScaleRepl) {
			f.TCPWScale = s.wscale
			f.Has |= flow.HasTCPWScale
		}
		if s.has(ctTCPFlags) {
			f.TCPFlags = s.tcpFlags
			f.Has |= flow.HasTCPFlags
		}
	case flow.SCTP:
		if s.has(ctSCTPState) && s.sctpState <= flow.SCTPHeartbeatAcked {
			f.SCTPState = s.sctpState
			f.Has |= flow.HasSCTP
		}
		if s.has(ctSCTPVtagOrig) && s.has(ctSCTPVtagRepl) {
			f.SCTPVtag = s.vtag
			f.Has |= flow.HasSCTPVtags
		}
	case flow.ICMP, flow.ICMPv6:
		o.SrcPort = s.icmpID
		o.DstPort = uint16(s.icmpType)<<8 | uint16(s.icmpCode)
	}
	if s.has(ctState) {
		f.SetState(s.state.Of(o.Proto))
	}

	if f.Master.Family == 0 || !s.has(ctMasterL4Proto) {
		f.Master = flow.Tuple{} // half a master is none
	} else {
		f.Has |= flow.HasMaster
		f.Master.Zone = o.Zone // the kernel looks for the master in the zone of the flow
		if !f.Master.HasPorts() {
			f.Master.SrcPort, f.Master.DstPort = 0, 0
		}
	}
	s.reply(f)
	if s.seen&zones != 0 {
		f.Reply.Zone = s.zoneRepl
	}
}

// reply derives the reply tuple of f. The message states it only by what NAT
// made different from the inverse of the original one.
func (s *scratch) reply(f *flow.Flow) {
	o, r := &f.Orig, &f.Reply
	hasPorts := o.HasPorts()
	if hasPorts {
		// What o.Inverse does, without the copies: they would wait for stores of
		// a moment ago, and take a fifth of the time that the message takes.
		r.Src, r.Dst = o.Dst, o.Src
		r.SrcPort, r.DstPort = o.DstPort, o.SrcPort
		r.Zone, r.Family, r.Proto = o.Zone, o.Family, o.Proto
	} else {
		if !o.IsICMP() {
			o.SrcPort, o.DstPort = 0, 0
		}
		*r, _ = o.Inverse() // an ICMP type that has no answer stays as it is
	}

	// Addresses of the other family cannot be meant. conntrackd sends translated
	// ports of zero with every ICMP flow that crosses a box with NAT: they mean
	// nothing but for protocols with ports.
	const (
		any4    = 1<<ctSNATIPv4 | 1<<ctDNATIPv4
		any6    = 1<<ctSNATIPv6 | 1<<ctDNATIPv6
		anyPort = 1<<ctSPATPort | 1<<ctDPATPort
	)
	usable := s.seen & any4
	if o.Family == flow.IPv6 {
		usable = s.seen & any6
	}
	switch {
	case hasPorts:
		usable |= s.seen & anyPort
	case o.IsICMP():
		usable |= s.seen & (1 << ctNATICMPID)
	}
	if usable == 0 {
		return
	}
	f.Has |= flow.HasReply
	if usable&(1<<ctSNATIPv4) != 0 {
		copy(r.Dst[:], s.snat4[:])
	}
	if usable&(1<<ctDNATIPv4) != 0 {
		copy(r.Src[:], s.dnat4[:])
	}
	if usable&(1<<ctSNATIPv6) != 0 {
		r.Dst = s.snat6
	}
	if usable&(1<<ctDNATIPv6) != 0 {
		r.Src = s.dnat6
	}
	if usable&(1<<ctSPATPort) != 0 {
		r.DstPort = s.spat
	}
	if usable&(1<<ctDPATPort) != 0 {
		r.SrcPort = s.dpat
	}
	if usable&(1<<ctNATICMPID) != 0 {
		r.SrcPort = s.natICMPID
	}
}

// seqAdj reads the adjustment of one direction, of 12 octets.
func seqAdj(p []byte) flow.SeqAdj {
	return flow.SeqAdj{
		Pos:    binary.BigEndian.Uint32(p),
		Before: int32(binary.BigEndian.Uint32(p[4:])),
		After:  int32(binary.BigEndian.Uint32(p[8:])),
	}
}

func appendSeqAdj(b []byte, s *flow.SeqAdj) []byte {
	b = binary.BigEndian.AppendUint32(b, s.Pos)
	b = binary.BigEndian.AppendUint32(b, uint32(s.Before))
	return binary.BigEndian.AppendUint32(b, uint32(s.After))
}

// labels reads words of 32 labels each; bit b of word i is label 32*i+b. The
// kernel has 128 labels, what is beyond is dropped.
func labels(p []byte) (l [16]byte) {
	for i := 0; i < len(l) && i < len(p); i += 4 {
		binary.LittleEndian.PutUint32(l[i:], binary.BigEndian.Uint32(p[i:]))
	}
	return l
}

// AppendFlow appends a message of type t (CTNew, CTUpd or CTDel) about fl to b, at
// most MaxFlowLen octets. The order of the attributes is conntrackd's; those of our
// own follow. In the syncd dialect STATE, the last one, has all that flow.State has.
//
// What the format has no room for stays behind. In conntrackd's dialect that is:
// zones that differ by direction, a translated ICMP identifier, TCP flags, the
// adjustment of one direction alone, a helper name of more than 11 characters. In
// both it is a master in another zone, TCP flags that tell of past traffic, and what
// fl knows beyond: counters, times, identifiers, security context.
func AppendFlow(b []byte, d Dialect, t Type, f Flags, seq Seq, fl *flow.Flow) []byte {
	start := len(b)
	b = appendHeader(b, t, f, 0, seq)
	b = appendAddrs(b, ctIPv4, fl.Orig.Family, &fl.Orig)
	if d == Conntrackd {
		status := fl.Status
		if fl.Has&flow.HasStatus == 0 {
			status = 0 // STATUS is never missing
		}
		b = append32(b, ctStatus, status)
	}
	b = append8(b, ctL4Proto, fl.Orig.Proto)
	b = appendProtocol(b, d, fl)
	if d == Conntrackd && fl.Has&flow.HasTimeout != 0 {
		b = append32(b, ctTimeout, fl.Timeout)
	}
	if fl.Has&flow.HasMark != 0 {
		b = append32(b, ctMark, fl.Mark)
	}
	if fl.Has&flow.HasMaster != 0 {
		b = appendAddrs(b, ctMasterIPv4, fl.Master.Family, &fl.Master)
		b = append8(b, ctMasterL4Proto, fl.Master.Proto)
		if carriesPorts(&fl.Master) {
			b = appendPorts(b, ctMasterPort, &fl.Master)
		}
	}
	if fl.Has&flow.HasReply != 0 {
		b = appendNAT(b, fl)
	}
	const seqAdj = flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	if fl.Has&seqAdj == seqAdj {
		b = appendAttrHeader(b, ctNATSeqAdj, 24)
		for i := range fl.SeqAdj {
			b = appendSeqAdj(b, &fl.SeqAdj[i])
		}
	}
	if fl.Has&flow.HasHelper != 0 {
		b = appendName(b, ctHelperName, fl.Helper[:], maxHelper)
	}
	if fl.Has&flow.HasLabels != 0 {
		// Also when none is set: it is how a receiver learns that the last one
		// was cleared.
		b = appendAttrHeader(b, ctLabels, len(fl.Labels))
		for i := 0; i < len(fl.Labels); i += 4 {
			b = binary.BigEndian.AppendUint32(b, binary.LittleEndian.Uint32(fl.Labels[i:]))
		}
	}
	if fl.Has&flow.HasSynproxy != 0 {
		b = appendAttrHeader(b, ctSynproxy, 12)
		b = binary.BigEndian.AppendUint32(b, fl.Synproxy.ITS)
		b = binary.BigEndian.AppendUint32(b, fl.Synproxy.ISN)
		b = binary.BigEndian.AppendUint32(b, fl.Synproxy.TSOff)
	}
	if z := fl.Orig.Zone; z != 0 && z == fl.Reply.Zone {
		b = append16(b, ctZone, z)
	}
	if d == Syncd {
		b = appendOwn(b, fl)
	}
	setLen(b, start)
	return b
}

// appendOwn appends the attributes that only the syncd dialect has.
func appendOwn(b []byte, fl *flow.Flow) []byte {
	o, r := &fl.Orig, &fl.Reply
	if o.Zone != r.Zone {
		if o.Zone != 0 {
			b = append16(b, ctZoneOrig+ownToWire, o.Zone)
		}
		if r.Zone != 0 {
			b = append16(b, ctZoneRepl+ownToWire, r.Zone)
		}
	}
	if o.IsICMP() && fl.Has&flow.HasReply != 0 && r.SrcPort != o.SrcPort {
		if src, _ := natDone(fl); src {
			b = append16(b, ctNATICMPID+ownToWire, r.SrcPort)
		}
	}
	switch fl.Has & (flow.HasSeqAdjOrig | flow.HasSeqAdjRepl) {
	case flow.HasSeqAdjOrig:
		b = appendSeqAdj(appendAttrHeader(b, ctSeqAdjOrig+ownToWire, 12), &fl.SeqAdj[flow.DirOriginal])
	case flow.HasSeqAdjRepl:
		b = appendSeqAdj(appendAttrHeader(b, ctSeqAdjRepl+ownToWire, 12), &fl.SeqAdj[flow.DirReply])
	}
	if fl.Has&flow.HasHelper != 0 && bytes.IndexByte(fl.Helper[:], 0) > maxHelper {
		b = appendName(b, ctHelperNameLong+ownToWire, fl.Helper[:], len(fl.Helper)-1)
	}
	return appendStateAttr(b, fl)
}

// natDone reports whether the source and the destination of the reply tuple are
// final. The kernel sets the DONE bits on every flow that has passed its NAT hooks,
// translated or not.
func natDone(fl *flow.Flow) (src, dst bool) {
	known := fl.Has&flow.HasStatus != 0
	return !known || fl.Status&flow.StatusSrcNATDone != 0, !known || fl.Status&flow.StatusDstNATDone != 0
}

// appendProtocol appends ports, and the state if there is no STATE for it.
func appendProtocol(b []byte, d Dialect, fl *flow.Flow) []byte {
	if fl.Orig.IsICMP() {
		b = append8(b, ctICMPType, uint8(fl.Orig.DstPort>>8))
		b = append8(b, ctICMPCode, uint8(fl.Orig.DstPort))
		return append16LE(b, ctICMPID, fl.Orig.SrcPort)
	}
	if carriesPorts(&fl.Orig) {
		b = appendPorts(b, ctPort, &fl.Orig)
	}
	switch fl.Orig.Proto {
	case flow.TCP:
		if d == Syncd {
			break
		}
		if fl.Has&flow.HasTCP != 0 {
			b = append8(b, ctTCPState, fl.TCPState)
		}
		if fl.Has&flow.HasTCPWScale != 0 {
			b = append8(b, ctTCPWScaleOrig, fl.TCPWScale[0])
			b = append8(b, ctTCPWScaleRepl, fl.TCPWScale[1])
		}
	case flow.SCTP:
		if d == Conntrackd && fl.Has&flow.HasSCTP != 0 {
			b = append8(b, ctSCTPState, fl.SCTPState)
		}
		if fl.Has&flow.HasSCTPVtags != 0 {
			b = append32(b, ctSCTPVtagOrig, fl.SCTPVtag[0])
			b = append32(b, ctSCTPVtagRepl, fl.SCTPVtag[1])
		}
	}
	return b
}

// appendNAT appends what the reply tuple has that the inverse of the original
// one has not.
func appendNAT(b []byte, fl *flow.Flow) []byte {
	o, r := &fl.Orig, &fl.Reply
	src, dst := natDone(fl)
	if src && r.Dst != o.Src {
		b = appendNATAddr(b, ctSNATIPv4, ctSNATIPv6, o.Family, &r.Dst)
	}
	if dst && r.Src != o.Dst {
		b = appendNATAddr(b, ctDNATIPv4, ctDNATIPv6, o.Family, &r.Src)
	}
	if !o.HasPorts() {
		return b
	}
	if src && r.DstPort != o.SrcPort {
		b = append16LE(b, ctSPATPort, r.DstPort)
	}
	if dst && r.SrcPort != o.DstPort {
		b = append16LE(b, ctDPATPort, r.SrcPort)
	}
	return b
}

func appendNATAddr(b []byte, num4, num6 uint16, family uint8, addr *[16]byte) []byte {
	if family == flow.IPv6 {
		return append(appendAttrHeader(b, num6, 16), addr[:]...)
	}
	return append(appendAttrHeader(b, num4, 4), addr[:4]...)
}

package wire

import (
	"encoding/binary"

	"syncd/internal/flow"
)

// MaxFlowLen is the most that AppendFlow appends, in octets.
const MaxFlowLen = 304

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
}

// maxWScale is the greatest window scale; what is above counts as this (RFC
// 7323, section 2.3).
const maxWScale = 14

// scratch holds attributes whose meaning depends on others, which may come in
// any order, until the walk is over.
type scratch struct {
	seen                uint64 // bit n: attribute n was there
	spat, dpat, icmpID  uint16
	icmpType, icmpCode  uint8
	tcpState, sctpState uint8
	wscale              [2]uint8
	vtag                [2]uint32
	snat4, dnat4        [4]byte
	snat6, dnat6        [16]byte
}

func (s *scratch) has(num int) bool { return s.seen&(1<<num) != 0 }

// parseFlow reads the attributes of b into f and reports whether they make a
// flow: well-formed, with addresses and a protocol. Where an attribute comes
// twice the last one counts. Attributes that do not belong to the protocol of
// the flow are checked and then ignored, and so is a protocol state that no
// kernel has, so that whoever reads f may index a table with it. f is undefined
// when the result is false.
func parseFlow(b []byte, strict bool, f *flow.Flow) bool {
	*f = flow.Flow{}
	var s scratch
	for len(b) > attrHeaderLen {
		num, p, rest, ok := cutAttr(b, ctSizes[:], strict)
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
				f.SeqAdj[i] = flow.SeqAdj{
					Pos:    binary.BigEndian.Uint32(p[12*i:]),
					Before: int32(binary.BigEndian.Uint32(p[12*i+4:])),
					After:  int32(binary.BigEndian.Uint32(p[12*i+8:])),
				}
			}
			f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
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
		case ctHelperName:
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
	o := &f.Orig
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
	if hasPorts {
		usable |= s.seen & anyPort
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
// most MaxFlowLen octets. The order of the attributes is conntrackd's.
//
// What the format has no room for stays behind: zones that differ by direction,
// a master in another zone, a translated ICMP identifier, the adjustment of one
// direction alone, a helper name of more than 11 characters, and what fl knows
// beyond: TCP flags, counters, times, identifiers, security context.
func AppendFlow(b []byte, t Type, f Flags, seq Seq, fl *flow.Flow) []byte {
	start := len(b)
	b = appendHeader(b, t, f, 0, seq)
	b = appendAddrs(b, ctIPv4, fl.Orig.Family, &fl.Orig)
	status := fl.Status
	if fl.Has&flow.HasStatus == 0 {
		status = 0 // STATUS is never missing
	}
	b = append32(b, ctStatus, status)
	b = append8(b, ctL4Proto, fl.Orig.Proto)
	b = appendProtocol(b, fl)
	if fl.Has&flow.HasTimeout != 0 {
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
		for _, s := range &fl.SeqAdj {
			b = binary.BigEndian.AppendUint32(b, s.Pos)
			b = binary.BigEndian.AppendUint32(b, uint32(s.Before))
			b = binary.BigEndian.AppendUint32(b, uint32(s.After))
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
	setLen(b, start)
	return b
}

// appendProtocol appends ports and state.
func appendProtocol(b []byte, fl *flow.Flow) []byte {
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
		if fl.Has&flow.HasTCP != 0 {
			b = append8(b, ctTCPState, fl.TCPState)
		}
		if fl.Has&flow.HasTCPWScale != 0 {
			b = append8(b, ctTCPWScaleOrig, fl.TCPWScale[0])
			b = append8(b, ctTCPWScaleRepl, fl.TCPWScale[1])
		}
	case flow.SCTP:
		if fl.Has&flow.HasSCTP != 0 {
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
// one has not. The kernel sets the DONE bits on every flow that has passed its
// NAT hooks, translated or not; without them the reply tuple is not final.
func appendNAT(b []byte, fl *flow.Flow) []byte {
	o, r := &fl.Orig, &fl.Reply
	known := fl.Has&flow.HasStatus != 0
	src := !known || fl.Status&flow.StatusSrcNATDone != 0
	dst := !known || fl.Status&flow.StatusDstNATDone != 0
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

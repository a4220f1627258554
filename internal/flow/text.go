package flow

import (
	"bytes"
	"net/netip"
	"strconv"
)

// addr returns an address of t, of 4 or 16 octets by its family.
func (t *Tuple) addr(a *[16]byte) netip.Addr {
	if t.Family&^ExpectKey == IPv6 {
		return netip.AddrFrom16(*a)
	}
	return netip.AddrFrom4([4]byte(a[:4]))
}

// String returns t as AppendText does.
func (t Tuple) String() string { return string(t.AppendText(make([]byte, 0, 128))) }

// AppendText appends t as conntrack(8) prints a tuple, with the protocol before
// it and the zone, if any, after it:
//
//	tcp src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 zone=7
//
// The key of an expectation has "expected" before all that.
func (t *Tuple) AppendText(b []byte) []byte {
	if t.IsExpectKey() {
		b = append(b, "expected "...)
	}
	b = append(b, ProtoName(t.Proto)...)
	if protoNames[t.Proto] == "" {
		b = appendNumber(b, "-", uint64(t.Proto))
	}
	b = append(b, ' ')
	b = t.appendEnds(b)
	if t.Zone != 0 {
		b = appendNumber(b, " zone=", uint64(t.Zone))
	}
	return b
}

// appendEnds appends addresses and what the protocol has for ports.
func (t *Tuple) appendEnds(b []byte) []byte {
	b = append(b, "src="...)
	b = t.addr(&t.Src).AppendTo(b)
	b = append(b, " dst="...)
	b = t.addr(&t.Dst).AppendTo(b)
	switch {
	case t.Proto == GRE:
		b = append(b, " srckey=0x"...)
		b = strconv.AppendUint(b, uint64(t.SrcPort), 16)
		b = append(b, " dstkey=0x"...)
		b = strconv.AppendUint(b, uint64(t.DstPort), 16)
	case t.HasPorts():
		b = appendNumber(b, " sport=", uint64(t.SrcPort))
		b = appendNumber(b, " dport=", uint64(t.DstPort))
	case t.IsICMP():
		b = appendNumber(b, " type=", uint64(t.DstPort>>8))
		b = appendNumber(b, " code=", uint64(t.DstPort&0xff))
		b = appendNumber(b, " id=", uint64(t.SrcPort))
	}
	return b
}

// String returns f as AppendText does.
func (f *Flow) String() string { return string(f.AppendText(make([]byte, 0, 256))) }

// AppendText appends f as one line without its newline, in the form in which
// conntrack(8) lists entries:
//
//	tcp      6 299 ESTABLISHED src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] mark=9 zone=7
//
// It differs in two points: labels are numbers (labels=3,17), and the master of
// a related flow follows in brackets. Attributes that are not known are left
// out. Names that came from outside are made printable.
func (f *Flow) AppendText(b []byte) []byte {
	start := len(b)
	b = append(b, ProtoName(f.Orig.Proto)...)
	for len(b)-start < 8 {
		b = append(b, ' ')
	}
	b = appendNumber(b, " ", uint64(f.Orig.Proto))
	if f.Has&HasTimeout != 0 {
		b = appendNumber(b, " ", uint64(f.Timeout))
	}
	b = f.appendState(b, " ", "")

	// A zone of one direction alone is said beside its tuple, one of both after
	// them.
	oneZone := f.Orig.Zone == f.Reply.Zone
	b = append(b, ' ')
	b = f.Orig.appendEnds(b)
	if !oneZone && f.Orig.Zone != 0 {
		b = appendNumber(b, " zone-orig=", uint64(f.Orig.Zone))
	}
	b = f.appendCounter(b, DirOriginal)
	if f.Has&HasStatus != 0 && f.Status&StatusSeenReply == 0 {
		b = append(b, " [UNREPLIED]"...)
	}
	b = append(b, ' ')
	b = f.Reply.appendEnds(b)
	if !oneZone && f.Reply.Zone != 0 {
		b = appendNumber(b, " zone-reply=", uint64(f.Reply.Zone))
	}
	b = f.appendCounter(b, DirReply)

	switch {
	case f.Has&HasStatus == 0:
	case f.Status&StatusHWOffload != 0:
		b = append(b, " [HW_OFFLOAD]"...)
	case f.Status&StatusOffload != 0:
		b = append(b, " [OFFLOAD]"...)
	case f.Status&StatusAssured != 0:
		b = append(b, " [ASSURED]"...)
	}
	if f.Has&HasMark != 0 {
		b = appendNumber(b, " mark=", uint64(f.Mark))
	}
	if f.Has&HasSecctx != 0 {
		b = append(b, " secctx="...)
		b = appendPrintable(b, f.Secctx[:])
	}
	if oneZone && f.Orig.Zone != 0 {
		b = appendNumber(b, " zone=", uint64(f.Orig.Zone))
	}
	if f.Has&HasHelper != 0 {
		b = append(b, " helper="...)
		b = appendPrintable(b, f.Helper[:])
	}
	if f.Has&HasLabels != 0 {
		b = append(b, " labels="...)
		b = f.appendLabels(b)
	}
	if f.Has&HasUse != 0 {
		b = appendNumber(b, " use=", uint64(f.Use))
	}
	if f.Has&HasID != 0 {
		b = appendNumber(b, " id=", uint64(f.ID))
	}
	if f.Has&HasMaster != 0 {
		b = append(b, " [master "...)
		b = append(f.Master.AppendText(b), ']')
	}
	return b
}

func (f *Flow) appendCounter(b []byte, dir int) []byte {
	if f.Has&HasCounters == 0 {
		return b
	}
	b = appendNumber(b, " packets=", f.Counters[dir].Packets)
	return appendNumber(b, " bytes=", f.Counters[dir].Bytes)
}

// appendLabels appends the numbers of the labels that are set.
func (f *Flow) appendLabels(b []byte) []byte {
	first := true
	for n := range len(f.Labels) * 8 {
		if f.Labels[n/8]>>(n%8)&1 == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	return b
}

func appendNumber(b []byte, before string, n uint64) []byte {
	return strconv.AppendUint(append(b, before...), n, 10)
}

// appendState appends the state of the flow's protocol, if it has one and it is
// known, between before and after: its name, or its number when it has none.
func (f *Flow) appendState(b []byte, before, after string) []byte {
	var state uint8
	var name string
	switch {
	case f.Orig.Proto == TCP && f.Has&HasTCP != 0:
		state, name = f.TCPState, TCPStateName(f.TCPState)
	case f.Orig.Proto == SCTP && f.Has&HasSCTP != 0:
		state, name = f.SCTPState, SCTPStateName(f.SCTPState)
	default:
		return b
	}
	b = append(b, before...)
	if name == "" {
		b = strconv.AppendUint(b, uint64(state), 10)
	}
	b = append(b, name...)
	return append(b, after...)
}

// appendPrintable appends a NUL-padded string that a peer or a kernel module
// chose. What is not a visible ASCII character is escaped, so that a name can
// neither forge a field of the line nor command a terminal.
func appendPrintable(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	s, _, _ = bytes.Cut(s, []byte{0})
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || c == '\\' {
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
			continue
		}
		b = append(b, c)
	}
	return b
}

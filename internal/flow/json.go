package flow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// The JSON form of a flow. Attributes that are not known are left out; those of
// two directions are arrays of two, original first.
//
//	{"family":"ipv4","protocol":"tcp","protocol_number":6,"state":"ESTABLISHED",
//	 "original":{"src":"198.51.100.2","dst":"203.0.113.2","sport":40000,"dport":80},
//	 "reply":{"src":"203.0.113.2","dst":"198.51.100.2","sport":80,"dport":40000},
//	 "status":["seen_reply","assured","confirmed"],"timeout_s":300,"mark":9}
//
// A tuple has sport and dport, or srckey and dstkey for GRE, or type, code and
// id for ICMP and ICMPv6, and zone when it is not 0. A reply tuple that was only
// derived from the original one is marked by "reply_derived". Octets of helper
// and secctx above 0x7f appear as the character of that number.

// MarshalJSON returns f as AppendJSON does.
func (f *Flow) MarshalJSON() ([]byte, error) { return f.AppendJSON(make([]byte, 0, 512)), nil }

// AppendJSON appends f as a JSON object without white space.
func (f *Flow) AppendJSON(b []byte) []byte {
	b = append(b, '{')
	b = f.Orig.appendKind(b)
	b = f.appendState(b, `,"state":"`, `"`)
	b = append(b, `,"original":{`...)
	b = append(f.Orig.appendFields(b), '}')
	b = append(b, `,"reply":{`...)
	b = append(f.Reply.appendFields(b), '}')
	if f.Has&HasReply == 0 {
		b = append(b, `,"reply_derived":true`...)
	}
	if f.Has&HasMaster != 0 {
		b = append(b, `,"master":{`...)
		b = append(f.Master.appendKind(b), ',')
		b = append(f.Master.appendFields(b), '}')
	}
	if f.Has&HasStatus != 0 {
		b = append(b, `,"status":`...)
		b = appendStatus(b, f.Status)
	}
	for _, n := range [...]struct {
		has  Attrs
		name string
		v    uint32
	}{
		{HasTimeout, `,"timeout_s":`, f.Timeout},
		{HasMark, `,"mark":`, f.Mark},
		{HasID, `,"id":`, f.ID},
		{HasUse, `,"use":`, f.Use},
	} {
		if f.Has&n.has != 0 {
			b = appendNumber(b, n.name, uint64(n.v))
		}
	}
	if f.Has&HasTCPFlags != 0 {
		b = appendPair(b, `,"tcp_flags":`, uint64(f.TCPFlags[0]), uint64(f.TCPFlags[1]))
	}
	if f.Has&HasTCPWScale != 0 {
		b = appendPair(b, `,"tcp_window_scale":`, uint64(f.TCPWScale[0]), uint64(f.TCPWScale[1]))
	}
	if f.Has&HasSCTPVtags != 0 {
		b = appendPair(b, `,"sctp_vtags":`, uint64(f.SCTPVtag[0]), uint64(f.SCTPVtag[1]))
	}
	if f.Has&HasLabels != 0 {
		b = append(b, `,"labels":[`...)
		b = append(f.appendLabels(b), ']')
	}
	if f.Has&HasHelper != 0 {
		b = append(b, `,"helper":`...)
		b = appendLatin1(b, f.Helper[:])
	}
	if f.Has&HasSeqAdjOrig != 0 {
		b = f.SeqAdj[DirOriginal].appendJSON(append(b, `,"seqadj_original":`...))
	}
	if f.Has&HasSeqAdjRepl != 0 {
		b = f.SeqAdj[DirReply].appendJSON(append(b, `,"seqadj_reply":`...))
	}
	if f.Has&HasSynproxy != 0 {
		b = appendNumber(b, `,"synproxy":{"isn":`, uint64(f.Synproxy.ISN))
		b = appendNumber(b, `,"its":`, uint64(f.Synproxy.ITS))
		b = append(appendNumber(b, `,"tsoff":`, uint64(f.Synproxy.TSOff)), '}')
	}
	if f.Has&HasSecctx != 0 {
		b = append(b, `,"secctx":`...)
		b = appendLatin1(b, f.Secctx[:])
	}
	if f.Has&HasCounters != 0 {
		b = appendPair(b, `,"packets":`, f.Counters[0].Packets, f.Counters[1].Packets)
		b = appendPair(b, `,"bytes":`, f.Counters[0].Bytes, f.Counters[1].Bytes)
	}
	if f.Has&HasStart != 0 {
		b = appendTime(b, `,"start":"`, f.Start)
	}
	if f.Has&HasStop != 0 {
		b = appendTime(b, `,"stop":"`, f.Stop)
	}
	if f.Has&HasEventTime != 0 {
		b = appendTime(b, `,"event_time":"`, f.EventTime)
	}
	return append(b, '}')
}

// appendKind appends what the tuples of a flow have in common.
func (t *Tuple) appendKind(b []byte) []byte {
	family := `"family":"ipv4"`
	if t.Family == IPv6 {
		family = `"family":"ipv6"`
	}
	b = append(b, family...)
	b = append(b, `,"protocol":"`...)
	b = append(b, ProtoName(t.Proto)...)
	return appendNumber(b, `","protocol_number":`, uint64(t.Proto))
}

func (t *Tuple) appendFields(b []byte) []byte {
	b = append(b, `"src":"`...)
	b = t.addr(&t.Src).AppendTo(b)
	b = append(b, `","dst":"`...)
	b = append(t.addr(&t.Dst).AppendTo(b), '"')
	switch {
	case t.Proto == GRE:
		b = appendNumber(b, `,"srckey":`, uint64(t.SrcPort))
		b = appendNumber(b, `,"dstkey":`, uint64(t.DstPort))
	case t.HasPorts():
		b = appendNumber(b, `,"sport":`, uint64(t.SrcPort))
		b = appendNumber(b, `,"dport":`, uint64(t.DstPort))
	case t.IsICMP():
		b = appendNumber(b, `,"type":`, uint64(t.DstPort>>8))
		b = appendNumber(b, `,"code":`, uint64(t.DstPort&0xff))
		b = appendNumber(b, `,"id":`, uint64(t.SrcPort))
	}
	if t.Zone != 0 {
		b = appendNumber(b, `,"zone":`, uint64(t.Zone))
	}
	return b
}

func (s *SeqAdj) appendJSON(b []byte) []byte {
	b = appendNumber(b, `{"pos":`, uint64(s.Pos))
	b = strconv.AppendInt(append(b, `,"before":`...), int64(s.Before), 10)
	b = strconv.AppendInt(append(b, `,"after":`...), int64(s.After), 10)
	return append(b, '}')
}

func appendPair(b []byte, before string, x, y uint64) []byte {
	b = append(b, before...)
	b = appendNumber(b, "[", x)
	return append(appendNumber(b, ",", y), ']')
}

// appendTime appends nanoseconds since the epoch as RFC 3339.
func appendTime(b []byte, before string, ns uint64) []byte {
	b = append(b, before...)
	return append(time.Unix(0, int64(ns)).UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

// appendStatus appends the names of the bits; a bit without a name is a hex
// number.
func appendStatus(b []byte, status uint32) []byte {
	b = append(b, '[')
	sep := ""
	for i := range 32 {
		bit := uint32(1) << i
		if status&bit == 0 {
			continue
		}
		b = append(b, sep...)
		sep = ","
		b = append(b, '"')
		if i < len(statusNames) {
			b = append(b, statusNames[i]...)
		} else {
			b = strconv.AppendUint(append(b, "0x"...), uint64(bit), 16)
		}
		b = append(b, '"')
	}
	return append(b, ']')
}

// appendLatin1 appends a NUL-padded string of octets as a JSON string, each
// octet as the character of its number: any octets give valid JSON and come
// back as they were.
func appendLatin1(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	s, _, _ = bytes.Cut(s, []byte{0})
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c >= 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// flowDocument is the JSON form for decoding. A pointer tells absent from zero.
type flowDocument struct {
	kindDocument
	State        string         `json:"state"`
	Original     *tupleDocument `json:"original"`
	Reply        *tupleDocument `json:"reply"`
	ReplyDerived bool           `json:"reply_derived"`
	Master       *struct {
		kindDocument
		tupleDocument
	} `json:"master"`
	Status    *[]string         `json:"status"`
	Timeout   *uint32           `json:"timeout_s"`
	Mark      *uint32           `json:"mark"`
	ID        *uint32           `json:"id"`
	Use       *uint32           `json:"use"`
	TCPFlags  *[2]uint8         `json:"tcp_flags"`
	TCPWScale *[2]uint8         `json:"tcp_window_scale"`
	SCTPVtags *[2]uint32        `json:"sctp_vtags"`
	Labels    *[]uint16         `json:"labels"`
	Helper    *string           `json:"helper"`
	SeqOrig   *seqAdjDocument   `json:"seqadj_original"`
	SeqReply  *seqAdjDocument   `json:"seqadj_reply"`
	Synproxy  *synproxyDocument `json:"synproxy"`
	Secctx    *string           `json:"secctx"`
	Packets   *[2]uint64        `json:"packets"`
	Bytes     *[2]uint64        `json:"bytes"`
	Start     *time.Time        `json:"start"`
	Stop      *time.Time        `json:"stop"`
	EventTime *time.Time        `json:"event_time"`
}

type kindDocument struct {
	Family   string `json:"family"`
	Protocol string `json:"protocol"` // for people; Number decides
	Number   uint8  `json:"protocol_number"`
}

type tupleDocument struct {
	Src    netip.Addr `json:"src"`
	Dst    netip.Addr `json:"dst"`
	Sport  uint16     `json:"sport"`
	Dport  uint16     `json:"dport"`
	SrcKey uint16     `json:"srckey"`
	DstKey uint16     `json:"dstkey"`
	Type   uint8      `json:"type"`
	Code   uint8      `json:"code"`
	ID     uint16     `json:"id"`
	Zone   uint16     `json:"zone"`
}

type seqAdjDocument struct {
	Pos    uint32 `json:"pos"`
	Before int32  `json:"before"`
	After  int32  `json:"after"`
}

type synproxyDocument struct {
	ISN   uint32 `json:"isn"`
	ITS   uint32 `json:"its"`
	TSOff uint32 `json:"tsoff"`
}

// UnmarshalJSON reads what AppendJSON writes. Members that it does not know are
// ignored. On error f is unchanged.
func (f *Flow) UnmarshalJSON(data []byte) error {
	var d flowDocument
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("flow: %w", err)
	}
	n, err := d.flow()
	if err != nil {
		return fmt.Errorf("flow: %w", err)
	}
	*f = n
	return nil
}

func (d *flowDocument) flow() (f Flow, err error) {
	if d.Original == nil || d.Reply == nil {
		return f, errors.New("original or reply tuple is missing")
	}
	if f.Orig, err = d.Original.tuple(&d.kindDocument); err != nil {
		return f, fmt.Errorf("original: %w", err)
	}
	if f.Reply, err = d.Reply.tuple(&d.kindDocument); err != nil {
		return f, fmt.Errorf("reply: %w", err)
	}
	if !d.ReplyDerived {
		f.Has |= HasReply
	}
	if d.Master != nil {
		if f.Master, err = d.Master.tuple(&d.Master.kindDocument); err != nil {
			return f, fmt.Errorf("master: %w", err)
		}
		f.Has |= HasMaster
	}
	if d.State != "" {
		if err := f.setState(d.State); err != nil {
			return f, err
		}
	}
	if d.Status != nil {
		for _, name := range *d.Status {
			bit, err := statusBit(name)
			if err != nil {
				return f, err
			}
			f.Status |= bit
		}
		f.Has |= HasStatus
	}
	set(&f, HasTimeout, &f.Timeout, d.Timeout)
	set(&f, HasMark, &f.Mark, d.Mark)
	set(&f, HasID, &f.ID, d.ID)
	set(&f, HasUse, &f.Use, d.Use)
	set(&f, HasTCPFlags, &f.TCPFlags, d.TCPFlags)
	set(&f, HasTCPWScale, &f.TCPWScale, d.TCPWScale)
	set(&f, HasSCTPVtags, &f.SCTPVtag, d.SCTPVtags)
	set(&f, HasSeqAdjOrig, &f.SeqAdj[DirOriginal], (*SeqAdj)(d.SeqOrig))
	set(&f, HasSeqAdjRepl, &f.SeqAdj[DirReply], (*SeqAdj)(d.SeqReply))
	set(&f, HasSynproxy, &f.Synproxy, (*Synproxy)(d.Synproxy))
	if d.Labels != nil {
		for _, n := range *d.Labels {
			if int(n) >= len(f.Labels)*8 {
				return f, fmt.Errorf("label %d is above %d", n, len(f.Labels)*8-1)
			}
			f.Labels[n/8] |= 1 << (n % 8)
		}
		f.Has |= HasLabels
	}
	if d.Helper != nil {
		// The last octet stays the NUL.
		if err := setLatin1(f.Helper[:len(f.Helper)-1], *d.Helper); err != nil {
			return f, fmt.Errorf("helper: %w", err)
		}
		f.Has |= HasHelper
	}
	if d.Secctx != nil {
		if err := setLatin1(f.Secctx[:], *d.Secctx); err != nil {
			return f, fmt.Errorf("secctx: %w", err)
		}
		f.Has |= HasSecctx
	}
	if (d.Packets == nil) != (d.Bytes == nil) {
		return f, errors.New("packets and bytes go together")
	}
	if d.Packets != nil {
		for dir := range f.Counters {
			f.Counters[dir] = Counter{Packets: d.Packets[dir], Bytes: d.Bytes[dir]}
		}
		f.Has |= HasCounters
	}
	setTime(&f, HasStart, &f.Start, d.Start)
	setTime(&f, HasStop, &f.Stop, d.Stop)
	setTime(&f, HasEventTime, &f.EventTime, d.EventTime)
	return f, nil
}

// set stores an optional attribute and notes it in Has.
func set[T any](f *Flow, has Attrs, field, v *T) {
	if v != nil {
		*field = *v
		f.Has |= has
	}
}

func setTime(f *Flow, has Attrs, field *uint64, t *time.Time) {
	if t != nil {
		*field = uint64(t.UnixNano())
		f.Has |= has
	}
}

func (d *tupleDocument) tuple(kind *kindDocument) (t Tuple, err error) {
	t = Tuple{Proto: kind.Number, Zone: d.Zone}
	switch kind.Family {
	case "ipv4":
		t.Family = IPv4
	case "ipv6":
		t.Family = IPv6
	default:
		return t, fmt.Errorf("family %q is neither ipv4 nor ipv6", kind.Family)
	}
	for _, a := range [...]struct {
		from netip.Addr
		to   *[16]byte
	}{{d.Src, &t.Src}, {d.Dst, &t.Dst}} {
		if !a.from.IsValid() || a.from.Zone() != "" || a.from.Is4() != (t.Family == IPv4) {
			return t, fmt.Errorf("%v is no address of %s", a.from, kind.Family)
		}
		copy(a.to[:], a.from.AsSlice())
	}
	switch {
	case t.Proto == GRE:
		t.SrcPort, t.DstPort = d.SrcKey, d.DstKey
	case t.HasPorts():
		t.SrcPort, t.DstPort = d.Sport, d.Dport
	case t.IsICMP():
		t.SrcPort, t.DstPort = d.ID, uint16(d.Type)<<8|uint16(d.Code)
	}
	return t, nil
}

// setState sets the state of the flow's protocol from its name or number.
func (f *Flow) setState(s string) error {
	names := tcpStateNames[:]
	field, has := &f.TCPState, HasTCP
	switch f.Orig.Proto {
	case TCP:
	case SCTP:
		names = sctpStateNames[:]
		field, has = &f.SCTPState, HasSCTP
	default:
		return fmt.Errorf("protocol %d has no states", f.Orig.Proto)
	}
	if i := slices.Index(names, s); i >= 0 {
		*field = uint8(i)
	} else if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		*field = uint8(n)
	} else {
		return fmt.Errorf("state %q is not known", s)
	}
	f.Has |= has
	return nil
}

func statusBit(name string) (uint32, error) {
	if i := slices.Index(statusNames[:], name); i >= 0 {
		return 1 << i, nil
	}
	bit, err := strconv.ParseUint(name, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("status %q is not known", name)
	}
	return uint32(bit), nil
}

// setLatin1 is the inverse of appendLatin1.
func setLatin1(to []byte, s string) error {
	n := 0
	for _, r := range s {
		switch {
		case r == 0 || r > 0xff:
			return fmt.Errorf("%q has a character that is no octet", s)
		case n == len(to):
			return fmt.Errorf("%q is longer than %d octets", s, len(to))
		}
		to[n] = byte(r)
		n++
	}
	return nil
}

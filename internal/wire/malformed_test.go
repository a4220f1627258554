package wire_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// Messages and attributes put together by hand, so that a mistake in the encoder
// cannot hide one in the parser.

// message returns a message of version 1 with a correct length.
func message(typ, flags byte, seq uint32, body ...[]byte) []byte {
	b := []byte{0x10 | typ, flags, 0, 0}
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, bytes.Join(body, nil)...)
	b[2], b[3] = byte(len(b)>>8), byte(len(b))
	return b
}

// attr returns an attribute with its padding.
func attr(num uint16, payload ...byte) []byte {
	b := []byte{0, 0, byte(num >> 8), byte(num)}
	b = append(b, payload...)
	b[0], b[1] = byte(len(b)>>8), byte(len(b))
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func join(b ...[]byte) []byte { return bytes.Join(b, nil) }

// withLen returns msg with another length field.
func withLen(msg []byte, n int) []byte {
	msg = bytes.Clone(msg)
	msg[2], msg[3] = byte(n>>8), byte(n)
	return msg
}

// withVersion returns msg with another version.
func withVersion(msg []byte, v byte) []byte {
	msg = bytes.Clone(msg)
	msg[0] = v<<4 | msg[0]&0xf
	return msg
}

// A valid flow: 198.51.100.2:12 > 203.0.113.2:80, TCP, established.
var (
	attrIPv4     = attr(0, 198, 51, 100, 2, 203, 0, 113, 2)
	attrStatus   = attr(5, 0, 0, 0, 0x0e)
	attrTCP      = attr(2, 6)
	attrPort     = attr(3, 0, 12, 0, 80)
	attrState    = attr(4, 3)
	attrTimeout  = attr(6, 0, 0, 0, 60)
	goodBody     = join(attrIPv4, attrStatus, attrTCP, attrPort, attrState, attrTimeout)
	unknownAlone = []byte{0, 4, 0, 99}
)

func good(seq uint32) []byte { return message(0, 0, seq, goodBody) }

// goodWith returns good with more attributes behind it.
func goodWith(more ...[]byte) []byte { return message(0, 0, 1, goodBody, join(more...)) }

// protoBody is a flow of another protocol.
func protoBody(proto byte, more ...[]byte) []byte {
	return message(0, 0, 1, attrIPv4, attrStatus, attr(2, proto), join(more...))
}

// receive does with a datagram what an FT-FW receiver does, and returns what
// becomes of each message: "stored" (data) or "taken" (control), or the fault
// under which it is counted, with a * when its number is used up all the same.
func receive(b []byte, strict bool) (what []string, flows []flow.Flow) {
	for _, m := range read(b, strict) {
		switch {
		case m.Fault == wire.FaultPayload:
			what = append(what, m.Fault.String()+"*")
		case m.Fault != wire.FaultNone:
			what = append(what, m.Fault.String())
		case !m.HeaderValid():
			what = append(what, wire.FaultHeader.String())
		case m.Type == wire.Ctl:
			what = append(what, "taken")
		default:
			what = append(what, "stored")
			flows = append(flows, m.Flow)
		}
	}
	return what, flows
}

const (
	wrongVersion = "wrong protocol version"
	badHeader    = "malformed header"
	truncated    = "truncated message"
	badSize      = "bad message size"
	badPayload   = "malformed payload*"
)

// TestMalformed has a row for every input that a conntrackd 1.4.7 was measured
// with, what it did, and the inputs that we treat otherwise on purpose. A valid
// message follows in the same datagram unless the row is about the end of it.
func TestMalformed(t *testing.T) {
	type check func(f *flow.Flow) bool
	type row struct {
		name  string
		b     []byte
		want  string // see receive
		last  bool   // nothing follows
		stops bool   // what follows is lost
		check check  // of the flow that is stored
	}
	ports := func(src, dst uint16) check {
		return func(f *flow.Flow) bool { return f.Orig.SrcPort == src && f.Orig.DstPort == dst }
	}
	helper := func(name string) check {
		return func(f *flow.Flow) bool {
			return f.Helper.String() == name && (f.Has&flow.HasHelper != 0) == (name != "")
		}
	}
	labels := func(want string) check {
		return func(f *flow.Flow) bool {
			if want == "" {
				return f.Has&flow.HasLabels == 0 && f.Labels == [16]byte{}
			}
			return f.Has&flow.HasLabels != 0 && bytes.Equal(f.Labels[:], octets(t, want))
		}
	}

	both := []row{
		{name: "version 0", b: withVersion(good(1), 0), want: wrongVersion},
		{name: "version 2", b: withVersion(good(1), 2), want: wrongVersion},
		{name: "version 3", b: withVersion(good(1), 3), want: wrongVersion},
		{name: "type 6", b: message(6, 0, 1, goodBody), want: badHeader},
		{name: "type 15", b: message(15, 0, 1, goodBody), want: badHeader},
		{name: "control without flag", b: message(10, 0, 1), want: badHeader},
		{name: "control with 0x80", b: message(10, 0x80, 1), want: badHeader},
		{name: "data with 0x01", b: message(0, 0x01, 1, goodBody), want: badHeader},
		{name: "data with 0x80", b: message(0, 0x80, 1, goodBody), want: badHeader},
		{name: "data with ALIVE", b: message(0, 0x10, 1, goodBody), want: badHeader},
		{name: "data with ACK", b: message(0, 0x08, 1, goodBody), want: badHeader},
		{name: "ACK backwards", b: message(10, 8, 1, []byte{0, 0, 0, 9, 0, 0, 0, 8}), want: badHeader},
		{name: "NACK backwards", b: message(10, 4, 1, []byte{0, 0, 0, 9, 0, 0, 0, 8}), want: badHeader},
		{name: "4 octets", b: good(1)[:4], want: truncated, last: true},
		{name: "7 octets", b: good(1)[:7], want: truncated, last: true},
		{name: "length 0", b: withLen(good(1), 0), want: badSize, stops: true},
		{name: "length 4", b: withLen(good(1), 4), want: badSize, stops: true},
		{name: "length 7", b: withLen(good(1), 7), want: badSize, stops: true},
		{name: "length 500 of 60", b: withLen(good(1), 500), want: badSize, last: true},
		{name: "ACK of length 8, alone", b: message(10, 8, 1), want: truncated, last: true},
		{name: "ACK of length 12, alone", b: message(10, 8, 1, make([]byte, 4)), want: truncated, last: true},
		{name: "ACK of length 8 in 16", b: withLen(message(10, 8, 1, make([]byte, 8)), 8), want: badSize, stops: true},
		{name: "ACK of length 0, alone", b: withLen(message(10, 8, 1), 0), want: badSize, last: true},
		{name: "ALIVE of length 16", b: message(10, 0x10, 1, make([]byte, 8)), want: "taken"},
		{name: "IPV4 with 4 octets", b: message(0, 0, 1, attr(0, 198, 51, 100, 2), attrTCP), want: badPayload},
		{name: "MARK with 8 octets", b: goodWith(attr(7, 0, 0, 0, 0, 0, 0, 0, 1)), want: badPayload},
		{name: "attribute of length 0", b: goodWith([]byte{0, 0, 0, 7, 0, 0, 0, 0}), want: badPayload},
		{name: "attribute of length 3", b: goodWith([]byte{0, 3, 0, 7, 0, 0, 0, 0}), want: badPayload},
		{name: "attribute longer than what is left", b: goodWith([]byte{0, 9, 0, 7, 0, 0, 0, 0}), want: badPayload},
		{name: "4 octets ff at the end", b: goodWith([]byte{255, 255, 255, 255}), want: "stored"},
		{name: "unknown attribute of 4 octets at the end", b: goodWith(unknownAlone), want: "stored"},
		{name: "last attribute without padding", b: goodWith([]byte{0, 5, 0, 2, 6}), want: "stored"},
		{name: "PORT twice", b: goodWith(attr(3, 0x10, 0x92, 0x10, 0x93)), want: "stored", check: ports(4242, 4243)},
		{name: "helper of 11 characters", b: goodWith(attr(27, []byte("abcdefghijk\x00")...)), want: "stored", check: helper("abcdefghijk")},
		{name: "helper of 12 characters", b: goodWith(attr(27, []byte("abcdefghijkl\x00")...)), want: badPayload},
		{name: "helper without NUL", b: goodWith(attr(27, 'a', 'b', 'c')), want: "stored", check: helper("abc")},
		{name: "helper of 12 octets without NUL", b: goodWith(attr(27, []byte("abcdefghijkl")...)), want: "stored", check: helper("abcdefghijkl")},
		{name: "helper with text behind its NUL", b: goodWith(attr(27, []byte("ab\x00cd")...)), want: "stored", check: helper("ab")},
		{name: "helper of no characters", b: goodWith(attr(27, 'x', 0), attr(27, 0)), want: "stored", check: helper("")},
		{name: "LABELS of 6 octets", b: goodWith(attr(28, 1, 2, 3, 4, 5, 6)), want: "stored", check: labels("")},
		{name: "LABELS of 0 octets", b: goodWith(attr(28), attrTCP), want: "stored", check: labels("")},
		{name: "LABELS of 4 octets", b: goodWith(attr(28, 0x80, 0, 0x01, 0x02)), want: "stored", check: labels("02010080 00000000 00000000 00000000")},
		{name: "LABELS of 1024 octets", b: goodWith(attr(28, slices.Repeat([]byte{0, 0, 0, 0x20}, 256)...)), want: "stored", check: labels("20000000 20000000 20000000 20000000")},
		{name: "LABELS of 1028 octets", b: goodWith(attr(28, make([]byte, 1028)...)), want: badPayload},
		{name: "LABELS of zeros", b: goodWith(attr(28, make([]byte, 16)...)), want: "stored", check: labels("00000000 00000000 00000000 00000000")},
		{name: "length 61", b: goodWith([]byte{0xff}), want: "stored"},
		{name: "update", b: message(1, 0, 1, goodBody), want: "stored"},
		{name: "delete", b: message(2, 0, 1, goodBody), want: "stored"},
		{name: "delete with identity alone", b: message(2, 0, 1, attrIPv4, attrTCP, attrPort), want: "stored", check: ports(12, 80)},
		{name: "MARK", b: goodWith(attr(7, 0, 0, 0, 7)), want: "stored", check: func(f *flow.Flow) bool { return f.Has&flow.HasMark != 0 && f.Mark == 7 }},
		{name: "without MARK", b: good(1), want: "stored", check: func(f *flow.Flow) bool { return f.Has&flow.HasMark == 0 }},
		{name: "UDP-Lite with PORT", b: protoBody(136, attr(3, 3, 243, 0, 53)), want: "stored", check: ports(1011, 53)},
		{name: "GRE with PORT", b: protoBody(47, attr(3, 0, 16, 0, 32)), want: "stored", check: ports(16, 32)},

		// From here on: the same outcome as a conntrackd's, by its description, or
		// one that it has no word for.
		{name: "DCCP", b: protoBody(33, attrPort, attr(20, 1), attr(21, 0)), want: "stored", check: ports(12, 80)},
		{name: "DCCP_STATE with 2 octets", b: protoBody(33, attr(20, 1, 1)), want: badPayload},
		{name: "any order", b: message(0, 0, 1, attr(14, 0x40, 0x9c), attrPort, attrTCP, attr(12, 203, 0, 113, 1), attrIPv4), want: "stored",
			check: func(f *flow.Flow) bool {
				return f.Has == flow.HasReply && f.Reply.DstPort == 40000 && f.Reply.SrcPort == 80 &&
					f.Reply.Dst == [16]byte{203, 0, 113, 1} && f.Reply.Src == [16]byte{203, 0, 113, 2}
			}},
		{name: "ICMP_TYPE before the family", b: message(0, 0, 1, attr(24, 0x34, 0x12), attr(22, 8), attr(2, 1), attrIPv4), want: "stored",
			check: func(f *flow.Flow) bool { return f.Reply.DstPort == 0 && ports(0x1234, 0x0800)(f) }},
		{name: "ICMP without type", b: protoBody(1), want: "stored", check: ports(0, 0)},
		{name: "ICMP type without answer", b: protoBody(1, attr(22, 3), attr(23, 1)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Reply.DstPort == 0x0301 }},
		{name: "ICMP with ports", b: protoBody(1, attrPort, attr(22, 8), attr(14, 1, 1), attr(15, 1, 1)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasReply == 0 && ports(0, 0x0800)(f) }},
		{name: "protocol 99 with ports", b: protoBody(99, attrPort, attr(14, 1, 1)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasReply == 0 && ports(0, 0)(f) }},
		{name: "NAT of the other family", b: goodWith(attr(29, make([]byte, 16)...)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasReply == 0 && f.Reply.Dst == f.Orig.Src }},
		{name: "NAT of IPv4 on IPv6", b: message(0, 0, 1, attr(1, make([]byte, 32)...), attrTCP, attr(12, 1, 2, 3, 4), attr(13, 1, 2, 3, 4)), want: "stored",
			check: func(f *flow.Flow) bool {
				return f.Has == 0 && f.Reply.Src == [16]byte{} && f.Reply.Dst == [16]byte{}
			}},
		{name: "both families", b: message(0, 0, 1, attr(1, bytes.Repeat([]byte{0x20}, 32)...), goodBody), want: "stored",
			check: func(f *flow.Flow) bool {
				return f.Orig.Family == flow.IPv4 && f.Orig.Src == [16]byte{198, 51, 100, 2}
			}},
		{name: "zone", b: goodWith(attr(32, 1, 2)), want: "stored", check: func(f *flow.Flow) bool {
			return f.Orig.Zone == 0x102 && f.Reply.Zone == 0x102
		}},
		{name: "zone behind the master", b: goodWith(attr(8, make([]byte, 8)...), attr(10, 6), attr(32, 1, 2)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Master.Zone == 0x102 }},
		{name: "master without protocol", b: goodWith(attr(8, make([]byte, 8)...), attr(11, 1, 1, 1, 1)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasMaster == 0 && f.Master == flow.Tuple{} }},
		{name: "master of protocol 99 with ports", b: goodWith(attr(8, make([]byte, 8)...), attr(10, 99), attr(11, 1, 1, 1, 1)), want: "stored",
			check: func(f *flow.Flow) bool {
				return f.Has&flow.HasMaster != 0 && f.Master == flow.Tuple{Family: flow.IPv4, Proto: 99}
			}},
		{name: "one window scale", b: goodWith(attr(25, 7)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasTCPWScale == 0 && f.TCPWScale == [2]uint8{} }},
		{name: "window scale of 15", b: goodWith(attr(25, 15), attr(26, 255)), want: "stored",
			check: func(f *flow.Flow) bool { return f.TCPWScale == [2]uint8{14, 14} }},
		{name: "TCP state that is none", b: goodWith(attr(4, 10)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasTCP == 0 && f.TCPState == 0 }},
		{name: "SCTP state that is none", b: protoBody(132, attr(17, 10)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&flow.HasSCTP == 0 && f.SCTPState == 0 }},
		{name: "SCTP attributes on TCP", b: goodWith(attr(17, 4), attr(18, 1, 1, 1, 1), attr(19, 1, 1, 1, 1)), want: "stored",
			check: func(f *flow.Flow) bool { return f.Has&(flow.HasSCTP|flow.HasSCTPVtags) == 0 }},

		// A conntrackd stores these, and its dump crashes on them from then on.
		{name: "header only", b: message(0, 0, 1), want: badPayload},
		{name: "without addresses", b: message(0, 0, 1, attrTCP, attrPort), want: badPayload},
		{name: "without protocol", b: message(0, 0, 1, attrIPv4, attrPort), want: badPayload},
		{name: "expectation, header only", b: message(3, 0, 1), want: badPayload},
		{name: "expectation without master", b: message(3, 0, 1, join(expBody...)[20:]), want: badPayload},
		{name: "expectation without master's protocol", b: message(3, 0, 1, expBody[0], join(expBody[2:]...)), want: badPayload},
		{name: "expectation without tuple", b: message(3, 0, 1, join(expBody[:2]...), expBody[3]), want: badPayload},
		{name: "expectation without protocol", b: message(3, 0, 1, join(expBody[:3]...)), want: badPayload},
		{name: "expectation", b: message(3, 0, 1, expBody...), want: "stored"},
		{name: "expectation, FN of 28 octets", b: message(3, 0, 1, append(expBody, attr(20, bytes.Repeat([]byte("x"), 28)...))...), want: "stored"},
		{name: "expectation, FN of 29 octets", b: message(3, 0, 1, append(expBody, attr(20, bytes.Repeat([]byte("x"), 29)...))...), want: badPayload},
	}
	run := func(t *testing.T, rows []row, strict bool) {
		for _, r := range rows {
			t.Run(r.name, func(t *testing.T) {
				b, want := r.b, []string{r.want}
				if !r.last {
					b = join(b, good(2))
				}
				if !r.last && !r.stops {
					want = append(want, "stored")
				}
				got, flows := receive(b, strict)
				if !slices.Equal(got, want) {
					t.Fatalf("%q, want %q", got, want)
				}
				if r.check != nil && !r.check(&flows[0]) {
					t.Errorf("stored %+v", flows[0])
				}
			})
		}
	}
	run(t, both, false)
	run(t, both, true)

	unknown := func(want string) []row {
		return []row{
			{name: "attribute 33", b: goodWith(attr(33, 1, 2, 3, 4)), want: want},
			{name: "attribute 200", b: goodWith(attr(200, 1, 2, 3, 4)), want: want},
			{name: "attribute 0x100 in front", b: message(0, 0, 1, attr(0x100, 1), goodBody), want: want},
			{name: "expectation with attribute 21", b: message(4, 0, 1, append(expBody, attr(21, 1))...), want: want},
		}
	}
	run(t, unknown(badPayload), true)
	run(t, unknown("stored"), false)
	// Skipping must not be more lenient about lengths.
	run(t, []row{
		{name: "unknown attribute of length 3", b: goodWith([]byte{0, 3, 0, 99, 0, 0, 0, 0}), want: badPayload},
		{name: "unknown attribute that is too long", b: goodWith([]byte{0, 9, 0, 99, 0, 0, 0, 0}), want: badPayload},
	}, false)

	for name, middle := range map[string][]byte{
		badPayload:   message(0, 0, 2, goodBody, attr(99, 1, 2, 3, 4)),
		wrongVersion: withVersion(good(2), 3),
	} {
		got, _ := receive(join(good(1), middle, good(3)), true)
		if want := []string{"stored", name, "stored"}; !slices.Equal(got, want) {
			t.Errorf("between two good ones: %q, want %q", got, want)
		}
	}
}

// expBody has the least that an expectation needs.
var expBody = [][]byte{attrIPv4, attrTCP, attr(4, 198, 51, 100, 2, 203, 0, 113, 2), attr(6, 6)}

// TestHeaderOfBadPayload: the sequence goes on with the number of a message that
// is otherwise unusable, and a fault leaves nothing of an earlier header behind.
func TestHeaderOfBadPayload(t *testing.T) {
	b := join(message(10, 0x28, 7, []byte{0, 0, 0, 1, 0, 0, 0, 2}), message(1, 0x20, 8), withLen(good(9), 0))
	var r wire.Reader
	r.Reset(b)
	var m wire.Message
	type header struct {
		typ      wire.Type
		f        wire.Flags
		seq      wire.Seq
		from, to wire.Seq
		fault    wire.Fault
	}
	for i, want := range []header{
		{wire.Ctl, 0x28, 7, 1, 2, wire.FaultNone},
		{wire.CTUpd, 0x20, 8, 0, 0, wire.FaultPayload},
		{0, 0, 0, 0, 0, wire.FaultSize},
	} {
		if !r.Next(&m) {
			t.Fatalf("no message %d", i)
		}
		if got := (header{m.Type, m.Flags, m.Seq, m.From, m.To, m.Fault}); got != want {
			t.Errorf("message %d: %+v, want %+v", i, got, want)
		}
	}
	if r.Next(&m) {
		t.Error("a message after the end")
	}
	if new(wire.Reader).Next(&m) {
		t.Error("a message from a Reader that was given nothing")
	}
}

// TestExpectOddities: what an expectation looks like when parts are missing or
// do not fit together.
func TestExpectOddities(t *testing.T) {
	one := func(more ...[]byte) flow.Expect {
		got := read(message(3, 0, 1, append(slices.Clone(expBody), more...)...), true)
		if len(got) != 1 || got[0].Fault != wire.FaultNone {
			t.Fatalf("%+v", got)
		}
		return got[0].Expect
	}
	none := flow.Tuple{}
	if e := one(attr(10, 6), attr(11, 0, 0, 255, 255)); e.Mask != none {
		t.Errorf("mask without addresses: %+v", e.Mask)
	}
	if e := one(attr(9, make([]byte, 32)...)); e.Mask != none {
		t.Errorf("mask of the other family: %+v", e.Mask)
	}
	if e := one(attr(15, make([]byte, 8)...), attr(17, 6)); e.NAT != none || e.Has != 0 {
		t.Errorf("NAT without direction: %+v", e.NAT)
	}
	if e := one(attr(18, 0, 0, 0, 1)); e.NATDir != 0 || e.Has != 0 {
		t.Errorf("NAT direction alone: %+v", e)
	}
	if e := one(attr(17, 6), attr(18, 0, 0, 0, 1)); e.NAT.Family != flow.IPv4 || e.Has != flow.ExpectHasNAT {
		t.Errorf("NAT without addresses: %+v", e)
	}
	if e := one(attr(20, []byte(strings.Repeat("x", 28))...)); string(e.Fn[:]) != strings.Repeat("x", 27)+"\x00" {
		t.Errorf("function %q", e.Fn)
	}
	if e := one(attr(19, 'x', 0), attr(19, 0), attr(20, 'x', 0), attr(20, 0)); e.Has != 0 || e.Helper != (flow.Name{}) || e.Fn != [28]byte{} {
		t.Errorf("names of no characters: %+v", e)
	}
	if e := one(attr(2, 99), attr(3, 1, 1, 1, 1)); e.Master.SrcPort != 0 || e.Master.DstPort != 0 {
		t.Errorf("master of protocol 99 with ports: %+v", e.Master)
	}
}

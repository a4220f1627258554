package wire_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// ownVectors are the attributes of docs/protocol.md, section 9, as octets, each with
// what it does to a flow that is good(1).
var ownVectors = []struct {
	number int
	name   string
	length string // of the payload, as the page has it
	hex    string
	edit   func(f *flow.Flow)
	proto  uint8 // of the flow, 0 for TCP
}{
	{0x101, "ZONE_ORIG", "2", "0006 0101 0203 0000", func(f *flow.Flow) { f.Orig.Zone = 0x203 }, 0},
	{0x102, "ZONE_REPLY", "2", "0006 0102 0304 0000", func(f *flow.Flow) { f.Reply.Zone = 0x304 }, 0},
	{0x104, "NAT_ICMP_ID", "2", "0006 0104 1234 0000", func(f *flow.Flow) {
		f.Reply.SrcPort = 0x1234
		f.Has |= flow.HasReply
	}, flow.ICMP},
	{0x105, "SEQ_ADJ_ORIG", "12", "0010 0105 01020304 fffffffe 00000009", func(f *flow.Flow) {
		f.SeqAdj[0] = flow.SeqAdj{Pos: 0x01020304, Before: -2, After: 9}
		f.Has |= flow.HasSeqAdjOrig
	}, 0},
	{0x106, "SEQ_ADJ_REPLY", "12", "0010 0106 01020304 00000009 fffffffe", func(f *flow.Flow) {
		f.SeqAdj[1] = flow.SeqAdj{Pos: 0x01020304, Before: 9, After: -2}
		f.Has |= flow.HasSeqAdjRepl
	}, 0},
	{0x107, "HELPER_NAME_LONG", "up to 16", "0011 0107 6162636465666768696a6b6c 00 000000", func(f *flow.Flow) {
		f.Helper, _ = flow.MakeName("abcdefghijkl")
		f.Has |= flow.HasHelper
	}, 0},
}

// cutState cuts the attribute STATE off what AppendFlow made in the syncd dialect.
func cutState(b []byte) (rest, state []byte) { return b[: len(b)-20 : len(b)-20], b[len(b)-20:] }

// TestOwnAttributes: each attribute of section 9 of the page is what the page says, is
// sent in the syncd dialect alone, and arrives.
func TestOwnAttributes(t *testing.T) {
	page := document(t)
	for _, v := range ownVectors {
		t.Run(v.name, func(t *testing.T) {
			if row := fmt.Sprintf("| %#x | %s | %s |", v.number, v.name, v.length); !strings.Contains(page, row) {
				t.Errorf("the page does not have %s", row)
			}
			base := one(t, good(1)).Flow
			if v.proto != 0 {
				base.Orig.Proto, base.Orig.SrcPort, base.Orig.DstPort = v.proto, 77, 0x0800
				base.Reply, _ = base.Orig.Inverse()
				base.Has &^= flow.HasTCP | flow.HasTCPWScale
				base.TCPState, base.TCPWScale = 0, [2]uint8{}
			}
			base.Status |= flow.StatusSrcNATDone | flow.StatusDstNATDone
			plain, state := cutState(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &base))
			want := base
			v.edit(&want)

			foreign := wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 1, &base)
			if got := wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 1, &want); !bytes.Equal(got, foreign) {
				t.Errorf("in conntrackd's dialect % x, want % x", got, foreign)
			}
			sent := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &want)
			body := octets(t, v.hex)
			if !bytes.Equal(sent[len(plain):], join(body, state)) {
				t.Errorf("sent % x, want % x", sent[len(plain):], join(body, state))
			}
			if got := oneIn(t, wire.Syncd, sent).Flow; got != want {
				t.Errorf("received:\n%s", cmp.Diff(want, got))
			}
			// One who does not know it skips it, or refuses the message, as a conntrackd does.
			base.SetState(flow.State{})
			base.Has &^= flow.HasStatus
			if got := read(sent, false); got[0].Fault != wire.FaultNone || got[0].Flow != base {
				t.Errorf("skipped: %v\n%s", got[0].Fault, cmp.Diff(base, got[0].Flow))
			}
			if got := read(sent, true); got[0].Fault != wire.FaultPayload {
				t.Errorf("a conntrackd would say %v", got[0].Fault)
			}
			// A wrong length makes the message malformed; that of the name may be less.
			for _, by := range []int{-1, 1, 4} {
				wrong := join(sent[:len(plain)], attr(uint16(v.number), make([]byte, int(body[1])-4+by)...), state)
				wrong[3] = byte(len(wrong))
				fault := readIn(wire.Syncd, wrong, false)[0].Fault
				if ok := v.number == 0x107 && by < 4; (fault == wire.FaultNone) != ok {
					t.Errorf("%d octets more: %v", by, fault)
				}
			}
		})
	}
}

// TestOwnSentences are the sentences of section 9 of the page, each with its proof.
func TestOwnSentences(t *testing.T) {
	page := document(t)
	base := one(t, good(1)).Flow
	base.Status |= flow.StatusSrcNATDone | flow.StatusDstNATDone
	plain, _ := cutState(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &base))
	send := func(t *testing.T, edit func(f *flow.Flow)) (attrs []byte) {
		f := base
		edit(&f)
		attrs, _ = cutState(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &f)[len(plain):])
		return attrs
	}
	take := func(t *testing.T, attrs string) flow.Flow {
		return oneIn(t, wire.Syncd, goodWith(octets(t, attrs))).Flow
	}
	for _, s := range []struct {
		quote string
		proof func(t *testing.T)
	}{
		{"(9.1) Attributes with numbers from 0x101 are sent behind all others, in the order of their numbers.", func(t *testing.T) {
			last := 0
			f := base
			f.Orig.Zone, f.Mark, f.Has = 9, 1, f.Has|flow.HasMark|flow.HasTCPFlags|flow.HasSeqAdjRepl|flow.HasHelper|flow.HasLabels
			f.Helper, _ = flow.MakeName("abcdefghijkl")
			b := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &f)[wire.HeaderLen:]
			n := 0
			for len(b) > 0 {
				num := int(b[2])<<8 | int(b[3])
				if num > 0x100 {
					n++
				}
				if (num > 0x100 || last > 0x100) && num <= last {
					t.Errorf("%#x after %#x", num, last)
				}
				last = num
				b = b[(int(b[0])<<8+int(b[1])+3)&^3:]
			}
			if n != 4 {
				t.Errorf("%d attributes of our own", n)
			}
		}},
		{"(9.2) If the zones of the two directions differ, ZONE is not sent, and ZONE_ORIG and ZONE_REPLY each if it is not 0. If either is there, ZONE does not count, and a zone that is not stated is 0.", func(t *testing.T) {
			if got := send(t, func(f *flow.Flow) { f.Orig.Zone = 9 }); !bytes.Equal(got, octets(t, "0006 0101 0009 0000")) {
				t.Errorf("zone of the original direction: % x", got)
			}
			if got := send(t, func(f *flow.Flow) { f.Reply.Zone = 9 }); !bytes.Equal(got, octets(t, "0006 0102 0009 0000")) {
				t.Errorf("zone of the reply direction: % x", got)
			}
			if got := send(t, func(f *flow.Flow) { f.Orig.Zone, f.Reply.Zone = 9, 8 }); !bytes.Equal(got, octets(t, "0006 0101 0009 0000 0006 0102 0008 0000")) {
				t.Errorf("two zones: % x", got)
			}
			if got := send(t, func(f *flow.Flow) { f.Orig.Zone, f.Reply.Zone = 9, 9 }); !bytes.Equal(got, octets(t, "0006 0020 0009 0000")) {
				t.Errorf("one zone: % x", got)
			}
			if got := take(t, "0006 0101 0009 0000 0006 0020 0005 0000"); got.Orig.Zone != 9 || got.Reply.Zone != 0 {
				t.Errorf("zones %d and %d", got.Orig.Zone, got.Reply.Zone)
			}
			if got := take(t, "0006 0020 0005 0000 0006 0102 0009 0000"); got.Orig.Zone != 0 || got.Reply.Zone != 9 {
				t.Errorf("zones %d and %d", got.Orig.Zone, got.Reply.Zone)
			}
		}},
		{"(9.3) STATE is the last attribute of every message about a flow, and has what section 11 says. STATUS, TIMEOUT, TCP_STATE, TCP_WSCALE_ORIG, TCP_WSCALE_REPLY and SCTP_STATE are not sent, and do not count beside it.", func(t *testing.T) {
			for _, proto := range []uint8{flow.TCP, flow.SCTP, flow.UDP} {
				f := base
				f.Orig.Proto, f.Reply.Proto = proto, proto
				f.Has |= flow.StateAttrs | flow.HasMark
				b := wire.AppendFlow(nil, wire.Syncd, wire.CTDel, 0, 1, &f)
				last := 0
				for at := wire.HeaderLen; at < len(b); at += (int(b[at])<<8 + int(b[at+1]) + 3) &^ 3 {
					switch last = int(b[at+2])<<8 | int(b[at+3]); last {
					case 4, 5, 6, 17, 25, 26, 0x103:
						t.Errorf("attribute %d is sent", last)
					}
				}
				if last != 0x108 {
					t.Errorf("the last one is %#x", last)
				}
			}
			before := take(t, stateVector)
			if got := oneIn(t, wire.Syncd, message(0, 0, 1, attr(5, 1, 2, 3, 4), goodBody, attr(4, 9), attr(25, 3), attr(26, 4), octets(t, stateVector))).Flow; got != before {
				t.Errorf("beside others:\n%s", cmp.Diff(before, got))
			}
		}},
		{"(9.4) NAT_ICMP_ID is the identifier of the reply tuple, sent if it is not that of the original one.", func(t *testing.T) {
			icmp := base
			icmp.Orig = flow.Tuple{Family: flow.IPv6, Proto: flow.ICMPv6, SrcPort: 7, DstPort: 128 << 8}
			icmp.Reply, _ = icmp.Orig.Inverse()
			icmp.Has = flow.HasStatus | flow.HasReply
			same := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &icmp)
			if got := oneIn(t, wire.Syncd, same).Flow; got.Has&flow.HasReply != 0 {
				t.Errorf("stated although it is the same: %v", got.Reply)
			}
			icmp.Reply.SrcPort = 9
			other := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &icmp)
			if got := oneIn(t, wire.Syncd, other).Flow; got.Reply != icmp.Reply || len(other) != len(same)+8 {
				t.Errorf("%v, want %v", got.Reply, icmp.Reply)
			}
		}},
		{"(9.5) An adjustment of sequence numbers has the position, and the offsets before and after it. If both directions have one, NAT_SEQ_ADJ has them; if only one has, SEQ_ADJ_ORIG or SEQ_ADJ_REPLY.", func(t *testing.T) {
			got := send(t, func(f *flow.Flow) { f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl })
			if len(got) != 28 || got[3] != 16 {
				t.Errorf("both: % x", got)
			}
			got = send(t, func(f *flow.Flow) { f.Has |= flow.HasSeqAdjRepl })
			if len(got) != 16 || got[2] != 1 || got[3] != 6 {
				t.Errorf("reply: % x", got)
			}
		}},
		{"(9.6) A helper whose name has 12 to 15 characters is named by HELPER_NAME_LONG, with a zero octet behind it, instead of HELPER_NAME.", func(t *testing.T) {
			for n := 1; n <= 15; n++ {
				name := strings.Repeat("h", n)
				got := send(t, func(f *flow.Flow) { f.Helper, _ = flow.MakeName(name); f.Has |= flow.HasHelper })
				want := attr(27, append([]byte(name), 0)...)
				if n >= 12 {
					want = attr(0x107, append([]byte(name), 0)...)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d characters: % x, want % x", n, got, want)
				}
			}
		}},
		{"(9.7) What does not belong to the protocol of the flow is not looked at: NAT_ICMP_ID belongs to ICMP and ICMPv6.", func(t *testing.T) {
			f := take(t, "0006 0104 1234 0000")
			if f.Reply != one(t, good(1)).Flow.Reply || f.Has&flow.HasReply != 0 {
				t.Errorf("%v", f.Reply)
			}
		}},
	} {
		t.Run(s.quote[1:4], func(t *testing.T) {
			if !strings.Contains(page, s.quote) {
				t.Errorf("the page does not say: %s", s.quote)
			}
			s.proof(t)
		})
	}
}

// TestOwnExpectSentences are the sentences of section 9 about expectations.
func TestOwnExpectSentences(t *testing.T) {
	page := document(t)
	for _, s := range []string{
		"(9.8) ZONE is the zone of all tuples of the expectation, sent if it is not 0.",
		"(9.9) If the family is IPv6, the addresses of the translation are in NAT_IPV6; its other attributes are conntrackd's.",
		"(9.10) Of an expectation MASTER_PORT, EXPECT_PORT and MASK_PORT are never left out, and NAT_PORT only with the translation.",
		"| 0x101 | ZONE | 2 | |", "| 0x102 | NAT_IPV6 | 32 |", "| 0x103 | HELPER_NAME_LONG | up to 16 | |",
	} {
		if !strings.Contains(page, s) {
			t.Errorf("the page does not say: %s", s)
		}
	}
	x := flow.Expect{
		Master: flow.Tuple{Family: flow.IPv6, Proto: 99, Zone: 0x0506},
		Tuple:  flow.Tuple{Family: flow.IPv6, Proto: flow.TCP, DstPort: 20, Zone: 0x0506},
		NAT:    flow.Tuple{Family: flow.IPv6, Proto: flow.TCP, Src: [16]byte{15: 1}, Dst: [16]byte{15: 2}, SrcPort: 9},
		Has:    flow.ExpectHasFlags | flow.ExpectHasNAT | flow.ExpectHasHelper,
	}
	x.Helper, _ = flow.MakeName("twelve-chars")
	b := wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 1, &x)
	for _, want := range [][]byte{
		attr(0x101, 5, 6),
		attr(0x102, append(append(make([]byte, 15), 1), append(make([]byte, 15), 2)...)...),
		attr(0x103, []byte("twelve-chars\x00")...),
		attr(7, 0, 0, 0, 20), attr(16, 0, 9, 0, 0), attr(3, 0, 0, 0, 0),
	} {
		if !bytes.Contains(b, want) {
			t.Errorf("% x is not in % x", want, b)
		}
	}
	if got := oneIn(t, wire.Syncd, b).Expect; got != x {
		t.Errorf("received %+v", got)
	}
	// In conntrackd's dialect these numbers are not known.
	if got := readIn(wire.Conntrackd, b, false)[0]; got.Fault != wire.FaultNone || got.Expect.Tuple.Zone != 0 ||
		got.Expect.NAT.Src != [16]byte{} || got.Expect.Has&flow.ExpectHasHelper != 0 {
		t.Errorf("received in conntrackd's dialect: %+v", got)
	}
}

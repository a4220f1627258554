package wire_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// FuzzReader: any octets at all are walked to the end without a panic, and what
// is read without fault can be sent on, and arrives as it was but for what the
// format has no room for.
func FuzzReader(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(octets(f, v.Hex), false)
	}
	f.Add(withLen(message(10, 8, 1, make([]byte, 8)), 8), true)
	f.Add(goodWith(attr(0x100, 1), attr(28, make([]byte, 20)...), []byte{0, 5, 0, 2, 6}), true)
	for _, v := range ownVectors {
		f.Add(goodWith(octets(f, v.hex)), true)
	}
	for _, v := range compactVectors {
		f.Add(octets(f, v.hex), true)
		f.Add(octets(f, v.hex)[:11], false)
	}
	state := octets(f, stateVector)
	f.Add(goodWith(state), true)
	f.Add(goodWith(state[:8]), false)
	f.Add(goodWith(state, attr(7, 0, 0, 0, 9), state), false)
	f.Add(join(withVersion(good(1), 3), message(0, 0, 1), message(6, 0, 1), good(2)), true)

	f.Fuzz(func(t *testing.T, b []byte, strict bool) {
		before := bytes.Clone(b)
		walk(t, wire.Conntrackd, b, strict)
		walk(t, wire.Syncd, b, strict)
		if !bytes.Equal(b, before) {
			t.Fatal("the datagram was written to")
		}
	})
}

// walk is what FuzzReader does in one dialect.
func walk(t *testing.T, d wire.Dialect, b []byte, strict bool) {
	r := wire.Reader{Strict: strict, Sync: d == wire.Syncd}
	r.Reset(b)
	var m wire.Message
	// Every message takes 8 octets at least, but for the fault that ends the
	// walk.
	for left := len(b)/wire.HeaderLen + 1; r.Next(&m); left-- {
		if left == 0 {
			t.Fatal("the walk does not end")
		}
		if m.Fault == wire.FaultTruncated || m.Fault == wire.FaultSize {
			if r.Next(&m) {
				t.Fatal("a message after the end of the walk")
			}
			break
		}
		if m.Fault != wire.FaultNone || m.Type == wire.SyncCtl {
			continue
		}
		sent := appendIn(d, nil, &m)
		got := oneIn(t, d, sent)
		want := wire.Message{Type: m.Type, Flags: m.Flags, Seq: m.Seq, From: m.From, To: m.To}
		switch {
		case m.IsCompact():
			want.Flags, want.Handle, want.Base = 0, m.Handle, m.Base
			if m.Type == wire.CTState {
				want.State = m.State
			}
		case m.Type <= wire.CTDel:
			want.Flow = survivesFlow(d, &m.Flow)
		case m.Type <= wire.ExpDel:
			want.Expect = survivesExpect(d, &m.Expect)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%+v (-want +got):\n%s", m, diff)
		}
		// A digest compares what was received with what is held, so that the same
		// state must be the same octets. A status that was not stated does not count
		// against translation, but once it is sent as 0 it does.
		if known := m.Type > wire.CTDel || m.Flow.Has&flow.HasStatus != 0; !known {
			continue
		}
		if again := appendIn(d, nil, &got); !bytes.Equal(sent, again) {
			t.Fatalf("sent % x, and sent on % x", sent, again)
		}
	}
}

// FuzzRoundTrip: any flow and any expectation, however senseless, becomes a
// message of the promised size that a strict reader accepts, and arrives as far
// as the format has room for it.
func FuzzRoundTrip(f *testing.F) {
	add := func(v any) []byte {
		b, err := binary.Append(nil, binary.LittleEndian, v)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, v := range vectors(f) {
		for _, m := range read(octets(f, v.Hex), true) {
			f.Add(false, uint8(m.Type), uint8(m.Flags), uint32(m.Seq), add(&m.Flow), add(&m.Expect))
		}
	}
	for _, v := range ownVectors {
		for _, m := range readIn(wire.Syncd, goodWith(octets(f, v.hex)), true) {
			f.Add(true, uint8(m.Type), uint8(m.Flags), uint32(m.Seq), add(&m.Flow), add(&m.Expect))
		}
	}
	f.Add(true, uint8(0), uint8(0), uint32(0), bytes.Repeat([]byte{0xff}, binary.Size(flow.Flow{})), bytes.Repeat([]byte{0xff}, binary.Size(flow.Expect{})))

	// An expectation with a master that no expectation of the kernel has.
	f.Add(false, uint8(wire.ExpNew), uint8(0), uint32(1), []byte(nil), add(&flow.Expect{Master: flow.Tuple{Family: flow.IPv4, Proto: flow.ICMP, SrcPort: 7, DstPort: 0x800}}))

	f.Fuzz(func(t *testing.T, own bool, typ, flags uint8, seq uint32, fl, ex []byte) {
		d := wire.Conntrackd
		if own {
			d = wire.Syncd
		}
		var in wire.Message
		in.Type, in.Flags, in.Seq = wire.Type(typ%6), wire.Flags(flags), wire.Seq(seq)
		// Octets that are missing are zero, those left over do not count.
		fill := func(v any, b []byte) {
			b = append(bytes.Clone(b), make([]byte, binary.Size(v))...)
			if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
				t.Fatal(err)
			}
		}
		fill(&in.Flow, fl)
		fill(&in.Expect, ex)
		for _, tuple := range []*flow.Tuple{
			&in.Flow.Orig, &in.Flow.Reply, &in.Flow.Master,
			&in.Expect.Master, &in.Expect.Tuple, &in.Expect.Mask, &in.Expect.NAT,
		} {
			// The invariant of a tuple that the encoder builds on.
			if tuple.Family != flow.IPv6 {
				clear(tuple.Src[4:])
				clear(tuple.Dst[4:])
			}
		}
		in.Flow.Reply.Src = sameFamily(in.Flow.Reply.Src, in.Flow.Orig.Family)
		in.Flow.Reply.Dst = sameFamily(in.Flow.Reply.Dst, in.Flow.Orig.Family)
		in.Flow.Helper[15], in.Expect.Helper[15], in.Expect.Fn[27] = 0, 0, 0

		want := wire.Message{Type: in.Type, Flags: in.Flags, Seq: in.Seq}
		limit := wire.MaxFlowLen
		if in.Type <= wire.CTDel {
			want.Flow = survivesFlow(d, &in.Flow)
		} else {
			want.Expect = survivesExpect(d, &in.Expect)
			limit = wire.MaxExpectLen
		}
		b := appendIn(d, nil, &in)
		if len(b) > limit || len(b)%4 != 0 {
			t.Fatalf("%d octets", len(b))
		}
		if diff := cmp.Diff(want, oneIn(t, d, b)); diff != "" {
			t.Fatalf("% x of %+v (-want +got):\n%s", b, in, diff)
		}
	})
}

// survivesFlow returns what is left of f when it has been sent and received.
func survivesFlow(d wire.Dialect, f *flow.Flow) flow.Flow {
	g := flow.Flow{Orig: survivesTuple(f.Orig), Has: flow.HasStatus}
	own := d == wire.Syncd
	if own || f.Orig.Zone == f.Reply.Zone {
		g.Orig.Zone = f.Orig.Zone
	}
	has := func(bits flow.Attrs) bool {
		if f.Has&bits != bits {
			return false
		}
		g.Has |= bits
		return true
	}
	known := has(flow.HasStatus)
	if known {
		g.Status = f.Status
	}
	g.Reply, _ = g.Orig.Inverse()
	if own {
		g.Reply.Zone = f.Reply.Zone
	}
	if f.Has&flow.HasReply != 0 {
		inverse := g.Reply
		if !known || f.Status&0x80 != 0 {
			g.Reply.Dst = f.Reply.Dst
			if g.Orig.HasPorts() {
				g.Reply.DstPort = f.Reply.DstPort
			}
			if g.Orig.IsICMP() && own {
				g.Reply.SrcPort = f.Reply.SrcPort
			}
		}
		if !known || f.Status&0x100 != 0 {
			g.Reply.Src = f.Reply.Src
			if g.Orig.HasPorts() {
				g.Reply.SrcPort = f.Reply.SrcPort
			}
		}
		if g.Reply != inverse {
			g.Has |= flow.HasReply
		}
	}
	if has(flow.HasMaster) {
		g.Master = survivesTuple(f.Master)
		g.Master.Zone = g.Orig.Zone
		if !g.Master.HasPorts() {
			g.Master.SrcPort, g.Master.DstPort = 0, 0
		}
	}
	if has(flow.HasTimeout) {
		g.Timeout = f.Timeout
	}
	if has(flow.HasMark) {
		g.Mark = f.Mark
	}
	if f.Orig.Proto == flow.TCP {
		if f.TCPState <= 9 && has(flow.HasTCP) {
			g.TCPState = f.TCPState
		}
		if has(flow.HasTCPWScale) {
			g.TCPWScale = [2]uint8{min(f.TCPWScale[0], 14), min(f.TCPWScale[1], 14)}
		}
		if own && has(flow.HasTCPFlags) {
			g.TCPFlags = [2]uint8{f.TCPFlags[0] & 7, f.TCPFlags[1] & 7}
		}
	}
	if f.Orig.Proto == flow.SCTP {
		if f.SCTPState <= 9 && has(flow.HasSCTP) {
			g.SCTPState = f.SCTPState
		}
		if has(flow.HasSCTPVtags) {
			g.SCTPVtag = f.SCTPVtag
		}
	}
	if has(flow.HasLabels) {
		g.Labels = f.Labels
	}
	if n := len(f.Helper.String()); n >= 1 && (n <= 11 || own) && has(flow.HasHelper) {
		copy(g.Helper[:n], f.Helper[:])
	}
	const both = flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	for dir, bit := range []flow.Attrs{flow.HasSeqAdjOrig, flow.HasSeqAdjRepl} {
		if (own || f.Has&both == both) && has(bit) {
			g.SeqAdj[dir] = f.SeqAdj[dir]
		}
	}
	if has(flow.HasSynproxy) {
		g.Synproxy = f.Synproxy
	}
	return g
}

func survivesExpect(d wire.Dialect, e *flow.Expect) flow.Expect {
	g := flow.Expect{Has: flow.ExpectHasFlags}
	g.Master, g.Tuple = survivesTuple(e.Master), survivesTuple(e.Tuple)
	g.Tuple.SrcPort, g.Tuple.DstPort = e.Tuple.SrcPort, e.Tuple.DstPort
	if g.Master.IsICMP() { // no helper of the kernel looks at ICMP
		g.Master.SrcPort, g.Master.DstPort = 0, 0
	}
	own, longest := d == wire.Syncd, 11
	if own {
		longest = 15
		g.Tuple.Zone, g.Master.Zone = e.Tuple.Zone, e.Tuple.Zone
	}
	part := func(tuple flow.Tuple) flow.Tuple {
		tuple.Family, tuple.Zone = g.Tuple.Family, 0
		tuple.Src, tuple.Dst = sameFamily(tuple.Src, g.Tuple.Family), sameFamily(tuple.Dst, g.Tuple.Family)
		return tuple
	}
	if e.Mask.Family != 0 {
		g.Mask = part(e.Mask)
	}
	has := func(bit flow.ExpectAttrs) bool {
		g.Has |= e.Has & bit
		return e.Has&bit != 0
	}
	if has(flow.ExpectHasTimeout) {
		g.Timeout = e.Timeout
	}
	if has(flow.ExpectHasFlags) {
		g.Flags = e.Flags
	}
	if has(flow.ExpectHasClass) {
		g.Class = e.Class
	}
	addressed := !own && g.Tuple.Family == flow.IPv6 && (e.NAT.Src != [16]byte{} || e.NAT.Dst != [16]byte{})
	if !addressed && has(flow.ExpectHasNAT) {
		g.NAT, g.NATDir = part(e.NAT), e.NATDir
	}
	if n := len(e.Helper.String()); n >= 1 && n <= longest && has(flow.ExpectHasHelper) {
		copy(g.Helper[:n], e.Helper[:])
	}
	if n := bytes.IndexByte(e.Fn[:], 0); n >= 1 && has(flow.ExpectHasFn) {
		copy(g.Fn[:n], e.Fn[:])
	}
	withPorts := g.Master.HasPorts() &&
		(g.Master.Proto != flow.DCCP || e.Master.SrcPort != 0 || e.Master.DstPort != 0)
	if !withPorts && !own {
		for _, tuple := range []*flow.Tuple{&g.Master, &g.Tuple, &g.Mask, &g.NAT} {
			tuple.SrcPort, tuple.DstPort = 0, 0
		}
	}
	return g
}

// survivesTuple is what is left of a tuple that identifies a flow: a family that
// is IPv6 or else IPv4, ports where the protocol has some, no zone.
func survivesTuple(t flow.Tuple) flow.Tuple {
	t.Zone = 0
	if t.Family != flow.IPv6 {
		t.Family = flow.IPv4
	}
	if !t.HasPorts() && !t.IsICMP() {
		t.SrcPort, t.DstPort = 0, 0
	}
	return t
}

// sameFamily cuts an address to the length that it has in family.
func sameFamily(a [16]byte, family uint8) [16]byte {
	if family != flow.IPv6 {
		clear(a[4:])
	}
	return a
}

package wire_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// one parses b, which must hold one message without fault.
func one(t interface{ Fatalf(string, ...any) }, b []byte) wire.Message {
	return oneIn(t, wire.Conntrackd, b)
}

// oneIn is one in a dialect.
func oneIn(t interface{ Fatalf(string, ...any) }, d wire.Dialect, b []byte) wire.Message {
	got := readIn(d, b, true)
	if len(got) != 1 || got[0].Fault != wire.FaultNone {
		t.Fatalf("% x: %d messages, the first: %+v", b, len(got), got[:min(1, len(got))])
	}
	return got[0]
}

// TestRoundTripFlow: a flow that the format has room for arrives as it was.
func TestRoundTripFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := wire.Message{
			Type:  rapid.SampledFrom([]wire.Type{wire.CTNew, wire.CTUpd, wire.CTDel}).Draw(t, "type"),
			Flags: wire.Flags(rapid.Byte().Draw(t, "flags")),
			Seq:   wire.Seq(rapid.Uint32().Draw(t, "seq")),
		}
		d := rapid.SampledFrom([]wire.Dialect{wire.Conntrackd, wire.Syncd}).Draw(t, "dialect")
		want.Flow = flows(d).Draw(t, "flow")
		b := wire.AppendFlow(nil, d, want.Type, want.Flags, want.Seq, &want.Flow)
		if len(b)%4 != 0 || len(b) > wire.MaxFlowLen {
			t.Fatalf("%d octets", len(b))
		}
		if diff := cmp.Diff(want, oneIn(t, d, b)); diff != "" {
			t.Fatalf("% x (-want +got):\n%s", b, diff)
		}
	})
}

// TestRoundTripExpect is the same for expectations.
func TestRoundTripExpect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SampledFrom([]wire.Dialect{wire.Conntrackd, wire.Syncd}).Draw(t, "dialect")
		want := wire.Message{
			Type:   rapid.SampledFrom([]wire.Type{wire.ExpNew, wire.ExpUpd, wire.ExpDel}).Draw(t, "type"),
			Flags:  wire.Flags(rapid.Byte().Draw(t, "flags")),
			Seq:    wire.Seq(rapid.Uint32().Draw(t, "seq")),
			Expect: expects(d).Draw(t, "expect"),
		}
		b := wire.AppendExpect(nil, d, want.Type, want.Flags, want.Seq, &want.Expect)
		if len(b)%4 != 0 || len(b) > wire.MaxExpectLen {
			t.Fatalf("%d octets", len(b))
		}
		if diff := cmp.Diff(want, oneIn(t, d, b)); diff != "" {
			t.Fatalf("% x (-want +got):\n%s", b, diff)
		}
	})
}

// TestMaxLen: the bounds are those of the longest messages, not more and not
// less.
func TestMaxLen(t *testing.T) {
	v6 := func(n byte) flow.Tuple {
		return flow.Tuple{Family: flow.IPv6, Proto: flow.TCP, Src: [16]byte{15: n}, Dst: [16]byte{15: n + 1}, SrcPort: uint16(n), DstPort: uint16(n), Zone: 1}
	}
	f := flow.Flow{Orig: v6(1), Reply: v6(3), Master: v6(5), Has: 1<<32 - 1, Status: 0xffff, Labels: [16]byte{1}}
	f.Helper, _ = flow.MakeName("abcdefghijk")
	for _, proto := range []uint8{flow.TCP, flow.SCTP} {
		f.Orig.Proto = proto
		if n := len(wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 0, &f)); n != 304 {
			t.Errorf("flow of protocol %d: %d octets in conntrackd's dialect, want 304", proto, n)
		}
	}
	f.Orig.Proto = flow.SCTP
	f.Orig.Zone = 2
	f.Helper, _ = flow.MakeName("abcdefghijklmno")
	if n := len(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 0, &f)); n != wire.MaxFlowLen {
		t.Errorf("flow: %d octets, MaxFlowLen is %d", n, wire.MaxFlowLen)
	}

	e := flow.Expect{Master: v6(1), Tuple: v6(3), Mask: v6(5), NAT: v6(7), Has: 1<<16 - 1}
	e.Helper, _ = flow.MakeName("abcdefghijklmno")
	for i := range len(e.Fn) - 1 {
		e.Fn[i] = 'x'
	}
	if n := len(wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 0, &e)); n != wire.MaxExpectLen {
		t.Errorf("expectation: %d octets, MaxExpectLen is %d", n, wire.MaxExpectLen)
	}
}

// TestLeftBehind: what the format has no room for is not sent, and nothing wrong
// is sent in its place.
func TestLeftBehind(t *testing.T) {
	base := one(t, good(1)).Flow
	plain := len(wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 0, &base))
	long, _ := flow.MakeName("abcdefghijkl")
	for _, c := range []struct {
		name string
		edit func(*flow.Flow)
	}{
		{"helper of 12 characters", func(f *flow.Flow) { f.Helper = long; f.Has |= flow.HasHelper }},
		{"helper without name", func(f *flow.Flow) { f.Has |= flow.HasHelper }},
		{"zone of one direction", func(f *flow.Flow) { f.Orig.Zone = 9 }},
		{"zones that differ", func(f *flow.Flow) { f.Orig.Zone, f.Reply.Zone = 9, 8 }},
		{"adjustment of one direction", func(f *flow.Flow) { f.SeqAdj[0].Pos = 9; f.Has |= flow.HasSeqAdjOrig }},
		{"stated reply that is the inverse", func(f *flow.Flow) { f.Has |= flow.HasReply; f.Status |= 0x180 }},
		{"translation without DONE", func(f *flow.Flow) {
			f.Has |= flow.HasReply
			f.Status |= flow.StatusSrcNAT | flow.StatusDstNAT
			f.Reply.Src[0]++
			f.Reply.Dst[0]++
			f.Reply.SrcPort++
			f.Reply.DstPort++
		}},
		{"counters and more", func(f *flow.Flow) {
			f.Has |= flow.HasCounters | flow.HasSecctx | flow.HasID | flow.HasUse | flow.HasStart | flow.HasTCPFlags
		}},
	} {
		f := base
		c.edit(&f)
		b := wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 0, &f)
		if len(b) != plain {
			t.Errorf("%s: %d octets, want %d", c.name, len(b), plain)
		}
		got := one(t, b).Flow
		got.Status = base.Status
		if got != base {
			t.Errorf("%s:\n%s", c.name, cmp.Diff(base, got))
		}
	}

	// Without status, NAT is believed, and the status is sent as 0.
	f := base
	f.Has = f.Has&^flow.HasStatus | flow.HasReply
	f.Reply.DstPort = 40000
	want := f
	want.Has |= flow.HasStatus
	want.Status = 0
	if got := one(t, wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 0, &f)).Flow; got != want {
		t.Errorf("without status:\n%s", cmp.Diff(want, got))
	}

	// A translation to an IPv6 address would lose that address.
	e := flow.Expect{
		Master: flow.Tuple{Family: flow.IPv6, Proto: flow.TCP},
		Tuple:  flow.Tuple{Family: flow.IPv6, Proto: flow.TCP},
		NAT:    flow.Tuple{Family: flow.IPv6, Proto: flow.TCP, Src: [16]byte{1}},
		Has:    flow.ExpectHasNAT | flow.ExpectHasFlags,
	}
	if got := one(t, wire.AppendExpect(nil, wire.Conntrackd, wire.ExpNew, 0, 0, &e)).Expect; got.Has != flow.ExpectHasFlags || got.NAT != (flow.Tuple{}) {
		t.Errorf("translation to an IPv6 address: %+v", got)
	}

	// To a conntrackd nothing of our own is sent: a strict reader takes it all.
	e.Tuple.Zone, e.Helper = 7, long
	e.Has |= flow.ExpectHasHelper
	if m := one(t, wire.AppendExpect(nil, wire.Conntrackd, wire.ExpNew, 0, 0, &e)); m.Expect.Tuple.Zone != 0 || m.Expect.Has&flow.ExpectHasHelper != 0 {
		t.Errorf("to a conntrackd: %+v", m)
	}
	if m := read(wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 0, &e), true)[0]; m.Fault != wire.FaultPayload {
		t.Errorf("a conntrackd would take %+v", m)
	}
}

// flows generates flows that the dialect has room for.
func flows(d wire.Dialect) *rapid.Generator[flow.Flow] {
	own := d == wire.Syncd
	most := 11 // characters of a helper name
	if own {
		most = 15
	}
	return rapid.Custom(func(t *rapid.T) flow.Flow {
		f := flow.Flow{
			Orig:   tuples(flow.TCP, flow.UDP, flow.SCTP, flow.DCCP, flow.UDPLite, flow.GRE, flow.ICMP, flow.ICMPv6, 99, 0).Draw(t, "orig"),
			Has:    flow.HasStatus,
			Status: rapid.Uint32().Draw(t, "status") | flow.StatusSrcNATDone | flow.StatusDstNATDone,
		}
		f.Orig.Zone = rapid.SampledFrom([]uint16{0, 1, 0x0203, 65535}).Draw(t, "zone")
		f.Reply, _ = f.Orig.Inverse()
		if own {
			f.Reply.Zone = rapid.SampledFrom([]uint16{f.Orig.Zone, 0, 7}).Draw(t, "reply zone")
		}
		if rapid.Bool().Draw(t, "nat") {
			other := rapid.Custom(func(t *rapid.T) [16]byte { return addr(t, f.Orig.Family) })
			f.Reply.Src = rapid.OneOf(rapid.Just(f.Reply.Src), other).Draw(t, "dnat")
			f.Reply.Dst = rapid.OneOf(rapid.Just(f.Reply.Dst), other).Draw(t, "snat")
			if f.Orig.HasPorts() {
				f.Reply.SrcPort = rapid.OneOf(rapid.Just(f.Reply.SrcPort), rapid.Uint16()).Draw(t, "dpat")
				f.Reply.DstPort = rapid.OneOf(rapid.Just(f.Reply.DstPort), rapid.Uint16()).Draw(t, "spat")
			}
			if own && f.Orig.IsICMP() {
				f.Reply.SrcPort = rapid.OneOf(rapid.Just(f.Reply.SrcPort), rapid.Uint16()).Draw(t, "identifier")
			}
			if snat, dnat := f.Translated(); snat || dnat {
				f.Has |= flow.HasReply
			}
		}
		has := func(bit flow.Attrs, name string) bool {
			yes := rapid.Bool().Draw(t, name)
			if yes {
				f.Has |= bit
			}
			return yes
		}
		if has(flow.HasMaster, "has master") {
			f.Master = tuples(flow.TCP, flow.UDP, flow.SCTP, flow.DCCP, 99).Draw(t, "master")
			f.Master.Zone = f.Orig.Zone
		}
		if has(flow.HasTimeout, "has timeout") {
			f.Timeout = rapid.Uint32().Draw(t, "timeout")
		}
		if has(flow.HasMark, "has mark") {
			f.Mark = rapid.Uint32().Draw(t, "mark")
		}
		switch f.Orig.Proto {
		case flow.TCP:
			if has(flow.HasTCP, "has state") {
				f.TCPState = rapid.Uint8Range(flow.TCPNone, flow.TCPSynSent2).Draw(t, "state")
			}
			if own && has(flow.HasTCPFlags, "has flags") {
				f.TCPFlags = [2]uint8{rapid.Uint8Range(0, 7).Draw(t, "flags"), rapid.Uint8Range(0, 7).Draw(t, "flags")}
			}
			if has(flow.HasTCPWScale, "has scale") {
				f.TCPWScale = [2]uint8{rapid.Uint8Range(0, 14).Draw(t, "scale"), rapid.Uint8Range(0, 14).Draw(t, "scale")}
			}
		case flow.SCTP:
			if has(flow.HasSCTP, "has state") {
				f.SCTPState = rapid.Uint8Range(flow.SCTPNone, flow.SCTPHeartbeatAcked).Draw(t, "state")
			}
			if has(flow.HasSCTPVtags, "has tags") {
				f.SCTPVtag = [2]uint32{rapid.Uint32().Draw(t, "tag"), rapid.Uint32().Draw(t, "tag")}
			}
		}
		if has(flow.HasLabels, "has labels") {
			copy(f.Labels[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "labels"))
		}
		if has(flow.HasHelper, "has helper") {
			copy(f.Helper[:], names(most).Draw(t, "helper"))
		}
		adjusted := []flow.Attrs{0, flow.HasSeqAdjOrig | flow.HasSeqAdjRepl}
		if own {
			adjusted = append(adjusted, flow.HasSeqAdjOrig, flow.HasSeqAdjRepl)
		}
		f.Has |= rapid.SampledFrom(adjusted).Draw(t, "has adjustment")
		for i := range f.SeqAdj {
			if f.Has&(flow.HasSeqAdjOrig<<i) != 0 {
				f.SeqAdj[i] = flow.SeqAdj{Pos: rapid.Uint32().Draw(t, "pos"), Before: rapid.Int32().Draw(t, "before"), After: rapid.Int32().Draw(t, "after")}
			}
		}
		if has(flow.HasSynproxy, "has synproxy") {
			f.Synproxy = flow.Synproxy{ISN: rapid.Uint32().Draw(t, "isn"), ITS: rapid.Uint32().Draw(t, "its"), TSOff: rapid.Uint32().Draw(t, "tsoff")}
		}
		return f
	})
}

// expects generates expectations that the format has room for.
func expects(d wire.Dialect) *rapid.Generator[flow.Expect] {
	return rapid.Custom(func(t *rapid.T) flow.Expect {
		e := flow.Expect{
			Master: tuples(flow.TCP, flow.UDP, flow.SCTP, 99).Draw(t, "master"),
			Has:    flow.ExpectHasFlags,
			Flags:  rapid.Uint32().Draw(t, "flags"),
		}
		// The ports of a mask and of a translation are octets, whatever the
		// protocol, but to a conntrackd they travel only if the master has ports.
		with := func(name string, family uint8) flow.Tuple {
			tuple := tuples(flow.TCP, flow.UDP, flow.GRE).Draw(t, name)
			for tuple.Family != family {
				tuple = tuples(flow.TCP, flow.UDP, flow.GRE).Draw(t, name)
			}
			if !e.Master.HasPorts() && d != wire.Syncd {
				tuple.SrcPort, tuple.DstPort = 0, 0
			}
			return tuple
		}
		e.Tuple = with("tuple", e.Master.Family)
		longest := 11
		if d == wire.Syncd {
			longest = 15
			e.Tuple.Zone = rapid.Uint16().Draw(t, "zone")
			e.Master.Zone = e.Tuple.Zone
		}
		has := func(bit flow.ExpectAttrs, name string) bool {
			yes := rapid.Bool().Draw(t, name)
			if yes {
				e.Has |= bit
			}
			return yes
		}
		if rapid.Bool().Draw(t, "has mask") {
			e.Mask = with("mask", e.Tuple.Family)
		}
		if has(flow.ExpectHasTimeout, "has timeout") {
			e.Timeout = rapid.Uint32().Draw(t, "timeout")
		}
		if has(flow.ExpectHasClass, "has class") {
			e.Class = rapid.Uint32().Draw(t, "class")
		}
		if has(flow.ExpectHasNAT, "has nat") {
			e.NAT = with("nat", e.Tuple.Family)
			if e.NAT.Family == flow.IPv6 && d != wire.Syncd {
				e.NAT.Src, e.NAT.Dst = [16]byte{}, [16]byte{}
			}
			e.NATDir = rapid.Uint32().Draw(t, "dir")
		}
		if has(flow.ExpectHasHelper, "has helper") {
			copy(e.Helper[:], names(longest).Draw(t, "helper"))
		}
		if has(flow.ExpectHasFn, "has function") {
			copy(e.Fn[:], names(27).Draw(t, "function"))
		}
		return e
	})
}

// tuples generates tuples without zone of the given protocols.
func tuples(protos ...uint8) *rapid.Generator[flow.Tuple] {
	return rapid.Custom(func(t *rapid.T) flow.Tuple {
		tuple := flow.Tuple{
			Family: rapid.SampledFrom([]uint8{flow.IPv4, flow.IPv6}).Draw(t, "family"),
			Proto:  rapid.SampledFrom(protos).Draw(t, "protocol"),
		}
		tuple.Src, tuple.Dst = addr(t, tuple.Family), addr(t, tuple.Family)
		switch {
		case tuple.IsICMP(), tuple.HasPorts():
			tuple.SrcPort = rapid.Uint16().Draw(t, "source port")
			tuple.DstPort = rapid.Uint16().Draw(t, "destination port")
		}
		return tuple
	})
}

func addr(t *rapid.T, family uint8) (a [16]byte) {
	n := 4
	if family == flow.IPv6 {
		n = 16
	}
	copy(a[:], rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
	return a
}

func names(n int) *rapid.Generator[[]byte] {
	return rapid.SliceOfN(rapid.ByteRange(1, 255), 1, n)
}

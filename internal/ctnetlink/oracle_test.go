package ctnetlink

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
)

// oracle decodes a message with ti-mo/conntrack. Its Flow cannot tell what was sent from what was not, so
// it is compared with ours by value, not by Has.
func oracle(t testing.TB, msg []byte) (kind string, f *conntrack.Flow) {
	t.Helper()
	var m netlink.Message
	if err := m.UnmarshalBinary(msg); err != nil {
		t.Fatalf("mdlayher/netlink: %v", err)
	}
	var ev conntrack.Event
	if err := ev.Unmarshal(m); err != nil {
		t.Fatalf("ti-mo/conntrack: %v", err)
	}
	switch ev.Type {
	case conntrack.EventNew:
		kind = flow.EventNew.String()
	case conntrack.EventUpdate:
		kind = flow.EventUpdate.String()
	case conntrack.EventDestroy:
		kind = flow.EventDestroy.String()
	}
	return kind, ev.Flow
}

// asOracle turns our flow into the oracle's form, as far as that goes: without
// the time of the event, which the oracle does not know.
func asOracle(f *flow.Flow) *conntrack.Flow {
	o := &conntrack.Flow{
		ID: f.ID, Timeout: f.Timeout, Mark: f.Mark, Use: f.Use,
		TupleOrig:       oracleTuple(&f.Orig),
		TupleReply:      oracleTuple(&f.Reply),
		SynProxy:        conntrack.SynProxy{ISN: f.Synproxy.ISN, ITS: f.Synproxy.ITS, TSOff: f.Synproxy.TSOff},
		CountersOrig:    conntrack.Counter{Packets: f.Counters[0].Packets, Bytes: f.Counters[0].Bytes},
		CountersReply:   conntrack.Counter{Packets: f.Counters[1].Packets, Bytes: f.Counters[1].Bytes},
		SeqAdjOrig:      oracleSeqAdj(f.SeqAdj[0]),
		SeqAdjReply:     oracleSeqAdj(f.SeqAdj[1]),
		Helper:          conntrack.Helper{Name: f.Helper.String()},
		Status:          conntrack.Status(f.Status),
		SecurityContext: conntrack.Security(cString(f.Secctx[:])),
	}
	if f.Has&flow.HasMaster != 0 {
		o.TupleMaster = oracleTuple(&f.Master)
	}
	if f.Has&flow.HasTCP != 0 {
		o.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{
			State: f.TCPState, OriginalWindowScale: f.TCPWScale[0], ReplyWindowScale: f.TCPWScale[1],
			OriginalFlags: uint16(f.TCPFlags[0]) << 8, ReplyFlags: uint16(f.TCPFlags[1]) << 8,
		}
	}
	if f.Has&flow.HasSCTP != 0 {
		o.ProtoInfo.SCTP = &conntrack.ProtoInfoSCTP{State: f.SCTPState, VTagOriginal: f.SCTPVtag[0], VTagReply: f.SCTPVtag[1]}
	}
	return o
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func oracleSeqAdj(s flow.SeqAdj) conntrack.SequenceAdjust {
	return conntrack.SequenceAdjust{Position: s.Pos, OffsetBefore: uint32(s.Before), OffsetAfter: uint32(s.After)}
}

func oracleTuple(t *flow.Tuple) conntrack.Tuple {
	o := conntrack.Tuple{Zone: t.Zone}
	o.Proto.Protocol = t.Proto
	src, _ := netip.AddrFromSlice(t.Src[:t.AddrLen()])
	dst, _ := netip.AddrFromSlice(t.Dst[:t.AddrLen()])
	o.IP = conntrack.IPTuple{SourceAddress: src, DestinationAddress: dst}
	if t.IsICMP() {
		o.Proto.ICMPv4, o.Proto.ICMPv6 = t.Proto == flow.ICMP, t.Proto == flow.ICMPv6
		o.Proto.ICMPID, o.Proto.ICMPType, o.Proto.ICMPCode = t.SrcPort, uint8(t.DstPort>>8), uint8(t.DstPort)
		return o
	}
	o.Proto.SourcePort, o.Proto.DestinationPort = t.SrcPort, t.DstPort
	return o
}

// compareWithOracle decodes msg both ways and compares field by field.
func compareWithOracle(t testing.TB, msg []byte) (ev flow.Event) {
	t.Helper()
	if err := DecodeEvent(msg, &ev); err != nil {
		t.Fatalf("decode %x: %v", msg, err)
	}
	compareEventWithOracle(t, &ev, msg)
	return ev
}

func compareEventWithOracle(t testing.TB, ev *flow.Event, msg []byte) {
	t.Helper()
	kind, want := oracle(t, msg)
	diff(t, "kind", ev.Kind.String(), kind)

	// What the two represent differently by design.
	f := ev.Flow
	if want.Zone != 0 { // ours: in both tuples and the master's
		diff(t, "zone", [2]uint16{f.Orig.Zone, f.Reply.Zone}, [2]uint16{want.Zone, want.Zone})
		f.Orig.Zone, f.Reply.Zone = 0, 0
		want.Zone = 0
	}
	f.Master.Zone = 0
	var labels [16]byte
	copy(labels[:], want.Labels)
	swapLabels(&labels, hostLabelWord)
	diff(t, "labels", f.Labels, labels)
	want.Labels = nil
	diff(t, "start", f.Start, nanoseconds(want.Timestamp.Start.UnixNano(), want.Timestamp.Start.IsZero()))
	diff(t, "stop", f.Stop, nanoseconds(want.Timestamp.Stop.UnixNano(), want.Timestamp.Stop.IsZero()))
	want.Timestamp = conntrack.Timestamp{}
	want.CountersReply.Direction, want.SeqAdjReply.Direction = false, false
	if d := diffFlows(asOracle(&f), want); d != "" {
		t.Errorf("flow of %x: -want +got\n%s", msg, d)
	}
}

func nanoseconds(ns int64, zero bool) uint64 {
	if zero {
		return 0
	}
	return uint64(ns)
}

func diffFlows(got, want *conntrack.Flow) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

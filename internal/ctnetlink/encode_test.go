package ctnetlink

import (
	"errors"
	"testing"

	"syncd/internal/flow"
)

// everything is a flow with every attribute that a request can carry, in IPv6: the
// longest request that there is.
func everything() flow.Flow {
	f := established(tuple(flow.TCP, "2001:db8::1", "2001:db8::2", 1, 2))
	f.Has = flow.HasEventTime<<1 - 1
	f.Reply.Src[15], f.Reply.SrcPort = 99, 99
	f.Orig.Zone, f.Reply.Zone = 1, 1
	f.Master = f.Orig
	f.Labels = [16]byte{15: 0xff}
	f.Helper, _ = flow.MakeName("fifteen-letters")
	f.SeqAdj[0].Pos, f.SeqAdj[1].Pos = 1, 2
	f.Synproxy.ISN = 1
	f.ID, f.Use, f.Start, f.EventTime = 1, 2, 3, 4
	return f
}

func TestRequestFits(t *testing.T) {
	f := everything()
	for _, op := range []Op{OpCreate, OpUpdate, OpDelete} {
		b, err := appendRequest(nil, op, 1, &f, CreateOptions{Liberal: true, Labels: true, GuardID: true})
		if err != nil || len(b) > maxRequestLen || len(b) != int(native.Uint32(b)) || len(b)%4 != 0 {
			t.Errorf("%v: %d octets, %v", op, len(b), err)
		}
		t.Logf("%v: %d octets", op, len(b))
	}
}

// TestRequestNeverCarries: what the kernel refuses, misreads or ignores stays out.
func TestRequestNeverCarries(t *testing.T) {
	f := everything()
	f.Status = 0xffffffff
	has := func(b []byte, want uint16) (v []byte) {
		var d decoder
		for b = b[headerLen:]; len(b) >= attrHeaderLen; {
			var typ uint16
			var val []byte
			if typ, val, b = d.next(b); typ == want {
				return val
			}
		}
		return nil
	}
	for op, never := range map[Op][]uint16{
		OpCreate: {ctaID, ctaUse, ctaCountersOrig, ctaCountersRepl, ctaTimestamp, ctaEventTime, ctaSecctx, ctaLabels, ctaMarkMask, ctaStatusMask},
		OpUpdate: {ctaID, ctaUse, ctaEventTime, ctaLabels, ctaNATSrc, ctaNATDst, ctaTupleMaster, ctaHelp, ctaTupleReply},
		OpDelete: {ctaID, ctaUse, ctaEventTime, ctaLabels, ctaNATSrc, ctaNATDst, ctaTupleMaster, ctaHelp, ctaTupleReply, ctaMark, ctaStatus},
	} {
		b, err := appendRequest(nil, op, 1, &f, CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, typ := range never {
			if has(b, typ) != nil {
				t.Errorf("%v carries attribute %d", op, typ)
			}
		}
		// Without it a delete would flush the table.
		if has(b, ctaTupleOrig) == nil {
			t.Errorf("%v without a tuple", op)
		}
	}
	var d decoder
	b, _ := appendRequest(nil, OpCreate, 1, &f, CreateOptions{})
	if got := d.u32(has(b, ctaStatus)); got != 0x40e {
		t.Errorf("status of a create is %#x", got)
	}
	b, _ = appendRequest(nil, OpUpdate, 1, &f, CreateOptions{})
	if got := d.u32(has(b, ctaStatus)); got != 0x40f {
		t.Errorf("status of an update is %#x", got)
	}
	// The kernel turns over bits of the mark that are outside of its mask.
	f.Mark = 0x1234
	for _, op := range []Op{OpCreate, OpUpdate} {
		b, _ = appendRequest(nil, op, 1, &f, CreateOptions{MarkMask: 0xff})
		mark, mask := d.u32(has(b, ctaMark)), has(b, ctaMarkMask)
		if op == OpCreate && (mark != 0x1234 || mask != nil) || op == OpUpdate && (mark != 0x34 || d.u32(mask) != 0xff) {
			t.Errorf("%v: mark %#x, mask %x", op, mark, mask)
		}
	}
	f.Timeout = 0
	b, _ = appendRequest(nil, OpCreate, 1, &f, CreateOptions{})
	if got := d.u32(has(b, ctaTimeout)); got != 1 {
		t.Errorf("timeout of a create is %d", got)
	}
}

func TestRequestRefused(t *testing.T) {
	gone := everything()
	gone.TCPState = 200
	if _, err := appendRequest(nil, OpDelete, 1, &gone, CreateOptions{}); err != nil {
		t.Errorf("delete of a flow in an odd state: %v", err)
	}
	for name, tt := range map[string]struct {
		change func(*flow.Flow)
		want   error
	}{
		"no family":     {func(f *flow.Flow) { f.Orig.Family = 0 }, ErrFamily},
		"icmp error":    {func(f *flow.Flow) { f.Orig.Proto, f.Orig.DstPort = flow.ICMP, 3<<8 }, ErrICMP},
		"icmpv6 error":  {func(f *flow.Flow) { f.Orig.Proto, f.Orig.DstPort = flow.ICMPv6, 1<<8 }, ErrICMP},
		"two zones":     {func(f *flow.Flow) { f.Reply.Zone = 2 }, ErrZones},
		"tcp state":     {func(f *flow.Flow) { f.TCPState = 10 }, ErrState},
		"window scale":  {func(f *flow.Flow) { f.TCPWScale[1] = 15 }, ErrState},
		"sctp state":    {func(f *flow.Flow) { f.SCTPState = 9 }, ErrState},
		"nothing wrong": {func(f *flow.Flow) {}, nil},
	} {
		f := everything()
		tt.change(&f)
		b := []byte{1, 2, 3, 4}
		got, err := appendRequest(b, OpCreate, 1, &f, CreateOptions{})
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if err != nil && len(got) != len(b) {
			t.Errorf("%s: %d octets were appended", name, len(got)-len(b))
		}
	}
}

func TestEncodeAllocates(t *testing.T) {
	f := everything()
	b := make([]byte, 0, 4*maxRequestLen)
	if n := testing.AllocsPerRun(100, func() {
		b = b[:0]
		for _, op := range []Op{OpCreate, OpUpdate, OpDelete} {
			var err error
			if b, err = appendRequest(b, op, 1, &f, CreateOptions{Liberal: true, Labels: true}); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncodeCreate(b *testing.B) {
	f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1, 80))
	buf := make([]byte, 0, maxRequestLen)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := appendRequest(buf, OpCreate, 1, &f, CreateOptions{Liberal: true}); err != nil {
			b.Fatal(err)
		}
	}
}

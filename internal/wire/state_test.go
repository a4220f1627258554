package wire_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// stateVector is the attribute STATE of docs/protocol.md, section 11, with everything that
// a TCP flow can have; vectorState is what it says.
const stateVector = "0014 0108 21222324 0001018e 00000102 0f 05 73 7e"

var vectorState = flow.State{Status: 0x1018e, Timeout: 0x102, Word: 0x0f05737e}

// compactVectors are the messages of the same section.
var compactVectors = []struct {
	quote string
	hex   string
	want  wire.Message
}{
	{
		"CT_STATE 8: handle (4) 12: base (4) 16: status (4) 20: timeout (4) 24: known (1) 25: state of TCP or SCTP (1) 26: TCP flags (1) 27: window scales (1)",
		"1c00 001c 0a0b0c0d 21222324 31323334 0001018e 00000102 0f 05 73 7e",
		wire.Message{Type: wire.CTState, Seq: 0x0a0b0c0d, Handle: 0x21222324, Base: 0x31323334, State: vectorState},
	},
	{
		"CT_STATE 8: handle (4)",
		"1c00 001c 00000001 00000001 00000002 00000000 00000000 10 03 00 00",
		wire.Message{Type: wire.CTState, Seq: 1, Handle: 1, Base: 2, State: flow.State{Word: flow.KnowsSCTP | flow.SCTPCookieEchoed<<16}},
	},
	{
		"CT_END 8: handle (4) 12: base (4)",
		"1d00 0010 0a0b0c0d 21222324 31323334",
		wire.Message{Type: wire.CTEnd, Seq: 0x0a0b0c0d, Handle: 0x21222324, Base: 0x31323334},
	},
}

func TestCompactVectors(t *testing.T) {
	page := document(t)
	for _, v := range compactVectors {
		if !strings.Contains(page, v.quote) {
			t.Errorf("the page does not say %q", v.quote)
		}
		b := octets(t, v.hex)
		if got := oneIn(t, wire.Syncd, b); got != v.want {
			t.Errorf("read (-want +got):\n%s", cmp.Diff(v.want, got))
		}
		if got := appendIn(wire.Syncd, nil, &v.want); !bytes.Equal(got, b) {
			t.Errorf("appended % x, want % x", got, b)
		}
		// A conntrackd does not know the type, whatever it carries.
		if got := readIn(wire.Conntrackd, b, false); len(got) != 1 || got[0].Fault != wire.FaultHeader {
			t.Errorf("in conntrackd's dialect %+v", got)
		}
		for n := wire.HeaderLen; n < len(b); n++ {
			if got := readIn(wire.Syncd, withLen(bytes.Clone(b[:n]), n), false); len(got) != 1 || got[0].Fault != wire.FaultPayload || got[0].Seq != v.want.Seq {
				t.Errorf("%d octets of %v: %+v", n, v.want.Type, got)
			}
		}
		if got := readIn(wire.Syncd, withLen(append(bytes.Clone(b), 1, 2, 3), len(b)+3), false); len(got) != 1 || got[0] != v.want {
			t.Errorf("with octets behind it: %+v", got)
		}
		clear(b[8:12])
		if got := readIn(wire.Syncd, b, false); got[0].Fault != wire.FaultPayload {
			t.Errorf("without a handle: %+v", got)
		}
	}
}

// TestState: the state that STATE and CT_STATE carry arrives, without what no kernel has.
func TestState(t *testing.T) {
	if want := "STATE 0: handle (4), 0 for none 4: status (4) 8: timeout (4) 12: known (1) 13: state of TCP or SCTP (1) 14: TCP flags (1) 15: window scales (1)"; !strings.Contains(document(t), want) {
		t.Errorf("the page does not say %q", want)
	}
	tcp := one(t, good(1)).Flow
	tcp.SetState(vectorState)
	if want := [2]uint8{7, 14}; tcp.TCPState != flow.TCPCloseWait || tcp.TCPFlags != [2]uint8{7, 3} || tcp.TCPWScale != want || tcp.State() != vectorState {
		t.Errorf("%+v", tcp)
	}
	b := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &tcp)
	wire.SetHandle(b, 0x21222324)
	if _, got := cutState(b); !bytes.Equal(got, octets(t, stateVector)) {
		t.Errorf("sent % x", got)
	}
	r := wire.Reader{Sync: true, Seed: 9}
	var m wire.Message
	if r.Reset(b); !r.Next(&m) || m.Flow != tcp || m.Handle != 0x21222324 {
		t.Errorf("handle %x, received:\n%s", m.Handle, cmp.Diff(tcp, m.Flow))
	}

	rapid.Check(t, func(t *rapid.T) {
		u8 := func(what string) uint8 { return rapid.Byte().Draw(t, what) }
		f := tcp
		f.Orig.Proto = rapid.SampledFrom([]uint8{flow.TCP, flow.SCTP, flow.UDP}).Draw(t, "protocol")
		f.Has = f.Has&^flow.StateAttrs | flow.Attrs(rapid.Uint32().Draw(t, "has"))&flow.StateAttrs
		f.Status, f.Timeout = rapid.Uint32().Draw(t, "status"), rapid.Uint32().Draw(t, "timeout")
		f.TCPState, f.SCTPState = u8("tcp"), u8("sctp")
		f.TCPFlags, f.TCPWScale = [2]uint8{u8("flags"), u8("flags")}, [2]uint8{u8("scale"), u8("scale")}
		whole := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &f)
		received := oneIn(t, wire.Syncd, whole)
		want := survivesFlow(wire.Syncd, &f)
		if diff := cmp.Diff(want, received.Flow); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		short := wire.AppendCTState(nil, 2, 1, 1, f.State())
		got := oneIn(t, wire.Syncd, short).State
		if got != want.State() || got.Of(f.Orig.Proto) != got {
			t.Fatalf("CT_STATE says %+v, the whole message %+v", got, want.State())
		}
		// What anybody may say has the same meaning in both.
		wild := flow.State{Status: rapid.Uint32().Draw(t, "status"), Timeout: rapid.Uint32().Draw(t, "timeout"), Word: rapid.Uint32().Draw(t, "word")}
		fixed, _ := cutState(whole)
		odd := join(fixed, attr(0x108, make([]byte, 16)...)[:8], wire.AppendCTState(nil, 1, 1, 1, wild)[16:])
		g := f
		g.SetState(wild.Of(f.Orig.Proto))
		if got, want := oneIn(t, wire.Syncd, odd).Flow, survivesFlow(wire.Syncd, &g); got.State() != want.State() || got.State() != g.State() {
			t.Fatalf("%+v means %+v, want %+v", wild, got.State(), want.State())
		}
		// Both sides come to the same hash, in whatever way.
		hash, rest := wire.FlowHashes(7, whole)
		was := flow.State{Status: 5}
		f.SetState(was)
		before, other := wire.FlowHashes(7, wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 9, &f))
		if rest != other || wire.CompactHash(rest, short) != hash || wire.ChangeState(before, uint32(rest), was, got) != hash {
			t.Fatalf("hash %x, by CT_STATE %x, by change %x", hash, wire.CompactHash(rest, short), wire.ChangeState(before, uint32(rest), was, got))
		}
	})
}

// TestStateHash: "The hash of a flow is `fixed + Hash(fixed mod 2^32, state)` modulo 2^64".
func TestStateHash(t *testing.T) {
	const handle, timeout = 4, 12 // octets of STATE
	b := goodWith(octets(t, stateVector))
	body := b[wire.HeaderLen : len(b)-20]
	fixed := hashOf(9, body)
	state := octets(t, "0001018e 0e 05 73 7e") // without the bit of the timeout
	want := fixed + hashOf(fixed&0xffffffff, state)
	if got, part := wire.FlowHashes(9, b); got != want || part != fixed {
		t.Errorf("%x of %x, want %x of %x", got, part, want, fixed)
	}
	r := wire.Reader{Sync: true, Seed: 9}
	var m wire.Message
	if r.Reset(b); !r.Next(&m) || m.Hash != want || m.Fixed != fixed {
		t.Errorf("the Reader has %x of %x", m.Hash, m.Fixed)
	}
	// Every octet counts but the handle, the timeout and whether it is known.
	for i := wire.HeaderLen; i < len(b); i++ {
		changed := bytes.Clone(b)
		changed[i] ^= 1
		n := i - (len(b) - 20) - 4 // octet of the payload of STATE
		free := n >= 0 && n < handle || n >= 8 && n < timeout+1
		if n < 0 && n >= -4 { // its header: it is not STATE any more, or not the last
			continue
		}
		if got := wire.FlowHash(9, changed); free != (got == want) {
			t.Errorf("octet %d of STATE: the same %v", n, got == want)
		}
	}
	// Two flows that exchange their states have another sum.
	other := bytes.Clone(b)
	other[wire.HeaderLen+5]++ // of an address
	was := wire.FlowHash(9, b) + wire.FlowHash(9, other)
	b[len(b)-3], other[len(b)-3] = 3, 4
	is := wire.FlowHash(9, b) + wire.FlowHash(9, other)
	b[len(b)-3], other[len(b)-3] = 4, 3
	if swapped := wire.FlowHash(9, b) + wire.FlowHash(9, other); swapped == is || swapped == was {
		t.Error("the sum does not see who has which state")
	}
}

// TestSetHandle: nothing is written where there is no room for a handle.
func TestSetHandle(t *testing.T) {
	f := one(t, good(1)).Flow
	x := flow.Expect{Master: f.Orig, Tuple: f.Orig}
	for _, b := range [][]byte{
		nil, {0x10}, good(1), wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 1, &f),
		wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 1, &x), goodWith(octets(t, stateVector), attr(7, 0, 0, 0, 1)),
	} {
		before := bytes.Clone(b)
		if wire.SetHandle(b, 7); !bytes.Equal(b, before) {
			t.Errorf("% x became % x", before, b)
		}
		if _, fixed := wire.FlowHashes(1, b); fixed != 0 {
			t.Errorf("% x can be a base", b)
		}
	}
}

// TestAllocsCompact: nothing is allocated for a compact message.
func TestAllocsCompact(t *testing.T) {
	var m wire.Message
	r := wire.Reader{Sync: true, Seed: 7}
	buf := make([]byte, 0, 2048)
	b := join(octets(t, compactVectors[0].hex), octets(t, compactVectors[2].hex))
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(b)
		for r.Next(&m) {
			buf = appendIn(wire.Syncd, buf[:0], &m)
		}
		was := m.State
		binary.BigEndian.PutUint64(buf, wire.ChangeState(1, 2, was, m.State))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

package engine

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// change draws what an event may tell of a flow.
func change(t *rapid.T, orig flow.Tuple) flow.Flow {
	f := flow.Flow{Orig: orig}
	f.Reply, _ = orig.Inverse()
	few := func(what string) uint32 { return rapid.Uint32Range(0, 2).Draw(t, what) }
	f.Has = flow.Attrs(rapid.Uint32().Draw(t, "has")) & rapid.SampledFrom([]flow.Attrs{flow.StateAttrs, flow.StateAttrs, flow.StateAttrs | flow.HasID | flow.HasCounters, 1<<22 - 1}).Draw(t, "among")
	f.Status = few("status") * 2
	if rapid.Bool().Draw(t, "source done") {
		f.Status |= flow.StatusSrcNATDone
	}
	if rapid.Bool().Draw(t, "destination done") {
		f.Status |= flow.StatusDstNATDone
	}
	f.Timeout, f.Mark, f.ID = few("timeout"), few("mark"), few("id")
	f.TCPState, f.TCPFlags[0], f.TCPWScale[1] = uint8(few("tcp")), uint8(few("flags")), uint8(few("scale"))
	f.SCTPState, f.SCTPVtag[0] = uint8(few("sctp")), few("vtag")
	f.Labels[3], f.SeqAdj[1].Pos, f.Synproxy.ISN = uint8(few("label")), few("adjustment"), few("synproxy")
	f.Helper[0] = "\x00ft"[few("helper")]
	if few("translated") == 1 {
		f.Reply.Dst[0], f.Reply.SrcPort = 9, f.Reply.SrcPort+1
	}
	f.Reply.Zone = uint16(few("zone"))
	if f.Has&flow.HasMaster != 0 {
		f.Master = newFlow(int(6 + 8*few("master"))).Orig
	}
	return f
}

// TestCompactTellsAll: whatever is done to a flow, a compact message makes of what its base
// has told exactly what the message with all of the flow makes; and a change of the state
// alone is told by a compact message.
func TestCompactTellsAll(t *testing.T) {
	const session, handle = 7, 1
	compacts, wholes := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		e := quietEngine(nil, func(cfg *Config) { cfg.Mirror = true })
		e.now = 1 << 40
		f := change(t, newFlow(rapid.IntRange(0, 7).Draw(t, "flow")).Orig)
		if f.Orig.Proto == flow.UDP && rapid.Bool().Draw(t, "sctp") {
			f.Orig.Proto, f.Reply.Proto = flow.SCTP, flow.SCTP
		}
		f.Has |= flow.HasStatus | flow.HasTimeout // every event of the kernel tells them
		h, err := e.internal.Insert(&f, e.now)
		if err != nil {
			t.Fatal(err)
		}
		short, whole := newReplica(10), newReplica(10)
		var number, base wire.Seq
		rd := wire.Reader{Sync: true, Seed: session}
		var m wire.Message
		deliver := func(r *Replica, b []byte) {
			rd.Reset(b)
			if !rd.Next(&m) || m.Fault != wire.FaultNone {
				t.Fatalf("% x: %v", b, m.Fault)
			}
			if m.IsCompact() && !r.Follows(1, &m) {
				t.Fatal("it does not follow")
			}
			if out := r.apply(wire.Delivery{Owner: 1, Confirms: true}, &m, 0, 1); out != applied {
				t.Fatalf("outcome %d", out)
			}
		}
		tell := func(mayBeShort, mustBeShort bool) {
			number++
			b, ok := []byte(nil), false
			if mayBeShort {
				b, ok = e.AppendCompact(nil, h, number, base, e.now)
			}
			if mustBeShort && !ok {
				t.Fatal("a change of the state alone is told by a whole message")
			}
			full := e.AppendFlow(nil, h, 0, number, true, e.now)
			wire.SetHandle(full, handle)
			if !ok {
				b, base = full, number
				wholes++
			} else {
				compacts++
			}
			deliver(short, b)
			deliver(whole, full)
			x, y := short.of(1), whole.of(1)
			if e.internal.Dead(h) {
				if x.cache.Len() != 0 || x.sums != y.sums {
					t.Fatal("it has not ended")
				}
				return
			}
			var got, want flow.Flow
			x.cache.Load(1, &got)
			y.cache.Load(1, &want)
			if got != want {
				t.Fatalf("%v\nwant %v", text(got), text(want))
			}
			again := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, number, &got)
			wire.SetHandle(again, handle)
			if full[0]&0xf == 0 && !bytes.Equal(again, full) {
				t.Fatalf("% x\nwant % x", again, full)
			}
			if a, b := x.at(1), y.at(1); a.hash != b.hash || a.fixed != b.fixed || x.sums != y.sums {
				t.Fatalf("%+v, want %+v", a, b)
			}
			if short.Audit(1, session, 0); x.found.Corrupted != 0 {
				t.Fatal("the audit finds something")
			}
		}
		tell(false, false)
		for range rapid.IntRange(0, 6).Draw(t, "changes") {
			before := e.internal.State(h)
			g := change(t, f.Orig)
			e.now = e.now.Add(1 << 30)
			stateOnly := false
			switch rapid.IntRange(0, 5).Draw(t, "how") {
			case 0:
				g.Has |= flow.HasStatus | flow.HasTimeout
				e.internal.Replace(h, &g, e.now)
			case 1:
				e.internal.MergeFull(h, &g, e.now)
			default:
				e.internal.Merge(h, &g, e.now)
				const done = flow.StatusSrcNATDone | flow.StatusDstNATDone
				after := e.internal.State(h)
				stateOnly = g.Has&^(flow.StateAttrs|flow.HasID|flow.HasCounters) == 0 && (before.Status^after.Status)&done == 0
			}
			tell(true, stateOnly)
		}
		e.internal.SetDead(h)
		tell(true, true)
	})
	least := 100
	if testing.Short() { // rapid draws a fifth of the cases
		least /= 5
	}
	if min(compacts, wholes) < least {
		t.Errorf("%d compact messages, %d others: too few to prove anything", compacts, wholes)
	}
}

// TestCompactOfRefused: "If it could not keep what the base said for want of room, a CT_STATE
// counts as come and does nothing". Nobody asks again and again for what there is no room
// for.
func TestCompactOfRefused(t *testing.T) {
	r := newReplica(1)
	d := wire.Delivery{Owner: 1}
	a, b := modelFlow(1, 1), modelFlow(2, 1)
	tell := func(seq wire.Seq, handle uint32, f *flow.Flow, want outcome) {
		t.Helper()
		m := message(t, wire.CTNew, 0, seq, 5, f)
		m.Handle = handle
		if got := r.apply(d, m, 0, 1); got != want {
			t.Fatalf("outcome %d, want %d", got, want)
		}
	}
	tell(100, 1, &a, applied)
	tell(101, 2, &b, refused)
	m := wire.Message{Type: wire.CTState, Seq: 102, Handle: 2, Base: 101, State: b.State()}
	before := *r.Sums(1)
	if !r.Follows(1, &m) || r.apply(d, &m, 0, 1) != refused || *r.Sums(1) != before || r.Len() != 1 {
		t.Error("a state of what was refused is asked for, or does something")
	}
	m.Type = wire.CTEnd
	if r.Follows(1, &m) {
		t.Error("nobody will know of the end of what was refused")
	}
	m.Type = wire.CTState
	m.Base = 99 // of something that was lost
	if r.Follows(1, &m) {
		t.Error("what is not the refused message is taken for it")
	}
	r.FlushOwner(1)
	if m.Base = 101; r.Follows(1, &m) {
		t.Error("refused for ever")
	}
	tell(103, 2, &b, applied)
	if m.Type, m.Base, m.Seq = wire.CTEnd, 103, 104; !r.Follows(1, &m) || r.apply(d, &m, 0, 1) != applied || r.Len() != 0 {
		t.Error("it did not end")
	}
}

// TestNamesAreBounded: whatever handles an owner names, the memory for them is bounded by
// what is held of it.
func TestNamesAreBounded(t *testing.T) {
	for _, c := range []struct {
		limit  int
		chunks int
	}{{1, 1}, {1000, 1}, {1025, 2}, {100_000, 128}, {0, maxNames / namesLen}, {1 << 30, maxNames / namesLen}} {
		n := newNames(c.limit)
		for h := uint32(1); h != 0; h <<= 1 {
			n.set(h-1, 5)
			n.set(h, 6)
		}
		n.set(1<<32-1, 7)
		used := 0
		for _, chunk := range n.chunks {
			if chunk != nil {
				used++
			}
		}
		if len(n.chunks) > c.chunks || used > 66 {
			t.Errorf("limit %d: %d chunks, %d in use", c.limit, len(n.chunks), used)
		}
		if n.get(1<<32-1) != 7 || n.get(n.slots+1) != n.get(1) {
			t.Errorf("limit %d: numbers that share a place differ", c.limit)
		}
		if n.forget(); n.get(1) != 0 {
			t.Errorf("limit %d: not forgotten", c.limit)
		}
	}
}

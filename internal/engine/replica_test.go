package engine

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

const (
	modelFlows = 12
	modelLimit = 8
)

// modelOwner is what is held of an owner, said in the naive way.
type modelOwner struct {
	session uint64
	entries map[int]modelEntry
	names   map[uint32]modelName // by the place that a handle has
	told    wire.Seq             // number of the last message with a handle
	graves  map[int]wire.Seq
	doubt   wire.Mask
	sweep   wire.Mask // to be done; empty if none is
	full    bool
}

// modelName is what a handle means.
type modelName struct {
	flow    int
	refused bool
	base    wire.Seq // of the message that made it so
}

type modelEntry struct {
	seq, base wire.Seq // base 0: nothing can refer to it
	mark      uint32
	status    uint32
	hash      uint64 // 0: from a snapshot
	confirmed bool   // since the last Doubt
}

func modelFlow(i int, mark uint32) flow.Flow {
	f := newFlow(i)
	establish(&f)
	f.Mark = mark
	f.Has |= flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasMark
	return f
}

// flow returns what flow i is if e is held of it.
func (e *modelEntry) flow(i int) flow.Flow {
	f := modelFlow(i, e.mark)
	f.Status = e.status
	return f
}

func bucketOf(i int) uint8 {
	f := newFlow(i)
	return wire.Bucket(&f.Orig)
}

// message returns a data message as a reader would parse it.
func message(t rapid.TB, typ wire.Type, flags wire.Flags, seq wire.Seq, session uint64, f *flow.Flow) *wire.Message {
	rd := wire.Reader{Sync: true, Seed: session}
	rd.Reset(wire.AppendFlow(nil, wire.Syncd, typ, flags, seq, f))
	m := new(wire.Message)
	if !rd.Next(m) || m.Fault != wire.FaultNone {
		t.Fatalf("a message that does not parse: %v", m.Fault)
	}
	return m
}

func (o *modelOwner) inDoubt(i int) bool {
	return !o.entries[i].confirmed && o.doubt.Has(bucketOf(i))
}

// apply says what a message does. It is the rules of docs/protocol.md, section 4 and 5.
func (o *modelOwner) apply(d wire.Delivery, m *wire.Message, i int) outcome {
	e, have := o.entries[i]
	grave, died := o.graves[i]
	switch {
	case d.Late && have && m.Seq.Before(e.seq) && !(d.Confirms && o.inDoubt(i)),
		d.Late && !have && died && m.Seq.Before(grave):
		return ignored
	case m.Type == wire.CTDel:
		if d.Remember && (died || len(o.graves) < modelLimit) {
			o.graves[i] = m.Seq
		}
		delete(o.entries, i)
		if !have {
			return unknown
		}
		return applied
	}
	delete(o.graves, i)
	place := m.Handle % namesLen
	if !have && len(o.entries) == modelLimit {
		o.full = true
		if m.Handle != 0 {
			o.names[place] = modelName{refused: true, base: m.Seq}
		}
		return refused
	}
	n := modelEntry{seq: m.Seq, mark: m.Flow.Mark, status: m.Flow.Status, hash: m.Hash}
	if m.Handle != 0 {
		n.base, o.names[place] = m.Seq, modelName{flow: i, base: m.Seq}
	}
	return o.put(d, i, n)
}

// put holds n of flow i.
func (o *modelOwner) put(d wire.Delivery, i int, n modelEntry) outcome {
	was := o.entries[i].confirmed
	n.confirmed = was || d.Confirms
	o.entries[i] = n
	if d.Confirms && !was && !o.doubt.Empty() {
		return appliedDoubtful
	}
	return applied
}

// follows is what section 11 says of a compact message.
func (o *modelOwner) follows(m *wire.Message) (i int, follows bool) {
	n, ok := o.names[m.Handle%namesLen]
	switch {
	case !ok:
		return 0, false
	case n.refused:
		return 0, n.base == m.Base && m.Type == wire.CTState
	}
	e, have := o.entries[n.flow]
	return n.flow, have && e.base != 0 && e.base == m.Base
}

// applyCompact says what a compact message does that follows.
func (o *modelOwner) applyCompact(t rapid.TB, d wire.Delivery, m *wire.Message) outcome {
	if o.names[m.Handle%namesLen].refused {
		return refused
	}
	i, _ := o.follows(m)
	e := o.entries[i]
	if d.Late && m.Seq.Before(e.seq) {
		return ignored
	}
	if m.Type == wire.CTEnd {
		if _, died := o.graves[i]; d.Remember && (died || len(o.graves) < modelLimit) {
			o.graves[i] = m.Seq
		}
		delete(o.entries, i)
		return applied
	}
	e.seq, e.status = m.Seq, m.State.Status
	f := e.flow(i)
	e.hash = message(t, wire.CTNew, 0, m.Seq, o.session, &f).Hash
	return o.put(d, i, e)
}

func (o *modelOwner) sweepNow() {
	for i, e := range o.entries {
		if !e.confirmed && o.sweep.Has(bucketOf(i)) {
			delete(o.entries, i)
		}
	}
	o.doubt, o.sweep = o.doubt.Less(o.sweep), wire.Mask{}
}

func (o *modelOwner) flush() {
	*o = modelOwner{session: o.session, entries: map[int]modelEntry{}, names: map[uint32]modelName{}, told: o.told, graves: map[int]wire.Seq{}}
}

// TestReplicaModel holds a Replica of two owners against the naive model, whatever is
// done to it in whatever order.
func TestReplicaModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newReplica(modelLimit)
		model := map[uint8]*modelOwner{1: {session: 0x1111}, 2: {session: 0x2222}}
		for _, o := range model {
			o.flush()
		}
		owner := func(t *rapid.T) (uint8, *modelOwner) {
			n := rapid.Uint8Range(1, 2).Draw(t, "owner")
			return n, model[n]
		}
		mask := rapid.Custom(func(t *rapid.T) (m wire.Mask) {
			if rapid.Bool().Draw(t, "all") {
				return wire.AllBuckets
			}
			for i := range modelFlows {
				if rapid.Bool().Draw(t, "flow") {
					m = m.With(bucketOf(i))
				}
			}
			return m
		})
		near := rapid.Uint32Range(0, modelFlows+1)
		for _, o := range model {
			o.told = wire.Seq(rapid.IntRange(-20, 0).Draw(t, "first number"))
		}
		handle := rapid.SampledFrom([]uint32{1, 2, 3, 4, 5, namesLen - 1, namesLen, namesLen + 1, 9*namesLen + 2})
		flowNumber, mark := rapid.IntRange(0, modelFlows-1), rapid.Uint32Range(0, 5)
		t.Repeat(map[string]func(*rapid.T){
			"apply": func(t *rapid.T) {
				n, o := owner(t)
				i := flowNumber.Draw(t, "flow")
				typ := rapid.SampledFrom([]wire.Type{wire.CTNew, wire.CTNew, wire.CTUpd, wire.CTDel}).Draw(t, "type")
				flags := rapid.SampledFrom([]wire.Flags{0, 0, wire.FlagRepeat}).Draw(t, "flags")
				f := modelFlow(i, mark.Draw(t, "mark"))
				// Numbers around the wrap.
				m := message(t, typ, flags, wire.Seq(rapid.IntRange(-30, 30).Draw(t, "number")), o.session, &f)
				d := wire.Delivery{
					Owner: n, Late: rapid.Bool().Draw(t, "late"), Confirms: rapid.Bool().Draw(t, "confirms"),
					Remember: rapid.Bool().Draw(t, "remember"),
				}
				want := o.apply(d, m, i)
				if got := r.apply(d, m, flow.Handle(near.Draw(t, "near")), 1); got != want {
					t.Fatalf("outcome %d, want %d", got, want)
				}
			},
			// A message with a handle, of a number that no other has, as of all that are sent.
			"tell": func(t *rapid.T) {
				n, o := owner(t)
				i := flowNumber.Draw(t, "flow")
				f := modelFlow(i, mark.Draw(t, "mark"))
				o.told++
				m := message(t, wire.CTNew, 0, o.told, o.session, &f)
				m.Handle = handle.Draw(t, "handle")
				d := wire.Delivery{Owner: n, Late: rapid.Bool().Draw(t, "late"), Confirms: rapid.Bool().Draw(t, "confirms")}
				want := o.apply(d, m, i)
				if got := r.apply(d, m, 0, 1); got != want {
					t.Fatalf("outcome %d, want %d", got, want)
				}
			},
			"compact": func(t *rapid.T) {
				n, o := owner(t)
				m := &wire.Message{Type: wire.CTState, Seq: wire.Seq(rapid.IntRange(-30, 30).Draw(t, "number")), Handle: handle.Draw(t, "handle")}
				if rapid.IntRange(0, 3).Draw(t, "type") == 0 {
					m.Type = wire.CTEnd
				}
				m.Base = o.told - wire.Seq(rapid.IntRange(0, 8).Draw(t, "base"))
				if rapid.Bool().Draw(t, "known") {
					m.Base = o.names[m.Handle%namesLen].base
				}
				i, want := o.follows(m)
				if got := r.Follows(n, m); got != want {
					t.Fatalf("handle %d, base %d follows: %v, want %v", m.Handle, m.Base, got, want)
				}
				if !want {
					return
				}
				f := modelFlow(i, 0)
				m.State = f.State()
				m.State.Status |= rapid.Uint32Range(0, 3).Draw(t, "status") << 16
				d := wire.Delivery{
					Owner: n, Late: rapid.Bool().Draw(t, "late"), Confirms: rapid.Bool().Draw(t, "confirms"),
					Remember: rapid.Bool().Draw(t, "remember"),
				}
				out := o.applyCompact(t, d, m)
				if got := r.apply(d, m, 0, 1); got != out {
					t.Fatalf("outcome %d, want %d", got, out)
				}
			},
			"begin": func(t *rapid.T) {
				n, o := owner(t)
				r.Begin(n)
				clear(o.names)
			},
			"doubt": func(t *rapid.T) {
				n, o := owner(t)
				m := mask.Draw(t, "mask")
				for range rapid.SampledFrom([]int{1, 1, 1, 254, 255, 256, 257, 511}).Draw(t, "times") {
					r.Doubt(n, m)
				}
				o.sweepNow()
				o.doubt = o.doubt.Or(m)
				for i, e := range o.entries {
					e.confirmed = false
					o.entries[i] = e
				}
			},
			"sweep": func(t *rapid.T) {
				n, o := owner(t)
				m := mask.Draw(t, "mask")
				r.Sweep(n, m)
				o.sweepNow()
				o.sweep = m
			},
			"work": func(*rapid.T) {
				for more := true; more; {
					_, more = r.Work()
				}
				for _, o := range model {
					o.sweepNow()
				}
			},
			"whole": func(t *rapid.T) {
				n, o := owner(t)
				r.Whole(n)
				clear(o.graves)
			},
			"restore": func(t *rapid.T) {
				n, o := owner(t)
				i := flowNumber.Draw(t, "flow")
				f := modelFlow(i, mark.Draw(t, "mark"))
				err := r.Restore(n, &f, 1)
				_, have := o.entries[i]
				if full := !have && len(o.entries) == modelLimit; full != (err != nil) {
					t.Fatalf("restore: %v, full %v", err, full)
				}
				if !have && err == nil {
					o.entries[i], o.doubt = modelEntry{mark: f.Mark, status: f.Status}, wire.AllBuckets
				}
			},
			"audit": func(t *rapid.T) {
				n, o := owner(t)
				i := flowNumber.Draw(t, "flow")
				e, have := o.entries[i]
				f := modelFlow(i, rapid.Uint32Range(6, 9).Draw(t, "damage"))
				x := r.of(n)
				damaged := have && rapid.Bool().Draw(t, "damaged")
				if damaged {
					x.cache.Merge(x.cache.Lookup(&f.Orig), &flow.Flow{Orig: f.Orig, Mark: f.Mark, Has: flow.HasMark}, 1)
				}
				sums, found := x.sums, x.found.Corrupted
				for pos, next := flow.Handle(0), true; next; next = pos != 0 {
					pos = r.Audit(n, o.session, pos)
				}
				counts := uint64(0)
				if f.Status = e.status; damaged {
					if e.mark != f.Mark && e.hash != 0 {
						counts, e.base = 1, 0
						e.hash = message(t, wire.CTNew, 0, 0, o.session, &f).Hash
					}
					e.mark = f.Mark
					o.entries[i] = e
				}
				if x.found.Corrupted-found != counts || (x.sums != sums) != (counts > 0) {
					t.Fatalf("%d entries damaged, the audit found %d", counts, x.found.Corrupted-found)
				}
			},
			"flush owner": func(t *rapid.T) {
				n, o := owner(t)
				r.FlushOwner(n)
				o.flush()
			},
			"flush": func(*rapid.T) {
				r.Flush()
				for _, o := range model {
					o.flush()
				}
			},
			"room": func(t *rapid.T) {
				want := false
				for _, o := range model {
					if o.full && len(o.entries) < modelLimit-modelLimit/10 {
						o.full, want = false, true
					}
				}
				if got := r.roomAgain(); got != want {
					t.Fatalf("room again: %v, want %v", got, want)
				}
			},
			"": func(t *rapid.T) {
				total, doubtful, full := 0, false, false
				for n, o := range model {
					total += len(o.entries)
					doubtful = doubtful || !o.doubt.Empty() && len(o.entries) > 0
					full = full || o.full
					if what := o.compare(r, n); what != "" {
						t.Fatalf("owner %d: %s", n, what)
					}
				}
				if r.Len() != total || r.doubtful() != doubtful || r.refusing() != full {
					t.Fatalf("%d entries, doubtful %v, refusing %v; want %d, %v, %v", r.Len(), r.doubtful(), r.refusing(), total, doubtful, full)
				}
			},
		})
	})
}

// compare says how what is held of an owner differs from the model.
func (o *modelOwner) compare(r *Replica, n uint8) string {
	x := r.of(n)
	var sums [wire.Buckets]uint64
	for i, e := range o.entries {
		want := e.flow(i)
		h := x.cache.Lookup(&want.Orig)
		if h == 0 {
			return fmt.Sprintf("flow %d is missing", i)
		}
		var f flow.Flow
		x.cache.Load(h, &f)
		if got := *x.at(h); got.hash != e.hash || got.seq != e.seq || got.bucket != bucketOf(i) || canonical(f) != canonical(want) {
			return fmt.Sprintf("flow %d is %+v %s, want %+v %s", i, got, text(f), e, text(want))
		}
		if x.inDoubt(h) != o.inDoubt(i) {
			return fmt.Sprintf("flow %d in doubt: %v", i, !o.inDoubt(i))
		}
		sums[bucketOf(i)] += e.hash
	}
	switch {
	case x.cache.Len() != len(o.entries):
		return fmt.Sprintf("%d entries, want %d", x.cache.Len(), len(o.entries))
	case *r.Sums(n) != sums:
		return "the sums are not those of the entries"
	case r.Doubtful(n) != o.doubt:
		return fmt.Sprintf("buckets %x in doubt, want %x", r.Doubtful(n), o.doubt)
	case len(x.graves) != len(o.graves):
		return fmt.Sprintf("%d graves, want %d", len(x.graves), len(o.graves))
	}
	for i, seq := range o.graves {
		key := newFlow(i).Orig
		if x.graves[key] != seq {
			return fmt.Sprintf("flow %d died with number %d, want %d", i, x.graves[key], seq)
		}
	}
	return ""
}

// TestReplicaDoubtAfterManyEpochs: what was confirmed long ago is not confirmed now.
func TestReplicaDoubtAfterManyEpochs(t *testing.T) {
	for _, times := range []int{1, 254, 255, 256, 257, 512} {
		r := newReplica(modelLimit)
		f := modelFlow(0, 1)
		r.apply(wire.Delivery{Owner: 1, Confirms: true}, message(t, wire.CTNew, 0, 1, 1, &f), 0, 1)
		for range times {
			r.Doubt(1, wire.AllBuckets)
		}
		r.Sweep(1, wire.AllBuckets)
		for more := true; more; {
			_, more = r.Work()
		}
		if r.Len() != 0 {
			t.Errorf("the entry is still there after %d times in doubt", times)
		}
	}
}

// TestReplicaFound: what a repair finds is counted, named once, and told apart.
func TestReplicaFound(t *testing.T) {
	r := newReplica(modelLimit)
	take := func(typ wire.Type, flags wire.Flags, i int, mark uint32) {
		f := modelFlow(i, mark)
		r.apply(wire.Delivery{Owner: 1, Confirms: true}, message(t, typ, flags, wire.Seq(100+i), 1, &f), 0, 1)
	}
	take(wire.CTNew, 0, 0, 1)
	take(wire.CTNew, 0, 1, 1)
	take(wire.CTNew, 0, 2, 1)
	r.Doubt(1, wire.AllBuckets)
	take(wire.CTNew, wire.FlagRepeat, 0, 1) // as it was
	take(wire.CTNew, wire.FlagRepeat, 1, 2) // different
	take(wire.CTNew, wire.FlagRepeat, 3, 1) // missing
	take(wire.CTNew, 0, 4, 1)               // a change: not a difference
	r.Sweep(1, wire.AllBuckets)
	for more := true; more; {
		_, more = r.Work()
	}
	got := r.Found(1)
	if got.Missing != 1 || got.Different != 1 || got.Stale != 1 || got.Corrupted != 0 {
		t.Errorf("found %+v", got)
	}
	want := []Difference{{"different", newFlow(1).Orig}, {"missing", newFlow(3).Orig}, {"stale", newFlow(2).Orig}}
	for i := range want {
		if len(got.Samples) != len(want) || got.Samples[i] != want[i] {
			t.Fatalf("samples %v, want %v", got.Samples, want)
		}
	}
	if len(r.Found(1).Samples) != 0 {
		t.Error("samples are told twice")
	}
}

// TestReplicaOwners: two nodes have the same flow, each in its own state, and the end
// of one is not that of the other.
func TestReplicaOwners(t *testing.T) {
	r := newReplica(modelLimit)
	for owner := uint8(1); owner <= 2; owner++ {
		f := modelFlow(0, uint32(owner))
		r.apply(wire.Delivery{Owner: owner}, message(t, wire.CTNew, 0, 1, 1, &f), 0, 1)
	}
	f := modelFlow(0, 0)
	r.apply(wire.Delivery{Owner: 1}, message(t, wire.CTDel, 0, 2, 1, &f), 0, 1)
	if a, b := r.Cache(1).Len(), r.Cache(2).Len(); a != 0 || b != 1 {
		t.Errorf("%d and %d entries, want 0 and 1", a, b)
	}
	if r.Cache(3) != nil || len(r.Owners()) != 2 {
		t.Errorf("owners %v", r.Owners())
	}
	r.FlushOwner(2)
	r.FlushOwner(3)
	if r.Len() != 0 || *r.Sums(2) != ([wire.Buckets]uint64{}) {
		t.Errorf("%d entries after the flush, sums %v", r.Len(), *r.Sums(2))
	}
}

package engine

import (
	"context"
	"testing"
	"time"

	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/simnet"
)

// mark makes remnants of all flows of a node.
func (d *node) mark() { d.slices(d.MarkRemnants) }

func (d *node) slices(fn func(flow.Handle) flow.Handle) {
	for pos, first := flow.Handle(0), true; pos != 0 || first; first = false {
		d.do(func() { pos = fn(pos) })
	}
}

func (d *node) count(keep bool) (n Remnants) {
	d.slices(func(from flow.Handle) flow.Handle { return d.CountRemnants(from, &n, keep) })
	return n
}

// judge judges the whole kernel, and returns what is to end and what was in use.
func (d *node) judge(r RemnantRule) (ends, used map[flow.Tuple]bool) {
	ends, used = map[flow.Tuple]bool{}, map[flow.Tuple]bool{}
	flows := d.kernel.Flows()
	d.do(func() {
		for k, f := range flows {
			switch d.JudgeRemnant(&f, r) {
			case RemnantEnds:
				ends[k] = true
			case RemnantInUse:
				used[k] = true
			}
		}
	})
	return ends, used
}

func wantTuples(t testing.TB, what string, got map[flow.Tuple]bool, want ...int) {
	t.Helper()
	set := map[flow.Tuple]bool{}
	for _, i := range want {
		k := newFlow(i).Orig
		set[k] = true
		if !got[k] {
			t.Errorf("%s: flow %d is missing", what, i)
		}
	}
	for k := range got {
		if !set[k] {
			t.Errorf("%s: there is %v", what, k)
		}
	}
}

// takes lets a peer have some flows of the other node.
func (d *node) takes(flows ...int) {
	for _, i := range flows {
		f := newFlow(i)
		establish(&f)
		d.kernel.Create(f, commitPort)
	}
	time.Sleep(100 * time.Millisecond)
	d.do(func() { d.Engine.Mode().Bulk() })
	time.Sleep(2 * time.Second)
}

// What is to end is what a peer has, or has ended, and no traffic confirms.
func TestRemnants(t *testing.T) {
	dialects(t, func(t *testing.T, mirror bool, a, b *node) {
		a.opened(10)
		a.mark()
		if n := a.count(false); n != (Remnants{All: 10}) || n.TakenOver() {
			t.Errorf("before anybody takes over: %+v", n)
		}
		ends, _ := a.judge(RemnantRule{})
		wantTuples(t, "before anybody takes over", ends)

		b.takes(0, 1, 2, 4, 5)
		b.kernel.Destroy(newFlow(0).Orig, 0)
		a.kernel.Update(newFlow(1).Orig, 0, func(f *flow.Flow) { f.Mark = 7 }) // traffic, although the peer has it
		a.kernel.Create(newFlow(20), 0)                                        // not of before
		time.Sleep(2 * time.Second)
		if n := a.count(false); n != (Remnants{All: 9, Held: 3, Ended: 1}) || n.TakenOver() {
			t.Errorf("a part was taken over: %+v", n)
		}
		ends, _ = a.judge(RemnantRule{})
		wantTuples(t, "a part was taken over", ends, 0, 2, 4, 5)
		ends, _ = a.judge(RemnantRule{})
		wantTuples(t, "asked again", ends)

		// Our own change of the timeout says nothing of the flow, and hides nothing.
		for _, i := range []int{0, 2, 4, 5} {
			a.kernel.Update(newFlow(i).Orig, purgePort, func(f *flow.Flow) { f.Timeout = 30 })
		}
		time.Sleep(time.Second)
		a.do(func() {
			h := a.internal.Lookup(new(newFlow(2).Orig))
			if s := a.internal.Timeout(h); s != 300 {
				t.Errorf("the timeout of a flow is %d, want that of before the purge", s)
			}
		})
		if n := a.count(false); n.Short != 4 {
			t.Errorf("given a short timeout: %+v", n)
		}

		// The time is over: two have ended, one by traffic that takes it up again.
		a.kernel.Destroy(newFlow(0).Orig, 0)
		a.kernel.Destroy(newFlow(2).Orig, 0)
		a.kernel.Mute(true)
		a.kernel.Destroy(newFlow(4).Orig, 0) // found by the kernel's table only
		a.kernel.Mute(false)
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		ends, used := a.judge(RemnantRule{Outlived: true})
		wantTuples(t, "after its time", ends)
		wantTuples(t, "in use", used, 5)
		wantInternal(t, a)
		if s := a.stats(); s.Purged != 3 {
			t.Errorf("%d purged", s.Purged)
		}
		ended := []flow.Tuple{newFlow(0).Orig, newFlow(2).Orig, newFlow(4).Orig}
		for _, k := range ended {
			if _, there := b.externalTable()[k]; there == mirror {
				t.Errorf("the end of a remnant was told: %v", mirror)
			}
		}
		// An ordinary one ends as ever.
		a.kernel.Destroy(newFlow(5).Orig, 0)
		a.kernel.Destroy(newFlow(1).Orig, 0)
		time.Sleep(time.Second)
		for _, i := range []int{5, 1} {
			if _, there := b.externalTable()[newFlow(i).Orig]; there {
				t.Errorf("the end of flow %d, which was in use, was not told", i)
			}
		}

		// Most were taken over: what the peer does not have is nobody's. But nothing is
		// to end that is not replicated.
		a.mark()
		b.takes(3, 6, 8)
		if n := a.count(false); !n.TakenOver() {
			t.Errorf("most were taken over: %+v", n)
		}
		a.do(func() {
			a.SetFilter(filter.Compile(filter.Rules{Protocols: filter.List[uint8]{Ignore: []uint8{flow.UDP}}}))
		})
		ends, _ = a.judge(RemnantRule{All: true})
		wantTuples(t, "most were taken over", ends, 3, 6, 7, 8, 20)
	})
}

// A node that is primary again keeps what its peer had, and what nobody ever took over.
func TestRemnantsOfAPrimary(t *testing.T) {
	dialects(t, func(t *testing.T, mirror bool, a, b *node) {
		a.opened(8)
		a.mark()
		b.takes(0, 1, 2)
		b.kernel.Destroy(newFlow(2).Orig, 0)
		time.Sleep(time.Second)
		n := a.count(true)
		if n != (Remnants{All: 8, Held: 2, Ended: 1}) || n.TakenOver() {
			t.Errorf("%+v", n)
		}
		ends, _ := a.judge(RemnantRule{Primary: true})
		wantTuples(t, "ended on the peer", ends, 2)
		if n := a.count(false); n != (Remnants{All: 1, Ended: 1, Short: 1}) {
			t.Errorf("left: %+v", n)
		}
		// A bulk update has told of it as if it lived, so its end is told too.
		a.kernel.Destroy(newFlow(2).Orig, 0)
		time.Sleep(time.Second)
		if _, there := b.externalTable()[newFlow(2).Orig]; there {
			t.Error("the end of a zombie was not told")
		}
		a.slices(a.ForgetRemnants)
		if n := a.count(false); n != (Remnants{}) {
			t.Errorf("forgotten: %+v", n)
		}

		// And with a takeover: what the peer does not have ends.
		a.mark()
		b.takes(3, 4, 5)
		if n := a.count(true); !n.TakenOver() {
			t.Errorf("%+v", n)
		}
		b.takes(6) // said late
		ends, _ = a.judge(RemnantRule{Primary: true, All: true})
		wantTuples(t, "not on the peer", ends, 7)
	})
}

// With instant takeover what a peer has is yielded to it, and no remnant any more: it
// counts all the same as taken over, so that what nobody has ends.
func TestRemnantsBesideYielded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.opened(10)
		b.adopt()
		b.kernel.Destroy(newFlow(3).Orig, 0) // as if it had never come to know of it
		time.Sleep(settled)
		b.do(b.Mode().Bulk)
		time.Sleep(settled)
		for range 2 { // told twice
			a.do(func() { a.SetPassive(true) })
			a.mark()
			time.Sleep(settled)
			if n := a.count(false); n != (Remnants{All: 1, Yielded: 9}) || !n.TakenOver() {
				t.Errorf("%+v, taken over: %v", n, n.TakenOver())
			}
		}
		ends, _ := a.judge(RemnantRule{All: true})
		wantTuples(t, "what nobody has", ends, 3)
		// In charge again at once, it still knows that a peer has taken over.
		a.do(func() { a.SetPassive(false) })
		if n := a.count(true); n != (Remnants{All: 1, Short: 1, Yielded: 9}) || !n.TakenOver() {
			t.Errorf("in charge again: %+v", n)
		}
		a.slices(a.ForgetRemnants)
		a.do(func() { a.SetPassive(true) })
		a.mark()
		if n := a.count(false); n.Yielded != 0 {
			t.Errorf("not in charge, once more: %+v", n)
		}
		a.stop()
		b.stop()
	})
}

// A remnant that ends is replaced by the next flow with its tuple, which is none.
func TestRemnantReplaced(t *testing.T) {
	dialects(t, func(t *testing.T, mirror bool, a, b *node) {
		a.opened(4)
		a.mark()
		k := newFlow(2).Orig
		a.kernel.Destroy(k, 0)
		a.kernel.Create(newFlow(2), 0)
		time.Sleep(time.Second)
		if n := a.count(false); n.All != 3 {
			t.Errorf("%+v", n)
		}
		wantInStep(t, a, b)
		a.kernel.Destroy(k, 0)
		time.Sleep(time.Second)
		wantInStep(t, a, b)
	})
}

// slowly makes the dumps of a kernel tell one flow in a while.
func slowly(cfg *Config) {
	dump := cfg.Dump
	cfg.Dump = func(ctx context.Context, fn func(*flow.Event) error) error {
		return dump(ctx, func(ev *flow.Event) error {
			time.Sleep(10 * time.Millisecond)
			return fn(ev)
		})
	}
}

// A node is told that it is not in charge while it reads the kernel's table for the
// first time: what the dump comes to later is a remnant too. What events tell of
// meanwhile is in use.
func TestRemnantsOfTheFirstDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const flows = 300
		k := simnet.NewKernel(1)
		k.Mute(true) // they were there before
		for i := range flows {
			k.Create(newFlow(i), 0)
		}
		k.Mute(false)
		a := newNode(t, "A", addrA, simnet.New(1), k, slowly)
		a.start()
		time.Sleep(time.Second)
		a.mark()
		k.Create(newFlow(flows), 0)
		known, used := 0, 0
		for i := range flows {
			f := newFlow(i).Orig
			before := known
			a.do(func() {
				if a.internal.Lookup(&f) != 0 {
					known++
				}
			})
			if known == before && used < 3 {
				k.Update(f, 0, func(f *flow.Flow) { f.Mark, f.Has = 9, f.Has|flow.HasMark })
				used++
			}
		}
		if known == 0 || used == 0 {
			t.Errorf("%d of the flows are known in the midst of the dump", known)
		}
		time.Sleep(5 * time.Second)
		if n := a.count(false); n.All != flows-used {
			t.Errorf("%d remnants of %d, of which %d were used while the table was read", n.All, flows, used)
		}
		// Those of a later dump are of this node's time as a standby.
		k.Mute(true)
		k.Create(newFlow(flows+1), 0)
		k.Mute(false)
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		if n := a.count(false); n.All != flows-used {
			t.Errorf("%d remnants after another dump, want %d", n.All, flows-used)
		}
		a.stop()
	})
}

package engine

import (
	"errors"
	"testing"
	"time"

	"syncd/internal/filter"
	"syncd/internal/flow"
)

// control returns connection i, with a helper that translates addresses in it.
func control(i int) flow.Flow {
	f := newFlow(8*i + 6) // has the helper
	establish(&f)
	copy(f.Reply.Dst[:], []byte{203, 0, 113, 1})
	f.Status |= flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone
	return f
}

// adjustment returns one that differs for every n.
func adjustment(n int) [2]flow.SeqAdj {
	return [2]flow.SeqAdj{{Pos: uint32(1000 * n), Before: int32(n), After: int32(n + 3)}, {Pos: uint32(2000 * n), Before: int32(-n), After: int32(-n - 3)}}
}

// TestFetchAdjustment: a sequence adjustment that no event tells reaches the peer: soon
// after an event of an adjusted flow, after wantFetch, and otherwise with the next
// round.
func TestFetchAdjustment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		a.stop()
		a.cfg.Fetch = a.kernel.Fetch
		a.start()
		time.Sleep(30 * time.Second)
		k := a.kernel
		want := func(what string, i, n int, within time.Duration) {
			t.Helper()
			time.Sleep(within)
			if got := b.externalTable()[control(i).Orig].SeqAdj; got != adjustment(n) {
				t.Errorf("%s: after %v the peer has %v", what, within, got)
			}
		}
		for i := range 3 {
			k.Create(control(i), 0)
		}

		// By a round: the helper has changed something, and said nothing.
		time.Sleep(fetchInterval / 2)
		k.Adjust(control(0).Orig, adjustment(1))
		want("a round", 0, 1, fetchInterval+fetchPause+100*time.Millisecond)

		// By an update.
		k.Adjust(control(1).Orig, adjustment(2))
		k.Update(control(1).Orig, 0, func(f *flow.Flow) { f.Mark++; f.Has |= flow.HasMark })
		want("an update", 1, 2, 100*time.Millisecond)

		// By what somebody else knows; the packet is changed a moment later, and again.
		key := control(2).Orig
		a.do(func() { a.wantFetch(a.internal.Lookup(&key)) })
		time.Sleep(fetchDelay / 2)
		k.Adjust(control(2).Orig, adjustment(3))
		want("wantFetch", 2, 3, 100*time.Millisecond)
		a.do(func() { a.wantFetch(a.internal.Lookup(&key)) })
		time.Sleep(fetchDelay - time.Millisecond)
		a.do(func() { a.wantFetch(a.internal.Lookup(&key)) }) // the first is not asked yet
		time.Sleep(3 * time.Millisecond)
		k.Adjust(key, adjustment(4))
		want("wantFetch twice", 2, 4, 100*time.Millisecond)

		// What has not changed is not sent again, and what ended is not asked for again.
		before, sent := a.stats(), b.stats().ExternalUpd
		time.Sleep(10 * fetchInterval)
		after := a.stats()
		if n := after.Fetched - before.Fetched; n < 3*9 || n > 3*11 {
			t.Errorf("%d flows asked for in ten rounds of three", n)
		}
		if after.FetchedNews != before.FetchedNews || b.stats().ExternalUpd != sent {
			t.Errorf("%d changes found, %d updates", after.FetchedNews-before.FetchedNews, b.stats().ExternalUpd-sent)
		}
		wantInStep(t, a, b)
		for i := range 3 {
			k.Destroy(control(i).Orig, 0)
		}
		time.Sleep(2 * fetchInterval)
		n := k.Fetched()
		time.Sleep(10 * fetchInterval)
		if k.Fetched() != n {
			t.Errorf("%d flows asked for that are gone", k.Fetched()-n)
		}
		a.do(func() {
			if len(a.fetch.watched) != 0 || a.fetch.next() != 0 {
				t.Errorf("%d flows are watched, the next turn is at %v", len(a.fetch.watched), a.fetch.next())
			}
		})
		a.stop()
		b.stop()
	})
}

// TestFetchFinds: the flows of the first dump are watched too.
func TestFetchFinds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		a.stop()
		a.kernel.Create(control(0), 0)
		a.cfg.Fetch = a.kernel.Fetch
		a.start()
		time.Sleep(30 * time.Second)
		a.kernel.Adjust(control(0).Orig, adjustment(7))
		time.Sleep(2 * fetchInterval)
		if got := b.externalTable()[control(0).Orig].SeqAdj; got != adjustment(7) {
			t.Errorf("the peer has %v", got)
		}
		wantInStep(t, a, b)
		a.stop()
		b.stop()
	})
}

// TestFetchFails: what failed is asked for again.
func TestFetchFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		a.stop()
		a.cfg.Fetch = k.Fetch
		a.start()
		k.Create(control(0), 0)
		time.Sleep(time.Second)
		k.Mute(true)
		k.FailFetches(errors.New("no"), errors.New("no"), errors.New("no"))
		time.Sleep(4 * fetchInterval)
		k.Adjust(control(0).Orig, adjustment(1))
		time.Sleep(2 * fetchInterval)
		if got := a.internalTable()[control(0).Orig].SeqAdj; got != adjustment(1) {
			t.Errorf("known is %v", got)
		}
		if s := a.stats(); s.FetchesFailed != 3 {
			t.Errorf("%d failures", s.FetchesFailed)
		}
		a.stop()
	})
}

// TestFetchedOfAnother: an answer counts for the flow that was asked for only, not for
// a later one with its tuple and even its id, and not for a dead one.
func TestFetchedOfAnother(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(e *Engine, h flow.Handle, answer *flow.Flow)
		ok   bool
	}{
		{"the same", func(*Engine, flow.Handle, *flow.Flow) {}, true},
		{"replaced, same id", func(e *Engine, h flow.Handle, f *flow.Flow) { e.internal.Replace(h, f, e.now) }, false},
		{"other id", func(_ *Engine, _ flow.Handle, f *flow.Flow) { f.ID++ }, false},
		{"dead", func(e *Engine, h flow.Handle, _ *flow.Flow) { e.internal.SetDead(h) }, false},
		{"gone", func(e *Engine, h flow.Handle, _ *flow.Flow) { e.internal.Remove(h) }, false},
		{"other direction", func(_ *Engine, _ flow.Handle, f *flow.Flow) { f.Orig, f.Reply = f.Reply, f.Orig }, false},
		{"without adjustment", func(_ *Engine, _ flow.Handle, f *flow.Flow) { f.Has &^= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := quietEngine(t)
			e.fetch.watched = map[flow.Tuple]struct{}{}
			e.fetch.job, e.fetch.asked = new(fetchJob), make(chan *fetchJob, 1)
			ev := event(flow.EventNew, control(0), 5)
			e.event(&ev, 0)
			h := e.internal.Lookup(&ev.Flow.Orig)
			e.wantFetch(h)
			e.startFetch()
			if len(e.fetch.asked) != 0 {
				t.Fatal("asked at once")
			}
			e.now = e.fetch.next()
			e.startFetch()
			j := <-e.fetch.asked
			if j.n != 1 || j.keys[0] != ev.Flow.Orig {
				t.Fatalf("asked for %d flows", j.n)
			}
			answer := ev.Flow
			e.internal.Load(h, &answer)
			answer.SeqAdj, answer.Status = adjustment(1), answer.Status|flow.StatusSeqAdjust
			answer.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
			without := answer
			without.Has &^= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
			without.SeqAdj = [2]flow.SeqAdj{}
			tt.edit(e, h, &answer)
			if tt.name == "replaced, same id" {
				e.internal.Replace(h, &without, e.now)
			}
			j.found, j.flows[0] = 1, answer
			e.takeFetched(j)
			if got := e.Stats.FetchedNews == 1; got != tt.ok {
				t.Errorf("taken: %v", got)
			}
			if h := e.internal.Lookup(&ev.Flow.Orig); h != 0 {
				var f flow.Flow
				e.internal.Load(h, &f)
				if got := f.SeqAdj == adjustment(1); got != tt.ok {
					t.Errorf("adjustment %v", f.SeqAdj)
				}
			}
			if e.fetch.job != j {
				t.Error("the worker is not free again")
			}
		})
	}
}

// TestFetchBounds: what waits and what is watched is bounded, the wait is in order of
// time, a flow waits once, and the memory of what is done is used again.
func TestFetchBounds(t *testing.T) {
	e := quietEngine(t)
	e.fetch.watched = map[flow.Tuple]struct{}{}
	e.fetch.job, e.fetch.asked = new(fetchJob), make(chan *fetchJob, 1)
	var handles []flow.Handle
	for i := range maxFetches / 4 {
		f := newFlow(i)
		h, err := e.internal.Insert(&f, e.now)
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, h)
	}
	for _, h := range handles {
		e.wantFetch(h)
		e.wantFetch(h)
	}
	if n := len(e.fetch.due); n != len(handles) {
		t.Errorf("%d wait, want %d", n, len(handles))
	}
	asked := 0
	turn := func() {
		e.now = e.now.Add(fetchDelay)
		e.startFetch()
		for len(e.fetch.asked) > 0 {
			j := <-e.fetch.asked
			asked += j.n
			e.takeFetched(j)
			e.startFetch()
		}
	}
	turn()
	turn() // once more: they were wanted twice
	if asked < 2*len(handles) || e.fetch.head != 0 && len(e.fetch.due) == 0 {
		t.Errorf("%d asked for, want %d", asked, 2*len(handles))
	}
	for range 1000 { // one that is wanted all the time
		e.wantFetch(handles[0])
		turn()
	}
	if n := cap(e.fetch.due); n > 4*maxFetches {
		t.Errorf("room for %d waiting flows", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, h := range handles[:flow.BatchSize] {
			e.wantFetch(h)
		}
		turn()
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}

	// The synthetic extreme: all that may be watched, and more.
	for i := range maxWatched + 10 {
		e.watch(flow.Tuple{Family: flow.IPv4, SrcPort: uint16(i), DstPort: uint16(i >> 16)})
	}
	if n := len(e.fetch.watched); n != maxWatched {
		t.Errorf("%d watched", n)
	}
	// A round over all of them takes its time, and then there is a longer pause.
	e.now = e.fetch.again
	e.startFetch()
	if pause := e.fetch.again.Sub(e.now); pause < 25*time.Second || pause > 30*time.Second {
		t.Errorf("the next round is %v after this one", pause)
	}
	for range 1 << 17 {
		e.fetch.due = append(e.fetch.due, wanted{at: e.now.Add(time.Hour)})
	}
	n := len(e.fetch.due)
	e.wantFetch(handles[1])
	if len(e.fetch.due) != n {
		t.Error("more waits than may wait")
	}
}

// TestAdjustable says which flows are asked for, and which are only watched.
func TestAdjustable(t *testing.T) {
	for _, tt := range []struct {
		name          string
		edit          func(f *flow.Flow)
		adjusted, may bool
	}{
		{"plain", func(f *flow.Flow) { *f = newFlow(0) }, false, false},
		{"helper and translation", func(*flow.Flow) {}, false, true},
		{"helper alone", func(f *flow.Flow) { f.Status &^= flow.StatusSrcNAT }, false, false},
		{"adjusted", func(f *flow.Flow) { f.Status |= flow.StatusSeqAdjust }, true, false},
		{"adjusted by the SYN proxy", func(f *flow.Flow) {
			f.Status |= flow.StatusSeqAdjust
			f.Has = f.Has&^flow.HasHelper | flow.HasSynproxy
			f.Synproxy.ISN = 1
		}, false, false},
		{"adjusted by both", func(f *flow.Flow) {
			f.Status |= flow.StatusSeqAdjust
			f.Has |= flow.HasSynproxy
			f.Synproxy.ISN = 1
		}, true, false},
		{"UDP", func(f *flow.Flow) { f.Orig.Proto, f.Reply.Proto = flow.UDP, flow.UDP }, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := quietEngine(t)
			e.fetch.watched = map[flow.Tuple]struct{}{}
			f := control(0)
			tt.edit(&f)
			h, err := e.internal.Insert(&f, e.now)
			if err != nil {
				t.Fatal(err)
			}
			if adjusted, may := e.adjustable(h, &f); adjusted != tt.adjusted || may != tt.may {
				t.Errorf("adjusted %v, may be %v", adjusted, may)
			}
		})
	}
}

// TestFetchedDuringDump: what was fetched while a dump runs is newer than what the dump
// says of it, and what the dump shows to be adjustable is watched from then on.
func TestFetchedDuringDump(t *testing.T) {
	e := quietEngine(t)
	e.fetch.watched = map[flow.Tuple]struct{}{}
	e.fetch.job = new(fetchJob)
	e.kernel.running, e.kernel.epoch = true, 1
	ev := event(flow.EventNew, control(0), 5)
	ev.Flow.Has &^= flow.HasHelper // as if its helper had come later, without an event
	older := control(0)
	older.ID, older.Has = 5, older.Has|flow.HasID|flow.HasReply|flow.HasStatus
	e.kernel.running = false
	e.event(&ev, 0)
	e.kernel.running = true
	h := e.internal.Lookup(&ev.Flow.Orig)
	if len(e.fetch.watched) != 0 {
		t.Fatal("a flow without helper is watched")
	}

	e.ask(ev.Flow.Orig)
	answer := older
	answer.SeqAdj, answer.Status = adjustment(1), answer.Status|flow.StatusSeqAdjust
	answer.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	e.fetched(&answer)
	e.dumped(&older, 0)
	var got flow.Flow
	e.internal.Load(h, &got)
	if got.SeqAdj != adjustment(1) {
		t.Errorf("the dump took the adjustment away: %v", got.SeqAdj)
	}
	if got.Helper != older.Helper {
		t.Errorf("helper %q", got.Helper)
	}
	if _, ok := e.fetch.watched[ev.Flow.Orig]; !ok {
		t.Error("not watched")
	}
	e.dumped(&answer, 0)
	clear(e.fetch.watched)
	e.dumped(&answer, 0) // nothing new
	if _, ok := e.fetch.watched[ev.Flow.Orig]; !ok {
		t.Error("not watched after a dump that changed nothing")
	}
}

// TestFetchByExpectation: a new expectation says that a helper was at work, even where
// expectations are not replicated. What no helper can have changed is not asked for.
func TestFetchByExpectation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		a.stop()
		a.cfg.Fetch, a.cfg.Filter = k.Fetch, filter.Compile(filter.Rules{})
		a.start()
		time.Sleep(time.Second)
		zoned := control(1)
		zoned.Orig.Zone, zoned.Reply.Zone = 9, 9
		plain := withHelper(3, 0) // not translated
		udp := control(2)
		udp.Orig.Proto, udp.Reply.Proto = flow.UDP, flow.UDP
		all := []flow.Flow{control(0), zoned, plain, udp}
		for _, f := range all {
			k.Create(f, 0)
		}
		time.Sleep(100 * time.Millisecond)
		asked := k.Fetched()
		for i := range all {
			k.Expect(expects(&all[i], i), 0)
			k.Adjust(all[i].Orig, adjustment(i+1))
		}
		time.Sleep(100 * time.Millisecond)
		if n := k.Fetched() - asked; n != 2 {
			t.Errorf("%d flows asked for, want 2", n)
		}
		table := a.internalTable()
		for i, f := range all {
			if got := table[f.Orig].SeqAdj == adjustment(i+1); got != (i < 2) {
				t.Errorf("flow %d: adjustment %v", i, table[f.Orig].SeqAdj)
			}
		}
		if len(a.internalExpects()) != 0 {
			t.Error("expectations are replicated: this tests little")
		}
		a.stop()
	})
}

package engine

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"syncd/internal/cache"
	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/simnet"
)

// TestInitialLoad starts on a table that changes while it is read.
func TestInitialLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := simnet.NewKernel(1)
		k.DumpPause = 10 * time.Millisecond
		for i := range 300 {
			k.Create(newFlow(i), 0)
		}
		a := newNode(t, "A", addrA, simnet.New(1), k)
		a.start()
		for i := range 64 {
			time.Sleep(10 * time.Millisecond)
			k.Create(newFlow(1000+i), 0)
			k.Update(newFlow(i).Orig, 0, establish)
			k.Destroy(newFlow(100+i).Orig, 0)
			k.Destroy(newFlow(1000+i/2).Orig, 0)
		}
		if err := <-a.Loaded(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantInternal(t, a)
		if s := a.stats(); s.Dumped == 0 || s.Swept != 0 || s.Resyncs != 1 {
			t.Errorf("dumped %d, swept %d, resyncs %d", s.Dumped, s.Swept, s.Resyncs)
		}
		a.stop()
	})
}

// event makes an event of a flow, which has everything.
func event(kind flow.EventKind, f flow.Flow, id uint32) flow.Event {
	f.ID = id
	f.Status |= flow.StatusConfirmed
	f.Has |= flow.HasID | flow.HasStatus | flow.HasReply | flow.HasTimeout
	return flow.Event{Kind: kind, Flow: f}
}

// TestEventOrder gives events in the orders in which a kernel with several
// processors may send them. "Treat UPDATE before NEW as NEW; never let an UPDATE
// resurrect a destroyed ID."
func TestEventOrder(t *testing.T) {
	opened := newFlow(0)
	running := newFlow(0)
	establish(&running)
	const n, u, d = flow.EventNew, flow.EventUpdate, flow.EventDestroy
	for _, tt := range []struct {
		name   string
		events []flow.Event
		want   *flow.Flow // nil: the flow is not there
		stale  uint64
	}{
		{"in order", []flow.Event{event(n, opened, 1), event(u, running, 1)}, &running, 0},
		{"the whole life", []flow.Event{event(n, opened, 1), event(u, running, 1), event(d, running, 1)}, nil, 0},
		{"UPDATE before NEW", []flow.Event{event(u, running, 1), event(n, opened, 1)}, &running, 0},
		{"UPDATE before NEW, which tells more", []flow.Event{
			event(u, func() flow.Flow { f := running; f.Has, f.Labels = flow.HasLabels, [16]byte{1}; return f }(), 1), event(n, opened, 1)},
			func() *flow.Flow {
				f := opened
				f.Status, f.Labels = running.Status, [16]byte{1}
				return &f
			}(), 0},
		{"NEW again, later", []flow.Event{event(n, opened, 1), event(n, running, 1)}, &running, 0},
		{"UPDATE after DESTROY", []flow.Event{event(n, opened, 1), event(d, running, 1), event(u, running, 1)}, nil, 1},
		{"re-created", []flow.Event{event(n, running, 1), event(d, running, 1), event(n, opened, 2)}, &opened, 0},
		{"re-created with the same id", []flow.Event{event(n, running, 1), event(d, running, 1), event(n, opened, 1)}, &opened, 0},
		{"NEW of the next before DESTROY", []flow.Event{event(n, running, 1), event(n, opened, 2), event(d, running, 1)}, &opened, 1},
		{"UPDATE of the next before its NEW", []flow.Event{event(n, opened, 1), event(d, opened, 1), event(u, running, 2), event(n, opened, 2)}, &running, 0},
		{"UPDATE of the next, its NEW and the DESTROY lost", []flow.Event{event(n, opened, 1), event(u, running, 2)}, &running, 0},
		{"UPDATE of the next, and nothing of the last stays", []flow.Event{
			event(n, func() flow.Flow { f := opened; f.Has |= flow.HasLabels; f.Labels = [16]byte{1}; return f }(), 1), event(u, running, 2)}, &running, 0},
		{"DESTROY of what is unknown", []flow.Event{event(d, opened, 1)}, nil, 0},
		{"DESTROY twice", []flow.Event{event(n, opened, 1), event(d, opened, 1), event(d, opened, 1)}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, k := alone(t)
				for _, ev := range tt.events {
					k.Inject(ev)
				}
				synctest.Wait()
				want := table{}
				if tt.want != nil {
					f := *tt.want
					f.Status |= flow.StatusConfirmed
					want[f.Orig] = canonical(f)
				}
				if diff := differences(a.internalTable(), want); diff != "" {
					t.Error(diff)
				}
				if s := a.stats().EventsStale; s != tt.stale {
					t.Errorf("%d stale events, want %d", s, tt.stale)
				}
				a.stop()
			})
		})
	}
}

// dumpHook makes a dump of its own making: first the flows of early as they were
// when it began, then during, then the end.
func dumpHook(early *[]flow.Flow, during *func()) func(*Config) {
	return func(c *Config) {
		c.Dump = func(_ context.Context, fn func(*flow.Event) error) error {
			for _, f := range *early {
				fn(&flow.Event{Kind: flow.EventDump, Flow: f})
			}
			if *during != nil {
				(*during)()
			}
			return nil
		}
	}
}

// TestEventsAreNewerThanTheDump lets events overtake what a dump has read: its
// batch leaves only at the end of the dump.
func TestEventsAreNewerThanTheDump(t *testing.T) {
	dump := func(f flow.Flow, id uint32) flow.Flow { return event(flow.EventDump, f, id).Flow }
	opened, running, other := newFlow(0), newFlow(0), newFlow(0)
	establish(&running)
	other.Helper, _ = flow.MakeName("ftp")
	other.Has |= flow.HasHelper
	marked := newFlow(0)
	marked.Has, marked.Mark = flow.HasMark, 9 // an update without the protocol state
	both := running
	both.Mark, both.Status = 9, marked.Status
	dying := running
	dying.Status |= flow.StatusDying
	const n, u, d = flow.EventNew, flow.EventUpdate, flow.EventDestroy
	for _, tt := range []struct {
		name   string
		before []flow.Event // before the dump begins
		dumped []flow.Flow
		during []flow.Event // while the dump runs, before its batch is taken
		want   *flow.Flow
	}{
		{"nothing happens", nil, []flow.Flow{dump(running, 1)}, nil, &running},
		{"an update", nil, []flow.Flow{dump(opened, 1)}, []flow.Event{event(u, running, 1)}, &running},
		{"an update that tells little", nil, []flow.Flow{dump(running, 1)}, []flow.Event{event(u, marked, 1)}, &both},
		{"an update that tells little of a known flow", []flow.Event{event(n, opened, 1)}, []flow.Flow{dump(running, 1)}, []flow.Event{event(u, marked, 1)}, &both},
		{"NEW after it was dumped", nil, []flow.Flow{dump(running, 1)}, []flow.Event{event(n, opened, 1)}, &opened},
		{"destroyed", []flow.Event{event(n, running, 1)}, []flow.Flow{dump(running, 1)}, []flow.Event{event(d, running, 1)}, nil},
		{"destroyed, unknown before", nil, []flow.Flow{dump(running, 1)}, []flow.Event{event(d, running, 1)}, nil},
		{"destroyed twice", nil, []flow.Flow{dump(running, 1)},
			[]flow.Event{event(d, running, 1), event(n, opened, 2), event(d, opened, 2)}, nil},
		{"re-created", nil, []flow.Flow{dump(running, 1)}, []flow.Event{event(d, running, 1), event(n, opened, 2)}, &opened},
		{"re-created with the same id", nil, []flow.Flow{dump(other, 1)}, []flow.Event{event(d, other, 1), event(n, opened, 1)}, &opened},
		{"being destroyed", []flow.Event{event(n, running, 1), event(d, running, 1)}, []flow.Flow{dump(dying, 1)}, nil, nil},
		{"re-created with the same id unnoticed", []flow.Event{event(n, opened, 1), event(d, opened, 1)}, []flow.Flow{dump(running, 1)}, nil, &running},
		{"re-created with another id unnoticed", []flow.Event{event(n, other, 1)}, []flow.Flow{dump(running, 2)}, nil, &running},
		{"ended unnoticed", []flow.Event{event(n, running, 1)}, nil, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var early []flow.Flow
				var during func()
				a, k := alone(t, dumpHook(&early, &during))
				for _, ev := range tt.before {
					k.Inject(ev)
				}
				synctest.Wait()
				early = tt.dumped
				during = func() {
					for _, ev := range tt.during {
						k.Inject(ev)
					}
					time.Sleep(time.Second) // the loop has taken them
				}
				done := make(chan error, 1)
				a.do(func() { a.OnKernelSync(func(err error) { done <- err }) })
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				want := table{}
				if tt.want != nil {
					f := *tt.want
					f.Status |= flow.StatusConfirmed
					want[f.Orig] = canonical(f)
				}
				if diff := differences(a.internalTable(), want); diff != "" {
					t.Error(diff)
				}
				a.stop()
			})
		})
	}
}

// TestUpdateOfUnnoticedRecreation: a flow got the id of the last one with its tuple,
// its NEW was lost, and its update came between the dump's reading and its batch. The
// update cannot be told from a late one, so the table is read once more.
func TestUpdateOfUnnoticedRecreation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		opened, running := newFlow(0), newFlow(0)
		establish(&running)
		var early []flow.Flow
		var during func()
		a, k := alone(t, dumpHook(&early, &during))
		k.Inject(event(flow.EventNew, opened, 1))
		k.Inject(event(flow.EventDestroy, opened, 1))
		time.Sleep(time.Minute)
		synctest.Wait() // the dump of the start has read both
		early = []flow.Flow{event(flow.EventDump, opened, 1).Flow}
		during = func() {
			k.Inject(event(flow.EventUpdate, running, 1))
			time.Sleep(time.Second)
			early, during = []flow.Flow{event(flow.EventDump, running, 1).Flow}, nil
		}
		a.do(a.RequestKernelSync)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		running.Status |= flow.StatusConfirmed
		if d := differences(a.internalTable(), table{running.Orig: canonical(running)}); d != "" {
			t.Error(d)
		}
		a.stop()
	})
}

// TestNEWOvertakenByDump: the dump has read the flow, and then its NEW event comes.
func TestNEWOvertakenByDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		running := newFlow(0)
		establish(&running)
		early := []flow.Flow{event(flow.EventDump, running, 1).Flow}
		var during func()
		a, k := alone(t, dumpHook(&early, &during))
		k.Inject(event(flow.EventNew, newFlow(0), 1))
		synctest.Wait()
		running.Status |= flow.StatusConfirmed
		if d := differences(a.internalTable(), table{running.Orig: canonical(running)}); d != "" {
			t.Error(d)
		}
		a.stop()
	})
}

// TestOverrun: what was lost is found, what ended is swept, and the peer follows.
func TestOverrun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		k := a.kernel
		for i := range 200 {
			k.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)
		k.SocketLimit, k.DumpPause = 10, time.Millisecond
		k.Stall(true)
		synctest.Wait()
		for i := range 100 {
			k.Update(newFlow(i).Orig, 0, establish)
			k.Destroy(newFlow(100+i).Orig, 0)
			k.Create(newFlow(1000+i), 0)
		}
		k.Stall(false)
		synctest.Wait()
		if p := a.problems(); p == "" {
			t.Error("after an overrun the node says that all is well")
		}
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)
		s := a.stats()
		if s.Overruns != 1 || s.Resyncs != 2 || s.Swept == 0 || s.Found == 0 {
			t.Errorf("overruns %d, resyncs %d, swept %d, found %d", s.Overruns, s.Resyncs, s.Swept, s.Found)
		}
		if p := a.problems(); p != "" {
			t.Errorf("after the repair: %s", p)
		}
		a.stop()
		b.stop()
	})
}

// TestDumpFails: a dump that fails sweeps nothing and is repeated after a pause that
// grows.
func TestDumpFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		k.Create(newFlow(1), 0)
		synctest.Wait()
		k.Mute(true)
		k.Destroy(newFlow(1).Orig, 0)
		k.Create(newFlow(2), 0)
		k.Mute(false)
		time.Sleep(time.Minute)

		k.FailDumps(errResized, errResized, errResized)
		var got []error
		a.do(func() { a.OnKernelSync(func(err error) { got = append(got, err) }) })
		for i, pause := range []time.Duration{0, time.Second, 2 * time.Second} {
			if i > 0 {
				time.Sleep(pause - time.Millisecond)
				synctest.Wait()
				if d := k.Dumps(); d != 1+i {
					t.Errorf("%d dumps just before %v had passed, want %d", d, pause, 1+i)
				}
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
			if d := k.Dumps(); d != 2+i {
				t.Errorf("%d dumps after %v, want %d", d, pause, 2+i)
			}
			if a.stats().Swept != 0 {
				t.Error("a dump that failed swept")
			}
		}
		if len(got) != 1 || !errors.Is(got[0], errResized) {
			t.Errorf("who waited was told %v", got)
		}
		if p := a.problems(); p == "" {
			t.Error("the node says that all is well")
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		wantInternal(t, a)
		if s := a.stats(); s.ResyncsFailed != 3 || s.Resyncs != 2 || s.Swept != 1 || s.Found != 1 {
			t.Errorf("%d failed, %d done, %d swept, %d found", s.ResyncsFailed, s.Resyncs, s.Swept, s.Found)
		}
		a.stop()
	})
}

func TestLoadedTellsAFailedDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := simnet.NewKernel(1)
		k.FailDumps(errResized)
		a := newNode(t, "A", addrA, simnet.New(1), k)
		a.start()
		if err := <-a.Loaded(); !errors.Is(err, errResized) {
			t.Errorf("first outcome %v", err)
		}
		if err := <-a.Loaded(); err != nil {
			t.Errorf("second outcome %v", err)
		}
		a.stop()
	})
}

// TestKernelSyncRequests: a request while a dump runs is served by the next one.
func TestKernelSyncRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		time.Sleep(time.Minute)
		k.DumpPause = time.Second // 64 of them
		var first, second atomic.Bool
		a.do(func() { a.OnKernelSync(func(error) { first.Store(true) }) })
		time.Sleep(10 * time.Second)
		a.do(func() { a.OnKernelSync(func(error) { second.Store(true) }) })
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if !first.Load() || second.Load() {
			t.Errorf("after one dump: first %v, second %v", first.Load(), second.Load())
		}
		time.Sleep(70 * time.Second)
		synctest.Wait()
		if !second.Load() {
			t.Error("the second was not served")
		}
		a.stop()
	})
}

// TestOrigins: what our own commit and purge do is not replicated again.
func TestOrigins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		k := a.kernel
		k.Create(newFlow(0), 0)
		k.Create(newFlow(1), commitPort)
		k.Create(newFlow(2), 0)
		k.Create(newFlow(3), 4711) // conntrack(8)
		time.Sleep(5 * time.Second)
		want := a.kernelTable()
		wantInternal(t, a)
		delete(want, newFlow(1).Orig)
		if d := differences(b.externalTable(), want); d != "" {
			t.Errorf("after a commit: %s", d)
		}
		k.Destroy(newFlow(2).Orig, purgePort)
		k.Destroy(newFlow(3).Orig, 4711)
		delete(want, newFlow(3).Orig)
		time.Sleep(5 * time.Second)
		wantInternal(t, a)
		if d := differences(b.externalTable(), want); d != "" {
			t.Errorf("after a purge: %s", d)
		}
		k.Update(newFlow(1).Orig, 0, establish) // traffic has come
		time.Sleep(5 * time.Second)
		if _, ok := b.externalTable()[newFlow(1).Orig]; !ok {
			t.Error("a committed flow that lives on was not replicated")
		}
		if own := a.stats().EventsOwn; own != 2 {
			t.Errorf("%d events of our own, want 2", own)
		}
		a.do(func() { a.SetOrigin(purgePort, OriginOther) })
		k.Destroy(newFlow(0).Orig, purgePort)
		time.Sleep(5 * time.Second)
		if _, ok := b.externalTable()[newFlow(0).Orig]; ok {
			t.Error("a forgotten port still counts as ours")
		}
		a.stop()
		b.stop()
	})
}

// TestFilterChange: a new filter holds for new flows, and what is in the cache stays
// until it ends, also when the table is read again.
func TestFilterChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		k := a.kernel
		for i := range 8 {
			k.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		all := a.kernelTable()
		a.do(func() {
			a.SetFilter(filter.Compile(filter.Rules{Protocols: filter.List[uint8]{Ignore: []uint8{flow.TCP}}}))
		})
		k.Create(newFlow(8), 0)  // TCP
		k.Create(newFlow(9), 0)  // UDP
		k.Create(newFlow(16), 0) // TCP, ends at once
		k.Destroy(newFlow(16).Orig, 0)
		all[newFlow(9).Orig] = canonical(k.Flows()[newFlow(9).Orig])
		for _, resync := range []bool{false, true} {
			if resync {
				a.do(a.RequestKernelSync)
			}
			time.Sleep(5 * time.Second)
			if d := differences(a.internalTable(), all); d != "" {
				t.Errorf("internal cache, resync %v: %s", resync, d)
			}
			if d := differences(b.externalTable(), all); d != "" {
				t.Errorf("external cache, resync %v: %s", resync, d)
			}
		}
		k.Destroy(newFlow(0).Orig, 0)
		time.Sleep(5 * time.Second)
		delete(all, newFlow(0).Orig)
		if d := differences(b.externalTable(), all); d != "" {
			t.Errorf("the end of a flow that no longer matches: %s", d)
		}
		if s := a.stats(); s.EventsFiltered == 0 {
			t.Error("nothing counted as filtered")
		}
		a.stop()
		b.stop()
	})
}

// TestFit checks what of a flow enters the cache.
func TestFit(t *testing.T) {
	full := newFlow(0)
	establish(&full)
	full.Mark, full.Labels, full.Secctx = 0xabcd, [16]byte{1}, [64]byte{'x'}
	full.Has |= flow.HasMark | flow.HasLabels | flow.HasSecctx | flow.HasSynproxy
	full.Synproxy = flow.Synproxy{ISN: 1}
	with := func(change func(*flow.Flow)) flow.Flow {
		f := full
		change(&f)
		return f
	}
	for _, tt := range []struct {
		name    string
		f       flow.Flow
		labels  bool
		mask    uint32
		ok      bool
		has     flow.Attrs // that must be there
		hasNot  flow.Attrs
		mark    uint32
		unfit   uint64
		ignored uint64
		mirror  bool
		scale   [2]uint8
	}{
		{name: "everything", f: full, labels: true, mask: ^uint32(0), ok: true, has: full.Has &^ flow.HasSecctx, hasNot: flow.HasSecctx, mark: 0xabcd},
		{name: "no labels", f: full, mask: ^uint32(0), ok: true, hasNot: flow.HasLabels, mark: 0xabcd},
		{name: "some of the mark", f: full, mask: 0xff, ok: true, has: flow.HasMark, mark: 0xcd},
		{name: "nothing of the mark", f: full, ok: true},
		{name: "empty synproxy", f: with(func(f *flow.Flow) { f.Synproxy = flow.Synproxy{} }), ok: true, hasNot: flow.HasSynproxy},
		{name: "scale offered", f: with(func(f *flow.Flow) {
			f.TCPState, f.TCPFlags, f.TCPWScale = flow.TCPSynSent, [2]uint8{3, 0}, [2]uint8{7, 0}
		}),
			ok: true, has: flow.HasTCPFlags | flow.HasTCPWScale, scale: [2]uint8{7, 0}},
		{name: "scale not agreed", f: with(func(f *flow.Flow) { f.TCPFlags[1] = 0 }), ok: true, has: flow.HasTCPFlags | flow.HasTCPWScale},
		{name: "no scale", f: with(func(f *flow.Flow) { f.TCPFlags[0], f.TCPWScale = 0, [2]uint8{} }), ok: true, has: flow.HasTCPFlags, hasNot: flow.HasTCPWScale},
		{name: "zone of one direction", f: with(func(f *flow.Flow) { f.Reply.Zone = 3 }), unfit: 1},
		{name: "zone of one direction, syncd dialect", f: with(func(f *flow.Flow) { f.Reply.Zone = 3 }), mirror: true, ok: true},
		{name: "flags of traffic", f: with(func(f *flow.Flow) { f.TCPFlags = [2]uint8{0x3f, 0xf9} }), ok: true, has: flow.HasTCPFlags | flow.HasTCPWScale},
		{name: "filtered", f: with(func(f *flow.Flow) { f.Orig.Proto = flow.UDP }), ignored: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := quietEngine(t, func(c *Config) {
				c.Labels, c.MarkMask, c.Mirror = tt.labels, tt.mask, tt.mirror
				c.Filter = filter.Compile(filter.Rules{Protocols: filter.List[uint8]{Accept: []uint8{flow.TCP}}})
			})
			f := tt.f
			if ok := e.fit(&f); ok != tt.ok {
				t.Fatalf("fit: %v", ok)
			}
			if e.Stats.EventsUnfit != tt.unfit || e.Stats.EventsFiltered != tt.ignored {
				t.Errorf("unfit %d, filtered %d", e.Stats.EventsUnfit, e.Stats.EventsFiltered)
			}
			if (strings.HasPrefix(tt.name, "scale") || tt.name == "no scale") && f.TCPWScale != tt.scale {
				t.Errorf("scale %v, want %v", f.TCPWScale, tt.scale)
			}
			if tt.ok && (f.Has&tt.has != tt.has || f.Has&tt.hasNot != 0 || f.Mark != tt.mark) {
				t.Errorf("has %#x, mark %#x", f.Has, f.Mark)
			}
			if tt.ok && (f.TCPFlags[0]|f.TCPFlags[1])&^7 != 0 {
				t.Errorf("flags %#x", f.TCPFlags)
			}
		})
	}
}

// TestNotReplicated: zones of one direction, and parts that are switched off, do not
// reach the peer.
func TestNotReplicated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t, func(c *Config) { c.Labels, c.MarkMask = false, 0x0f })
		k := a.kernel
		split := newFlow(8)
		split.Reply.Zone = 9
		k.Create(split, 0)
		f := newFlow(0)
		f.Mark, f.Labels = 0xff, [16]byte{7}
		f.Synproxy = flow.Synproxy{ISN: 1, ITS: 2, TSOff: 3}
		f.Has |= flow.HasMark | flow.HasLabels | flow.HasSynproxy
		k.Create(f, 0)
		time.Sleep(5 * time.Second)
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)
		got := b.externalTable()
		if g := got[f.Orig]; len(got) != 1 || g.Mark != 0x0f || g.Labels != [16]byte{} || g.Synproxy != f.Synproxy {
			t.Errorf("%d flows, mark %#x, labels %x, synproxy %v", len(got), g.Mark, g.Labels, g.Synproxy)
		}
		if s := a.stats(); s.EventsUnfit == 0 {
			t.Error("nothing counted as unfit")
		}
		a.do(func() { a.SetReplicated(true, 0xff) })
		k.Update(f.Orig, 0, func(f *flow.Flow) { f.Labels[1] = 1; f.Mark = 0xfe })
		time.Sleep(5 * time.Second)
		if g := b.externalTable()[f.Orig]; g.Mark != 0xfe || g.Labels != [16]byte{7, 1} {
			t.Errorf("after a reload: mark %#x, labels %x", g.Mark, g.Labels)
		}
		a.stop()
		b.stop()
	})
}

// TestSilentAttributes: the sequence adjustment of a NAT helper is in no event; a
// dump brings it.
func TestSilentAttributes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		k := a.kernel
		k.Create(newFlow(5), 0)
		k.Update(newFlow(5).Orig, 0, func(f *flow.Flow) {
			establish(f)
			f.SeqAdj = [2]flow.SeqAdj{{Pos: 1, After: 5}, {Pos: 2, After: -5}}
			f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		})
		time.Sleep(5 * time.Second)
		if b.externalTable()[newFlow(5).Orig].SeqAdj != ([2]flow.SeqAdj{}) {
			t.Error("the kernel told of a sequence adjustment")
		}
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)
		a.stop()
		b.stop()
	})
}

// TestOffloaded: a dump shows neither timeout nor protocol state of a flow that a
// flowtable forwards. What events have told of it stays, here and at the peer, and
// one of which events told nothing is replicated as far as it is known.
func TestOffloaded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		k := a.kernel
		offload := func(f *flow.Flow) {
			f.Status |= flow.StatusOffload
			f.Has &^= flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
			f.Timeout, f.TCPState, f.TCPFlags, f.TCPWScale = 0, 0, [2]uint8{}, [2]uint8{}
		}
		known, unknown := newFlow(0), newFlow(8)
		k.Create(known, 0)
		k.Update(known.Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 432000 })
		k.Mute(true)
		k.Update(known.Orig, 0, offload)
		establish(&unknown)
		offload(&unknown)
		k.Create(unknown, 0)
		k.Update(unknown.Orig, 0, offload) // a new entry of the simulation has a timeout
		k.Mute(false)
		time.Sleep(2 * time.Second)
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)

		for name, of := range map[string]func() *cache.Cache{
			"here": a.Internal, "at the peer": func() *cache.Cache { return b.replica.of(onlyPeer).cache },
		} {
			d := a
			if name != "here" {
				d = b
			}
			d.do(func() {
				var f flow.Flow
				c := of()
				c.Load(c.Lookup(&known.Orig), &f)
				if f.TCPState != flow.TCPEstablished || f.TCPWScale != [2]uint8{7, 8} || f.Timeout < 431900 {
					t.Errorf("%s: state %d, scales %d, timeout %d", name, f.TCPState, f.TCPWScale, f.Timeout)
				}
				c.Load(c.Lookup(&unknown.Orig), &f)
				if f.Status&flow.StatusOffload == 0 || f.Has&(flow.HasTCP|flow.HasTCPWScale|flow.HasTimeout) != 0 {
					t.Errorf("%s: status %#x, has %#x", name, f.Status, f.Has)
				}
			})
		}

		// It comes back to the slow path: events tell everything again.
		k.Update(unknown.Orig, 0, func(f *flow.Flow) {
			f.Status &^= flow.StatusOffload
			f.Has |= flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
			establish(f)
			f.TCPFlags, f.TCPWScale = [2]uint8{1, 1}, [2]uint8{7, 8}
			f.TCPState, f.Timeout = flow.TCPFinWait, 120
		})
		time.Sleep(time.Second)
		if f := b.externalTable()[unknown.Orig]; f.TCPState != flow.TCPFinWait || f.TCPWScale != [2]uint8{7, 8} || f.Status&flow.StatusOffload != 0 {
			t.Errorf("back: %+v", f)
		}
		a.stop()
		b.stop()
	})
}

func TestSourceFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		broken := errors.New("socket broken")
		k := simnet.NewKernel(1)
		a := newNode(t, "A", addrA, simnet.New(1), k)
		a.cfg.Events = sourceFunc(func(context.Context) error {
			time.Sleep(time.Minute)
			return broken
		})
		a.start()
		if err := <-a.done; !errors.Is(err, broken) {
			t.Errorf("Run ended with %v", err)
		}
		if err := a.Do(t.Context(), func() {}); !errors.Is(err, ErrStopped) {
			t.Errorf("Do after that: %v", err)
		}
	})
}

type sourceFunc func(context.Context) error

func (f sourceFunc) Run(ctx context.Context, _ <-chan *flow.Batch, _ chan<- *flow.Batch) error {
	return f(ctx)
}

func TestLinkReaderFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, _ := alone(t)
		a.port.Close()
		if err := <-a.done; err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// TestStopDuringDump ends an engine whose dump worker waits.
func TestStopDuringDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := simnet.NewKernel(1)
		k.DumpPause = time.Hour
		a := newNode(t, "A", addrA, simnet.New(1), k)
		a.start()
		time.Sleep(time.Minute)
		start := time.Now()
		a.stop()
		if d := time.Since(start); d != 0 {
			t.Errorf("stopping took %v", d)
		}
	})
}

// TestClockBeforeItsZero: a time of zero stands for "at once", whatever the clock
// says. In a bubble it stands before the start of the process.
func TestClockBeforeItsZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if monotime.Now() >= 0 {
			t.Skip("the clock of a bubble is not negative here")
		}
		a, _ := alone(t)
		if a.stats().Resyncs != 1 {
			t.Error("the kernel's table was not read at the start")
		}
		a.stop()
	})
}

// TestFloodOfEvents: one turn of the loop takes messages and the end of a dump also
// while more events wait than it takes.
func TestFloodOfEvents(t *testing.T) {
	e := quietEngine(t)
	const flood = 3 * takeAtMost
	rd := &readers{events: make(chan *flow.Batch, flood), freeEvents: make(chan *flow.Batch, flood), inbox: make(chan *inbox, 1)}
	for range flood {
		rd.events <- new(flow.Batch)
	}
	in := &inbox{home: make(chan *inbox, 1)}
	rd.inbox <- in
	e.kernel.batches, e.kernel.ended = make(chan *flow.Batch), make(chan error, 1)
	e.kernel.cancel = func() {}
	e.kernel.ended <- nil
	e.drain(rd, nil)
	if len(rd.events) == 0 {
		t.Error("one turn took the whole flood")
	}
	if len(in.home) != 1 || !e.kernel.sweeping {
		t.Errorf("messages taken: %v, end of the dump taken: %v", len(in.home) == 1, e.kernel.sweeping)
	}
}

// TestPause: nobody listens for a while, in which the table changes in every way.
// What was queued before, and is read late, does not count for more than the table.
func TestPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		for i := range 300 {
			k.Create(newFlow(i), 0)
		}
		synctest.Wait()
		mark := func(m uint32) func(*flow.Flow) { return func(f *flow.Flow) { f.Mark = m } }
		k.Stall(true)
		for i := range 300 { // told before the pause, read after it
			k.Update(newFlow(i).Orig, 0, mark(1))
		}
		a.do(a.PauseEvents)
		k.Pause()
		for i := range 100 {
			k.Update(newFlow(i).Orig, 0, mark(2))
			k.Destroy(newFlow(100+i).Orig, 0)
			if i%2 == 0 {
				k.Create(newFlow(100+i), 0)
			}
			k.Create(newFlow(1000+i), 0)
		}
		done := make(chan error, 1)
		a.do(func() { a.OnKernelSync(func(err error) { done <- err }) })
		time.Sleep(time.Minute)
		problem := ""
		a.do(func() { problem = strings.Join(a.Problems(), "; ") })
		if want := "a commit runs, during which changes of the kernel's table are not followed"; problem != want {
			t.Errorf("in a pause the problems are %q, want %q", problem, want)
		}
		if n := k.Dumps(); n != 1 || len(done) > 0 {
			t.Errorf("%d dumps, one of them in the pause", n)
		}
		k.Resume()
		for i := range 50 { // as soon as events come again
			k.Update(newFlow(200+i).Orig, 0, mark(3))
			k.Destroy(newFlow(1000+i).Orig, 0)
		}
		k.Stall(false)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantInternal(t, a)
		a.do(func() {
			if p := a.Problems(); len(p) > 0 {
				t.Errorf("after a pause there are problems: %v", p)
			}
		})
		if s := a.stats(); s.Overruns != 0 || s.Resyncs != 2 {
			t.Errorf("%d overruns, %d resyncs", s.Overruns, s.Resyncs)
		}
		a.stop()
	})
}

// TestPauseDuringADump: the dump that runs when a pause begins is followed by another
// one after it.
func TestPauseDuringADump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		for i := range 300 {
			k.Create(newFlow(i), 0)
		}
		synctest.Wait()
		k.DumpPause = 10 * time.Millisecond
		a.do(a.RequestKernelSync)
		time.Sleep(time.Second + 320*time.Millisecond) // half of the table is read
		a.do(a.PauseEvents)
		k.Pause()
		for i := range 150 {
			k.Destroy(newFlow(i).Orig, 0)
			k.Create(newFlow(1000+i), 0)
		}
		time.Sleep(time.Minute)
		k.Resume()
		time.Sleep(time.Minute)
		wantInternal(t, a)
		a.stop()
	})
}

package engine

import (
	"context"
	"time"

	"go.uber.org/zap"

	"syncd/internal/cache"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// kernelSync is the resynchronisation of the internal cache with the kernel's
// table: dump, mark, sweep, while events go on.
type kernelSync struct {
	wanted  bool
	running bool          // from the start of the dump to the end of the sweep
	first   bool          // the first one has been done
	paused  bool          // nobody listens to events; until a batch with Resumed none begins
	missed  bool          // the next one follows a pause
	quiet   bool          // this one follows a pause: it finds what our commit has made meanwhile
	epoch   uint8         // mark of entries seen or touched since the dump began
	again   monotime.Time // when the next may start, after a failure or another; 0 at once
	wait    time.Duration // the pause before the next try

	// graves are the tuples of flows destroyed since the dump began and not seen
	// since: the dump may still tell of them. told are the attributes that events
	// have told of an entry since: what the dump says of these may be older, and of
	// the others it is the latest. Both are empty when no dump runs.
	graves map[flow.Tuple]struct{}
	told   map[flow.Handle]flow.Attrs

	sweeping bool
	pos      flow.Handle
	parked   uint64 // entries found by the last dump that are left of an earlier instant takeover

	batches chan *flow.Batch // from the dump worker
	free    chan *flow.Batch
	ended   chan error
	cancel  context.CancelFunc
	dumping bool // the worker runs

	waiters []func(error) // told when the next resynchronisation is complete
	served  []func(error) // told when this one is
}

const (
	dumpPause  = time.Second      // between two resynchronisations
	dumpRetry  = 30 * time.Second // longest pause after failures
	maxGraves  = 1 << 20          // destroyed flows remembered during a dump; more and it is repeated
	sweepSlots = 4096             // slots visited in one turn of the loop
)

// Started reports whether the first dump is complete: before, the internal cache is
// without what the kernel has. For functions run by Do.
func (e *Engine) Started() bool { return e.kernel.first }

// RequestKernelSync asks for a resynchronisation with the kernel's table. One
// that is under way is followed by another. Call it by Do once Run has started.
func (e *Engine) RequestKernelSync() { e.kernel.wanted = true }

// OnKernelSync asks for a resynchronisation with the kernel's table and calls fn
// on the loop when one that began after this call is complete, with nil, or has
// failed. fn must not block.
func (e *Engine) OnKernelSync(fn func(error)) {
	e.kernel.wanted = true
	e.kernel.waiters = append(e.kernel.waiters, fn)
}

// PauseEvents says that events are about to stay away, until the event source passes
// a batch with Resumed, and that this is wanted. Until then this node is not in step;
// after it the table is read again.
func (e *Engine) PauseEvents() { e.kernel.paused = true }

// due is when startDump has something to do that waits for the time alone.
func (k *kernelSync) due() monotime.Time {
	if k.wanted && !k.running && !k.paused {
		return k.again
	}
	return 0
}

// forget empties what is remembered while a dump runs. Its memory, which may be
// much, is given back.
func (k *kernelSync) forget() {
	k.graves, k.told = map[flow.Tuple]struct{}{}, map[flow.Handle]flow.Attrs{}
}

// startDump starts the dump worker when a resynchronisation is due.
func (e *Engine) startDump(ctx context.Context) {
	k := &e.kernel
	if e.full && hasRoom(e.internal) {
		k.wanted = true // find what was refused
	}
	if !k.wanted || k.running || k.paused || k.again != 0 && e.now < k.again || e.park != nil && e.park.walk.on {
		return
	}
	if e.park != nil {
		e.park.orphaned, e.park.dumping = 0, e.park.orphans
	}
	k.wanted, k.running, k.dumping = false, true, true
	k.quiet, k.missed = k.missed, false
	k.parked = 0
	k.epoch++
	e.full = false
	ctx, k.cancel = context.WithCancel(ctx)
	k.served, k.waiters = k.waiters, nil
	dump, expects, free, full, ended := e.cfg.Dump, e.cfg.DumpExpects, k.free, k.batches, k.ended
	go func() {
		var b *flow.Batch
		take := func() error {
			if b != nil {
				return nil
			}
			select {
			case b = <-free:
				b.N, b.NExpect = 0, 0
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := dump(ctx, func(ev *flow.Event) error {
			if err := take(); err != nil {
				return err
			}
			b.Events[b.N] = *ev
			if b.N++; b.N == len(b.Events) {
				full <- b // has room for every batch
				b = nil
			}
			return nil
		})
		if err == nil && expects != nil { // after all masters
			err = expects(ctx, func(x *flow.Expect) error {
				if err := take(); err != nil {
					return err
				}
				b.Expects[b.NExpect] = *x
				b.NExpect++
				b.Events[b.N] = flow.Event{Kind: flow.EventDump, Expect: uint8(b.NExpect)}
				if b.N++; b.N == len(b.Events) || b.NExpect == len(b.Expects) {
					full <- b
					b = nil
				}
				return nil
			})
		}
		if b != nil {
			full <- b
		}
		ended <- err
	}()
}

// stop ends the dump worker.
func (k *kernelSync) stop() {
	if k.dumping {
		k.cancel()
		<-k.ended
		k.dumping = false
	}
}

// takeEvents applies a batch of kernel events to the internal cache.
func (e *Engine) takeEvents(b *flow.Batch) {
	for i := range b.N {
		e.internal.Announce(&b.Events[i].Flow.Orig) // of an expectation it is zero: no entry has that
	}
	near := e.internal.Warm()
	if e.warmer != nil {
		e.warmer.Warm(near)
	}
	for i := range b.N {
		ev := &b.Events[i]
		if ev.Expect != 0 {
			e.expectEvent(ev, &b.Expects[ev.Expect-1])
			continue
		}
		e.event(ev, near[i])
	}
	if b.Overrun {
		e.Stats.Overruns++
		if e.Stats.Overruns&(e.Stats.Overruns-1) == 0 { // each power of two: the pace of a bounded log
			e.log.Warn("the kernel dropped events; resynchronising with its table", zap.Uint64("overruns", e.Stats.Overruns))
		}
		e.kernel.wanted = true
	}
	if b.Resumed {
		e.kernel.paused, e.kernel.missed, e.kernel.wanted = false, true, true
		e.kernel.again = 0 // long enough ago
	}
}

// event applies one kernel event, which is about the entry near if that has its key.
func (e *Engine) event(ev *flow.Event, near flow.Handle) {
	f := &ev.Flow
	origin := e.origin(ev.PortID)
	if origin == OriginPark {
		e.parkEvent(ev)
		return
	}
	own := OriginOther // also where own changes are replicated
	if ev.PortID != 0 {
		own = e.origins[ev.PortID]
	}
	h := e.internal.LookupNear(&f.Orig, near)
	if e.park != nil && h != 0 && ev.PortID == 0 {
		e.internal.SetFlags(h, 0, flagYields)
	}
	if ev.Kind == flow.EventDestroy {
		e.Stats.EventsDestroy++
		e.destroy(h, ev, origin)
		return
	}
	if ev.Kind == flow.EventNew {
		e.Stats.EventsNew++
	} else {
		e.Stats.EventsUpdate++
	}
	if !e.fit(f) {
		return
	}
	if e.parks() && f.Parked() {
		f.Has &^= flow.HasTimeout // the packet has not set it yet
	}
	if h != 0 && ev.Kind == flow.EventUpdate && e.gone(h) && e.internal.ID(h) == f.ID {
		e.Stats.EventsStale++ // built before the destruction, by another processor
		if e.kernel.running {
			// Or it is of a flow that got the same id again, and its NEW was lost. The
			// dump brings it back, but maybe as it was before this event.
			e.kernel.wanted = true
		}
		return
	}
	if e.kernel.running {
		delete(e.kernel.graves, f.Orig)
	}
	replace, whole := false, f
	if e.park != nil && (h == 0 || e.gone(h)) {
		whole = e.whole(ev)
		defer e.unpark(&f.Orig)
	}
	switch {
	case h == 0:
		if h = e.insert(whole); h == 0 {
			return
		}
	case e.gone(h), !e.same(h, f):
		e.replaceFlow(h, whole)
		replace = true
	case own == OriginPurge:
		e.touch(h, 0) // a timeout that says nothing of the flow
		return
	default:
		if own == OriginOther {
			e.setStanding(h, 0, remnantStanding) // traffic passes here
		}
		e.merge(h, ev, origin)
		return
	}
	told := toldAll
	if ev.Kind == flow.EventUpdate {
		e.internal.SetFlags(h, flagNewDue, 0)
		told = f.Has
	}
	if whole != f {
		e.internal.Merge(h, f, e.now)
	}
	delete(e.kernel.told, h) // what was said of an earlier flow
	e.touch(h, told)
	e.follow(h, f)
	if origin == OriginOther {
		e.mode.Enqueue(h, replace)
	}
}

// origin says who made the change of an event by this netlink port, as far as it
// matters. Nearly always that is nobody: small enough to cost nothing then.
func (e *Engine) origin(port uint32) Origin {
	if port == 0 {
		return OriginOther
	}
	return e.originOf(port)
}

func (e *Engine) originOf(port uint32) Origin {
	o := e.origins[port]
	if o != OriginOther {
		e.Stats.EventsOwn++
		if e.cfg.Mirror && o != OriginPark {
			return OriginOther
		}
	}
	return o
}

// toldAll stands in kernelSync.told for the whole flow: it began after the dump, and
// what the dump says may be of an earlier one with the same tuple and even the same
// id.
const toldAll = ^flow.Attrs(0)

// merge applies an event about the flow of an entry that is alive.
func (e *Engine) merge(h flow.Handle, ev *flow.Event, origin Origin) {
	f := &ev.Flow
	told := f.Has
	if ev.Kind == flow.EventNew && e.internal.Flags(h)&flagNewDue != 0 {
		// Overtaken by what added the entry, which was said later. Another NEW may
		// come when a reliable listener beside us has missed the first one: it has the
		// state of its own time.
		f.Has &^= e.internal.Has(h)
		e.internal.SetFlags(h, 0, flagNewDue)
	}
	changed := e.internal.Merge(h, f, e.now)
	e.touch(h, told)
	e.follow(h, f)
	if !changed {
		return
	}
	e.internal.SetFlags(h, flagUpdated, 0)
	if origin == OriginOther {
		e.mode.Enqueue(h, false)
	}
}

// touch notes that an event told these attributes of an entry.
func (e *Engine) touch(h flow.Handle, told flow.Attrs) {
	e.internal.SetMark(h, e.kernel.epoch)
	if e.kernel.running {
		e.kernel.told[h] |= told
	}
}

// destroy applies the end of a flow, whose entry is h if there is one.
func (e *Engine) destroy(h flow.Handle, ev *flow.Event, origin Origin) {
	f := &ev.Flow
	if e.kernel.running {
		e.bury(f.Orig)
	}
	if h != 0 && suspect(ev) && !e.gone(h) && e.same(h, f) && e.hold(h, f) {
		return
	}
	if e.park != nil && origin != OriginPark && (h == 0 || e.gone(h) || e.same(h, f)) {
		e.parkEnded(f, h != 0 && !e.gone(h))
	}
	switch {
	case h == 0 && !e.kernel.first && origin == OriginOther && e.fit(f):
		// The first dump has not come to it, but a peer may hold it since an earlier
		// life of this process.
		if h = e.insert(f); h != 0 {
			e.internal.SetDead(h)
			e.mode.Enqueue(h, false)
		}
	case h == 0 || e.gone(h):
	case !e.same(h, f):
		e.Stats.EventsStale++ // of an earlier flow with this tuple
	case origin == OriginPurge && (e.standby || e.standing(h)&standRemnant == 0):
		e.notePurged(h)
		e.mode.Forget(h)
		e.internal.Remove(h)
	default:
		e.end(h)
	}
}

// same reports whether f, told by the kernel, is the flow of entry h. Of an entry that
// was adopted the id is not known until the kernel tells it.
func (e *Engine) same(h flow.Handle, f *flow.Flow) bool {
	return e.internal.ID(h) == f.ID || e.internal.Has(h)&flow.HasID == 0
}

// bury remembers while a dump runs that what has this key has ended.
func (e *Engine) bury(key flow.Tuple) {
	if len(e.kernel.graves) < maxGraves {
		e.kernel.graves[key] = struct{}{}
	} else {
		e.kernel.wanted = true
	}
}

// fit brings a flow of the kernel into the form in which it is cached, and
// reports whether it is to be replicated at all.
func (e *Engine) fit(f *flow.Flow) bool {
	if f.Orig.Zone != f.Reply.Zone && e.dialect() != wire.Syncd {
		e.Stats.EventsUnfit++
		return false
	}
	if !e.filter.Match(f) {
		e.Stats.EventsFiltered++
		return false
	}
	if f.Has&flow.HasHelper != 0 && f.Orig.Zone != 0 {
		e.noteHelper(f.Orig.Zone)
	}
	if f.Synproxy == (flow.Synproxy{}) {
		f.Has &^= flow.HasSynproxy // every entry made through ctnetlink has an empty one
	}
	if !e.cfg.Labels {
		f.Has &^= flow.HasLabels
	}
	if f.Has&flow.HasTCPFlags != 0 {
		// The others tell of traffic, of which the peer has not seen any, and change all
		// the time.
		f.TCPFlags[0] &= flow.TCPFlagsReplicated
		f.TCPFlags[1] &= flow.TCPFlagsReplicated
		const scales = flow.TCPFlagWindowScale
		switch offered, answered := f.TCPFlags[0]&scales != 0, f.TCPFlags[1]&scales != 0; {
		case offered && (answered || f.TCPState == flow.TCPSynSent):
		case offered:
			f.TCPWScale = [2]uint8{} // in the place of what was offered: the ends did not agree on scaling
		default:
			f.Has &^= flow.HasTCPWScale // zeros that say nothing
		}
	}
	f.Has &^= flow.HasSecctx // cannot be restored
	f.Mark &= e.cfg.MarkMask
	return true
}

// insert adds a flow to the internal cache, at the cost of the oldest deletion
// that waits to be acknowledged if there is no other room.
func (e *Engine) insert(f *flow.Flow) flow.Handle {
	h, err := e.internal.Insert(f, e.now)
	if err != nil && e.evict() {
		h, err = e.internal.Insert(f, e.now)
	}
	return e.inserted(h, err)
}

// inserted does what is due after an entry was added, or not for want of room. It
// returns h, or 0.
func (e *Engine) inserted(h flow.Handle, err error) flow.Handle {
	if err != nil {
		e.Stats.EventsRefused++
		if !e.full {
			e.full = true
			e.log.Error("the internal cache is full: new flows are not replicated", zap.Int("limit", e.internal.Limit()))
		}
		return 0
	}
	e.internal.SetMark(h, e.kernel.epoch)
	return h
}

// evict gives up a deletion that waits to be acknowledged, and reports whether there
// was one. Of a peer that is there nothing is given up: it acknowledges in a moment,
// and a flow that is refused until then is found in the kernel's table, while nobody
// would find a deletion again.
func (e *Engine) evict() bool {
	if e.peer.heard != 0 && e.now.Sub(e.peer.heard) < forgetSender {
		return false
	}
	h := e.mode.Evict()
	if h == 0 && e.internal.DeadLen() > 0 {
		// The mode looks at a few of its oldest flows only, and those may be alive: what
		// changed last before the peer was lost waits at the head for as long as it lives.
		e.evictAt = e.internal.Walk(e.evictAt, sweepSlots, func(d flow.Handle) bool {
			if e.internal.Dead(d) {
				h = d
			}
			return h == 0
		})
		if h != 0 {
			e.mode.Forget(h)
		}
	}
	if h == 0 {
		return false
	}
	e.internal.Remove(h)
	e.Stats.Evicted++
	return true
}

// hasRoom reports whether a cache that was full has room again, with some to
// spare.
func hasRoom(c *cache.Cache) bool {
	return c.Len()+c.DeadLen() < c.Limit()-c.Limit()/10
}

// takeDump applies a part of a dump.
func (e *Engine) takeDump(b *flow.Batch) {
	e.Stats.Dumped += uint64(b.N)
	for i := range b.N {
		e.internal.Announce(&b.Events[i].Flow.Orig) // of an expectation it is zero: no entry has that
	}
	near := e.internal.Warm()
	for i := range b.N {
		if k := b.Events[i].Expect; k != 0 {
			e.expectDumped(&b.Expects[k-1])
			continue
		}
		e.dumped(&b.Events[i].Flow, near[i])
	}
}

// dumped applies one flow that the dump found, which may be that of entry near.
func (e *Engine) dumped(f *flow.Flow, near flow.Handle) {
	k := &e.kernel
	if _, ok := k.graves[f.Orig]; ok {
		return // if there is another one with this tuple by now, an event will say so
	}
	if f.Status&flow.StatusDying != 0 {
		return // its event is sent before it leaves the table
	}
	h := e.internal.LookupNear(&f.Orig, near)
	if e.parks() && f.Parked() {
		switch {
		case e.park != nil:
			e.dumpedParked(h, f)
			return
		case h == 0 || e.gone(h):
			k.parked++
			return
		}
		f.Has &^= flow.HasTimeout
	}
	if !e.fit(f) {
		if h != 0 && !e.internal.Dead(h) && e.same(h, f) {
			e.internal.SetMark(h, k.epoch) // it was fit when it came, and stays until it ends
		}
		return
	}
	replace := false
	if e.park != nil && (h == 0 || e.gone(h)) {
		e.unpark(&f.Orig)
	}
	switch {
	case h == 0:
		if h = e.insert(f); h == 0 {
			return
		}
		if k.first {
			e.Stats.Found++
		} else if e.standby {
			e.setStanding(h, standRemnant, 0) // was there before this node was told
		}
		e.internal.SetFlags(h, flagNewDue, 0)
		if k.quiet && !e.cfg.Mirror && e.replica.holds(&f.Orig) {
			return // as if the event of our commit had told it
		}
	case !e.gone(h) && e.same(h, f):
		e.internal.SetMark(h, k.epoch)
		e.followDumped(h, f)
		if !e.mergeDumped(h, f) {
			return
		}
		e.internal.SetFlags(h, flagUpdated, 0)
	case !e.gone(h) && e.internal.Mark(h) == k.epoch:
		return // an event told of a later one
	default:
		// Of what ended before the dump began it tells no more, so this is another
		// flow, even if it has the same id again.
		e.replaceFlow(h, f)
		e.internal.SetFlags(h, flagNewDue, 0)
		e.internal.SetMark(h, k.epoch)
		replace = true
	}
	e.followDumped(h, f)
	if k.first || e.cfg.Mirror { // else what the first dump finds goes out as one bulk update
		e.mode.Enqueue(h, replace)
	}
}

// mergeDumped takes over what a dump says of an entry, except for what events told
// since the dump began, and reports whether that changed anything.
func (e *Engine) mergeDumped(h flow.Handle, f *flow.Flow) (changed bool) {
	told := e.kernel.told[h]
	switch told {
	case 0:
		return e.internal.MergeFull(h, f, e.now)
	case toldAll:
		return false
	}
	later := &e.scratch
	e.internal.Load(h, later)
	later.Has &= told
	changed = e.internal.MergeFull(h, f, e.now)
	return e.internal.Merge(h, later, e.now) || changed
}

// dumpEnded is called when the dump worker has ended.
func (e *Engine) dumpEnded(err error) {
	k := &e.kernel
	for { // what it handed over before it ended
		select {
		case b := <-k.batches:
			e.takeDump(b)
			k.free <- b
			continue
		default:
		}
		break
	}
	k.cancel()
	k.dumping = false
	if err == nil {
		k.sweeping, k.pos = true, 0
		e.takeEarly()
		return
	}
	e.Stats.ResyncsFailed++
	k.wait = min(max(dumpPause, 2*k.wait), dumpRetry)
	k.again = e.now.Add(k.wait)
	k.running, k.wanted = false, true
	k.missed = k.missed || k.quiet
	k.forget()
	e.log.Warn("reading the kernel's table failed; trying again", zap.Error(err), zap.Duration("in", k.wait))
	e.kernelSyncEnded(err)
}

// sweepInternal does a part of the sweep: what neither the dump nor an event has
// touched has ended unnoticed. It reports whether something is left to do.
func (e *Engine) sweepInternal() bool {
	k := &e.kernel
	if !k.sweeping {
		return false
	}
	k.pos = e.internal.Walk(k.pos, sweepSlots, func(h flow.Handle) bool {
		e.sweepEntry(h)
		return true
	})
	if k.pos != 0 {
		return true
	}
	k.sweeping, k.running = false, false
	k.wait, k.again = 0, e.now.Add(dumpPause)
	k.forget()
	e.Stats.Resyncs++
	if e.park != nil {
		e.parkSynced()
	}
	if !k.first {
		k.first = true
		e.mode.Bulk()
	}
	e.kernelSyncEnded(nil)
	return false
}

// sweepEntry ends the flow of entry h if the resynchronisation has not seen it, or holds
// it if it may have been left behind: the event of that may be among those that were
// lost.
func (e *Engine) sweepEntry(h flow.Handle) {
	if e.gone(h) || e.internal.Mark(h) == e.kernel.epoch {
		return
	}
	e.Stats.Swept++
	if e.internal.IsExpect(h) {
		x := &e.scratchX
		e.internal.LoadExpect(h, x)
		if m := e.internal.Lookup(&x.Master); m != 0 {
			e.sweepEntry(m) // it says what becomes of this one
		}
		if !e.holdExpect(h) {
			e.end(h)
		}
		return
	}
	f := &e.scratch
	e.internal.Load(h, f)
	if f.Status&flow.StatusSrcNAT != 0 && e.hold(h, f) {
		return
	}
	if e.park != nil {
		e.parkEnded(f, true)
	}
	e.end(h)
}

// kernelSyncEnded tells those who wait.
func (e *Engine) kernelSyncEnded(err error) {
	for _, fn := range e.kernel.served {
		fn(err)
	}
	e.kernel.served = nil
	select {
	case e.loads <- err: // has room for one: the first is for the start, further ones if that failed
	default:
	}
}

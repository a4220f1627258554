package engine

import (
	"context"
	"slices"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// ExpectDumpFunc reads the kernel's whole table of expectations. The expectation is
// reused between calls.
type ExpectDumpFunc func(ctx context.Context, fn func(*flow.Expect) error) error

// expectSync is what the loop knows of expectations beside the caches.
type expectSync struct {
	// zones are those other than 0 in which a flow has had a helper. The kernel
	// does not say in which zone an expectation is: it is in that of its master.
	zones []uint16
	// purged are the masters that our purge has removed: the kernel ends their
	// expectations by itself, and these ends are no news for the peers either. Always
	// empty where own changes are replicated.
	purged map[flow.Tuple]struct{}
	// early are those of which an event told while a dump runs and their master was not
	// known: it may be among what the dump has found and the loop has not come to,
	// while they began after the dump had come to the expectations.
	early []earlyExpect
}

// earlyExpect is an expectation that waits for the end of a dump.
type earlyExpect struct {
	x      flow.Expect
	origin Origin
}

const (
	// maxHelperZones bounds expectSync.zones; expectations in further ones are not
	// replicated.
	maxHelperZones = 256
	// maxPurged bounds expectSync.purged, which is emptied when it is full: what
	// follows the destruction of a master follows at once.
	maxPurged = 4096
	// maxEarly bounds expectSync.early; beyond, another dump finds them.
	maxEarly = 256
)

// noteHelper notes the zone, which is not 0, of a flow that has a helper.
func (e *Engine) noteHelper(zone uint16) {
	x := &e.expects
	if !slices.Contains(x.zones, zone) && len(x.zones) < maxHelperZones {
		x.zones = append(x.zones, zone)
	}
}

// notePurged notes that entry h, which is about to be removed, was purged.
func (e *Engine) notePurged(h flow.Handle) {
	x := &e.expects
	if e.internal.IsExpect(h) || e.internal.Has(h)&flow.HasHelper == 0 {
		return
	}
	if x.purged == nil || len(x.purged) >= maxPurged {
		x.purged = map[flow.Tuple]struct{}{}
	}
	x.purged[e.internal.Key(h)] = struct{}{}
}

// inZone calls fn with x in each zone in which it may be, until that returns true.
func (e *Engine) inZone(x *flow.Expect, fn func() bool) bool {
	x.Tuple.Zone, x.Master.Zone = 0, 0
	if fn() {
		return true
	}
	for _, z := range e.expects.zones {
		x.Tuple.Zone, x.Master.Zone = z, z
		if fn() {
			return true
		}
	}
	x.Tuple.Zone, x.Master.Zone = 0, 0
	return false
}

// expectEvent applies a kernel event about the expectation x.
func (e *Engine) expectEvent(ev *flow.Event, x *flow.Expect) {
	origin := e.origin(ev.PortID)
	if origin == OriginPark {
		return
	}
	if ev.Kind == flow.EventDestroy {
		e.Stats.ExpectsDestroy++
		e.destroyExpect(x, origin)
		return
	}
	e.Stats.ExpectsNew++
	e.helperAtWork(x)
	e.newExpect(x, origin)
}

// newExpect applies the beginning of the expectation x.
func (e *Engine) newExpect(x *flow.Expect, origin Origin) {
	if e.fitExpect(x) == 0 {
		e.putEarly(x, origin)
		return
	}
	delete(e.expects.purged, x.Master)
	h := e.internal.LookupExpect(x)
	if e.kernel.running {
		delete(e.kernel.graves, x.Key())
	}
	replace := false
	switch {
	case h == 0:
		if h = e.insertExpect(x); h == 0 {
			return
		}
	case e.gone(h), e.internal.ID(h) != x.ID:
		e.internal.ReplaceExpect(h, x, e.now)
		e.internal.SetOwner(h, 0) // its standing
		replace = true
	default:
		changed := e.internal.MergeExpect(h, x, e.now)
		e.touch(h, toldAll)
		if !changed {
			return
		}
		e.internal.SetFlags(h, flagUpdated, 0)
	}
	e.touch(h, toldAll)
	if origin == OriginOther {
		e.mode.Enqueue(h, replace)
	}
}

// putEarly keeps an expectation whose master is not known until the dump that runs has
// ended.
func (e *Engine) putEarly(x *flow.Expect, origin Origin) {
	switch {
	case !e.kernel.running || e.kernel.sweeping || !e.filter.MatchExpect(x):
	case len(e.expects.early) < maxEarly:
		e.expects.early = append(e.expects.early, earlyExpect{*x, origin})
	default:
		e.kernel.wanted = true
	}
}

// takeEarly applies what has waited for the end of the dump.
func (e *Engine) takeEarly() {
	early := e.expects.early
	e.expects.early = nil
	for i := range early {
		e.newExpect(&early[i].x, early[i].origin)
	}
}

// destroyExpect applies the end of the expectation x.
func (e *Engine) destroyExpect(x *flow.Expect, origin Origin) {
	var h flow.Handle
	purged := false
	e.inZone(x, func() bool {
		if _, ok := e.expects.purged[x.Master]; ok {
			purged = true
		}
		c := e.internal.LookupExpect(x)
		if c == 0 || e.internal.ID(c) != x.ID || e.internal.Dead(c) {
			return false
		}
		h = c
		return true
	})
	e.expects.early = slices.DeleteFunc(e.expects.early, func(w earlyExpect) bool {
		return w.x.ID == x.ID && w.x.Tuple.SrcPort == x.Tuple.SrcPort && w.x.Tuple.DstPort == x.Tuple.DstPort
	})
	if e.kernel.running {
		if h != 0 {
			e.bury(x.Key())
		} else { // the dump would find it in the zone of its master
			e.inZone(x, func() bool { e.bury(x.Key()); return false })
		}
	}
	switch {
	case h == 0 && !e.kernel.first && origin == OriginOther && e.filter.MatchExpect(x):
		// As with flows: a peer may hold it since an earlier life of this process. If
		// there is an entry, it is of another one, or dead already.
		if e.internal.LookupExpect(x) != 0 {
			return
		}
		if h = e.insertExpect(x); h != 0 {
			e.internal.SetDead(h)
			e.mode.Enqueue(h, false)
		}
	case h == 0, e.gone(h):
	case origin == OriginPurge, purged:
		e.mode.Forget(h)
		e.internal.Remove(h)
	case e.holdExpect(h):
	default:
		e.end(h)
	}
}

// fitExpect reports whether an expectation of the kernel is to be replicated: it
// returns the entry of its master, or 0. It puts x into the zone of its master.
func (e *Engine) fitExpect(x *flow.Expect) (master flow.Handle) {
	if !e.filter.MatchExpect(x) {
		e.Stats.ExpectsFiltered++
		return 0
	}
	zone, found := uint16(0), 0
	e.inZone(x, func() bool {
		if h := e.internal.Lookup(&x.Master); h != 0 && !e.gone(h) && e.internal.Has(h)&flow.HasHelper != 0 {
			master, zone = h, x.Master.Zone
			found++
		}
		return false
	})
	switch {
	case found == 0: // the master is filtered, or gone
		e.Stats.ExpectsFiltered++
		return 0
	case found > 1, zone != 0 && e.dialect() != wire.Syncd:
		// Which of several masters in different zones is meant, nobody says; and
		// conntrackd's dialect has no zone of an expectation.
		e.Stats.ExpectsUnfit++
		return 0
	}
	x.Tuple.Zone, x.Master.Zone = zone, zone
	return master
}

// insertExpect is insert for an expectation.
func (e *Engine) insertExpect(x *flow.Expect) flow.Handle {
	h, err := e.internal.InsertExpect(x, e.now)
	if err != nil && e.evict() {
		h, err = e.internal.InsertExpect(x, e.now)
	}
	return e.inserted(h, err)
}

// expectDumped applies one expectation that the dump found. The flows, and so all
// masters, have been applied before.
func (e *Engine) expectDumped(x *flow.Expect) {
	k := &e.kernel
	fit := e.fitExpect(x) != 0
	if _, ok := k.graves[x.Key()]; ok {
		return
	}
	h := e.internal.LookupExpect(x)
	same := h != 0 && !e.gone(h) && e.internal.ID(h) == x.ID
	if !fit {
		if same {
			e.internal.SetMark(h, k.epoch)
		}
		return
	}
	replace := false
	switch {
	case h == 0:
		if h = e.insertExpect(x); h == 0 {
			return
		}
		if k.first {
			e.Stats.Found++
		}
		if key := x.Key(); k.quiet && !e.cfg.Mirror && e.replica.holds(&key) {
			return // as if the event of our commit had told it
		}
	case same:
		e.internal.SetMark(h, k.epoch)
		if k.told[h] != 0 || !e.internal.MergeExpect(h, x, e.now) {
			return
		}
		e.internal.SetFlags(h, flagUpdated, 0)
	case !e.gone(h) && e.internal.Mark(h) == k.epoch:
		return // an event told of a later one
	default:
		e.internal.ReplaceExpect(h, x, e.now)
		e.internal.SetOwner(h, 0) // its standing
		e.internal.SetMark(h, k.epoch)
		replace = true
	}
	if k.first || e.cfg.Mirror { // else what the first dump finds goes out as one bulk update
		e.mode.Enqueue(h, replace)
	}
}

// appendExpect is AppendFlow for entry h, which is an expectation.
func (e *Engine) appendExpect(b []byte, h flow.Handle, t wire.Type, f wire.Flags, seq wire.Seq, now monotime.Time) []byte {
	x := &e.scratchX
	e.internal.LoadExpect(h, x)
	if x.Has&flow.ExpectHasTimeout != 0 {
		x.Timeout = flow.Remaining(x.Timeout, now.Sub(e.internal.Updated(h)))
	}
	return wire.AppendExpect(b, e.dialect(), t, f, seq, x)
}

package engine

import (
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// A *remnant* is a flow that was in the kernel when this node stopped being in charge
// (or took charge again), and that no event of traffic has confirmed since. What is to
// become of it depends on what the peers say:
//
//   - a peer that leads has it, or told of its end: it lives elsewhere, or nowhere. Unless
//     traffic passes here all the same, its entry is to end.
//   - no such peer has ever had it: nobody took over, and this copy may be the only one.
//
// The kernel emits no event for traffic that only refreshes a timeout. So whoever
// purges gives remnants a short timeout and looks later which are still there: those
// are in use.
//
// The end of a remnant is not told in conntrackd's dialect while this node is not in
// charge: it would end the flow on the node that has it now. In the syncd dialect it is
// told, since peers hold exactly the internal cache, and know whose end it is.

// The standing of an internal entry. It is kept where a cache has the owner of an entry,
// since the internal cache has only one.
const (
	standGone    = 1 << iota // left behind by the kernel, or that is not clear yet: see behind
	standRemnant             // see above
	standEnded               // a remnant, or left behind, of which a peer told the end
	standShort               // a remnant that was given a short timeout

	remnantStanding = standRemnant | standEnded | standShort
)

func (e *Engine) standing(h flow.Handle) uint8 { return e.internal.Owner(h) }

// setStanding sets the bits of set, and clears those of clear that are not in set.
func (e *Engine) setStanding(h flow.Handle, set, clear uint8) {
	e.internal.SetOwner(h, e.internal.Owner(h)&^clear|set)
}

// replaceFlow gives entry h another flow.
func (e *Engine) replaceFlow(h flow.Handle, f *flow.Flow) {
	e.internal.Replace(h, f, e.now)
	e.internal.SetOwner(h, 0)
}

// Remnants counts flows that are remnants.
type Remnants struct {
	All   int
	Held  int // a peer carries it
	Ended int // a peer told of its end that led then
	Short int // was given a short timeout

	Behind     int // others, which were left behind
	BehindHeld int // of these, those that a peer carries or has ended

	Yielded int // none any more: a peer carries them, and this kernel keeps them parked for it

	Unled bool // no peer leads
}

// TakenOver reports whether a peer seems to have taken over from this node: it has, or
// has ended, half of the remnants or more. Those that it does not have are then
// nobody's.
func (r *Remnants) TakenOver() bool {
	taken := r.Held + r.Ended + r.BehindHeld + r.Yielded
	return !r.Unled && taken > 0 && 2*taken >= r.All+r.Behind+r.Yielded
}

// The methods below are for functions run by Do. Those that return a handle do a part
// of their work; the next call goes on from there, until they return 0.

// MarkRemnants makes remnants of all flows, those too that the first dump comes to
// later. What peers told of the end of one that was
// left behind still holds.
func (e *Engine) MarkRemnants(from flow.Handle) flow.Handle {
	if from == 0 {
		e.lead.since = false
	}
	e.remnants, e.standby = true, true
	return e.internal.Walk(from, sweepSlots, func(h flow.Handle) bool {
		switch {
		case e.standing(h)&standGone != 0:
			e.setStanding(h, standRemnant, 0)
		case !e.internal.Dead(h):
			e.setStanding(h, standRemnant, remnantStanding)
		}
		return true
	})
}

// ForgetRemnants makes all remnants ordinary flows again.
func (e *Engine) ForgetRemnants(from flow.Handle) flow.Handle {
	if from == 0 && !e.remnants {
		return 0
	}
	e.remnants, e.standby = false, false
	return e.internal.Walk(from, sweepSlots, func(h flow.Handle) bool {
		if e.standing(h)&standGone != 0 {
			e.setStanding(h, 0, standRemnant)
		} else {
			e.setStanding(h, 0, remnantStanding)
		}
		return true
	})
}

// CountRemnants adds to n. With keep, this node is in charge again: those that a peer has
// are made ordinary flows, since it has taken them over, whatever that one's role.
func (e *Engine) CountRemnants(from flow.Handle, n *Remnants, keep bool) flow.Handle {
	if !e.remnants {
		return 0
	}
	n.Unled = !e.led(keep)
	if e.park != nil {
		n.Yielded = e.park.yielded
	}
	if keep {
		e.standby = false
		e.behind.look = monotime.Earliest(e.behind.look, e.now) // what has ended can go
	}
	return e.internal.Walk(from, sweepSlots/4, func(h flow.Handle) bool {
		standing := e.standing(h)
		if standing&standRemnant == 0 || e.internal.Dead(h) || e.internal.IsExpect(h) {
			return true
		}
		key := e.internal.Key(h)
		held := e.carried(&key) || keep && e.replica.holds(&key)
		if e.gone(h) {
			n.Behind++
			if standing&standEnded != 0 || held {
				n.BehindHeld++
			}
			return true
		}
		n.All++
		if standing&standShort != 0 {
			n.Short++
		}
		switch {
		case held:
			n.Held++
			if keep {
				e.setStanding(h, 0, remnantStanding)
			}
		case standing&standEnded != 0:
			n.Ended++
		}
		return true
	})
}

// RemnantRule says which remnants are to end.
type RemnantRule struct {
	All      bool // also those of which no peer says anything: a peer has taken over, and leads
	Outlived bool // none; those that were given a short timeout before have had their time
	Primary  bool // this node is primary again: what does not end is its own
}

// RemnantVerdict is what becomes of an entry of the kernel.
type RemnantVerdict uint8

const (
	RemnantStays RemnantVerdict = iota // or is none
	RemnantEnds                        // is to be given a short timeout
	RemnantInUse                       // was given one, and used since: it is a remnant no more
)

// JudgeRemnant judges an entry of the kernel as a dump tells it now.
func (e *Engine) JudgeRemnant(f *flow.Flow, rule RemnantRule) RemnantVerdict {
	h := e.internal.Lookup(&f.Orig)
	if h == 0 || e.gone(h) || !e.same(h, f) {
		return RemnantStays
	}
	standing := e.standing(h)
	switch {
	case standing&standRemnant == 0:
		return RemnantStays
	case rule.Outlived:
		if standing&standShort == 0 {
			return RemnantStays
		}
		e.setStanding(h, 0, remnantStanding)
		if standing&standEnded != 0 && !e.cfg.Mirror {
			e.mode.Enqueue(h, false) // the peer has ended it, and may not know that it goes on here
		}
		return RemnantInUse
	case standing&standShort != 0 || !e.filter.Match(f):
		return RemnantStays
	}
	ends := rule.All && e.led(false) || standing&standEnded != 0 || e.carried(&f.Orig)
	if rule.Primary {
		ends = !e.replica.holds(&f.Orig) && (rule.All || standing&standEnded != 0)
	}
	switch {
	case ends:
		e.setStanding(h, standShort, 0)
		return RemnantEnds
	case rule.Primary:
		e.setStanding(h, 0, remnantStanding)
	}
	return RemnantStays
}

// endedElsewhere notes that a peer told of the end of a flow. Of one that does not lead it
// says no more than that this peer has none any more.
func (e *Engine) endedElsewhere(key *flow.Tuple, owner uint8) {
	if h := e.internal.Lookup(key); h != 0 && !e.internal.Dead(h) && e.standing(h)&(standRemnant|standGone) != 0 && e.leads(owner) {
		e.setStanding(h, standEnded, 0)
	}
}

// drop forgets entry h, which is alive, since a peer has its flow.
func (e *Engine) drop(h flow.Handle) {
	if !e.cfg.Mirror { // there it would be the end of the flow for who has it
		e.notePurged(h)
		e.mode.Forget(h)
		e.internal.Remove(h)
		return
	}
	e.internal.SetDead(h)
	e.mode.Enqueue(h, false)
}

// end ends the flow of entry h.
func (e *Engine) end(h flow.Handle) {
	if e.standing(h)&standRemnant != 0 {
		if !e.internal.IsExpect(h) {
			e.Stats.Purged++
		}
		if e.standby {
			e.drop(h)
			return
		}
	}
	e.internal.SetDead(h)
	e.mode.Enqueue(h, false)
}

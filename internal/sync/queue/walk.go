package queue

import "syncd/internal/flow"

// walkSlots is how many slots of the cache one step looks at.
const walkSlots = 512

// Walker is the part of a cache that a Walk goes through.
type Walker interface {
	// Walk visits at most max slots from position from (0 is the beginning),
	// calling fn with each flow that is alive until it returns false, and returns
	// the position to go on at, 0 at the end. Positions are handles: a walk that
	// goes on at a handle visits that flow again.
	Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle
}

// Walk goes through the flows of a cache, in steps that take little time each.
// The cache may change between them: a flow that is alive from the beginning to the
// end is found.
type Walk struct {
	cache  Walker
	wanted func(flow.Handle) bool // nil: all
	fn     func(flow.Handle) bool
	pos    flow.Handle
	found  flow.Handle
	active bool
	ended  bool
}

// Init makes w a walk through the flows for which wanted is true, all if it is nil.
// A Walk must not be copied afterwards.
func (w *Walk) Init(cache Walker, wanted func(flow.Handle) bool) {
	*w = Walk{cache: cache, wanted: wanted}
	w.fn = func(h flow.Handle) bool {
		if w.wanted != nil && !w.wanted(h) {
			return true
		}
		w.found = h
		return false
	}
}

// Begin starts the walk at the beginning.
func (w *Walk) Begin() { w.active, w.ended, w.pos = true, false, 0 }

// Stop gives the walk up.
func (w *Walk) Stop() { w.active = false }

// Active reports whether the walk is under way: begun, and its end not returned.
func (w *Walk) Active() bool { return w.active }

// Step looks at the next slots up to the first flow, and returns that. 0 means that
// there was none among them; if Active says so too, that the walk is over.
func (w *Walk) Step() flow.Handle {
	if w.ended || !w.active {
		w.active = false
		return 0
	}
	w.found = 0
	w.pos = w.cache.Walk(w.pos, walkSlots, w.fn)
	w.ended = w.pos == 0
	if w.found == 0 && w.ended {
		w.active = false
	}
	return w.found
}

// Back makes the next step find h, the flow of the last one, again.
func (w *Walk) Back(h flow.Handle) { w.pos, w.ended = h, false }

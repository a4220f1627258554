package alarm

import (
	"math/rand/v2"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
)

const (
	slotLen    = 200 * time.Millisecond
	perSecond  = int(time.Second / slotLen)
	maxRefresh = time.Hour
	firstSlot  = queue.Dirty + 1 // list of the wheel's slot 0
	lookAhead  = 64              // slots that next looks through
)

// wheel is when each flow that rests is sent again. It is lists of a queue.Sender,
// one for each slot. Slots are numbered by the wheel's time, which is the real time
// less what the wheel was more than a longest interval behind, and kept modulo the
// size of the wheel. The flows of the slots from hand to the present are due.
//
// Invariant: now-span <= hand <= now in slots, and flows rest from hand to now+span
// alone, so that no two slots in use are the same list.
type wheel struct {
	lists   *queue.Lists
	random  *rand.PCG
	refresh int   // seconds
	span    int64 // longest interval in slots
	size    int64
	hand    int64 // the slot that is being emptied
	behind  int64 // slots that the wheel's time is behind
	started bool
}

// newWheel returns a wheel for intervals of so many whole seconds and a fraction. Its
// lists are to be set.
func newWheel(refresh int, seed uint64) wheel {
	span := int64((refresh + 1) * perSecond)
	return wheel{random: rand.NewPCG(seed, 0x616c61726d), refresh: refresh, span: span, size: 2*span + 2}
}

// turn lets the time pass. After a sleep, or when more is due than the pace lets out,
// the wheel's time stands still.
func (w *wheel) turn(now monotime.Time) {
	if !w.started {
		w.hand, w.started = w.slotAt(now), true
	}
	w.due(now) // past empty slots
	w.behind += max(0, w.slotAt(now)-w.hand-w.span)
}

// rest puts a flow into the slot of its next refresh: in 1 to refresh whole seconds
// and a fraction of 0.2 to 1 second.
func (w *wheel) rest(now monotime.Time, h flow.Handle) {
	r := w.random.Uint64()
	whole := 1 + int(r>>32*uint64(w.refresh)>>32)
	fraction := 1 + int(r&(1<<32-1)*uint64(perSecond)>>32)
	w.lists.Put(w.list(w.slotAt(now)+int64(whole*perSecond+fraction)), h)
}

// due returns a flow whose time has come, or 0.
func (w *wheel) due(now monotime.Time) flow.Handle {
	for at := w.slotAt(now); ; w.hand++ {
		if h := w.lists.First(w.list(w.hand)); h != 0 || w.hand >= at {
			return h
		}
	}
}

// next returns when a flow may be due next, or when to look again: now if one is.
func (w *wheel) next(now monotime.Time) monotime.Time {
	if !w.started || w.due(now) != 0 {
		return now
	}
	at := w.slotAt(now)
	k := at + 1
	for k < at+lookAhead && w.lists.First(w.list(k)) == 0 {
		k++
	}
	return monotime.Time((k + w.behind) * int64(slotLen))
}

// list returns the list of a slot.
func (w *wheel) list(slot int64) int {
	k := slot % w.size
	if k < 0 {
		k += w.size
	}
	return firstSlot + int(k)
}

// slotAt returns the slot that a time lies in. Times may be negative.
func (w *wheel) slotAt(t monotime.Time) int64 {
	k := int64(t) / int64(slotLen)
	if int64(t) < k*int64(slotLen) {
		k--
	}
	return k - w.behind
}

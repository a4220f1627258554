package alarm

import (
	"fmt"

	"syncd/internal/flow"
	"syncd/internal/sync/queue"
)

// check returns an error that names the first invariant of r that does not hold: the
// lists agree with the flows.
func check(r *refresher) error {
	if r.again && !r.bulk.Active() {
		return fmt.Errorf("everything is to be sent again, and nothing is being sent")
	}
	if w := &r.wheel; w.size < 2*w.span+2 || w.behind < 0 {
		return fmt.Errorf("wheel of %d slots for intervals of %d, %d behind", w.size, w.span, w.behind)
	}
	total := 0
	for k := queue.Dirty; k < firstSlot+int(r.wheel.size); k++ {
		total += r.send.Len(k)
		if (r.send.First(k) == 0) != (r.send.Len(k) == 0) {
			return fmt.Errorf("list %d: first %d of %d", k, r.send.First(k), r.send.Len(k))
		}
		if h := r.send.First(k); h != 0 && r.send.In(h) != k {
			return fmt.Errorf("flow %d is first of list %d and in %d", h, k, r.send.In(h))
		}
	}
	in := 0
	for h := range flow.Handle(6000) {
		if r.send.In(h) != 0 {
			in++
		}
	}
	if in != total {
		return fmt.Errorf("%d flows in lists of %d", in, total)
	}
	return nil
}

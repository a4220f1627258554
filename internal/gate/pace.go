package gate

import (
	"time"

	"syncd/internal/monotime"
)

// Pace finds how long to pause between two reads, so that each gets enough messages to
// be worth a wake-up and none waits for longer than that needs. It belongs to one
// goroutine. The zero value never pauses.
type Pace struct {
	Least, Most time.Duration // of a pause
	Few         int           // messages; a read that gets fewer lengthens the pause, one that gets four times as many shortens it
	Full        int           // messages that a read gets at most: after such a one there is no pause; 0 for no such limit

	last  monotime.Time // of the read before, 0 for none
	pause time.Duration
}

// Got notes that a read got n messages, one at least, and returns how long to pause
// before the next one. It is 0 unless messages follow each other closely: a lone one is
// passed on at once.
func (p *Pace) Got(now monotime.Time, n int) time.Duration {
	p.pause = max(p.pause, p.Least)
	// Of messages that come one in each pause none is read sooner or later than without
	// it; where they are further apart, each would wake the reader twice.
	gap := now.Sub(p.last)
	close := p.last != 0 && (gap < p.pause+p.pause/4 || gap < 2*p.pause && n > 1)
	p.last = now
	switch {
	case !close:
		p.pause = p.Least
		return 0
	case p.Full > 0 && n >= p.Full:
		p.pause = p.Least
		return 0 // there is more
	case n < p.Few:
		p.pause = min(2*p.pause, max(p.Most, p.Least))
	case n >= 4*p.Few:
		p.pause = max(p.pause/2, p.Least)
	}
	return p.pause
}

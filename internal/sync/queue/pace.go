package queue

import (
	"time"

	"syncd/internal/monotime"
)

const (
	// PaceTick and PaceBurst bound what nobody waits for: so many messages in so
	// much time, 50,000 a second. A receiver's socket buffer of 212,992 octets
	// (the default of Linux) holds some 1,000 of them, so that bulk updates do not
	// lose themselves.
	PaceTick  = 10 * time.Millisecond
	PaceBurst = 500

	// StepCost is what a step of a Walk that finds nothing counts for.
	StepCost = 4
)

// Pace lets no more than PaceBurst messages leave in a PaceTick. The zero Pace is
// ready.
type Pace struct {
	since monotime.Time // beginning of the tick
	used  int
}

// Left reports whether more may leave now.
func (p *Pace) Left(now monotime.Time) bool {
	return p.used < PaceBurst || p.over(now)
}

// Spend counts n messages.
func (p *Pace) Spend(now monotime.Time, n int) {
	if p.over(now) {
		p.since, p.used = now, 0
	}
	p.used += n
}

// Next returns when more may leave, if nothing may now.
func (p *Pace) Next() monotime.Time { return p.since.Add(PaceTick) }

// over reports whether the tick is over. The zero Pace may lie in the future.
func (p *Pace) over(now monotime.Time) bool {
	d := now.Sub(p.since)
	return d >= PaceTick || d < 0
}

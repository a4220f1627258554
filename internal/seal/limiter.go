package seal

import (
	"time"

	"syncd/internal/monotime"
)

// The derivations of traffic keys for sessions that are not known. A restarted
// peer needs one. 200 in a second cost less than 1 % of a processor.
const (
	deriveBurst    = 64
	deriveInterval = time.Second / 200
)

// limiter is a token bucket. The zero limiter is full.
type limiter struct {
	full monotime.Time // when the bucket is full again; zero: now
}

// allow takes a token, if there is one.
func (l *limiter) allow(now monotime.Time) bool {
	if l.full == 0 || l.full.Before(now) {
		l.full = now
	}
	if l.full.Sub(now) > (deriveBurst-1)*deriveInterval {
		return false
	}
	l.full = l.full.Add(deriveInterval)
	return true
}

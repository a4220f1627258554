package seal

import (
	"testing"
	"time"

	"syncd/internal/monotime"
)

func TestLimiter(t *testing.T) {
	for _, start := range []monotime.Time{1, 1 << 40, -1 << 40} { // a synctest bubble starts below zero
		var l limiter
		now := start
		take := func(n int) (got int) {
			for range n {
				if l.allow(now) {
					got++
				}
			}
			return got
		}
		for _, step := range []struct {
			pass time.Duration
			want int
		}{
			{0, 64}, {0, 0}, {5*time.Millisecond - 1, 0}, {1, 1}, {50 * time.Millisecond, 10},
			{320 * time.Millisecond, 64}, {319 * time.Millisecond, 63}, {time.Hour, 64}, {time.Second, 64},
		} {
			now = now.Add(step.pass)
			if got := take(100); got != step.want {
				t.Errorf("from %d: %d tokens after %v, want %d", start, got, step.pass, step.want)
			}
		}
	}
}

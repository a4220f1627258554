package gate

import (
	"testing"
	"time"

	"syncd/internal/monotime"
)

func TestPace(t *testing.T) {
	const us = time.Microsecond
	p := Pace{Least: 300 * us, Most: time.Millisecond, Few: 32}
	now := monotime.Time(1e9)
	for i, c := range []struct {
		after time.Duration // the read before
		n     int
		want  time.Duration
	}{
		{0, 1, 0}, // the first one
		{time.Second, 1, 0},
		{400 * us, 1, 0},        // one by one, further apart than a pause
		{370 * us, 1, 600 * us}, // close, and not worth it
		{700 * us, 40, 600 * us},
		{1100 * us, 40, 600 * us}, // read late, but there are many
		{700 * us, 31, time.Millisecond},
		{1999 * us, 2, time.Millisecond},
		{1100 * us, 128, 500 * us},
		{600 * us, 1000, 300 * us},
		{370 * us, 1000, 300 * us},
		{600 * us, 1000, 0}, // a pause in what comes
		{370 * us, 1, 600 * us},
		{800 * us, 1, 0}, // one by one again
		{301 * us, 1, 600 * us},
		{1200 * us, 1000, 0},
		{601 * us, 1, 0}, // and all begins again
	} {
		now = now.Add(c.after)
		if got := p.Got(now, c.n); got != c.want {
			t.Errorf("read %d: pause of %v, want %v", i, got, c.want)
		}
	}
	// What is longer than the longest pause is as it was asked for.
	p = Pace{Least: time.Second, Most: time.Millisecond, Few: 32}
	for i := range 3 {
		if got := p.Got(now, 1); (got != time.Second) != (i == 0) {
			t.Errorf("pause of %v", got)
		}
		now = now.Add(time.Second)
	}
	// A read that got all that it could get is followed by another one.
	p = Pace{Least: 300 * us, Most: time.Millisecond, Few: 3, Full: 64}
	for i, c := range []struct {
		n    int
		want time.Duration
	}{{2, 0}, {2, 600 * us}, {64, 0}, {64, 0}, {63, 300 * us}} {
		now = now.Add(350 * us)
		if got := p.Got(now, c.n); got != c.want {
			t.Errorf("read %d: pause of %v, want %v", i, got, c.want)
		}
	}
	p = Pace{}
	for range 3 {
		if got := p.Got(now, 1); got != 0 {
			t.Errorf("pause of %v, want none", got)
		}
		now = now.Add(1)
	}
}

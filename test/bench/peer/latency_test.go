package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// queue plays a way of events in batches, as daemons make them, and returns when each
// event happened and when it was applied: events gather for pause, and then take work
// each; now and then all stands still for stall.
func queue(r *rand.Rand, n int, every, pause, work, stall time.Duration) (ends, applied []time.Time) {
	begin := time.Unix(1000, 0)
	at := begin
	for range n {
		at = at.Add(time.Duration((0.5 + r.Float64()) * float64(every)))
		ends = append(ends, at)
	}
	free := begin // when the next batch is taken
	for i := 0; i < n; {
		if free.Before(ends[i]) {
			free = ends[i]
		}
		free = free.Add(pause)
		if stall > 0 && r.IntN(500) == 0 {
			free = free.Add(stall)
		}
		taken := free
		for ; i < n && !ends[i].After(taken); i++ {
			free = free.Add(work)
		}
		for len(applied) < i {
			applied = append(applied, free)
		}
	}
	return ends, applied
}

// Ages that are looked at in random moments have the distribution of the latencies.
func TestAges(t *testing.T) {
	for _, c := range []struct {
		name                      string
		every, pause, work, stall time.Duration
		slack                     time.Duration
	}{
		// Of what waits for a shorter time than lies between two ends little can be known.
		{"alone", 80 * time.Microsecond, 10 * time.Microsecond, 5 * time.Microsecond, 0, 50 * time.Microsecond},
		{"batches", 20 * time.Microsecond, 600 * time.Microsecond, 2 * time.Microsecond, 0, 2 * time.Microsecond},
		{"small batches", 80 * time.Microsecond, 600 * time.Microsecond, 2 * time.Microsecond, 0, 10 * time.Microsecond},
		{"stalls", 20 * time.Microsecond, 300 * time.Microsecond, 2 * time.Microsecond, 30 * time.Millisecond, 2 * time.Microsecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			ends, applied := queue(r, 300_000, c.every, c.pause, c.work, c.stall)
			var real []float64
			for i := range ends {
				real = append(real, applied[i].Sub(ends[i]).Seconds())
			}
			slices.Sort(real)
			var looks []look
			for at := ends[0]; at.Before(ends[len(ends)-1]); at = at.Add(time.Duration(r.ExpFloat64() * float64(500*time.Microsecond))) {
				known, _ := slices.BinarySearchFunc(applied, at, func(a, b time.Time) int {
					if a.After(b) {
						return 1
					}
					return -1
				})
				looks = append(looks, look{at: at, known: uint64(known)})
			}
			all := ages(ends, looks, ends[0], ends[len(ends)-1])
			if len(all) != len(looks) {
				t.Fatalf("%d ages of %d looks", len(all), len(looks))
			}
			for _, q := range []float64{0.25, 0.5, 0.9, 0.99} {
				want, got := quantile(real, q), quantile(all, q)
				t.Logf("%v: %.0f us, is %.0f us", q, got*1e6, want*1e6)
				if slack := 0.05*want + c.slack.Seconds(); math.Abs(got-want) > slack {
					t.Errorf("the part %v is below %.0f us, is below %.0f us", q, got*1e6, want*1e6)
				}
			}
		})
	}
}

func TestAgesOfLittle(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, int64(ms)*1e6) }
	ends := []time.Time{at(10), at(20), at(30)}
	looks := []look{
		{at: at(5), known: 0},  // before the span
		{at: at(11), known: 1}, // all that had happened
		{at: at(25), known: 1}, // 20 for 5
		{at: at(29), known: 3}, // an answer from after the stamp: nothing is younger than nothing
		{at: at(40), known: 2}, // 30 for 10
		{at: at(60), known: 2}, // after the span
	}
	// Half of the 10 ms between two ends is added to each.
	if got, want := ages(ends, looks, at(10), at(50)), []float64{0.005, 0.005, 0.010, 0.015}; !slices.Equal(got, want) {
		t.Errorf("ages %v, want %v", got, want)
	}
}

func TestMeanRest(t *testing.T) {
	var times []time.Time
	at := time.Unix(0, 0)
	for i := range 1000 {
		gap := []time.Duration{0, 0, 300 * time.Microsecond}[i%3] // three at once, as a load may come
		if i == 500 {
			gap = time.Second // and once nothing at all
		}
		at = at.Add(gap)
		times = append(times, at)
	}
	if got := meanRest(times); math.Abs(got-150e-6) > 1e-6 {
		t.Errorf("%v s, want 150 us", got)
	}
	if meanRest(nil) != 0 || meanRest(times[:1]) != 0 || meanRest([]time.Time{at, at}) != 0 {
		t.Error("there is no time between less than two")
	}
}

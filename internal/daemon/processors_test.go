package daemon

import (
	"runtime"
	"testing"
	"time"

	"syncd/internal/monotime"
)

func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	var p processors
	p.start()
	want := func(when string, n int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != n {
			t.Errorf("%s: %d processors, want %d", when, got, n)
		}
	}
	p.turn(monotime.Now())
	want("with nothing to do", 1)
	p.begin()
	p.begin()
	want("during a command", 3)
	p.end()
	want("during another one", 3)
	p.end()
	want("after it", 1)
	p.used(0.7, time.Second)
	want("under load", 3)
	for range int(quietTime/time.Second) - 1 {
		p.used(0.1, time.Second)
	}
	want("soon after the load", 3)
	p.used(0.5, time.Second)
	for range int(quietTime/time.Second) - 1 {
		p.used(0.1, time.Second)
	}
	want("soon after half of the load", 3)
	p.used(0.1, time.Second)
	want("some time after the load", 1)
	p.stop()
	want("at the end", 3)
	p.begin()
	p.used(1, time.Second)
	want("after the end", 3)
}

// What the process itself uses is noticed, within a second of the loop's.
func TestProcessorsWatch(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	var p processors
	p.start()
	defer p.stop()
	now := monotime.Now()
	p.turn(now)
	for used := processorTime(); processorTime()-used < 100*time.Millisecond; {
	}
	p.turn(now.Add(lookEach / 2))
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors before a second is over", n)
	}
	p.turn(now.Add(lookEach)) // at least a tenth of it was used
	if p.last == 0 || p.loaded {
		t.Errorf("100 ms of a second are no load; %v used", p.last)
	}
	for used := processorTime(); processorTime()-used < 500*time.Millisecond; {
	}
	p.turn(now.Add(2 * lookEach))
	if n := runtime.GOMAXPROCS(0); n != 3 {
		t.Errorf("%d processors, and half of one was used", n)
	}
}

func TestProcessorsOfTheEnvironment(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "3")
	var p processors
	p.start()
	p.turn(monotime.Now())
	p.used(0, time.Hour)
	p.begin()
	if got := runtime.GOMAXPROCS(0); got != 3 {
		t.Errorf("%d processors, and the environment says 3", got)
	}
}

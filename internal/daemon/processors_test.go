package daemon

import (
	"context"
	"runtime"
	"testing"
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
	p.used(0.01)
	want("with nothing to do", 1)
	p.begin()
	p.begin()
	want("during a command", 3)
	p.end()
	want("during another one", 3)
	p.end()
	want("after it", 1)
	p.used(0.7)
	want("under load", 3)
	for range quietSeconds - 1 {
		p.used(0.1)
	}
	want("soon after the load", 3)
	p.used(0.5)
	for range quietSeconds - 1 {
		p.used(0.1)
	}
	want("soon after half of the load", 3)
	p.used(0.1)
	want("some time after the load", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.watch(ctx); err != nil {
		t.Error(err)
	}
	want("at the end", 3)
	p.begin()
	p.used(1)
	want("after the end", 3)
}

func TestProcessorsOfTheEnvironment(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "3")
	var p processors
	p.start()
	p.used(0)
	p.begin()
	if got := runtime.GOMAXPROCS(0); got != 3 {
		t.Errorf("%d processors, and the environment says 3", got)
	}
}

package daemon

import (
	"context"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// processors decides on how many processors at once our goroutines run: one as long
// as that will do. Every batch goes from a reader to the loop, and on one processor this
// is a change of goroutines; on two it wakes a thread, which costs as much as some
// events. There are more while a command or a dump works beside the loop, and while one
// is not enough for what comes in.
//
// It does nothing when the environment sets GOMAXPROCS, nor does the zero value.
type processors struct {
	most int // 0 to leave it as it is

	mu       sync.Mutex
	beside   int  // how much works beside the loop
	loaded   bool // one is not enough
	quietFor int  // seconds for which it would have been
	now      int
	original int
}

const (
	mostProcessors = 4 // the loop, a reader, a command, the garbage collector

	// Parts of one processor, of a second's use: above enough it may be short soon; below
	// spare, for quietSeconds, it is not.
	enough       = 0.4
	spare        = 0.25
	quietSeconds = 10
)

// start begins to decide.
func (p *processors) start() {
	n := runtime.GOMAXPROCS(0)
	p.now, p.original = n, n
	if os.Getenv("GOMAXPROCS") == "" && n > 1 {
		p.most = min(n, mostProcessors)
	}
}

// apply sets what is due. The caller holds mu.
func (p *processors) apply() {
	want := 1
	if p.beside > 0 || p.loaded {
		want = p.most
	}
	if p.most != 0 && want != p.now {
		runtime.GOMAXPROCS(want)
		p.now = want
	}
}

// begin makes room for work beside the loop, until end.
func (p *processors) begin() { p.work(1) }
func (p *processors) end()   { p.work(-1) }

func (p *processors) work(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beside += n
	p.apply()
}

// used takes note of a second in which this part of one processor was used.
func (p *processors) used(part float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case part > enough:
		p.loaded, p.quietFor = true, 0
	case part >= spare:
		p.quietFor = 0
	default:
		if p.quietFor++; p.quietFor >= quietSeconds {
			p.loaded = false
		}
	}
	p.apply()
}

// watch follows the use until ctx ends, and then puts back what was before.
func (p *processors) watch(ctx context.Context) error {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.most, p.now = 0, p.original
		runtime.GOMAXPROCS(p.original)
	}()
	if p.most == 0 {
		<-ctx.Done()
		return nil
	}
	p.work(0)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last, at := processorTime(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used, now := processorTime(), time.Now()
		p.used((used - last).Seconds() / now.Sub(at).Seconds())
		last, at = used, now
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0 // does not fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package daemon

import (
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/monotime"
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
	beside   int           // how much works beside the loop
	loaded   bool          // one is not enough
	quietFor time.Duration // for which it would have been
	now      int
	original int

	// The loop's: what had been used, and when.
	last time.Duration
	at   monotime.Time
}

const (
	mostProcessors = 4 // the loop, a reader, a command, the garbage collector

	// Parts of one processor, of a second's use: above enough it may be short soon; below
	// spare, for quietTime, it is not.
	enough    = 0.4
	spare     = 0.25
	lookEach  = time.Second
	quietTime = 10 * time.Second
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

// turn looks once a second how much is used. It is called by the loop each time that
// it sends something, which it does once a second even with nothing to do: so nobody
// has to wake for it.
func (p *processors) turn(now monotime.Time) {
	d := now.Sub(p.at)
	if p.at != 0 && d < lookEach || p.most == 0 {
		return
	}
	used := processorTime()
	if p.at != 0 {
		p.used((used-p.last).Seconds()/d.Seconds(), d)
	} else {
		p.work(0)
	}
	p.last, p.at = used, now
}

// used takes note of a time of d in which this part of one processor was used.
func (p *processors) used(part float64, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case part > enough:
		p.loaded, p.quietFor = true, 0
	case part >= spare:
		p.quietFor = 0
	default:
		if p.quietFor += d; p.quietFor >= quietTime {
			p.loaded = false
		}
	}
	p.apply()
}

// stop ends the deciding, and puts back what was before. The loop has ended.
func (p *processors) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most, p.now = 0, p.original
	runtime.GOMAXPROCS(p.original)
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0 // does not fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

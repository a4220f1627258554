package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"syncd/test/bench/rig"
)

// look is an answer of the backup: when it was there, how long it took, and how many
// ends of flows had been applied.
type look struct {
	at    time.Time
	took  time.Duration
	known uint64
}

// ages returns for each look in a span of time how old the oldest end was that had not
// been applied, 0 if there was none, and a little more (see below), in ascending order,
// in seconds.
//
// In a steady load these ages have the distribution of the latencies of the ends. Draw
// the time at which an end is applied over the time at which it happened, a line that
// only rises. Where it lies more than x above the diagonal are the ends with a latency
// of more than x; it begins and ends there on the same parallel to the diagonal, so
// that it lies there for as long on the one axis as on the other, whether it rises
// evenly, in steps, or in one leap after a stall. On the axis of the looks these are the
// times at which the oldest end is older than x.
//
// That holds where one end follows the other without a break. Where there are breaks,
// nothing may be waiting, or nothing that is older; an end at any moment of the break
// would have waited for as much longer as the next one comes later. The mean of that
// is added to each age.
func ages(ends []time.Time, looks []look, from, until time.Time) (all []float64) {
	rest := meanRest(ends)
	for _, k := range looks {
		if k.at.Before(from) || k.at.After(until) {
			continue
		}
		age := 0.0
		if k.known < uint64(len(ends)) {
			age = max(0, k.at.Sub(ends[k.known]).Seconds())
		}
		all = append(all, age+rest)
	}
	slices.Sort(all)
	return all
}

// meanRest is the time from any moment to the next one of times, in the mean, in
// seconds. Where nothing happened for far longer than usual there was no load, and no
// moment of it counts.
func meanRest(times []time.Time) float64 {
	if len(times) < 2 {
		return 0
	}
	most := 10 * times[len(times)-1].Sub(times[0]).Seconds() / float64(len(times)-1)
	var sum, squares float64
	for i := 1; i < len(times); i++ {
		if gap := times[i].Sub(times[i-1]).Seconds(); gap <= most {
			sum += gap
			squares += gap * gap
		}
	}
	if sum == 0 {
		return 0
	}
	return squares / (2 * sum)
}

// quantile returns the value below which the part q of ascending values lies.
func quantile(all []float64, q float64) float64 { return all[int(q*float64(len(all)-1))] }

const (
	// lookEvery is the mean time between two looks. They come at random times, so that
	// they fall in with nothing that the daemon does at regular ones.
	lookEvery = 2500 * time.Microsecond

	// warmUp is how long a load goes on before something happens beside it.
	warmUp = 500 * time.Millisecond

	// onTheWay is for how long an end may be on its way after the load is over.
	onTheWay = 3 * time.Second
)

// errShort says that the load was over before what happened beside it.
var errShort = errors.New("the load was over before what happened beside it")

// watch looks at the backup until stop is closed. It takes a thread of its own at
// real-time priority: it works for a moment each time, and must not wait for a
// processor itself.
func (p *pairUnderTest) watch(stop <-chan struct{}) (looks []look, err error) {
	l, err := p.b.Looker()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		if err := rig.RealTime(0); err != nil {
			done <- err
			return
		}
		for {
			asked := time.Now()
			n, at, err := l.Ends()
			if err != nil {
				done <- err
				return
			}
			looks = append(looks, look{at, at.Sub(asked), n})
			select {
			case <-stop:
				done <- nil
				return
			default:
				nap(time.Duration(rand.ExpFloat64() * float64(lookEvery)))
			}
		}
	}()
	err = <-done
	return looks, err
}

// latency measures how long after the kernel ended a flow the backup knows. Both
// daemons count the ends that they have applied to their external cache, and ends come
// in order: when the count is k, the k-th is known. It is ends that are looked at
// because nothing else is counted alike: what is said of a living flow may be said
// together, and again. See ages for what is made of it. An answer is as old as its way
// when it counts, so what is told is too long by that.
//
// during, if there is one, begins with the load, and only what happens before it
// returns counts.
func (p *pairUnderTest) latency(ctx context.Context, g *generator, rate int, d time.Duration, during func(context.Context) error) (l Latency, err error) {
	first, err := p.b.Counters()
	if err != nil {
		return l, err
	}
	waited, err := p.waited()
	if err != nil {
		return l, err
	}
	type watched struct {
		looks []look
		err   error
	}
	stop, done := make(chan struct{}), make(chan watched, 1)
	go func() {
		looks, err := p.watch(stop)
		done <- watched{looks, err}
	}()
	g.stamp, g.ends = true, nil
	var begun, until time.Time
	ended := make(chan error, 1)
	if during != nil {
		go func() {
			time.Sleep(warmUp)
			begun = time.Now()
			err := during(ctx)
			until = begun.Add(max(time.Since(begun), warmUp)) // or nothing happens meanwhile
			ended <- err
		}()
	} else {
		ended <- nil
	}
	_, took, err := g.churn(ctx, rate, p.o.lives, d)
	g.stamp = false
	if derr := <-ended; err == nil {
		err = derr
	}
	waitedThen, werr := p.waited()
	if err == nil {
		err = werr
	}
	if err == nil { // for those that are on their way
		// What does not come is counted below.
		_ = rig.Wait(onTheWay, "all ends are known", func() (bool, error) {
			time.Sleep(lookEvery)
			c, err := p.b.Counters()
			return c.Deleted-first.Deleted >= uint64(len(g.ends)), err
		})
	}
	close(stop)
	w := <-done
	if err == nil {
		err = w.err
	}
	if err == nil && len(g.ends) == 0 {
		err = errors.New("no flow has ended")
	}
	if err != nil {
		return l, fmt.Errorf("latency: %w", err)
	}
	var ways []float64
	for i := range w.looks {
		w.looks[i].known -= first.Deleted
		ways = append(ways, w.looks[i].took.Seconds())
	}
	last := g.ends[len(g.ends)-1]
	if during == nil {
		begun, until = g.ends[0], last
	}
	if until.After(last) {
		return l, fmt.Errorf("latency: %w, which took %v", errShort, until.Sub(begun))
	}
	all := ages(g.ends, w.looks, begun, until)
	if len(all) == 0 {
		return l, errors.New("latency: nobody looked")
	}
	applied := int(w.looks[len(w.looks)-1].known)
	var parts []float64
	for _, q := range latencyQuantiles {
		parts = append(parts, quantile(all, q))
	}
	return Latency{
		Rate: rate, Parts: parts, Flows: len(g.ends), Missing: len(g.ends) - applied, Seconds: took.Seconds(), Looks: len(all),
		P50: quantile(all, 0.5), P99: quantile(all, 0.99), Max: all[len(all)-1], Way: median(ways),
		WaitedActive: (waitedThen[0] - waited[0]).Seconds(), WaitedBackup: (waitedThen[1] - waited[1]).Seconds(),
	}, nil
}

// waited is for how long both daemons have been without a processor.
func (p *pairUnderTest) waited() (w [2]time.Duration, err error) {
	for i, d := range []*rig.Daemon{p.a, p.b} {
		if w[i], err = rig.Waited(d.PID); err != nil {
			return w, err
		}
	}
	return w, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"syncd/test/bench/rig"
)

// pairUnderTest is one kind of daemon on both nodes.
type pairUnderTest struct {
	rig  *rig.Rig
	a, b *rig.Daemon
	o    options
}

// measure runs all loads on one kind of daemon.
func measure(ctx context.Context, o options, kind rig.Kind) (s *Sample, err error) {
	r, err := rig.New(o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := &pairUnderTest{rig: r, o: o}
	settings := rig.Settings{Flows: o.flows + o.lives, Shipped: o.shipped}
	if p.a, err = r.Start(kind, 0, settings); err != nil {
		return nil, err
	}
	if p.b, err = r.Start(kind, 1, settings); err != nil {
		return nil, err
	}
	g, err := newGenerator(r.A)
	if err != nil {
		return nil, err
	}
	defer g.close()

	s = &Sample{Kind: kind, Scheduling: rig.Scheduling(p.a.PID)}
	if err := p.meet(ctx, g); err != nil {
		return nil, err
	}
	if err := p.fill(ctx, g, s); err != nil {
		return nil, err
	}
	for _, rate := range o.rates {
		l, err := p.load(func() (int, time.Duration, error) { return g.churn(ctx, rate, o.lives, o.duration) })
		if err != nil {
			return nil, fmt.Errorf("churn of %d/s: %w", rate, err)
		}
		l.Target = rate
		s.Churn = append(s.Churn, *l)
	}
	if s.Divergence, err = p.diverged(); err != nil {
		return nil, err
	}
	if s.Latency, err = p.latency(ctx, g, o.latency, o.duration, nil); err != nil {
		return nil, err
	}
	if err := p.packets(ctx, s); err != nil {
		return nil, err
	}
	if err := p.flush(s); err != nil {
		return nil, err
	}
	return s, errors.Join(p.a.Stop(), p.b.Stop())
}

// meet waits until the daemons replicate.
func (p *pairUnderTest) meet(ctx context.Context, g *generator) error {
	if _, _, err := g.fill(ctx, 1, 1000); err != nil {
		return err
	}
	var n uint64
	err := rig.Wait(30*time.Second, "the daemons replicate", func() (ok bool, err error) {
		if _, n, err = p.b.Entries(); err != nil || n != 1 {
			return false, err
		}
		for _, d := range []*rig.Daemon{p.a, p.b} {
			if ok, err = d.InStep(); err != nil || !ok {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w: the backup has %d flows; the active node logs:\n%s\nthe backup logs:\n%s", err, n, p.a.Log(), p.b.Log())
	}
	return nil
}

// fill makes the standing flows and weighs the daemons before and after.
func (p *pairUnderTest) fill(ctx context.Context, g *generator, s *Sample) error {
	before, err := p.memory()
	if err != nil {
		return err
	}
	l, err := p.load(func() (int, time.Duration, error) { return g.fill(ctx, p.o.flows-1, p.o.fillRate) })
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	l.Target = p.o.fillRate
	s.Fill = *l
	after, err := p.memory()
	if err != nil {
		return err
	}
	per := func(after, before int64) float64 { return float64(after-before) / float64(p.o.flows-1) }
	s.Memory = MemoryUse{
		EmptyA: before[0], EmptyB: before[1], FullA: after[0], FullB: after[1],
		PerFlowInternal: per(after[0].PSS, before[0].PSS), PerFlowExternal: per(after[1].PSS, before[1].PSS),
	}
	return nil
}

func (p *pairUnderTest) memory() (m [2]rig.Memory, err error) {
	for i, d := range []*rig.Daemon{p.a, p.b} {
		if m[i], err = rig.MemoryOf(d.PID); err != nil {
			return m, err
		}
	}
	return m, nil
}

// account is everything that is read before and after a load.
type account struct {
	cpuA, cpuB       time.Duration
	a, b             rig.Counters
	drops            uint64
	wireToB, wireToA uint64
}

func (p *pairUnderTest) account() (c account, err error) {
	// What asking costs is not counted: processor time is read last before a load.
	if c.a, err = p.a.Counters(); err == nil {
		c.b, err = p.b.Counters()
	}
	if err == nil {
		c.drops, err = rig.Drops(p.a.PID)
	}
	if err == nil {
		c.wireToB, c.wireToA, err = p.rig.WireBytes()
	}
	if err == nil {
		c.cpuA, c.cpuB, err = p.cpu()
	}
	return c, err
}

func (p *pairUnderTest) cpu() (a, b time.Duration, err error) {
	if a, err = rig.CPU(p.a.PID); err == nil {
		b, err = rig.CPU(p.b.PID)
	}
	return a, b, err
}

const (
	quietFor  = 100 * time.Millisecond
	quietUse  = 0.03 // of one processor, both daemons together
	quietWait = 20 * time.Second

	// keptUp is how long after the end of a load the daemons may still be at work, for the
	// rate to count as held: else they only had room for the backlog.
	keptUp = 500 * time.Millisecond
	// inFull is the part of the target that the generator must have made.
	inFull = 0.93
)

// quiet waits until the daemons have worked everything off and returns the time that
// they took for it, with what they had used of the processors by then.
func (p *pairUnderTest) quiet() (took time.Duration, cpuA, cpuB time.Duration, err error) {
	begin := time.Now()
	lastA, lastB, err := p.cpu()
	for err == nil {
		at := time.Now()
		time.Sleep(quietFor)
		if cpuA, cpuB, err = p.cpu(); err != nil {
			break
		}
		used := (cpuA - lastA + cpuB - lastB).Seconds() / time.Since(at).Seconds()
		if used < quietUse || at.Sub(begin) > quietWait {
			return at.Sub(begin), cpuA, cpuB, nil
		}
		lastA, lastB = cpuA, cpuB
	}
	return 0, 0, 0, err
}

// load runs a load and accounts for it until everything has been worked off.
func (p *pairUnderTest) load(run func() (events int, took time.Duration, err error)) (*Load, error) {
	before, err := p.account()
	if err != nil {
		return nil, err
	}
	n, took, err := run()
	if err != nil {
		return nil, err
	}
	caughtUp, cpuA, cpuB, err := p.quiet()
	if err != nil {
		return nil, err
	}
	after, err := p.account()
	if err != nil {
		return nil, err
	}
	events, messages := float64(n), float64(after.b.Messages()-before.b.Messages())
	l := &Load{
		Rate: events / took.Seconds(), Events: n, Messages: int(messages), Seconds: took.Seconds(),
		CPUActive: float64(cpuA-before.cpuA) / events, CPUBackup: float64(cpuB-before.cpuB) / max(messages, 1),
		WireToBackup: float64(after.wireToB-before.wireToB) / events, WireToActive: float64(after.wireToA-before.wireToA) / events,
		Drops: after.drops - before.drops, Overruns: after.a.Overruns - before.a.Overruns,
		CatchUp: caughtUp.Seconds(),
	}
	l.Held = l.Drops == 0 && l.Overruns == 0 && caughtUp <= keptUp
	return l, nil
}

// diverged compares the backup's external cache with the active node's kernel, after
// the daemons had some time to repair what they have lost.
func (p *pairUnderTest) diverged() (d rig.Divergence, err error) {
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		want, err := rig.KernelTable(p.rig.A)
		if err != nil {
			return d, err
		}
		got, err := p.b.External()
		if err != nil {
			return d, err
		}
		if d = rig.Compare(want, got); d.Zero() || time.Since(begin) > p.patience() {
			return d, nil
		}
	}
}

func (p *pairUnderTest) patience() time.Duration {
	if p.o.quick {
		return 3 * time.Second
	}
	return 10 * time.Second
}

// packets runs the load of real packets. What an event is the daemon itself says: the
// kernel made them.
func (p *pairUnderTest) packets(ctx context.Context, s *Sample) error {
	load, err := newPacketLoad(p.rig, p.o.lives)
	if err != nil {
		return err
	}
	defer load.close()
	before, err := p.a.Counters()
	if err != nil {
		return err
	}
	var sent int
	l, err := p.load(func() (int, time.Duration, error) {
		n, took, err := load.send(ctx, p.o.packets, p.o.duration)
		sent = n
		return n, took, err
	})
	if err != nil {
		return fmt.Errorf("packets: %w", err)
	}
	after, err := p.a.Counters()
	if err != nil {
		return err
	}
	events := float64(after.Events - before.Events)
	if events == 0 {
		return fmt.Errorf("%d packets made no event", sent)
	}
	// load counted by packets.
	byEvent := float64(sent) / events
	l.CPUActive *= byEvent
	l.WireToBackup *= byEvent
	l.WireToActive *= byEvent
	l.Events, l.Rate, l.Target = int(events), l.Rate/byEvent, p.o.packets
	s.Packets, s.PacketsSent = *l, sent
	s.PacketDivergence, err = p.diverged()
	return err
}

// flush empties the kernel's table in one request and looks how long that takes beside
// the daemons, and what is left on the backup.
func (p *pairUnderTest) flush(s *Sample) error {
	count, err := p.rig.A.FlowCount()
	if err != nil {
		return err
	}
	var kernel time.Duration
	l, err := p.load(func() (int, time.Duration, error) {
		begin := time.Now()
		err := rig.FlushKernel(p.rig.A)
		kernel = time.Since(begin)
		return count, kernel, err
	})
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	s.Flush = Flush{Load: *l, KernelSeconds: kernel.Seconds()}
	begin := time.Now()
	for {
		left, err := p.b.External()
		if err != nil {
			return err
		}
		s.Flush.Stale = len(left)
		if len(left) == 0 || time.Since(begin) > p.patience() {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pollEvery is the pause between two looks at the backup's counters.
const pollEvery = 300 * time.Microsecond

// warmUp is how long a load goes on before something happens beside it.
const warmUp = 500 * time.Millisecond

// latency measures how long after the kernel ended a flow the backup knows. Both
// daemons count the ends that they have applied to their external cache, and ends come
// in order: when the count is k, the k-th is known. What is told is too long by the
// time between two looks. It is ends that are looked at because nothing else is
// counted alike: what is said of a living flow may be said together, and again.
//
// during, if there is one, begins with the load, and only ends of flows count that come
// before it returns.
func (p *pairUnderTest) latency(ctx context.Context, g *generator, rate int, d time.Duration, during func(context.Context) error) (l Latency, err error) {
	first, err := p.b.Counters()
	if err != nil {
		return l, err
	}
	type look struct {
		at    time.Time
		known uint64
	}
	var looks []look
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine. It looks for a moment each time,
		// and must not wait for a processor itself.
		runtime.LockOSThread()
		if err := rig.RealTime(0); err != nil {
			done <- err
			return
		}
		for {
			c, err := p.b.Counters()
			if err != nil {
				done <- err
				return
			}
			looks = append(looks, look{time.Now(), c.Deleted - first.Deleted})
			select {
			case <-stop:
				done <- nil
				return
			default:
				nap(pollEvery)
			}
		}
	}()
	g.stamp, g.ends = true, nil
	begun, ended := time.Time{}, make(chan error, 1)
	var until time.Time
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
	time.Sleep(p.patience() / 5) // for those that are on their way
	close(stop)
	if perr := <-done; err == nil {
		err = perr
	}
	if err != nil {
		return l, fmt.Errorf("latency: %w", err)
	}
	var all []float64
	i := 0
	for _, k := range looks {
		for ; i < len(g.ends) && uint64(i) < k.known; i++ {
			if during == nil || g.ends[i].After(begun) && g.ends[i].Before(until) {
				all = append(all, k.at.Sub(g.ends[i]).Seconds())
			}
		}
	}
	if len(all) == 0 {
		return l, errors.New("latency: no flow arrived")
	}
	slices.Sort(all)
	at := func(q float64) float64 { return all[int(q*float64(len(all)-1))] }
	var gaps []float64
	for j := 1; j < len(looks); j++ {
		gaps = append(gaps, looks[j].at.Sub(looks[j-1].at).Seconds())
	}
	return Latency{
		Rate: rate, Flows: len(all), Missing: len(g.ends) - i, Seconds: took.Seconds(),
		P50: at(0.5), P99: at(0.99), Max: all[len(all)-1], Resolution: median(gaps),
	}, nil
}

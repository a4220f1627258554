package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"syncd/test/bench/rig"
)

// pairUnderTest is one kind of daemon on both nodes.
type pairUnderTest struct {
	rig  *rig.Rig
	a, b *rig.Daemon
	o    options
}

// startPair lays out a rig, starts one kind of daemon on both nodes, and waits until
// they replicate what the generator makes on the active one. The generator and the rig
// are to be closed.
func startPair(ctx context.Context, o options, kind rig.Kind, settings rig.Settings) (_ *pairUnderTest, g *generator, err error) {
	r, err := rig.New(o.bin)
	if err != nil {
		return nil, nil, err
	}
	p := &pairUnderTest{rig: r, o: o}
	if p.a, err = r.Start(kind, 0, settings); err == nil {
		p.b, err = r.Start(kind, 1, settings)
	}
	if err == nil {
		g, err = newGenerator(r.A)
	}
	if err == nil {
		if err = p.meet(ctx, g); err != nil {
			err = errors.Join(err, g.close())
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return p, g, nil
}

// measure runs all loads on one kind of daemon.
func measure(ctx context.Context, o options, kind rig.Kind) (s *Sample, err error) {
	p, g, err := startPair(ctx, o, kind, rig.Settings{Flows: o.flows + o.lives, Shipped: o.shipped})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close(), p.rig.Close()) }()
	s = &Sample{Kind: kind, Scheduling: rig.Scheduling(p.a.PID)}
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
	if s.Latency, err = p.latency(ctx, g, o.latency, 2*o.duration, nil); err != nil {
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
	wakesA, wakesB   uint64
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
		c.wakesA, err = rig.Wakeups(p.a.PID)
	}
	if err == nil {
		c.wakesB, err = rig.Wakeups(p.b.PID)
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
		CatchUp:     caughtUp.Seconds(),
		WakesActive: float64(after.wakesA-before.wakesA) / took.Seconds(), WakesBackup: float64(after.wakesB-before.wakesB) / took.Seconds(),
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

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"syncd/test/bench/rig"
)

// Scale is what syncd costs beside a number of standing flows.
type Scale struct {
	Kind   rig.Kind  `json:"kind"`
	Flows  int       `json:"flows"`
	Memory MemoryUse `json:"memory"`
	Churn  []Load    `json:"churn"`

	// GCActive and GCBackup are the garbage collector's part of the processor time.
	GCActive float64 `json:"gc_share_active"`
	GCBackup float64 `json:"gc_share_backup"`

	// Of several runs these are the ones with the median of the 99th percentile.
	Calm   Latency `json:"latency"`
	Bulk   Latency `json:"latency_beside_bulk_update"`
	Resync Latency `json:"latency_beside_kernel_resync"`
	Back   Latency `json:"latency_back_beside_bulk_update"` // from the backup's kernel to the active node, which sends the bulk update
}

// scaleRate is the rate of the load beside which bulk update and resynchronisation run.
const scaleRate = 20000

// scaleLives is how many connections live at a time in that load: few, so that they end
// soon, and there is something to look at.
const scaleLives = scaleRate / 40

// measureScales measures syncd beside each number of flows.
func measureScales(ctx context.Context, o options, res *Results, out io.Writer) error {
	res.Scales = nil
	for _, n := range o.scale {
		s, err := measureScale(ctx, o, n)
		if err != nil {
			return fmt.Errorf("%d flows: %w", n, err)
		}
		res.Scales = append(res.Scales, *s)
		fmt.Fprintf(out, "%d flows\n", n)
	}
	return nil
}

func measureScale(ctx context.Context, o options, flows int) (s *Scale, err error) {
	o.flows = flows
	o.lives = min(o.lives, max(flows/5, scaleLives)) // few beside those that stand
	kind := rig.Sealed
	if slices.Equal(o.kinds, []rig.Kind{rig.Instant}) {
		kind = rig.Instant
	}
	p, g, err := startPair(ctx, o, kind, rig.Settings{Env: []string{rig.GCTrace}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close(), p.rig.Close()) }()
	var sample Sample
	before := [2]gcUse{gcOf(p.a), gcOf(p.b)}
	if err := p.fill(ctx, g, &sample); err != nil {
		return nil, err
	}
	s = &Scale{Kind: kind, Flows: flows, Memory: sample.Memory}
	for _, rate := range o.rates {
		l, err := p.load(func() (int, time.Duration, error) { return g.churn(ctx, rate, o.lives, o.duration) })
		if err != nil {
			return nil, fmt.Errorf("churn of %d/s: %w", rate, err)
		}
		l.Target = rate
		s.Churn = append(s.Churn, *l)
	}
	if s.GCActive, err = gcOf(p.a).share(before[0]); err != nil {
		return nil, err
	}
	if s.GCBackup, err = gcOf(p.b).share(before[1]); err != nil {
		return nil, err
	}
	p.o.lives = scaleLives
	long := 3*warmUp + o.duration + time.Duration(flows)*5*time.Microsecond // enough for what happens beside it
	back, err := newGenerator(p.rig.B)
	if err != nil {
		return nil, err
	}
	defer back.close()
	other := &pairUnderTest{rig: p.rig, a: p.b, b: p.a, o: p.o}
	for _, m := range []struct {
		what   string
		to     *Latency
		from   *pairUnderTest
		g      *generator
		d      time.Duration
		during func(context.Context) error
	}{
		{"alone", &s.Calm, p, g, 2 * o.duration, nil},
		{"beside a bulk update", &s.Bulk, p, g, long, p.bulk},
		{"beside a resynchronisation", &s.Resync, p, g, long, p.resync},
		{"the other way beside a bulk update", &s.Back, other, back, long, p.bulk},
	} {
		var runs []Latency
		for range o.runs {
			l, err := m.from.latency(ctx, m.g, scaleRate, m.d, m.during)
			for d := 2 * m.d; errors.Is(err, errShort) && d <= 8*m.d; d *= 2 {
				l, err = m.from.latency(ctx, m.g, scaleRate, d, m.during)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.what, err)
			}
			runs = append(runs, l)
		}
		slices.SortFunc(runs, func(a, b Latency) int { return cmp.Compare(a.P99, b.P99) })
		*m.to = runs[(len(runs)-1)/2]
	}
	return s, errors.Join(p.a.Stop(), p.b.Stop())
}

// gcUse is processor time.
type gcUse struct {
	gc, all time.Duration
	err     error
}

func gcOf(d *rig.Daemon) (u gcUse) {
	var cerr error
	u.gc, _, u.err = d.GC()
	u.all, cerr = rig.CPU(d.PID)
	u.err = errors.Join(u.err, cerr)
	return u
}

// share is the collector's part of what was used since before.
func (u gcUse) share(before gcUse) (float64, error) {
	return float64(u.gc-before.gc) / float64(max(u.all-before.all, 1)), errors.Join(u.err, before.err)
}

// bulk lets the active node send everything, and waits until the backup has confirmed
// all of it.
func (p *pairUnderTest) bulk(ctx context.Context) error {
	before, err := p.a.Client().Stats(ctx)
	if err != nil {
		return err
	}
	if _, err := p.a.Client().Bulk(ctx); err != nil {
		return err
	}
	return rig.Wait(time.Minute, "the bulk update is complete", func() (bool, error) {
		s, err := p.a.Client().Stats(ctx)
		return err == nil && s.Sync.BulksSent > before.Sync.BulksSent, err
	})
}

// resync lets the active node read its kernel's table again.
func (p *pairUnderTest) resync(ctx context.Context) error {
	before, err := p.a.Client().Stats(ctx)
	if err != nil {
		return err
	}
	if _, err := p.a.Client().Resync(ctx, true); err != nil {
		return err
	}
	return rig.Wait(time.Minute, "the resynchronisation is complete", func() (bool, error) {
		s, err := p.a.Client().Stats(ctx)
		return err == nil && s.Events.Dumps > before.Events.Dumps, err
	})
}

// scaleTable writes what syncd costs by the number of flows.
func (r *Results) scaleTable(out io.Writer) {
	if len(r.Scales) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s, by the number of standing flows\n\n", kindNames[r.Scales[0].Kind])
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "flows\tB a flow, internal\texternal\tGC, active\tbackup\tp99 alone\tbeside bulk\tbeside resync\tback, beside bulk\t")
	for _, l := range r.Scales[0].Churn {
		fmt.Fprintf(w, "µs an event at %dk/s\ta message\t", l.Target/1000)
	}
	fmt.Fprintln(w)
	for i := range r.Scales {
		s := &r.Scales[i]
		fmt.Fprintf(w, "%d\t%.0f\t%.0f\t%.2f %%\t%.2f %%\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\t", s.Flows, s.Memory.PerFlowInternal, s.Memory.PerFlowExternal,
			100*s.GCActive, 100*s.GCBackup, 1e3*s.Calm.P99, 1e3*s.Bulk.P99, 1e3*s.Resync.P99, 1e3*s.Back.P99)
		for _, l := range s.Churn {
			fmt.Fprintf(w, "%.2f\t%.2f\t", l.CPUActive/1e3, l.CPUBackup/1e3)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

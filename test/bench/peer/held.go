package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"syncd/test/bench/rig"
)

// HeldResults are the highest rates that were held.
type HeldResults struct {
	rig.Machine
	Flows     int     `json:"flows"`
	DurationS float64 `json:"duration_s"`
	Rates     []Held  `json:"rates"`
}

// Held is the search for the highest rate that one kind of daemon holds, in one run.
type Held struct {
	Kind rig.Kind `json:"kind"`
	Run  int      `json:"run"`

	// Share is of one processor, for each of the two daemons; 0 is no limit.
	Share      float64 `json:"share"`
	Scheduling string  `json:"scheduling"`

	Rate    float64 `json:"events_per_s"` // the highest that was made and held
	Limited bool    `json:"limited"`      // nothing that the generator made was too much
	Loads   []Load  `json:"loads"`        // in the order in which they were tried

	Divergence rig.Divergence `json:"divergence"` // at the end, when all losses should have been repaired
}

// leastShare is what a daemon must be able to use so that it is seen to be at work.
const leastShare = 2 * quietUse

// shares reads a list of shares of a processor. An empty one is none.
func shares(list string) (all []float64, err error) {
	if list == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(list, ",") {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || !(v >= 0 && v <= 1) || v > 0 && v < leastShare {
			return nil, fmt.Errorf("-held: %q is no share of a processor, %v to 1, nor 0 for no limit", text, leastShare)
		}
		all = append(all, v)
	}
	return all, nil
}

// ladder are the rates that are tried: each is an eighth more than the one before.
func ladder(from, to float64) (rates []int) {
	for r := from; r <= to; r *= 1.125 {
		rates = append(rates, int(r/1000)*1000)
	}
	return rates
}

// search looks for the highest step of the ladder that is held, with a load for each
// step that it tries. What counts is what the generator made, which may be less.
func search(rates []int, try func(rate int) (*Load, error)) (h Held, err error) {
	h.Limited = true
	for low, high := 0, len(rates); low < high; {
		i := (low + high) / 2
		l, err := try(rates[i])
		if err != nil {
			return h, err
		}
		l.Target = rates[i]
		h.Loads = append(h.Loads, *l)
		if !l.Held {
			high, h.Limited = i, false
			continue
		}
		low = i + 1
		h.Rate = max(h.Rate, l.Rate)
	}
	return h, nil
}

// Rates between which the search is. Below the first nobody has trouble; the last is
// more than this generator makes anywhere.
const (
	heldFrom = 20_000
	heldTo   = 640_000
)

// recovery is how long after a loss all daemons have begun to repair it: conntrackd
// waits for five seconds by its configuration.
const recovery = 6 * time.Second

// measureHeld searches for one kind of daemon.
func measureHeld(ctx context.Context, o options, kind rig.Kind, share float64) (h *Held, err error) {
	r, err := rig.New(o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := &pairUnderTest{rig: r, o: o}
	settings := rig.Settings{Flows: o.flows + o.lives, Shipped: o.shipped, Ordinary: share > 0}
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
	var sample Sample
	if err := p.meet(ctx, g); err != nil {
		return nil, err
	}
	if err := p.fill(ctx, g, &sample); err != nil {
		return nil, err
	}
	found, err := search(ladder(heldFrom, heldTo), func(rate int) (*Load, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := p.confined(share, func() (int, time.Duration, error) { return g.churn(ctx, rate, o.lives, o.duration) })
		if err != nil {
			return nil, fmt.Errorf("churn of %d/s: %w", rate, err)
		}
		if !l.Held { // so that the next load finds it in step, without a limit meanwhile
			time.Sleep(recovery)
			if _, _, _, err := p.quiet(); err != nil {
				return nil, err
			}
		}
		return l, nil
	})
	if err != nil {
		return nil, err
	}
	h = &found
	h.Kind, h.Share, h.Scheduling = kind, share, rig.Scheduling(p.a.PID)
	if h.Divergence, err = p.diverged(); err != nil {
		return nil, err
	}
	return h, errors.Join(p.a.Stop(), p.b.Stop(), rig.FlushKernel(r.A))
}

// confined runs a load while each of the two daemons has only a share of one processor;
// all of it if the share is 0.
func (p *pairUnderTest) confined(share float64, run func() (int, time.Duration, error)) (l *Load, err error) {
	if share == 0 {
		return p.load(run)
	}
	for _, d := range []*rig.Daemon{p.a, p.b} {
		release, cerr := rig.Confine(d.Node.Namespace(), d.PID, share)
		if cerr != nil {
			return nil, cerr
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	return p.load(run)
}

// measureHolds searches for all kinds by turns, with each share of a processor.
func measureHolds(ctx context.Context, o options, res *Results, out io.Writer) error {
	h := &HeldResults{Machine: rig.ThisMachine(o.bin), Flows: o.flows, DurationS: o.duration.Seconds()}
	res.Held = h
	for n := range o.runs {
		for _, share := range o.held {
			for _, k := range rig.Turn(o.kinds, n) {
				begin := time.Now()
				s, err := measureHeld(ctx, o, k, share)
				if err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
				s.Run = n + 1
				h.Rates = append(h.Rates, *s)
				fmt.Fprintf(out, "run %d, %s, %s, %s: holds %.0f/s%s; afterwards %+v (%d loads, %v)\n", s.Run, shareText(share), k, s.Scheduling,
					s.Rate, map[bool]string{true: " (more was not made)"}[s.Limited], s.Divergence, len(s.Loads), time.Since(begin).Round(time.Second))
			}
		}
	}
	return nil
}

func shareText(share float64) string {
	if share == 0 {
		return "without a limit"
	}
	return fmt.Sprintf("%.0f %% of a processor each", 100*share)
}

// median returns that of the rates of a kind, and whether more was not made in any run.
func (r *HeldResults) median(k rig.Kind, share float64) (rate float64, limited, there bool) {
	var all []float64
	for i := range r.Rates {
		if h := &r.Rates[i]; h.Kind == k && h.Share == share {
			all = append(all, h.Rate)
			limited = limited || h.Limited
		}
	}
	if len(all) == 0 {
		return 0, false, false
	}
	return rig.Median(all), limited, true
}

// table writes the medians and their ratios to conntrackd.
func (r *HeldResults) table(out io.Writer) {
	if r == nil {
		return
	}
	var shares []float64
	for i := range r.Rates {
		if !slices.Contains(shares, r.Rates[i].Share) {
			shares = append(shares, r.Rates[i].Share)
		}
	}
	fmt.Fprintf(out, "\n%d processors, Linux %s; highest rate held without loss for %.1f s beside %d standing flows, medians; +: more was not made\n\n",
		r.CPUs, r.Kernel, r.DurationS, r.Flows)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "conntrackd (k/s)\tsyncd\tplain\tratio\tplain\tgoal\t  processor time")
	for _, share := range shares {
		base, _, _ := r.median(rig.Conntrackd, share)
		var rates, ratios []string
		for _, k := range []rig.Kind{rig.Conntrackd, rig.Sealed, rig.Plain} {
			rate, limited, there := r.median(k, share)
			text, ratio := "-", "-"
			if there {
				text = fmt.Sprintf("%.0f%s", rate/1e3, map[bool]string{true: "+"}[limited])
			}
			if there && base > 0 {
				ratio = fmt.Sprintf("%.2f%s", rate/base, map[bool]string{true: "+"}[limited])
			}
			rates, ratios = append(rates, text), append(ratios, ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t≥ 2\t  %s\n", rates[0], rates[1], rates[2], ratios[1], ratios[2], shareText(share))
	}
	w.Flush()
}

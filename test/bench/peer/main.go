// Command peer measures syncd beside Debian's conntrackd: by turns on the same kind
// of nodes, under the same load from one generator. `make bench-peer` runs it;
// docs/performance.md explains the method and shows results.
//
// It needs root. It raises nf_conntrack_max and nf_conntrack_buckets of the machine
// while it runs, and puts them back.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"syncd/internal/lab"
	"syncd/test/bench/rig"
)

// options are the flags.
type options struct {
	bin      string
	kinds    []rig.Kind
	runs     int
	flows    int
	fillRate int
	rates    []int
	duration time.Duration
	lives    int
	latency  int // rate of the load beside which latency is measured
	packets  int // a second
	shipped  bool
	quick    bool
	json     string
	add      bool
	charts   string
	into     string
	report   bool
	scale    []int     // numbers of standing flows
	held     []float64 // shares of a processor
}

func main() {
	var o options
	var kinds, rates, scale, held string
	flag.StringVar(&o.bin, "syncd", "bin/syncd", "the syncd to measure")
	flag.StringVar(&kinds, "kinds", "syncd,syncd-plain,conntrackd", "what is measured, in the order of the first run")
	flag.IntVar(&o.runs, "runs", 3, "runs of each, of which the table shows medians")
	flag.IntVar(&o.flows, "flows", 200000, "established flows that stand beside the churn")
	flag.IntVar(&o.fillRate, "fill-rate", 100000, "flows a second that are created first")
	flag.StringVar(&rates, "rates", "1000,10000,50000,100000,150000,200000,300000,400000", "events a second of the churn, one load each")
	flag.DurationVar(&o.duration, "duration", 4*time.Second, "of each load")
	flag.IntVar(&o.lives, "lives", 20000, "connections that live at the same time in the churn")
	flag.IntVar(&o.latency, "latency-rate", 100000, "events a second while latency is measured")
	flag.IntVar(&o.packets, "packets", 100000, "packets a second of the load of real packets")
	flag.BoolVar(&o.shipped, "shipped", false, "leave conntrackd the socket buffers of Debian's example (2 MiB, growing to 8) instead of those of syncd")
	flag.BoolVar(&o.quick, "quick", false, "a few seconds with small numbers, to see that it works")
	flag.StringVar(&o.json, "json", "", "write all results to this `file`")
	flag.BoolVar(&o.add, "add", false, "add to the results in the file of -json instead of replacing them")
	flag.StringVar(&o.charts, "charts", "", "draw charts of the results into this `directory`")
	flag.StringVar(&o.into, "into", "", "write the tables into this Markdown `file`, between <!-- peer --> and <!-- /peer -->, or <!-- scale -->")
	flag.BoolVar(&o.report, "report", false, "measure nothing: only show what the file of -json has")
	flag.StringVar(&scale, "scale", "", "instead of all that: syncd alone, sealed (or with -kinds syncd-instant), beside so many standing flows, a list (10000,100000,1000000,2000000)")
	flag.StringVar(&held, "held", "", "instead of all that: search for the highest rate held while each daemon has such a share of one processor, a list (0.4,0); 0 is no limit")
	rig.Main("peer", func() error { return o.parse(kinds, rates, scale, held) },
		func(ctx context.Context) error { return run(ctx, o, os.Stdout) })
}

// parse takes over the lists.
func (o *options) parse(kinds, rates, scale, held string) (err error) {
	if o.held, err = shares(held); err != nil {
		return err
	}
	if o.kinds, err = rig.ParseKinds(kinds); err != nil {
		return fmt.Errorf("-kinds: %w", err)
	}
	if o.rates, err = numbers("-rates", rates); err != nil {
		return err
	}
	if scale != "" {
		if o.scale, err = numbers("-scale", scale); err != nil {
			return err
		}
	}
	if o.report && o.json == "" {
		return fmt.Errorf("-report needs -json FILE")
	}
	if o.quick {
		o.runs, o.flows, o.rates, o.duration = 1, 2000, []int{5000}, 300*time.Millisecond
		o.lives, o.latency, o.packets, o.fillRate = 200, 5000, 5000, 20000
	}
	if min(o.runs, o.flows, o.fillRate, o.lives, o.latency, o.packets) < 1 || o.duration <= 0 {
		return fmt.Errorf("numbers of runs, flows and lives, rates and the duration must be positive")
	}
	return nil
}

// numbers reads a list of positive numbers.
func numbers(flag, list string) (all []int, err error) {
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%s: %q is no positive number", flag, text)
		}
		all = append(all, n)
	}
	return all, nil
}

// run measures everything and reports.
func run(ctx context.Context, o options, out io.Writer) error {
	debug.SetGCPercent(800) // the generator should not pause for its own garbage
	var res Results
	if o.add || o.report {
		if err := rig.LoadResults(o.json, &res); err != nil {
			return err
		}
	}
	if !o.report {
		if err := measureAll(ctx, o, &res, out); err != nil {
			return err
		}
	}
	res.table(out)
	if !o.report {
		if err := rig.SaveResults(o.json, &res); err != nil {
			return err
		}
	}
	if o.into != "" {
		if err := res.into(o.into); err != nil {
			return err
		}
	}
	if o.charts != "" {
		return res.draw(o.charts)
	}
	return nil
}

func measureAll(ctx context.Context, o options, res *Results, out io.Writer) (err error) {
	if err := lab.Usable(); err != nil {
		return err
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := exec.LookPath(o.bin); err != nil {
		return fmt.Errorf("the program to measure: %w (make build)", err)
	}
	if _, err := lab.Sweep(rig.Prefix); err != nil {
		return err
	}
	restore, err := rig.RaiseTable(2 * (max(o.flows, slices.Max(append([]int{0}, o.scale...))) + o.lives))
	defer func() {
		if rerr := restore(); err == nil {
			err = rerr
		}
	}()
	if err != nil {
		return err
	}
	res.describe(o)
	if o.held != nil {
		return measureHolds(ctx, o, res, out)
	}
	if o.scale != nil {
		return measureScales(ctx, o, res, out)
	}
	earlier := res.runs()
	for n := range o.runs {
		// Whoever comes first in one run comes last in the next.
		order := slices.Clone(o.kinds)
		turn := (earlier + n) % len(order)
		order = append(order[turn:], order[:turn]...)
		for _, k := range order {
			begin := time.Now()
			s, err := measure(ctx, o, k)
			if err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
			s.Run = earlier + n + 1
			res.Samples = append(res.Samples, *s)
			fmt.Fprintf(out, "run %d, %s: %v\n", s.Run, k, time.Since(begin).Round(time.Second))
		}
	}
	return nil
}

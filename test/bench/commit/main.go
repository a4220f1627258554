// Command commit measures how long syncd and Debian's conntrackd take to put what
// they hold of a peer into the kernel, and to read the kernel's table: by turns on the
// same kind of nodes, with the same flows, while the peer's events go on. `make
// bench-commit` runs it; docs/performance.md explains the method and shows results.
//
// It needs root. It raises nf_conntrack_max and nf_conntrack_buckets of the machine
// while it runs, and puts them back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"syncd/test/bench/rig"
)

type options struct {
	bin   string
	kinds []rig.Kind
	flows []int
	runs  int
	churn int // events a second on the active node
	env   []string
	alone bool
	json  string
	add   bool
}

func main() {
	var o options
	var kinds, flows, env string
	flag.StringVar(&o.bin, "syncd", "bin/syncd", "the syncd to measure")
	flag.StringVar(&kinds, "kinds", "syncd,conntrackd", "what is measured, in the order of the first run")
	flag.StringVar(&flows, "flows", "1000,100000,1000000", "flows that are committed, one size after the other")
	flag.IntVar(&o.runs, "runs", 3, "runs of each, of which the table shows medians")
	flag.IntVar(&o.churn, "churn", 5000, "events a second on the active node meanwhile")
	flag.BoolVar(&o.alone, "alone", false, "stop the active node's daemon before the commit: then nobody else on the machine listens to the kernel")
	flag.StringVar(&env, "env", "", "more of the environment of syncd, separated by commas")
	flag.StringVar(&o.json, "json", "", "write all results to this `file`")
	flag.BoolVar(&o.add, "add", false, "add to the results in the file of -json instead of replacing them")
	rig.Main("commit", func() error { return o.parse(kinds, flows, env) },
		func(ctx context.Context) error { return run(ctx, &o, os.Stdout) })
}

// parse takes over the lists.
func (o *options) parse(kinds, flows, env string) (err error) {
	if o.kinds, err = rig.ParseKinds(kinds); err != nil {
		return fmt.Errorf("-kinds: %w", err)
	}
	for _, f := range strings.Split(flows, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n <= 0 || n > maxFlows {
			return fmt.Errorf("-flows: %q is no number up to %d", f, maxFlows)
		}
		o.flows = append(o.flows, n)
	}
	if env != "" {
		o.env = strings.Split(env, ",")
	}
	return nil
}

// earlier returns the results to which those of this run are added.
func (o *options) earlier() (samples []Sample, err error) {
	if !o.add {
		return nil, nil
	}
	var r Report
	err = rig.LoadResults(o.json, &r)
	return r.Samples, err
}

// run measures everything and reports.
func run(ctx context.Context, o *options, out io.Writer) (err error) {
	var restore func() error
	o.bin, restore, err = rig.Prepare(o.bin, 2*slices.Max(o.flows))
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	samples, err := o.earlier()
	if err != nil {
		return err
	}
	for _, flows := range o.flows {
		for n := range o.runs {
			for _, k := range rig.Turn(o.kinds, len(samples)/len(o.kinds)+n) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				begin := time.Now()
				s, err := measure(ctx, o, k, flows)
				if err != nil {
					return fmt.Errorf("%s, %d flows: %w", k, flows, err)
				}
				s.Run = 1
				for i := range samples {
					if samples[i].Kind == k && samples[i].Flows == flows {
						s.Run++
					}
				}
				samples = append(samples, *s)
				fmt.Fprintf(out, "run %d, %d flows, %s: commit %.3f s by its own words, %.3f s for who waits, its processor %.3f s, its cache in step after %.1f s; again %.3f s; table read in %.3f s (%v in all)\n",
					s.Run, flows, k, s.CommitS, s.WallS, s.CPUS, s.SettledS, s.AgainS, s.ReadS, time.Since(begin).Round(time.Second))
			}
		}
	}
	report := summarize(o, samples)
	report.table(out)
	return rig.SaveResults(o.json, report)
}

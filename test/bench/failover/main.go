// Command failover measures what becomes of connections and caches when something
// dies, with syncd and with Debian's conntrackd by turns: the active node of a pair that
// keepalived drives (how long until connections go on by the other node, and which do),
// and the link between the nodes (what the backup holds that is no more when the link is
// back). `make bench-failover` runs it; docs/performance.md explains the method and shows
// results.
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
	"os/exec"
	"time"

	"syncd/test/bench/rig"
)

type options struct {
	bin        string
	keepalived string
	json       string
	markdown   string

	kinds       []rig.Kind
	runs        int
	flows       int
	connections int // of TCP, and as many of UDP
	every       time.Duration
	back        time.Duration // for a connection to come back

	cutKinds   []rig.Kind
	cutRuns    int
	cutFlows   int
	cutChanges int
	cut        time.Duration
}

func main() {
	var o options
	var kinds, cutKinds string
	flag.StringVar(&o.bin, "syncd", "bin/syncd", "the syncd to measure")
	flag.StringVar(&o.keepalived, "keepalived", "deploy/keepalived/keepalived.conf", "`file` with the configuration of keepalived that operators start from")
	flag.StringVar(&kinds, "kinds", "syncd,syncd-instant,conntrackd", "whose node dies, in the order of the first run")
	flag.IntVar(&o.runs, "runs", 3, "deaths of each, of which the table shows medians; 0 for none")
	flag.IntVar(&o.flows, "flows", 200000, "established flows in the background of a death")
	flag.IntVar(&o.connections, "connections", 32, "TCP connections that are probed, and as many UDP mappings")
	flag.DurationVar(&o.every, "every", 10*time.Millisecond, "time between two probes of a connection")
	flag.DurationVar(&o.back, "back", 10*time.Second, "how long a connection may take to come back")
	flag.StringVar(&cutKinds, "cut-kinds", "syncd,syncd-plain,conntrackd", "whose link is cut, in the order of the first run")
	flag.IntVar(&o.cutRuns, "cut-runs", 2, "cuts of each, of which the table shows medians; 0 for none")
	flag.IntVar(&o.cutFlows, "cut-flows", 500000, "established flows before the cut")
	flag.IntVar(&o.cutChanges, "cut-changes", 400000, "of them that end during the cut")
	flag.DurationVar(&o.cut, "cut", 10*time.Second, "how long the link is cut")
	flag.StringVar(&o.json, "json", "", "write all results to this `file`")
	flag.StringVar(&o.markdown, "markdown", "", "write the tables to this `file`, as docs/performance.md shows them")
	rig.Main("failover", func() error { return o.parse(kinds, cutKinds) },
		func(ctx context.Context) error { return run(ctx, &o, os.Stdout) })
}

// parse takes over the lists and checks the numbers.
func (o *options) parse(kinds, cutKinds string) (err error) {
	if o.kinds, err = rig.ParseKinds(kinds); err != nil {
		return fmt.Errorf("-kinds: %w", err)
	}
	if o.cutKinds, err = rig.ParseKinds(cutKinds); err != nil {
		return fmt.Errorf("-cut-kinds: %w", err)
	}
	switch {
	case o.runs < 0 || o.cutRuns < 0 || o.runs+o.cutRuns == 0:
		return fmt.Errorf("-runs %d and -cut-runs %d: nothing to do", o.runs, o.cutRuns)
	case o.flows < 1 || o.cutFlows < 1 || o.cutChanges < 1 || o.cutChanges > o.cutFlows:
		return fmt.Errorf("numbers of flows and changes must be positive, and no more than there are flows may end")
	case o.connections < 1 || o.connections > 1000:
		return fmt.Errorf("-connections %d: 1 to 1000", o.connections)
	case o.every < time.Millisecond || o.every > speakTime/10:
		return fmt.Errorf("-every %v: 1ms to %v", o.every, speakTime/10)
	case o.cut <= 0 || o.back <= 0:
		return fmt.Errorf("-cut %v and -back %v: must be positive", o.cut, o.back)
	}
	return nil
}

// run measures everything and reports.
func run(ctx context.Context, o *options, out io.Writer) (err error) {
	if _, err := exec.LookPath("keepalived"); err != nil && o.runs > 0 {
		return fmt.Errorf("%w (make peers installs it)", err)
	}
	room := 0
	if o.runs > 0 {
		room = o.flows
	}
	if o.cutRuns > 0 {
		room = max(room, o.cutFlows)
	}
	var restore func() error
	o.bin, restore, err = rig.Prepare(o.bin, 2*room+10000)
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	r := &Report{Machine: rig.ThisMachine(o.bin)}
	err = byTurns(ctx, o.runs, o.kinds, func(k rig.Kind, n int) error {
		s, err := measureTakeover(ctx, o, k)
		if err != nil {
			return fmt.Errorf("death of a %s: %w", k, err)
		}
		s.Run = n
		r.Takeovers = append(r.Takeovers, *s)
		fmt.Fprintf(out, "death %d, %s: new flows pass after %.2f s; the last connection %.3f s later (TCP %.3f s, %d of %d kept; UDP %.3f s, %d of %d kept, %d never moved); commit %.3f s; probes at most %.0f ms apart\n",
			n, k, s.DownS, s.LastS, s.LastTCPS, s.TCPKept, s.TCP, s.LastUDPS, s.UDPKept, s.UDP, s.UDPUnmoved, s.CommitS, s.RoundS*1e3)
		return nil
	})
	if err != nil {
		return err
	}
	err = byTurns(ctx, o.cutRuns, o.cutKinds, func(k rig.Kind, n int) error {
		s, err := measureCut(ctx, o, k)
		if err != nil {
			return fmt.Errorf("cut of the link of %s: %w", k, err)
		}
		s.Run = n
		r.Cuts = append(r.Cuts, *s)
		fmt.Fprintf(out, "cut %d, %s: %d of %d flows ended in %.1f s of %.1f; clean after %.2f s, proven after %.2f s; after %.1f s %+v\n",
			n, k, s.Changes, s.Flows, s.ChangesS, s.CutS, s.CleanS, s.ProvenS, s.LookedS, s.Divergence)
		return nil
	})
	if err != nil {
		return err
	}
	r.summarize()
	r.table(out)
	if o.markdown != "" {
		if err := os.WriteFile(o.markdown, []byte(r.markdown()), 0o644); err != nil {
			return err
		}
	}
	return rig.SaveResults(o.json, r)
}

// byTurns measures all kinds in each run.
func byTurns(ctx context.Context, runs int, kinds []rig.Kind, measure func(k rig.Kind, run int) error) error {
	for n := range runs {
		for _, k := range rig.Turn(kinds, n) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := measure(k, n+1); err != nil {
				return err
			}
		}
	}
	return nil
}

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"

	"syncd/test/bench/chart"
	"syncd/test/bench/rig"
)

var kindNames = map[rig.Kind]string{rig.Sealed: "syncd, sealed", rig.Plain: "syncd, conntrackd's dialect", rig.Conntrackd: "conntrackd", rig.Instant: "syncd, instant takeover"}

// write writes a chart to a file, unless there is nothing to draw: then a chart of
// other results stays.
func write(dir, name string, c *chart.Chart) error {
	if len(c.Series) == 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, name), c.SVG(), 0o644); err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	return nil
}

// draw writes the charts of docs/performance.md.
func (r *Results) draw(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	curve := func(k rig.Kind, value func(*Load) float64) (s chart.Series) {
		s.Name = kindNames[k]
		for _, t := range r.targets() {
			x := r.of(k, func(s *Sample) float64 { return s.churn(t).Rate })
			if y := r.of(k, func(s *Sample) float64 { return value(s.churn(t)) }); !math.IsNaN(x) && !math.IsNaN(y) {
				s.Points = append(s.Points, chart.Point{X: x, Y: y})
			}
		}
		return s
	}
	for _, c := range []struct {
		file, title, y string
		value          func(*Load) float64
	}{
		{"cpu-active.svg", "CPU of the active node's daemon", "µs per event", func(l *Load) float64 { return l.CPUActive / 1e3 }},
		{"cpu-backup.svg", "CPU of the backup's daemon", "µs per message", func(l *Load) float64 { return l.CPUBackup / 1e3 }},
	} {
		ch := chart.Chart{Title: c.title, X: "events made a second", Y: c.y, LogX: true, LogY: true}
		for _, k := range []rig.Kind{rig.Conntrackd, rig.Sealed, rig.Plain} {
			if s := curve(k, c.value); len(s.Points) > 0 {
				ch.Series = append(ch.Series, s)
			}
		}
		if err := write(dir, c.file, &ch); err != nil {
			return err
		}
	}
	if err := r.drawLatency(dir); err != nil {
		return err
	}
	return r.drawScales(dir)
}

// drawLatency writes the chart of the part of the ends that the backup has applied
// within a time: up to the 99th percentile, medians of the runs.
func (r *Results) drawLatency(dir string) error {
	c := chart.Chart{Title: "Latency from the kernel's event to the peer's cache", X: "ms", Y: "% of the ends known"}
	for _, k := range []rig.Kind{rig.Conntrackd, rig.Sealed, rig.Plain} {
		s := chart.Series{Name: kindNames[k]}
		for _, q := range latencyQuantiles {
			if q > 0.99 {
				break
			}
			if x := r.of(k, func(s *Sample) float64 { return s.Latency.quantile(q) }); !math.IsNaN(x) {
				s.Points = append(s.Points, chart.Point{X: x * 1e3, Y: q * 100})
			}
		}
		if len(s.Points) > 0 {
			c.Series = append(c.Series, s)
		}
	}
	return write(dir, "latency.svg", &c)
}

// drawScales writes the charts by the number of flows, if there is something to draw.
func (r *Results) drawScales(dir string) error {
	if len(r.Scales) == 0 {
		return nil
	}
	name := kindNames[r.Scales[0].Kind]
	line := func(name string, value func(*Scale) float64) (s chart.Series) {
		s.Name = name
		for i := range r.Scales {
			s.Points = append(s.Points, chart.Point{X: float64(r.Scales[i].Flows), Y: value(&r.Scales[i])})
		}
		return s
	}
	cost := chart.Chart{Title: name + ": cost by the number of flows", X: "standing flows", Y: "µs", LogX: true, LogY: true}
	for i, l := range r.Scales[0].Churn {
		at := fmt.Sprintf(" at %dk/s", l.Target/1000)
		cost.Series = append(cost.Series,
			line("an event"+at, func(s *Scale) float64 { return s.Churn[i].CPUActive / 1e3 }),
			line("a message"+at, func(s *Scale) float64 { return s.Churn[i].CPUBackup / 1e3 }))
	}
	latency := chart.Chart{Title: name + ": 99th percentile of latency", X: "standing flows", Y: "ms", LogX: true, Series: []chart.Series{
		line("alone", func(s *Scale) float64 { return s.Calm.P99 * 1e3 }),
		line("beside a bulk update", func(s *Scale) float64 { return s.Bulk.P99 * 1e3 }),
		line("beside a resynchronisation", func(s *Scale) float64 { return s.Resync.P99 * 1e3 }),
		line("other way, beside a bulk update", func(s *Scale) float64 { return s.Back.P99 * 1e3 }),
	}}
	memory := chart.Chart{Title: name + ": memory", X: "standing flows", Y: "octets a flow", LogX: true, Series: []chart.Series{
		line("internal cache", func(s *Scale) float64 { return s.Memory.PerFlowInternal }),
		line("external cache", func(s *Scale) float64 { return s.Memory.PerFlowExternal }),
	}}
	gc := chart.Chart{Title: name + ": part of the garbage collector", X: "standing flows", Y: "% of the processor time", LogX: true, Series: []chart.Series{
		line("active node", func(s *Scale) float64 { return s.GCActive * 100 }),
		line("backup", func(s *Scale) float64 { return s.GCBackup * 100 }),
	}}
	for name, c := range map[string]*chart.Chart{"scale-gc.svg": &gc, "scale-cost.svg": &cost, "scale-latency.svg": &latency, "scale-memory.svg": &memory} {
		if err := write(dir, name, c); err != nil {
			return err
		}
	}
	return nil
}

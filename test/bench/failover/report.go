package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"syncd/test/bench/rig"
)

// Report is everything that was measured.
type Report struct {
	rig.Machine
	Takeovers []Takeover `json:"takeovers"`
	Cuts      []Cut      `json:"cuts"`
	Summary   []Row      `json:"summary"`
}

// Row is a figure, as the median of all runs. It is missing for a kind of daemon of which
// there is none: because it was not measured, or because it never came to that.
type Row struct {
	What   string               `json:"what"`
	Unit   string               `json:"unit"`
	Goal   string               `json:"goal,omitempty"`
	Values map[rig.Kind]float64 `json:"values"`
	Ratio  map[rig.Kind]float64 `json:"ratio_to_conntrackd,omitempty"`
}

// row makes a row of what a figure, which says whether there is one, has in the samples.
func row[S any](samples []S, kind func(*S) rig.Kind, what, unit, goal string, figure func(*S) (float64, bool)) Row {
	r := Row{What: what, Unit: unit, Goal: goal, Values: map[rig.Kind]float64{}, Ratio: map[rig.Kind]float64{}}
	all, never := map[rig.Kind][]float64{}, map[rig.Kind]bool{}
	for i := range samples {
		k := kind(&samples[i])
		if v, ok := figure(&samples[i]); ok {
			all[k] = append(all[k], v)
		} else {
			never[k] = true
		}
	}
	for k, v := range all {
		if !never[k] {
			r.Values[k] = rig.Median(v)
		}
	}
	if base := r.Values[rig.Conntrackd]; base > 0 && unit == "s" {
		for k, v := range r.Values {
			if k != rig.Conntrackd {
				r.Ratio[k] = v / base
			}
		}
	}
	return r
}

func (r *Report) summarize() {
	r.Summary = nil
	add := func(what, unit, goal string, figure func(*Takeover) (float64, bool)) {
		if len(r.Takeovers) > 0 {
			r.Summary = append(r.Summary, row(r.Takeovers, func(s *Takeover) rig.Kind { return s.Kind }, what, unit, goal, figure))
		}
	}
	share := func(n, of int) (float64, bool) { return 100 * float64(n) / float64(of), true }
	add("from new flows pass to the last connection restored", "s", "≤ 0.25; 0 with instant", func(s *Takeover) (float64, bool) { return s.LastS, s.TCPKept+s.UDPKept > 0 })
	add("the last TCP connection", "s", "", func(s *Takeover) (float64, bool) { return s.LastTCPS, s.TCPKept > 0 })
	add("the median TCP connection", "s", "", func(s *Takeover) (float64, bool) { return s.MedianTCPS, s.TCPKept > 0 })
	add("the last UDP mapping", "s", "", func(s *Takeover) (float64, bool) { return s.LastUDPS, s.UDPKept > 0 })
	add("the median UDP mapping", "s", "", func(s *Takeover) (float64, bool) { return s.MedianUDPS, s.UDPKept > 0 })
	add("TCP connections kept", "%", "", func(s *Takeover) (float64, bool) { return share(s.TCPKept, s.TCP) })
	add("UDP mappings kept", "%", "", func(s *Takeover) (float64, bool) { return share(s.UDPKept, s.UDP) })
	add("UDP mappings that never changed", "%", "", func(s *Takeover) (float64, bool) { return share(s.UDPUnmoved, s.UDP) })
	add("commit, by the daemon's own words", "s", "", func(s *Takeover) (float64, bool) { return s.CommitS, true })
	add("from the death to new flows pass: keepalived's", "s", "", func(s *Takeover) (float64, bool) { return s.DownS, true })

	cut := func(what, unit, goal string, figure func(*Cut) (float64, bool)) {
		if len(r.Cuts) > 0 {
			r.Summary = append(r.Summary, row(r.Cuts, func(s *Cut) rig.Kind { return s.Kind }, what, unit, goal, figure))
		}
	}
	cut("stale entries on the backup", "flows", "0", func(s *Cut) (float64, bool) { return float64(s.Divergence.Stale), true })
	cut("missing or different entries", "flows", "0", func(s *Cut) (float64, bool) { return float64(s.Divergence.Missing + s.Divergence.Different), true })
	cut("from the link's return until none was stale", "s", "≤ 10 s", func(s *Cut) (float64, bool) { return s.CleanS, s.CleanS > 0 })
	cut("from the link's return until proven in step", "s", "", func(s *Cut) (float64, bool) { return s.ProvenS, s.ProvenS > 0 })
}

// kinds are those that were measured, conntrackd first.
func (r *Report) kinds() (kinds []rig.Kind) {
	for _, k := range []rig.Kind{rig.Conntrackd, rig.Sealed, rig.Plain, rig.Instant} {
		if slices.ContainsFunc(r.Summary, func(row Row) bool { _, ok := row.Values[k]; return ok }) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// cells returns the texts of a row: of each kind its value, and behind it, but for
// conntrackd, the ratio.
func (row *Row) cells(kinds []rig.Kind) (cells []string) {
	for _, k := range kinds {
		text := "-"
		if v, ok := row.Values[k]; ok {
			switch row.Unit {
			case "s":
				text = fmt.Sprintf("%.3f", v)
			default:
				text = fmt.Sprintf("%.0f", v)
			}
		}
		if v, ok := row.Ratio[k]; ok {
			text += fmt.Sprintf(" (%.2f)", v)
		}
		cells = append(cells, text)
	}
	return cells
}

func (r *Report) headline() string {
	return fmt.Sprintf("%d processors, Linux %s; medians of all runs, in parentheses the ratio to conntrackd", r.CPUs, r.Kernel)
}

// table writes the medians.
func (r *Report) table(out io.Writer) {
	kinds := r.kinds()
	fmt.Fprintf(out, "\n%s\n\n", r.headline())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, k := range kinds {
		fmt.Fprintf(w, "%s\t", k)
	}
	fmt.Fprintln(w, "goal\t  what")
	for i := range r.Summary {
		row := &r.Summary[i]
		fmt.Fprintf(w, "%s\t%s\t  %s, %s\n", strings.Join(row.cells(kinds), "\t"), row.Goal, row.What, row.Unit)
	}
	w.Flush()
}

// markdown returns the table as documents have it.
func (r *Report) markdown() string {
	kinds := r.kinds()
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n|", r.headline())
	for _, k := range kinds {
		fmt.Fprintf(&b, " | %s", k)
	}
	fmt.Fprintf(&b, " | goal |\n|---%s|---|\n", strings.Repeat("|---", len(kinds)))
	for i := range r.Summary {
		row := &r.Summary[i]
		fmt.Fprintf(&b, "| %s (%s) | %s | %s |\n", row.What, row.Unit, strings.Join(row.cells(kinds), " | "), row.Goal)
	}
	return b.String()
}

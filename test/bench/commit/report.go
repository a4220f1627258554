package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"syncd/test/bench/rig"
)

// Report is everything that was measured.
type Report struct {
	rig.Machine
	Alone   bool     `json:"alone"` // nobody else listened during the commit
	Churn   int      `json:"churn_events_per_s"`
	Samples []Sample `json:"samples"`
	Summary []Row    `json:"summary"`
}

// Row is a figure, as the median of all runs. It is missing for a kind of daemon that
// did not get so far.
type Row struct {
	Flows   int                  `json:"flows"`
	What    string               `json:"what"`
	Seconds map[rig.Kind]float64 `json:"seconds"`
	Ratio   map[rig.Kind]float64 `json:"ratio_to_conntrackd,omitempty"`
}

// figures are what the table shows of a sample.
var figures = []struct {
	what string
	of   func(*Sample) float64
}{
	{"commit", func(s *Sample) float64 { return s.CommitS }},
	{"commit, for who waits", func(s *Sample) float64 { return s.WallS }},
	{"commit, processor", func(s *Sample) float64 { return s.CPUS }},
	{"until in step again", func(s *Sample) float64 {
		if s.Unsettled > 0 {
			return 0
		}
		return s.SettledS
	}},
	{"commit of what is there", func(s *Sample) float64 { return s.AgainS }},
	{"commit of what is there, processor", func(s *Sample) float64 { return s.AgainCPUS }},
	{"kernel's table read", func(s *Sample) float64 { return s.ReadS }},
	{"kernel's table read, processor", func(s *Sample) float64 { return s.ReadCPUS }},
}

func summarize(o *options, samples []Sample) *Report {
	r := &Report{Machine: rig.ThisMachine(o.bin), Alone: o.alone, Churn: o.churn, Samples: samples}
	var sizes []int
	var kinds []rig.Kind
	for i := range samples {
		sizes, kinds = append(sizes, samples[i].Flows), append(kinds, samples[i].Kind)
	}
	slices.Sort(sizes)
	slices.Sort(kinds)
	kinds = slices.Compact(kinds)
	for _, flows := range slices.Compact(sizes) {
		for _, f := range figures {
			row := Row{Flows: flows, What: f.what, Seconds: map[rig.Kind]float64{}, Ratio: map[rig.Kind]float64{}}
			for _, k := range kinds {
				var v []float64
				for i := range samples {
					if s := &samples[i]; s.Kind == k && s.Flows == flows && f.of(s) > 0 {
						v = append(v, f.of(s))
					}
				}
				if len(v) > 0 {
					row.Seconds[k] = rig.Median(v)
				}
			}
			if base := row.Seconds[rig.Conntrackd]; base > 0 {
				for _, k := range kinds {
					if v, ok := row.Seconds[k]; ok && k != rig.Conntrackd {
						row.Ratio[k] = v / base
					}
				}
			}
			r.Summary = append(r.Summary, row)
		}
	}
	return r
}

// table writes the medians, and the ratios to conntrackd where it was measured.
func (r *Report) table(out io.Writer) {
	kinds := slices.DeleteFunc(append(slices.Clone(rig.Kinds), rig.Instant), func(k rig.Kind) bool {
		return !slices.ContainsFunc(r.Samples, func(s Sample) bool { return s.Kind == k })
	})
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "flows\t")
	for _, k := range kinds {
		fmt.Fprintf(w, "%s (s)\t", k)
	}
	for _, k := range kinds {
		if k != rig.Conntrackd {
			fmt.Fprintf(w, "%s / conntrackd\t", k)
		}
	}
	fmt.Fprintln(w, " ")
	for i := range r.Summary {
		row := &r.Summary[i]
		fmt.Fprintf(w, "%d\t", row.Flows)
		for _, k := range kinds {
			if v, ok := row.Seconds[k]; ok {
				fmt.Fprintf(w, "%.3f\t", v)
			} else {
				fmt.Fprint(w, "never\t")
			}
		}
		for _, k := range kinds {
			if k != rig.Conntrackd {
				if v, ok := row.Ratio[k]; ok {
					fmt.Fprintf(w, "%.2f\t", v)
				} else {
					fmt.Fprint(w, "\t")
				}
			}
		}
		fmt.Fprintf(w, " %s\n", row.What)
	}
	w.Flush()
}

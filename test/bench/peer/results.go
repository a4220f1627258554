package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"syncd/test/bench/rig"
)

// Results are all measurements of one machine.
type Results struct {
	Machine Machine  `json:"machine"`
	Samples []Sample `json:"samples"`
	Summary []Row    `json:"summary"`
	Scales  []Scale  `json:"scales,omitempty"`

	Held *HeldResults `json:"held,omitempty"`
}

// Machine says where and how.
type Machine struct {
	Date       time.Time `json:"date"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	CPUs       int       `json:"cpus"`
	Syncd      string    `json:"syncd"`
	Conntrackd string    `json:"conntrackd"`
	Flows      int       `json:"flows"`
	Lives      int       `json:"lives"`
	DurationS  float64   `json:"duration_s"`
	Shipped    bool      `json:"shipped_buffers"`
}

// Sample is one run of one kind of daemon.
type Sample struct {
	Kind       rig.Kind  `json:"kind"`
	Run        int       `json:"run"`
	Scheduling string    `json:"scheduling"`
	Memory     MemoryUse `json:"memory"`
	Fill       Load      `json:"fill"`
	Churn      []Load    `json:"churn"`

	Divergence rig.Divergence `json:"divergence_after_churn"`
	Latency    Latency        `json:"latency"`

	Packets          Load           `json:"packets"`
	PacketsSent      int            `json:"packets_sent"`
	PacketDivergence rig.Divergence `json:"divergence_after_packets"`
	Flush            Flush          `json:"flush"`
}

// Load is what a load cost.
type Load struct {
	Target  int     `json:"target_per_s"`
	Rate    float64 `json:"events_per_s"`
	Events  int     `json:"events"`
	Seconds float64 `json:"seconds"`

	Messages  int     `json:"messages"`           // that changed the backup's cache
	CPUActive float64 `json:"cpu_ns_per_event"`   // of the active node
	CPUBackup float64 `json:"cpu_ns_per_message"` // of the backup

	WireToBackup float64 `json:"wire_bytes_per_event"`
	WireToActive float64 `json:"wire_bytes_back_per_event"`

	Drops    uint64  `json:"events_dropped"`
	Overruns uint64  `json:"overruns"`
	CatchUp  float64 `json:"catch_up_s"` // at work after the end of the load
	Held     bool    `json:"held"`       // nothing dropped, no backlog

	WakesActive float64 `json:"wakeups_per_s_active"` // of all threads
	WakesBackup float64 `json:"wakeups_per_s_backup"`
}

// full reports whether the generator has made the rate that it was asked for.
func (l *Load) full() bool { return l.Rate >= inFull*float64(l.Target) }

// MemoryUse is memory in octets.
type MemoryUse struct {
	EmptyA rig.Memory `json:"active_empty"`
	EmptyB rig.Memory `json:"backup_empty"`
	FullA  rig.Memory `json:"active_full"`
	FullB  rig.Memory `json:"backup_full"`

	PerFlowInternal float64 `json:"pss_per_flow_internal"`
	PerFlowExternal float64 `json:"pss_per_flow_external"`
}

// Latency is from the kernel's ending of a flow to the peer's cache without it.
type Latency struct {
	Rate    int       `json:"events_per_s"`
	Seconds float64   `json:"seconds"`
	Flows   int       `json:"flows"`         // that ended
	Missing int       `json:"flows_missing"` // of which the backup was not told; unless it is 0 the times are not to be trusted
	Looks   int       `json:"looks"`
	P50     float64   `json:"p50_s"`
	P99     float64   `json:"p99_s"`
	Max     float64   `json:"max_s"`
	Parts   []float64 `json:"quantiles_s"` // by latencyQuantiles
	Way     float64   `json:"look_s"`      // of a look: what is said is too long by this at most, in the median

	// For how long threads wanted a processor and had none: what others took.
	WaitedActive float64 `json:"waited_s_active"`
	WaitedBackup float64 `json:"waited_s_backup"`
}

// latencyQuantiles are those of Latency.Parts.
var latencyQuantiles = []float64{0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999}

// quantile returns one of them, NaN if it was not measured.
func (l *Latency) quantile(q float64) float64 {
	if i := slices.Index(latencyQuantiles, q); i >= 0 && i < len(l.Parts) {
		return l.Parts[i]
	}
	return math.NaN()
}

// Flush is the emptying of the kernel's table in one request.
type Flush struct {
	Load
	KernelSeconds float64 `json:"kernel_s"` // until the kernel was done
	Stale         int     `json:"stale"`    // what the backup had still 10 s later
}

// Row is a line of the table.
type Row struct {
	What       string  `json:"what"`
	Unit       string  `json:"unit"`
	Conntrackd float64 `json:"conntrackd"`
	Syncd      float64 `json:"syncd"`
	Plain      float64 `json:"syncd_plain"`
	Ratio      float64 `json:"ratio"`
	RatioPlain float64 `json:"ratio_plain"`
	Goal       string  `json:"goal,omitempty"`

	detail bool // only for who looks closely
}

func (r *Results) describe(o options) {
	m := &r.Machine
	m.Date, m.CPUs = time.Now().UTC().Truncate(time.Second), runtime.NumCPU()
	m.Flows, m.Lives, m.DurationS, m.Shipped = o.flows, o.lives, o.duration.Seconds(), o.shipped
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(b), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		m.CPU = strings.Trim(line, "\t :")
	}
	first := func(name string, args ...string) string {
		b, _ := exec.Command(name, args...).CombinedOutput() // what does not say its version is not named
		line, _, _ := strings.Cut(string(b), "\n")
		return strings.TrimSpace(line)
	}
	m.Syncd, m.Conntrackd = first(o.bin, "version"), first("conntrackd", "-v")
}

// runs is how many runs there are of the kind that has most.
func (r *Results) runs() (n int) {
	for i := range r.Samples {
		n = max(n, r.Samples[i].Run)
	}
	return n
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// of returns the median of a value over the runs of a kind.
func (r *Results) of(k rig.Kind, value func(*Sample) float64) float64 {
	var all []float64
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Kind == k {
			all = append(all, value(s))
		}
	}
	return median(all)
}

// targets are the rates of the churn.
func (r *Results) targets() (t []int) {
	for i := range r.Samples {
		for _, l := range r.Samples[i].Churn {
			if !slices.Contains(t, l.Target) {
				t = append(t, l.Target)
			}
		}
	}
	slices.Sort(t)
	return t
}

// churn returns the load of a target; nothing if it was not run.
func (s *Sample) churn(target int) *Load {
	for i := range s.Churn {
		if s.Churn[i].Target == target {
			return &s.Churn[i]
		}
	}
	return &Load{CPUActive: math.NaN(), CPUBackup: math.NaN(), WireToBackup: math.NaN(), Rate: math.NaN()}
}

// held is the highest rate that was held. limited says that the generator could make
// no more, so that the daemon might have held more.
func (s *Sample) held() (rate float64, limited bool) {
	for i := range s.Churn {
		if l := &s.Churn[i]; l.Held && l.Rate > rate {
			rate, limited = l.Rate, !l.full() || i == len(s.Churn)-1
		}
	}
	return rate, limited
}

// summarise makes the table.
func (r *Results) summarise() {
	r.Summary = nil
	row := func(what, unit, goal string, value func(*Sample) float64) {
		c, s, p := r.of(rig.Conntrackd, value), r.of(rig.Sealed, value), r.of(rig.Plain, value)
		for _, v := range []*float64{&c, &s, &p} {
			if math.IsNaN(*v) {
				*v = 0 // JSON has no word for it
			}
		}
		row := Row{What: what, Unit: unit, Goal: goal, Conntrackd: c, Syncd: s, Plain: p}
		if c != 0 {
			row.Ratio, row.RatioPlain = s/c, p/c
		}
		r.Summary = append(r.Summary, row)
	}
	for _, t := range r.targets() {
		goal := ""
		if t >= 100000 && t <= 200000 {
			goal = "≤ 0.45"
		}
		row(fmt.Sprintf("CPU per event, active, churn at %d/s", t), "µs", goal, func(s *Sample) float64 { return s.churn(t).CPUActive / 1e3 })
	}
	for _, t := range r.targets() {
		goal := ""
		if t >= 100000 && t <= 200000 {
			goal = "≤ 0.40"
		}
		row(fmt.Sprintf("CPU per message, backup, churn at %d/s", t), "µs", goal, func(s *Sample) float64 { return s.churn(t).CPUBackup / 1e3 })
	}
	first := len(r.Summary)
	for _, t := range r.targets() {
		row(fmt.Sprintf("rate made beside it, churn at %d/s", t), "k/s", "", func(s *Sample) float64 { return s.churn(t).Rate / 1e3 })
		row(fmt.Sprintf("events dropped, churn at %d/s", t), "", "", func(s *Sample) float64 { return float64(s.churn(t).Drops) })
		row(fmt.Sprintf("wake-ups, active, churn at %d/s", t), "1/s", "", func(s *Sample) float64 { return s.churn(t).WakesActive })
		row(fmt.Sprintf("wake-ups, backup, churn at %d/s", t), "1/s", "", func(s *Sample) float64 { return s.churn(t).WakesBackup })
	}
	for i := first; i < len(r.Summary); i++ {
		r.Summary[i].detail = true
	}
	row("events dropped in all of the churn", "", "", func(s *Sample) float64 {
		n := uint64(0)
		for i := range s.Churn {
			n += s.Churn[i].Drops
		}
		return float64(n)
	})
	row("event rate held without loss", "k/s", "≥ 2", func(s *Sample) float64 { v, _ := s.held(); return v / 1e3 })
	row("memory a flow, internal cache", "B", "≤ 0.30", func(s *Sample) float64 { return s.Memory.PerFlowInternal })
	row("memory a flow, external cache", "B", "≤ 0.30", func(s *Sample) float64 { return s.Memory.PerFlowExternal })
	row("memory of an empty daemon", "MiB", "", func(s *Sample) float64 { return float64(s.Memory.EmptyA.PSS) / (1 << 20) })
	row("wire bytes an event, to the backup", "B", "", func(s *Sample) float64 { return s.churn(r.middle()).WireToBackup })
	row("wire bytes an event, back", "B", "", func(s *Sample) float64 { return s.churn(r.middle()).WireToActive })
	row("latency to the peer's cache, median", "ms", "", func(s *Sample) float64 { return s.Latency.P50 * 1e3 })
	row("latency to the peer's cache, p99", "ms", "≤ 2 ms", func(s *Sample) float64 { return s.Latency.P99 * 1e3 })
	row("divergence after the churn", "flows", "0", func(s *Sample) float64 { return divergence(s.Divergence) })
	row("CPU per event, active, fill", "µs", "", func(s *Sample) float64 { return s.Fill.CPUActive / 1e3 })
	row("CPU per message, backup, fill", "µs", "", func(s *Sample) float64 { return s.Fill.CPUBackup / 1e3 })
	row("CPU per event, active, real packets", "µs", "", func(s *Sample) float64 { return s.Packets.CPUActive / 1e3 })
	row("CPU per message, backup, real packets", "µs", "", func(s *Sample) float64 { return s.Packets.CPUBackup / 1e3 })
	row("events dropped, real packets", "", "", func(s *Sample) float64 { return float64(s.Packets.Drops) })
	row("divergence after real packets", "flows", "0", func(s *Sample) float64 { return divergence(s.PacketDivergence) })
	row("kernel's flush of all flows beside it", "s", "", func(s *Sample) float64 { return s.Flush.KernelSeconds })
	row("CPU per event, active, flush", "µs", "", func(s *Sample) float64 { return s.Flush.CPUActive / 1e3 })
	row("events dropped, flush", "", "", func(s *Sample) float64 { return float64(s.Flush.Drops) })
	row("stale on the backup 10 s after the flush", "flows", "0", func(s *Sample) float64 { return float64(s.Flush.Stale) })
}

// middle is the target at which bytes on the wire are shown.
func (r *Results) middle() int {
	t := r.targets()
	if i := slices.Index(t, 100000); i >= 0 {
		return t[i]
	}
	return t[len(t)/2]
}

func divergence(d rig.Divergence) float64 { return float64(d.Missing + d.Stale + d.Different) }

// table writes the summary.
func (r *Results) table(out io.Writer) {
	r.scaleTable(out)
	r.Held.table(out)
	if len(r.Samples) == 0 {
		return
	}
	r.summarise()
	m := &r.Machine
	fmt.Fprintf(out, "\n%s, %d processors, Linux %s; medians of %d runs, %d standing flows\n\n", m.CPU, m.CPUs, m.Kernel, r.runs(), m.Flows)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "conntrackd\tsyncd\tplain\tratio\tplain\tgoal\t  what")
	for _, row := range r.Summary {
		ratio := func(v float64) string {
			if row.Conntrackd == 0 || v == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2f", v)
		}
		fmt.Fprintf(w, "%.4g\t%.4g\t%.4g\t%s\t%s\t%s\t  %s", row.Conntrackd, row.Syncd, row.Plain, ratio(row.Ratio), ratio(row.RatioPlain), row.Goal, row.What)
		if row.Unit != "" {
			fmt.Fprintf(w, ", %s", row.Unit)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	for _, k := range rig.Kinds {
		for i := range r.Samples {
			s := &r.Samples[i]
			if s.Kind != k {
				continue
			}
			rate, limited := s.held()
			fmt.Fprintf(out, "%s, run %d: %s; held %.0f/s", k, s.Run, s.Scheduling, rate)
			if limited {
				fmt.Fprint(out, " (more was not made)")
			}
			fmt.Fprintf(out, "; latency by %d looks of %.2f ms", s.Latency.Looks, s.Latency.Way*1e3)
			fmt.Fprintf(out, ", in which the daemons waited for a processor for %.1f and %.1f %% of the time",
				100*s.Latency.WaitedActive/s.Latency.Seconds, 100*s.Latency.WaitedBackup/s.Latency.Seconds)
			if n := s.Latency.Missing; n != 0 {
				fmt.Fprintf(out, " (not to be trusted: the count of ends is short by %d)", n)
			}
			fmt.Fprintln(out)
		}
	}
}

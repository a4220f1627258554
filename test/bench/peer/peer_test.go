package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"syncd/internal/lab"
	"syncd/test/bench/rig"
	"syncd/test/bench/rig/rigtest"
)

// missing skips a test for want of something. On CI that is a failure: there
// everything is there.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// quickly measures with small numbers, and returns what is in the file of results, what
// was printed, and where the charts are.
func quickly(t *testing.T, kinds, scale string) (r Results, out, dir string) {
	t.Helper()
	dir = t.TempDir()
	o := options{bin: rigtest.Build(t), quick: true, json: filepath.Join(dir, "results.json"), charts: dir}
	if err := o.parse(kinds, "1", scale, ""); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	if err := run(t.Context(), o, &printed); err != nil {
		t.Fatalf("%v\n%s", err, &printed)
	}
	t.Logf("%s", &printed)
	if err := rig.LoadResults(o.json, &r); err != nil {
		t.Fatal(err)
	}
	return r, printed.String(), dir
}

// The whole measurement with small numbers: what it says is not worth much, but it
// must say something of everything, of every kind of daemon.
func TestQuick(t *testing.T) {
	if _, err := exec.LookPath("conntrackd"); err != nil {
		missing(t, "conntrackd is not installed (make peers installs it)")
	}
	r, out, dir := quickly(t, "syncd,syncd-plain,conntrackd", "")
	if len(r.Samples) != len(rig.Kinds) {
		t.Fatalf("%d samples, want %d", len(r.Samples), len(rig.Kinds))
	}
	for i := range r.Samples {
		s := &r.Samples[i]
		if !s.Divergence.Zero() || !s.PacketDivergence.Zero() || s.Flush.Stale != 0 {
			t.Errorf("%s has diverged under next to no load: %+v, %+v, %d stale", s.Kind, s.Divergence, s.PacketDivergence, s.Flush.Stale)
		}
		for what, l := range map[string]Load{"fill": s.Fill, "churn": s.Churn[0], "packets": s.Packets, "flush": s.Flush.Load} {
			if l.Events == 0 || l.Messages == 0 || l.CPUActive <= 0 || l.CPUBackup <= 0 || l.WireToBackup <= 0 {
				t.Errorf("%s: %s: something was not measured: %+v", s.Kind, what, l)
			}
		}
		if s.Memory.PerFlowInternal <= 0 || s.Memory.PerFlowExternal <= 0 {
			t.Errorf("%s: flows weigh nothing: %+v", s.Kind, s.Memory)
		}
		if s.Latency.Flows == 0 || s.Latency.P50 <= 0 || s.Latency.P99 < s.Latency.P50 {
			t.Errorf("%s: latency %+v", s.Kind, s.Latency)
		}
	}
	// A packet of a connection is an event, and the one that opens it again is two.
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Packets.Events < s.PacketsSent*9/10 {
			t.Errorf("%s: %d events of %d packets: the connections do not live as they should", s.Kind, s.Packets.Events, s.PacketsSent)
		}
	}
	for _, want := range []string{"CPU per event, active", "event rate held", "latency"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	for _, name := range []string{"cpu-active.svg", "cpu-backup.svg", "latency.svg"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// The same by the number of flows.
func TestQuickScale(t *testing.T) {
	r, _, dir := quickly(t, "syncd", "2000,4000")
	if len(r.Scales) != 2 || r.Scales[0].Flows != 2000 || r.Scales[1].Flows != 4000 {
		t.Fatalf("scales %+v", r.Scales)
	}
	for i := range r.Scales {
		s := &r.Scales[i]
		for what, l := range map[string]Latency{"alone": s.Calm, "beside a bulk update": s.Bulk, "beside a resynchronisation": s.Resync, "the other way": s.Back} {
			if l.Flows == 0 || l.Looks == 0 || l.Missing != 0 || l.P50 <= 0 || l.P99 < l.P50 || l.P99 > 5 {
				t.Errorf("%d flows, %s: latency %+v", s.Flows, what, l)
			}
		}
		if s.Memory.FullA.PSS <= 0 || s.Memory.FullB.PSS <= 0 || s.GCActive < 0 || s.GCActive > 0.5 || s.GCBackup < 0 || s.GCBackup > 0.5 {
			t.Errorf("%d flows: %+v, garbage collector %v and %v", s.Flows, s.Memory, s.GCActive, s.GCBackup)
		}
		if l := s.Churn[0]; l.CPUActive <= 0 || l.CPUBackup <= 0 || l.WakesActive <= 0 || l.WakesBackup <= 0 {
			t.Errorf("%d flows: %+v", s.Flows, l)
		}
	}
	for _, name := range []string{"scale-cost.svg", "scale-memory.svg", "scale-gc.svg", "scale-latency.svg"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{5, 1}, 3}, {[]float64{9, 1, 2}, 2}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.of, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("there is no median of nothing")
	}
}

func TestHeld(t *testing.T) {
	s := Sample{Churn: []Load{
		{Target: 100, Rate: 100, Held: true},
		{Target: 200, Rate: 199, Held: true},
		{Target: 300, Rate: 299},
	}}
	if rate, limited := s.held(); rate != 199 || limited {
		t.Errorf("held %v, limited %v; a higher rate was made and not held", rate, limited)
	}
	s.Churn[2] = Load{Target: 300, Rate: 250, Held: true}
	if rate, limited := s.held(); rate != 250 || !limited {
		t.Errorf("held %v, limited %v; the generator could not make more", rate, limited)
	}
}

// A life is eight events, and all of what began has ended at the end.
func TestStages(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a kernel of its own")
	}
	if err := lab.Usable(); err != nil {
		missing(t, "no lab: %v", err)
	}
	l, err := lab.New(rig.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := l.Node("n")
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGenerator(n)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	if _, _, err := g.fill(t.Context(), 100, 1e6); err != nil {
		t.Fatal(err)
	}
	g.stamp = true
	events, took, err := g.churn(t.Context(), 20000, 100, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if rate := float64(events) / took.Seconds(); rate > 21000 {
		t.Errorf("%d events in %v", events, took)
	}
	if int(g.born) != len(g.ends) || int(g.born) < events/9 || int(g.born) > events/7 {
		t.Errorf("%d lives of %d events, %d have ended", g.born, events, len(g.ends))
	}
	table, err := rig.KernelTable(n)
	if err != nil {
		t.Fatal(err)
	}
	want := rig.State{TCP: "ESTABLISHED", Assured: true}
	for k, s := range table {
		if s != want {
			t.Errorf("%+v is %+v", k, s)
		}
	}
	if len(table) != 100 {
		t.Errorf("%d flows stand, want 100", len(table))
	}
}

// A chart of which the results have nothing stays what it was: the curves by rate and
// those by the number of flows come from runs of their own.
func TestDrawLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "cpu-backup.svg")
	if err := os.WriteFile(other, []byte("of another run"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := Results{Scales: []Scale{{Kind: rig.Sealed, Flows: 1000, Churn: []Load{{Target: 1000, CPUActive: 1, CPUBackup: 1}}}}}
	if err := r.draw(dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(other); err != nil || string(b) != "of another run" {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "scale-cost.svg")); err != nil || !bytes.Contains(b, []byte("<svg")) {
		t.Errorf("%s, %v", b, err)
	}
}

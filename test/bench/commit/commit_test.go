package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"syncd/test/bench/rig"
	"syncd/test/bench/rig/rigtest"
)

// The whole measurement with few flows, twice: the second run is added to the first.
func TestQuick(t *testing.T) {
	dir, bin := t.TempDir(), rigtest.Build(t, "conntrackd")
	o := options{bin: bin, runs: 1, churn: 1000, json: filepath.Join(dir, "results.json"), add: true}
	if err := o.parse("syncd,conntrackd", "300", ""); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for range 2 {
		if err := run(t.Context(), &o, &out); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
	}
	t.Logf("%s", &out)
	b, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	var order []string
	for i := range r.Samples {
		s := &r.Samples[i]
		order = append(order, string(s.Kind))
		for what, v := range map[string]float64{
			"fill": s.FillS, "commit": s.CommitS, "wall": s.WallS, "cpu": s.CPUS, "settled": s.SettledS,
			"again": s.AgainS, "read": s.ReadS,
		} {
			if v <= 0 {
				t.Errorf("%s, run %d: %s was not measured: %+v", s.Kind, s.Run, what, s)
			}
		}
		if s.Flows != 300 || s.Unsettled != 0 || s.Run != i/2+1 || s.WallS < s.CommitS {
			t.Errorf("%+v", s)
		}
	}
	if want := []string{"syncd", "conntrackd", "conntrackd", "syncd"}; !slices.Equal(order, want) {
		t.Errorf("the turns were %v, want %v", order, want)
	}
	if len(r.Summary) != len(figures) || r.Summary[0].Ratio[rig.Sealed] <= 0 {
		t.Errorf("summary: %+v", r.Summary)
	}
	for _, want := range []string{"syncd / conntrackd", "kernel's table read", "until in step again"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ kinds, flows, want string }{
		{"syncd,other", "1", `-kinds: "other" is none of`},
		{"syncd", "1,x", `-flows: "x" is no number`},
		{"syncd", "0", `-flows: "0" is no number`},
	} {
		if err := new(options).parse(tt.kinds, tt.flows, ""); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt, err)
		}
	}
}

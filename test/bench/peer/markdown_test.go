package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"syncd/test/bench/rig"
)

func TestInto(t *testing.T) {
	r := Results{
		Samples: []Sample{
			{Kind: rig.Conntrackd, Run: 1, Churn: []Load{{Target: 100000, Rate: 100000, CPUActive: 4000, CPUBackup: 2000}}},
			{Kind: rig.Sealed, Run: 1, Churn: []Load{{Target: 100000, Rate: 100000, CPUActive: 1000, CPUBackup: 500}}},
		},
		Scales: []Scale{{Flows: 10000, Churn: []Load{{Target: 20000, CPUActive: 3000, CPUBackup: 1500}}, Resync: Latency{P99: 0.0042}}},
	}
	path := filepath.Join(t.TempDir(), "doc.md")
	text := "before\n<!-- peer -->\nold\n<!-- /peer -->\nbetween\n<!-- scale -->\n<!-- /scale -->\nafter\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time over what the first has written
		if err := r.into(path); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	for _, want := range []string{
		"before\n<!-- peer -->\n\n", "| CPU per event, active, churn at 100000/s (µs) | 4 | 1 | **0.25** | 0 |  | ≤ 0.45 |\n", "\n<!-- /peer -->\nbetween\n<!-- scale -->\n\n",
		"| 10000 | 0 / 0 | 0.00 / 0.00 % | 0.0 | 0.0 | 4.2 | 0.0 | 3.00 / 1.50 |\n\n<!-- /scale -->\nafter\n",
	} {
		if strings.Count(doc, want) != 1 {
			t.Errorf("the document has not once %q:\n%s", want, doc)
		}
	}
	if strings.Contains(doc, "old") {
		t.Error("the old table is there still")
	}
	for _, bad := range []string{"no place\n", "<!-- peer -->\nno end\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.into(path); err == nil {
			t.Errorf("%q took a table", bad)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != bad {
			t.Errorf("%q became %q (%v)", bad, b, err)
		}
	}
}

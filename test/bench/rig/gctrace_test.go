package rig

import (
	"testing"
	"time"
)

func TestGCLine(t *testing.T) {
	const line = "gc 1 @0.009s 0%: 0.018+1.3+0.076 ms clock, 0.5+0.25/1/9+0.25 ms cpu, 4->4->1 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P"
	if used, ok, err := gcLine(line); err != nil || !ok || used != 2*time.Millisecond {
		t.Errorf("%v %v %v, want 2 ms", used, ok, err)
	}
	if _, ok, err := gcLine("2026-11-26T06:30:19.727Z info ready"); ok || err != nil {
		t.Errorf("a line of the log counts: %v", err)
	}
	if _, _, err := gcLine("gc 1 @0.009s 0%: 0.018 ms clock, 0.5 ms cpu, 4->4->1 MB"); err == nil {
		t.Error("a line without five times passes")
	}
}

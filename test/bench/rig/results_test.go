package rig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	got := map[string]int{"before": 1}
	if err := LoadResults(path, &got); err != nil || len(got) != 1 {
		t.Errorf("of a file that is not there: %v, %v", got, err)
	}
	if err := SaveResults(path, map[string]int{"a": 2}); err != nil {
		t.Fatal(err)
	}
	if err := LoadResults(path, &got); err != nil || got["a"] != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := LoadResults(path, &got); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("of half a file: %v", err)
	}
	if err := SaveResults("", got); err != nil {
		t.Errorf("nowhere: %v", err)
	}
}

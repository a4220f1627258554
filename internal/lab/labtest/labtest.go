// Package labtest gives tests a lab that goes with them, and replication by hand
// as an oracle. Only tests import it.
package labtest

import (
	"os"
	"testing"

	"syncd/internal/lab"
)

// Prefix begins the names of all namespaces that tests make.
const Prefix = "syncd-lab-"

// New returns an empty lab that is closed with the test. Where no lab can be
// built it skips the test, on CI (CI=true) it fails it.
func New(t testing.TB) *lab.Lab {
	t.Helper()
	if err := lab.Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no lab: %v", err)
		}
		t.Skipf("no lab: %v", err)
	}
	if _, err := lab.Sweep(Prefix); err != nil {
		t.Logf("leftovers: %v", err)
	}
	l, err := lab.New(Prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// Pair returns a pair of firewalls in a lab of its own, with its usual rules
// loaded.
func Pair(t testing.TB) *lab.Pair {
	t.Helper()
	p, err := lab.FirewallPair(New(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.LoadRules(p.Rules()); err != nil {
		t.Fatal(err)
	}
	return p
}

package alarm

import (
	"testing"
	"time"

	"syncd/internal/sync/conformance"
	"syncd/internal/sync/meet"
)

func testConfig(p conformance.Params) Config {
	return Config{FirstSeq: p.FirstSeq, Seed: p.Seed, Refresh: 3 * time.Second, CacheTimeout: 9 * time.Second}
}

func TestConformanceSyncd(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		New: func(p conformance.Params, n *conformance.Node) conformance.Machine {
			return NewSyncd(SyncdConfig{
				Config: meet.Config{Name: p.Name, Session: p.Session, Random: p.Random},
				Alarm:  testConfig(p),
			}, n, n)
		},
		Check: func(s conformance.Sending) error { return check(&s.(*Syncd).r) },
		Meet:  2 * time.Second, Prompt: 60 * time.Millisecond,
		// The greeting, the refresh, the expiry and how much later that may come.
		Settle:     (2 + 3 + 9 + 1) * time.Second,
		NeedsOrder: true,
	})
}

func TestConformanceConntrackd(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		NewOne: func(p conformance.Params, n *conformance.Node) conformance.OnePeer {
			return NewConntrackd(testConfig(p), n, n)
		},
		Check: func(s conformance.Sending) error { return check(&s.(*Conntrackd).r) },
		Meet:  time.Second, Prompt: 60 * time.Millisecond,
		Settle:   (3 + 9 + 1) * time.Second,
		GoesBack: true,
	})
}

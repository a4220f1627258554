package notrack

import (
	"testing"
	"time"

	"syncd/internal/sync/conformance"
	"syncd/internal/sync/meet"
)

const testInterval = 4 * time.Second // of bulk updates

func TestConformanceSyncd(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		New: func(p conformance.Params, n *conformance.Node) conformance.Machine {
			return NewSyncd(SyncdConfig{
				Config:       meet.Config{Name: p.Name, Session: p.Session, Random: p.Random},
				FirstSeq:     p.FirstSeq,
				BulkInterval: testInterval,
			}, n, n)
		},
		Check: func(s conformance.Sending) error { return checkSyncd(s.(*Syncd)) },
		Meet:  3 * time.Second, Prompt: 60 * time.Millisecond,
		Settle:     testInterval + 4*time.Second, // the greeting, then everything
		NeedsOrder: true,
	})
}

func TestConformanceConntrackd(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		NewOne: func(p conformance.Params, n *conformance.Node) conformance.OnePeer {
			return NewConntrackd(ConntrackdConfig{
				FirstSeq: p.FirstSeq, Resync: true, BulkInterval: testInterval,
			}, n)
		},
		Check: func(s conformance.Sending) error { return checkConntrackd(s.(*Conntrackd)) },
		Meet:  20 * time.Second, Prompt: 60 * time.Millisecond,
		Settle:     2*testInterval + 6*time.Second, // what was late or lost last, and when it may be asked for
		KeepsStale: true, GoesBack: true, NoDamage: true, LongCuts: true, LosesRequests: true,
	})
}

package ftfw

import (
	"testing"
	"time"

	"syncd/internal/sync/conformance"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		NewOne: func(p conformance.Params, n *conformance.Node) conformance.OnePeer {
			return New(Config{FirstSeq: p.FirstSeq, Resync: true}, n)
		},
		Check: func(s conformance.Sending) error { return check(s.(*Machine)) },
		Meet:  20 * time.Second, Prompt: 60 * time.Millisecond,
		Settle:         40 * time.Second,
		KeepsForgotten: true, Retains: true, NoDamage: true,
	})
}

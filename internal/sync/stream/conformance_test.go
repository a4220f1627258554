package stream

import (
	"testing"
	"time"

	"syncd/internal/sync/conformance"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, conformance.Mode{
		New: func(p conformance.Params, n *conformance.Node) conformance.Machine {
			return New(Config{Name: p.Name, Session: p.Session, FirstSeq: p.FirstSeq, Random: p.Random}, n, n)
		},
		Check: func(s conformance.Sending) error { return check(s.(*Machine)) },
		Meet:  3 * time.Second, Prompt: 60 * time.Millisecond,
		Settle:  8 * time.Second,
		Retains: true,
	})
}

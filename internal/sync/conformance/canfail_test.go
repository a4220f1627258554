package conformance

import (
	"strings"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/sync/notrack"
	"syncd/internal/wire"
)

// flawed is a machine with something wrong between it and the network.
type flawed struct {
	*notrack.Syncd
	flaw string
	last map[uint64]wire.Seq
}

func (m *flawed) Receive(now monotime.Time, session uint64, msg *wire.Message) (wire.Verdict, wire.Delivery) {
	v, d := m.Syncd.Receive(now, session, msg)
	switch {
	case m.flaw == "late" && v == wire.Drop && msg.Type <= wire.CTDel && m.Owner("A") == 1:
		// What is late is applied, to whom it may belong.
		if m.last[session] != 0 {
			return wire.Deliver, wire.Delivery{Owner: uint8(m.last[session]), Confirms: true}
		}
	case v == wire.Deliver:
		m.last[session] = wire.Seq(d.Owner)
	}
	return v, d
}

// sloppy is a replica that keeps what was not confirmed.
type sloppy struct{ *Node }

func (s sloppy) Sweep(owner uint8, m wire.Mask) {
	x := s.held(owner)
	x.doubt = x.doubt.Less(m)
	for _, e := range x.entries {
		e.doubt = e.doubt && !m.Has(e.bucket)
	}
}

// TestSimulationCanFail shows that the simulation sees what is wrong: with a flaw in the
// nodes some seed must find it.
func TestSimulationCanFail(t *testing.T) {
	for _, c := range []struct{ flaw, want string }{
		{"", ""},
		{"no bulk updates", " lacks "},
		{"late", " goes back from "},
		{"sweep", " that it does not have"},
	} {
		interval := 4 * time.Second
		if c.flaw == "no bulk updates" {
			interval = 0
		}
		mode := Mode{
			New: func(p Params, n *Node) Machine {
				cfg := notrack.SyncdConfig{
					Config:   meet.Config{Name: p.Name, Session: p.Session, Random: p.Random},
					FirstSeq: p.FirstSeq, BulkInterval: interval,
				}
				var r notrack.Replica = n
				if c.flaw == "sweep" {
					r = sloppy{n}
				}
				return &flawed{notrack.NewSyncd(cfg, n, r), c.flaw, map[uint64]wire.Seq{}}
			},
			Settle: 8 * time.Second, NeedsOrder: true,
		}
		found := ""
		for s := uint64(1); s <= 12 && found == ""; s++ {
			for _, what := range simulate(mode, s) {
				if strings.Contains(what, c.want) {
					found = what
				}
			}
		}
		if (found == "") != (c.flaw == "") {
			t.Errorf("flaw %q: found %q", c.flaw, found)
		}
		t.Logf("flaw %q: %s", c.flaw, found)
	}
}

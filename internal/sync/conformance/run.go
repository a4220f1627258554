package conformance

import (
	"flag"
	"slices"
	"testing"
	"time"

	"syncd/internal/wire"
)

var (
	seeds = flag.Int("conformance.seeds", 25, "how many seeds the simulation of the conformance test runs")
	seed  = flag.Uint64("conformance.seed", 0, "the one seed to run")
)

// Run tests a mode. The names of the subtests say what must hold.
func Run(t *testing.T, mode Mode) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, Mode)
	}{
		{"a burst on one flow collapses", burst},
		{"changes arrive promptly", prompt},
		{"a destroyed flow is released", release},
		{"what is forgotten is not sent", forget},
		{"a bulk update starves nothing", starve},
		{"an idle pair is quiet", idle},
		{"everything becomes equal", simulation},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, mode) })
	}
	if mode.New != nil { // a machine for one peer knows one owner
		t.Run("a delete counts only from the owner", func(t *testing.T) { owner(t, mode) })
	}
	if !mode.Retains {
		t.Run("the path of a change allocates nothing", func(t *testing.T) { allocate(t, mode) })
	}
}

// pair returns nodes that know each other and have come to rest.
func pair(t *testing.T, mode Mode, nodes int) *network {
	t.Helper()
	w := newNetwork(mode, 1, nodes)
	w.settle(mode.Meet)
	t.Cleanup(func() {
		for _, what := range w.wrong {
			t.Error(what)
		}
	})
	return w
}

// equal checks that b holds exactly what a has.
func equal(t *testing.T, a, b *Node) {
	t.Helper()
	if missing, stale := differences(a, b); len(missing)+len(stale) != 0 {
		t.Errorf("%s lacks %d flows of %s and holds %d that it does not have", b.name, len(missing), a.name, len(stale))
	}
}

func burst(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.add(1)
	for range 100 {
		a.update(1)
	}
	w.settle(100 * time.Millisecond)
	if a.sent[1] != 1 {
		t.Errorf("sent %d times", a.sent[1])
	}
	equal(t, a, b)
}

func prompt(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a, b := w.nodes[0], w.nodes[1]
	w.run(2*time.Second, func() {
		for range 3 {
			a.change(w.r, uint16(w.r.IntN(300)))
		}
		b.change(w.r, uint16(w.r.IntN(300)))
	})
	w.settle(mode.Prompt)
	if len(a.own()) < 100 {
		t.Fatalf("only %d flows", len(a.own()))
	}
	equal(t, a, b)
	equal(t, b, a)
}

func release(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a, b := w.nodes[0], w.nodes[1]
	for p := range uint16(50) {
		a.add(p)
		if p%2 == 0 {
			a.destroy(p) // before anything of it has left
		}
	}
	w.settle(mode.Prompt)
	for p := range uint16(50) {
		if p%2 == 1 {
			a.destroy(p)
		}
	}
	w.settle(mode.Prompt + 2*time.Second) // the last acknowledgement may take a second
	if len(a.byPort) != 0 {
		t.Errorf("%d of 50 flows are still kept", len(a.byPort))
	}
	equal(t, a, b)
}

func forget(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a := w.nodes[0]
	for p := range uint16(50) {
		a.add(p)
	}
	w.settle(mode.Prompt)
	clear(a.sent)
	for p := range uint16(50) {
		a.update(p)
	}
	for p := range uint16(25) {
		a.lose(p)
	}
	a.flush()
	a.add(60)
	w.settle(mode.Prompt)
	for p, n := range a.sent {
		if p != 60 {
			t.Errorf("flow %d was forgotten and is sent %d times", p, n)
		}
	}
	if a.sent[60] == 0 {
		t.Error("nothing is sent after a flush")
	}
}

func starve(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a, b := w.nodes[0], w.nodes[1]
	const flows = 5000
	for p := range uint16(flows) {
		a.add(p)
	}
	w.run(time.Second, nil)
	equal(t, a, b)
	clear(a.sent)
	a.s.Bulk()
	for k := range uint16(20) {
		w.run(10*time.Millisecond, nil)
		if k == 5 {
			a.s.Bulk()
		}
		a.add(flows + k)
		w.run(mode.Prompt, nil)
		if e := b.held(b.ownerOf(a.name)).entries[flows+k]; e == nil {
			t.Fatalf("a change during the bulk update has not arrived after %v", mode.Prompt)
		}
	}
	w.run(5*time.Second, nil)
	least, total := 1<<30, 0
	for p := range uint16(flows) {
		least, total = min(least, a.sent[p]), total+a.sent[p]
	}
	if least == 0 || total > 6*flows {
		t.Errorf("%d messages, of one flow %d", total, least)
	}
}

func idle(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	w.sent, w.turns = 0, 0
	w.settle(20 * time.Second)
	t.Logf("%.1f datagrams and %.1f turns a second", float64(w.sent)/20, float64(w.turns)/20)
	if w.sent > 20*20 || w.turns > 20*200 {
		t.Errorf("%d datagrams, %d turns in 20 s", w.sent, w.turns)
	}
}

func owner(t *testing.T, mode Mode) {
	w := pair(t, mode, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	a.add(1)
	b.add(1)
	w.settle(mode.Prompt)
	b.destroy(1)
	w.settle(mode.Prompt)
	for _, n := range w.nodes[1:] {
		equal(t, a, n)
	}
	equal(t, b, c)
}

func allocate(t *testing.T, mode Mode) {
	w := pair(t, mode, 2)
	a := w.nodes[0]
	buf := make([]byte, 0, limit+wire.MaxFlowLen+wire.MaxSyncLen)
	for p := range uint16(64) {
		a.add(p)
	}
	before := a.sent[0]
	step := func() {
		w.now = w.now.Add(10 * time.Millisecond)
		for p := range uint16(64) {
			a.update(p)
		}
		a.s.Advance(w.now)
		for a.s.Pending(w.now) {
			if len(a.s.AppendDatagram(w.now, buf, limit)) == 0 {
				break
			}
		}
		a.s.Next(w.now)
	}
	for range 50 {
		step()
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations for 64 changes", n)
	}
	if sent := a.sent[0] - before; sent < 150 {
		t.Errorf("sent %d times", sent)
	}
}

// simulation runs nodes on a network that loses, repeats, delays and reorders, is cut
// in places, and on which nodes restart, flush and forget. When the faults end and the
// traffic pauses, every node holds exactly what every other one has.
func simulation(t *testing.T, mode Mode) {
	for s := range uint64(*seeds) {
		s++
		if *seed != 0 {
			s = *seed
		}
		if wrong := simulate(mode, s); len(wrong) > 0 {
			for _, what := range wrong {
				t.Error(what)
			}
			t.Fatalf("replay with -conformance.seed %d", s)
		}
		if *seed != 0 {
			return
		}
	}
}

func simulate(mode Mode, s uint64) []string {
	nodes := 2
	if mode.New != nil {
		nodes += int(s % 3)
	}
	w := newNetwork(mode, s, nodes)
	r := w.r
	w.loss, w.dup = r.Float64()*0.3*float64(r.IntN(2)), r.Float64()*0.1
	w.delay = time.Duration(r.IntN(40)) * time.Millisecond
	ports, rate := 1+r.IntN(1500), r.IntN(8)
	churn := func() {
		for _, n := range w.nodes {
			for range r.IntN(rate + 1) {
				if !n.down {
					n.change(r, uint16(r.IntN(ports)))
				}
			}
		}
	}
	for range 1 + r.IntN(4) {
		w.run(time.Duration(r.IntN(4000))*time.Millisecond, churn)
		w.fault(w.nodes[r.IntN(nodes)], ports, churn)
	}
	w.run(time.Second, churn)
	w.loss, w.dup = 0, 0
	if mode.NeedsOrder {
		w.delay = 0
	}
	for _, n := range w.nodes {
		if mode.LosesRequests {
			n.s.RequestResync()
		}
	}
	w.settle(mode.Settle)
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b {
				continue
			}
			missing, stale := differences(a, b)
			stale = slices.DeleteFunc(stale, func(p uint16) bool {
				return mode.KeepsStale || mode.KeepsForgotten && a.untold[p]
			})
			if len(missing)+len(stale) > 0 {
				w.failf("%s lacks %d flows of %s and holds %d that it does not have", b.name, len(missing), a.name, len(stale))
			}
		}
	}
	return w.wrong
}

// fault does something to n.
func (w *network) fault(n *Node, ports int, churn func()) {
	r, k := w.r, slices.Index(w.nodes, n)
	while := func(least, most int) {
		w.run(time.Duration(least+r.IntN(most))*time.Millisecond, churn)
	}
	switch r.IntN(9) {
	case 0:
		n.down = true
		while(0, 15000)
		n.down = false
		n.restart(r.IntN(2) == 0)
	case 1: // one direction
		w.cut[[2]int{k, (k + 1) % len(w.nodes)}] = true
		if w.mode.LongCuts {
			while(11000, 4000)
		} else {
			while(0, 15000)
		}
		clear(w.cut)
	case 2: // a node alone
		for j := range w.nodes {
			w.cut[[2]int{k, j}], w.cut[[2]int{j, k}] = true, true
		}
		while(0, 15000)
		clear(w.cut)
	case 3:
		n.flush()
	case 4:
		for p := range ports {
			if r.IntN(20) == 0 {
				n.lose(uint16(p))
			}
		}
	case 5:
		for p := range ports {
			n.change(r, uint16(p))
		}
	case 6:
		n.s.Bulk()
		n.s.RequestResync()
	case 7: // nothing to send for a while
		w.settle(time.Duration(r.IntN(15000)) * time.Millisecond)
	default:
		if !w.mode.NoDamage {
			n.damage()
		}
	}
}

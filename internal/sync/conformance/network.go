package conformance

import (
	"fmt"
	"math/rand/v2"
	"time"

	"syncd/internal/monotime"
)

// network carries the datagrams of the nodes, badly. Every datagram goes to all.
type network struct {
	mode  Mode
	wrong []string // what should not have happened
	r     *rand.Rand
	now   monotime.Time
	nodes []*Node
	loss  float64
	dup   float64
	delay time.Duration   // up to this much; reorders
	cut   map[[2]int]bool // directions in which nothing arrives
	sent  int             // datagrams
	turns int
}

type datagram struct {
	at      monotime.Time
	from    *Node
	session uint64
	b       []byte
}

// limit is the longest datagram but for one message that is longer alone.
const limit = 1400

func newNetwork(mode Mode, seed uint64, nodes int) *network {
	w := &network{mode: mode, r: rand.New(rand.NewPCG(seed, 99)), now: 1, cut: map[[2]int]bool{}}
	if seed%4 == 3 {
		w.now = -monotime.Time(time.Hour)
	}
	for i := range nodes {
		n := &Node{w: w, name: string(rune('A' + i)), untold: map[uint16]bool{}, sent: map[uint16]int{}}
		w.nodes = append(w.nodes, n)
		n.restart(false)
	}
	return w
}

func (w *network) failf(format string, args ...any) {
	if len(w.wrong) < 20 {
		w.wrong = append(w.wrong, fmt.Sprintf("at %v: ", time.Duration(w.now))+fmt.Sprintf(format, args...))
	}
}

// run advances the time by d in steps, calling each before every one.
func (w *network) run(d time.Duration, each func()) {
	const step = 5 * time.Millisecond
	for end := w.now.Add(d); w.now < end; w.now = w.now.Add(step) {
		if each != nil {
			each()
		}
		w.turn()
	}
}

// settle advances the time by d with no change of any flow. It goes from deadline to
// deadline, so that a deadline that a machine does not tell is missed.
func (w *network) settle(d time.Duration) {
	for end := w.now.Add(d); w.now < end; {
		w.turn()
		next := end
		for _, n := range w.nodes {
			if n.down {
				continue
			}
			if n.s.Pending(w.now) {
				next = w.now
			} else if at := n.s.Next(w.now); at == 0 {
				w.failf("%s has no deadline", n.name)
			} else if next = min(next, at); at <= w.now {
				w.failf("%s waits for %v, which has passed", n.name, time.Duration(at))
			}
			for _, x := range n.owners {
				if !x.sweep.Empty() {
					next = min(next, w.now.Add(time.Millisecond))
				}
			}
			for _, d := range n.inbox {
				next = min(next, d.at)
			}
		}
		w.now = max(next, w.now.Add(100*time.Microsecond))
	}
}

func (w *network) turn() {
	w.turns++
	for i, n := range w.nodes {
		if n.down {
			n.inbox = nil
			continue
		}
		n.work()
		due := n.inbox
		n.inbox = n.inbox[:0:0]
		for _, d := range due {
			if d.at > w.now {
				n.inbox = append(n.inbox, d)
			} else {
				n.receive(w.now, d)
			}
		}
		n.s.Advance(w.now)
		if n.one != nil {
			n.follow(w.now)
		}
		for k := 0; k < 64 && n.s.Pending(w.now); k++ {
			b := n.s.AppendDatagram(w.now, nil, limit)
			if len(b) == 0 {
				break
			}
			w.sent++
			if len(b) > limit+2000 {
				w.failf("datagram of %d octets", len(b))
			}
			for j, to := range w.nodes {
				if j != i {
					w.carry(i, j, n, to, b)
				}
			}
		}
		if w.mode.Check != nil && w.turns%16 == 0 {
			if err := w.mode.Check(n.s); err != nil {
				w.failf("%s: %v", n.name, err)
			}
		}
	}
}

func (w *network) carry(i, j int, from, to *Node, b []byte) {
	copies := 1
	if w.r.Float64() < w.dup {
		copies = 2
	}
	for range copies {
		if w.cut[[2]int{i, j}] || w.r.Float64() < w.loss {
			continue
		}
		at := w.now
		if w.delay > 0 {
			at = at.Add(time.Duration(w.r.Int64N(int64(w.delay))))
		}
		to.inbox = append(to.inbox, datagram{at, from, from.session, b})
	}
}

package ftfw

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// node is one machine with the least of an engine around it: flows are told apart
// by their source port, and their state is their mark.
type node struct {
	name     string
	m        *Machine
	flows    []simFlow // by handle; 0 is unused
	free     []flow.Handle
	byPort   map[uint16]flow.Handle
	external map[uint16]simEntry
	epoch    uint64
	doubt    bool
	swept    int
	inbox    []simDatagram
	cut      bool // nothing it sends arrives
	down     bool // the process is not there
}

type simFlow struct {
	port    uint16
	mark    uint32
	used    bool
	dead    bool
	updated bool
}

type simEntry struct {
	mark  uint32
	epoch uint64
}

type simDatagram struct {
	at monotime.Time
	b  []byte
}

func (n *node) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, _ monotime.Time) []byte {
	s := &n.flows[h]
	fl := simWire(s.port, s.mark)
	t := wire.CTNew
	switch {
	case s.dead:
		t = wire.CTDel
	case s.updated && !replace:
		t = wire.CTUpd
	}
	return wire.AppendFlow(b, t, f, seq, &fl)
}

func simWire(port uint16, mark uint32) flow.Flow {
	var f flow.Flow
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: port, DstPort: 80}
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasMark | flow.HasStatus
	f.Mark = mark
	return f
}

func (n *node) Dead(h flow.Handle) bool { return n.flows[h].dead }

func (n *node) Release(h flow.Handle) {
	s := &n.flows[h]
	if !s.used || !s.dead {
		panic(fmt.Sprintf("%s: release of flow %d, which is not dead", n.name, h))
	}
	delete(n.byPort, s.port)
	*s = simFlow{}
	n.free = append(n.free, h)
}

func (n *node) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
	for h := from; int(h) < len(n.flows); h++ {
		if max--; max < 0 {
			return h
		}
		if s := &n.flows[h]; s.used && !s.dead && !fn(h) {
			if int(h)+1 == len(n.flows) {
				return 0
			}
			return h + 1
		}
	}
	return 0
}

// change creates, updates or destroys the flow with this port.
func (n *node) change(r *rand.Rand, port uint16) {
	h, ok := n.byPort[port]
	mark := r.Uint32()
	switch {
	case !ok:
		if len(n.free) > 0 {
			h = n.free[len(n.free)-1]
			n.free = n.free[:len(n.free)-1]
		} else {
			if len(n.flows) == 0 {
				n.flows = append(n.flows, simFlow{})
			}
			h = flow.Handle(len(n.flows))
			n.flows = append(n.flows, simFlow{})
		}
		n.byPort[port] = h
		n.flows[h] = simFlow{port: port, mark: mark, used: true}
		n.m.Enqueue(h, false)
	case n.flows[h].dead:
		n.flows[h] = simFlow{port: port, mark: mark, used: true}
		n.m.Enqueue(h, true)
	case r.IntN(3) == 0:
		n.flows[h].dead = true
		n.m.Enqueue(h, false)
	default:
		n.flows[h].mark, n.flows[h].updated = mark, true
		n.m.Enqueue(h, false)
	}
}

// restart begins a new process on n: it knows the flows that are alive, as from a
// dump of the kernel, and has forgotten all else.
func (n *node) restart(cfg Config, now monotime.Time) {
	old := n.flows
	n.flows, n.free, n.byPort = []simFlow{{}}, nil, map[uint16]flow.Handle{}
	for _, s := range old {
		if s.used && !s.dead {
			n.byPort[s.port] = flow.Handle(len(n.flows))
			n.flows = append(n.flows, simFlow{port: s.port, mark: s.mark, used: true})
		}
	}
	n.external, n.doubt, n.epoch, n.inbox = map[uint16]simEntry{}, false, 0, nil
	n.m = New(cfg, n)
}

func (n *node) receive(t testing.TB, now monotime.Time, b []byte) {
	var rd wire.Reader
	rd.Reset(b)
	var msg wire.Message
	for rd.Next(&msg) {
		if msg.Fault != wire.FaultNone {
			t.Fatalf("%s received a message with a fault: %v", n.name, msg.Fault)
		}
		v := n.m.Receive(now, &msg)
		n.follow(now)
		switch {
		case v == wire.Bad:
			t.Fatalf("%s calls a message bad: %v %v", n.name, msg.Type, msg.Flags)
		case v != wire.Deliver:
		case msg.Type == wire.CTDel:
			delete(n.external, msg.Flow.Orig.SrcPort)
		default:
			if e, ok := n.external[msg.Flow.Orig.SrcPort]; n.doubt && (!ok || e.epoch != n.epoch) {
				n.m.Confirmed(now)
			}
			n.external[msg.Flow.Orig.SrcPort] = simEntry{msg.Flow.Mark, n.epoch}
		}
	}
}

func (n *node) follow(now monotime.Time) {
	if q := n.m.Requests(); q != n.epoch {
		n.epoch, n.doubt = q, true
	}
	if n.doubt && n.m.ResyncComplete(now) {
		n.doubt = false
		for p, e := range n.external {
			if e.epoch != n.epoch {
				delete(n.external, p)
				n.swept++
			}
		}
	}
}

// network carries the datagrams of two nodes, badly.
type network struct {
	t     testing.TB
	r     *rand.Rand
	now   monotime.Time
	nodes [2]*node
	loss  float64
	dup   float64
	delay time.Duration // up to this much; reorders
	trace func(format string, args ...any)
}

// run advances the time by d, in steps.
func (w *network) run(d time.Duration, each func()) {
	const step = 5 * time.Millisecond
	for end := w.now.Add(d); w.now < end; w.now = w.now.Add(step) {
		if each != nil {
			each()
		}
		for i, n := range w.nodes {
			if n.down {
				n.inbox = nil
				continue
			}
			later := n.inbox[:0:0]
			for _, d := range n.inbox {
				if d.at > w.now {
					later = append(later, d)
					continue
				}
				n.receive(w.t, w.now, d.b)
			}
			n.inbox = later
			n.m.Advance(w.now)
			n.follow(w.now)
			for k := 0; k < 64 && n.m.Pending(w.now); k++ {
				b := n.m.AppendDatagram(w.now, nil, 1400)
				if len(b) == 0 {
					break
				}
				w.deliver(n, w.nodes[1-i], b)
			}
		}
	}
}

func (w *network) deliver(from, to *node, b []byte) {
	copies := 1
	if w.r.Float64() < w.dup {
		copies = 2
	}
	for range copies {
		if from.cut || w.r.Float64() < w.loss {
			continue
		}
		at := w.now
		if w.delay > 0 {
			at = at.Add(time.Duration(w.r.Int64N(int64(w.delay))))
		}
		to.inbox = append(to.inbox, simDatagram{at, b})
	}
}

// differences returns how many flows of a the external cache of b lacks or holds
// in another state, and how many it holds that a does not have.
func differences(a, b *node) (missing, stale int) {
	alive := 0
	for _, s := range a.flows {
		if !s.used || s.dead {
			continue
		}
		alive++
		if e, ok := b.external[s.port]; !ok || e.mark != s.mark {
			missing++
		}
	}
	return missing, len(b.external) - (alive - missing)
}

var (
	seeds = flag.Int("seeds", 150, "how many seeds TestSimulation runs")
	seed  = flag.Uint64("seed", 0, "the one seed to run")
)

// TestSimulation runs two machines on a network that loses, repeats, delays and
// reorders, cuts one direction for a while, and restarts either side. When the
// faults end and the traffic pauses, both external caches equal what the other
// side has.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), *seeds
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+uint64(n); s++ {
		if simulate(t, s); t.Failed() {
			t.Fatalf("replay with: go test ./internal/sync/ftfw -run TestSimulation -seed %d", s)
		}
	}
}

func simulate(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 77))
	start := func() Config {
		return Config{FirstSeq: wire.Seq(r.Uint32()), AckWindow: 2 + r.IntN(300), ResendQueue: 512 << r.IntN(6), Resync: true}
	}
	w := &network{t: t, r: r, now: 1}
	for i, name := range []string{"A", "B"} {
		w.nodes[i] = &node{name: name}
		w.nodes[i].restart(start(), w.now)
	}
	w.loss, w.dup = r.Float64()*0.4, r.Float64()*0.1
	w.delay = time.Duration(r.IntN(40)) * time.Millisecond
	ports := 1 + r.IntN(3000)
	rate := r.IntN(20)
	churn := func() {
		for _, n := range w.nodes {
			if n.down {
				continue
			}
			for range r.IntN(rate + 1) {
				n.change(r, uint16(r.IntN(ports)))
			}
		}
	}
	for range 1 + r.IntN(5) {
		w.run(time.Duration(r.IntN(8000))*time.Millisecond, churn)
		n := w.nodes[r.IntN(2)]
		switch r.IntN(4) {
		case 0:
			n.down = true
			w.run(time.Duration(r.IntN(20000))*time.Millisecond, churn)
			n.down = false
			for range r.IntN(500) {
				n.change(r, uint16(r.IntN(ports))) // unseen by the process that is gone
			}
			n.restart(start(), w.now)
		case 1:
			n.cut = true
			w.run(time.Duration(r.IntN(30000))*time.Millisecond, churn)
			n.cut = false
		case 2:
			w.nodes[0].cut, w.nodes[1].cut = true, true
			w.run(time.Duration(r.IntN(30000))*time.Millisecond, churn)
			w.nodes[0].cut, w.nodes[1].cut = false, false
		}
	}
	w.run(time.Second, churn)
	w.loss, w.dup = 0, 0
	w.run(60*time.Second, nil)
	for i, a := range w.nodes {
		b := w.nodes[1-i]
		if missing, stale := differences(a, b); missing != 0 || stale != 0 {
			t.Errorf("seed %d: %s lacks %d flows of %s and holds %d that it does not have (peer %+v, %+v)", seed, b.name, missing, a.name, stale, a.m.Peer(), b.m.Peer())
		}
		if a.m.dirty != 0 || a.m.flying != 0 {
			t.Errorf("seed %d: %s is idle with %d dirty flows, %d in flight", seed, a.name, a.m.dirty, a.m.flying)
		}
	}
}

// TestSimulationCanFail shows that the simulation sees a divergence: a peer whose
// NACKs never arrive, and flows never sent again.
func TestSimulationCanFail(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	w := &network{t: t, r: r, now: 1}
	for i, name := range []string{"A", "B"} {
		w.nodes[i] = &node{name: name}
		w.nodes[i].restart(Config{Resync: true}, w.now)
	}
	w.run(15*time.Second, nil)
	a, b := w.nodes[0], w.nodes[1]
	for p := range uint16(100) {
		a.change(r, p)
	}
	a.m.ForgetAll() // the changes never leave
	w.run(60*time.Second, nil)
	if missing, _ := differences(a, b); missing != 100 {
		t.Errorf("B lacks %d flows, want 100", missing)
	}
}

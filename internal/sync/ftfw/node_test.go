package ftfw

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// table is a node's own flows and what it holds of the other node. Flows are told
// apart by their source port, and their state is their mark.
type table interface {
	change(r *rand.Rand, port uint16)
	own() map[uint16]uint32     // flows that are alive: mark by port
	foreign() map[uint16]uint32 // what is held of the peer
}

// node is one machine with the least of an engine around it.
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
	released int
	evicted  map[uint16]bool // ports whose deletion was given up
	broken   fault
}

// fault is a defect that a test puts between machine and cache, to show that the
// simulation notices.
type fault uint8

const (
	sound       fault = iota
	nackAsAck         // losses are taken for deliveries: nothing is repaired
	lateDeliver       // late data is applied
	deafToDel         // deletions are applied to nothing
	noResync          // requests for the whole state come to nothing
)

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

func (n *node) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, _ monotime.Time) []byte {
	s := &n.flows[h]
	if !s.used {
		panic(fmt.Sprintf("%s: flow %d is sent after its release", n.name, h))
	}
	fl := simWire(s.port, s.mark)
	t := wire.CTNew
	switch {
	case s.dead:
		t = wire.CTDel
	case s.updated && !replace:
		t = wire.CTUpd
	}
	return wire.AppendFlow(b, wire.Conntrackd, t, f, seq, &fl)
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
	n.released++
	n.remove(h)
}

func (n *node) remove(h flow.Handle) {
	delete(n.byPort, n.flows[h].port)
	n.flows[h] = simFlow{}
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
	mark := r.Uint32()
	h, ok := n.byPort[port]
	switch {
	case !ok || n.flows[h].dead:
		n.add(port, mark)
	case r.IntN(3) == 0:
		n.destroy(port)
	default:
		n.update(port, mark)
	}
}

// add begins a flow, in the place of a dead one with this port if there is one.
func (n *node) add(port uint16, mark uint32) {
	h, again := n.byPort[port]
	switch {
	case again:
	case len(n.free) > 0:
		h = n.free[len(n.free)-1]
		n.free = n.free[:len(n.free)-1]
	default:
		h = flow.Handle(len(n.flows))
		n.flows = append(n.flows, simFlow{})
	}
	n.byPort[port] = h
	n.flows[h] = simFlow{port: port, mark: mark, used: true}
	delete(n.evicted, port)
	n.m.Enqueue(h, again)
}

func (n *node) update(port uint16, mark uint32) {
	h := n.byPort[port]
	n.flows[h].mark, n.flows[h].updated = mark, true
	n.m.Enqueue(h, false)
}

func (n *node) destroy(port uint16) {
	h := n.byPort[port]
	n.flows[h].dead = true
	n.m.Enqueue(h, false)
}

// evict gives up one deletion, as a full cache does.
func (n *node) evict() {
	if h := n.m.Evict(); h != 0 {
		n.evicted[n.flows[h].port] = true
		n.remove(h)
	}
}

// forget removes the flow with this port although the peer was told nothing.
func (n *node) forget(port uint16) {
	if h, ok := n.byPort[port]; ok {
		n.m.Forget(h)
		n.evicted[port] = true
		n.remove(h)
	}
}

// flush empties the cache and tells it anew, as after a dump of the kernel.
func (n *node) flush() {
	n.m.ForgetAll()
	old := n.flows
	n.flows, n.free, n.byPort = []simFlow{{}}, nil, map[uint16]flow.Handle{}
	for _, s := range old {
		switch {
		case s.used && s.dead:
			n.evicted[s.port] = true
		case s.used:
			n.add(s.port, s.mark)
		}
	}
}

func (n *node) own() map[uint16]uint32 {
	own := map[uint16]uint32{}
	for _, s := range n.flows {
		if s.used && !s.dead {
			own[s.port] = s.mark
		}
	}
	return own
}

func (n *node) foreign() map[uint16]uint32 {
	held := map[uint16]uint32{}
	for p, e := range n.external {
		held[p] = e.mark
	}
	return held
}

// restart begins a new process on n: it knows the flows that are alive, as from a
// dump of the kernel, and has forgotten all else.
func (n *node) restart(cfg Config) {
	old := n.flows
	n.flows, n.free, n.byPort = []simFlow{{}}, nil, map[uint16]flow.Handle{}
	n.evicted = map[uint16]bool{}
	for _, s := range old {
		if s.used && !s.dead {
			n.byPort[s.port] = flow.Handle(len(n.flows))
			n.flows = append(n.flows, simFlow{port: s.port, mark: s.mark, used: true})
		}
	}
	n.external, n.doubt, n.epoch = map[uint16]simEntry{}, false, 0
	n.m = New(cfg, n)
}

func (n *node) receive(now monotime.Time, b []byte) error {
	var rd wire.Reader
	rd.Reset(b)
	var msg wire.Message
	for rd.Next(&msg) {
		if msg.Fault != wire.FaultNone {
			return fmt.Errorf("%s received a message with a fault: %v", n.name, msg.Fault)
		}
		n.spoil(&msg)
		v := n.m.Receive(now, &msg)
		n.follow(now)
		if v == wire.Drop && msg.Type != wire.Ctl && n.broken == lateDeliver {
			v = wire.Deliver
		}
		switch {
		case v == wire.Bad:
			return fmt.Errorf("%s calls a message bad: %v %v", n.name, msg.Type, msg.Flags)
		case v != wire.Deliver:
		case msg.Type == wire.CTDel:
			if n.broken != deafToDel {
				delete(n.external, msg.Flow.Orig.SrcPort)
			}
		default:
			if e, ok := n.external[msg.Flow.Orig.SrcPort]; n.doubt && (!ok || e.epoch != n.epoch) {
				n.m.Confirmed(now)
			}
			n.external[msg.Flow.Orig.SrcPort] = simEntry{msg.Flow.Mark, n.epoch}
		}
	}
	return nil
}

// spoil makes of msg what a machine with the defect would have seen.
func (n *node) spoil(msg *wire.Message) {
	switch {
	case msg.Type != wire.Ctl:
	case n.broken == nackAsAck && msg.Flags&wire.FlagNack != 0:
		msg.Flags ^= wire.FlagNack | wire.FlagAck
	case n.broken == noResync && msg.Flags&wire.FlagResync != 0:
		msg.Flags ^= wire.FlagResync | wire.FlagAlive
	}
}

// follow does what the owner of an external cache does: what a bulk update that
// was asked for has not confirmed goes when it is over.
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

// turn is one turn of the loop: deadlines, then at most 64 datagrams.
func (n *node) turn(now monotime.Time, send func([]byte)) {
	n.m.Advance(now)
	n.follow(now)
	for k := 0; k < 64 && n.m.Pending(now); k++ {
		b := n.m.AppendDatagram(now, nil, 1400)
		if len(b) == 0 {
			break
		}
		send(b)
	}
}

func (n *node) next(now monotime.Time) monotime.Time {
	if n.m.Pending(now) {
		return now
	}
	return n.m.Next(now)
}

func (n *node) invariants(now monotime.Time) error {
	if !n.m.Pending(now) && n.m.Next(now) <= now {
		return fmt.Errorf("%s waits for a time that has passed", n.name)
	}
	return check(n.m)
}

// process is what runs at an end of the network.
type process interface {
	table
	receive(now monotime.Time, b []byte) error
	turn(now monotime.Time, send func([]byte))
	next(now monotime.Time) monotime.Time // when turn has something to do
	invariants(now monotime.Time) error
}

// end is one end of the network.
type end struct {
	process
	inbox []datagram
	cut   bool // nothing it sends arrives
	down  bool // the process is not there
}

type datagram struct {
	at monotime.Time
	b  []byte
}

// network carries the datagrams of two processes, badly.
type network struct {
	r     *rand.Rand
	now   monotime.Time
	ends  [2]*end
	loss  float64
	dup   float64
	delay time.Duration // up to this much; reorders
	every int           // the invariants are checked every so many turns
	turns int
	err   error // the first thing that was wrong
}

func newNetwork(r *rand.Rand, a, b process) *network {
	return &network{r: r, now: 1, ends: [2]*end{{process: a}, {process: b}}, every: *every}
}

// run advances the time by d in steps, calling each before every one.
func (w *network) run(d time.Duration, each func()) {
	const step = 5 * time.Millisecond
	for stop := w.now.Add(d); w.now < stop; w.now = w.now.Add(step) {
		if each != nil {
			each()
		}
		w.turn()
	}
}

// settle advances the time by d with no change of any flow. It goes from deadline
// to deadline, so that a deadline that a machine does not tell is missed.
func (w *network) settle(d time.Duration) {
	for stop := w.now.Add(d); w.now < stop; {
		w.turn()
		next := stop
		for _, e := range w.ends {
			if e.down {
				continue
			}
			next = min(next, e.next(w.now))
			for _, d := range e.inbox {
				next = min(next, d.at)
			}
		}
		w.now = max(next, w.now.Add(100*time.Microsecond))
	}
}

func (w *network) turn() {
	w.turns++
	for i, e := range w.ends {
		if e.down {
			e.inbox = nil
			continue
		}
		due := e.inbox
		e.inbox = e.inbox[:0:0]
		for _, d := range due {
			if d.at > w.now {
				e.inbox = append(e.inbox, d)
			} else if err := e.receive(w.now, d.b); err != nil {
				w.fail(err)
			}
		}
		e.turn(w.now, func(b []byte) { w.carry(e, w.ends[1-i], b) })
		if w.turns%w.every == 0 {
			if err := e.invariants(w.now); err != nil {
				w.fail(err)
			}
		}
	}
}

func (w *network) fail(err error) {
	if w.err == nil {
		w.err = fmt.Errorf("at %v: %w", time.Duration(w.now), err)
	}
}

func (w *network) carry(from, to *end, b []byte) {
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
		to.inbox = append(to.inbox, datagram{at, b})
	}
}

// differences returns the ports of a's flows that b lacks or holds in another
// state, and those that b holds of a although a does not have them.
func differences(a, b table) (missing, stale []uint16) {
	own, held := a.own(), b.foreign()
	for p, mark := range own {
		if m, ok := held[p]; !ok || m != mark {
			missing = append(missing, p)
		}
	}
	for p := range held {
		if _, ok := own[p]; !ok {
			stale = append(stale, p)
		}
	}
	return missing, stale
}

func newNode(name string, cfg Config) *node {
	n := &node{name: name}
	n.restart(cfg)
	return n
}

// pair returns two nodes that have finished their HELLO and their first resync.
func pair(tb testing.TB, cfg Config) (w *network, a, b *node) {
	tb.Helper()
	a, b = newNode("A", cfg), newNode("B", cfg)
	w = newNetwork(rand.New(rand.NewPCG(1, 1)), a, b)
	w.settle(15 * time.Second)
	if !a.m.Peer().HelloDone || !b.m.Peer().HelloDone || w.err != nil {
		tb.Fatalf("the pair is not up: %+v, %+v, %v", a.m.Peer(), b.m.Peer(), w.err)
	}
	return w, a, b
}

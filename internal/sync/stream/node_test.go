package stream

import (
	"fmt"
	"math"
	"math/rand/v2"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// node is one machine with the least of an engine around it: flows are told apart
// by their source port. Their version counts the changes on the node, so that of two
// versions of a flow the greater one is the newer. It stands in their status, so that a
// compact message tells it; that of the last change that such a message does not tell
// stands in their mark.
type node struct {
	w       *network
	name    string
	m       *Machine
	flows   []simFlow // by handle; 0 is unused
	free    []flow.Handle
	byPort  map[uint16]flow.Handle
	owners  map[uint8]*held
	inbox   []simDatagram
	down    bool
	session uint64
	changes uint32
	old     bool // it is of a version that knows of no compact messages
	// applied has the newest version that was applied of each flow, by session.
	applied map[uint64]map[uint16]uint32
	// told has what each message of the session said.
	told map[wire.Seq]simFlow
	msg  wire.Message // scratch
}

type simFlow struct {
	port       uint16
	mark       uint32
	version    uint32
	used, dead bool
	altered    bool // in its mark, since AppendFlow told of it
}

// held is what a node holds of one owner.
type held struct {
	entries map[uint16]*entry
	sums    [wire.Buckets]uint64
	doubt   wire.Mask
	graves  map[uint16]wire.Seq
	sweep   wire.Mask // under way for so many steps
	steps   int
	hoards  bool              // flawSweep
	names   map[uint32]uint16 // ports by handle of the owner
}

type entry struct {
	seq, base     wire.Seq
	mark, version uint32
	hash          uint64
	fixed         uint32
	bucket        uint8
	doubt         bool
}

type simDatagram struct {
	at      monotime.Time
	from    *node
	session uint64
	b       []byte
	told    map[wire.Seq]simFlow // what the session's messages said; nil: not known
}

func simWire(port uint16, mark, version uint32) flow.Flow {
	var f flow.Flow
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: port, DstPort: 80}
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasMark | flow.HasStatus | flow.HasTimeout
	f.Mark, f.Status = mark, version
	return f
}

func (n *node) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, _ bool, now monotime.Time) []byte {
	s := &n.flows[h]
	if !s.used {
		panic(fmt.Sprintf("%s sends flow %d, which does not exist", n.name, h))
	}
	if f != 0 || seq != n.m.next {
		panic("flags or a number that are not the stream's")
	}
	fl := simWire(s.port, s.mark, s.version)
	fl.Timeout = uint32(now / 1e9)
	t := wire.CTNew
	if s.dead {
		t = wire.CTDel
	}
	s.altered = false
	n.told[seq] = *s
	return wire.AppendFlow(b, wire.Syncd, t, f, seq, &fl)
}

func (n *node) AppendCompact(b []byte, h flow.Handle, seq, base wire.Seq, now monotime.Time) ([]byte, bool) {
	s := &n.flows[h]
	if !s.used || seq != n.m.next || n.old {
		panic(fmt.Sprintf("%s sends flow %d, used %v, with number %d", n.name, h, s.used, seq))
	}
	if s.altered && !s.dead {
		return b, false
	}
	n.told[seq] = *s
	if s.dead {
		return wire.AppendCTEnd(b, seq, uint32(h), base), true
	}
	st := flow.State{Word: flow.KnowsTimeout, Status: s.version, Timeout: uint32(now / 1e9)}
	return wire.AppendCTState(b, seq, uint32(h), base, st), true
}

func (n *node) Dead(h flow.Handle) bool { return n.flows[h].dead }

func (n *node) Bucket(h flow.Handle) uint8 {
	f := simWire(n.flows[h].port, 0, 0)
	return wire.Bucket(&f.Orig)
}

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

func (n *node) held(owner uint8) *held {
	x := n.owners[owner]
	if x == nil {
		x = &held{entries: map[uint16]*entry{}, graves: map[uint16]wire.Seq{}, hoards: n.w.flaw == flawSweep, names: map[uint32]uint16{}}
		n.owners[owner] = x
	}
	return x
}

func (n *node) Doubt(owner uint8, m wire.Mask) {
	x := n.held(owner)
	x.sweepNow()
	x.doubt = x.doubt.Or(m)
	for _, e := range x.entries {
		e.doubt = e.doubt || m.Has(e.bucket)
	}
}

func (n *node) Sweep(owner uint8, m wire.Mask) {
	x := n.held(owner)
	x.sweepNow()
	x.sweep, x.steps = m, n.w.r.IntN(20)
}

func (x *held) sweepNow() {
	for p, e := range x.entries {
		if x.sweep.Has(e.bucket) && e.doubt && !x.hoards {
			x.remove(p)
		}
	}
	x.doubt = x.doubt.Less(x.sweep)
	x.sweep = wire.Mask{}
}

func (x *held) remove(port uint16) {
	e := x.entries[port]
	x.sums[e.bucket] -= e.hash
	delete(x.entries, port)
}

// work goes on with the sweeps of n.
func (n *node) work() {
	for _, x := range n.owners {
		if x.steps--; x.steps < 0 && !x.sweep.Empty() {
			x.sweepNow()
		}
	}
}

func (n *node) Doubtful(owner uint8) wire.Mask         { return n.held(owner).doubt }
func (n *node) Sums(owner uint8) *[wire.Buckets]uint64 { return &n.held(owner).sums }

func (n *node) Whole(owner uint8) { clear(n.held(owner).graves) }

func (n *node) Begin(owner uint8) { clear(n.held(owner).names) }

func (n *node) Follows(owner uint8, msg *wire.Message) bool {
	x := n.held(owner)
	e := x.entries[x.names[msg.Handle]]
	return e != nil && (e.base == msg.Base || n.w.flaw == flawBase)
}

// spell makes what a compact message says what the one with all of the flow would have
// said.
func (x *held) spell(msg *wire.Message) {
	port := x.names[msg.Handle]
	e := x.entries[port]
	msg.Flow = simWire(port, e.mark, msg.State.Status)
	was := flow.State{Word: flow.KnowsTimeout, Status: e.version}
	msg.Hash, msg.Fixed = wire.ChangeState(e.hash, e.fixed, was, msg.State), uint64(e.fixed)
	if msg.Type == wire.CTEnd {
		msg.Flow.Status = math.MaxUint32 // it is not told
	}
}

func (n *node) apply(from *simDatagram, d wire.Delivery, msg *wire.Message) {
	if name := n.m.OwnerName(d.Owner); name != from.from.name {
		n.w.failf("%s applies a flow of %s to %q", n.name, from.from.name, name)
	}
	x := n.held(d.Owner)
	base := msg.Seq
	if msg.Handle == 0 {
		base = 0
	}
	if msg.IsCompact() {
		x.spell(msg)
		base = msg.Base
	}
	port := msg.Flow.Orig.SrcPort
	doubt := false
	late := d.Late && n.w.flaw != flawLate
	if e := x.entries[port]; e != nil {
		// What is in doubt is older than all that confirms it.
		if late && msg.Seq.Before(e.seq) && !(e.doubt && d.Confirms) {
			return
		}
		doubt = e.doubt
		x.remove(port)
	} else if g, ok := x.graves[port]; ok && late && msg.Seq.Before(g) {
		return
	}
	applied := n.applied[from.session]
	if applied == nil {
		applied = map[uint16]uint32{}
		n.applied[from.session] = applied
	}
	version, dead := msg.Flow.Status, msg.Type == wire.CTDel || msg.Type == wire.CTEnd
	if version < applied[port] {
		n.w.failf("%s: flow %d of %s goes back from %d to %d", n.name, port, from.from.name, applied[port], version)
	}
	if said := from.told[msg.Seq]; from.told != nil && (said.port != port || said.dead != dead || !dead && (said.mark != msg.Flow.Mark || said.version != version)) {
		n.w.failf("%s takes %v for flow %d of %s with mark %d, version %d; it is %+v", n.name, msg.Type, port, from.from.name, msg.Flow.Mark, version, said)
	}
	if version != math.MaxUint32 {
		applied[port] = version
	}
	if dead {
		if d.Remember {
			x.graves[port] = msg.Seq
		}
		return
	}
	delete(x.graves, port)
	b := wire.Bucket(&msg.Flow.Orig)
	if d.Confirms {
		doubt = false
	} else if x.doubt.Has(b) {
		doubt = true
	}
	x.entries[port] = &entry{seq: msg.Seq, base: base, mark: msg.Flow.Mark, version: version, hash: msg.Hash, fixed: uint32(msg.Fixed), bucket: b, doubt: doubt}
	x.sums[b] += msg.Hash
	if msg.Handle != 0 {
		x.names[msg.Handle] = port
	}
}

// change creates, updates or destroys the flow with this port.
func (n *node) change(r *rand.Rand, port uint16) {
	h, ok := n.byPort[port]
	ok = ok && !n.flows[h].dead
	if dead := ok && r.IntN(3) == 0; ok && !dead && n.changes%3 > 0 {
		n.pass(port)
	} else {
		n.set(port, dead)
	}
}

// pass gives the flow with this port, which is alive, a new state and nothing else.
func (n *node) pass(port uint16) {
	h := n.byPort[port]
	n.changes++
	n.flows[h].version = n.changes
	n.m.Enqueue(h, false)
}

// set gives the flow with this port a new state, or destroys it.
func (n *node) set(port uint16, dead bool) {
	h, ok := n.byPort[port]
	if !ok {
		if k := len(n.free); k > 0 {
			h, n.free = n.free[k-1], n.free[:k-1]
		} else {
			h = flow.Handle(len(n.flows))
			n.flows = append(n.flows, simFlow{})
		}
		n.byPort[port] = h
	}
	n.changes++
	s := &n.flows[h]
	if !dead {
		s.mark, s.altered = n.changes, true
	}
	s.port, s.version, s.used, s.dead = port, n.changes, true, dead
	n.m.Enqueue(h, false)
}

// lose takes a flow away without a deletion, as when its slot is needed.
func (n *node) lose(port uint16) {
	if h, ok := n.byPort[port]; ok {
		n.m.Forget(h)
		delete(n.byPort, port)
		n.flows[h] = simFlow{}
		n.free = append(n.free, h)
	}
}

// flush empties the cache.
func (n *node) flush() {
	n.m.ForgetAll()
	n.flows, n.free, n.byPort = []simFlow{{}}, nil, map[uint16]flow.Handle{}
}

// restart begins a new process on n: it knows the flows that are alive, as from a
// dump of the kernel, and, if keep, what it held of others, as from a snapshot.
func (n *node) restart(keep bool) {
	r := n.w.r
	cfg := Config{FirstSeq: wire.Seq(r.Uint32()), ResendQueue: 1024 << r.IntN(7), AckWindow: 2 + r.IntN(300)}
	if r.IntN(2) == 0 {
		cfg.FirstSeq = -wire.Seq(r.IntN(4000)) // soon to wrap
	}
	n.start(cfg, keep)
}

func (n *node) start(cfg Config, keep bool) {
	r := n.w.r
	old := n.flows
	oldM, oldHeld := n.m, n.owners
	n.flows, n.free, n.byPort = []simFlow{{}}, nil, map[uint16]flow.Handle{}
	n.owners, n.inbox = map[uint8]*held{}, nil
	n.applied, n.told = map[uint64]map[uint16]uint32{}, map[wire.Seq]simFlow{}
	n.session = r.Uint64() | 1
	cfg.Name, cfg.Session = n.name, n.session
	cfg.Random = func(b []byte) {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	n.m = New(cfg, n, n)
	for _, s := range old {
		if s.used && !s.dead {
			h := flow.Handle(len(n.flows))
			n.byPort[s.port] = h
			n.flows = append(n.flows, simFlow{port: s.port, mark: s.mark, version: s.version, used: true, altered: true})
			n.m.Enqueue(h, false)
		}
	}
	if keep && oldM != nil {
		for o := range uint8(maxOwners) {
			if x, name := oldHeld[o], oldM.OwnerName(o); x != nil && name != "" {
				x.sweepNow()
				x.doubt = wire.AllBuckets
				clear(x.names)
				for _, e := range x.entries {
					e.doubt, e.base = true, 0
					x.sums[e.bucket] -= e.hash
					e.hash = 0 // the new session hashes differently
				}
				n.owners[n.m.AddOwner(name)] = x
			}
		}
	}
}

// receive takes a datagram.
func (n *node) receive(now monotime.Time, d *simDatagram) {
	rd := wire.Reader{Sync: true, Seed: d.session}
	rd.Reset(d.b)
	msg := &n.msg
	for rd.Next(msg) {
		if msg.Fault != wire.FaultNone {
			n.w.failf("fault %v", msg.Fault)
			continue
		}
		if msg.IsCompact() && n.old {
			continue // a type that makes no sense to it
		}
		if msg.Type == wire.SyncCtl {
			if msg.Sync.Kind == wire.Hello && (n.old || d.from.old) {
				msg.Sync.Features = 0
			}
			if n.w.flaw == flawDigest && msg.Sync.Kind == wire.Digest {
				msg.Sync.Sums = *n.Sums(n.m.AddOwner(d.from.name))
			}
			if n.w.mute == d.from && msg.Sync.Kind == wire.Status {
				continue
			}
		}
		v, delivery := n.m.Receive(now, d.session, msg)
		switch v {
		case wire.Bad:
			n.w.failf("%s calls a message bad: %v %v", n.name, msg.Type, msg.Sync.Kind)
		case wire.Deliver:
			n.apply(d, delivery, msg)
		}
	}
}

// turn sends at most so many datagrams of what is due.
func (n *node) turn(now monotime.Time, limit, most int, send func([]byte)) {
	n.m.Advance(now)
	for k := 0; k < most && n.m.Pending(now); k++ {
		b := n.m.AppendDatagram(now, nil, limit)
		if len(b) == 0 {
			break
		}
		if len(b) > max(limit, wire.MaxSyncLen) {
			n.w.failf("datagram of %d octets", len(b))
		}
		send(b)
	}
	if n.m.Next(now) == 0 {
		n.w.failf("%s has no deadline", n.name)
	}
}

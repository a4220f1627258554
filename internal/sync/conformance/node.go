package conformance

import (
	"fmt"
	"math/rand/v2"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Node is one machine and the two caches around it. It is the store and the replica
// of its machine.
type Node struct {
	w       *network
	name    string
	session uint64
	s       Sending
	many    Machine // one of these two is set
	one     OnePeer
	down    bool
	inbox   []datagram

	flows   []state // by handle; 0 is unused
	free    []flow.Handle
	byPort  map[uint16]flow.Handle
	changes uint32
	untold  map[uint16]bool // ports that were forgotten and not destroyed
	sent    map[uint16]int  // data messages by port

	owners   map[uint8]*held
	requests uint64
	doubt    bool // of a machine for one peer
	applied  map[uint64]map[uint16]uint32
}

type state struct {
	port                uint16
	mark                uint32
	used, dead, updated bool
}

// held is what a node holds of one owner.
type held struct {
	entries map[uint16]*entry
	sums    [wire.Buckets]uint64
	doubt   wire.Mask
	graves  map[uint16]wire.Seq
	sweep   wire.Mask // under way for so many steps
	steps   int
}

type entry struct {
	seq    wire.Seq
	mark   uint32
	hash   uint64
	bucket uint8
	doubt  bool
	at     monotime.Time
}

func flowOf(port uint16, mark uint32) flow.Flow {
	var f flow.Flow
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: port, DstPort: 80}
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasMark | flow.HasStatus
	f.Mark = mark
	return f
}

// The node as the store of its machine.

func (n *Node) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, _ monotime.Time) []byte {
	s := &n.flows[h]
	if !s.used {
		n.w.failf("%s sends flow %d, which does not exist", n.name, h)
	}
	fl := flowOf(s.port, s.mark)
	t := wire.CTNew
	switch {
	case s.dead:
		t = wire.CTDel
	case s.updated && !replace:
		t = wire.CTUpd
	}
	n.sent[s.port]++
	return wire.AppendFlow(b, wire.Conntrackd, t, f, seq, &fl)
}

// AppendCompact makes no message: what all modes hold does not depend on it.
func (n *Node) AppendCompact(b []byte, _ flow.Handle, _, _ wire.Seq, _ monotime.Time) ([]byte, bool) {
	return b, false
}

func (n *Node) Dead(h flow.Handle) bool { return n.flows[h].dead }

func (n *Node) Bucket(h flow.Handle) uint8 {
	f := flowOf(n.flows[h].port, 0)
	return wire.Bucket(&f.Orig)
}

func (n *Node) Release(h flow.Handle) {
	if s := &n.flows[h]; !s.used || !s.dead {
		n.w.failf("%s: release of flow %d, which is not dead", n.name, h)
		return
	}
	n.remove(h)
}

func (n *Node) remove(h flow.Handle) {
	delete(n.byPort, n.flows[h].port)
	n.flows[h] = state{}
	n.free = append(n.free, h)
}

func (n *Node) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
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

// The node as the replica of its machine.

func (n *Node) held(owner uint8) *held {
	x := n.owners[owner]
	if x == nil {
		x = &held{entries: map[uint16]*entry{}, graves: map[uint16]wire.Seq{}}
		n.owners[owner] = x
	}
	return x
}

func (n *Node) Begin(uint8)                       {}
func (n *Node) Follows(uint8, *wire.Message) bool { return false }

func (n *Node) Doubt(owner uint8, m wire.Mask) {
	x := n.held(owner)
	x.sweepNow()
	x.doubt = x.doubt.Or(m)
	for _, e := range x.entries {
		e.doubt = e.doubt || m.Has(e.bucket)
	}
}

func (n *Node) Sweep(owner uint8, m wire.Mask) {
	x := n.held(owner)
	x.sweepNow()
	x.sweep, x.steps = m, n.w.r.IntN(5)
}

func (n *Node) Doubtful(owner uint8) wire.Mask         { return n.held(owner).doubt }
func (n *Node) Sums(owner uint8) *[wire.Buckets]uint64 { return &n.held(owner).sums }
func (n *Node) Whole(owner uint8)                      { clear(n.held(owner).graves) }

func (n *Node) Expire(owner uint8, olderThan monotime.Time) {
	x := n.held(owner)
	for p, e := range x.entries {
		if e.at < olderThan {
			x.remove(p)
		}
	}
}

func (x *held) sweepNow() {
	for p, e := range x.entries {
		if x.sweep.Has(e.bucket) && e.doubt {
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

// work goes on with the sweeps.
func (n *Node) work() {
	for _, x := range n.owners {
		if x.steps--; x.steps < 0 && !x.sweep.Empty() {
			x.sweepNow()
		}
	}
}

// ownerOf returns the owner number of what n holds of another node.
func (n *Node) ownerOf(name string) uint8 {
	if n.one != nil {
		return 1
	}
	return n.many.Owner(name)
}

func (n *Node) receive(now monotime.Time, d datagram) {
	rd := wire.Reader{Sync: n.many != nil, Seed: d.session}
	rd.Reset(d.b)
	var msg wire.Message
	for rd.Next(&msg) {
		if msg.Fault != wire.FaultNone {
			n.w.failf("%s receives a message with a fault: %v", n.name, msg.Fault)
			continue
		}
		var v wire.Verdict
		del := wire.Delivery{Owner: 1, Confirms: true, Merge: true}
		if n.one != nil {
			v = n.one.Receive(now, &msg)
			n.follow(now)
		} else {
			v, del = n.many.Receive(now, d.session, &msg)
		}
		switch {
		case v == wire.Bad:
			n.w.failf("%s calls a message bad: %v %v", n.name, msg.Type, msg.Flags)
		case v == wire.Deliver && d.from.session == d.session:
			n.apply(now, d.from, del, &msg)
		}
	}
}

// follow does what the owner of the external cache of one peer does.
func (n *Node) follow(now monotime.Time) {
	if q := n.one.Requests(); q != n.requests {
		n.requests, n.doubt = q, true
		n.Doubt(1, wire.AllBuckets)
	}
	if n.doubt && n.one.ResyncComplete(now) {
		n.doubt = false
		n.Sweep(1, wire.AllBuckets)
	}
}

func (n *Node) apply(now monotime.Time, from *Node, d wire.Delivery, msg *wire.Message) {
	if o := n.ownerOf(from.name); o != d.Owner {
		n.w.failf("%s applies a flow of %s to owner %d, not %d", n.name, from.name, d.Owner, o)
	}
	x := n.held(d.Owner)
	port, doubt := msg.Flow.Orig.SrcPort, false
	if e := x.entries[port]; e != nil {
		// What is in doubt is older than all that confirms it.
		if d.Late && msg.Seq.Before(e.seq) && !(e.doubt && d.Confirms) {
			return
		}
		doubt = e.doubt
		x.remove(port)
	} else if g, ok := x.graves[port]; ok && d.Late && msg.Seq.Before(g) {
		return
	}
	applied := n.applied[from.session]
	if applied == nil {
		applied = map[uint16]uint32{}
		n.applied[from.session] = applied
	}
	if msg.Flow.Mark < applied[port] && !n.w.mode.GoesBack {
		n.w.failf("%s: flow %d of %s goes back from %d to %d", n.name, port, from.name, applied[port], msg.Flow.Mark)
	}
	applied[port] = msg.Flow.Mark
	if msg.Type == wire.CTDel {
		if d.Remember {
			x.graves[port] = msg.Seq
		}
		return
	}
	delete(x.graves, port)
	b := wire.Bucket(&msg.Flow.Orig)
	if d.Confirms {
		if doubt && n.one != nil {
			n.one.Confirmed(now)
		}
		doubt = false
	} else if x.doubt.Has(b) {
		doubt = true
	}
	x.entries[port] = &entry{seq: msg.Seq, mark: msg.Flow.Mark, hash: msg.Hash, bucket: b, doubt: doubt, at: now}
	x.sums[b] += msg.Hash
}

// change creates, updates or destroys the flow with this port.
func (n *Node) change(r *rand.Rand, port uint16) {
	h, ok := n.byPort[port]
	switch {
	case !ok || n.flows[h].dead:
		n.add(port)
	case r.IntN(3) == 0:
		n.destroy(port)
	default:
		n.update(port)
	}
}

// add begins a flow, in the place of a dead one with this port if there is one.
func (n *Node) add(port uint16) {
	h, again := n.byPort[port]
	switch k := len(n.free); {
	case again:
	case k > 0:
		h, n.free = n.free[k-1], n.free[:k-1]
	default:
		h = flow.Handle(len(n.flows))
		n.flows = append(n.flows, state{})
	}
	n.changes++
	n.byPort[port] = h
	n.flows[h] = state{port: port, mark: n.changes, used: true}
	delete(n.untold, port)
	n.s.Enqueue(h, again)
}

func (n *Node) update(port uint16) {
	h := n.byPort[port]
	n.changes++
	n.flows[h].mark, n.flows[h].updated = n.changes, true
	n.s.Enqueue(h, false)
}

func (n *Node) destroy(port uint16) {
	h := n.byPort[port]
	n.flows[h].dead = true
	n.s.Enqueue(h, false)
}

// lose takes a flow away without a deletion, as when its slot is needed.
func (n *Node) lose(port uint16) {
	if h, ok := n.byPort[port]; ok {
		n.s.Forget(h)
		n.untold[port] = true
		n.remove(h)
	}
}

// flush empties the cache.
func (n *Node) flush() {
	n.s.ForgetAll()
	for p := range n.byPort {
		n.untold[p] = true
	}
	n.flows, n.free, n.byPort = []state{{}}, nil, map[uint16]flow.Handle{}
}

// damage takes entries away that the machine cannot miss.
func (n *Node) damage() {
	for o := range uint8(10) {
		x := n.owners[o]
		for p := range uint16(3000) {
			if x != nil && x.entries[p] != nil && n.w.r.IntN(10) == 0 {
				x.remove(p)
			}
		}
	}
}

// restart begins a new process: it knows the flows that are alive, as from a dump of
// the kernel, told to the machine or not.
func (n *Node) restart(tell bool) {
	r := n.w.r
	old := n.flows
	n.flows, n.free, n.byPort = []state{{}}, nil, map[uint16]flow.Handle{}
	n.owners, n.inbox = map[uint8]*held{}, nil
	n.applied = map[uint64]map[uint16]uint32{}
	n.requests, n.doubt = 0, false
	for p := range n.untold {
		delete(n.untold, p)
	}
	for _, s := range old {
		if s.used && s.dead {
			n.untold[s.port] = true
		}
	}
	n.session = r.Uint64() | 1
	first := wire.Seq(r.Uint32())
	if r.IntN(2) == 0 {
		first = -wire.Seq(r.IntN(4000)) // soon to wrap
	}
	p := Params{Name: n.name, Session: n.session, FirstSeq: first, Seed: r.Uint64(), Random: func(b []byte) {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}}
	if n.w.mode.NewOne != nil {
		n.one = n.w.mode.NewOne(p, n)
		n.s = n.one
	} else {
		n.many = n.w.mode.New(p, n)
		n.s = n.many
	}
	for _, s := range old {
		if s.used && !s.dead {
			h := flow.Handle(len(n.flows))
			n.byPort[s.port] = h
			n.flows = append(n.flows, state{port: s.port, mark: s.mark, used: true})
			if tell {
				n.s.Enqueue(h, false)
			}
		}
	}
}

func (n *Node) own() map[uint16]uint32 {
	own := map[uint16]uint32{}
	for _, s := range n.flows {
		if s.used && !s.dead {
			own[s.port] = s.mark
		}
	}
	return own
}

// differences returns the ports of a's flows that b lacks or holds in another state,
// and those that b holds of a although a does not have them.
func differences(a, b *Node) (missing, stale []uint16) {
	own, x := a.own(), b.held(b.ownerOf(a.name))
	for p, mark := range own {
		if e := x.entries[p]; e == nil || e.mark != mark {
			missing = append(missing, p)
		}
	}
	for p := range x.entries {
		if _, ok := own[p]; !ok {
			stale = append(stale, p)
		}
	}
	return missing, stale
}

func (n *Node) String() string { return fmt.Sprintf("%s (%x)", n.name, n.session) }

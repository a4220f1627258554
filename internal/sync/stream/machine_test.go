package stream

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// TestNumbersOfLongAgo: after 2^31 numbers nothing that is remembered of before is
// taken for something to come.
func TestNumbersOfLongAgo(t *testing.T) {
	s := started(t, "add A 1-3")
	for _, n := range s.w.nodes {
		if n.name == "A" {
			n.m.next += 3 << 30
			n.m.base = n.m.next
			n.m.peers[0].covered = n.m.next - 1
		} else {
			n.m.peers[0].expected += 3 << 30
		}
	}
	has(t, s.do("start C seq=300\nupdate A 1\nrun 3s quiet\nshow"), "C: 0 due, 0 in flight, 0 kept, 0 slots in use\n   A: in step; holds 1:4 2:2 3:3\n")
	has(t, s.do("corrupt B A 2\nrun 3s quiet\nshow"), "B: 0 due, 0 in flight, 0 kept, 0 slots in use\n   A: in step; holds 1:4 2:2 3:3\n")
}

// TestLostStatusOfIdleStream: a peer that was left out while it lacked nothing counts
// again, although nothing of the stream comes that it could confirm.
func TestLostStatusOfIdleStream(t *testing.T) {
	s := started(t, "add A 1")
	has(t, s.do("run 12s quiet drop=B:*\nshow"), "B: silent does not count")
	has(t, s.do("run 3s quiet\nadd A 2\nrun 100ms quiet\nshow"), "A: in step; holds 1:1 2:2\n")
}

// TestVoidUnderLoad: VOID leaves although new flows become due, and new numbers are
// missing, before all that is due has left.
func TestVoidUnderLoad(t *testing.T) {
	h := newHand(t, Config{})
	h.meet()
	m := h.n.m
	h.status(m.next-1, nil)
	h.sent()
	port := uint16(0)
	more := func(n int) {
		for range n {
			port++
			h.n.set(port, false)
		}
	}
	more(10)
	h.sent()
	lack := m.next - 5
	for range 20 {
		more(30)
		h.at(10 * time.Millisecond)
		h.status(m.next-1, []wire.Range{{From: lack, To: lack}, {From: m.next - 2, To: m.next - 2}})
		for range 20 { // fewer than become due
			m.AppendDatagram(h.now, nil, 28)
		}
		if m.Stats.VoidSent > 0 {
			return
		}
	}
	t.Errorf("no VOID; %d flows are due", m.dirty)
}

// TestFaults: of messages that did not parse, only a data message with a good header
// takes its number.
func TestFaults(t *testing.T) {
	for f := wire.FaultNone + 1; f <= wire.FaultType; f++ {
		for _, typ := range []wire.Type{wire.CTNew, wire.ExpDel, wire.SyncCtl, wire.Ctl, 9} {
			h := newHand(t, Config{})
			h.meet()
			before := h.peer().expected
			msg := wire.Message{Type: typ, Seq: before, Fault: f}
			v, _ := h.n.m.Receive(h.now, h.session, &msg)
			took := h.peer().expected != before
			if v != wire.Bad || took != (f == wire.FaultPayload && typ <= wire.ExpDel) {
				t.Errorf("type %v, %v: verdict %d, took its number: %v", typ, f, v, took)
			}
		}
	}
	h := newHand(t, Config{})
	h.meet()
	for _, session := range []uint64{0, h.n.session} {
		if v, _ := h.n.m.Receive(h.now, session, &wire.Message{}); v != wire.Bad {
			t.Errorf("session %d: verdict %d", session, v)
		}
	}
	if v, _ := h.n.m.Receive(h.now, h.session, &wire.Message{Flags: wire.FlagAck, Seq: h.seq}); v != wire.Bad {
		t.Errorf("data with ACK: verdict %d", v)
	}
}

// TestRepeat: "Their flags are 0, or 1 (REPEAT) in a bulk update, for a flow whose
// state is what the sender sent last".
func TestRepeat(t *testing.T) {
	h := newHand(t, Config{})
	h.meet()
	m := h.n.m
	flags := func() map[uint16]wire.Flags {
		h.status(m.next-1, nil)
		seen := map[uint16]wire.Flags{}
		for range 3 {
			for _, d := range h.sent() {
				if d.Type == wire.CTNew {
					seen[d.Flow.Orig.SrcPort] |= d.Flags
				}
			}
			h.status(m.next-1, nil)
		}
		return seen
	}
	h.n.set(1, false)
	h.n.set(2, false)
	h.sent() // to nobody
	m.Bulk()
	h.n.set(2, false)
	if f := flags(); len(f) != 2 || f[1] != 0 || f[2] != 0 {
		t.Errorf("sent for the first time: %v", f)
	}
	h.n.flows[h.n.byPort[2]].mark++ // a change that was overlooked
	m.Bulk()
	if f := flags(); len(f) != 2 || f[1] != wire.FlagRepeat || f[2] != 0 {
		t.Errorf("the same, and another state: %v", f)
	}
	h.n.set(1, false)
	if f := flags(); len(f) != 1 || f[1] != 0 {
		t.Errorf("a live change: %v", f)
	}
	f := simWire(7, 1, 1)
	h.receive(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, wire.FlagRepeat, h.seq, &f))
	h.holds(7)
}

func TestOwners(t *testing.T) {
	m := New(Config{Name: "A", Session: 1}, nil, nil)
	if m.Owner("B") != 0 || m.AddOwner("B") != 1 || m.AddOwner("C") != 2 || m.AddOwner("B") != 1 || m.Owner("C") != 2 {
		t.Error("owners are mixed up")
	}
	if m.OwnerName(0) != "" || m.OwnerName(1) != "B" || m.OwnerName(3) != "" {
		t.Error("names are mixed up")
	}
	for i := 2; i < maxOwners; i++ {
		m.AddOwner(string(rune('C' + i)))
	}
	if m.AddOwner("one too many") != 0 {
		t.Error("more owners than there is room for")
	}
}

// TestConflict: two live nodes with one name are counted, by others and by themselves.
func TestConflict(t *testing.T) {
	w := &network{r: rand.New(rand.NewPCG(1, 1)), now: 1, cut: map[[2]int]bool{}}
	for _, name := range []string{"A", "A", "B"} {
		n := &node{w: w, name: name}
		w.nodes = append(w.nodes, n)
		n.restart(false)
	}
	w.run(5*time.Second, nil)
	for _, n := range w.nodes {
		if n.m.Stats.Conflicts == 0 {
			t.Errorf("%s counts no conflict", n.name)
		}
		if hellos := n.m.Stats.HelloSent; hellos > 110 {
			t.Errorf("%s has sent %d HELLOs", n.name, hellos)
		}
	}
	if len(w.wrong) > 0 {
		t.Error(w.wrong)
	}
}

// FuzzMachine: two peers that have met the node say anything at any time, and it
// neither panics nor breaks an invariant. Each step of the input is a number of octets
// that say what happens; see step.
func FuzzMachine(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 20 {
		b := make([]byte, 20+30*n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := newHand(t, Config{ResendQueue: 256, AckWindow: 16})
		h.meet()
		h.session, h.self = 815, &node{name: "Q", session: 815}
		h.hello(wire.Greet{})
		h.hello(wire.Greet{Session: h.n.session, Echo: h.peer().challenge})
		for len(b) > 0 {
			b = h.step(b)
			h.n.w.wrong = nil // a peer may well say something bad
			if err := check(h.n.m); err != nil {
				t.Fatal(err)
			}
		}
		h.sent()
		for range 30 { // nothing hangs
			h.at(time.Second)
			h.sent()
			h.n.work()
		}
		if err := check(h.n.m); err != nil {
			t.Fatal(err)
		}
	})
}

// step does what the first octets of b say and returns the rest.
func (h *hand) step(b []byte) []byte {
	take := func(n int) []byte {
		v := make([]byte, 8)
		copy(v, b[:min(n, len(b))])
		b = b[min(n, len(b)):]
		return v
	}
	u8 := func() byte { return take(1)[0] }
	m := h.n.m
	// number is one near something that means something, or any.
	number := func(near wire.Seq) wire.Seq {
		switch k := u8(); {
		case k < 200:
			return near + wire.Seq(k%16) - 4
		case k < 220:
			return near + wire.Seq(k)*8
		case k < 230:
			return near + 1<<31 - wire.Seq(k%4)
		}
		return wire.Seq(binary.BigEndian.Uint32(take(4)))
	}
	ranges := func(near wire.Seq) (list []wire.Range) {
		for range u8() % 34 {
			from := number(near)
			list = append(list, wire.Range{From: from, To: from + wire.Seq(u8())})
			near = from + wire.Seq(u8())
		}
		return list
	}
	mask := func() wire.Mask {
		if k := u8(); k < 200 {
			return wire.Mask{uint64(k), 0}
		}
		return wire.AllBuckets
	}
	session := []uint64{4711, 815, 4711, 815, 9, m.cfg.Session, 0, uint64(u8())}[u8()%8]
	near := wire.Seq(0)
	if p := m.find(session); p != nil {
		near = p.expected
	}
	var msg []byte
	switch k := u8() % 23; k {
	case 0:
		var greets []wire.Greet
		if p := m.find(session); p != nil {
			greets = []wire.Greet{{Session: m.cfg.Session, Echo: p.challenge, Heard: u8() % 4}}
		}
		msg = wire.AppendHello(nil, number(near), string('A'+rune(u8()%4)), wire.Standing{Role: wire.Role(u8() % 4), Edition: u8()}, uint32(u8()), greets)
	case 1, 2:
		to := m.cfg.Session + uint64(u8()/250)
		msg = wire.AppendStatus(nil, number(near), to, number(m.next-1), uint32(u8()%4), mask(), ranges(m.base))
	case 3:
		msg = wire.AppendVoid(nil, number(near), m.cfg.Session, u8() > 240, ranges(near-20))
	case 4, 5:
		msg = wire.AppendBulk(nil, wire.Kind(k), number(near), uint32(u8()%4), mask())
	case 6:
		msg = wire.AppendDigest(nil, number(near), 0, uint32(u8()%4), &[wire.Buckets]uint64{uint64(u8())})
	case 7, 8, 9, 10, 11:
		f := simWire(uint16(u8()), 0, 0)
		msg = wire.AppendFlow(nil, wire.Syncd, wire.Type(k%3), wire.Flags(u8()/250), number(near), &f)
		wire.SetHandle(msg, uint32(u8()%8))
	case 20, 21:
		msg = wire.AppendCTState(nil, number(near), uint32(1+u8()%8), number(near-8), flow.State{Word: flow.KnowsTimeout, Status: uint32(u8())})
	case 22:
		msg = wire.AppendCTEnd(nil, number(near), uint32(1+u8()%8), number(near-8))
	case 12:
		msg = append([]byte{0x10 | u8()%16, u8(), 0, 12}, take(8)...)
	case 13:
		h.at(time.Duration(binary.BigEndian.Uint16(take(2))) * time.Millisecond)
	case 14:
		h.n.turn(h.now, 1400, 20, func([]byte) {})
		h.n.work()
	case 15, 16:
		h.n.set(uint16(u8()), u8() > 180)
	case 17:
		h.n.lose(uint16(u8()))
	case 18:
		m.Bulk()
		m.RequestResync()
	case 19:
		switch k := u8(); {
		case k > 200:
			h.n.flush()
		case k < 50:
			m.SetRole(h.now, wire.Role(k%4))
		}
	}
	if msg != nil {
		rd := wire.Reader{Sync: true, Seed: session}
		rd.Reset(msg)
		var parsed wire.Message
		for rd.Next(&parsed) {
			v, d := m.Receive(h.now, session, &parsed)
			switch {
			case v != wire.Deliver:
			case d.Owner == 0:
				h.t.Fatal("a flow of nobody")
			default:
				h.n.apply(&simDatagram{from: h.self, session: session}, d, &parsed)
			}
		}
	}
	return b
}

// cacheOf is the least of a cache: flows that are told apart by their port and address,
// and the sums of one owner.
type cacheOf struct {
	flows []flow.Flow
	dead  []bool
	sums  [wire.Buckets]uint64
}

func newCacheOf(n int) *cacheOf {
	c := &cacheOf{flows: make([]flow.Flow, n+1), dead: make([]bool, n+1)}
	for i := range c.flows {
		c.flows[i] = simWire(uint16(i), 1, 1)
		c.flows[i].Orig.Src[3] = byte(i >> 16)
	}
	return c
}

func (c *cacheOf) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, _ bool, _ monotime.Time) []byte {
	t := wire.CTNew
	if c.dead[h] {
		t = wire.CTDel
	}
	return wire.AppendFlow(b, wire.Syncd, t, f, seq, &c.flows[h])
}
func (c *cacheOf) AppendCompact(b []byte, _ flow.Handle, _, _ wire.Seq, _ monotime.Time) ([]byte, bool) {
	return b, false
}
func (c *cacheOf) Begin(uint8)                       {}
func (c *cacheOf) Follows(uint8, *wire.Message) bool { return false }
func (c *cacheOf) Dead(h flow.Handle) bool           { return c.dead[h] }
func (c *cacheOf) Release(h flow.Handle)             { c.dead[h] = false }
func (c *cacheOf) Bucket(h flow.Handle) uint8        { return wire.Bucket(&c.flows[h].Orig) }
func (c *cacheOf) Doubt(uint8, wire.Mask)            {}
func (c *cacheOf) Sweep(uint8, wire.Mask)            {}
func (c *cacheOf) Doubtful(uint8) wire.Mask          { return wire.Mask{} }
func (c *cacheOf) Whole(uint8)                       {}
func (c *cacheOf) Sums(uint8) *[wire.Buckets]uint64  { return &c.sums }
func (c *cacheOf) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
	for h := from; int(h) < len(c.flows); h++ {
		if max--; max < 0 {
			return h
		}
		if h != 0 && !fn(h) {
			return (h + 1) % flow.Handle(len(c.flows))
		}
	}
	return 0
}

// bench is a machine with a cache and one peer that has met it and wants nothing.
type bench struct {
	m   *Machine
	c   *cacheOf
	now monotime.Time
	out []byte
	msg wire.Message
	rd  wire.Reader
}

const benchPeer = 4711

func newBench(flows int) *bench {
	b := &bench{c: newCacheOf(flows), now: 1, out: make([]byte, 0, 4096)}
	b.m = New(Config{Name: "N", Session: 1, Random: func([]byte) {}}, b.c, b.c)
	b.receive(wire.AppendHello(nil, 0, "P", wire.Standing{}, 0, []wire.Greet{{Session: 1}}))
	q := wire.AppendBulk(nil, wire.BulkBegin, 0, 1, wire.AllBuckets)
	b.receive(wire.AppendBulk(q, wire.BulkEnd, 1, 1, wire.AllBuckets))
	b.status()
	return b
}

func (b *bench) receive(d []byte) {
	b.rd = wire.Reader{Sync: true, Seed: benchPeer}
	b.rd.Reset(d)
	for b.rd.Next(&b.msg) {
		b.m.Receive(b.now, benchPeer, &b.msg)
	}
	b.m.Applied(b.now)
}

func (b *bench) status() {
	b.out = wire.AppendStatus(b.out[:0], 0, 1, b.m.next-1, b.m.bulk.id, wire.Mask{}, nil)
	b.receive(b.out)
}

func (b *bench) send() {
	b.m.Advance(b.now)
	for b.m.Pending(b.now) {
		b.m.AppendDatagram(b.now, b.out[:0], 1400)
	}
}

func TestAllocs(t *testing.T) {
	b := newBench(1000)
	h := flow.Handle(1)
	turn := func() {
		for range 100 {
			h = h%1000 + 1
			b.c.dead[h] = h%7 == 0
			b.m.Enqueue(h, false)
		}
		b.send()
		b.status()
		b.now = b.now.Add(10 * time.Millisecond)
	}
	for range 20 { // the ring and the slots grow
		turn()
	}
	if n := testing.AllocsPerRun(200, turn); n != 0 {
		t.Errorf("sending: %v allocations", n)
	}
	if b.m.dirty+b.m.flying != 0 {
		t.Errorf("%d flows are due, %d in flight", b.m.dirty, b.m.flying)
	}

	seq, out := b.m.find(benchPeer).expected, make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(200, func() {
		out = out[:0]
		for i := range 10 {
			if i%5 == 4 { // one of five is late
				out = wire.AppendFlow(out, wire.Syncd, wire.CTNew, 0, seq+1, &b.c.flows[i])
				out = wire.AppendFlow(out, wire.Syncd, wire.CTNew, 0, seq, &b.c.flows[i])
				seq += 2
				continue
			}
			out = wire.AppendFlow(out, wire.Syncd, wire.CTUpd, 0, seq, &b.c.flows[i])
			seq++
		}
		b.receive(out)
		b.send()
		b.now = b.now.Add(time.Millisecond)
	}); n != 0 {
		t.Errorf("receiving: %v allocations", n)
	}
	if p := b.m.find(benchPeer); len(p.missing) != 0 || p.expected != seq {
		t.Errorf("%d missing, %d expected, want %d", len(p.missing), p.expected, seq)
	}
}

// BenchmarkSend is a change of one of 100,000 flows: due, sent, confirmed.
func BenchmarkSend(b *testing.B) {
	x := newBench(100000)
	h := flow.Handle(1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		h = (h*7+1)%100000 + 1
		x.m.Enqueue(h, false)
		if i%256 == 255 {
			x.send()
			x.status()
			x.now = x.now.Add(time.Millisecond)
		}
	}
}

// BenchmarkReceive is a data message of a peer, read and judged.
func BenchmarkReceive(b *testing.B) {
	x := newBench(10)
	seq := x.m.find(benchPeer).expected
	out := make([]byte, 0, 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		out = wire.AppendFlow(out, wire.Syncd, wire.CTUpd, 0, seq, &x.c.flows[1])
		seq++
		if i%14 == 13 {
			x.receive(out)
			x.send()
			x.now = x.now.Add(time.Millisecond)
			out = out[:0]
		}
	}
}

// BenchmarkDigest is a digest over 100,000 flows, made and compared.
func BenchmarkDigest(b *testing.B) {
	x := newBench(100000)
	for h := range flow.Handle(100000) {
		x.m.Enqueue(h+1, false)
	}
	x.send()
	seq := x.m.find(benchPeer).expected
	b.ReportAllocs()
	for b.Loop() {
		x.now = x.now.Add(digestInterval)
		x.send()
		x.status()
		x.receive(wire.AppendDigest(x.out[:0], seq, 0, 0, &x.c.sums))
		seq++
	}
	if x.m.count != 100000 {
		b.Fatal(x.m.count)
	}
}

// Nodes with nothing to do speak at the same moment, whenever they were started: the
// answer to a HELLO is one, and digests go along. So the machines wake seldom.
func TestIdleNodesSpeakTogether(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, 5))
			w := &network{r: r, now: 1, cut: map[[2]int]bool{}}
			for i := range nodes {
				n := &node{w: w, name: string(rune('A' + i))}
				w.nodes = append(w.nodes, n)
				n.restart(false)
				n.set(1, false)
				w.run(time.Duration(r.IntN(3000))*time.Millisecond, nil)
			}
			w.run(5*time.Second, nil)
			const seconds = 20
			sends := make([]int, nodes)
			w.delay = 0
			var at monotime.Time
			bursts := 0 // moments at which somebody spoke
			w.spoke = func(i int) {
				sends[i]++
				if w.now.Sub(at) > 10*time.Millisecond {
					bursts++
				}
				at = w.now
			}
			w.run(seconds*time.Second, nil)
			if len(w.wrong) > 0 {
				t.Fatal(w.wrong)
			}
			for i, n := range sends {
				if n > 2*seconds+2 { // HELLO with all that is due, and what covers the others' digests
					t.Errorf("seed %d: node %d of %d spoke %d times in %d s", seed, i, nodes, n, seconds)
				}
			}
			if bursts > 2*seconds+2 {
				t.Errorf("seed %d: %d nodes spoke at %d moments in %d s", seed, nodes, bursts, seconds)
			}
		}
	}
}

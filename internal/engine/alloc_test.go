package engine

import (
	"net/netip"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// sending is an engine driven by hand, without its loop, whose peer hears it and
// acknowledges everything.
type sending struct {
	*Engine
	batch flow.Batch
	mark  uint32
	seq   wire.Seq // of the peer's next message
	acked wire.Seq // ours that the peer has
	msg   wire.Message
}

func newSending(t testing.TB) *sending {
	s := &sending{Engine: quietEngine(t), seq: 1, acked: 999}
	s.send() // says HELLO
	s.control(wire.FlagAlive|wire.FlagHelloBack, 0, 0)
	s.batch.N = flow.BatchSize
	for i := range s.batch.Events {
		f := newFlow(i)
		establish(&f)
		s.batch.Events[i] = event(flow.EventNew, f, uint32(i+1))
	}
	s.round()
	for i := range s.batch.Events {
		s.batch.Events[i].Kind = flow.EventUpdate
	}
	return s
}

func (s *sending) control(f wire.Flags, from, to wire.Seq) {
	s.msg = wire.Message{Type: wire.Ctl, Flags: f, Seq: s.seq, From: from, To: to}
	s.seq++
	s.mode.Receive(s.now, 0, &s.msg)
}

// round takes a batch of events, sends what follows from it, and acknowledges it.
func (s *sending) round() {
	s.mark++
	for i := range s.batch.Events {
		f := &s.batch.Events[i].Flow
		f.Mark = s.mark
		f.Has |= flow.HasMark
	}
	s.now = s.now.Add(time.Millisecond)
	s.takeEvents(&s.batch)
	s.mode.Advance(s.now)
	s.send()
	s.control(wire.FlagAck, s.acked+1, s.acked+flow.BatchSize*2) // more than there can be
	s.acked += flow.BatchSize
}

// receiving is an engine driven by hand that takes datagrams of a peer.
type receiving struct {
	*Engine
	in    inbox
	rd    wire.Reader
	flows [20]flow.Flow
	b     []byte
	seq   wire.Seq
}

func newReceiving(t testing.TB) *receiving {
	r := &receiving{Engine: quietEngine(t), seq: 1, b: make([]byte, 0, 1<<14)}
	for i := range r.flows {
		r.flows[i] = event(flow.EventNew, newFlow(i), 0).Flow
	}
	for i := range r.in.from {
		r.in.from[i] = addrB
	}
	r.round()
	return r
}

// round takes one datagram with a message about each flow.
func (r *receiving) round() {
	r.now = r.now.Add(time.Millisecond)
	r.b = r.b[:0]
	for i := range r.flows {
		r.flows[i].Mark++
		r.flows[i].Has |= flow.HasMark
		r.b = wire.AppendFlow(r.b, wire.Conntrackd, wire.CTUpd, 0, r.seq, &r.flows[i])
		r.seq++
	}
	r.rd.Reset(r.b)
	for r.in.n = 0; r.rd.Next(&r.in.msgs[r.in.n]); r.in.n++ {
	}
	r.takeMessages(&r.in)
	r.mode.Advance(r.now)
	r.send()
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := newSending(t)
	before := s.Stats
	if n := testing.AllocsPerRun(1000, s.round); n != 0 {
		t.Errorf("event to datagram: %v allocations a batch", n)
	}
	if d := s.Stats.Datagrams - before.Datagrams; d < 1000 {
		t.Errorf("%d datagrams in 1000 rounds: nothing was measured", d)
	}
	r := newReceiving(t)
	before = r.Stats
	if n := testing.AllocsPerRun(1000, r.round); n != 0 {
		t.Errorf("datagram to external cache: %v allocations a datagram", n)
	}
	if d := r.Stats.ExternalUpd - before.ExternalUpd; d < 1000*uint64(len(r.flows)) {
		t.Errorf("%d updates in 1000 rounds: nothing was measured", d)
	}
}

// The ends of flows cost nothing more where addresses of this host are known, whatever
// the flows are translated to.
func TestEndsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	e := quietEngine(t)
	e.SetHost([]netip.Addr{mobile})
	var begin, end flow.Batch
	begin.N, end.N = 32, 32
	for i := range begin.N {
		f := newFlow(i)
		f.Timeout = 100
		f.Has |= flow.HasTimeout | flow.HasStatus
		if i%8 == 5 {
			f.Reply.Dst[3] = 77
		}
		begin.Events[i], end.Events[i] = event(flow.EventNew, f, uint32(i+1)), event(flow.EventDestroy, f, uint32(i+1))
	}
	was := begin
	if n := testing.AllocsPerRun(1000, func() {
		now := end
		e.takeEvents(&begin)
		e.takeEvents(&now)
		begin = was
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
	if e.behind.limbo != nil || e.internal.Len() != 0 {
		t.Errorf("%d wait, %d are left", len(e.behind.limbo), e.internal.Len())
	}
	// One that has to wait takes a place in the limbo, and gives it back.
	f := newFlow(5)
	f.Timeout = 100
	f.Has |= flow.HasTimeout | flow.HasStatus
	hold := func() {
		b := &begin
		b.N, b.Events[0] = 2, event(flow.EventNew, f, 7)
		b.Events[1] = event(flow.EventDestroy, f, 7)
		e.takeEvents(b)
		e.now = e.now.Add(limboTime)
		e.behindWork()
	}
	hold()
	if n := testing.AllocsPerRun(1000, hold); n != 0 {
		t.Errorf("%v allocations for an end that waits", n)
	}
}

// BenchmarkEvent is the way of an event from its batch to a datagram that is
// acknowledged.
func BenchmarkEvent(b *testing.B) {
	s := newSending(b)
	b.ReportAllocs()
	for b.Loop() {
		s.round()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flow.BatchSize), "ns/event")
}

// BenchmarkMessage is the way of a message from its datagram to the external cache.
// It includes writing the datagram.
func BenchmarkMessage(b *testing.B) {
	r := newReceiving(b)
	b.ReportAllocs()
	for b.Loop() {
		r.round()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(r.flows)), "ns/message")
}

// Parking what peers tell allocates nothing, nor do events of a node that parks.
func TestParkingDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r := &receiving{Engine: quietEngine(t, withParker), seq: 1, b: make([]byte, 0, 1<<14)}
	r.kernel.first = true
	for i := range r.flows {
		r.flows[i] = event(flow.EventNew, newFlow(i), 0).Flow
	}
	for i := range r.in.from {
		r.in.from[i] = addrB
	}
	asked := 0
	round := func() {
		r.round()
		r.now = r.now.Add(2 * parkGather)
		for more := true; more; {
			more = r.parkSome()
		}
		r.now = r.now.Add(2 * parkGather)
		for more := true; more || len(r.park.work) > 0; {
			more = r.parkSome()
			for len(r.park.work) > 0 {
				b := <-r.park.work
				asked += b.N
				for i := range b.N {
					b.Items[i].Result = flow.ParkDone
				}
				r.parkAnswered(b)
			}
		}
	}
	round()
	if n := testing.AllocsPerRun(500, round); n != 0 {
		t.Errorf("%v allocations a datagram", n)
	}
	if asked < 500*len(r.flows) {
		t.Errorf("%d requests in 500 rounds: nothing was measured", asked)
	}

	var begin, end flow.Batch
	begin.N, end.N = 32, 32
	for i := range begin.N {
		f := newFlow(100 + i)
		begin.Events[i], end.Events[i] = event(flow.EventNew, f, uint32(i+1)), event(flow.EventDestroy, f, uint32(i+1))
	}
	was := begin
	if n := testing.AllocsPerRun(500, func() {
		now := end
		r.takeEvents(&begin)
		r.takeEvents(&now)
		begin = was
	}); n != 0 {
		t.Errorf("%v allocations a batch of events", n)
	}
}

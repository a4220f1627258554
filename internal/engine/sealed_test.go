package engine

import (
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/seal"
	"syncd/internal/sync/stream"
	"syncd/internal/wire"
)

const (
	ourSession  = 0xa1
	peerSession = 0xb2
	firstNumber = 1000
)

// dialogue is an engine in the syncd dialect, driven by hand, without its loop, and the
// one peer that it has met, for which the test speaks. Datagrams are really sealed.
type dialogue struct {
	*Engine
	stream *stream.Machine
	peer   *seal.Box
	seq    wire.Seq // of the peer's next message
	out    [][]byte // datagrams of the last Send; valid until the next
	plain  []byte
	sealed []byte
	opened []byte
	in     inbox
	rd     wire.Reader
	status wire.Message
}

// Send, MaxPayload and Heard make a dialogue the Sender of its engine.
func (d *dialogue) Send(datagrams [][]byte) { d.out = datagrams }
func (d *dialogue) MaxPayload() int         { return 1400 }
func (d *dialogue) Heard(int)               {}

func newDialogue(t testing.TB, options ...func(*Config)) *dialogue {
	keys := []seal.Key{seal.NewKey()}
	ours, err := seal.New(ourSession, keys)
	if err != nil {
		t.Fatal(err)
	}
	d := &dialogue{seq: 1, status: wire.Message{Sync: new(wire.Sync)}, plain: make([]byte, 0, 1<<14), sealed: make([]byte, 0, 1<<14), opened: make([]byte, 0, 1<<14)}
	if d.peer, err = seal.New(peerSession, keys); err != nil {
		t.Fatal(err)
	}
	s := &sealed{box: ours}
	d.Engine = quietEngine(t, append(options, func(cfg *Config) {
		cfg.Mirror, cfg.Sealer = true, s
		cfg.NewMode = func(e *Engine) Mode {
			d.stream = stream.New(stream.Config{
				Name: "A", Session: ourSession, FirstSeq: firstNumber,
				Random: func(b []byte) { b[0] = 1 }, Meet: s.meet, Drop: s.drop,
			}, e, e.Replica())
			return d.stream
		}
	})...)
	d.cfg.Sender = d
	d.rd.Sync = true
	for i := range d.in.from {
		d.in.from[i] = addrB
	}
	d.say(wire.AppendHello(nil, d.seq, "B", wire.Standing{}, 0, nil))
	d.turn()
	d.say(wire.AppendHello(nil, d.seq, "B", wire.Standing{}, wire.FeatureCompact, []wire.Greet{{Session: ourSession, Echo: d.challenge(t)}}))
	d.cover()
	d.turn()
	if p := d.stream.Peers(d.now); len(p) != 1 || !p[0].Met || !p[0].Counted {
		t.Fatalf("not met: %+v", p)
	}
	return d
}

// challenge returns what the engine wants echoed.
func (d *dialogue) challenge(t testing.TB) [16]byte {
	rd := wire.Reader{Sync: true}
	for _, b := range d.out {
		plain, _, fault := d.peer.Open(nil, b, d.now)
		if fault != seal.FaultNone {
			t.Fatal(fault)
		}
		var m wire.Message
		for rd.Reset(plain); rd.Next(&m); {
			for _, g := range m.Sync.Greets[:m.Sync.N] {
				if m.Sync.Kind == wire.Hello && g.Session == peerSession {
					return g.Challenge
				}
			}
		}
	}
	t.Fatal("no HELLO")
	return [16]byte{}
}

// turn is what the loop does without input, a millisecond later.
func (d *dialogue) turn() {
	d.now = d.now.Add(time.Millisecond)
	d.mode.Advance(d.now)
	d.send()
}

// say lets the engine receive a datagram of the peer, from its sealing to what it
// changes.
func (d *dialogue) say(plain []byte) {
	d.sealed = d.peer.Seal(d.sealed[:0], plain)
	var ok bool
	if d.opened, d.rd.Seed, ok = d.cfg.Sealer.Open(d.opened[:0], d.sealed, d.now); !ok {
		panic("a datagram that does not open")
	}
	d.rd.Reset(d.opened)
	for d.in.n = 0; d.rd.Next(&d.in.msgs[d.in.n]); d.in.n++ {
		d.in.session[d.in.n] = d.rd.Seed
	}
	d.takeMessages(&d.in)
}

// cover says that the peer has everything.
func (d *dialogue) cover() {
	s := &d.stream.Stats
	d.status.Type, d.status.Seq = wire.SyncCtl, d.seq
	d.status.Sync.Kind, d.status.Sync.To = wire.Status, ourSession
	d.status.Sync.Last = firstNumber - 1 + wire.Seq(s.DataSent+s.BulkSent+s.DigestSent)
	d.mode.Receive(d.now, peerSession, &d.status)
}

// sealedSending sends batches of events.
type sealedSending struct {
	*dialogue
	batch flow.Batch
	mark  uint32
}

func newSealedSending(t testing.TB) *sealedSending {
	s := &sealedSending{dialogue: newDialogue(t)}
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

func (s *sealedSending) round() {
	s.mark++
	for i := range s.batch.Events {
		f := &s.batch.Events[i].Flow
		f.Mark = s.mark
		f.Has |= flow.HasMark
	}
	s.pass()
}

// pass is a round in which nothing but the state of the flows changes.
func (s *sealedSending) pass() {
	for i := range s.batch.Events {
		s.batch.Events[i].Flow.Status ^= flow.StatusOffload
	}
	s.takeEvents(&s.batch)
	s.turn()
	s.cover()
}

// sealedReceiving receives datagrams.
type sealedReceiving struct {
	*dialogue
	flows [20]flow.Flow
	bases [20]wire.Seq // of the messages that told all of them
}

func newSealedReceiving(t testing.TB) *sealedReceiving {
	r := &sealedReceiving{dialogue: newDialogue(t)}
	for i := range r.flows {
		r.flows[i] = event(flow.EventNew, newFlow(i), 0).Flow
	}
	r.round()
	return r
}

func (r *sealedReceiving) round() {
	r.plain = r.plain[:0]
	for i := range r.flows {
		r.flows[i].Mark++
		r.flows[i].Has |= flow.HasMark
		start := len(r.plain)
		r.plain = wire.AppendFlow(r.plain, wire.Syncd, wire.CTNew, 0, r.seq, &r.flows[i])
		wire.SetHandle(r.plain[start:], uint32(i+1))
		r.bases[i] = r.seq
		r.seq++
	}
	r.say(r.plain)
	r.turn()
}

// pass is a round of compact messages.
func (r *sealedReceiving) pass() {
	r.plain = r.plain[:0]
	for i := range r.flows {
		f := &r.flows[i]
		f.Status ^= flow.StatusOffload
		r.plain = wire.AppendCTState(r.plain, r.seq, uint32(i+1), r.bases[i], f.State())
		r.seq++
	}
	r.say(r.plain)
	r.turn()
}

func TestSealedPathsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := newSealedSending(t)
	sent := s.stream.Stats.DataSent
	if n := testing.AllocsPerRun(1000, s.round); n != 0 {
		t.Errorf("event to sealed datagram: %v allocations a batch", n)
	}
	if n := s.stream.Stats.DataSent - sent; n < 1000*flow.BatchSize {
		t.Errorf("%d flows sent in 1000 rounds: nothing was measured", n)
	}
	r := newSealedReceiving(t)
	applied := r.Engine.Stats.ExternalNew
	if n := testing.AllocsPerRun(1000, r.round); n != 0 {
		t.Errorf("sealed datagram to external cache: %v allocations a datagram", n)
	}
	if n := r.Engine.Stats.ExternalNew - applied; n < 1000*uint64(len(r.flows)) {
		t.Errorf("%d flows applied in 1000 rounds: nothing was measured", n)
	}

	sent = s.stream.Stats.CompactSent
	if n := testing.AllocsPerRun(1000, s.pass); n != 0 {
		t.Errorf("event to compact message: %v allocations a batch", n)
	}
	if n := s.stream.Stats.CompactSent - sent; n < 1000*flow.BatchSize {
		t.Errorf("%d compact messages sent in 1000 rounds: nothing was measured", n)
	}
	applied = r.Engine.Stats.ExternalUpd
	if n := testing.AllocsPerRun(1000, r.pass); n != 0 {
		t.Errorf("compact message to external cache: %v allocations a datagram", n)
	}
	if n := r.Engine.Stats.ExternalUpd - applied; n < 1000*uint64(len(r.flows)) {
		t.Errorf("%d states applied in 1000 rounds: nothing was measured", n)
	}
}

// BenchmarkSealedEvent is the way of an event from its batch to a sealed datagram
// that is acknowledged.
func BenchmarkSealedEvent(b *testing.B) {
	s := newSealedSending(b)
	b.ReportAllocs()
	for b.Loop() {
		s.round()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flow.BatchSize), "ns/event")
}

// BenchmarkSealedState is BenchmarkSealedEvent of events that change nothing but the state.
func BenchmarkSealedState(b *testing.B) {
	s := newSealedSending(b)
	b.ReportAllocs()
	for b.Loop() {
		s.pass()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flow.BatchSize), "ns/event")
}

// BenchmarkSealedCompact is BenchmarkSealedMessage of compact messages.
func BenchmarkSealedCompact(b *testing.B) {
	r := newSealedReceiving(b)
	b.ReportAllocs()
	for b.Loop() {
		r.pass()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(r.flows)), "ns/message")
}

// BenchmarkSealedMessage is the way of a message from its sealed datagram to the
// external cache. It includes writing and sealing the datagram.
func BenchmarkSealedMessage(b *testing.B) {
	r := newSealedReceiving(b)
	b.ReportAllocs()
	for b.Loop() {
		r.round()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(r.flows)), "ns/message")
}

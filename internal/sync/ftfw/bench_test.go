package ftfw

import (
	"testing"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// bare is a store of flows without content: the machine alone is measured.
type bare struct{ one flow.Flow }

func (s *bare) AppendFlow(b []byte, _ flow.Handle, f wire.Flags, seq wire.Seq, _ bool, _ monotime.Time) []byte {
	return wire.AppendFlow(b, wire.Conntrackd, wire.CTUpd, f, seq, &s.one)
}
func (s *bare) Dead(flow.Handle) bool { return false }
func (s *bare) Release(flow.Handle)   {}
func (s *bare) Walk(flow.Handle, int, func(flow.Handle) bool) flow.Handle {
	return 0
}

// loaded returns a machine whose HELLO is finished, and the peer's messages.
func loaded(now monotime.Time) (*Machine, *bare) {
	s := &bare{one: simWire(1, 1)}
	m := New(Config{}, s)
	m.AppendDatagram(now, nil, 1400)
	m.Receive(now, &wire.Message{Type: wire.Ctl, Flags: wire.FlagAlive | wire.FlagHelloBack, Seq: 1})
	for m.Pending(now) {
		m.AppendDatagram(now, nil, 1400)
	}
	return m, s
}

// round changes 64 flows, sends them and has them acknowledged.
func round(m *Machine, now monotime.Time, first flow.Handle, seq wire.Seq, buf []byte) {
	for h := range flow.Handle(64) {
		m.Enqueue(first+h, false)
	}
	from, _ := m.LastSeq()
	for m.Pending(now) {
		m.AppendDatagram(now, buf[:0], 1400)
	}
	to, _ := m.LastSeq()
	ack := wire.Message{Type: wire.Ctl, Flags: wire.FlagAck, Seq: seq, From: from + 1, To: to}
	m.Receive(now, &ack)
}

// TestAllocations: in the steady state nothing is allocated to enqueue, send,
// receive and acknowledge, nor to repair a loss.
func TestAllocations(t *testing.T) {
	const now = monotime.Time(1)
	m, _ := loaded(now)
	buf := make([]byte, 0, 1400+wire.MaxFlowLen)
	seq := wire.Seq(2)
	data := wire.Message{Type: wire.CTUpd}
	step := func() {
		round(m, now, 1, seq, buf)
		seq++
		for range 64 {
			data.Seq = seq
			m.Receive(now, &data)
			seq++
		}
		seq += 3 // a gap
		for h := range flow.Handle(64) {
			m.Enqueue(1+h, false)
		}
		for m.Pending(now) {
			m.AppendDatagram(now, buf[:0], 1400)
		}
		to, _ := m.LastSeq()
		nack := wire.Message{Type: wire.Ctl, Flags: wire.FlagNack, Seq: seq, From: to - 63, To: to}
		m.Receive(now, &nack)
		seq++
		m.Advance(now)
	}
	for range 100 {
		step()
	}
	if n := testing.AllocsPerRun(200, step); n != 0 {
		t.Errorf("%v allocations in a round", n)
	}
	if m.Stats.Resent == 0 || m.Stats.Gaps == 0 || m.Stats.DataSent == 0 {
		t.Errorf("the rounds did not do what they are for: %+v", m.Stats)
	}
}

// BenchmarkSend is one flow: enqueued, sent, acknowledged. The encoding of the
// message is part of it.
func BenchmarkSend(b *testing.B) {
	const now = monotime.Time(1)
	m, _ := loaded(now)
	buf := make([]byte, 0, 1400+wire.MaxFlowLen)
	b.ReportAllocs()
	seq := wire.Seq(2)
	for i := 0; i < b.N; i += 64 {
		round(m, now, flow.Handle(1+i%(1<<17)), seq, buf)
		seq++
	}
}

// BenchmarkReceive is one data message in its place, and its share of the ACKs.
func BenchmarkReceive(b *testing.B) {
	const now = monotime.Time(1)
	m, _ := loaded(now)
	buf := make([]byte, 0, 1400+wire.MaxFlowLen)
	b.ReportAllocs()
	data := wire.Message{Type: wire.CTUpd}
	for i := range b.N {
		data.Seq = wire.Seq(2 + i)
		if m.Receive(now, &data) != wire.Deliver {
			b.Fatal("not delivered")
		}
		if i%64 == 63 {
			for m.Pending(now) {
				m.AppendDatagram(now, buf[:0], 1400)
			}
		}
	}
}

package notrack

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

const ms = time.Millisecond

func ctl(f wire.Flags, seq wire.Seq) *wire.Message {
	return &wire.Message{Type: wire.Ctl, Flags: f, Seq: seq}
}

// TestConntrackdBytes: ALIVE and RESYNC are those that a conntrackd 1.4.7 was seen to
// send.
func TestConntrackdBytes(t *testing.T) {
	m := NewConntrackd(ConntrackdConfig{FirstSeq: 0x6b00b653, Resync: true}, full(0))
	for _, want := range []string{"1a0200106b00b6530000000000000000", "1a1000086b00b654"} {
		b, _ := hex.DecodeString(want)
		if got := m.AppendDatagram(1, nil, 1400); !bytes.Equal(got, b) {
			t.Errorf("sent %x, want %x", got, b)
		}
		m.Advance(monotime.Time(time.Second) + 1)
	}
}

// ALIVE follows one second after the last message, whatever that was.
func TestConntrackdAlive(t *testing.T) {
	s := full(3)
	m := NewConntrackd(ConntrackdConfig{}, s)
	now := monotime.Time(1)
	send(t, m, now)
	now = now.Add(900 * ms)
	m.Advance(now)
	m.Enqueue(1, false)
	if got := send(t, m, now); len(got) != 1 || got[0].Type != wire.CTUpd {
		t.Fatalf("%+v", got)
	}
	for _, d := range []time.Duration{999 * ms, ms, 999 * ms, ms} {
		now = now.Add(d)
		m.Advance(now)
		if got := len(send(t, m, now)); got != int(ms/d) {
			t.Errorf("%d messages", got)
		}
	}
	if m.Stats.AliveSent != 3 {
		t.Errorf("%+v", m.Stats)
	}
}

// Every valid message is accepted whatever its number, and the reference of the
// counters follows it, even backwards.
func TestConntrackdNumbers(t *testing.T) {
	m := NewConntrackd(ConntrackdConfig{}, full(0))
	for _, n := range []wire.Seq{100, 105, 102, 106} {
		if v := m.Receive(1, &wire.Message{Type: wire.CTUpd, Seq: n}); v != wire.Deliver {
			t.Errorf("number %d: verdict %d", n, v)
		}
	}
	// conntrackd counts two more than were lost each time.
	if s := m.Stats; s.Lost != 4+3 || s.Before != 1 || s.DataReceived != 4 {
		t.Errorf("%+v", s)
	}
}

// ACK and NACK are malformed here and move nothing; the bits of HELLO are ignored.
func TestConntrackdHeaders(t *testing.T) {
	for _, c := range []struct {
		msg  *wire.Message
		want wire.Verdict
	}{
		{ctl(wire.FlagAck, 5), wire.Bad},
		{ctl(wire.FlagNack, 5), wire.Bad},
		{ctl(wire.FlagAck|wire.FlagResync, 5), wire.Bad},
		{ctl(0, 5), wire.Bad},
		{ctl(wire.FlagHello, 5), wire.Bad},
		{ctl(0x80, 5), wire.Bad},
		{ctl(wire.FlagAlive, 5), wire.Control},
		{ctl(wire.FlagAlive|wire.FlagHello, 5), wire.Control},
		{ctl(wire.FlagResync|wire.FlagHelloBack, 5), wire.Control},
		{&wire.Message{Type: wire.CTNew, Flags: wire.FlagHello | wire.FlagHelloBack, Seq: 5}, wire.Deliver},
		{&wire.Message{Type: wire.ExpDel, Seq: 5}, wire.Deliver},
		{&wire.Message{Type: wire.CTNew, Flags: wire.FlagAlive, Seq: 5}, wire.Bad},
		{&wire.Message{Type: wire.CTNew, Flags: 0x80, Seq: 5}, wire.Bad},
		{&wire.Message{Type: 6, Seq: 5, Fault: wire.FaultHeader}, wire.Bad},
		{&wire.Message{Type: wire.SyncCtl, Flags: 1, Seq: 5}, wire.Bad},
	} {
		m := NewConntrackd(ConntrackdConfig{}, full(0))
		if v := m.Receive(1, c.msg); v != c.want {
			t.Errorf("%v %v: verdict %d, want %d", c.msg.Type, c.msg.Flags, v, c.want)
		}
		if moved := m.known; moved != (c.want != wire.Bad) {
			t.Errorf("%v %v: known %v", c.msg.Type, c.msg.Flags, moved)
		}
	}
	// A message with a bad payload has moved the numbers already.
	m := NewConntrackd(ConntrackdConfig{}, full(0))
	if v := m.Receive(1, &wire.Message{Type: wire.CTNew, Seq: 5, Fault: wire.FaultPayload}); v != wire.Bad || m.last != 5 {
		t.Errorf("verdict %d, last %d", v, m.last)
	}
}

// A dead flow is released as soon as it is sent.
func TestConntrackdRelease(t *testing.T) {
	s := full(3)
	m := NewConntrackd(ConntrackdConfig{}, s)
	s.flows[2] = 2
	m.Enqueue(2, false)
	got := send(t, m, 1)
	if len(got) != 1 || got[0].Type != wire.CTDel || len(s.released) != 1 || s.released[0] != 2 {
		t.Errorf("sent %d, released %v", len(got), s.released)
	}
}

// A RESYNC is answered by everything, not faster than a socket buffer can take it. One
// that comes meanwhile is answered too.
func TestConntrackdBulk(t *testing.T) {
	const flows = 3000
	s := full(flows)
	m := NewConntrackd(ConntrackdConfig{}, s)
	now := monotime.Time(1)
	m.Receive(now, ctl(wire.FlagAlive, 1))
	seen := map[uint32]int{}
	take := func(d time.Duration) {
		for end := now.Add(d); now < end; now = now.Add(ms) {
			m.Advance(now)
			if k := m.Next(now); !m.Pending(now) && k <= now {
				t.Fatal("waits for a time that has passed")
			}
			n := 0
			for _, msg := range send(t, m, now) {
				if msg.Type == wire.CTUpd {
					n++
					seen[msg.Flow.Mark]++
				}
			}
			if n > 500 {
				t.Fatalf("%d messages at once", n)
			}
		}
	}
	take(time.Second) // the first that is heard gets everything
	m.Receive(now, ctl(wire.FlagResync, 2))
	take(20 * ms)
	m.Receive(now, ctl(wire.FlagResync, 3))
	take(time.Second)
	for h := range uint32(flows) {
		if seen[h+1] != 3 {
			t.Fatalf("flow %d was sent %d times, want 3", h+1, seen[h+1])
		}
	}
	if m.Stats.BulksSent != 3 || m.Stats.BulkFlows != 3*flows {
		t.Errorf("%+v", m.Stats)
	}
}

// count returns how many of the messages are RESYNC.
func count(ms []wire.Message) (n int) {
	for _, m := range ms {
		if m.Type == wire.Ctl && m.Flags == wire.FlagResync {
			n++
		}
	}
	return n
}

// steps lets d pass and returns how many RESYNCs left.
func steps(t *testing.T, m *Conntrackd, now *monotime.Time, d time.Duration, each func()) (n int) {
	for end := now.Add(d); *now < end; *now = now.Add(100 * ms) {
		if each != nil {
			each()
		}
		m.Advance(*now)
		n += count(send(t, m, *now))
	}
	return n
}

// The RESYNC of the start is repeated until it may have been answered.
func TestConntrackdAsks(t *testing.T) {
	now := monotime.Time(1)
	m := NewConntrackd(ConntrackdConfig{Resync: true}, full(0))
	if n := steps(t, m, &now, 30*time.Second, nil); n != 10 {
		t.Errorf("%d requests in 30 s to nobody, want 10", n)
	}
	m.Receive(now, ctl(wire.FlagAlive, 1))
	if n := steps(t, m, &now, 100*ms, nil); n != 1 {
		t.Errorf("%d requests when the peer is heard first", n)
	}
	m.Receive(now, &wire.Message{Type: wire.CTNew, Seq: 2})
	if n := steps(t, m, &now, 20*time.Second, nil); n != 0 {
		t.Errorf("%d requests after the answer", n)
	}
	// A peer that lives and has nothing to tell is not asked for ever.
	m = NewConntrackd(ConntrackdConfig{Resync: true}, full(0))
	seq := wire.Seq(1)
	n := steps(t, m, &now, 5*time.Minute, func() {
		m.Receive(now, ctl(wire.FlagAlive, seq))
		seq++
	})
	if n != resyncTries {
		t.Errorf("%d requests to a peer with nothing", n)
	}
}

// After a hole the peer is asked, however many there are once in BulkInterval.
func TestConntrackdHeals(t *testing.T) {
	for _, c := range []struct {
		every time.Duration
		want  int
	}{{0, 0}, {20 * time.Second, 5}} {
		now, seq := monotime.Time(1), wire.Seq(1)
		m := NewConntrackd(ConntrackdConfig{BulkInterval: c.every}, full(0))
		n := steps(t, m, &now, 100*time.Second, func() {
			seq += 2
			m.Receive(now, &wire.Message{Type: wire.CTUpd, Seq: seq})
		})
		if n != c.want {
			t.Errorf("%d requests in 100 s of loss, want %d", n, c.want)
		}
		if n := steps(t, m, &now, 9*time.Second, func() { seq++; m.Receive(now, &wire.Message{Type: wire.CTUpd, Seq: seq}) }); n > 1 {
			t.Errorf("%d requests after it", n)
		}
	}
}

// A peer that was silent is given everything and asked for everything.
func TestConntrackdSilence(t *testing.T) {
	now := monotime.Time(1)
	m := NewConntrackd(ConntrackdConfig{}, full(5))
	m.Receive(now, ctl(wire.FlagAlive, 1))
	steps(t, m, &now, 20*time.Second, nil)
	if !m.Peer().Silent || m.Stats.BulksSent != 1 {
		t.Errorf("%+v, %+v", m.Peer(), m.Stats)
	}
	m.Receive(now, ctl(wire.FlagAlive, 2))
	if n := steps(t, m, &now, 100*ms, nil); n != 1 || m.Stats.BulksSent != 2 {
		t.Errorf("%d requests, %+v", n, m.Stats)
	}
}

// FuzzConntrackd drives a machine by a program of octets; it must neither panic nor
// send without end, and its invariants hold.
func FuzzConntrackd(f *testing.F) {
	f.Add([]byte{0, 8, 0x1a, 0x10, 0, 8, 0, 0, 0, 1, 1, 3, 3, 20, 2, 3, 3, 40})
	f.Add([]byte{0, 16, 0x1a, 2, 0, 16, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 4, 0, 4, 1, 4, 2, 3, 9})
	f.Fuzz(func(t *testing.T, program []byte) {
		s := full(40)
		m := NewConntrackd(ConntrackdConfig{Resync: true, BulkInterval: time.Second, FirstSeq: 1<<32 - 9}, s)
		drive(t, program, s, m, func(now monotime.Time, msg *wire.Message) { m.Receive(now, msg) },
			func() error { return checkConntrackd(m) })
	})
}

// machine is what drive needs of one.
type machine interface {
	sender
	Enqueue(flow.Handle, bool)
	Forget(flow.Handle)
	ForgetAll()
	Bulk()
	RequestResync()
	Advance(monotime.Time)
	Next(monotime.Time) monotime.Time
}

// drive runs a program: 0 n octets, a datagram; 1 h and 2 h, a flow changes or is
// destroyed; 3 n, n times 20 ms pass; 4 n, something else.
func drive(t *testing.T, program []byte, s *shelf, m machine, receive func(monotime.Time, *wire.Message), check func() error) {
	if len(program) > 1000 {
		return
	}
	now := monotime.Time(-5)
	next := func() (b byte) {
		if len(program) > 0 {
			b, program = program[0], program[1:]
		}
		return b
	}
	r := wire.Reader{Sync: true}
	for len(program) > 0 {
		op, n := next()%5, next()
		h := flow.Handle(1 + n%40)
		switch {
		case op == 0:
			k := min(int(n), len(program))
			r.Reset(program[:k])
			program = program[k:]
			for msg := new(wire.Message); r.Next(msg); {
				if msg.Fault != wire.FaultTruncated && msg.Fault != wire.FaultSize && msg.Fault != wire.FaultVersion {
					receive(now, msg)
				}
			}
		case op == 1 && s.flows[h] != 1:
			s.flows[h] = 1
			m.Enqueue(h, true)
		case op == 1:
			m.Enqueue(h, false)
		case op == 2 && s.flows[h] == 1:
			s.flows[h] = 2
			m.Enqueue(h, false)
		case op == 3:
			for range n {
				now = now.Add(20 * ms)
				m.Advance(now)
				send(t, m, now)
				if m.Next(now) <= now {
					t.Fatal("waits for a time that has passed")
				}
			}
		case op == 4 && n%4 == 0:
			m.Bulk()
		case op == 4 && n%4 == 1:
			m.RequestResync()
		case op == 4 && n%4 == 2:
			m.ForgetAll()
			clear(s.flows)
		case op == 4:
			m.Forget(h)
			s.flows[h] = 0
		}
		if err := check(); err != nil {
			t.Fatal(err)
		}
	}
}

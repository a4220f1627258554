package alarm

import (
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/wire"
)

const ms = time.Millisecond

// Only data messages are sent; every flow is sent again after 1 to RefreshTime whole
// seconds and a fraction of 0.2 to 1 second, drawn anew each time, and spread evenly.
func TestRefresh(t *testing.T) {
	const flows, refresh = 2000, 6
	s := full(flows)
	m := NewConntrackd(Config{Refresh: refresh * time.Second, Seed: 5}, s, s)
	now := monotime.Time(-7 * time.Minute)
	m.Advance(now)
	for h := range flow.Handle(flows) {
		m.Enqueue(h+1, false)
	}
	last := map[uint32]monotime.Time{}
	count := map[uint32]int{}
	var hist [refresh + 2]int
	busiest, total := 0, 0
	for end := now.Add(100 * time.Second); now < end; now = now.Add(50 * ms) {
		m.Advance(now)
		n := 0
		for _, msg := range send(t, m, now) {
			if msg.Type != wire.CTUpd || msg.Flags != 0 {
				t.Fatalf("%v %v is sent", msg.Type, msg.Flags)
			}
			h := msg.Flow.Mark
			if at, ok := last[h]; ok {
				// The slot it was put in began up to 0.2 s before the time drawn; it is
				// looked at every 50 ms, and the pace may keep it some ms more.
				d := now.Sub(at)
				if d <= 1000*ms || d > (refresh+1)*time.Second+200*ms {
					t.Fatalf("flow %d is sent again after %v", h, d)
				}
				hist[int(d/time.Second)]++
				n++
			}
			last[h] = now
			count[h]++
		}
		if now.Sub(end) > -50*time.Second {
			busiest, total = max(busiest, n), total+n
		}
	}
	mean := float64(total) / 1000
	if busiest > int(2*4*mean) { // a slot is 4 turns
		t.Errorf("%d flows at once, %.1f in the mean", busiest, mean)
	}
	for h := range uint32(flows) {
		if count[h+1] < 100/(refresh+1) {
			t.Errorf("flow %d was sent %d times in 100 s", h+1, count[h+1])
		}
	}
	for k, n := range hist[1 : refresh+1] {
		if n < total/refresh/3 {
			t.Errorf("%d refreshes after %d s, %d in all: %v", n, k+1, total, hist)
		}
	}
	// The interval is drawn anew at an update.
	at := last[1]
	now = at.Add(900 * ms)
	m.Enqueue(1, false)
	if got := send(t, m, now); len(got) == 0 {
		t.Fatal("an update is not sent")
	}
}

// Flows that nobody enqueued are found and refreshed.
func TestAdoption(t *testing.T) {
	const flows = 5000
	s := full(flows)
	m := NewConntrackd(Config{Refresh: 2 * time.Second}, s, s)
	now := monotime.Time(1)
	seen := map[uint32]bool{}
	for end := now.Add(8 * time.Second); now < end; now = now.Add(10 * ms) {
		m.Advance(now)
		for _, msg := range send(t, m, now) {
			seen[msg.Flow.Mark] = true
		}
		if now < end.Add(-7*time.Second) && len(s.flows) == flows+1 {
			s.flows = append(s.flows, 1) // a commit made it
		}
	}
	if len(seen) != flows+1 {
		t.Errorf("%d flows of %d", len(seen), flows+1)
	}
}

// A message with any flag is swallowed, whatever its type; other types above 5 are bad;
// all data without flags is delivered.
func TestConntrackdReceive(t *testing.T) {
	s := full(0)
	m := NewConntrackd(Config{}, s, s)
	for _, c := range []struct {
		msg  wire.Message
		want wire.Verdict
	}{
		{wire.Message{Type: wire.CTNew, Seq: 9}, wire.Deliver},
		{wire.Message{Type: wire.CTUpd, Seq: 3}, wire.Deliver}, // an older number
		{wire.Message{Type: wire.CTDel, Seq: 3}, wire.Deliver}, // the same
		{wire.Message{Type: wire.ExpNew}, wire.Deliver},
		{wire.Message{Type: wire.CTNew, Flags: wire.FlagHello}, wire.Control},
		{wire.Message{Type: wire.CTNew, Flags: 0x80, Fault: wire.FaultPayload}, wire.Control},
		{wire.Message{Type: wire.Ctl, Flags: wire.FlagResync}, wire.Control},
		{wire.Message{Type: 13, Flags: 1, Fault: wire.FaultHeader}, wire.Control},
		{wire.Message{Type: wire.Ctl}, wire.Bad},
		{wire.Message{Type: 7, Fault: wire.FaultHeader}, wire.Bad},
		{wire.Message{Type: wire.CTNew, Fault: wire.FaultPayload}, wire.Bad},
	} {
		if v := m.Receive(1, &c.msg); v != c.want {
			t.Errorf("%v %v: verdict %d, want %d", c.msg.Type, c.msg.Flags, v, c.want)
		}
	}
	if got := m.Stats; got != (ConntrackdStats{DataReceived: 4, Swallowed: 4, BadType: 2, BadPayload: 1}) {
		t.Errorf("%+v", got)
	}
	if m.RequestResync(); m.Requests() != 0 || len(send(t, m, 1)) != 0 {
		t.Error("a request does something")
	}
}

// Entries expire CacheTimeout after their last message, 180 s unless configured.
func TestConntrackdExpiry(t *testing.T) {
	s := full(0)
	m := NewConntrackd(Config{}, s, s)
	now := monotime.Time(-1)
	for end := now.Add(10 * time.Minute); now < end; {
		m.Advance(now)
		next := m.Next(now)
		if next <= now {
			t.Fatal("waits for a time that has passed")
		}
		now = next
	}
	if n := len(s.expired); n < 600*16/180-2 || n > 600*16/180+2 {
		t.Errorf("%d calls in 10 minutes", n)
	}
	for i, e := range s.expired {
		if e.owner != OnlyPeer || i > 0 && e.olderThan <= s.expired[i-1].olderThan {
			t.Errorf("call %d: %+v", i, e)
		}
	}
	if d := now.Sub(s.expired[len(s.expired)-1].olderThan); d < 180*time.Second || d > 195*time.Second {
		t.Errorf("the last call removes what is older than %v", d)
	}
}

const (
	ours   = 10
	theirs = 20
)

// greet lets theirs say HELLO with its next number, and guess our challenge.
func greet(m *Syncd, now monotime.Time, seq wire.Seq, knows bool) {
	hello := &wire.Message{Type: wire.SyncCtl, Seq: seq, Sync: new(wire.Sync)}
	s := hello.Sync
	s.Kind, s.N, s.Name[0] = wire.Hello, 1, 'B'
	s.Greets[0] = wire.Greet{Session: ours, Echo: [16]byte{1}}
	if !knows {
		s.Greets[0].Challenge[0] = 9
	}
	m.Receive(now, theirs, hello)
	m.Advance(now)
}

func newSyncd(s *shelf, refresh time.Duration) *Syncd {
	return NewSyncd(SyncdConfig{
		Config: meet.Config{Name: "A", Session: ours, Random: func(b []byte) { b[0] = 1 }},
		Alarm:  Config{Refresh: refresh, CacheTimeout: 16 * time.Second},
	}, s, s)
}

// Entries expire only while their owner is heard, and not before all of them could have
// been refreshed.
func TestSyncdExpiry(t *testing.T) {
	s := full(0)
	m := newSyncd(s, 2*time.Second)
	now, start := monotime.Time(1), monotime.Time(1)
	play := func(d time.Duration, heard bool) {
		for end := now.Add(d); now < end; now = now.Add(100 * ms) {
			if heard {
				greet(m, now, 100, true)
			}
			m.Advance(now)
			send(t, m, now)
			if m.Next(now) <= now {
				t.Fatal("waits for a time that has passed")
			}
		}
	}
	play(15*time.Second, true)
	if len(s.expired) != 0 {
		t.Errorf("expired %v after the greeting", now.Sub(start))
	}
	play(5*time.Second, true)
	if n := len(s.expired); n < 4 || s.expired[n-1].owner != 1 {
		t.Errorf("%+v", s.expired)
	}
	for _, e := range s.expired {
		if e.olderThan.Sub(start) > 4*time.Second {
			t.Errorf("entries refreshed at %v expire", e.olderThan)
		}
	}
	last := now
	play(10*time.Minute, false)
	if e := s.expired[len(s.expired)-1]; e.olderThan >= last.Add(-16*time.Second) {
		t.Errorf("entries of a silent owner expire: %+v, last heard at %v", e, last)
	}
	n := len(s.expired)
	play(15*time.Second, true)
	if len(s.expired) != n {
		t.Error("entries expire as soon as their owner is back")
	}
	play(2*time.Second, true)
	if len(s.expired) == n {
		t.Error("entries never expire again")
	}
}

// A peer gets everything when it is met, in both directions, and when it is back.
func TestSyncdGreeting(t *testing.T) {
	s := full(700)
	m := newSyncd(s, time.Hour) // hardly any refresh
	now := monotime.Time(1)
	data := func(d time.Duration) (n int) {
		for end := now.Add(d); now < end; now = now.Add(10 * ms) {
			m.Advance(now)
			for _, msg := range send(t, m, now) {
				if msg.Type == wire.CTUpd {
					n++
				}
			}
		}
		return n
	}
	greet(m, now, 100, false)
	greet(m, now, 100, false)
	if n := data(100 * ms); n > 10 {
		t.Errorf("%d flows to a peer that has not met us", n)
	}
	greet(m, now, 100, true)
	if n := data(100 * ms); n < 700 || n > 710 {
		t.Errorf("%d flows to a new peer, want 700", n)
	}
	greet(m, now, 100, true)
	if n := data(100 * ms); n > 10 {
		t.Errorf("%d flows to a peer that has them", n)
	}
	data(11 * time.Second)
	greet(m, now, 100, true)
	if n := data(100 * ms); n < 700 || n > 710 {
		t.Errorf("%d flows to a peer that is back, want 700", n)
	}
}

// What comes late or twice is dropped.
// TestSyncdRole: what peers say of their roles is kept, and ours is said at once.
func TestSyncdRole(t *testing.T) {
	m := newSyncd(full(0), time.Minute)
	now := monotime.Time(1)
	greet(m, now, 100, true)
	m.AppendDatagram(now, nil, 1400)
	if m.Pending(now) {
		t.Fatal("a HELLO is due")
	}
	m.SetRole(now, wire.RoleBackup)
	now = now.Add(100 * time.Millisecond)
	b := m.AppendDatagram(now, nil, 1400)
	r := wire.Reader{Sync: true}
	r.Reset(b)
	var msg wire.Message
	if !r.Next(&msg) || msg.Sync.Kind != wire.Hello || msg.Sync.Says != (wire.Standing{Role: wire.RoleBackup, Edition: 2}) {
		t.Errorf("%+v", msg.Sync.Says)
	}
	msg = wire.Message{Type: wire.SyncCtl, Seq: 100, Sync: new(wire.Sync)}
	msg.Sync.Kind, msg.Sync.N, msg.Sync.Name[0] = wire.Hello, 1, 'B'
	for _, role := range []wire.Role{wire.RolePrimary, wire.RoleFault} {
		msg.Sync.Says.Role = role
		msg.Sync.Says.Edition++
		msg.Sync.Greets[0] = wire.Greet{Session: ours, Heard: 2}
		m.Receive(now, theirs, &msg)
		p := m.Peers(now)[0]
		if leads, known := m.Leads(now, p.Owner); p.Role != role || leads != (role == wire.RolePrimary) || known {
			t.Errorf("%+v leads: %v, known: %v", p, leads, known)
		}
	}
}

// Of what was held of a peer before it was heard, all that it does not have any more has
// expired after a while.
func TestSyncdKnown(t *testing.T) {
	m := newSyncd(full(0), time.Minute)
	now := monotime.Time(1)
	for at := range 40 { // s
		greet(m, now, 100, true)
		if leads, known := m.Leads(now, 1); !leads || known != (at >= 16) {
			t.Errorf("after %d s: leads %v, known %v", at, leads, known)
		}
		now = now.Add(time.Second)
	}
	now = now.Add(10 * time.Second)
	if leads, known := m.Leads(now, 1); leads || known {
		t.Error("a silent peer leads")
	}
	greet(m, now, 100, true)
	if leads, known := m.Leads(now, 1); !leads || known {
		t.Errorf("back again: leads %v, known %v", leads, known)
	}
}

func TestSyncdOrder(t *testing.T) {
	m := newSyncd(full(0), 2*time.Second)
	if v, _ := m.Receive(1, theirs, &wire.Message{Type: wire.CTUpd, Seq: 100}); v != wire.Drop {
		t.Error("data of a session that is not met counts")
	}
	greet(m, 1, 100, true)
	for _, c := range []struct {
		seq  wire.Seq
		want wire.Verdict
	}{{100, wire.Deliver}, {100, wire.Drop}, {105, wire.Deliver}, {103, wire.Drop}} {
		v, d := m.Receive(1, theirs, &wire.Message{Type: wire.CTUpd, Seq: c.seq})
		if v != c.want || v == wire.Deliver && d != (wire.Delivery{Owner: 1, Confirms: true}) {
			t.Errorf("number %d: %v, %+v", c.seq, v, d)
		}
	}
	if m.Stats.Missing != 4 || m.Stats.Before != 2 {
		t.Errorf("%+v", m.Stats)
	}
}

// TestLeap: when the loop has slept for longer than a round of the wheel, everything is
// due, once.
func TestLeap(t *testing.T) {
	s := full(100)
	m := NewConntrackd(Config{Refresh: 2 * time.Second}, s, s)
	now := monotime.Time(1)
	m.Advance(now)
	for h := range flow.Handle(100) {
		m.Enqueue(h+1, false)
	}
	send(t, m, now)
	for _, leap := range []time.Duration{time.Minute, 24 * time.Hour} {
		now = now.Add(leap)
		m.Advance(now)
		if n := len(send(t, m, now)); n != 100 {
			t.Errorf("%d flows after %v, want 100", n, leap)
		}
	}
}

// FuzzConntrackd gives a machine datagrams and time; nothing panics, nothing is sent
// without end.
func FuzzConntrackd(f *testing.F) {
	fl := flowOf(3)
	f.Add(wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 1, &fl), uint32(500))
	f.Add(wire.AppendControl(nil, wire.FlagResync, 1, 0, 0), uint32(1<<31))
	f.Fuzz(func(t *testing.T, b []byte, leap uint32) {
		s := full(20)
		m := NewConntrackd(Config{Refresh: time.Duration(leap), CacheTimeout: time.Duration(leap)}, s, s)
		y := newSyncd(full(20), 2*time.Second)
		greet(y, 1, 100, true)
		greet(y, 1, 100, true)
		r := wire.Reader{Sync: true}
		r.Reset(b)
		for msg := new(wire.Message); r.Next(msg); {
			m.Receive(1, msg)
			y.Receive(1, theirs, msg)
		}
		now := monotime.Time(1)
		for k := range 20 {
			m.Advance(now)
			y.Advance(now)
			send(t, m, now)
			send(t, y, now)
			if m.Next(now) <= now || y.Next(now) <= now {
				t.Fatal("waits for a time that has passed")
			}
			now = now.Add(time.Duration(leap) * time.Duration(k))
			for _, r := range []*refresher{&m.r, &y.r} {
				if err := check(r); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkUpdate is one flow of a million that rest: enqueued, sent, and put back. The
// encoding of the message is part of it.
func BenchmarkUpdate(b *testing.B) {
	const flows = 1 << 20
	s := full(flows)
	m := NewConntrackd(Config{}, s, s)
	now := monotime.Time(1)
	buf := make([]byte, 0, 4096)
	m.Advance(now)
	b.ReportAllocs()
	for i := range b.N {
		m.Enqueue(flow.Handle(1+i*7919%flows), false)
		if i%16 == 15 {
			m.AppendDatagram(now, buf, 1400)
			now = now.Add(100 * time.Microsecond)
		}
	}
}

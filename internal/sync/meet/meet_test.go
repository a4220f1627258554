package meet

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// The sentences in quotes are those of docs/protocol.md.

// world is tables that hear each other's HELLOs.
type world struct {
	t      *testing.T
	now    monotime.Time
	random uint64
}

func (w *world) table(name string, session uint64, log *[]string) *Table[int] {
	return New[int](Config{
		Name: name, Session: session,
		Random: func(b []byte) {
			w.random++
			clear(b)
			binary.BigEndian.PutUint64(b, w.random)
		},
		Meet: func(s uint64) { *log = append(*log, fmt.Sprint("meet ", s)) },
		Drop: func(s uint64) { *log = append(*log, fmt.Sprint("drop ", s)) },
	})
}

// hello lets from say HELLO and returns the message.
func (w *world) hello(from *Table[int], seq wire.Seq) *wire.Message {
	r := wire.Reader{Sync: true}
	r.Reset(from.AppendHello(w.now, nil, seq))
	m := &wire.Message{}
	if !r.Next(m) || m.Fault != wire.FaultNone {
		w.t.Fatal("malformed HELLO")
	}
	return m
}

func (w *world) give(to *Table[int], session uint64, m *wire.Message, want Judgement) *Peer[int] {
	w.t.Helper()
	p, j := to.Receive(w.now, session, m)
	if j != want {
		w.t.Errorf("judgement %d, want %d", j, want)
	}
	return p
}

var data = &wire.Message{Type: wire.CTUpd, Seq: 5}

func TestMeeting(t *testing.T) {
	w := &world{t: t, now: -5}
	var la, lb []string
	a, b := w.table("A", 10, &la), w.table("B", 20, &lb)
	// "Of a session that is not met nothing but HELLO is looked at."
	w.give(b, 10, data, Ignored)
	first := w.hello(a, 1)
	w.give(b, 10, first, Greeted)
	w.give(b, 10, data, Ignored)
	w.give(a, 20, w.hello(b, 2), Greeted) // says B's challenge
	m := w.hello(a, 3)                    // echoes it, and says A's
	p := w.give(b, 10, m, Met)
	if p.Name != "A" || p.Owner != 1 || p.Knows || len(lb) != 1 {
		t.Errorf("%+v, %v", p, lb)
	}
	if p := w.give(b, 10, data, Heard); p == nil || p.Session != 10 {
		t.Errorf("%+v", p)
	}
	if p := w.give(a, 20, w.hello(b, 4), Met); p == nil || !p.Knows {
		t.Errorf("%+v", p)
	}
	if p := w.give(b, 10, w.hello(a, 6), Greeted); p == nil || !p.Knows {
		t.Errorf("%+v", p)
	}
	// What was recorded is worth nothing to a new session of ours.
	var lc []string
	c := w.table("B", 21, &lc)
	for _, old := range []*wire.Message{first, m} {
		if p := w.give(c, 10, old, Greeted); p != nil || len(lc) != 0 {
			t.Error("met by a recorded HELLO")
		}
	}
	// Nor does an echo of another challenge meet anyone.
	forged, sync := *m, *m.Sync
	forged.Sync = &sync
	forged.Sync.Greets[0].Session, forged.Sync.Greets[0].Echo = 21, [16]byte{1, 2, 3}
	w.give(c, 10, &forged, Greeted)
	// Our own session, no session, a fault and flags on data are refused.
	w.give(a, 10, data, Refused)
	w.give(a, 0, data, Refused)
	w.give(a, 20, &wire.Message{Type: wire.Ctl, Flags: wire.FlagAlive}, Refused)
	w.give(a, 20, &wire.Message{Type: wire.CTUpd, Flags: wire.FlagHello}, Refused)
	w.give(a, 20, &wire.Message{Type: wire.SyncCtl, Fault: wire.FaultPayload}, Refused)
	w.give(a, 20, &wire.Message{Type: wire.CTUpd, Fault: wire.FaultPayload}, Heard)
}

// meetBoth lets two tables meet.
func (w *world) meetBoth(a, b *Table[int], sa, sb uint64) {
	for range 3 {
		b.Receive(w.now, sa, w.hello(a, 1))
		a.Receive(w.now, sb, w.hello(b, 1))
	}
	if !a.Alive(w.now) || !b.Alive(w.now) {
		w.t.Fatal("not met")
	}
}

// "A new session of a name takes the place of the one before when it is met."
func TestRestart(t *testing.T) {
	w := &world{t: t, now: 1}
	var la, lb []string
	a, b := w.table("A", 10, &la), w.table("B", 20, &lb)
	var left []uint64
	a.Left = func(p *Peer[int]) { left = append(left, p.Session) }
	w.meetBoth(a, b, 10, 20)
	a.Peers()[0].State = 7
	w.now = w.now.Add(10 * time.Second)
	b2 := w.table("B", 21, &lb)
	w.meetBoth(a, b2, 10, 21)
	if n := len(a.Peers()); n != 1 || a.Peers()[0].Session != 21 || a.Peers()[0].State != 0 || a.Peers()[0].Owner != 1 {
		t.Errorf("%d peers, %+v", n, a.Peers()[0])
	}
	if got := fmt.Sprint(la, left); got != "[meet 20 drop 20 meet 21] [20]" {
		t.Error(got)
	}
	if a.Stats.Conflicts != 0 {
		t.Error("a restart counts as a conflict")
	}
	w.meetBoth(a, w.table("A", 11, &lb), 10, 11)
	if a.Stats.Conflicts != 1 {
		t.Errorf("%d conflicts, want one: another node has our name", a.Stats.Conflicts)
	}
}

// "A node sends a HELLO once a second, and at once when it hears a session that it has
// not met, but no more than 20 a second."
func TestHelloRate(t *testing.T) {
	w := &world{t: t, now: 1}
	var log []string
	a := w.table("A", 10, &log)
	count := func(each func()) (n int) {
		for end := w.now.Add(10 * time.Second); w.now < end; w.now = w.now.Add(time.Millisecond) {
			each()
			if a.HelloDue(w.now) {
				w.hello(a, 1)
				n++
			} else if next := a.Next(); next <= w.now {
				t.Fatalf("a HELLO was due %v ago", w.now.Sub(next))
			}
		}
		return n
	}
	if n := count(func() {}); n != 10 {
		t.Errorf("%d HELLOs in 10 s", n)
	}
	if n := count(func() { a.Receive(w.now, 99, data) }); n < 190 || n > 201 {
		t.Errorf("%d HELLOs in 10 s to a stranger who talks", n)
	}
}

// TestStrangers: sessions that greet and are never met are forgotten, and never push
// out one that is met.
func TestStrangers(t *testing.T) {
	w := &world{t: t, now: 1}
	var log []string
	a, b := w.table("A", 10, &log), w.table("B", 20, &log)
	w.meetBoth(a, b, 10, 20)
	for s := range uint64(100) {
		x := w.table("X", 1000+s, &log)
		a.Receive(w.now, 1000+s, w.hello(x, 1))
		if len(a.Peers()) > maxPeers {
			t.Fatalf("%d peers", len(a.Peers()))
		}
		w.now = w.now.Add(time.Millisecond)
	}
	w.give(a, 20, data, Heard)
	w.now = w.now.Add(9999 * time.Millisecond)
	w.give(a, 20, data, Heard)
	w.now = w.now.Add(time.Millisecond)
	a.Advance(w.now)
	if n := len(a.Peers()); n != 1 {
		t.Errorf("%d peers, want one", n)
	}
	since := a.Peers()[0].Since
	w.now = w.now.Add(time.Minute)
	a.Advance(w.now)
	if a.Alive(w.now) || len(a.Peers()) != 1 {
		t.Error("a peer that is silent is forgotten, or alive")
	}
	if p := w.give(a, 20, data, Heard); p.Since == since || p.Since != w.now {
		t.Error("the silence was not noticed")
	}
}

func TestOwners(t *testing.T) {
	a := New[int](Config{})
	for i := range maxOwners {
		if o := a.AddOwner(fmt.Sprint(i)); int(o) != i+1 || a.OwnerName(o) != fmt.Sprint(i) || a.Owner(fmt.Sprint(i)) != o {
			t.Fatalf("owner %d of %d", o, i)
		}
	}
	if a.AddOwner("more") != 0 || a.AddOwner("3") != 4 || a.OwnerName(0) != "" || a.OwnerName(251) != "" {
		t.Error("numbers beyond the last, or not the same one again")
	}
}

// Two nodes that stop being in charge at the same time may both have the old word of the
// other. Neither takes it for good.
func TestRoles(t *testing.T) {
	w := &world{t: t, now: 1}
	var la, lb []string
	a, b := w.table("A", 10, &la), w.table("B", 20, &lb)
	a.SetRole(w.now, wire.RolePrimary)
	b.SetRole(w.now, wire.RolePrimary)
	w.meetBoth(a, b, 10, 20)
	leads := func(of *Table[int], want bool) {
		t.Helper()
		p := of.Living(w.now, 1)
		if got := p != nil && p.Role.Leads() && of.Knows(p); got != want {
			t.Errorf("leads: %v, want %v; %+v", got, want, of.Peers()[0].Role)
		}
	}
	leads(a, true)
	leads(b, true)
	w.now = w.now.Add(200 * time.Millisecond)
	old := w.hello(b, 1)
	a.SetRole(w.now, wire.RoleBackup)
	if !a.HelloDue(w.now) {
		t.Error("a change of role is not said at once")
	}
	a.Receive(w.now, 20, old)
	leads(a, false) // it has not heard of that
	b.Receive(w.now, 10, w.hello(a, 1))
	w.now = w.now.Add(100 * time.Millisecond)
	if !b.HelloDue(w.now) {
		t.Error("that a change of role was heard is not said at once")
	}
	a.Receive(w.now, 20, w.hello(b, 1))
	leads(a, true)
	leads(b, false)
	b.SetRole(w.now, wire.RoleFault)
	leads(a, true) // it has not heard yet
	leads(b, false)
	late := w.hello(a, 1)
	a.SetRole(w.now, wire.RolePrimary)
	b.Receive(w.now, 10, w.hello(a, 1))
	leads(b, false)
	a.Receive(w.now, 20, w.hello(b, 1))
	b.Receive(w.now, 10, w.hello(a, 1))
	b.Receive(w.now, 10, late)
	leads(a, false)
	leads(b, true)
	if b.Living(w.now, 2) != nil || b.Living(w.now, 0) != nil {
		t.Error("a node that nobody knows lives")
	}
	w.now = w.now.Add(10 * time.Second)
	leads(b, false)
	// A restarted process has said nothing of its role, and heard nothing of ours.
	a = w.table("A", 11, &la)
	b.Receive(w.now, 11, w.hello(a, 1))
	a.Receive(w.now, 20, w.hello(b, 1))
	b.Receive(w.now, 11, w.hello(a, 1))
	if v := b.Peers()[0].Role; v.Role != wire.RoleUnsaid || v.heard != 0 {
		t.Errorf("after a restart: %+v", v)
	}
	a.Receive(w.now, 20, w.hello(b, 1))
	b.Receive(w.now, 11, w.hello(a, 1))
	leads(b, true)
}

func TestEditions(t *testing.T) {
	for _, c := range []struct {
		a, b  uint8
		older bool
	}{{0, 0, false}, {0, 1, true}, {1, 0, false}, {1, 1, false}, {1, 2, true}, {255, 1, true}, {1, 255, false}, {128, 1, false}, {130, 1, true}} {
		if older(c.a, c.b) != c.older {
			t.Errorf("edition %d is older than %d: %v", c.a, c.b, !c.older)
		}
	}
	s := NewSelf()
	for range 254 {
		s.Set(1 + s.Says().Role%3)
	}
	if s.Says().Edition != 255 || !s.Set(wire.RoleUnsaid) || s.Says().Edition != 1 || s.Set(wire.RoleUnsaid) {
		t.Errorf("%+v", s)
	}
}

// FuzzReceive gives a table octets of any content: nothing panics, and nobody is met
// who has not seen our challenge.
func FuzzReceive(f *testing.F) {
	w := &world{}
	var log []string
	f.Add(uint64(20), w.table("B", 20, &log).AppendHello(1, nil, 1))
	f.Add(uint64(20), wire.AppendStatus(nil, 1, 10, 2, 3, wire.AllBuckets, nil))
	f.Add(uint64(20), wire.AppendHello(nil, 1, "B", wire.Standing{Role: wire.RolePrimary, Edition: 255}, 0, []wire.Greet{{Session: 10, Heard: 1}}))
	f.Add(uint64(10), wire.AppendHello(nil, 1, "A", wire.Standing{}, 0, []wire.Greet{{Session: 10, Challenge: [16]byte{1}}}))
	f.Fuzz(func(t *testing.T, session uint64, b []byte) {
		var log []string
		a := (&world{t: t}).table("A", 10, &log)
		a.cfg.Random = func(b []byte) { // not in any seed
			for i := range b {
				b[i] = 0xa5 ^ byte(i*37)
			}
		}
		r := wire.Reader{Sync: true}
		r.Reset(b)
		for m := new(wire.Message); r.Next(m); {
			if p, j := a.Receive(1, session, m); (j == Heard || j == Met) || p != nil {
				t.Fatalf("judgement %d", j)
			}
		}
		if len(a.AppendHello(1, nil, 1)) > HelloRoom || len(log) != 0 {
			t.Fatal("too long, or met")
		}
	})
}

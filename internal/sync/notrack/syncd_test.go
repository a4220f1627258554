package notrack

import (
	"slices"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/wire"
)

const (
	ours   = 10
	theirs = 20
)

// met returns a machine, and the time, at which it has just met theirs, whose next
// number is 100, and which has met it.
func met(t *testing.T, s *shelf, every time.Duration) (*Syncd, monotime.Time) {
	t.Helper()
	m := NewSyncd(SyncdConfig{
		Config:       meet.Config{Name: "A", Session: ours, Random: func(b []byte) { b[0] = 1 }},
		BulkInterval: every,
	}, s, s)
	now := monotime.Time(1)
	hello := &wire.Message{Type: wire.SyncCtl, Seq: 100, Sync: new(wire.Sync)}
	hello.Sync.Kind, hello.Sync.N = wire.Hello, 1
	copy(hello.Sync.Name[:], "B")
	hello.Sync.Greets[0] = wire.Greet{Session: ours}
	m.Receive(now, theirs, hello)
	hello.Sync.Greets[0].Echo = [16]byte{1}
	m.Receive(now, theirs, hello)
	if p := m.Peers(now); len(p) != 1 || !p[0].Met || !p[0].Wanted || !p[0].Doubtful || p[0].Name != "B" {
		t.Fatalf("%+v", p)
	}
	return m, now
}

func data(seq wire.Seq) *wire.Message { return &wire.Message{Type: wire.CTUpd, Seq: seq} }

func bulkMsg(k wire.Kind, seq wire.Seq, id uint32, mask wire.Mask) *wire.Message {
	m := &wire.Message{Type: wire.SyncCtl, Flags: wire.Flags(k), Seq: seq, Sync: new(wire.Sync)}
	m.Sync.Kind, m.Sync.Bulk, m.Sync.Mask = k, id, mask
	return m
}

func TestParts(t *testing.T) {
	var all wire.Mask
	for k := range parts {
		if !all.And(partMask(k)).Empty() {
			t.Errorf("part %d overlaps", k)
		}
		all = all.Or(partMask(k))
		if partsOf(partMask(k)) != 1<<k {
			t.Errorf("part %d is %b", k, partsOf(partMask(k)))
		}
	}
	if all != wire.AllBuckets || partsOf(all) != allParts {
		t.Errorf("%x", all)
	}
	for b := range wire.Buckets {
		if !partMask(partOf(uint8(b))).Has(uint8(b)) {
			t.Errorf("bucket %d is not in part %d", b, partOf(uint8(b)))
		}
	}
}

// TestHole: what was not confirmed by a bulk update is removed only if nothing of it
// was missed.
func TestHole(t *testing.T) {
	part := partMask(3)
	for _, c := range []struct {
		name  string
		msgs  []*wire.Message
		swept bool
	}{
		{"whole", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part), data(101), bulkMsg(wire.BulkEnd, 102, 1, part)}, true},
		{"hole in it", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part), data(102), bulkMsg(wire.BulkEnd, 103, 1, part)}, false},
		{"hole before its end", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part), data(101), bulkMsg(wire.BulkEnd, 103, 1, part)}, false},
		{"hole before it", []*wire.Message{bulkMsg(wire.BulkBegin, 105, 1, part), bulkMsg(wire.BulkEnd, 106, 1, part)}, true},
		{"out of order", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part), data(102), data(101), bulkMsg(wire.BulkEnd, 103, 1, part)}, false},
		{"no beginning", []*wire.Message{data(101), bulkMsg(wire.BulkEnd, 102, 1, part)}, false},
		{"another beginning", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part), bulkMsg(wire.BulkEnd, 101, 2, part)}, false},
		{"a payload that does not parse", []*wire.Message{bulkMsg(wire.BulkBegin, 100, 1, part),
			{Type: wire.CTUpd, Seq: 101, Fault: wire.FaultPayload}, bulkMsg(wire.BulkEnd, 102, 1, part)}, true},
	} {
		s := full(0)
		m, now := met(t, s, 0)
		for _, msg := range c.msgs {
			m.Receive(now, theirs, msg)
		}
		if got := slices.Contains(s.log, "sweep 1"); got != c.swept {
			t.Errorf("%s: swept %v", c.name, got)
		}
		if unsure := m.Peers(now)[0].Unsure; !unsure {
			t.Errorf("%s: sure of all after one part", c.name)
		}
	}
}

// TestLeads: the word of a peer counts once nothing of it is wanted.
func TestLeads(t *testing.T) {
	m, now := met(t, full(0), 0)
	m.SetRole(now, wire.RoleBackup)
	says := func(r wire.Role, edition, heard uint8) {
		hello := &wire.Message{Type: wire.SyncCtl, Seq: 100, Sync: new(wire.Sync)}
		hello.Sync.Kind, hello.Sync.N, hello.Sync.Says = wire.Hello, 1, wire.Standing{Role: r, Edition: edition}
		hello.Sync.Name[0] = 'B'
		hello.Sync.Greets[0] = wire.Greet{Session: ours, Heard: heard}
		m.Receive(now, theirs, hello)
	}
	leads := func(want bool) {
		t.Helper()
		if leads, known := m.Leads(now, m.Owner("B")); (leads && known) != want {
			t.Errorf("leads: %v, known %v; %+v", leads, known, m.Peers(now)[0])
		}
	}
	says(wire.RolePrimary, 1, 2)
	if leads, known := m.Leads(now, m.Owner("B")); !leads || known {
		t.Errorf("leads: %v; known %v although all is wanted", leads, known)
	}
	for part := range parts {
		m.Receive(now, theirs, bulkMsg(wire.BulkBegin, wire.Seq(100+2*part), uint32(part+1), partMask(part)))
		m.Receive(now, theirs, bulkMsg(wire.BulkEnd, wire.Seq(101+2*part), uint32(part+1), partMask(part)))
	}
	leads(true)
	says(wire.RoleBackup, 2, 2)
	leads(false)
	if r := m.Peers(now)[0].Role; r != wire.RoleBackup {
		t.Errorf("role %v", r)
	}
	says(wire.RolePrimary, 3, 1)
	leads(true) // of what it has heard it has forgotten nothing
	m.SetRole(now, wire.RoleFault)
	leads(false)
	says(wire.RolePrimary, 3, 3)
	leads(true)
}

// TestOrder: what comes late or twice is dropped, and what was missed is counted.
func TestOrder(t *testing.T) {
	m, now := met(t, full(0), 0)
	for _, c := range []struct {
		seq  wire.Seq
		want wire.Verdict
	}{{100, wire.Deliver}, {100, wire.Drop}, {105, wire.Deliver}, {103, wire.Drop}, {106, wire.Deliver}} {
		v, d := m.Receive(now, theirs, data(c.seq))
		if v != c.want || v == wire.Deliver && (d.Owner != 1 || !d.Confirms || d.Late || d.Remember || d.Merge) {
			t.Errorf("number %d: %v, %+v", c.seq, v, d)
		}
	}
	if s := m.Stats; s.Missing != 4 || s.Gaps != 1 || s.Before != 2 {
		t.Errorf("%+v", s)
	}
	// Nothing counts of a session that is not met.
	if v, _ := m.Receive(now, 77, data(1)); v != wire.Drop {
		t.Errorf("verdict %v", v)
	}
}

// TestWanted: a receiver asks until it has seen the beginning of every part.
func TestWanted(t *testing.T) {
	m, now := met(t, full(0), 0)
	seq := wire.Seq(100)
	for k := range parts {
		for range 2 {
			asked := false
			for _, msg := range send(t, m, now) {
				if msg.Type == wire.SyncCtl && msg.Sync.Kind == wire.Status {
					asked = true
					if msg.Sync.To != theirs || partsOf(msg.Sync.Mask) != allParts<<k || msg.Sync.Last != seq-1 {
						t.Fatalf("part %d: STATUS %d %b %d", k, msg.Sync.To, partsOf(msg.Sync.Mask), msg.Sync.Last)
					}
				}
			}
			if !asked {
				t.Fatalf("part %d is not asked for", k)
			}
			now = now.Add(statusRepeat)
			m.Receive(now, theirs, data(seq))
			seq++
		}
		m.Receive(now, theirs, bulkMsg(wire.BulkBegin, seq, uint32(k+1), partMask(k)))
		m.Receive(now, theirs, bulkMsg(wire.BulkEnd, seq+1, uint32(k+1), partMask(k)))
		seq += 2
	}
	if p := m.Peers(now)[0]; p.Wanted || p.Unsure || p.Doubtful {
		t.Errorf("%+v", p)
	}
	m.Receive(now, theirs, data(seq+1))
	if !m.Peers(now)[0].Unsure {
		t.Error("sure after a hole")
	}
}

// TestServe: the parts that a peer wants are sent at once, each whole, at the pace, and
// one round in every BulkInterval.
func TestServe(t *testing.T) {
	const flows = 4000
	s := full(flows)
	m, now := met(t, s, 8*time.Second)
	ask := &wire.Message{Type: wire.SyncCtl, Seq: 100, Sync: new(wire.Sync)}
	ask.Sync.Kind, ask.Sync.To, ask.Sync.Mask = wire.Status, ours, partMask(5).Or(partMask(9))
	m.Receive(now, theirs, ask)
	var order []int
	open, seen := -1, map[uint32]int{}
	play := func(d time.Duration) {
		for end := now.Add(d); now < end; now = now.Add(ms) {
			m.Receive(now, theirs, &wire.Message{Type: wire.SyncCtl, Seq: 100, Sync: &wire.Sync{Kind: wire.Status, To: 5}}) // a sign of life
			m.Advance(now)
			n := 0
			for _, msg := range send(t, m, now) {
				switch {
				case msg.Type == wire.CTUpd:
					n++
					seen[msg.Flow.Mark]++
					if b := wire.Bucket(&msg.Flow.Orig); open < 0 || partOf(b) != open {
						t.Fatalf("bucket %d in part %d", b, open)
					}
				case msg.Sync.Kind == wire.BulkBegin:
					for k := range parts {
						if msg.Sync.Mask == partMask(k) {
							open = k
						}
					}
					order = append(order, open)
				case msg.Sync.Kind == wire.BulkEnd:
					if msg.Sync.Mask != partMask(open) {
						t.Fatal("the end of another part")
					}
					open = -1
				}
			}
			if n > 500 {
				t.Fatalf("%d messages at once", n)
			}
		}
	}
	play(400 * ms)
	if !slices.Equal(order, []int{5, 9}) {
		t.Errorf("parts %v, want 5 and 9", order)
	}
	order, seen = nil, map[uint32]int{}
	play(8 * time.Second)
	slices.Sort(order)
	if len(slices.Compact(order)) != parts || len(seen) != flows {
		t.Errorf("%d flows of parts %v in a round", len(seen), order)
	}
}

// TestNobody: without a peer nothing leaves but HELLO, dead flows are released, and a
// peer that comes back after a silence gets everything.
func TestNobody(t *testing.T) {
	s := full(10)
	m, now := met(t, s, 0)
	send(t, m, now)
	now = now.Add(11 * time.Second)
	s.flows[4] = 2
	m.Enqueue(4, false)
	m.Enqueue(5, false)
	for _, msg := range send(t, m, now) {
		if msg.Type != wire.SyncCtl || msg.Sync.Kind != wire.Hello {
			t.Errorf("%v is sent to nobody", msg.Type)
		}
	}
	if len(s.released) != 1 {
		t.Error("a dead flow is kept")
	}
	m.Receive(now, theirs, data(100))
	got := 0
	for range 100 {
		now = now.Add(20 * ms)
		for _, msg := range send(t, m, now) {
			if msg.Type == wire.CTUpd {
				got++
			}
		}
	}
	if got != 9 {
		t.Errorf("%d flows sent to a peer that is back, want 9", got)
	}
}

// FuzzSyncd drives a machine with a peer by a program of octets; see drive.
func FuzzSyncd(f *testing.F) {
	f.Add(append([]byte{0, 28}, wire.AppendBulk(nil, wire.BulkBegin, 100, 1, partMask(3))...))
	f.Add(append(append([]byte{0, 44}, wire.AppendStatus(nil, 100, ours, 1, 1, wire.AllBuckets, nil)...), 3, 200, 2, 4, 3, 9, 4, 2, 3, 9))
	f.Add([]byte{1, 4, 3, 1, 2, 4, 3, 255, 3, 255, 3, 255, 1, 5, 4, 0, 3, 9})
	f.Fuzz(func(t *testing.T, program []byte) {
		s := full(40)
		m, _ := met(t, s, time.Second)
		drive(t, program, s, m, func(now monotime.Time, msg *wire.Message) { m.Receive(now, theirs, msg) },
			func() error { return checkSyncd(m) })
	})
}

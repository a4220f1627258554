package stream

import (
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// sentences are those of docs/protocol.md, sections 3 to 6 and 11, each with its proof.
var sentences = []struct {
	quote string
	proof func(t *testing.T)
}{
	{"(3.1) A node sends a HELLO once a second, and at once when it hears a session that it has not met or that has not met it, or when it hears of a change of another's role, but no more than 20 a second; and at once when its own role changes.", func(t *testing.T) {
		s := newStage(t)
		count(t, s.do("start A\nrun 9500ms"), "A  HELLO", 10)
		h := newHand(t, Config{})
		h.at(10 * time.Second)
		h.sent()
		n := 0
		for range 1000 { // somebody who never echoes
			h.at(time.Millisecond)
			h.hello()
			n += len(h.sentKind(wire.Hello))
		}
		if n < 18 || n > 21 {
			t.Errorf("%d HELLOs in a second", n)
		}
		h.at(100 * time.Millisecond)
		h.sent()
		h.at(100 * time.Millisecond)
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, 5, 1, wire.AllBuckets))
		if len(h.sentKind(wire.Hello)) != 1 {
			t.Error("no HELLO at once")
		}
	}},
	{"(3.2) A HELLO has an entry for every session that the node knows: the challenge that it wants to see echoed by that session, or zeros once it has met it, and the last challenge that it got from it, or zeros.", func(t *testing.T) {
		s := newStage(t)
		out := s.do("start A\nrun 10ms\nstart B\nrun 1200ms")
		inOrder(t, out, "A  HELLO #0, B: challenge\n", "B  HELLO #0, A: challenge echo\n", "A  HELLO #0, B: met echo\n")
	}},
	{"(3.3) Of a session that is not met nothing but HELLO is looked at.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.hello()
		h.data(h.seq, 1, 1, false)
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, h.seq, 1, wire.AllBuckets))
		h.status(h.n.m.next-1, nil)
		if h.n.m.Stats.Unmet != 3 || len(h.n.owners) != 0 || h.peer().counted {
			t.Errorf("%+v", h.n.m.Stats)
		}
	}},
	{"(3.4) A session is met when one of its HELLOs echoes the challenge that was made for it, in the entry for our session. A challenge is random, and used for one session only.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.hello()
		right := h.peer().challenge
		wrong := right
		wrong[15]++
		h.hello(wire.Greet{Session: h.n.session, Echo: wrong})
		h.hello(wire.Greet{Session: h.n.session + 1, Echo: right})
		h.receiveFrom(99, wire.AppendHello(nil, 7, "Q", wire.Standing{}, 0, []wire.Greet{{Session: h.n.session, Echo: right}}))
		for _, p := range h.n.m.peers {
			if p.met || p.session != h.session && p.challenge == right {
				t.Errorf("%s: met %v, challenge %x", p.name, p.met, p.challenge)
			}
		}
		h.hello(wire.Greet{Session: h.n.session, Echo: right})
		if !h.peer().met {
			t.Error("not met")
		}
	}},
	{"(3.5) A new session of a name takes the place of the one before when it is met. What the node holds of that name stays until a bulk update of the new session ends.", func(t *testing.T) {
		s := started(t, "add A 1-2")
		s.do("destroy A 2\nstart A seq=900")
		out := s.do("run 500ms drop=A:BULK_END*\nshow")
		has(t, out, "A': in doubt; holds 1:1 2:2?\n")
		lacks(t, out, "   A:")
		has(t, s.do("run 2s\nshow"), "A': in step; holds 1:1\n")
	}},
	{"(3.6) Everyone is a peer whose session is met.", func(t *testing.T) {
		s := newStage(t)
		out := s.do("start A\nstart B\nstart C\nrun 3s quiet\nshow")
		count(t, out, "in step", 6)
	}},
	{"(3.7) A node knows 32 sessions at most. One that is not met is forgotten when it is silent for `peer_dead_after`; if there is no room for another, the one that was silent for longest and is not met, or not heard any more, makes room.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		for s := uint64(1000); s < 1050; s++ {
			h.at(time.Millisecond)
			h.receiveFrom(s, wire.AppendHello(nil, 1, "X", wire.Standing{}, 0, nil))
		}
		m := h.n.m
		if len(m.peers) != 32 || m.find(h.session) == nil || m.find(1049) == nil || m.find(1019) == nil || m.find(1018) != nil {
			t.Errorf("%d sessions", len(m.peers))
		}
		h.at(9900 * time.Millisecond)
		m.Advance(h.now)
		if len(m.peers) != 32 {
			t.Errorf("%d sessions before the time", len(m.peers))
		}
		h.at(200 * time.Millisecond)
		m.Advance(h.now)
		if len(m.peers) != 1 || m.peers[0].session != h.session {
			t.Errorf("%d sessions are left", len(m.peers))
		}
	}},
	{"(3.8) The role is what a node was told to do: 1 primary, 2 backup, 3 fault, 0 if nobody has told it. Any other number counts as 0. Its edition is a number from 1 to 255, 1 again after 255, another one after each change. Who knows of no roles sends zeros.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.n.m.SetRole(h.now, wire.RoleBackup)
		h.meet()
		wants := func(role wire.Role, edition uint8) {
			t.Helper()
			h.at(time.Second)
			if s := h.sentKind(wire.Hello); len(s) != 1 || s[0].Says != (wire.Standing{Role: role, Edition: edition}) {
				t.Errorf("HELLO %+v, want role %v, edition %d", s[:min(1, len(s))], role, edition)
			}
		}
		wants(wire.RoleBackup, 2)
		h.n.m.SetRole(h.now, wire.RoleBackup)
		wants(wire.RoleBackup, 2)
		for range 253 {
			h.n.m.SetRole(h.now, wire.RoleFault)
			h.n.m.SetRole(h.now, wire.RoleFault)
			h.n.m.SetRole(h.now, wire.RoleBackup)
			h.n.m.SetRole(h.now, wire.RolePrimary)
		}
		wants(wire.RolePrimary, (1+3*253)%255+1)
		h.says(wire.Standing{}, 0)
		h.bulk(1)
		if m := h.n.m; m.Peers(h.now)[0].Role != wire.RoleUnsaid || !m.peers[0].role.Leads() || !m.peers[0].role.Knows(&m.self) {
			t.Errorf("one who knows of no roles: %+v", m.Peers(h.now)[0])
		}
		h.says(wire.Standing{Role: 4, Edition: 1}, 0)
		if h.peer().role.Role != wire.RoleUnsaid {
			t.Errorf("role %v", h.peer().role.Role)
		}
	}},
	{"(3.9) Of a session that is met the role counts that it said in the HELLO by which it was met, and then in each HELLO whose edition is not older (RFC 1982, in 8 bits). Its edition is told back to it in the entry for it, as the one heard; zero stands for a session that is not met.", func(t *testing.T) {
		h := newHand(t, Config{})
		heard := func(want uint8) {
			t.Helper()
			h.at(time.Second)
			if s := h.sentKind(wire.Hello); len(s) != 1 || s[0].Greets[0].Heard != want {
				t.Errorf("%d HELLOs, %+v, want %d", len(s), s[0].Greets[0], want)
			}
		}
		is := func(want wire.Role) {
			t.Helper()
			if r := h.n.m.Peers(h.now)[0].Role; r != want {
				t.Errorf("role %v, want %v", r, want)
			}
		}
		h.says(wire.Standing{Role: wire.RolePrimary, Edition: 7}, 0)
		is(wire.RoleUnsaid)
		heard(0)
		h.receive(wire.AppendHello(nil, h.seq, "P", wire.Standing{Role: wire.RoleBackup, Edition: 6}, 0, []wire.Greet{{Session: h.n.session, Echo: h.peer().challenge}}))
		is(wire.RoleBackup) // what was said before it was met is nothing
		heard(6)
		// "when it hears of a change of another's": at once, and once.
		h.says(wire.Standing{Role: wire.RolePrimary, Edition: 8}, 0)
		h.at(50 * time.Millisecond)
		if s := h.sentKind(wire.Hello); len(s) != 1 || s[0].Greets[0].Heard != 8 {
			t.Errorf("%d HELLOs at once, %+v", len(s), s)
		}
		h.says(wire.Standing{Role: wire.RolePrimary, Edition: 8}, 0)
		h.at(500 * time.Millisecond)
		if s := h.sentKind(wire.Hello); len(s) != 0 {
			t.Error("HELLO at once again")
		}
		h.says(wire.Standing{Role: wire.RoleBackup, Edition: 7}, 0) // overtaken
		is(wire.RolePrimary)
		heard(8)
		h.says(wire.Standing{Role: wire.RoleFault, Edition: 8 + 127}, 0)
		is(wire.RoleFault)
		h.says(wire.Standing{Role: wire.RoleBackup, Edition: 3}, 0) // after 255
		is(wire.RoleBackup)
		// "when its role changes": at once.
		h.at(100 * time.Millisecond)
		h.sent()
		h.at(100 * time.Millisecond)
		h.n.m.SetRole(h.now, wire.RolePrimary)
		if len(h.sentKind(wire.Hello)) != 1 {
			t.Error("a change of our role is not told at once")
		}
	}},
	{"(3.10) A node leads if its session is met and heard, and its role is primary or 0. It knows another node's role if it has heard the edition that this one has now, or has edition 0 itself.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.n.m.SetRole(h.now, wire.RoleBackup)
		leads := func(want bool) {
			t.Helper()
			if got, _ := h.n.m.Leads(h.now, h.peer().owner); got != want {
				t.Errorf("leads: %v; %+v", got, h.peer().role)
			}
		}
		known := func(want bool) {
			t.Helper()
			if _, got := h.n.m.Leads(h.now, h.peer().owner); got != want {
				t.Errorf("known: %v", got)
			}
		}
		h.says(wire.Standing{}, 0)
		leads(false)
		h.meet()
		leads(true)
		known(false) // all is wanted
		h.bulk(1)
		known(true)
		for _, r := range []wire.Role{wire.RoleUnsaid, wire.RolePrimary, wire.RoleBackup, wire.RoleFault} {
			edition := 10 + uint8(r)
			h.says(wire.Standing{Role: r, Edition: edition}, 0)
			leads(r <= wire.RolePrimary)
			known(false)
			h.n.m.SetRole(h.now, wire.RoleFault)
			h.says(wire.Standing{Role: r, Edition: edition}, h.n.m.self.Says().Edition-1)
			known(false)
			h.says(wire.Standing{Role: r, Edition: edition}, h.n.m.self.Says().Edition)
			known(true)
			h.says(wire.Standing{Role: r, Edition: edition}, h.n.m.self.Says().Edition-1) // overtaken
			known(true)
			leads(r <= wire.RolePrimary)
			h.n.m.SetRole(h.now, wire.RoleBackup)
			known(false)
		}
		h.says(wire.Standing{Role: wire.RolePrimary, Edition: 20}, h.n.m.self.Says().Edition)
		leads(true)
		h.data(h.peer().expected+1, 1, 1, false)
		leads(true)
		known(false) // one is missing
		h.data(h.peer().expected-2, 2, 1, false)
		known(true)
		h.at(10 * time.Second)
		leads(false) // not heard
		known(false)
		// A new session of its name has said nothing yet.
		h.hello(wire.Greet{Session: h.n.session})
		leads(true)
		h.session++
		h.meet()
		h.bulk(1)
		if v := h.peer().role; v.Standing != (wire.Standing{}) {
			t.Errorf("a new session has the word of the one before: %+v", v)
		}
	}},
	{"(4.1) A receiver expects the number after the last one. A message with the expected number is applied. A larger number, of whatever message, means that the numbers in between are missing; the message itself is applied.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.data(h.seq, 1, 1, false)
		h.missing()
		h.data(h.seq+3, 2, 1, false)
		h.missing(h.seq+1, h.seq+2)
		h.holds(1, 2)
		h.hello(wire.Greet{Session: h.n.session}) // with number seq, which is old
		h.missing(h.seq+1, h.seq+2)
		h.receive(wire.AppendStatus(nil, h.seq+6, 1, 1, 0, wire.Mask{}, nil)) // for somebody else
		h.missing(h.seq+1, h.seq+2, h.seq+4, h.seq+5)
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, h.seq+7, 1, wire.AllBuckets))
		h.missing(h.seq+1, h.seq+2, h.seq+4, h.seq+5, h.seq+6, h.seq+6)
	}},
	{"(4.2) A message with a smaller number than expected counts if the number is missing: a data message is then applied unless something with a larger number is known of its flow, a state or a deletion; BULK_BEGIN is ignored, and so is a DIGEST after which anything has come. Otherwise it is dropped. What is in doubt (section 5) counts as older than all that takes it out of doubt.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		q := h.seq
		h.data(q+3, 1, 4, false)
		h.data(q+4, 2, 5, true)
		h.data(q, 1, 1, false)
		h.data(q+1, 2, 2, false)
		h.holds(1)
		if e := h.held().entries[1]; e.mark != 4 {
			t.Errorf("flow 1 is in state %d", e.mark)
		}
		h.data(q+2, 3, 3, false)
		h.holds(1, 3)
		h.missing()
		h.data(q+2, 4, 3, false) // not missing any more
		h.holds(1, 3)

		h.data(q+6, 5, 6, false)
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+5, 1, wire.AllBuckets))
		if !h.held().doubt.Empty() || h.peer().wanted.Empty() {
			t.Error("a late BULK_BEGIN was taken")
		}
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+7, 1, wire.AllBuckets))
		h.data(q+9, 5, 7, false)
		h.receive(wire.AppendDigest(nil, q+8, 0, 1, new([wire.Buckets]uint64)))
		if s := h.n.m.Stats; s.Differed+s.Agreed != 0 {
			t.Errorf("a DIGEST was compared after something newer: %+v", s)
		}
		h.held().entries[1].seq = q + 11 // as of an earlier life of the peer
		h.data(q+11, 6, 8, false)
		h.data(q+10, 1, 9, false)
		if e := h.held().entries[1]; e.mark != 9 || e.doubt {
			t.Errorf("flow 1 in doubt was not replaced: %+v", e)
		}
	}},
	{"(4.3) When a session is met, the expected number is that of the HELLO by which it was met, nothing is missing, and all buckets are wanted.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		if p := h.peer(); p.expected != h.seq || len(p.missing) != 0 || p.wanted != wire.AllBuckets {
			t.Errorf("%+v", p)
		}
	}},
	{"(4.4) A receiver tells the sender of a stream by STATUS the last number up to which it has seen or names everything, the first 32 ranges that are missing before it, and the buckets that it wants. It does so 20 ms after the first message that no STATUS covers, when 256 messages are not covered, and the last STATUS was 5 ms ago or 1024 are not covered, 10 ms or more after numbers are newly missing, every 100 ms while something is missing or wanted, and with every HELLO, as long as it hears the sender.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		h.at(5 * time.Second)
		h.sent()
		q := h.peer().expected
		h.data(q, 1, 1, false)
		h.at(10 * time.Millisecond)
		h.data(q+1, 2, 1, false)
		h.at(9 * time.Millisecond)
		h.noStatus()
		h.at(time.Millisecond)
		h.wantStatus(q+1, 0)
		for i := range wire.Seq(256) {
			h.noStatus()
			h.data(q+2+i, 3, uint32(i), false)
		}
		h.at(4 * time.Millisecond)
		h.noStatus()
		h.at(time.Millisecond)
		h.wantStatus(q+257, 0)
		q += 258
		h.at(5 * time.Millisecond)
		for i := range wire.Seq(256) {
			h.noStatus()
			h.data(q+i, 3, uint32(1000+i), false)
		}
		h.wantStatus(q+255, 0)
		q += 256
		for i := range wire.Seq(1024) {
			h.noStatus()
			h.data(q+i, 3, uint32(2000+i), false)
		}
		h.wantStatus(q+1023, 0)
		q += 1024
		for i := range wire.Seq(40) {
			h.data(q+1+2*i, 4, uint32(1000+i), false)
		}
		h.at(9 * time.Millisecond)
		h.noStatus()
		h.at(time.Millisecond)
		if s := h.wantStatus(q+2*32-1, 32); s.Ranges[0] != (wire.Range{From: q, To: q}) {
			t.Errorf("first range %v", s.Ranges[0])
		}
		h.at(99 * time.Millisecond)
		h.noStatus()
		h.at(time.Millisecond)
		h.wantStatus(q+2*32-1, 32)
		for range 40 {
			h.data(q, 5, 5000, false)
			q += 2
		}
		h.at(100 * time.Millisecond)
		h.sent()
		h.at(300 * time.Millisecond)
		h.noStatus()
		h.at(time.Second) // and HELLO
		h.wantStatus(q-1, 0)
		h.at(20 * time.Second) // the sender is not heard any more
		h.n.m.Advance(h.now)
		h.noStatus()
	}},
	{"(4.5) Numbers that may only be late are not named: they are waited for, 10 ms at first, twice as long after each message that was given up and came all the same, 200 ms at most, and shorter again with each digest that agrees. What is not named, for this reason or for want of room, is not before the last number of the STATUS.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		h.sent()
		p := h.peer()
		for i := range uint32(10) {
			q, patience := p.expected, p.patience
			h.data(q+1, 1, i, false)
			h.at(patience - time.Millisecond)
			if s := h.sentKind(wire.Status); len(s) > 0 && (s[0].Last != q-1 || s[0].N != 0) {
				t.Fatalf("number %d was named too soon: up to %d, %d ranges", q, s[0].Last, s[0].N)
			}
			h.at(time.Millisecond)
			h.wantStatus(q+1, 1)
			h.receive(wire.AppendVoid(nil, q+2, h.n.session, false, []wire.Range{{From: q, To: q}}))
			h.data(q, 1, i, false)
			if want := min(2*patience, 200*time.Millisecond); p.patience != want {
				t.Fatalf("patience of %v after %v", p.patience, patience)
			}
		}
		h.receive(wire.AppendDigest(nil, p.expected, 0, 0, h.n.Sums(p.owner)))
		if p.patience >= 200*time.Millisecond {
			t.Errorf("patience of %v after a digest", p.patience)
		}
	}},
	{"(4.6) A sender keeps what a peer has not covered by a STATUS, up to its limit. It never repeats a message: the flow of a missing number becomes due again, and leaves in its current state under a new number. So does a missing BULK_END.", func(t *testing.T) {
		h := newHand(t, Config{ResendQueue: 8})
		h.meet()
		m := h.n.m
		h.status(m.next-1, nil)
		h.sent()
		for p := range uint16(20) {
			h.n.set(p, false)
		}
		h.sent()
		first := m.base
		if kept := m.next - m.base; kept != 8 {
			t.Errorf("%d messages kept", kept)
		}
		for m.at(first).h == 0 {
			first++
		}
		port := h.n.flows[m.at(first).h].port
		h.n.set(port, false) // again
		sent := m.next
		h.status(sent-1, []wire.Range{{From: first, To: first + 1}})
		seen := map[uint16]uint32{}
		for range 5 {
			for _, d := range h.sent() {
				if d.Type == wire.CTNew {
					seen[d.Flow.Orig.SrcPort] = d.Flow.Mark
					if d.Seq.Before(sent) {
						t.Errorf("number %d is repeated", d.Seq)
					}
				}
			}
			h.status(m.next-1, nil)
		}
		if seen[port] != h.n.changes {
			t.Errorf("flow %d left again in state %d", port, seen[port])
		}
		s := started(t, "add A 1")
		out := s.do("corrupt B A 1\nrun 1500ms drop=A:BULK_END\nshow")
		count(t, out, "A  BULK_END", 2)
	}},
	{"(4.7) When all flows of the numbers that a peer reported missing have left again, the sender tells it by VOID: those numbers will not come. The receiver takes them out of what is missing. It is **whole** when nothing is missing.", func(t *testing.T) {
		out := started(t, "").do("add A 1-3\nrun 50ms drop=A:CT_NEW\nshow")
		inOrder(t, out, "lacks 104\n", "A  CT_NEW #107 flow 1", "A  VOID #108 for B: 104\n", "A: in step; holds 1:1 2:2 3:3")
	}},
	{"(4.8) VOID is sent again when a STATUS still names the numbers.", func(t *testing.T) {
		out := started(t, "").do("add A 1-3\nrun 200ms drop=A:CT_NEW,A:VOID\nshow")
		inOrder(t, out, "A  VOID #108 for B: 104  (lost)\n", "lacks 104\n", "A  VOID #108 for B: 104\n")
	}},
	{"(4.9) With the flag \"lost\" the sender says that it no longer knows what the numbers before that of the VOID carried. Nothing before it is missing then. The receiver wants all buckets, and an end of a bulk update that it has seen already means nothing.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		q := h.seq
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q, 1, wire.AllBuckets))
		h.data(q+2, 1, 1, false)
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+3, 1, wire.AllBuckets))
		h.receive(wire.AppendVoid(nil, q+9, h.n.session, true, nil))
		h.missing()
		if p := h.peer(); p.expected != q+9 || p.wanted != wire.AllBuckets || p.ending || p.sweeping {
			t.Errorf("%+v", p)
		}
	}},
	{"(4.10) A peer counts from its first STATUS. If that shows that something is missing which is not kept, it is answered by VOID with \"lost\", and so are all others until one shows that the VOID has come.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		m := h.n.m
		if h.peer().counted {
			t.Error("it counts without STATUS")
		}
		at := m.next
		for _, last := range []wire.Seq{at - 9, at + 9999, at - 3} {
			h.status(last, nil)
			if v := h.sentKind(wire.Void); len(v) != 1 || !v[0].Lost || !h.peer().counted {
				t.Errorf("STATUS up to %d: %+v", last, v)
			}
		}
		h.status(at-1, []wire.Range{{From: at - 2, To: at - 2}})
		if v := h.sentKind(wire.Void); len(v) != 1 || !v[0].Lost {
			t.Errorf("%+v", v)
		}
		h.status(m.next-1, nil)
		if v := h.sentKind(wire.Void); len(v) != 0 {
			t.Errorf("%+v", v)
		}
	}},
	{"(4.11) A peer is left out that is not heard for `peer_dead_after`, that covers nothing more for as long although there is something, or that holds up a full queue, or a bulk update for others, for half a second. Nothing is kept for it until its next STATUS, with which it counts again, by (4.10).", func(t *testing.T) {
		counts := func(h *hand, want bool) {
			t.Helper()
			if h.n.turn(h.now, 1400, 100, func([]byte) {}); h.peer().counted != want {
				t.Errorf("it counts: %v", !want)
			}
		}
		fresh := func(queue int) *hand {
			h := newHand(t, Config{ResendQueue: queue})
			h.meet()
			h.status(h.n.m.next-1, nil)
			h.sent()
			return h
		}
		h := fresh(0)
		h.at(9999 * time.Millisecond)
		counts(h, true)
		h.at(2 * time.Millisecond)
		counts(h, false)
		if h.n.m.base != h.n.m.next {
			t.Error("something is kept")
		}
		h = fresh(0) // it is heard, but confirms nothing
		for range 20 {
			counts(h, true)
			h.at(500 * time.Millisecond)
			h.hello(wire.Greet{Session: h.n.session})
		}
		counts(h, false) // after 10 s
		h = fresh(8)
		h.at(900 * time.Millisecond) // silence before does not count
		for p := range uint16(20) {
			h.n.set(p, false)
		}
		counts(h, true)
		h.n.m.Advance(h.now)
		h.at(499 * time.Millisecond)
		counts(h, true)
		h.at(time.Millisecond)
		counts(h, false)
		has(t, started(t, "start C seq=300\nrun 2s quiet").do("add A 1-9\nrun 1s quiet\nshow"), "A: in step; holds 1:1 2:2 3:3 4:4 5:5 6:6 7:7 8:8 9:9\n")
	}},
	{"(4.12) A receiver that has more than 1024 ranges missing, or one of 2^31 numbers ago, gives them up: it wants all buckets instead.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		q := h.peer().expected
		for i := range wire.Seq(1024) {
			h.data(q+1+2*i, 1, uint32(i), false)
		}
		if p := h.peer(); len(p.missing) != 1024 || !p.wanted.Empty() {
			t.Errorf("%d ranges missing", len(p.missing))
		}
		h.data(q+1+2048, 1, 5000, false)
		h.missing()
		if h.peer().wanted != wire.AllBuckets {
			t.Error("nothing is wanted")
		}
		h.bulk(2)
		q = h.peer().expected
		for i := range wire.Seq(3) {
			h.data(q+1+i*1<<30, 1, 6000+uint32(i), false)
		}
		if err := check(h.n.m); err != nil || h.peer().wanted != wire.AllBuckets {
			t.Errorf("%v, wanted %v", err, h.peer().wanted)
		}
	}},
	{"(5.1) A sender starts a bulk update of the buckets that peers want; ids count up from 1. It sends BULK_BEGIN, repeats it every 100 ms until every peer that wants one of the buckets has told the id by STATUS, or one second has passed, then sends all flows of these buckets, then BULK_END.", func(t *testing.T) {
		s := newStage(t)
		out := s.do("start A seq=100\nadd A 1-2\nstart B seq=200\nrun 1500ms drop=A:BULK_BEGIN*")
		count(t, out[:strings.Index(out, "A  CT_NEW")], "A  BULK_BEGIN", 10)
		inOrder(t, out, "0.102  A  BULK_BEGIN #100 1: all", "0.202  A  BULK_BEGIN", "1.102  A  CT_NEW", "A  CT_NEW", "A  BULK_END", "A  BULK_BEGIN #115 2: all")
	}},
	{"(5.2) Live changes go on meanwhile and go first. Buckets that are wanted while a bulk update is under way, by a peer that has seen its beginning, are served by the next one. A request never restarts one.", func(t *testing.T) {
		s := newStage(t)
		s.do("start A seq=100 queue=8\nadd A 1-4\nstart B seq=200\nrun 110ms quiet\nresync B\nadd A 5")
		out := s.do("run 300ms")
		inOrder(t, out, "A  CT_NEW #104 flow 5", "wants all", "flow 3", "flow 4", "A  BULK_END #108 1: all", "A  BULK_BEGIN #109 2: all", "flow 1", "A  BULK_END")
		count(t, out, "A  BULK_BEGIN", 1)
	}},
	{"(5.3) A receiver that sees a BULK_BEGIN stops wanting these buckets. If the id is new to it, it puts the sender's entries in them in doubt. Each data message with a larger number takes its flow out of doubt.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		q := h.seq
		h.data(q, 1, 1, false)
		h.data(q+1, 2, 2, false)
		some := wire.Mask{}.With(bucketOf(1)).With(bucketOf(2))
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+3, 7, some))
		if h.peer().wanted != wire.AllBuckets.Less(some) || h.held().doubt != some || !h.held().entries[1].doubt {
			t.Errorf("wanted %x, doubt %x", h.peer().wanted, h.held().doubt)
		}
		h.data(q+4, 1, 3, false)
		h.data(q+2, 2, 2, false) // of before
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+5, 7, some))
		if e := h.held().entries; e[1].doubt || !e[2].doubt {
			t.Errorf("flow 1 %+v, flow 2 %+v", e[1], e[2])
		}
	}},
	{"(5.4) At BULK_END with the id and buckets of the last BULK_BEGIN, as soon as the receiver is whole, it removes the sender's entries in these buckets that are in doubt.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		q := h.seq
		for p := range uint16(4) {
			h.data(q+wire.Seq(p), p, 1, false)
		}
		q += 4
		mask := wire.AllBuckets.Less(wire.Mask{}.With(bucketOf(3)))
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q, 7, mask))
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+1, 6, mask))
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+2, 7, wire.AllBuckets))
		h.holds(0, 1, 2, 3)
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+4, 7, mask))
		h.holds(0, 1, 2, 3) // q+3 is missing
		h.data(q+3, 1, 2, false)
		h.holds(1, 3)
	}},
	{"(5.5) If the beginning of a bulk update was missed, its end means nothing, and the receiver goes on wanting.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.data(h.seq, 1, 1, false)
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, h.seq+1, 7, wire.AllBuckets))
		h.holds(1)
		if h.peer().wanted != wire.AllBuckets {
			t.Error("it does not want any more")
		}
	}},
	{"(5.6) A sender may give a bulk update up when nobody counts any more. Its id is not used again.", func(t *testing.T) {
		s := newStage(t)
		s.do("start A seq=100 queue=8\nadd A 1-9\nstart B seq=200\nrun 110ms quiet\nstop B\nrun 12s quiet")
		out := s.do("start B\nrun 1500ms")
		inOrder(t, out, "A  BULK_BEGIN #106 2: all", "A  BULK_END")
	}},
	{"(5.7) Of a bulk update that began before numbers were given up, by (4.9) or (4.12), the end means nothing; its BULK_BEGIN, if repeated, counts as new.", givenUpDuringBulk},
	{"(6.1) The digest of a bucket is the sum modulo 2^64 of the hashes of the flows in it, as they were sent last; one whose last message was a deletion does not count. A flow that changed while no peer counted, and was not sent since, is in the sum with a number that is not its hash, so that the bucket differs. The number of flows is that of all sums; it is for people.", func(t *testing.T) {
		h := newHand(t, Config{})
		m := h.n.m
		h.n.set(9, false)
		h.sent() // to nobody
		h.meet()
		h.status(m.next-1, nil)
		var want [wire.Buckets]uint64
		want[bucketOf(9)] = unsent
		if m.sums != want || m.count != 1 {
			t.Errorf("%d flows, bucket of 9: %x", m.count, m.sums[bucketOf(9)])
		}
		for p := range uint16(10) {
			h.n.set(p, false)
		}
		h.n.set(3, true)
		h.at(2 * time.Second)
		want = [wire.Buckets]uint64{}
		for _, d := range h.sent() {
			switch {
			case d.Type == wire.CTNew:
				want[wire.Bucket(&d.Flow.Orig)] += d.Hash
			case d.Type == wire.SyncCtl && d.Sync.Kind == wire.Digest:
				if d.Sync.Sums != want || d.Sync.Count != 9 {
					t.Errorf("%d flows, or the sums are not those of what was sent", d.Sync.Count)
				}
				return
			}
		}
		t.Error("no DIGEST")
	}},
	{"(6.2) A sender puts a DIGEST into its stream once a second while a peer counts and its queue is not full, and one when a peer begins to count.", func(t *testing.T) {
		h := newHand(t, Config{ResendQueue: 8})
		h.at(10 * time.Second)
		if len(h.sentKind(wire.Digest)) != 0 {
			t.Error("a DIGEST for nobody")
		}
		h.meet()
		for range 5 {
			h.status(h.n.m.next-1, nil)
			if len(h.sentKind(wire.Digest)) != 1 {
				t.Error("no DIGEST")
			}
			h.at(999 * time.Millisecond)
			if len(h.sentKind(wire.Digest)) != 0 {
				t.Error("a DIGEST too soon")
			}
			h.at(time.Millisecond)
		}
		for p := range uint16(20) {
			h.n.set(p, false)
		}
		if len(h.sentKind(wire.Digest)) != 0 {
			t.Error("a DIGEST with a full queue")
		}
	}},
	{"(6.3) A receiver that is whole compares it, at exactly that point of the stream, with the sums over what it holds of the sender. It leaves out buckets that it wants or that are in doubt.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		stats := &h.n.m.Stats
		wrong := &[wire.Buckets]uint64{5: 1}
		h.digest(0, wrong) // everything is wanted
		if stats.Differed != 0 {
			t.Error("compared what is wanted")
		}
		h.bulk(1)
		q := h.peer().expected
		h.receive(wire.AppendDigest(nil, q+1, 0, 0, wrong)) // q is missing
		if stats.Differed != 0 {
			t.Error("compared while something is missing")
		}
		h.data(q, 1, 1, false)
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+2, 2, wire.Mask{}.With(5)))
		h.digest(2, wrong)
		if stats.Differed != 1 || h.peer().wanted != (wire.Mask{}).With(bucketOf(1)) {
			t.Errorf("in doubt: %d, wanted %x", stats.Differed, h.peer().wanted)
		}
	}},
	{"(6.4) A receiver that is whole, with buckets in doubt while no bulk update is under way, has missed its end: it wants them.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, h.seq, 7, wire.AllBuckets))
		h.digest(7, h.n.Sums(1))
		if !h.peer().wanted.Empty() {
			t.Error("wanted while it is under way")
		}
		h.digest(0, h.n.Sums(1))
		if h.peer().wanted != wire.AllBuckets {
			t.Error("not wanted")
		}
	}},
	{"(6.5) If all agree and none was left out, the receiver is in step with the sender, proven at that time. Buckets that differ are wanted.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.digest(0, h.n.Sums(1))
		if h.peer().proven != 0 {
			t.Error("proven while everything is wanted")
		}
		h.bulk(1)
		h.at(time.Second)
		h.digest(0, h.n.Sums(1))
		if h.peer().proven != h.now {
			t.Error("not proven")
		}
		h.at(time.Second)
		h.digest(0, &[wire.Buckets]uint64{3: 1, 77: 1})
		if p := h.peer(); p.proven == h.now || !p.differed || p.wanted != (wire.Mask{}).With(3).With(77) {
			t.Errorf("wanted %x", p.wanted)
		}
	}},
	{"(6.6) When a repair did not help, the receiver waits 1, 2, 4 ... at most 30 s before it wants again what differs, until all agree once.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		wrong := &[wire.Buckets]uint64{3: 1}
		var wants []int // the seconds at which it wants, each answered in vain
		for s, id := 1, uint32(2); s <= 100; s++ {
			h.at(time.Second)
			h.digest(0, wrong)
			if !h.peer().wanted.Empty() {
				wants = append(wants, s)
				h.bulk(id)
				id++
			}
		}
		if want := []int{1, 2, 4, 8, 16, 32, 62, 92}; !slices.Equal(wants, want) {
			t.Errorf("wants at %v s, want %v", wants, want)
		}
		h.at(time.Second)
		h.digest(0, h.n.Sums(1))
		h.at(time.Second)
		h.digest(0, wrong)
		if h.peer().wanted.Empty() {
			t.Error("after an agreement it does not want at once")
		}
	}},
	{"(3.11) The features are what a node understands that others may not: 1 the messages of section 11. Other bits are 0 and not looked at. A HELLO that ends before them has none.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		if s := h.sentKind(wire.Hello); len(s) == 0 || s[0].Features != 1 {
			t.Errorf("%d HELLOs without the feature", len(s))
		}
		for _, c := range []struct {
			features uint32
			want     bool
		}{{0, false}, {1, true}, {0xfffffffe, false}, {0xffffffff, true}} {
			h.features(c.features)
			if h.peer().compact != c.want {
				t.Errorf("features %#x: %v", c.features, h.peer().compact)
			}
		}
		b := wire.AppendHello(nil, h.seq, "P", wire.Standing{}, 1, []wire.Greet{{Session: h.n.session}})
		b = b[:len(b)-4]
		b[3] -= 4
		if h.receive(b); h.peer().compact {
			t.Error("a HELLO without features has one")
		}
	}},
	{"(11.2) The handle is a number that the sender has given to the flow, from 1 up, small ones first. It means no other flow before every peer that counts has the end of this one.", func(t *testing.T) {
		h := newCompactHand(t)
		h.n.set(10, false)
		h.n.set(11, false)
		m := h.sent()
		if len(m) != 2 || m[0].Handle != 1 || m[1].Handle != 2 {
			t.Fatalf("%d messages", len(m))
		}
		h.n.set(10, true)
		h.n.set(12, false)
		if m := h.sent(); len(m) != 2 || m[0].Type != wire.CTEnd || m[0].Handle != 1 || m[1].Handle != 3 {
			t.Errorf("%d messages, the first %v", len(m), m[0].Type)
		}
		h.status(h.n.m.next-1, nil)
		h.n.set(13, false)
		if m := h.sent(); len(m) != 1 || m[0].Handle != 1 {
			t.Errorf("the end is known, and the next flow has handle %d", m[0].Handle)
		}
	}},
	{"(11.3) The base is the number of the last message of type 0 or 1 about the flow. It is never 0.", func(t *testing.T) {
		h := newCompactHand(t)
		for h.n.m.next != 0 { // the numbers wrap
			h.n.set(9, false)
			h.sent()
		}
		h.n.set(1, false)
		if m := h.sent(); len(m) != 1 || m[0].Seq != 0 {
			t.Fatalf("%d messages", len(m))
		}
		h.n.pass(1)
		base := h.n.m.next
		if m := h.sent(); len(m) != 1 || m[0].Type != wire.CTNew {
			t.Errorf("%v refers to number 0", m[0].Type)
		}
		for range 3 {
			h.n.pass(1)
			if m := h.sent(); len(m) != 1 || m[0].Type != wire.CTState || m[0].Base != base || m[0].State.Status != h.n.changes {
				t.Errorf("%d messages, the first %v", len(m), m[0].Type)
			}
		}
		h.n.set(1, false)
		base = h.n.m.next
		h.sent()
		h.n.pass(1)
		if m := h.sent(); len(m) != 1 || m[0].Base != base {
			t.Errorf("%v refers to %d, not %d", m[0].Type, m[0].Base, base)
		}
	}},
	{"(11.4) CT_STATE says that the flow is what its base said, with this state; CT_END that it has ended. A sender sends a CT_STATE only if nothing else has changed since the base, and the bits 0x180 of the status have not.", func(t *testing.T) {
		// Which changes are which is the store's to say: see TestAlteredBy of the cache and
		// TestCompactTellsAll of the engine.
		h := newCompactHand(t)
		h.n.set(1, false)
		h.sent()
		h.n.pass(1)
		h.n.set(1, false)
		h.n.pass(1)
		if m := h.sent(); len(m) != 1 || m[0].Type != wire.CTNew || m[0].Flow.Mark != h.n.changes-1 {
			t.Errorf("%d messages, the first %v", len(m), m[0].Type)
		}
		// What did not fit into a datagram is told whole by the next one, whatever happens
		// in between.
		h.n.set(2, false)
		h.sent()
		h.n.set(1, false)
		h.n.set(2, false)
		h.n.m.AppendDatagram(h.now, nil, 100)
		if h.n.m.dirty != 1 {
			t.Fatalf("%d left", h.n.m.dirty)
		}
		h.n.pass(2)
		if m := h.sent(); len(m) != 1 || m[0].Type != wire.CTNew {
			t.Errorf("%d messages, the first %v", len(m), m[0].Type)
		}
	}},
	{"(11.5) A sender sends them only while all peers that count have said in HELLO that they understand them, and refers to no message before the last time that a peer began to count, or a bulk update of all buckets began. A flow that becomes due again by (4.6), or is part of a bulk update, is told by a message of type 0 to 2.", func(t *testing.T) {
		h := newCompactHand(t)
		m := h.n.m
		h.n.set(1, false)
		h.sent()
		change := func(want wire.Type, why string) {
			t.Helper()
			h.n.pass(1)
			if got := h.sentData(); len(got) != 1 || got[0].Type != want {
				t.Fatalf("%s: %d messages, want one %v", why, len(got), want)
			}
		}
		change(wire.CTState, "as it should be")
		h.features(0)
		change(wire.CTNew, "a peer that does not understand it")
		h.features(1)
		change(wire.CTState, "it does again")
		q := m.next - 1
		h.status(q, []wire.Range{{From: q, To: q}})
		if got := h.sentData(); len(got) != 1 || got[0].Type != wire.CTNew {
			t.Errorf("what is missing: %d messages", len(got))
		}
		change(wire.CTState, "after it")
		m.leaveOut(h.peer())
		h.status(m.next-1, nil)
		change(wire.CTNew, "a peer that begins to count")
		change(wire.CTState, "after that")
		h.status(m.next-1, nil)
		begin := m.next
		m.Bulk()
		if got := h.sentData(); len(got) != 1 || got[0].Type != wire.CTNew || got[0].Flags != wire.FlagRepeat {
			t.Errorf("in a bulk update: %d messages", len(got))
		}
		if m.floor != begin {
			t.Errorf("after the beginning of a bulk update it refers to numbers from %d, not %d", m.floor, begin)
		}
		change(wire.CTState, "after it")
		m.leaveOut(h.peer())
		h.status(m.base-9, nil)
		lost := m.next
		if m.floor != lost {
			t.Errorf("after a peer began to count it refers to numbers from %d, not %d", m.floor, lost)
		}
	}},
	{"(11.6) A receiver knows of every flow the number of the message of type 0 or 1 that it holds of it, if that has a handle. If it holds a flow with this handle and this number, the message does what one with all of the flow would have done, for everything that this page says.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		q := h.peer().expected
		h.named(q, 1, 100, 7)
		h.state(q+1, 7, q, 101)
		if e := h.held().entries[1]; e == nil || e.mark != 100 || e.version != 101 || e.seq != q+1 {
			t.Fatalf("%+v", e)
		}
		// It confirms, it can be late, and a digest agrees with it.
		h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+2, 2, wire.AllBuckets))
		h.state(q+4, 7, q, 103)
		h.state(q+3, 7, q, 102)
		if e := h.held().entries[1]; e.doubt || e.version != 103 {
			t.Errorf("%+v", e)
		}
		f := simWire(1, 100, 103)
		var sums [wire.Buckets]uint64
		sums[bucketOf(1)] = wire.FlowHash(h.session, wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 0, &f))
		h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+5, 2, wire.AllBuckets))
		h.holds(1)
		h.digest(0, &sums)
		if h.peer().differed || h.peer().proven != h.now {
			t.Error("the digest does not agree")
		}
		h.receive(wire.AppendCTEnd(nil, h.peer().expected, 7, q))
		h.missing()
		h.holds()
	}},
	{"(11.7) If it does not, the number of the message is missing, as if it had not come. If it could not keep what the base said for want of room, a CT_STATE counts as come and does nothing.", func(t *testing.T) {
		// The second sentence is TestCompactOfRefused of the engine.
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		q := h.peer().expected
		h.named(q, 1, 100, 7)
		h.state(q+1, 8, q, 101) // another handle
		h.missing(q+1, q+1)
		h.state(q+2, 7, q-1, 102) // another base
		h.state(q+3, 7, q, 103)
		h.receive(wire.AppendCTEnd(nil, q+5, 9, q)) // a number is lost before it
		h.missing(q+1, q+2, q+4, q+5)
		if e := h.held().entries[1]; e.version != 103 {
			t.Errorf("%+v", e)
		}
		h.at(minPatience)
		h.wantStatus(q+5, 2)
		h.state(q+2, 7, q-1, 102) // once more, and once that it fits
		h.missing(q+1, q+2, q+4, q+5)
		h.state(q+2, 7, q, 102)
		h.missing(q+1, q+1, q+4, q+5)
		h.state(q+2, 7, q-1, 102) // it has come: this is nothing but a copy
		h.missing(q+1, q+1, q+4, q+5)
		if s := &h.n.m.Stats; s.Unfollowed != 4 || s.CompactReceived != 2 || s.Before != 1 {
			t.Errorf("%+v", s)
		}
	}},
	{"(11.8) What is known of handles and of numbers to refer to is forgotten when another session of the name is met.", func(t *testing.T) {
		h := newHand(t, Config{})
		h.meet()
		h.bulk(1)
		q := h.peer().expected
		h.named(q, 1, 100, 7)
		h.session, h.seq = 4712, q+1
		h.meet()
		h.state(q+1, 7, q, 101)
		h.missing(q+1, q+1)
	}},
}

func TestProtocol(t *testing.T) {
	b, err := os.ReadFile("../../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	proven := map[string]bool{}
	flat := strings.Join(strings.Fields(page), " ")
	for _, s := range sentences {
		number, _, _ := strings.Cut(s.quote, " ")
		proven[number] = true
		if !strings.Contains(flat, s.quote) {
			t.Errorf("the page does not say %s", s.quote)
		}
		t.Run(number, s.proof)
	}
	for _, number := range regexp.MustCompile(`(?m)^\(([3-6]\.\d+|11\.[2-9])\)`).FindAllString(page, -1) {
		if !proven[number] {
			t.Errorf("no proof of sentence %s", number)
		}
	}
}

// hand is a peer that a test speaks for, and the node that it speaks to.
type hand struct {
	t       testing.TB
	n       *node
	now     monotime.Time
	session uint64
	seq     wire.Seq // of the HELLO by which it is met
	self    *node
}

func newHand(t testing.TB, cfg Config) *hand {
	w := &network{r: rand.New(rand.NewPCG(1, 1)), now: 1}
	n := &node{w: w, name: "N"}
	cfg.FirstSeq = 1<<32 - 2
	n.start(cfg, false)
	t.Cleanup(func() {
		if len(w.wrong) > 0 && !t.Failed() {
			t.Error(w.wrong[0])
		}
	})
	return &hand{t: t, n: n, now: 1, session: 4711, seq: 1<<32 - 3, self: &node{name: "P", session: 4711}}
}

func (h *hand) at(d time.Duration) { h.now = h.now.Add(d) }

func (h *hand) peer() *peer { return h.n.m.find(h.session) }

func (h *hand) held() *held { return h.n.held(h.peer().owner) }

func (h *hand) receive(b []byte) {
	h.n.receive(h.now, &simDatagram{from: h.self, session: h.session, b: b})
}

func (h *hand) receiveFrom(session uint64, b []byte) {
	h.n.receive(h.now, &simDatagram{from: h.self, session: session, b: b})
}

func (h *hand) hello(greets ...wire.Greet) {
	h.receive(wire.AppendHello(nil, h.seq, "P", wire.Standing{}, 0, greets))
}

// says lets the peer say its role, and which one of ours it has heard of.
func (h *hand) says(s wire.Standing, heard uint8) {
	h.receive(wire.AppendHello(nil, h.seq, "P", s, 0, []wire.Greet{{Session: h.n.session, Heard: heard}}))
}

func (h *hand) meet() {
	h.t.Helper()
	h.hello()
	h.hello(wire.Greet{Session: h.n.session, Echo: h.peer().challenge})
	if !h.peer().met {
		h.t.Fatal("not met")
	}
}

func (h *hand) data(seq wire.Seq, port uint16, mark uint32, dead bool) {
	f := simWire(port, mark, mark)
	typ := wire.CTNew
	if dead {
		typ = wire.CTDel
	}
	h.receive(wire.AppendFlow(nil, wire.Syncd, typ, 0, seq, &f))
}

// newCompactHand returns one whose peer counts, has everything and understands compact
// messages.
func newCompactHand(t testing.TB) *hand {
	h := newHand(t, Config{})
	h.n.flows = h.n.flows[:1]
	h.meet()
	h.features(wire.FeatureCompact)
	h.status(h.n.m.next-1, nil)
	h.sent()
	return h
}

// features lets the peer say what it understands.
func (h *hand) features(f uint32) {
	h.receive(wire.AppendHello(nil, h.seq, "P", wire.Standing{}, f, []wire.Greet{{Session: h.n.session}}))
}

// named is data with a handle.
func (h *hand) named(seq wire.Seq, port uint16, mark, handle uint32) {
	f := simWire(port, mark, mark)
	b := wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, seq, &f)
	wire.SetHandle(b, handle)
	h.receive(b)
}

// state is a CT_STATE.
func (h *hand) state(seq wire.Seq, handle uint32, base wire.Seq, version uint32) {
	h.receive(wire.AppendCTState(nil, seq, handle, base, flow.State{Word: flow.KnowsTimeout, Status: version}))
}

// sentData returns the data messages that the node sends now.
func (h *hand) sentData() []wire.Message {
	return slices.DeleteFunc(h.sent(), func(m wire.Message) bool { return !m.IsData() })
}

// bulk is a whole bulk update without flows.
func (h *hand) bulk(id uint32) {
	q := h.peer().expected
	h.receive(wire.AppendBulk(nil, wire.BulkBegin, q, id, wire.AllBuckets))
	h.receive(wire.AppendBulk(nil, wire.BulkEnd, q+1, id, wire.AllBuckets))
	h.held().sweepNow()
	h.n.m.Applied(h.now)
}

func (h *hand) digest(bulk uint32, sums *[wire.Buckets]uint64) {
	h.receive(wire.AppendDigest(nil, h.peer().expected, 0, bulk, sums))
}

func (h *hand) status(last wire.Seq, ranges []wire.Range) {
	h.receive(wire.AppendStatus(nil, h.seq, h.n.session, last, h.n.m.bulk.id, wire.Mask{}, ranges))
}

// sent returns what the node sends now.
func (h *hand) sent() (all []wire.Message) {
	h.n.turn(h.now, 28, 10000, func(b []byte) {
		rd := wire.Reader{Sync: true, Seed: h.n.session}
		rd.Reset(b)
		for m := new(wire.Message); rd.Next(m); m = new(wire.Message) {
			all = append(all, *m)
		}
	})
	return all
}

func (h *hand) sentKind(k wire.Kind) (all []wire.Sync) {
	for _, m := range h.sent() {
		if m.Type == wire.SyncCtl && m.Sync.Kind == k {
			all = append(all, *m.Sync)
		}
	}
	return all
}

func (h *hand) noStatus() {
	h.t.Helper()
	if s := h.sentKind(wire.Status); len(s) != 0 {
		h.t.Fatalf("STATUS up to %d", s[0].Last)
	}
}

func (h *hand) wantStatus(last wire.Seq, ranges int) wire.Sync {
	h.t.Helper()
	s := h.sentKind(wire.Status)
	if len(s) != 1 || s[0].Last != last || s[0].N != ranges || s[0].To != h.session {
		h.t.Fatalf("%d STATUS, the first up to %d with %d ranges; want up to %d with %d", len(s), s[:min(1, len(s))][0].Last, s[0].N, last, ranges)
	}
	return s[0]
}

// missing checks what the node lacks: pairs of from and to.
func (h *hand) missing(want ...wire.Seq) {
	h.t.Helper()
	var got []wire.Seq
	for _, g := range h.peer().missing {
		got = append(got, g.From, g.To)
	}
	if len(got) != len(want) {
		h.t.Fatalf("missing %d, want %d", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			h.t.Fatalf("missing %d, want %d", got, want)
		}
	}
}

func (h *hand) holds(ports ...uint16) {
	h.t.Helper()
	h.n.m.Applied(h.now)
	x := h.held()
	x.sweepNow()
	for _, p := range ports {
		if x.entries[p] == nil {
			h.t.Errorf("flow %d is not held", p)
		}
	}
	if len(x.entries) != len(ports) {
		h.t.Errorf("%d flows are held, want %d", len(x.entries), len(ports))
	}
}

func bucketOf(port uint16) uint8 {
	f := simWire(port, 0, 0)
	return wire.Bucket(&f.Orig)
}

// started returns two nodes that have met and done this.
func started(t *testing.T, script string) *stage {
	s := newStage(t)
	s.do("start A seq=100\nstart B seq=200\nrun 110ms quiet\n" + script)
	s.do("run 1050ms quiet")
	return s
}

func has(t *testing.T, out, want string) {
	t.Helper()
	if !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
}

func lacks(t *testing.T, out, not string) {
	t.Helper()
	if strings.Contains(out, not) {
		t.Errorf("%q in\n%s", not, out)
	}
}

func count(t *testing.T, out, what string, want int) {
	t.Helper()
	if n := strings.Count(out, what); n != want {
		t.Errorf("%d times %q, want %d, in\n%s", n, what, want, out)
	}
}

func inOrder(t *testing.T, out string, want ...string) {
	t.Helper()
	rest := out
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("no %q, in this order, in\n%s", w, out)
		}
		rest = after
	}
}

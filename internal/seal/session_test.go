package seal

import (
	"testing"
	"time"
)

// "Whoever recorded the session of a process that has ended cannot make it echo a
// fresh challenge."
func TestRecordedSessionStaysGreeting(t *testing.T) {
	a, b, _ := pair(t)
	var record [][]byte
	keep := func(plain []byte) {
		d := a.Seal(nil, plain)
		record = append(record, d)
		open(t, b, d)
	}
	// The record has a greeting in it: an echo of b's challenge of then.
	p := b.peers[a.Session()]
	challenge := p.Challenge(t0)
	keep(challenge[:])
	if !p.Answer(t0, challenge) {
		t.Fatal("no answer")
	}
	for range 100 {
		keep([]byte("a change of state"))
	}

	// a is gone, b has a new process. The record is played to it, again and again.
	b = newBox(t, 0x3333333333333333, testKey(1))
	now := t0.Add(time.Hour)
	for range 3 {
		for _, d := range record {
			plain, p, fault := b.Open(nil, d, now)
			now = now.Add(time.Second)
			if fault == FaultReplayed {
				continue
			}
			if fault != FaultNone {
				t.Fatal(fault)
			}
			p.Challenge(now)
			if len(plain) == 16 && p.Answer(now, [16]byte(plain)) {
				t.Fatal("a recorded echo was taken")
			}
			if p.Met() {
				t.Fatal("a recorded session is met")
			}
		}
		b.Drop(a.Session()) // forgotten and played again
	}
}

// The peer still runs; only we have restarted. What was recorded of its session
// before is authentic and its counters are new to us: it must not be taken for
// fresh once the session is met.
func TestRecordOfARunningSession(t *testing.T) {
	a, b, _ := pair(t)
	var record [][]byte
	for range 100 {
		d := a.Seal(nil, []byte("old state"))
		open(t, b, d)
		record = append(record, d)
	}
	b = newBox(t, 0x3333333333333333, testKey(1)) // restart
	p := meet(t, b, a)
	for _, d := range record {
		refuse(t, b, d, FaultOld)
	}
	plain, q := open(t, b, a.Seal(nil, []byte("new state")))
	if string(plain) != "new state" || q != p || !q.Met() {
		t.Errorf("%q, met %v", plain, q.Met())
	}
}

// The same with parts of the record played during the greeting.
func TestRecordDuringTheGreeting(t *testing.T) {
	a := newBox(t, 1, testKey(1))
	var record [][]byte
	for range 10 {
		record = append(record, a.Seal(nil, []byte("old state")))
	}
	b := newBox(t, 0x3333333333333333, testKey(1))
	_, p := open(t, b, record[5])
	challenge := p.Challenge(t0)
	echo, _ := open(t, b, a.Seal(nil, challenge[:]))
	if _, q := open(t, b, record[7]); q.Met() {
		t.Fatal("met too early")
	}
	if !p.Answer(t0, [16]byte(echo)) {
		t.Fatal("the echo is not taken")
	}
	for _, d := range record {
		refuse(t, b, d, FaultOld)
	}
	open(t, b, a.Seal(nil, []byte("new state")))
}

func TestChallenge(t *testing.T) {
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(1))
	other := newBox(t, 3, testKey(1))
	_, p := open(t, b, a.Seal(nil, nil))
	_, q := open(t, b, other.Seal(nil, nil))

	if p.Answer(t0, [16]byte{}) {
		t.Error("an echo before any challenge is taken")
	}
	first := p.Challenge(t0)
	if first == ([16]byte{}) || first == q.Challenge(t0) {
		t.Errorf("challenge %x", first)
	}
	if p.Challenge(t0.Add(challengeLife-1)) != first {
		t.Error("a repeated greeting has another challenge")
	}
	if q.Answer(t0, first) {
		t.Error("a session answers for another one")
	}
	for i := range first {
		bad := first
		bad[i] ^= 0x80
		if p.Answer(t0, bad) {
			t.Errorf("octet %d does not matter", i)
		}
	}
	late := t0.Add(challengeLife)
	if p.Answer(late, first) {
		t.Error("an expired challenge is taken")
	}
	second := p.Challenge(late)
	if second == first {
		t.Error("an expired challenge is used again")
	}
	if p.Answer(late, first) || p.Met() {
		t.Error("the challenge before is taken")
	}
	if !p.Answer(late, second) || !p.Met() {
		t.Error("the challenge is not taken")
	}
	if p.Answer(late, second) {
		t.Error("a challenge is taken twice")
	}
	if !p.Met() {
		t.Error("a second echo undoes the first")
	}
	if q.Met() {
		t.Error("the other session is met too")
	}
}

// A second exchange in a met session changes nothing, and refuses nothing.
func TestGreetingOfAMetSession(t *testing.T) {
	a, b, p := pair(t)
	delayed := a.Seal(nil, []byte("late"))
	open(t, b, a.Seal(nil, nil))
	if !p.Answer(t0, p.Challenge(t0)) || !p.Met() {
		t.Error("a met session cannot be greeted")
	}
	open(t, b, delayed)
}

func TestDrop(t *testing.T) {
	a, b, p := pair(t)
	d := a.Seal(nil, nil)
	open(t, b, d)
	challenge := p.Challenge(t0)
	b.Drop(a.Session())
	b.Drop(a.Session())
	b.Drop(12345)
	if p.Met() || p.Answer(t0, challenge) || p.Met() {
		t.Error("a dropped session is met")
	}
	_, q := open(t, b, d) // authentic, and nothing more
	if q == p || q.Met() {
		t.Error("a dropped session came back")
	}
	if q := meet(t, b, a); !q.Met() {
		t.Error("a dropped session cannot be met again")
	}
}

func TestUnmetSessionsAreBounded(t *testing.T) {
	_, b, met := pair(t)
	now := t0
	greet := func(session uint64) *Peer {
		now = now.Add(time.Second) // tokens
		_, p, fault := b.Open(nil, newBox(t, session, testKey(1)).Seal(nil, nil), now)
		if fault != FaultNone {
			t.Fatal(fault)
		}
		return p
	}
	first, second := greet(1000), greet(1001)
	for i := range uint64(maxGreeting - 2) {
		greet(2000 + i)
	}
	if len(b.peers) != maxGreeting+1 || b.Forgotten != 0 {
		t.Fatalf("%d sessions, %d forgotten", len(b.peers), b.Forgotten)
	}
	// The first one speaks again, so the second one is silent for longest.
	again := newBox(t, 1000, testKey(1))
	again.counter = 1
	open(t, b, again.Seal(nil, nil))
	greet(3000)
	if b.peers[1000] != first || b.peers[1001] != nil || b.Forgotten != 1 {
		t.Errorf("the session that spoke last: %v, the silent one: %v, forgotten %d", b.peers[1000], b.peers[1001], b.Forgotten)
	}
	if second.Answer(now, second.Challenge(now)) {
		t.Error("a forgotten session can be met")
	}
	for i := range uint64(1000) {
		greet(10000 + i)
	}
	if len(b.peers) != maxGreeting+1 || !met.Met() {
		t.Errorf("%d sessions, the met one: %v", len(b.peers), met.Met())
	}
}

func TestMetSessionsAreBounded(t *testing.T) {
	b := newBox(t, 1, testKey(1))
	now := t0
	var all []*Peer
	for i := range uint64(maxMet + 10) {
		now = now.Add(time.Second)
		_, p, fault := b.Open(nil, newBox(t, 1000+i, testKey(1)).Seal(nil, nil), now)
		if fault != FaultNone || !p.Answer(now, p.Challenge(now)) {
			t.Fatal(fault)
		}
		all = append(all, p)
	}
	for i, p := range all {
		if want := i >= 10; p.Met() != want {
			t.Errorf("session %d of %d: met %v", i, len(all), p.Met())
		}
	}
	if len(b.peers) != maxMet || b.Forgotten != 10 {
		t.Errorf("%d sessions, %d forgotten", len(b.peers), b.Forgotten)
	}
}

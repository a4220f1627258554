package seal

import (
	"crypto/cipher"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// pair returns a sender and a receiver that has met it.
func pair(tb testing.TB) (a, b *Box, p *Peer) {
	a, b = newBox(tb, 0x1111111111111111, testKey(1)), newBox(tb, 0x2222222222222222, testKey(1))
	return a, b, meet(tb, b, a)
}

func TestTamperedAnywhere(t *testing.T) {
	a, b, p := pair(t)
	for range 100 { // so that the counter has neighbours in the window
		open(t, b, a.Seal(nil, nil))
	}
	good := a.Seal(nil, []byte("sixteen octets, and a bit more"))
	counts := map[Fault]int{}
	now := t0
	for i := range good {
		for bit := range 8 {
			now = now.Add(time.Second) // every unknown session gets its derivation
			bad := slices.Clone(good)
			bad[i] ^= 1 << bit
			plain, q, fault := b.Open(nil, bad, now)
			if fault == FaultNone || plain != nil || q != nil {
				t.Fatalf("bit %d of octet %d changed: %x, %v", bit, i, plain, fault)
			}
			counts[fault]++
			var want []Fault
			switch {
			case i < 4:
				want = []Fault{FaultMagic}
			case i == 4:
				want = []Fault{FaultVersion}
			case i == 5:
				want = []Fault{FaultSuite}
			case i < 8:
				want = []Fault{FaultKey}
			case i < 24: // another session, another counter
				want = []Fault{FaultForged, FaultReplayed, FaultOld}
			default:
				want = []Fault{FaultForged}
			}
			if !slices.Contains(want, fault) {
				t.Errorf("bit %d of octet %d changed: %v, want %v", bit, i, fault, want)
			}
		}
	}
	for _, f := range []Fault{FaultForged, FaultReplayed} {
		if counts[f] == 0 {
			t.Errorf("no fault %v", f)
		}
	}
	if len(b.peers) != 1 || !p.Met() {
		t.Errorf("%d sessions, met %v", len(b.peers), p.Met())
	}
	open(t, b, good) // none of it did harm
}

func TestTruncatedAnywhere(t *testing.T) {
	a, b, _ := pair(t)
	good := a.Seal(nil, []byte("some octets of plaintext"))
	for n := range good {
		want := FaultForged
		if n < Overhead {
			want = FaultShort
		}
		refuse(t, b, good[:n], want)
	}
	refuse(t, b, append(slices.Clone(good), 0), FaultForged)
	open(t, b, good)
}

func TestReplay(t *testing.T) {
	a, b, p := pair(t)
	var all [][]byte
	for range 3000 {
		d := a.Seal(nil, []byte("once"))
		all = append(all, d)
		open(t, b, d)
		refuse(t, b, d, FaultReplayed)
	}
	for _, d := range all {
		refuse(t, b, d, FaultReplayed)
	}
	if p.Stats.Faults[FaultReplayed] != 6000 {
		t.Errorf("%d replays counted for the session", p.Stats.Faults[FaultReplayed])
	}
}

func TestReorder(t *testing.T) {
	a, b, _ := pair(t)
	seal := func(n int) [][]byte {
		all := make([][]byte, n)
		for i := range all {
			all[i] = a.Seal(nil, nil)
		}
		return all
	}
	all := seal(windowSize) // as many as the window covers
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, d := range all {
		open(t, b, d)
	}

	all = seal(windowSize + 3) // the newest first: three are too late
	for i, d := range slices.Backward(all) {
		if i < 3 {
			refuse(t, b, d, FaultOld)
		} else {
			open(t, b, d)
		}
	}
	for i, d := range all {
		if i < 3 {
			refuse(t, b, d, FaultOld)
		} else {
			refuse(t, b, d, FaultReplayed)
		}
	}
}

// What is sent back to its sender, with or without a restart in between.
func TestReflection(t *testing.T) {
	a, b, _ := pair(t)
	d := a.Seal(nil, []byte("there"))
	refuse(t, a, d, FaultReflected)
	open(t, b, d)

	restarted := newBox(t, 0x1112111111111111, testKey(1))
	_, p := open(t, restarted, d)
	if p.Met() {
		t.Error("our own past is met")
	}
}

func TestWrongKey(t *testing.T) {
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(2))
	refuse(t, b, a.Seal(nil, nil), FaultKey)
	if len(b.peers) != 0 {
		t.Error("a session was made")
	}

	same, other := keysWithOneID(t) // the id does not tell them apart, the tag does
	a, b = newBox(t, 1, same), newBox(t, 2, other)
	refuse(t, b, a.Seal(nil, nil), FaultForged)
	if len(b.peers) != 0 {
		t.Error("a session was made")
	}
}

func TestCounterZero(t *testing.T) {
	k := testKey(1)
	a, b := newBox(t, 1, k), newBox(t, 2, k)
	d, _ := straightSeal(k.secret[:], 1, 0, []byte("authentic, but no sender seals it"))
	refuse(t, b, d, FaultOld)
	meet(t, b, a)
	refuse(t, b, d, FaultOld)
}

// The order of the checks, seen from outside: a datagram with several faults
// shows the first of them.
func TestOrderOfChecks(t *testing.T) {
	a, b, _ := pair(t)
	d := a.Seal(nil, nil)
	open(t, b, d)
	d[len(d)-1]++
	refuse(t, b, d, FaultReplayed) // before it costs any cryptography
	copy(d[offSession:], b.Seal(nil, nil)[offSession:offCounter])
	refuse(t, b, d, FaultReflected)
	d[offKey]++
	refuse(t, b, d, FaultKey)
	d[5] = 2
	refuse(t, b, d, FaultSuite)
	d[4] = 2
	refuse(t, b, d, FaultVersion)
	d[3] = 'c'
	refuse(t, b, d, FaultMagic)
	refuse(t, b, d[:Overhead-1], FaultShort)
}

// stray returns what a flood consists of: a right header with a random session.
func stray(rng *rand.Rand, like []byte) []byte {
	d := slices.Clone(like)
	binary.BigEndian.PutUint64(d[offSession:], rng.Uint64())
	return d
}

func TestFloodOfUnknownSessions(t *testing.T) {
	a, b, _ := pair(t)
	like := a.Seal(nil, []byte("plaintext"))
	open(t, b, like)
	rng := rand.New(rand.NewPCG(3, 4))
	now := t0.Add(time.Hour) // the bucket is full
	tried := func(n int) (forged int) {
		for range n {
			switch _, _, fault := b.Open(nil, stray(rng, like), now); fault {
			case FaultForged:
				forged++
			case FaultFlood:
			default:
				t.Fatal(fault)
			}
		}
		return forged
	}
	if n := tried(1000); n != 64 {
		t.Errorf("%d keys were derived in a burst", n)
	}
	now = now.Add(100 * time.Millisecond)
	if n := tried(1000); n != 20 {
		t.Errorf("%d keys were derived after 100 ms", n)
	}
	// A second of 20,000 datagrams.
	sum := 0
	for range 1000 {
		now = now.Add(time.Millisecond)
		sum += tried(20)
	}
	if sum != 200 {
		t.Errorf("%d keys were derived in a second", sum)
	}
	// A peer that is known does not notice, nor does one whose key is new to its session.
	open(t, b, a.Seal(nil, nil))
	for _, x := range []*Box{a, b} {
		if err := x.SetKeys([]Key{testKey(2), testKey(1)}); err != nil {
			t.Fatal(err)
		}
	}
	open(t, b, a.Seal(nil, nil))
	// A new one has to wait for a token.
	c := newBox(t, 3, testKey(1))
	if _, _, fault := b.Open(nil, c.Seal(nil, nil), now); fault != FaultFlood {
		t.Errorf("%v, want %v", fault, FaultFlood)
	}
	if _, _, fault := b.Open(nil, c.Seal(nil, nil), now.Add(deriveInterval)); fault != FaultNone {
		t.Errorf("%v after the flood", fault)
	}
	if len(b.peers) != 2 || b.Forgotten != 0 {
		t.Errorf("%d sessions, %d forgotten", len(b.peers), b.Forgotten)
	}
}

// Forgeries in the name of a known session, under every configured key, derive one
// key each and leave what the session is.
func TestFloodOfForgeries(t *testing.T) {
	a, b, p := pair(t)
	if err := b.SetKeys([]Key{testKey(1), testKey(2), testKey(3)}); err != nil {
		t.Fatal(err)
	}
	d := a.Seal(nil, []byte("plaintext"))
	var derived []cipher.AEAD
	for i := range 3000 {
		k := testKey(byte(i%3 + 1))
		bad := slices.Clone(d)
		binary.BigEndian.PutUint16(bad[offKey:], k.ID())
		binary.BigEndian.PutUint64(bad[offCounter:], uint64(i)<<40+1000)
		refuse(t, b, bad, FaultForged)
		if i == 2 {
			derived = slices.Clone(p.traffic)
		}
	}
	if !slices.Equal(p.traffic, derived) || slices.Contains(derived, nil) || p.Stats.Faults[FaultForged] != 3000 {
		t.Errorf("traffic keys %v, then %v; %d forgeries", derived, p.traffic, p.Stats.Faults[FaultForged])
	}
	open(t, b, d) // the forged counters did not move the window
}

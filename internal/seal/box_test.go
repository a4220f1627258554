package seal

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"syncd/internal/monotime"
)

// t0 is the time of tests in which time does not pass.
const t0 = monotime.Time(1_000_000)

// testKey returns a key that is the same in every run.
func testKey(n byte) Key {
	var k Key
	for i := range k.secret {
		k.secret[i] = n + byte(i)
	}
	return k
}

func newBox(tb testing.TB, session uint64, keys ...Key) *Box {
	tb.Helper()
	b, err := New(session, keys)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// open opens a datagram that has to be good.
func open(tb testing.TB, b *Box, datagram []byte) ([]byte, *Peer) {
	tb.Helper()
	plain, p, fault := b.Open(nil, datagram, t0)
	if fault != FaultNone {
		tb.Fatalf("Open: %v", fault)
	}
	return plain, p
}

// refuse opens a datagram that has to be dropped for one reason, and checks that it
// is counted.
func refuse(tb testing.TB, b *Box, datagram []byte, want Fault) {
	tb.Helper()
	before := b.Stats
	plain, p, fault := b.Open(nil, datagram, t0)
	if fault != want || plain != nil || p != nil {
		tb.Fatalf("Open: %x, %v, fault %v; want fault %v alone", plain, p, fault, want)
	}
	before.Faults[want]++
	if b.Stats != before {
		tb.Fatalf("Stats %+v, want %+v", b.Stats, before)
	}
}

// meet makes from a met session in to, in the way of a greeting.
func meet(tb testing.TB, to, from *Box) *Peer {
	tb.Helper()
	_, p := open(tb, to, from.Seal(nil, []byte("hello")))
	challenge := p.Challenge(t0)
	echo, p2 := open(tb, to, from.Seal(nil, challenge[:]))
	if p2 != p || p.Met() {
		tb.Fatalf("greeting: %p, then %p, met %v", p, p2, p.Met())
	}
	if !p.Answer(t0, [16]byte(echo)) || !p.Met() {
		tb.Fatal("an echo of the challenge does not make the session met")
	}
	return p
}

func TestSealOpen(t *testing.T) {
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(1))
	p := meet(t, b, a)
	for n := range 2000 {
		want := bytes.Repeat([]byte{byte(n)}, n)
		datagram := a.Seal([]byte("before"), want)
		if string(datagram[:6]) != "before" {
			t.Fatal("Seal does not append")
		}
		datagram = datagram[6:]
		if len(datagram) != n+Overhead {
			t.Fatalf("%d octets become %d", n, len(datagram))
		}
		if n >= 16 && bytes.Contains(datagram, want) {
			t.Fatal("the plaintext shows")
		}
		plain, q, fault := b.Open([]byte("before"), datagram, t0)
		if fault != FaultNone || q != p || string(plain) != "before"+string(want) {
			t.Fatalf("%d octets: %q, %v", n, plain, fault)
		}
	}
	if a.Sealed() != 2002 || b.Stats.Opened != 2002 || p.Stats.Opened != 2002 || b.Forgotten != 0 {
		t.Errorf("sealed %d, opened %d, of the peer %d", a.Sealed(), b.Stats.Opened, p.Stats.Opened)
	}
}

func TestInPlace(t *testing.T) {
	k := testKey(1)
	a, b := newBox(t, 1, k), newBox(t, 2, k)
	const text = "what is sealed in place"
	buf := make([]byte, HeaderSize, 200)
	buf = append(buf, text...)
	first := &buf[0]
	datagram := a.Seal(buf[:0], buf[HeaderSize:])
	if &datagram[0] != first {
		t.Error("Seal in place moved the datagram")
	}
	want, _ := straightSeal(k.secret[:], 1, 1, []byte(text))
	if !bytes.Equal(datagram, want) {
		t.Fatalf("%x, want %x", datagram, want)
	}
	plain, _, fault := b.Open(datagram[HeaderSize:HeaderSize], datagram, t0)
	if fault != FaultNone || string(plain) != text || &plain[0] != &datagram[HeaderSize] {
		t.Fatalf("Open in place: %q, %v", plain, fault)
	}
}

// A nonce repeated under a traffic key would lay open both plaintexts. Neither a
// reload nor a return to an older key repeats one.
func TestNoNonceRepeats(t *testing.T) {
	old, now := testKey(1), testKey(2)
	a := newBox(t, 1, old)
	seen := map[string]bool{} // key id, session, counter
	for i := range 300 {
		keys := [][]Key{{old}, {old, now}, {now, old}, {now}}[i%4]
		if err := a.SetKeys(keys); err != nil {
			t.Fatal(err)
		}
		for range i % 3 {
			header := string(a.Seal(nil, nil)[offKey:HeaderSize])
			if seen[header] {
				t.Fatalf("header %x repeats", header)
			}
			seen[header] = true
		}
	}
	if len(seen) != 300 {
		t.Fatalf("%d datagrams", len(seen))
	}
}

func TestCounterEnds(t *testing.T) {
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(1))
	meet(t, b, a)
	a.counter = math.MaxUint64 - 2
	for range 2 {
		open(t, b, a.Seal(nil, []byte("one of the last")))
	}
	if got := a.Seal([]byte("x"), []byte("one too many")); string(got) != "x" {
		t.Errorf("after the last counter Seal appends %x", got[1:])
	}
	if a.Sealed() != math.MaxUint64 {
		t.Errorf("counter %d", a.Sealed())
	}
}

func TestSetKeysErrors(t *testing.T) {
	same, other := keysWithOneID(t)
	many := make([]Key, maxKeys+1)
	for i := range many {
		many[i] = testKey(byte(i + 1))
	}
	tests := []struct {
		keys []Key
		want string
	}{
		{nil, "no keys"},
		{[]Key{testKey(1), {}}, "key 2 is empty"},
		{[]Key{testKey(1), testKey(2), testKey(1)}, "keys 1 and 3 are the same"},
		{[]Key{testKey(1), same, other}, "keys 2 and 3 have the same id"},
		{many, "17 keys, at most 16"},
	}
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(1))
	meet(t, b, a)
	for _, tt := range tests {
		if _, err := New(3, tt.keys); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New: %v, want %q", err, tt.want)
		}
		if err := b.SetKeys(tt.keys); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("SetKeys: %v, want %q", err, tt.want)
		}
		open(t, b, a.Seal(nil, nil)) // as before
		open(t, a, b.Seal(nil, nil))
	}
	if err := b.SetKeys(many[:maxKeys]); err != nil {
		t.Errorf("%d keys: %v", maxKeys, err)
	}
}

// keysWithOneID searches two keys with the same id.
func keysWithOneID(tb testing.TB) (a, b Key) {
	byID := map[uint16]Key{}
	for i := range 1 << 20 {
		k := testKey(1)
		copy(k.secret[:], fmt.Sprint(i))
		if other, ok := byID[k.ID()]; ok {
			return other, k
		}
		byID[k.ID()] = k
	}
	tb.Fatal("no two keys have the same id")
	return
}

func TestNewSessionsDiffer(t *testing.T) {
	seen := map[uint64]bool{}
	for range 1000 {
		s := NewSession()
		if seen[s] {
			t.Fatalf("%x came twice", s)
		}
		seen[s] = true
	}
}

// The two halves may run at the same time; the race detector watches.
func TestSealBesideOpen(t *testing.T) {
	a, b := newBox(t, 1, testKey(1)), newBox(t, 2, testKey(1))
	datagrams := make([][]byte, 2000)
	for i := range datagrams {
		datagrams[i] = b.Seal(nil, []byte("from b"))
	}
	var sealer sync.WaitGroup
	sealer.Go(func() {
		for range datagrams {
			a.Seal(nil, []byte("from a"))
		}
	})
	for _, d := range datagrams {
		_, p := open(t, a, d)
		p.Answer(t0, p.Challenge(t0))
	}
	sealer.Wait()
}

func TestFaultNames(t *testing.T) {
	seen := map[string]bool{}
	for f := range NumFaults {
		if s := f.String(); s == "" || seen[s] {
			t.Errorf("fault %d is %q", uint8(f), s)
		} else {
			seen[s] = true
		}
	}
	if s := NumFaults.String(); s != "fault(11)" {
		t.Error(s)
	}
}

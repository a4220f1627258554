package seal

import (
	"bytes"
	"testing"
	"time"
)

// FuzzOpen gives arbitrary datagrams to a box that knows two sessions, one of which
// is met. Only what was really sealed may be opened, once, and whatever comes
// does no harm to what is sealed afterwards.
func FuzzOpen(f *testing.F) {
	setup := func(tb testing.TB) (to *Box, from [3]*Box, sealed map[string]bool) {
		to = newBox(tb, 0, testKey(1), testKey(2))
		from = [3]*Box{newBox(tb, 1, testKey(1)), newBox(tb, 2, testKey(2)), newBox(tb, 3, testKey(1))}
		meet(tb, to, from[0])
		open(tb, to, from[1].Seal(nil, nil))
		sealed = map[string]bool{}
		for _, b := range from {
			for _, plain := range []string{"", "a", "a longer plaintext of more than one block"} {
				sealed[string(b.Seal(nil, []byte(plain)))] = true
			}
		}
		return to, from, sealed
	}
	_, _, seeds := setup(f)
	for d := range seeds {
		f.Add([]byte(d), int64(0))
		f.Add([]byte(d[:len(d)-1]), int64(1))
		f.Add(append([]byte(d), 0), int64(-1))
	}
	f.Add([]byte("SYNC"), int64(1)<<62)
	f.Add(bytes.Repeat([]byte{0}, Overhead), int64(-1)<<62)
	f.Fuzz(func(t *testing.T, datagram []byte, later int64) {
		to, from, sealed := setup(t)
		genuine := sealed[string(datagram)]
		original := bytes.Clone(datagram)
		now := t0.Add(time.Duration(later))
		plain, p, fault := to.Open(nil, datagram, now)
		if !bytes.Equal(datagram, original) {
			t.Fatal("Open changed the datagram")
		}
		if (fault == FaultNone) != genuine || (p != nil) != genuine || genuine && len(plain) != len(datagram)-Overhead {
			t.Fatalf("genuine %v: %x, %v, %v", genuine, plain, p, fault)
		}
		if genuine {
			refuse(t, to, datagram, FaultReplayed)
		}
		for i, b := range from[:2] {
			if _, p := open(t, to, b.Seal(nil, nil)); p.Met() != (i == 0) {
				t.Fatalf("session %d: met %v", p.Session(), p.Met())
			}
		}
	})
}

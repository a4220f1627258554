package ftfw

import (
	"math/rand/v2"
	"testing"

	"syncd/internal/wire"
)

// Whatever range a peer names, what is left of it are the numbers of the resend
// queue that are in it: never others, and never so many that the loop stands still.
func TestClip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		m := &Machine{base: wire.Seq(r.Uint32())}
		m.next = m.base + wire.Seq(r.IntN(20))
		near := func() wire.Seq { return m.base + wire.Seq(r.IntN(60)-20) }
		from, to := near(), near()
		switch r.IntN(4) {
		case 0:
			from = wire.Seq(r.Uint32())
		case 1:
			to = wire.Seq(r.Uint32())
		case 2:
			from, to = wire.Seq(r.Uint32()), wire.Seq(r.Uint32())
		}
		if to.Before(from) {
			continue // refused with the header
		}
		first, n := m.clip(from, to)
		got := map[wire.Seq]bool{}
		if n > 20 {
			t.Fatalf("%d numbers left of a queue of %d", n, m.next-m.base)
		}
		for i := range n {
			got[first+wire.Seq(i)] = true
		}
		for s := m.base; s != m.next; s++ {
			if in := uint32(s-from) <= uint32(to-from); in != got[s] {
				t.Fatalf("[%d, %d] of [%d, %d): number %d is left: %v, want %v", from, to, m.base, m.next, s, got[s], in)
			}
			delete(got, s)
		}
		if len(got) > 0 {
			t.Fatalf("[%d, %d] of [%d, %d): %v is not of the queue", from, to, m.base, m.next, got)
		}
	}
}

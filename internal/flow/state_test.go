package flow

import (
	"math/rand/v2"
	"testing"
)

// TestState: a state is what it was made of, without what cannot be, and no other.
func TestState(t *testing.T) {
	for bit, has := range map[uint32]Attrs{
		KnowsTimeout: HasTimeout, KnowsTCP: HasTCP, KnowsTCPFlags: HasTCPFlags, KnowsTCPWScale: HasTCPWScale, KnowsSCTP: HasSCTP,
	} {
		if got := (State{Word: bit}).Has(); got != HasStatus|has {
			t.Errorf("%#x has %#x, want %#x", bit, got, HasStatus|has)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		f := Flow{Has: Attrs(r.Uint32()) &^ StateAttrs, Mark: 5}
		f.Orig.Proto = []uint8{TCP, SCTP, UDP}[r.IntN(3)]
		wild := State{r.Uint32(), r.Uint32(), r.Uint32()}
		if r.IntN(2) == 0 { // all that TCP can have
			wild.Word = 0xf<<24 | r.Uint32N(12)<<16 | r.Uint32()&0x7777
		}
		if r.IntN(8) == 0 {
			wild.Word |= 1 << r.IntN(16)
		}
		s := wild.Of(f.Orig.Proto)
		before := f
		if f.SetState(s); f.State() != s || s.Of(f.Orig.Proto) != s {
			t.Fatalf("%+v of %d is %+v, and then %+v", wild, f.Orig.Proto, s, f.State())
		}
		known := f.Has & StateAttrs
		switch tcp := known & (HasTCP | HasTCPFlags | HasTCPWScale); {
		case f.Has&^StateAttrs != before.Has || f.Mark != 5,
			known&HasStatus == 0 || f.Status != wild.Status,
			f.Has&HasTimeout == 0 != (wild.Word&KnowsTimeout == 0) || f.Has&HasTimeout == 0 && f.Timeout != 0,
			tcp != 0 && f.Orig.Proto != TCP || known&HasSCTP != 0 && f.Orig.Proto != SCTP,
			f.TCPState > TCPSynSent2 || f.SCTPState > SCTPHeartbeatAcked,
			f.Has&HasTCP == 0 && f.TCPState != 0 || f.Has&HasSCTP == 0 && f.SCTPState != 0,
			f.Has&HasTCPFlags == 0 && f.TCPFlags != [2]uint8{} || (f.TCPFlags[0]|f.TCPFlags[1])&^TCPFlagsReplicated != 0,
			f.Has&HasTCPWScale == 0 && f.TCPWScale != [2]uint8{} || max(f.TCPWScale[0], f.TCPWScale[1]) > 14:
			t.Fatalf("%+v of %d became %+v", wild, f.Orig.Proto, f)
		}
	}
}

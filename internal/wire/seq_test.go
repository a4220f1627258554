package wire_test

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"syncd/internal/wire"
)

// TestSeq checks the comparison against its definition in RFC 1982, section 3.2,
// worked out in numbers that do not wrap.
func TestSeq(t *testing.T) {
	half := big.NewInt(1 << 31)
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.Uint32().Draw(t, "a")
		b := rapid.OneOf(
			rapid.Uint32(),
			rapid.Map(rapid.Uint32Range(0, 5), func(d uint32) uint32 { return a + d }),
			rapid.Map(rapid.Uint32Range(0, 5), func(d uint32) uint32 { return a - d }),
			rapid.Map(rapid.Uint32Range(0, 3), func(d uint32) uint32 { return a + 1<<31 - 1 + d }),
		).Draw(t, "b")

		d := new(big.Int).Sub(big.NewInt(int64(b)), big.NewInt(int64(a)))
		var want bool
		switch d.Sign() {
		case 1: // a < b in the plain sense
			want = d.CmpAbs(half) <= 0 // the distance 2^31 is undefined in the RFC, and "before" here
		case -1:
			want = d.CmpAbs(half) >= 0
		}
		if got := wire.Seq(a).Before(wire.Seq(b)); got != want {
			t.Fatalf("%d before %d: %v, want %v", a, b, got, want)
		}
		if wire.Seq(a).Before(wire.Seq(a)) {
			t.Fatalf("%d is before itself", a)
		}
		if got := wire.Seq(b) + wire.Seq(wire.Seq(a).Sub(wire.Seq(b))); got != wire.Seq(a) {
			t.Fatalf("%d + (%d - %d) = %d", b, a, b, got)
		}
	})
}

func TestSeqWrap(t *testing.T) {
	const last wire.Seq = 1<<32 - 1
	if !last.Before(0) || wire.Seq(0).Before(last) {
		t.Error("the last number is not before zero")
	}
	if got := wire.Seq(2).Sub(last); got != 3 {
		t.Errorf("2 - (2^32 - 1) = %d, want 3", got)
	}
}

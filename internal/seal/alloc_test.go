package seal

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestNoAllocations(t *testing.T) {
	a, b, p := pair(t)
	if err := b.SetKeys([]Key{testKey(2), testKey(1)}); err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, 1400)
	datagram := make([]byte, 0, len(plain)+Overhead)
	dst := make([]byte, 0, len(plain))
	far := a.Seal(nil, plain)
	for range windowSize {
		open(t, b, a.Seal(nil, nil))
	}
	seen := a.Seal(nil, plain)
	open(t, b, seen)
	changed := func(offset int, by byte) []byte {
		d := a.Seal(nil, plain)
		d[offset] += by
		return d
	}
	rng := rand.New(rand.NewPCG(5, 6))
	strange := slices.Clone(seen)
	for range deriveBurst + 1 { // until the bucket is empty
		b.Open(dst, stray(rng, strange), t0)
	}
	p.Challenge(t0)

	if n := testing.AllocsPerRun(1000, func() { datagram = a.Seal(datagram[:0], plain) }); n != 0 {
		t.Errorf("Seal: %v allocations", n)
	}
	for _, tt := range []struct {
		want     Fault
		datagram func() []byte
	}{
		{FaultNone, func() []byte { return a.Seal(datagram[:0], plain) }},
		{FaultShort, constant(seen[:Overhead-1])},
		{FaultMagic, constant(changed(0, 1))},
		{FaultVersion, constant(changed(4, 1))},
		{FaultSuite, constant(changed(5, 1))},
		{FaultKey, constant(changed(6, 1))},
		{FaultReflected, constant(b.Seal(nil, plain))},
		{FaultOld, constant(far)},
		{FaultReplayed, constant(seen)},
		{FaultFlood, func() []byte {
			binary.BigEndian.PutUint64(strange[offSession:], rng.Uint64())
			return strange
		}},
		{FaultForged, constant(changed(200, 1))},
	} {
		n := testing.AllocsPerRun(500, func() {
			if _, _, fault := b.Open(dst, tt.datagram(), t0); fault != tt.want {
				t.Fatalf("%v, want %v", fault, tt.want)
			}
		})
		if n != 0 {
			t.Errorf("Open, %v: %v allocations", tt.want, n)
		}
	}
	echo := [16]byte{1}
	if n := testing.AllocsPerRun(500, func() { p.Answer(t0, echo) }); n != 0 {
		t.Errorf("Answer: %v allocations", n)
	}
}

func constant(d []byte) func() []byte { return func() []byte { return d } }

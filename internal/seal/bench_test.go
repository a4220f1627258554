package seal

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// plainSize is what a datagram on a link with an MTU of 1500 octets has room for,
// roughly.
const plainSize = 1400

func BenchmarkSeal(b *testing.B) {
	a, _, _ := pair(b)
	buf := make([]byte, HeaderSize+plainSize, plainSize+Overhead)
	b.SetBytes(plainSize)
	b.ReportAllocs()
	for b.Loop() {
		a.Seal(buf[:0], buf[HeaderSize:HeaderSize+plainSize])
	}
}

// BenchmarkOpen opens datagrams from a list, which is sealed anew when it is used
// up.
func BenchmarkOpen(b *testing.B) {
	from, to, _ := pair(b)
	plain := make([]byte, plainSize)
	dst := make([]byte, 0, plainSize)
	var list [256][]byte
	next := len(list)
	b.SetBytes(plainSize)
	b.ReportAllocs()
	for b.Loop() {
		if next == len(list) {
			b.StopTimer()
			for i := range list {
				list[i] = from.Seal(list[i][:0], plain)
			}
			next = 0
			b.StartTimer()
		}
		if _, _, fault := to.Open(dst, list[next], t0); fault != FaultNone {
			b.Fatal(fault)
		}
		next++
	}
}

// BenchmarkReject is what a datagram costs that is no good.
func BenchmarkReject(b *testing.B) {
	from, to, _ := pair(b)
	seen := from.Seal(nil, make([]byte, plainSize))
	open(b, to, seen)
	forged := from.Seal(nil, make([]byte, plainSize))
	forged[500]++
	strange := stray(rand.New(rand.NewPCG(1, 1)), seen)
	for range deriveBurst {
		to.Open(nil, strange, t0)
	}
	for _, bb := range []struct {
		want     Fault
		datagram []byte
	}{
		{FaultMagic, bytes.Repeat([]byte("garbage"), 200)},
		{FaultReplayed, seen},
		{FaultFlood, strange},
		{FaultForged, forged},
	} {
		b.Run(bb.want.String(), func(b *testing.B) {
			dst := make([]byte, 0, plainSize)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, fault := to.Open(dst, bb.datagram, t0); fault != bb.want {
					b.Fatal(fault)
				}
			}
		})
	}
	// What the limit on unknown sessions bounds.
	now := t0 // goes on when the benchmark runs again
	b.Run("unknown", func(b *testing.B) {
		dst := make([]byte, 0, plainSize)
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(deriveInterval)
			if _, _, fault := to.Open(dst, strange, now); fault != FaultForged {
				b.Fatal(fault)
			}
		}
	})
}

func BenchmarkWindow(b *testing.B) {
	var w window
	c := uint64(1)
	for b.Loop() {
		if w.check(c) == FaultNone {
			w.mark(c)
		}
		c++
	}
}

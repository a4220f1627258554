package cache

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"syncd/internal/flow"
)

// checkIndex verifies the invariants of the whole index.
func checkIndex(x *index, hashOf func(uint32) uint64) (entries int, err error) {
	if len(x.dir) != 1<<x.depth {
		return 0, fmt.Errorf("directory of %d with depth %d", len(x.dir), x.depth)
	}
	segments := 0
	for d := 0; d < len(x.dir); {
		s := x.dir[d]
		segments++
		if s.depth > x.depth {
			return 0, fmt.Errorf("segment of depth %d under %d", s.depth, x.depth)
		}
		for range 1 << (x.depth - s.depth) {
			if x.dir[d] != s {
				return 0, fmt.Errorf("directory entry %d breaks the run of its segment", d)
			}
			d++
		}
		var passed [segmentBuckets]uint16
		n := 0
		for i := range s.buckets {
			b := &s.buckets[i]
			for j, h := range b.slots {
				t := uint8(b.tagsLo >> (8 * j))
				if j >= 8 {
					t = uint8(b.tagsHi >> (8 * (j - 8)))
				}
				if h == 0 {
					if t != 0 {
						return 0, fmt.Errorf("free slot with tag %d", t)
					}
					continue
				}
				n++
				hash := hashOf(h)
				if x.segment(hash) != s || tag(hash) != t {
					return 0, fmt.Errorf("entry %d is in the wrong place", h)
				}
				for k := home(hash); k != i; k = next(k) {
					passed[k]++
				}
			}
		}
		for i := range s.buckets {
			if s.buckets[i].passed != passed[i] {
				return 0, fmt.Errorf("bucket %d: passed %d, want %d", i, s.buckets[i].passed, passed[i])
			}
		}
		if int(s.n) != n {
			return 0, fmt.Errorf("segment counts %d of %d", s.n, n)
		}
		entries += n
	}
	if segments != x.segments {
		return 0, fmt.Errorf("%d segments, counted %d", segments, x.segments)
	}
	return entries, nil
}

// churn inserts and removes at random, with hashes from draw, and checks the index
// against a map.
func churn(t testing.TB, r *rand.Rand, ops, limit int, draw func() uint64) {
	hashes := map[uint32]uint64{}
	hashOf := func(h uint32) uint64 { return hashes[h] }
	x := newIndex()
	for op := range ops {
		h := uint32(r.IntN(2*limit) + 1)
		if hash, ok := hashes[h]; ok {
			if !x.remove(hash, h) {
				t.Fatalf("op %d: entry %d is lost", op, h)
			}
			if x.remove(hash, h) {
				t.Fatalf("op %d: entry %d is there twice", op, h)
			}
			delete(hashes, h)
			continue
		}
		if len(hashes) == limit {
			continue
		}
		hash := draw()
		if !x.reserve(hash, hashOf) {
			t.Fatalf("op %d: no room for one of %d entries", op, len(hashes))
		}
		x.insert(hash, h)
		hashes[h] = hash
	}
	n, err := checkIndex(&x, hashOf)
	if err != nil || n != len(hashes) {
		t.Fatalf("%d entries, want %d; %v", n, len(hashes), err)
	}
}

// TestIndexCollisions: hashes that collide in every part make long probes and full
// buckets.
func TestIndexCollisions(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for hashes := 1; hashes < 300; hashes = hashes*3/2 + 1 {
		pool := make([]uint64, hashes)
		for i := range pool {
			pool[i] = r.Uint64() & r.Uint64() & r.Uint64()
		}
		// One segment holds them all: splitting does not part equal hashes.
		churn(t, r, 5000, splitAt, func() uint64 { return pool[r.IntN(hashes)] })
	}
}

// TestIndexLopsided: hashes far from even make segments of very different depth.
func TestIndexLopsided(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	churn(t, r, 50_000, 8000, func() uint64 { return r.Uint64() & r.Uint64() })
}

// TestIndexOneHash: a hash that gives every entry the same value fills one
// segment and then refuses.
func TestIndexOneHash(t *testing.T) {
	const hash = 0xfedcba9876543210
	hashOf := func(uint32) uint64 { return hash }
	x := newIndex()
	x.depth, x.dir = 0, x.dir[:1]
	x.dir[0].depth = maxDepth // as if it had been split that often
	for h := uint32(1); h <= segmentSlots; h++ {
		if !x.reserve(hash, hashOf) {
			t.Fatalf("no room for entry %d", h)
		}
		x.insert(hash, h)
	}
	if x.reserve(hash, hashOf) {
		t.Fatal("room in a full segment")
	}
	for h := uint32(1); h <= segmentSlots; h++ {
		if !x.remove(hash, h) {
			t.Fatalf("entry %d is lost", h)
		}
	}
	if x.remove(hash, 1) {
		t.Fatal("entry 1 is there after its removal")
	}
}

// TestManyFlows is TestAgainstMaps for a size at which segments split.
func TestManyFlows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	c := New(0)
	want := map[flow.Tuple]Handle{}
	for op := range 300_000 {
		k := tupleOf(r.IntN(40_000))
		h := c.Lookup(&k)
		if h != want[k] {
			t.Fatalf("op %d: lookup = %d, want %d", op, h, want[k])
		}
		// Grow at first, then shrink, so that segments fill up and empty.
		if grow := op < 150_000; h != 0 && (!grow || op%4 == 0) {
			c.Remove(h)
			delete(want, k)
		} else if h == 0 && (grow || op%4 == 0) {
			h, err := c.Insert(&flow.Flow{Orig: k}, 1)
			if err != nil {
				t.Fatal(err)
			}
			want[k] = h
		}
	}
	n, err := checkIndex(&c.index, c.hashOf)
	if err != nil || n != len(want) {
		t.Fatalf("%d entries, want %d; %v", n, len(want), err)
	}
}

// TestGrowthIsIncremental: whatever the size, one insert moves the entries of one
// segment at most and the directory stays small, so that none takes long.
func TestGrowthIsIncremental(t *testing.T) {
	n := 4_000_000
	if testing.Short() || raceEnabled {
		n = 200_000
	}
	r := rand.New(rand.NewPCG(11, 12))
	hashes := make([]uint64, n+1)
	moved, most := 0, 0
	hashOf := func(h uint32) uint64 { moved++; return hashes[h] }
	x := newIndex()
	for h := 1; h <= n; h++ {
		hashes[h] = r.Uint64()
		moved = 0
		if !x.reserve(hashes[h], hashOf) {
			t.Fatalf("no room for entry %d", h)
		}
		x.insert(hashes[h], uint32(h))
		most = max(most, moved)
	}
	if most > splitAt {
		t.Errorf("one insert moved %d entries", most)
	}
	if perEntry := float64(x.bytes()) / float64(n); len(x.dir) > n/128 || perEntry > 14 {
		t.Errorf("directory of %d for %d entries, %.1f octets each", len(x.dir), n, perEntry)
	}
}

func TestMatchIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Octets that differ by one bit are what inexact tricks mistake.
		word := rapid.Uint64().Draw(t, "word")
		if rapid.Bool().Draw(t, "few values") {
			word &= 0x0101010101010101
		}
		x := rapid.Byte().Draw(t, "tag")
		if rapid.Bool().Draw(t, "present") {
			x = uint8(word >> 24)
		}
		var want uint64
		for i := range 8 {
			if uint8(word>>(8*i)) == x {
				want |= 0x80 << (8 * i)
			}
		}
		if got := match(word, x); got != want {
			t.Fatalf("match(%#x, %#x) = %#x, want %#x", word, x, got, want)
		}
	})
}

// sequences are tuples as scanners, floods and NAT gateways make them.
var sequences = map[string]func(i int) flow.Tuple{
	"source port": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.SrcPort, t.Zone = uint16(i), uint16(i>>16)
		return t
	},
	"both ports": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.SrcPort, t.DstPort = uint16(i%256), uint16(i>>8)
		return t
	},
	"equal ports": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.SrcPort, t.DstPort, t.Src[3] = uint16(i), uint16(i), byte(i>>16)
		return t
	},
	"source address": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.Src[3], t.Src[2], t.Src[1] = byte(i), byte(i>>8), byte(i>>16)
		return t
	},
	"both addresses": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.Src[3], t.Dst[3], t.Dst[2] = byte(i), byte(i>>8), byte(i>>16)
		return t
	},
	"address and port": func(i int) flow.Tuple {
		t := tupleOf(0)
		t.Dst[3], t.DstPort = byte(i%1021), uint16(i/1021)<<8
		t.Dst[2] = byte(i % 1021 >> 8)
		return t
	},
	"IPv6 host": func(i int) flow.Tuple {
		t := tupleOf(4)
		t.Src[15], t.Src[14], t.Src[13] = byte(i), byte(i>>8), byte(i>>16)
		return t
	},
	"IPv6 network": func(i int) flow.Tuple {
		t := tupleOf(4)
		t.Dst[4], t.Dst[5], t.Dst[6] = byte(i), byte(i>>8), byte(i>>16)
		return t
	},
	"IPv6 both": func(i int) flow.Tuple {
		t := tupleOf(4)
		t.Src, t.Dst = t.Dst, t.Src
		t.Src[15], t.Dst[15], t.Src[7] = byte(i), byte(i>>8), byte(i>>16)
		return t
	},
	"IPv6 swapped": func(i int) flow.Tuple {
		t := tupleOf(4)
		t.Src[15], t.Src[14] = byte(i), byte(i>>8)
		if i>>16 != 0 {
			t.Src, t.Dst = t.Dst, t.Src
		}
		return t
	},
}

// deviation is chi-square of counts against an even distribution, in standard
// deviations.
func deviation(counts []int) float64 {
	n := 0
	for _, c := range counts {
		n += c
	}
	mean := float64(n) / float64(len(counts))
	chi := 0.0
	for _, c := range counts {
		d := float64(c) - mean
		chi += d * d / mean
	}
	free := float64(len(counts) - 1)
	return (chi - free) / math.Sqrt(2*free)
}

// TestHashDistribution: what the index uses of a hash is even for tuples that
// differ little. More than 8 standard deviations do not happen by chance.
func TestHashDistribution(t *testing.T) {
	for name, tuple := range sequences {
		t.Run(name, func(t *testing.T) {
			h := newHasher()
			const n = 1 << 17
			sums := make(map[uint64]bool, n)
			parts := map[string][]int{
				"directory": make([]int, 1024),
				"home":      make([]int, segmentBuckets),
				"tag":       make([]int, 128), // 0 and 1 share a tag
				"together":  make([]int, 8192),
			}
			for i := range n {
				k := tuple(i)
				p := makeKey(&k)
				sum := h.sum(&p.addr, p.word)
				sums[sum] = true
				parts["directory"][sum>>54]++
				parts["home"][home(sum)]++
				parts["tag"][tag(sum)>>1]++
				parts["together"][(sum>>59)<<8|uint64(uint8(sum))]++
			}
			if len(sums) != n {
				t.Errorf("%d of %d tuples have a sum of their own", len(sums), n)
			}
			for part, counts := range parts {
				if d := deviation(counts); d > 8 {
					t.Errorf("%s: %.1f standard deviations from even", part, d)
				}
			}
		})
	}
}

// TestHashAvalanche: every bit of a tuple changes every bit of the sum in about
// half of all cases.
func TestHashAvalanche(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const rounds = 4000
	for _, base := range []int{0, 4} {
		size := int(unsafe.Sizeof(flow.Tuple{}))
		for bit := range 8 * size {
			h := newHasher()
			var flips [64]int
			ignored := false
			for range rounds {
				k := tupleOf(base + 8*r.IntN(1<<20))
				before := makeKey(&k)
				octets := (*[unsafe.Sizeof(flow.Tuple{})]byte)(unsafe.Pointer(&k))
				family := k.Family
				octets[bit/8] ^= 1 << (bit % 8)
				after := makeKey(&k)
				// IPv4 has unused octets, and the family decides the form.
				if ignored = before == after || k.Family != family; ignored {
					break
				}
				d := h.sum(&before.addr, before.word) ^ h.sum(&after.addr, after.word)
				for ; d != 0; d &= d - 1 {
					flips[bits.TrailingZeros64(d)]++
				}
			}
			for i, n := range flips {
				if !ignored && (n < rounds*4/10 || n > rounds*6/10) {
					t.Errorf("input bit %d flips output bit %d in %d of %d", bit, i, n, rounds)
				}
			}
		}
	}
}

// TestHashIsKeyed: two caches do not agree on any sum.
func TestHashIsKeyed(t *testing.T) {
	a, b := newHasher(), newHasher()
	for i := range 1000 {
		tuple := tupleOf(i)
		k := makeKey(&tuple)
		if a.sum(&k.addr, k.word) == b.sum(&k.addr, k.word) {
			t.Fatalf("tuple %d has the same sum in two instances", i)
		}
	}
}

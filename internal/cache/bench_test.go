package cache

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"syncd/internal/flow"
)

const million = 1_000_000

// benchTuples are the tuples of a million flows in random order. A benchmark goes
// through them in order, so that only entries are met at random, and sets them in
// a flow that is in the processor's cache, as the batches of callers are.
var benchTuples = sync.OnceValue(func() []tuples {
	all := make([]tuples, million)
	for i, j := range rand.New(rand.NewPCG(7, 8)).Perm(million) {
		f := flowOf(j)
		all[i] = tuples{f.Orig, f.Reply}
	}
	return all
})

type tuples struct{ orig, reply flow.Tuple }

// benchCache holds these flows. Benchmarks leave it as they found it.
var benchCache = sync.OnceValue(func() *Cache {
	c := New(0)
	f := flowOf(0)
	for _, t := range benchTuples() {
		f.Orig, f.Reply = t.orig, t.reply
		if _, err := c.Insert(&f, 1); err != nil {
			panic(err)
		}
	}
	// Handles must not follow the order of the tuples.
	for i, j := range rand.New(rand.NewPCG(9, 10)).Perm(million) {
		a, b := c.records.at(uint32(i+1)), c.records.at(uint32(j+1))
		*a, *b = *b, *a
	}
	c.index = newIndex()
	for h := uint32(1); h <= million; h++ {
		hash := c.hashOf(h)
		c.index.reserve(hash, c.hashOf)
		c.index.insert(hash, h)
	}
	return c
})

func BenchmarkLookup(b *testing.B) {
	c, all := benchCache(), benchTuples()
	i := 0
	for b.Loop() {
		if c.Lookup(&all[i].orig) == 0 {
			b.Fatal("not found")
		}
		if i++; i == million {
			i = 0
		}
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	c, all := benchCache(), benchTuples()
	i := 0
	for b.Loop() {
		k := all[i].orig
		k.Zone = 9
		if c.Lookup(&k) != 0 {
			b.Fatal("found")
		}
		if i++; i == million {
			i = 0
		}
	}
}

// BenchmarkLookupWarm is what the processor has to do when all is in its cache.
func BenchmarkLookupWarm(b *testing.B) {
	const n = 1000
	c, all := fill(b, n), make([]flow.Tuple, n)
	for i := range all {
		all[i] = tupleOf(i)
	}
	i := 0
	for b.Loop() {
		if c.Lookup(&all[i]) == 0 {
			b.Fatal("not found")
		}
		if i++; i == n {
			i = 0
		}
	}
}

// BenchmarkRandomRead reads words of 96 MB where each says which is next: the
// measure for all others here, since a lookup has to wait for memory twice.
func BenchmarkRandomRead(b *testing.B) {
	words := make([]uint32, 24*million)
	for i := range words {
		words[i] = uint32(i)
	}
	rand.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
	at := uint32(0)
	i := uint32(0)
	for b.Loop() {
		i++
		at = words[(at+i)%uint32(len(words))]
	}
	runtime.KeepAlive(at)
}

// BenchmarkInsert inserts where a flow was removed before: the cost without
// growth. The removal, with its lookup, is timed by BenchmarkRemove.
func BenchmarkInsert(b *testing.B) { benchRemoveInsert(b, false) }

func BenchmarkRemove(b *testing.B) { benchRemoveInsert(b, true) }

func benchRemoveInsert(b *testing.B, timeRemove bool) {
	c, all := benchCache(), benchTuples()
	const batch = 1 << 14
	f := flowOf(0)
	b.ReportAllocs()
	b.ResetTimer()
	b.StopTimer()
	for n := 0; n < b.N; n += batch {
		first := n % (million - batch)
		part := all[first : first+min(batch, b.N-n)]
		if timeRemove {
			b.StartTimer()
		}
		for i := range part {
			c.Remove(c.Lookup(&part[i].orig))
		}
		if timeRemove {
			b.StopTimer()
		} else {
			b.StartTimer()
		}
		for i := range part {
			f.Orig, f.Reply = part[i].orig, part[i].reply
			if _, err := c.Insert(&f, 1); err != nil {
				b.Fatal(err)
			}
		}
		if !timeRemove {
			b.StopTimer()
		}
	}
}

// BenchmarkMerge is one event of a known flow: lookup and merge.
func BenchmarkMerge(b *testing.B) {
	c, all := benchCache(), benchTuples()
	f := flowOf(0)
	i := 0
	for b.Loop() {
		f.Orig, f.Reply = all[i].orig, all[i].reply
		c.Merge(c.Lookup(&f.Orig), &f, 2)
		if i++; i == million {
			i = 0
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	c := benchCache()
	var f flow.Flow
	h := uint32(0)
	for b.Loop() {
		h = (h + 618_033) % million // visits all, far apart
		c.Load(Handle(h+1), &f)
	}
}

// BenchmarkWalk reports the cost of one slot.
func BenchmarkWalk(b *testing.B) {
	c := benchCache()
	b.ResetTimer()
	from := Handle(0)
	for n := 0; n < b.N; {
		from = c.Walk(from, min(1000, b.N-n), func(Handle) bool { n++; return true })
	}
}

// BenchmarkGrow inserts a million flows into an empty cache and reports the mean
// and the longest time of one insert. What the scheduler and the collector take
// away in between counts too.
func BenchmarkGrow(b *testing.B) {
	all := benchTuples()
	f := flowOf(0)
	took := make([]time.Duration, million)
	var longest time.Duration
	for range b.N {
		c := New(0)
		for i := range all {
			f.Orig, f.Reply = all[i].orig, all[i].reply
			start := time.Now()
			if _, err := c.Insert(&f, 1); err != nil {
				b.Fatal(err)
			}
			took[i] = time.Since(start)
		}
		longest = max(longest, slices.Max(took))
	}
	slices.Sort(took)
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/million, "ns/insert")
	b.ReportMetric(float64(longest)/1e3, "longest-µs")
	b.ReportMetric(float64(took[million/10000*9999])/1e3, "p99.99-µs")
}

// BenchmarkCollect is a garbage collection with nothing, or nothing but a million
// flows, in memory, and how long the world stood still in it.
func BenchmarkCollect(b *testing.B) {
	for _, n := range []int{0, million} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			c := fill(b, n)
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for b.Loop() {
				runtime.GC()
			}
			runtime.ReadMemStats(&after)
			cycles := float64(after.NumGC - before.NumGC)
			b.ReportMetric(float64(after.PauseTotalNs-before.PauseTotalNs)/cycles/1e3, "pause-µs")
			runtime.KeepAlive(c)
		})
	}
}

// BenchmarkLookupAnnounced is BenchmarkLookup in batches that are announced.
func BenchmarkLookupAnnounced(b *testing.B) {
	c, all := benchCache(), benchTuples()
	i := 0
	for n := 0; b.Loop(); n++ {
		if n%WarmBatch == 0 {
			for j := range WarmBatch {
				c.Announce(&all[(i+j)%million].orig)
			}
			c.Warm()
		}
		if c.Lookup(&all[i].orig) == 0 {
			b.Fatal("not found")
		}
		if i++; i == million {
			i = 0
		}
	}
}

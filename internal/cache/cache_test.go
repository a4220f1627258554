package cache

import (
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/flow"
)

// tupleOf numbers tuples as a firewall sees them: one in five is IPv6, and one in
// four is UDP, the rest TCP.
func tupleOf(i int) flow.Tuple {
	t := flow.Tuple{
		Family:  flow.IPv4,
		Proto:   flow.TCP,
		SrcPort: uint16(1024 + i*7919%60000),
		DstPort: 443,
	}
	if i%4 == 3 {
		t.Proto, t.DstPort = flow.UDP, 53
	}
	if i%5 == 4 {
		t.Family = flow.IPv6
		copy(t.Src[:], []byte{0x20, 0x01, 0x0d, 0xb8, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
		copy(t.Dst[:], []byte{0x20, 0x01, 0x0d, 0xb8, 7: 1, 15: byte(i % 97)})
		return t
	}
	copy(t.Src[:], []byte{198, 18, byte(i >> 8), byte(i)})
	copy(t.Dst[:], []byte{203, byte(i >> 24), byte(i >> 16), byte(i % 97)})
	return t
}

// flowOf numbers typical flows: IPv4 behind source translation, IPv6 without.
func flowOf(i int) (f flow.Flow) {
	f.Orig = tupleOf(i)
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasMark | flow.HasID
	f.Status = flow.StatusConfirmed | flow.StatusSeenReply
	f.Timeout, f.Mark, f.ID = 120, uint32(i%3), uint32(i)*2654435761
	if f.Orig.Proto == flow.TCP {
		f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
		f.TCPState, f.TCPWScale = flow.TCPEstablished, [2]uint8{7, 9}
		f.Status |= flow.StatusAssured
	}
	if f.Orig.Family == flow.IPv4 {
		copy(f.Reply.Dst[:], []byte{192, 0, 2, 1})
		f.Reply.DstPort ^= 0x5555
		f.Status |= flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone
	}
	return f
}

// fill inserts the flows 0 to n-1; the handle of flow i is i+1.
func fill(tb testing.TB, n int) *Cache {
	tb.Helper()
	c := New(0)
	for i := range n {
		f := flowOf(i)
		if h, err := c.Insert(&f, 1); err != nil || h != Handle(i+1) {
			tb.Fatalf("insert %d: %d, %v", i, h, err)
		}
	}
	return c
}

func TestRecordSizes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"record", unsafe.Sizeof(record{}), 96},
		{"bucket", unsafe.Sizeof(bucket{}), 64},
		{"segment", unsafe.Sizeof(segment{}), 4096},
		{"offset of buckets", unsafe.Offsetof(segment{}.buckets), 64},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %d octets, want %d", tt.name, tt.got, tt.want)
		}
	}
	if n := unsafe.Sizeof(extra{}); n > 216 {
		t.Errorf("extra: %d octets", n)
	}
}

func hasPointer(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return hasPointer(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if hasPointer(t.Field(i).Type) {
				return true
			}
		}
		return false
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint, reflect.Float32, reflect.Float64:
		return false
	}
	return true
}

func TestRecordsHoldNoPointer(t *testing.T) {
	for _, v := range []any{record{}, extra{}, expectRow{}, segment{}} {
		if typ := reflect.TypeOf(v); hasPointer(typ) {
			t.Errorf("%v holds a pointer", typ)
		}
	}
	if !hasPointer(reflect.TypeFor[index]()) {
		t.Error("hasPointer finds none in index")
	}
}

// TestFidelity: what goes in comes out, whatever the values.
func TestFidelity(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	c := New(0)
	for i := range 5000 {
		// Random octets everywhere, then only what Has names.
		var src, f flow.Flow
		octets := (*[unsafe.Sizeof(flow.Flow{})]byte)(unsafe.Pointer(&src))
		for j := range octets {
			octets[j] = byte(r.Uint32())
		}
		f.Orig, f.Reply = src.Orig, src.Reply
		for _, tuple := range []*flow.Tuple{&f.Orig, &f.Reply} {
			if r.IntN(2) == 0 || tuple.Family == flow.IPv4 {
				tuple.Family = flow.IPv4
				clear(tuple.Src[4:])
				clear(tuple.Dst[4:])
			}
		}
		if r.IntN(2) == 0 {
			f.Reply, _ = f.Orig.Inverse()
		}
		f.Has = src.Has & (flow.HasEventTime<<1 - 1)
		for _, a := range attrs {
			if f.Has&a.bit != 0 {
				a.copy(&f, &src)
			}
		}
		h, err := c.Insert(&f, Time(i))
		if err != nil {
			t.Fatal(err)
		}
		got := flow.Flow{Use: 1, Stop: 1, Secctx: [64]byte{1}} // Load must wipe this
		c.Load(h, &got)
		if want := storedForm(f); got != want {
			t.Fatalf("flow %d (-want +got):\n%s", i, cmp.Diff(want, got))
		}
		if c.Lookup(&f.Orig) != h {
			t.Fatalf("flow %d is not found", i)
		}
	}
}

// TestModelKnowsEveryAttribute guards the tables of this test against attributes
// that are added to flow.
func TestModelKnowsEveryAttribute(t *testing.T) {
	known := flow.HasReply
	stored := flow.HasReply
	for _, a := range attrs {
		known |= a.bit
		if a.stored {
			stored |= a.bit
		}
	}
	if known != flow.HasEventTime<<1-1 {
		t.Errorf("attributes %#x, want %#x", known, flow.HasEventTime<<1-1)
	}
	if stored != storedAttrs {
		t.Errorf("stored attributes %#x, want %#x", storedAttrs, stored)
	}
}

func TestMergeSemantics(t *testing.T) {
	labels := [16]byte{1: 4}
	ftp, _ := flow.MakeName("ftp")
	base := flowOf(0) // TCP, IPv4, source translation
	base.Has |= flow.HasLabels | flow.HasHelper | flow.HasMaster | flow.HasSeqAdjOrig | flow.HasSynproxy | flow.HasSecctx
	base.Labels, base.Helper, base.Master = labels, ftp, tupleOf(1)
	base.Mark = 7
	base.SeqAdj[0].Pos, base.Synproxy.ISN, base.Secctx[0] = 1, 2, 'x'

	for _, tt := range []struct {
		name    string
		full    bool
		f       func(f *flow.Flow)    // from the base
		want    func(want *flow.Flow) // from the base
		changed bool
	}{
		{name: "the same again", f: func(*flow.Flow) {}, want: func(*flow.Flow) {}},
		{name: "the same again, full", full: true, f: func(*flow.Flow) {}, want: func(*flow.Flow) {}},
		{
			name: "timeout and id are no change",
			f:    func(f *flow.Flow) { f.Timeout, f.ID = 9, 10 },
			want: func(w *flow.Flow) { w.Timeout, w.ID = 9, 10 },
		},
		{
			name: "security context is no change",
			f:    func(f *flow.Flow) { f.Secctx[0] = 'y' },
			want: func(w *flow.Flow) { w.Secctx[0] = 'y' },
		},
		{
			name: "status is the whole word", changed: true,
			f:    func(f *flow.Flow) { f.Status = flow.StatusDying },
			want: func(w *flow.Flow) { w.Status = flow.StatusDying },
		},
		{
			name: "nothing is removed",
			f: func(f *flow.Flow) {
				*f = flow.Flow{Orig: f.Orig, Has: flow.HasTimeout, Timeout: 1}
			},
			want: func(w *flow.Flow) { w.Timeout = 1 },
		},
		{
			name: "a reply that was not stated does not count",
			f: func(f *flow.Flow) {
				f.Has &^= flow.HasReply
				f.Reply, _ = f.Orig.Inverse()
			},
			want: func(*flow.Flow) {},
		},
		{
			name: "another reply", changed: true,
			f:    func(f *flow.Flow) { f.Reply.DstPort++ },
			want: func(w *flow.Flow) { w.Reply.DstPort++ },
		},
		{
			name: "another zone of the reply", changed: true,
			f:    func(f *flow.Flow) { f.Reply.Zone++ },
			want: func(w *flow.Flow) { w.Reply.Zone++ },
		},
		{
			name: "an attribute becomes known as zero", changed: true,
			f:    func(f *flow.Flow) { f.Has |= flow.HasSeqAdjRepl },
			want: func(w *flow.Flow) { w.Has |= flow.HasSeqAdjRepl },
		},
		{
			name: "labels are cleared", changed: true,
			f:    func(f *flow.Flow) { f.Labels = [16]byte{} },
			want: func(w *flow.Flow) { w.Labels = [16]byte{} },
		},
		{
			name: "counters are not stored",
			f: func(f *flow.Flow) {
				*f = flow.Flow{Orig: f.Orig, Has: flow.HasCounters | flow.HasUse, Use: 2}
			},
			want: func(*flow.Flow) {},
		},
		{
			name: "full: labels that are gone are known and zero", full: true, changed: true,
			f: func(f *flow.Flow) {
				f.Has &^= flow.HasLabels
				f.Labels = [16]byte{}
			},
			want: func(w *flow.Flow) { w.Labels = [16]byte{} },
		},
		{
			name: "full: a mark that is gone is known and zero", full: true, changed: true,
			f: func(f *flow.Flow) {
				f.Has &^= flow.HasMark
				f.Mark = 0
			},
			want: func(w *flow.Flow) { w.Mark = 0 },
		},
		{
			name: "full: the helper is gone", full: true, changed: true,
			f: func(f *flow.Flow) {
				f.Has &^= flow.HasHelper
				f.Helper = flow.Name{}
			},
			want: func(w *flow.Flow) {
				w.Has &^= flow.HasHelper
				w.Helper = flow.Name{}
			},
		},
		{
			name: "full: the security context is gone, no change", full: true,
			f: func(f *flow.Flow) {
				f.Has &^= flow.HasSecctx
				f.Secctx = [64]byte{}
			},
			want: func(w *flow.Flow) {
				w.Has &^= flow.HasSecctx
				w.Secctx = [64]byte{}
			},
		},
		{
			name: "full: an offloaded flow keeps timeout and protocol state", full: true, changed: true,
			f: func(f *flow.Flow) {
				*f = flow.Flow{Orig: f.Orig, Reply: f.Reply, Has: flow.HasReply | flow.HasStatus | flow.HasMark, Status: flow.StatusOffload, Mark: f.Mark}
			},
			want: func(w *flow.Flow) {
				w.Has &^= flow.HasHelper | flow.HasMaster | flow.HasSeqAdjOrig | flow.HasSynproxy | flow.HasSecctx
				w.Helper, w.Master, w.Labels = flow.Name{}, flow.Tuple{}, [16]byte{}
				w.SeqAdj, w.Synproxy, w.Secctx = [2]flow.SeqAdj{}, flow.Synproxy{}, [64]byte{}
				w.Status = flow.StatusOffload
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(0)
			h, err := c.Insert(&base, 1)
			if err != nil {
				t.Fatal(err)
			}
			f, want := base, base
			tt.f(&f)
			tt.want(&want)
			later := Time(time.Minute)
			var changed bool
			if tt.full {
				changed = c.MergeFull(h, &f, later)
			} else {
				changed = c.Merge(h, &f, later)
			}
			if changed != tt.changed {
				t.Errorf("changed = %v", changed)
			}
			var got flow.Flow
			c.Load(h, &got)
			if got != want {
				t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
			}
			if taken := f.Has&storedAttrs != 0; near(c.Updated(h), later) != taken {
				t.Errorf("updated %d", c.Updated(h))
			}
			// A clearing that has been merged is no change the next time.
			if tt.full && c.MergeFull(h, &f, later) {
				t.Error("the same full state changed something again")
			}
		})
	}
}

// TestSideTableIsReused: rows come back, and flows without rare values have none.
func TestSideTableIsReused(t *testing.T) {
	c := New(0)
	flows := [3]flow.Flow{flowOf(0), flowOf(1), flowOf(2)}
	for i := range flows {
		flows[i].Has |= flow.HasSynproxy | flow.HasLabels // zero, as of an entry made by ctnetlink
		flows[i].Labels[0] = byte(i)
	}
	for range 3000 {
		for i := range flows {
			if _, err := c.Insert(&flows[i], 1); err != nil {
				t.Fatal(err)
			}
		}
		if n := c.Stats().SideRows; n != 2 {
			t.Fatalf("%d rows", n)
		}
		for i := range flows {
			c.Remove(c.Lookup(&flows[i].Orig))
		}
	}
	if c.extras.used != 2 || c.records.used != 3 {
		t.Errorf("%d rows and %d records were used for 2 and 3", c.extras.used, c.records.used)
	}
}

// TestWideReply: a reply that the record has no room for comes and goes.
func TestWideReply(t *testing.T) {
	narrow := flowOf(4) // IPv6
	wide := narrow
	wide.Reply.Dst[15]++
	c := New(0)
	h, err := c.Insert(&narrow, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		f       *flow.Flow
		changed bool
		rows    int
	}{{&narrow, false, 0}, {&wide, true, 1}, {&wide, false, 1}, {&narrow, true, 0}} {
		if got := c.Merge(h, step.f, 1); got != step.changed {
			t.Errorf("step %d: changed = %v", i, got)
		}
		var got flow.Flow
		if c.Load(h, &got); got != *step.f {
			t.Errorf("step %d (-want +got):\n%s", i, cmp.Diff(*step.f, got))
		}
		if n := c.Stats().SideRows; n != step.rows {
			t.Errorf("step %d: %d rows, want %d", i, n, step.rows)
		}
	}
}

// TestTimes: a point is kept to within Resolution wherever the zero point is, for
// years, and is never 0.
func TestTimes(t *testing.T) {
	const year = Time(365 * 24 * time.Hour)
	for _, start := range []Time{1, -30 * year, 5, Time(time.Hour), 100 * year} {
		c := New(0)
		f := flowOf(0)
		h, err := c.Insert(&f, start)
		if err != nil {
			t.Fatal(err)
		}
		for _, age := range []Time{0, Resolution - 1, Resolution, year, 9 * year} {
			c.Merge(h, &f, start+age)
			got := c.Created(h)
			if got == 0 || !near(got, start) || !near(c.Updated(h), start+age) {
				t.Errorf("start %d, age %d: created %d updated %d", start, age, got, c.Updated(h))
			}
		}
	}
	if d := time.Duration(Resolution); d > 100*time.Millisecond {
		t.Errorf("resolution %v", d)
	}
}

func TestMisuse(t *testing.T) {
	f := flowOf(0)
	for name, misuse := range map[string]func(c *Cache, h Handle){
		"insert twice":       func(c *Cache, h Handle) { _, _ = c.Insert(&f, 1) },
		"handle 0":           func(c *Cache, h Handle) { c.Key(0) },
		"handle beyond":      func(c *Cache, h Handle) { c.Dead(h + 1) },
		"handle far beyond":  func(c *Cache, h Handle) { c.Dead(h + 1e6) },
		"remove twice":       func(c *Cache, h Handle) { c.Remove(h); c.Remove(h) },
		"merge after remove": func(c *Cache, h Handle) { c.Remove(h); c.Merge(h, &f, 1) },
		"handle after clear": func(c *Cache, h Handle) { c.Clear(); c.Status(h) },
	} {
		t.Run(name, func(t *testing.T) {
			c := New(0)
			h, err := c.Insert(&f, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			misuse(c, h)
		})
	}
}

func TestLimits(t *testing.T) {
	for limit, want := range map[int]int{-1: MaxLimit, 0: MaxLimit, 1: 1, 7: 7, MaxLimit + 1: MaxLimit} {
		if got := New(limit).Limit(); got != want {
			t.Errorf("New(%d).Limit() = %d, want %d", limit, got, want)
		}
	}
}

func TestHighHandle(t *testing.T) {
	c := fill(t, 3)
	c.Remove(3)
	if c.HighHandle() != 3 {
		t.Errorf("after remove: %d", c.HighHandle())
	}
	f := flowOf(9)
	if h, _ := c.Insert(&f, 1); h != 3 {
		t.Errorf("the free slot was not used again: %d", h)
	}
	c.Clear()
	if c.HighHandle() != 0 || c.Walk(0, 0, func(Handle) bool { return true }) != 0 {
		t.Error("entries after clear")
	}
}

// TestAltered: what is new is altered; which changes alter is TestCompactTellsAll of the
// engine.
func TestAltered(t *testing.T) {
	c := New(10)
	f := flow.Flow{Orig: tupleOf(1)}
	h, err := c.Insert(&f, 1)
	if err != nil || !c.Altered(h) {
		t.Fatalf("inserted: %v", err)
	}
	if c.Settle(h); c.Altered(h) {
		t.Error("settled")
	}
	c.Merge(h, &flow.Flow{Orig: f.Orig, TCPState: 3, Has: flow.HasTCP}, 2)
	if c.Altered(h) {
		t.Error("by its state")
	}
	c.SetDead(h)
	if c.Replace(h, &f, 3); !c.Altered(h) {
		t.Error("replaced, and not altered")
	}
	c.Remove(h)
	if h, _ = c.Insert(&f, 4); !c.Altered(h) {
		t.Error("inserted again, and not altered")
	}
}

// TestState: SetState makes exactly the state another one.
func TestState(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		c := New(10)
		f, g := randFlow(r, randTuple(r, 3)), randFlow(r, randTuple(r, 3))
		h, err := c.Insert(&f, 1)
		if err != nil {
			t.Fatal(err)
		}
		var got, want flow.Flow
		c.Load(h, &want)
		s := g.State().Of(f.Orig.Proto)
		if c.SetState(h, s, Time(time.Hour)); !near(c.Updated(h), Time(time.Hour)) {
			t.Fatalf("updated at %d", c.Updated(h))
		}
		want.SetState(s)
		if c.Load(h, &got); got != want || c.State(h) != s {
			t.Fatalf("(-want +got):\n%s", cmp.Diff(want, got))
		}
	}
}

func TestNoAllocations(t *testing.T) {
	const n = 20_000
	c := fill(t, n)
	rare := flowOf(5)
	rare.Has |= flow.HasLabels | flow.HasHelper
	rare.Labels[0], rare.Helper[0] = 1, 'x'
	c.Replace(6, &rare, 1) // the side table has its chunk now
	plain := flowOf(5)

	i := 0
	var f flow.Flow
	for name, op := range map[string]func(){
		"lookup": func() {
			k := tupleOf(i % n)
			if c.Lookup(&k) == 0 {
				t.Fatal("not found")
			}
		},
		"lookup of nothing": func() {
			k := tupleOf(n + i)
			if c.Lookup(&k) != 0 {
				t.Fatal("found")
			}
		},
		"merge":      func() { f := flowOf(i % n); c.Merge(Handle(i%n+1), &f, 2) },
		"merge full": func() { c.MergeFull(6, &rare, 2); c.MergeFull(6, &plain, 2) },
		"replace":    func() { c.Replace(6, &rare, 2); c.Replace(6, &plain, 2) },
		"load":       func() { c.Load(Handle(i%n+1), &f) },
		"remove and insert": func() {
			f := flowOf(i % n)
			h := c.Lookup(&f.Orig)
			c.SetDead(h)
			c.Remove(h)
			if got, err := c.Insert(&f, 3); err != nil || got != h {
				t.Fatal(got, err)
			}
		},
		"walk": func() { c.Walk(0, 100, func(h Handle) bool { i += int(h); return true }) },
	} {
		i = 0
		if got := testing.AllocsPerRun(2000, func() { op(); i++ }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

// memoryPerFlow measures what a cache of n typical flows holds, in octets a flow.
func memoryPerFlow(tb testing.TB, n int) (c *Cache, octets float64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c = fill(tb, n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	return c, float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)) / float64(n)
}

func TestMemoryPerFlow(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("a million flows: not with -short or -race")
	}
	const n = 1_000_000
	c, octets := memoryPerFlow(t, n)
	s := c.Stats()
	t.Logf("%.1f octets a flow; slab %d, index %d, side table %d", octets, s.SlabBytes/n, s.IndexBytes/n, s.SideBytes/n)
	if octets > 136 {
		t.Errorf("%.1f octets a flow, want at most 136", octets)
	}
	if got := float64(s.SlabBytes+s.IndexBytes+s.SideBytes) / n; got > octets*1.02 || got < octets*0.98 {
		t.Errorf("Stats says %.1f octets a flow, the runtime %.1f", got, octets)
	}
	runtime.KeepAlive(c)
}

// TestKindsDoNotMix: what is of a flow cannot be asked of an expectation, nor the
// other way round.
func TestKindsDoNotMix(t *testing.T) {
	c := New(0)
	tuple := flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, DstPort: 21}
	f, x := flow.Flow{Orig: tuple}, flow.Expect{Tuple: tuple}
	hf, err := c.Insert(&f, 0)
	if err != nil {
		t.Fatal(err)
	}
	hx, err := c.InsertExpect(&x, 0)
	if err != nil || hx == hf || c.Lookup(&tuple) != hf || c.LookupExpect(&x) != hx {
		t.Fatalf("flow %d, expectation %d, %v", hf, hx, err)
	}
	for name, fn := range map[string]func(){
		"load":           func() { c.Load(hx, &f) },
		"replace":        func() { c.Replace(hx, &f, 0) },
		"merge":          func() { c.Merge(hx, &flow.Flow{Has: flow.HasMark}, 0) },
		"merge full":     func() { c.MergeFull(hx, &f, 0) },
		"load expect":    func() { c.LoadExpect(hf, &x) },
		"replace expect": func() { c.ReplaceExpect(hf, &x, 0) },
		"merge expect":   func() { c.MergeExpect(hf, &x, 0) },
		"insert twice":   func() { c.InsertExpect(&x, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			fn()
		}()
	}
	if n := testing.AllocsPerRun(100, func() {
		c.Remove(hx)
		hx, _ = c.InsertExpect(&x, 0)
		c.SetDead(hx)
		c.ReplaceExpect(hx, &x, 0)
		c.MergeExpect(hx, &x, 0)
		c.LoadExpect(hx, &x)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Announcing lookups changes nothing, and names the entries that they will find; two
// that look alike may now and then be taken for each other (1 in 70 times a pair of these).
func TestWarm(t *testing.T) {
	c := New(1000)
	var want []Handle
	for i := range WarmBatch / 2 {
		f := flow.Flow{Orig: tupleOf(i)}
		h, err := c.Insert(&f, 0)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, h)
	}
	before := c.Stats()
	for round := range 3 {
		for i := range WarmBatch { // the second half is not there
			k := tupleOf(i)
			c.Announce(&k)
		}
		got := c.Warm()
		if len(got) != WarmBatch {
			t.Fatalf("round %d: %v", round, got)
		}
		for i, guess := range got {
			k := tupleOf(i)
			if h := c.LookupNear(&k, guess); h != c.Lookup(&k) || h != 0 != (i < len(want)) {
				t.Errorf("round %d: flow %d is %d near %d", round, i, h, guess)
			}
		}
		other := 0
		for i, h := range want {
			if got[i] != h {
				other++
			}
		}
		if other > 4 {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
	}
	if after := c.Stats(); after != before || c.Len() != len(want) {
		t.Errorf("it changed something: %+v, was %+v", after, before)
	}

	gone := want[0]
	c.Remove(gone)
	before, want = c.Stats(), want[1:]
	other := 0
	for _, h := range want {
		c.Touch(h)
		c.AnnounceRemove(h)
	}
	for i, h := range c.Warm() {
		if h != want[i] {
			other++
		}
	}
	if other > 4 {
		t.Errorf("%d of %d entries to be removed are not found", other, len(want))
	}
	for _, h := range []Handle{0, gone, c.HighHandle() + 1, 1 << 31} { // none of them names an entry
		c.Touch(h)
		c.AnnounceRemove(h)
	}
	if n := len(c.Warm()); n != 4 {
		t.Errorf("%d of 4", n)
	}
	if after := c.Stats(); after != before || c.Len() != len(want) {
		t.Errorf("it changed something: %+v, was %+v", after, before)
	}
	if n := testing.AllocsPerRun(100, func() {
		k := tupleOf(1)
		c.Announce(&k)
		c.Warm()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

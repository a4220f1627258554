package cache

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"syncd/internal/flow"
)

// attr is an attribute in the wide form: the naive way to say what take, forget
// and Load do on packed records.
type attr struct {
	bit        flow.Attrs
	stored     bool
	replicated bool
	clearable  bool // MergeFull removes it when it is absent
	copy       func(dst, src *flow.Flow)
}

var attrs = []attr{
	{flow.HasMaster, true, true, true, func(d, s *flow.Flow) { d.Master = s.Master }},
	{flow.HasStatus, true, true, false, func(d, s *flow.Flow) { d.Status = s.Status }},
	{flow.HasTimeout, true, false, false, func(d, s *flow.Flow) { d.Timeout = s.Timeout }},
	{flow.HasMark, true, true, false, func(d, s *flow.Flow) { d.Mark = s.Mark }},
	{flow.HasID, true, false, false, func(d, s *flow.Flow) { d.ID = s.ID }},
	{flow.HasUse, false, false, false, func(d, s *flow.Flow) { d.Use = s.Use }},
	{flow.HasTCP, true, true, false, func(d, s *flow.Flow) { d.TCPState = s.TCPState }},
	{flow.HasTCPFlags, true, true, false, func(d, s *flow.Flow) { d.TCPFlags = s.TCPFlags }},
	{flow.HasTCPWScale, true, true, false, func(d, s *flow.Flow) { d.TCPWScale = s.TCPWScale }},
	{flow.HasSCTP, true, true, false, func(d, s *flow.Flow) { d.SCTPState = s.SCTPState }},
	{flow.HasSCTPVtags, true, true, false, func(d, s *flow.Flow) { d.SCTPVtag = s.SCTPVtag }},
	{flow.HasLabels, true, true, false, func(d, s *flow.Flow) { d.Labels = s.Labels }},
	{flow.HasHelper, true, true, true, func(d, s *flow.Flow) { d.Helper = s.Helper }},
	{flow.HasSeqAdjOrig, true, true, true, func(d, s *flow.Flow) { d.SeqAdj[0] = s.SeqAdj[0] }},
	{flow.HasSeqAdjRepl, true, true, true, func(d, s *flow.Flow) { d.SeqAdj[1] = s.SeqAdj[1] }},
	{flow.HasSynproxy, true, true, true, func(d, s *flow.Flow) { d.Synproxy = s.Synproxy }},
	{flow.HasSecctx, true, false, true, func(d, s *flow.Flow) { d.Secctx = s.Secctx }},
	{flow.HasCounters, false, false, false, func(d, s *flow.Flow) { d.Counters = s.Counters }},
	{flow.HasStart, false, false, false, func(d, s *flow.Flow) { d.Start = s.Start }},
	{flow.HasStop, false, false, false, func(d, s *flow.Flow) { d.Stop = s.Stop }},
	{flow.HasEventTime, false, false, false, func(d, s *flow.Flow) { d.EventTime = s.EventTime }},
}

// storedForm is what Load gives back of f.
func storedForm(f flow.Flow) flow.Flow {
	var zero flow.Flow
	for _, a := range attrs {
		if !a.stored {
			f.Has &^= a.bit
			a.copy(&f, &zero)
		}
	}
	return f
}

// mergeWide is Merge, or MergeFull if full, on wide forms.
func mergeWide(old, f flow.Flow, full bool) (merged flow.Flow, changed bool) {
	merged = old
	var zero flow.Flow
	if full {
		for _, a := range attrs {
			if a.clearable && f.Has&a.bit == 0 {
				merged.Has &^= a.bit
				a.copy(&merged, &zero)
			}
		}
		if f.Has&flow.HasLabels == 0 {
			merged.Labels = zero.Labels
		}
		if f.Has&flow.HasMark == 0 {
			merged.Mark = 0
		}
	}
	for _, a := range attrs {
		if a.stored && f.Has&a.bit != 0 {
			merged.Has |= a.bit
			a.copy(&merged, &f)
		}
	}
	if f.Has&flow.HasReply != 0 {
		merged.Has |= flow.HasReply
		merged.Reply = f.Reply
	}

	// What is left after the attributes that are not replicated are levelled
	// must be the same.
	a, b := old, merged
	for _, x := range attrs {
		if !x.replicated {
			a.Has &^= x.bit
			b.Has &^= x.bit
			x.copy(&a, &zero)
			x.copy(&b, &zero)
		}
	}
	a.Has &^= flow.HasReply
	b.Has &^= flow.HasReply
	return merged, a != b
}

func randTuple(r *rand.Rand, hosts int) flow.Tuple {
	var t flow.Tuple
	t.Family = flow.IPv4
	copy(t.Src[:], []byte{192, 0, 2, byte(r.IntN(hosts))})
	copy(t.Dst[:], []byte{198, 51, 100, byte(r.IntN(hosts))})
	if r.IntN(3) == 0 {
		t.Family = flow.IPv6
		copy(t.Src[:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(r.IntN(hosts))})
		copy(t.Dst[:], []byte{0x20, 0x01, 0x0d, 0xb8, 7: 1, 15: byte(r.IntN(hosts))})
	}
	protos := []uint8{flow.TCP, flow.UDP, flow.SCTP, flow.ICMP, flow.ICMPv6, 50}
	t.Proto = protos[r.IntN(len(protos))]
	t.SrcPort, t.DstPort = uint16(r.IntN(hosts)), 443
	t.Zone = uint16(r.IntN(2))
	return t
}

// randExpect returns an expectation of t with few different values.
func randExpect(r *rand.Rand, t flow.Tuple) flow.Expect {
	x := flow.Expect{Tuple: t, Has: flow.ExpectAttrs(r.Uint32()) & (flow.ExpectHasID<<1 - 1)}
	x.Master = randTuple(r, 2)
	x.Mask.DstPort, x.Timeout, x.ID = uint16(r.IntN(2)), r.Uint32N(3), r.Uint32N(3)
	x.Class, x.Flags, x.NATDir = r.Uint32N(2), r.Uint32N(2), r.Uint32N(2)
	x.NAT.SrcPort, x.Helper[0], x.Fn[0] = uint16(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(2))
	return x
}

// randFlow returns a flow with random attributes, with few different values so
// that merging meets equal ones.
func randFlow(r *rand.Rand, orig flow.Tuple) flow.Flow {
	f := flow.Flow{Orig: orig}
	f.Reply, _ = orig.Inverse()
	switch r.IntN(8) {
	case 0: // source translation
		f.Reply.Dst[3]++
		f.Reply.DstPort++
	case 1: // destination translation
		f.Reply.Src[2]++
	case 2: // zones by direction
		f.Reply.Zone += 7
	case 3: // no kernel does this
		f.Reply.Family ^= flow.IPv4 ^ flow.IPv6
	case 4:
		f.Reply.Proto++
	}
	small := func() uint32 { return uint32(r.IntN(3)) }
	src := flow.Flow{
		Master: randTuple(r, 2), Status: small(), Timeout: small(), Mark: small(), ID: small(), Use: small(),
		TCPState: uint8(small()), TCPFlags: [2]uint8{uint8(small()), 1}, TCPWScale: [2]uint8{7, uint8(small())},
		SCTPState: uint8(small()), SCTPVtag: [2]uint32{small(), 9},
		Labels: [16]byte{15: byte(small())}, Helper: flow.Name{byte(small())},
		SeqAdj:   [2]flow.SeqAdj{{Pos: small(), Before: -1}, {After: int32(small())}},
		Synproxy: flow.Synproxy{ITS: small()}, Secctx: [64]byte{63: byte(small())},
		Counters: [2]flow.Counter{{Packets: 1}, {Bytes: 2}}, Start: 3, Stop: 4, EventTime: 5,
	}
	density := r.IntN(4) // from nearly nothing to everything
	for _, a := range attrs {
		if r.IntN(4) <= density {
			f.Has |= a.bit
			a.copy(&f, &src)
		}
	}
	if r.IntN(2) == 0 {
		f.Has |= flow.HasReply
	}
	return f
}

type modelEntry struct {
	f                   flow.Flow
	expect              bool
	x                   flow.Expect // if expect; f has its key then
	dead                bool
	created, updated    Time
	owner, epoch, flags uint8
}

// machine runs a cache beside plain maps.
type machine struct {
	c       *Cache
	entries map[Handle]*modelEntry
	keys    map[flow.Tuple]Handle
	limit   int
	now     Time

	created, updated, destroyed, refused uint64
}

// rng lets rapid choose the seed of one step.
func rng(t *rapid.T) *rand.Rand {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
}

func (m *machine) tick(r *rand.Rand) {
	m.now = m.now.Add(time.Duration(r.Int64N(int64(time.Second))))
}

// pick returns some entry, or 0.
func (m *machine) pick(r *rand.Rand) Handle {
	if len(m.entries) == 0 {
		return 0
	}
	// The order of a map is no function of the seed: choose by number.
	n := Handle(r.IntN(int(m.c.HighHandle()))) + 1
	for ; ; n = n%m.c.HighHandle() + 1 {
		if m.entries[n] != nil {
			return n
		}
	}
}

func (m *machine) insert(t *rapid.T, r *rand.Rand) {
	m.tick(r)
	k := randTuple(r, 3)
	if m.keys[k] != 0 {
		return
	}
	// Of what can be a flow there can be an expectation too.
	var h Handle
	var err error
	e := modelEntry{created: m.now, updated: m.now}
	if r.IntN(3) == 0 {
		e.expect = true
		e.x = randExpect(r, k)
		if k = e.x.Key(); m.keys[k] != 0 {
			return
		}
		e.f.Orig = k
		h, err = m.c.InsertExpect(&e.x, m.now)
	} else {
		f := randFlow(r, k)
		e.f = storedForm(f)
		h, err = m.c.Insert(&f, m.now)
	}
	if len(m.entries) >= m.limit {
		if !errors.Is(err, ErrFull) || h != 0 {
			t.Fatalf("insert at the limit: %d, %v", h, err)
		}
		m.refused++
		return
	}
	if err != nil || h == 0 || m.entries[h] != nil {
		t.Fatalf("insert gave handle %d, %v", h, err)
	}
	m.entries[h] = &e
	m.keys[k] = h
	m.created++
}

func (m *machine) remove(h Handle) {
	e := m.entries[h]
	m.c.Remove(h)
	if !e.dead {
		m.destroyed++
	}
	delete(m.keys, e.f.Orig)
	delete(m.entries, h)
}

func (m *machine) merge(t *rapid.T, full bool) {
	r := rng(t)
	h := m.pick(r)
	if h == 0 {
		return
	}
	m.tick(r)
	e := m.entries[h]
	if e.expect {
		x := randExpect(r, e.x.Tuple)
		want := x
		want.ID, want.Timeout, want.Has = e.x.ID, e.x.Timeout, want.Has&^(flow.ExpectHasTimeout|flow.ExpectHasID)|e.x.Has&(flow.ExpectHasTimeout|flow.ExpectHasID)
		if got := m.c.MergeExpect(h, &x, m.now); got != (want != e.x) {
			t.Fatalf("changed = %v\nold    %+v\nmerged %+v", got, e.x, x)
		}
		e.x, e.updated = x, m.now
		m.updated++
		return
	}
	f := randFlow(r, e.f.Orig)
	var got, want bool
	var merged flow.Flow
	merged, want = mergeWide(e.f, f, full)
	if full {
		got = m.c.MergeFull(h, &f, m.now)
	} else {
		got = m.c.Merge(h, &f, m.now)
	}
	if got != want {
		t.Fatalf("changed = %v, want %v\nold    %+v\nmerged %+v", got, want, e.f, merged)
	}
	e.f = merged
	if full || storedForm(f).Has != 0 {
		e.updated = m.now
		m.updated++
	}
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"insert": func(t *rapid.T) { m.insert(t, rng(t)) },
		"insert many": func(t *rapid.T) {
			r := rng(t)
			for range 20 {
				m.insert(t, r)
			}
		},
		"merge":      func(t *rapid.T) { m.merge(t, false) },
		"merge full": func(t *rapid.T) { m.merge(t, true) },
		"replace": func(t *rapid.T) {
			r := rng(t)
			h := m.pick(r)
			if h == 0 {
				return
			}
			m.tick(r)
			e := m.entries[h]
			is := modelEntry{created: m.now, updated: m.now, owner: e.owner, epoch: e.epoch, expect: e.expect}
			if e.expect {
				is.x, is.f.Orig = randExpect(r, e.x.Tuple), e.f.Orig
				m.c.ReplaceExpect(h, &is.x, m.now)
			} else {
				f := randFlow(r, e.f.Orig)
				is.f = storedForm(f)
				m.c.Replace(h, &f, m.now)
			}
			if !e.dead {
				m.destroyed++
			}
			m.created++
			*e = is
		},
		"dead": func(t *rapid.T) {
			if h := m.pick(rng(t)); h != 0 {
				m.c.SetDead(h)
				if !m.entries[h].dead {
					m.destroyed++
				}
				m.entries[h].dead = true
			}
		},
		"remove": func(t *rapid.T) {
			if h := m.pick(rng(t)); h != 0 {
				m.remove(h)
			}
		},
		"meta": func(t *rapid.T) {
			r := rng(t)
			if h := m.pick(r); h != 0 {
				e := m.entries[h]
				e.owner, e.epoch = uint8(r.Uint32()), uint8(r.Uint32())
				m.c.SetOwner(h, e.owner)
				m.c.SetMark(h, e.epoch)
				set, clr := uint8(r.Uint32()), uint8(r.Uint32())
				m.c.SetFlags(h, set, clr)
				e.flags = e.flags&^clr | set
			}
		},
		"walk": m.walk,
		"clear": func(t *rapid.T) {
			if rapid.IntRange(0, 5).Draw(t, "really") != 0 {
				return
			}
			m.c.Clear()
			for _, e := range m.entries {
				if !e.dead {
					m.destroyed++
				}
			}
			clear(m.entries)
			clear(m.keys)
		},
		"limit": func(t *rapid.T) {
			m.limit = rapid.IntRange(1, 100).Draw(t, "limit")
			m.c.SetLimit(m.limit)
		},
		"": m.check,
	}
}

// walk goes through the cache in small steps, inserting and removing inside and
// between them.
func (m *machine) walk(t *rapid.T) {
	r := rng(t)
	throughout := map[Handle]bool{}
	for h := range m.entries {
		throughout[h] = true
	}
	disturb := func() {
		switch r.IntN(4) {
		case 0:
			m.insert(t, r)
		case 1:
			if h := m.pick(r); h != 0 {
				m.remove(h)
				delete(throughout, h)
			}
		}
	}
	visits := map[Handle]int{}
	step := rapid.IntRange(0, 7).Draw(t, "max")
	for from, calls := Handle(0), 0; ; calls++ {
		if calls > 1000 {
			t.Fatal("walk does not end")
		}
		n := 0
		from = m.c.Walk(from, step, func(h Handle) bool {
			n++
			visits[h]++
			if m.entries[h] == nil {
				t.Fatalf("walk visits %d, which is no entry", h)
			}
			disturb()
			return r.IntN(5) != 0
		})
		if step > 0 && n > step {
			t.Fatalf("walk of at most %d slots visited %d", step, n)
		}
		if from == 0 {
			break
		}
		disturb()
	}
	for h := range throughout {
		if visits[h] != 1 {
			t.Fatalf("entry %d was there throughout and visited %d times", h, visits[h])
		}
	}
}

func near(got, want Time) bool { return got <= want && want-got < Resolution }

func (m *machine) check(t *rapid.T) {
	alive, expects, rows := 0, 0, 0
	for h, e := range m.entries {
		if !e.dead {
			alive++
		}
		if got := m.c.Lookup(&e.f.Orig); got != h {
			t.Fatalf("lookup = %d, want %d: %+v", got, h, e.f.Orig)
		}
		var f flow.Flow
		if m.c.IsExpect(h) != e.expect {
			t.Fatalf("entry %d is an expectation: %v", h, !e.expect)
		}
		if e.expect {
			if !e.dead {
				expects++
			}
			var x flow.Expect
			m.c.LoadExpect(h, &x)
			if x != e.x || m.c.LookupExpect(&x) != h {
				t.Fatalf("entry %d, found as %d (-want +got):\n%s", h, m.c.LookupExpect(&x), cmp.Diff(e.x, x))
			}
			f.Orig, f.Timeout, f.ID = x.Key(), x.Timeout, x.ID
		} else if m.c.Load(h, &f); f != e.f {
			t.Fatalf("entry %d (-want +got):\n%s", h, cmp.Diff(e.f, f))
		}
		if m.c.Key(h) != f.Orig || m.c.Has(h) != f.Has || m.c.Status(h) != f.Status || m.c.Timeout(h) != f.Timeout ||
			m.c.ID(h) != f.ID || m.c.TCPState(h) != f.TCPState {
			t.Fatalf("accessors of entry %d disagree with Load", h)
		}
		if m.c.Dead(h) != e.dead || m.c.Owner(h) != e.owner || m.c.Mark(h) != e.epoch || m.c.Flags(h) != e.flags {
			t.Fatalf("entry %d: dead %v owner %d epoch %d flags %d, want %+v",
				h, m.c.Dead(h), m.c.Owner(h), m.c.Mark(h), m.c.Flags(h), e)
		}
		if !near(m.c.Created(h), e.created) || !near(m.c.Updated(h), e.updated) {
			t.Fatalf("entry %d: created %d updated %d, want %d and %d",
				h, m.c.Created(h), m.c.Updated(h), e.created, e.updated)
		}
		if m.c.at(h).extra != 0 && !e.expect {
			rows++
		}
	}
	r := rng(t)
	for range 10 {
		if k := randTuple(r, 3); m.c.Lookup(&k) != m.keys[k] {
			t.Fatalf("lookup = %d, want %d: %+v", m.c.Lookup(&k), m.keys[k], k)
		}
	}
	if m.c.Len() != alive || m.c.DeadLen() != len(m.entries)-alive || m.c.Limit() != m.limit {
		t.Fatalf("len %d dead %d limit %d, want %d %d %d",
			m.c.Len(), m.c.DeadLen(), m.c.Limit(), alive, len(m.entries)-alive, m.limit)
	}
	if m.c.ExpectLen() != expects {
		t.Fatalf("%d expectations, want %d", m.c.ExpectLen(), expects)
	}
	s := m.c.Stats()
	if s.Created != m.created || s.Updated != m.updated || s.Destroyed != m.destroyed || s.Refused != m.refused || s.SideRows != rows {
		t.Fatalf("stats %+v, want created %d updated %d destroyed %d refused %d rows %d",
			s, m.created, m.updated, m.destroyed, m.refused, rows)
	}
}

// TestAgainstMaps compares every method with the same on plain maps.
func TestAgainstMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{
			entries: map[Handle]*modelEntry{},
			keys:    map[flow.Tuple]Handle{},
			limit:   60,
			// Inside a testing/synctest bubble the clock is decades behind.
			now: Time(rapid.Int64Range(-1e18, 1e18).Draw(t, "now")),
		}
		m.c = New(m.limit)
		t.Repeat(m.actions())
	})
}

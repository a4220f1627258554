package queue

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// TestLists compares Lists with slices under random steps.
func TestLists(t *testing.T) {
	const lists, handles = 5, 40
	r := rand.New(rand.NewPCG(1, 2))
	l := NewLists(lists)
	model := make([][]flow.Handle, lists+1)
	marks := map[flow.Handle]bool{}
	take := func(h flow.Handle) {
		for k := range model {
			model[k] = slices.DeleteFunc(model[k], func(x flow.Handle) bool { return x == h })
		}
	}
	for range 20000 {
		// Far apart, so that several chunks are in use.
		h := flow.Handle(1 + r.IntN(handles)*500)
		switch r.IntN(8) {
		case 0:
			l.Take(h)
			take(h)
		case 1:
			l.Forget(h)
			take(h)
			delete(marks, h)
		case 2:
			marks[h] = r.IntN(2) == 0
			l.Mark(h, marks[h])
		case 3:
			if r.IntN(500) == 0 {
				l.Clear()
				clear(model)
				clear(marks)
			}
		default:
			k := 1 + r.IntN(lists)
			l.Put(k, h)
			if !slices.Contains(model[k], h) {
				take(h)
				model[k] = append(model[k], h)
			}
		}
		if l.Marked(h) != marks[h] {
			t.Fatalf("mark of %d is %v", h, l.Marked(h))
		}
		for k := 1; k <= lists; k++ {
			first := flow.Handle(0)
			if len(model[k]) > 0 {
				first = model[k][0]
			}
			if l.Len(k) != len(model[k]) || l.First(k) != first {
				t.Fatalf("list %d has %d from %d, want %v", k, l.Len(k), l.First(k), model[k])
			}
			for _, x := range model[k] {
				if l.In(x) != k {
					t.Fatalf("%d is in list %d, want %d", x, l.In(x), k)
				}
			}
		}
	}
	for k := 1; k <= lists; k++ { // in their order
		for _, h := range model[k] {
			if l.First(k) != h {
				t.Fatalf("first of list %d is %d, want %d", k, l.First(k), h)
			}
			l.Take(h)
		}
	}
}

// table is a cache: what is not 0 is a flow.
type table struct {
	flows    []byte
	released []flow.Handle
}

func (c *table) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
	for h := from; int(h) < len(c.flows); h++ {
		if max--; max < 0 {
			return h
		}
		if c.flows[h] == 1 && !fn(h) {
			return (h + 1) % flow.Handle(len(c.flows))
		}
	}
	return 0
}
func (c *table) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, _ monotime.Time) []byte {
	fl := flow.Flow{Has: flow.HasMark, Mark: uint32(h)}
	typ := wire.CTUpd
	switch {
	case c.Dead(h):
		typ = wire.CTDel
	case replace:
		typ = wire.CTNew
	}
	return wire.AppendFlow(b, wire.Conntrackd, typ, f, seq, &fl)
}
func (c *table) Dead(h flow.Handle) bool { return c.flows[h] == 2 }
func (c *table) Release(h flow.Handle)   { c.released = append(c.released, h); c.flows[h] = 0 }

// TestWalkFindsEverything: a flow that is alive all the time is found once, whatever
// comes and goes beside it, and a flow that is put back is found again.
func TestWalkFindsEverything(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		c := &table{flows: make([]byte, 1+r.IntN(5000))}
		for h := 1; h < len(c.flows); h++ {
			c.flows[h] = byte(r.IntN(2))
		}
		odd := r.IntN(2) == 0
		w := &Walk{}
		w.Init(c, func(h flow.Handle) bool { return !odd || h%2 == 1 })
		w.Begin()
		found := map[flow.Handle]int{}
		steady := slices.Clone(c.flows)
		for steps := 0; w.Active(); steps++ {
			if steps > 20000 {
				t.Fatal("no end")
			}
			h := w.Step()
			if h == 0 {
				continue
			}
			if r.IntN(10) == 0 {
				w.Back(h)
				continue
			}
			found[h]++
			if x := r.IntN(len(c.flows)); x > 0 {
				c.flows[x] = byte(r.IntN(2))
				steady[x] = 0
			}
		}
		for h, s := range steady {
			if want := !odd || h%2 == 1; s == 1 && want && found[flow.Handle(h)] != 1 {
				t.Fatalf("%d of %d was found %d times", h, len(c.flows), found[flow.Handle(h)])
			}
		}
		for h := range found {
			if odd && h%2 == 0 {
				t.Fatalf("%d is not wanted", h)
			}
		}
	}
}

func TestPace(t *testing.T) {
	for _, now := range []monotime.Time{-monotime.Time(time.Hour), 1, monotime.Time(time.Hour)} {
		var p Pace
		n := 0
		for end := now.Add(time.Second); now < end; now = now.Add(time.Millisecond) {
			for p.Left(now) {
				p.Spend(now, 1)
				n++
			}
			if next := p.Next(); next <= now || next.Sub(now) > PaceTick {
				t.Fatalf("next at %v after now", next.Sub(now))
			}
		}
		if n != 100*PaceBurst {
			t.Errorf("%d messages in a second, want %d", n, 100*PaceBurst)
		}
	}
}

func TestSender(t *testing.T) {
	c := &table{flows: []byte{0, 1, 1, 2}}
	s := NewSender(c, 7, 1)
	s.Enqueue(1, false)
	s.Enqueue(2, true)
	s.Enqueue(3, false)
	s.Enqueue(1, false)
	var b []byte
	for h := s.First(Dirty); h != 0; h = s.First(Dirty) {
		var ok bool
		if b, ok, _ = s.Append(0, b, 0, 1000, h); !ok {
			t.Fatal("no room")
		}
	}
	var types []wire.Type
	var numbers []wire.Seq
	var r wire.Reader
	r.Reset(b)
	for m := new(wire.Message); r.Next(m); {
		types, numbers = append(types, m.Type), append(numbers, m.Seq)
	}
	if want := []wire.Type{wire.CTUpd, wire.CTNew, wire.CTDel}; !slices.Equal(types, want) {
		t.Errorf("sent %v, want %v", types, want)
	}
	if want := []wire.Seq{7, 8, 9}; !slices.Equal(numbers, want) {
		t.Errorf("numbers %v, want %v", numbers, want)
	}
	if !slices.Equal(c.released, []flow.Handle{3}) {
		t.Errorf("released %v", c.released)
	}
	s.Enqueue(1, false)
	n := len(b)
	if b, ok, _ := s.Append(0, b, 0, n+10, 1); ok || len(b) != n || s.In(1) != Dirty {
		t.Error("a message that does not fit was taken")
	}
	if _, ok, _ := s.Append(0, b, n, 10, 1); !ok {
		t.Error("a message alone in its datagram was refused")
	}
	c.flows[2] = 2
	s.Enqueue(2, false)
	if s.Drop(); s.Len(Dirty) != 0 || !slices.Equal(c.released, []flow.Handle{3, 2}) {
		t.Errorf("%d left, released %v", s.Len(Dirty), c.released)
	}
}

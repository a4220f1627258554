package engine

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/cache"
	"syncd/internal/commit"
	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/wire"
)

// simParker is the real parker on a simulated kernel.
type simParker struct {
	kernel *simnet.Kernel
	mu     sync.Mutex
	max    int           // entries of the table, 0 for any number
	pace   time.Duration // of a batch
	asked  [flow.ParkRelease + 1]int
	batch  []simRequest
}

type simRequest struct {
	op commit.Op
	f  flow.Flow
	x  *flow.Expect // nil: f
}

func (p *simParker) Run(ctx context.Context, work <-chan *flow.ParkBatch, done chan<- *flow.ParkBatch) error {
	park := commit.NewParker(p, commit.Options{MarkMask: 0xffffffff, Labels: true})
	for {
		select {
		case b := <-work:
			p.mu.Lock()
			pace := p.pace
			for i := range b.N {
				p.asked[b.Items[i].Op]++
			}
			p.mu.Unlock()
			if pace > 0 {
				select {
				case <-time.After(pace):
				case <-ctx.Done():
					return nil
				}
			}
			if err := park.Park(b); err != nil {
				return err
			}
			done <- b
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *simParker) set(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

// creates is how many creations were asked for.
func (p *simParker) creates() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[flow.ParkCreate]
}

func (p *simParker) Add(op commit.Op, f *flow.Flow) (int, error) {
	p.batch = append(p.batch, simRequest{op: op, f: *f})
	return len(p.batch) - 1, nil
}

func (p *simParker) Flush(fail func(int, unix.Errno)) error {
	for i := range p.batch {
		if errno := p.do(&p.batch[i]); errno != 0 {
			fail(i, errno)
		}
	}
	p.batch = p.batch[:0]
	return nil
}

func (p *simParker) do(q *simRequest) unix.Errno {
	if q.x != nil {
		return p.doExpect(q.op, q.x)
	}
	f := &q.f
	var have flow.Flow
	there := p.Get(&f.Orig, &have) == nil
	switch q.op {
	case commit.Create:
		p.mu.Lock()
		full := p.max > 0 && p.kernel.Len() >= p.max
		p.mu.Unlock()
		switch {
		case there || p.Get(&f.Reply, &have) == nil:
			return unix.EEXIST
		case full:
			return unix.ENOMEM
		case f.Has&flow.HasMaster != 0 && p.Get(&f.Master, &have) != nil:
			return unix.ENOENT
		}
		if f.Has&flow.HasMaster != 0 {
			f.Status |= flow.StatusExpected
		}
		if snat, dnat := f.Translated(); snat || dnat {
			f.Status |= flow.StatusSrcNATDone | flow.StatusDstNATDone
			if snat {
				f.Status |= flow.StatusSrcNAT
			}
			if dnat {
				f.Status |= flow.StatusDstNAT
			}
		}
		made := flow.Flow{Orig: f.Orig, Reply: f.Reply, Has: f.Has} // with what was asked for, and no more
		simnet.CopyAttrs(&made, f, f.Has)
		if !p.kernel.Create(made, parkPort) {
			return unix.EEXIST
		}
	case commit.Update:
		if !there {
			return unix.ENOENT
		}
		const sticky = flow.StatusSeenReply | flow.StatusAssured
		if f.Has&flow.HasStatus != 0 && (have.Status&^f.Status&sticky != 0 || (have.Status^f.Status)&flow.StatusExpected != 0) {
			return unix.EBUSY
		}
		if f.Has&flow.HasTimeout != 0 && have.Status&flow.StatusFixedTimeout != 0 {
			return unix.EPERM
		}
		p.kernel.Update(have.Orig, parkPort, func(h *flow.Flow) {
			was := *h
			const never = flow.HasReply | flow.HasMaster | flow.HasHelper | flow.HasID
			has := f.Has &^ never
			simnet.CopyAttrs(h, f, has)
			h.Has |= has
			if has&flow.HasStatus != 0 {
				h.Status |= was.Status
			}
		})
	case commit.Delete:
		if !there || f.Has&flow.HasID != 0 && f.ID != have.ID {
			return unix.ENOENT
		}
		p.kernel.Destroy(have.Orig, parkPort)
	}
	return 0
}

func (p *simParker) AddExpect(op commit.Op, x *flow.Expect) (int, error) {
	c := *x
	p.batch = append(p.batch, simRequest{op: op, x: &c})
	return len(p.batch) - 1, nil
}

func (p *simParker) GetExpect(t *flow.Tuple, x *flow.Expect) error {
	have, ok := p.kernel.Expects()[(&flow.Expect{Tuple: *t}).Key()]
	if !ok {
		return unix.ENOENT
	}
	*x = have
	return nil
}

func (p *simParker) doExpect(op commit.Op, x *flow.Expect) unix.Errno {
	_, there := p.kernel.Expects()[x.Key()]
	switch {
	case op == commit.Create && there:
		return unix.EEXIST
	case op == commit.Create && !p.kernel.Expect(*x, parkPort):
		return unix.ENOENT
	case op == commit.Delete && !p.kernel.Fulfil(x.Key(), parkPort), op == commit.Update && !there:
		return unix.ENOENT
	}
	return 0
}

func (p *simParker) Get(t *flow.Tuple, f *flow.Flow) error {
	flows := p.kernel.Flows()
	if g, ok := flows[*t]; ok {
		*f = g
		return nil
	}
	for _, g := range flows {
		if g.Reply == *t {
			*f = g
			return nil
		}
	}
	return unix.ENOENT
}

// parking makes a node park what its peer has.
func withParker(cfg *Config) { cfg.Parker = &simParker{kernel: cfg.Events.(*simnet.Kernel)} }

func (d *node) parker() *simParker { return d.cfg.Parker.(*simParker) }

// parkedPair starts two nodes, of which both park what the other one has.
func parkedPair(t *testing.T) (a, b *node) {
	_, a, b = pair(t, withParker)
	return a, b
}

// parked returns the parked flows of the kernel, others the rest.
func (d *node) parked() (parked, others table) {
	parked, others = table{}, table{}
	for k, f := range d.kernel.Flows() {
		if f.Parked() {
			parked[k] = canonical(f)
		} else {
			others[k] = canonical(f)
		}
	}
	return parked, others
}

// wantParked checks that a node's kernel has parked what another one carries, and
// nothing else.
func wantParked(t *testing.T, d, owner *node) {
	t.Helper()
	got, _ := d.parked()
	want := owner.kernelTable()
	for k, f := range got { // what a kernel makes of the flow by itself
		const made = flow.StatusSeqAdjust
		f.Status |= want[k].Status & made
		if f.TCPWScale == [2]uint8{} {
			f.TCPWScale = want[k].TCPWScale
		}
		got[k] = f
	}
	if diff := differences(got, want); diff != "" {
		t.Errorf("parked in the kernel of %s, against the kernel of %s: %s", d.name, owner.name, diff)
	}
}

func (d *node) create(t testing.TB, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		f := newFlow(i)
		if i%3 == 0 {
			establish(&f)
		}
		if !d.kernel.Create(f, 0) {
			t.Fatalf("flow %d is there", i)
		}
	}
}

const settled = 2 * time.Second

// What a peer has is parked, follows what becomes of it there, does not become the
// node's own, and is not told to anybody.
func TestParking(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 200)
		time.Sleep(settled)
		wantParked(t, b, a)
		sent := b.stats().Datagrams
		quiet := time.Now()

		for i := range 100 {
			a.kernel.Update(newFlow(i).Orig, 0, func(f *flow.Flow) {
				establish(f)
				f.Mark, f.Has = uint32(i+1), f.Has|flow.HasMark
			})
		}
		for i := 150; i < 200; i++ {
			a.kernel.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(settled)
		wantParked(t, b, a)
		wantInStep(t, a, b)
		if own := b.internalTable(); len(own) > 0 {
			t.Errorf("%d parked flows became the node's own", len(own))
		}
		if n := a.externalTable(); len(n) > 0 {
			t.Errorf("%d parked flows were sent back", len(n))
		}
		// Acknowledgements and signs of life are all that is sent.
		if n := b.stats().Datagrams - sent; n > 40+uint64(time.Since(quiet)/time.Second) {
			t.Errorf("%d datagrams sent by the standby", n)
		}
		s := b.stats()
		if s.ParkResults != ([flow.ParkResults]uint64{}) {
			t.Errorf("not parked: %v", s.ParkResults)
		}
		a.stop()
		b.stop()
	})
}

// A packet with an event passes a parked entry of which the owner has just told the end,
// so that nobody but the kernel knows all of what is this node's own from then on.
func TestParkedAndEndedThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		f := newFlow(6) // with a helper
		establish(&f)
		f.Mark, f.Has = 1, f.Has|flow.HasMark
		a.kernel.Create(f, 0)
		time.Sleep(settled)
		wantParked(t, b, a)
		a.kernel.Destroy(f.Orig, 0)
		for range 1000 {
			if synctest.Wait(); len(b.externalTable()) == 0 {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		if !b.kernel.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark, f.Timeout = 9, 300 }) {
			t.Fatal("the entry was deleted before a packet could pass it")
		}
		time.Sleep(touchedLook + settled)
		if own := b.internalTable(); len(own) != 1 {
			t.Errorf("%d flows are the node's own", len(own))
		}
		wantInternal(t, b)
		a.stop()
		b.stop()
	})
}

// What a takeover makes of a flow that is opening, and was not parked in time, tells of its
// window scale when the other end answers.
func TestAdoptOpening(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		b.do(func() { b.HoldPark(func() {}) })
		f := newFlow(0)
		a.kernel.Create(f, 0)
		time.Sleep(settled)
		b.adopt()
		b.kernel.Update(f.Orig, 0, func(f *flow.Flow) {
			establish(f)
			f.TCPFlags[0], f.TCPWScale[0] = flow.TCPFlagWindowScale, 7
		})
		time.Sleep(settled)
		wantInternal(t, b)
		if own := b.internalTable(); own[f.Orig].TCPWScale != [2]uint8{7, 8} {
			t.Errorf("%+v", own)
		}
		a.stop()
		b.stop()
	})
}

// A burst of updates of one flow is one request.
func TestParkingCollapsesBursts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 1)
		time.Sleep(settled)
		for i := range 1000 {
			a.kernel.Update(newFlow(0).Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = uint32(i+1), f.Has|flow.HasMark })
		}
		time.Sleep(settled)
		wantParked(t, b, a)
		if n := b.stats().Parks[flow.ParkUpdate]; n == 0 || n > 20 {
			t.Errorf("%d requests for a burst", n)
		}
		a.stop()
		b.stop()
	})
}

// A tuple that is used again at once, and with another mapping.
func TestParkingTupleAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		const nat = 5 // newFlow(5) is translated
		f := newFlow(nat)
		establish(&f)
		a.kernel.Create(f, 0)
		time.Sleep(settled)
		for port := range uint16(5) {
			a.kernel.Destroy(f.Orig, 0)
			if port > 2 {
				time.Sleep(settled)
			}
			g := newFlow(nat)
			g.Reply.DstPort = 50000 + port
			if !a.kernel.Create(g, 0) {
				t.Fatal("not created")
			}
			time.Sleep(settled)
			wantParked(t, b, a)
		}
		a.stop()
		b.stop()
	})
}

// The same flow is alive here and there, as on asymmetric ways: it is this node's own
// as long as it lives here, and then the peer's.
func TestParkingOfWhatIsAlive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		f := newFlow(0)
		a.kernel.Create(f, 0)
		b.kernel.Create(f, 0)
		time.Sleep(settled)
		for range 3 {
			a.kernel.Update(f.Orig, 0, establish)
			b.kernel.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = f.Mark+1, f.Has|flow.HasMark })
			time.Sleep(settled)
		}
		for _, d := range []*node{a, b} {
			if parked, others := d.parked(); len(parked) != 0 || len(others) != 1 || len(d.internalTable()) != 1 {
				t.Errorf("%s: %d parked, %d others", d.name, len(parked), len(others))
			}
		}
		wantInStep(t, a, b)
		wantInStep(t, b, a)

		// It ends on one side. That is not in charge, so it keeps it for the other.
		b.do(func() { b.SetPassive(true) })
		b.kernel.Destroy(f.Orig, 0)
		time.Sleep(settled)
		wantParked(t, b, a)
		if _, others := a.parked(); len(others) != 1 {
			t.Error("the end here ended it there")
		}
		a.stop()
		b.stop()
	})
}

// Packets pass a parked entry: with an event it becomes the node's own, with all that
// only its owner has told.
func TestParkedIsTouched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		for i := range 8 {
			f := newFlow(i)
			f.Labels, f.Has = [16]byte{7}, f.Has|flow.HasLabels
			f.SeqAdj[0], f.Has = flow.SeqAdj{Pos: 9, Before: 1, After: 2}, f.Has|flow.HasSeqAdjOrig|flow.HasSeqAdjRepl
			f.Status |= flow.StatusSeqAdjust
			f.Mark, f.Has = 5, f.Has|flow.HasMark
			a.kernel.Create(f, 0)
			a.kernel.Update(f.Orig, 0, func(f *flow.Flow) { f.Labels[0]++ })
		}
		a.do(a.RequestKernelSync) // the sequence adjustment is in no event
		time.Sleep(settled)
		wantParked(t, b, a)
		for i := range 8 {
			b.kernel.Update(newFlow(i).Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 120 })
		}
		time.Sleep(settled)
		own := b.internalTable()
		for k, f := range a.kernelTable() {
			g := own[k]
			if g.Labels != f.Labels || g.SeqAdj != f.SeqAdj || g.Mark != f.Mark || g.Helper != f.Helper || g.Master != f.Master {
				t.Errorf("of what its owner told something is missing:\n\thave %s\n\twant %s", text(g), text(f))
			}
			if g.Status&flow.StatusAssured == 0 {
				t.Errorf("what the event told is missing: %s", text(g))
			}
		}
		if len(own) != 8 || b.stats().Touched != 8 {
			t.Errorf("%d flows, touched %d", len(own), b.stats().Touched)
		}
		// The owner's later words do not change it.
		for i := range 8 {
			a.kernel.Update(newFlow(i).Orig, 0, func(f *flow.Flow) { f.Mark = 77 })
		}
		time.Sleep(settled)
		if parked, _ := b.parked(); len(parked) > 0 {
			t.Errorf("%d flows of this node were parked", len(parked))
		}
		a.stop()
		b.stop()
	})
}

// Packets pass a parked entry, no event tells of it, and its owner ends it: it stays.
func TestParkedIsTouchedSilently(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 8)
		time.Sleep(settled)
		for i := range 4 {
			b.kernel.Touch(newFlow(i).Orig, 120)
		}
		for i := range 8 {
			a.kernel.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(settled)
		parked, others := b.parked()
		if len(parked) != 0 || len(others) != 4 || len(b.internalTable()) != 4 {
			t.Errorf("%d parked, %d others, %d own, want 0, 4, 4", len(parked), len(others), len(b.internalTable()))
		}
		wantInStep(t, b, a)
		a.stop()
		b.stop()
	})
}

// Packets pass a parked flow, and what they change is told by no event. What its owner
// tells next shows it.
func TestParkedIsTouchedUntold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 1, 2)
		time.Sleep(settled)
		f := newFlow(1)
		b.kernel.Mute(true)
		b.kernel.Update(f.Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 120 })
		b.kernel.Mute(false)
		a.kernel.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = 7, f.Has|flow.HasMark })
		time.Sleep(touchedLook + settled)
		if own := b.internalTable(); len(own) != 1 {
			t.Errorf("%d flows are the node's own, want 1", len(own))
		}
		wantInternal(t, b)
		a.stop()
		b.stop()
	})
}

// A parked entry vanishes from the kernel: it is put back, as long as its owner lives.
func TestParkedVanishes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 50)
		time.Sleep(settled)
		for i := range 50 {
			b.kernel.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(settled)
		wantParked(t, b, a)

		a.stop()
		time.Sleep(time.Minute)
		for i := range 25 {
			b.kernel.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(settled)
		if parked, _ := b.parked(); len(parked) != 25 {
			t.Errorf("%d parked, want 25: nobody has the others", len(parked))
		}
		// And what has ended here does not come back with a takeover.
		b.adopt()
		time.Sleep(settled)
		if _, others := b.parked(); len(others) != 25 {
			t.Errorf("%d flows after the takeover, want 25", len(others))
		}
		b.stop()
	})
}

// adopt is what a takeover does.
func (d *node) adopt() {
	held := make(chan struct{})
	d.do(func() { d.SetPassive(false); d.HoldPark(func() { close(held) }) })
	<-held
	var flows []flow.Flow
	d.do(func() {
		for _, o := range d.replica.Owners() {
			for pos, more := flow.Handle(0), true; more; more = pos != 0 {
				pos = d.Adopt(o, pos, 64, func(f *flow.Flow, a Adoptable) (bool, bool) {
					if !a.Ours {
						flows = append(flows, *f)
					}
					return true, true
				})
			}
		}
	})
	for _, f := range flows {
		if !d.kernel.Update(f.Orig, commitPort, func(g *flow.Flow) { g.Timeout = 300 }) {
			d.kernel.Create(f, commitPort)
		}
	}
	d.do(func() { d.HoldPark(nil) })
}

// A takeover: the entries are this node's own, whatever its peer says from then on;
// and the peer, once it is told that it is not in charge, yields what it had.
func TestAdoptAndYield(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 300)
		time.Sleep(settled)
		b.adopt()
		time.Sleep(settled)
		if parked, others := b.parked(); len(parked) > 0 || len(others) != 300 {
			t.Fatalf("%d parked, %d others after the takeover", len(parked), len(others))
		}
		b.do(b.Mode().Bulk) // as conntrackd's dialect wants it
		time.Sleep(settled)
		wantInternal(t, b)
		wantInStep(t, b, a)
		// The old one does not know yet, and changes some.
		for i := range 100 {
			a.kernel.Update(newFlow(i).Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = 9, f.Has|flow.HasMark })
		}
		time.Sleep(settled)
		if parked, _ := b.parked(); len(parked) > 0 {
			t.Errorf("%d flows were parked again", len(parked))
		}

		a.do(func() { a.SetPassive(true) })
		time.Sleep(settled)
		wantParked(t, a, b)
		if own := a.internalTable(); len(own) > 0 {
			t.Errorf("%d flows were not yielded", len(own))
		}
		if _, others := b.parked(); len(others) != 300 || len(b.internalTable()) != 300 {
			t.Errorf("yielding killed some: %d are left", len(others))
		}
		// New ones come and go; what passes the old one in spite of all is its own.
		b.create(t, 300, 350)
		f := newFlow(7)
		a.kernel.Update(f.Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 100 })
		time.Sleep(settled)
		b.kernel.Update(f.Orig, 0, establish)
		time.Sleep(settled)
		if _, others := a.parked(); len(others) != 1 || len(a.internalTable()) != 1 {
			t.Errorf("%d flows of its own, want the one that packets pass", len(others))
		}
		a.kernel.Destroy(f.Orig, 0)
		time.Sleep(settled)
		wantParked(t, a, b)

		// And back.
		a.adopt()
		a.do(a.Mode().Bulk)
		b.do(func() { b.SetPassive(true) })
		time.Sleep(settled)
		wantParked(t, b, a)
		if _, others := a.parked(); len(others) != 350 {
			t.Errorf("%d flows after the return, want 350", len(others))
		}
		a.stop()
		b.stop()
	})
}

// A node is told that it is not in charge while it reads the kernel's table for the
// first time. What the dump comes to later is yielded too, at once or when its new owner
// tells of it.
func TestYieldOfTheFirstDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 300)
		time.Sleep(settled)
		a.stop()
		b.adopt()
		b.do(b.Mode().Bulk)
		time.Sleep(settled)
		late := newFlow(0).Orig // b has lost it, and its packets will come later
		b.kernel.Destroy(late, 0)
		time.Sleep(settled)
		slowly(&a.cfg)
		a.start()
		time.Sleep(10 * time.Millisecond)
		a.do(func() { a.SetPassive(true) })
		time.Sleep(30 * time.Second)
		if _, own := a.internalTable()[late]; !own {
			t.Error("yielded to nobody")
		}
		b.kernel.Update(late, 0, func(f *flow.Flow) { establish(f); f.Timeout = 100 }) // parked there for this node
		time.Sleep(settled)
		wantParked(t, a, b)
		if own := a.internalTable(); len(own) > 0 {
			t.Errorf("%d flows were not yielded", len(own))
		}
		a.stop()
		b.stop()
	})
}

// A node that is told not to be in charge any more does not yield to what another one
// still has of before, but to what that says from then on. conntrackd's dialect has no roles,
// so the time of what was said must do.
func TestYieldToRemnants(t *testing.T) {
	bubble(t, func(t *testing.T) {
		nodes := 0
		second := func(cfg *Config) {
			if nodes++; nodes == 2 {
				withParker(cfg)
			}
		}
		_, a, b := pair(t, second)
		other := func(d *node, owner int) table { // what d has of the other one
			return d.cacheTable(func() *cache.Cache { return d.replica.list[owner].cache })
		}
		const flows = 40
		a.create(t, 0, flows)
		time.Sleep(settled)
		b.adopt()
		b.do(b.Mode().Bulk)
		a.mark() // told not to be in charge: what it has is of before
		time.Sleep(settled)
		if n := len(other(a, 0)); n != flows {
			t.Fatalf("the new one has told %d of %d flows", n, flows)
		}
		b.do(func() { b.SetPassive(true); b.RequestKernelSync() })
		time.Sleep(2 * settled)
		if s, own, told := b.stats(), len(b.internalTable()), len(other(a, 0)); s.Yielded != 0 || own != flows || told != flows {
			t.Errorf("yielded %d to what the other one has of before: own %d, told %d", s.Yielded, own, told)
		}

		// The other one commits, and tells.
		for i := range flows {
			a.kernel.Update(newFlow(i).Orig, commitPort, func(f *flow.Flow) { f.Mark, f.Has = 5, f.Has|flow.HasMark })
		}
		a.slices(a.ForgetRemnants)
		time.Sleep(settled)
		a.do(a.Mode().Bulk)
		time.Sleep(2 * settled)
		wantParked(t, b, a)
		if own := len(b.internalTable()); own != 0 {
			t.Errorf("%d of %d were not yielded", own, flows)
		}
		a.stop()
		b.stop()
	})
}

// The kernel lets nobody take back that a flow was answered, or that it has a master. A
// flow is yielded when its new owner has come as far, and stays this node's own until then.
func TestYieldWaitsForState(t *testing.T) {
	for name, ahead := range map[string]func(*flow.Flow){
		"answered": establish,
		"master": func(f *flow.Flow) {
			f.Status, f.Has, f.Master = f.Status|flow.StatusExpected, f.Has|flow.HasMaster, newFlow(6).Orig
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				_, a, b := mirrorPair(t, withParker)
				f, g := newFlow(0), newFlow(0)
				ahead(&f)
				a.kernel.Create(newFlow(6), 0)
				b.kernel.Create(newFlow(6), 0)
				a.kernel.Create(f, 0) // at the same time
				b.kernel.Create(g, 0)
				time.Sleep(settled)
				b.tell(wire.RolePrimary)
				a.tell(wire.RoleBackup)
				time.Sleep(2 * settled)
				a.wantHolds(t, "ahead of the new owner", 1, 1)
				if n := a.count(false); n.All != 1 || n.Held != 1 {
					t.Errorf("no remnant for the purge: %+v", n)
				}
				if name == "master" { // no update makes it so
					b.kernel.Destroy(g.Orig, 0)
					ahead(&g)
					b.kernel.Create(g, 0)
				} else {
					b.kernel.Update(g.Orig, 0, ahead)
				}
				time.Sleep(settled)
				a.wantHolds(t, "not ahead any more", 0, 2)
				wantParked(t, a, b)
				a.stop()
				b.stop()
			})
		})
	}
}

// What is yielded, and ended by its new owner before it could be parked, looks as if
// packets passed it here. It is a remnant that has ended elsewhere: a purge ends it unless
// it is used.
func TestYieldedAndEnded(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used %v", used), func(t *testing.T) {
			dialects(t, func(t *testing.T, mirror bool, a, b *node) {
				a.opened(10)
				b.adopt()
				if !mirror {
					b.do(b.replica.Flush) // as after any commit
				}
				b.do(b.Mode().Bulk)
				time.Sleep(settled)
				if mirror {
					b.tell(wire.RolePrimary)
					a.tell(wire.RoleBackup)
				} else {
					a.do(func() { a.SetPassive(true) })
					a.mark()
				}
				for range 100_000 {
					if synctest.Wait(); a.stats().Yielded == 10 {
						break
					}
					time.Sleep(100 * time.Microsecond)
				}
				f := newFlow(3)
				b.kernel.Destroy(f.Orig, 0)
				time.Sleep(settled)
				if left := a.kernel.Flows()[f.Orig]; left.Timeout == 0 || left.Timeout > 300 {
					t.Fatalf("it was deleted, or is kept: %d s", left.Timeout)
				}
				if n := a.count(false); n.All != 1 || n.Ended != 1 {
					t.Errorf("%+v", n)
				}
				told := func() bool { return b.replica.list[0].cache.Lookup(&f.Orig) != 0 }
				if told() != mirror {
					t.Errorf("the new owner has been told: %v", told())
				}
				ends, _ := a.judge(RemnantRule{})
				wantTuples(t, "to end", ends, 3)
				if used {
					a.kernel.Touch(f.Orig, 300)
					_, inUse := a.judge(RemnantRule{Outlived: true})
					wantTuples(t, "in use", inUse, 3)
				} else {
					a.kernel.Destroy(f.Orig, 0)
				}
				time.Sleep(settled)
				if _, own := a.internalTable()[f.Orig]; own != used || told() != used {
					t.Errorf("in the end it is in the cache: %v, and at the peer: %v", own, told())
				}
				wantInternal(t, a)
				wantInternal(t, b)
			}, withParker)
		})
	}
}

// What has a timeout that nobody can change, as a tunnel after a takeover, cannot be
// parked as it is: it stays this node's own until the purge removes it, and is parked
// then.
func TestYieldFixedTimeout(t *testing.T) {
	dialects := []func(*testing.T, ...func(*Config)) (*simnet.Network, *node, *node){pair, mirrorPair}
	for _, pair := range dialects {
		bubble(t, func(t *testing.T) {
			_, a, b := pair(t, withParker)
			f := newFlow(1)
			f.Timeout, f.Status = 86400, flow.StatusFixedTimeout
			a.kernel.Create(f, 0)
			a.create(t, 2, 4)
			time.Sleep(settled)
			b.adopt()
			b.do(b.Mode().Bulk)
			time.Sleep(settled)
			a.do(func() { a.SetPassive(true) })
			a.mark()
			time.Sleep(settled)
			a.do(a.RequestKernelSync)
			time.Sleep(settled)
			if parked, others := a.parked(); len(parked) != 2 || len(others) != 1 || len(a.internalTable()) != 1 {
				t.Errorf("%d parked, %d others, %d own", len(parked), len(others), len(a.internalTable()))
			}
			if n := a.count(false); n.All != 1 || n.Held != 1 {
				t.Errorf("no remnant for the purge: %+v", n)
			}
			a.kernel.Destroy(f.Orig, purgePort)
			time.Sleep(settled)
			if parked, others := a.parked(); len(parked) != 3 || len(others) != 0 || len(a.internalTable()) != 0 {
				t.Errorf("after the purge: %d parked, %d others, %d own", len(parked), len(others), len(a.internalTable()))
			}
			if others := len(b.internalTable()); others != 3 {
				t.Errorf("the new owner has %d flows", others)
			}
			a.stop()
			b.stop()
		})
	}
}

// What is this node's own at a takeover, and an owner has too, is handed out to be
// compared with what the kernel has, and stays as it is.
func TestAdoptWhatIsOurs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 10)
		b.create(t, 0, 4) // from an earlier time in charge
		a.kernel.Update(newFlow(0).Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = 7, f.Has|flow.HasMark })
		time.Sleep(settled)
		own := b.internalTable()
		got := map[flow.Tuple]Adoptable{}
		b.do(func() {
			for pos, more := flow.Handle(0), true; more; more = pos != 0 {
				pos = b.Adopt(onlyPeer, pos, 64, func(f *flow.Flow, x Adoptable) (bool, bool) {
					if got[f.Orig] = x; f.Orig == newFlow(0).Orig && f.Mark != 7 {
						t.Errorf("handed out with mark %d, not as its owner has it", f.Mark)
					}
					return x.Ours, true
				})
			}
		})
		ours := 0
		for k, x := range got {
			if _, there := own[k]; x.Ours != there || x.Parked == there {
				t.Errorf("%v: %+v, ours %v", k, x, there)
			}
			if x.Ours {
				ours++
			}
		}
		if len(got) != 10 || ours != 4 {
			t.Errorf("%d handed out, %d of them ours; want 10 and 4", len(got), ours)
		}
		wantTable(t, "the internal cache", b.internalTable(), own)
		if n := b.stats().Adopted; n != 0 {
			t.Errorf("%d adopted", n)
		}
		a.stop()
		b.stop()
	})
}

// A flow that ended at the new primary is not parked again by what an old one still
// has of it.
func TestEndedAfterTakeover(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 10)
		time.Sleep(settled)
		b.adopt()
		for i := range 10 {
			b.kernel.Mute(i >= 5) // some unnoticed
			b.kernel.Destroy(newFlow(i).Orig, 0)
		}
		b.kernel.Mute(false)
		time.Sleep(settled)
		b.do(b.RequestKernelSync)
		time.Sleep(settled)
		if n := b.kernel.Len(); n != 0 {
			t.Errorf("%d flows came back", n)
		}
		b.adopt()
		time.Sleep(settled)
		if n := b.kernel.Len(); n != 0 {
			t.Errorf("%d flows came back with a second takeover", n)
		}
		a.stop()
		b.stop()
	})
}

// The standby loses events, and reads its table: what is parked stays what it is.
func TestParkedAndOverrun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 200)
		b.create(t, 300, 310)
		time.Sleep(settled)
		b.kernel.Limit(10)
		b.kernel.Stall(true)
		for i := range 50 { // also while nobody hears it
			a.kernel.Destroy(newFlow(i).Orig, 0)
			b.kernel.Update(newFlow(300).Orig, 0, func(f *flow.Flow) { f.Mark++ })
		}
		b.kernel.Destroy(newFlow(60).Orig, 0) // parked, and lost unnoticed
		time.Sleep(settled)
		b.kernel.Stall(false)
		time.Sleep(10 * time.Second)
		if b.kernel.Overruns() == 0 || b.stats().Resyncs < 2 {
			t.Fatal("nothing was lost")
		}
		wantParked(t, b, a)
		if own := b.internalTable(); len(own) != 10 {
			t.Errorf("%d own flows, want 10", len(own))
		}
		if n := a.externalTable(); len(n) != 10 {
			t.Errorf("%d flows were told, want 10", len(n))
		}
		a.stop()
		b.stop()
	})
}

// The standby's process starts again, and knows nothing: neither are its parked entries
// its own then, nor are they removed before its peer has told everything.
func TestParkedAndRestart(t *testing.T) {
	for _, c := range []struct {
		name   string
		alone  bool
		policy OrphanPolicy
	}{{"beside its peer", false, OrphansGo}, {"alone", true, OrphansAdopt}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := parkedPair(t)
				a.create(t, 0, 100)
				time.Sleep(settled)
				b.stop()
				for i := range 20 { // ended meanwhile
					a.kernel.Destroy(newFlow(i).Orig, 0)
				}
				time.Sleep(100 * time.Millisecond) // or their owner may still tell of them, and of their end
				if c.alone {
					a.stop()
				}
				b.start()
				time.Sleep(settled / 2)
				if parked, others := b.parked(); len(parked) != 100 || len(others) != 0 || len(b.internalTable()) != 0 {
					t.Fatalf("%d parked, %d others, %d own after the start", len(parked), len(others), len(b.internalTable()))
				}
				time.Sleep(30 * time.Second)
				var orphans uint64
				b.do(func() {
					orphans = b.Orphans()
					b.SetOrphans(c.policy)
					b.RequestKernelSync()
				})
				if orphans == 0 {
					t.Error("no orphans were found")
				}
				time.Sleep(settled)
				if !c.alone {
					wantParked(t, b, a)
					a.stop()
				} else if parked, others := b.parked(); len(parked) != 0 || len(others) != 100 || len(b.internalTable()) != 100 {
					t.Errorf("%d parked, %d others, %d own: nobody else has them", len(parked), len(others), len(b.internalTable()))
				}
				b.stop()
			})
		})
	}
}

// A node goes back from instant takeover to committing: what it has parked is not its own,
// but for what packets pass.
func TestParkedBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 100)
		time.Sleep(settled)
		b.stop()
		b.cfg.Parker, b.cfg.ParkedBefore = nil, true
		b.start()
		b.create(t, 200, 210)
		time.Sleep(30 * time.Second)
		wantOwn := func(n int) {
			t.Helper()
			if own := b.internalTable(); len(own) != n || len(a.externalTable()) != n {
				t.Errorf("%d own, of which %d were told, want %d", len(own), len(a.externalTable()), n)
			}
			wantInStep(t, b, a)
		}
		wantOwn(10)
		var left uint64
		var read bool
		if b.do(func() { left, read = b.ParkedBefore() }); left != 100 || !read {
			t.Errorf("%d are left of before, the table read: %v", left, read)
		}
		b.kernel.Update(newFlow(1).Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 120 })
		b.kernel.Update(newFlow(2).Orig, 0, establish) // the timeout comes a moment later
		b.kernel.Touch(newFlow(2).Orig, 120)
		time.Sleep(settled)
		wantOwn(12)
		b.kernel.Touch(newFlow(3).Orig, 120)
		b.do(b.RequestKernelSync)
		time.Sleep(settled)
		wantOwn(13)
		if b.do(func() { left, read = b.ParkedBefore() }); left != 97 {
			t.Errorf("%d are left of before, want 97", left)
		}
		b.do(func() {
			if s := b.internal.Timeout(b.internal.Lookup(new(newFlow(2).Orig))); s != 120 {
				t.Errorf("a flow in use has a timeout of %d s", s)
			}
		})
		wantInStep(t, a, b)
		a.stop()
		b.stop()
	})
}

// The active's process starts again: what it had is in doubt, not gone.
func TestParkedInDoubt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 100)
		time.Sleep(settled)
		a.stop()
		for i := range 20 {
			a.kernel.Destroy(newFlow(i).Orig, 0)
		}
		deleted := func() uint64 { return b.stats().Parks[flow.ParkDelete] }
		a.start()
		for deadline := time.Now().Add(time.Minute); deleted() == 0 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if parked, _ := b.parked(); len(parked) < 80 {
				t.Fatalf("%d are parked", len(parked))
			}
		}
		time.Sleep(settled)
		wantParked(t, b, a)
		if n := deleted(); n != 20 {
			t.Errorf("%d deletions, want 20", n)
		}
		a.stop()
		b.stop()
	})
}

// Flushing the external cache takes what is parked out of the kernel, and nothing else.
func TestParkedAndFlush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 100)
		b.create(t, 200, 220)
		time.Sleep(settled)
		b.do(b.FlushExternal)
		time.Sleep(settled)
		if parked, others := b.parked(); len(parked) != 0 || len(others) != 20 {
			t.Errorf("%d parked, %d others", len(parked), len(others))
		}
		b.do(b.Mode().RequestResync)
		time.Sleep(30 * time.Second)
		wantParked(t, b, a)
		// Flows that were forgotten, and live in the kernel, are not parked over.
		b.create(t, 300, 301)
		time.Sleep(settled)
		b.do(b.FlushInternal)
		a.kernel.Update(newFlow(300).Orig, 0, func(f *flow.Flow) { establish(f); f.Timeout = 100 })
		time.Sleep(settled)
		if b.stats().ParkResults[flow.ParkLocal] != 1 {
			t.Errorf("%v", b.stats().ParkResults)
		}
		if f := b.kernel.Flows()[newFlow(300).Orig]; f.Parked() {
			t.Error("a flow that lives here was parked")
		}
		a.stop()
		b.stop()
	})
}

// What peers have clashes with what lives here: it stays out, and is parked when there
// is room, at the latest when the table is read again.
func TestParkedClash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		f := newFlow(5) // translated
		local := newFlow(13)
		local.Reply = f.Reply
		b.kernel.Create(local, 0)
		a.kernel.Create(f, 0)
		time.Sleep(settled)
		if n := b.stats().ParkResults[flow.ParkClash]; n != 1 {
			t.Errorf("%d clashes, want 1", n)
		}
		if p := b.kernel.Flows()[local.Orig]; p.Parked() || b.kernel.Len() != 1 {
			t.Error("a flow that lives here gave way")
		}
		b.kernel.Destroy(local.Orig, 0)
		b.do(b.RequestKernelSync)
		time.Sleep(settled)
		wantParked(t, b, a)
		a.stop()
		b.stop()
	})
}

// The kernel's table is full: said, retried at leisure, and mended when there is room.
func TestParkedFullTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		b.parker().set(func() { b.parker().max = 60 })
		a.create(t, 0, 100)
		time.Sleep(settled)
		if p := b.problems(); p != "the kernel's table is full: some flows of a peer are not in it" {
			t.Errorf("problems: %q", p)
		}
		before := b.parker().creates()
		time.Sleep(time.Minute)
		if n := b.parker().creates() - before; n == 0 || n > 7*100 {
			t.Errorf("%d tries in a minute for 40 flows", n)
		}
		b.parker().set(func() { b.parker().max = 0 })
		time.Sleep(30 * time.Second)
		wantParked(t, b, a)
		if p := b.problems(); p != "" {
			t.Errorf("problems: %q", p)
		}
		a.stop()
		b.stop()
	})
}

// Each creation in a full table makes the kernel drop a flow of somebody if it can: so
// only a few are tried, however many are missing.
func TestParkedFullTableIsSpared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		b.parker().set(func() { b.parker().max = 60 })
		const flows = 3000
		a.create(t, 0, flows)
		time.Sleep(time.Minute)
		if n := b.parker().creates(); n > 7*parkBatches*flow.ParkBatchSize {
			t.Errorf("%d creations tried in a minute", n)
		}
		b.parker().set(func() { b.parker().max = 0 })
		time.Sleep(parkRetry)
		wantWaiting := time.Now().Add(time.Minute)
		for parked := 0; parked < flows && time.Now().Before(wantWaiting); time.Sleep(time.Second) {
			b.do(func() { parked, _ = b.Parked() })
		}
		wantParked(t, b, a)
		a.stop()
		b.stop()
	})
}

// A slow kernel stops neither the loop nor the messages, and what waits is bounded.
func TestSlowParker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		b.parker().set(func() { b.parker().pace = 10 * time.Second })
		for round := range 20 {
			for i := range 300 {
				f := newFlow(i)
				if !a.kernel.Create(f, 0) {
					a.kernel.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark, f.Has = uint32(round), f.Has|flow.HasMark })
				}
				if i%3 == round%3 {
					a.kernel.Destroy(f.Orig, 0)
				}
			}
			time.Sleep(time.Second)
			var waiting int
			b.do(func() { _, waiting = b.Parked() })
			if waiting > 600 {
				t.Fatalf("%d changes wait for 300 flows", waiting)
			}
		}
		wantInStep(t, a, b)
		time.Sleep(10 * time.Minute)
		for i := range 300 { // whose masters come and go
			if i%8 == 7 {
				a.kernel.Destroy(newFlow(i).Orig, 0)
			}
		}
		time.Sleep(10 * time.Minute)
		wantParked(t, b, a)
		a.stop()
		b.stop()
	})
}

// A parked entry that nobody mentions for weeks is parked anew in time.
func TestParkedForWeeks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		a.create(t, 0, 20)
		time.Sleep(settled)
		for i := range 20 { // ten days later, with a day of pause each
			b.kernel.Touch(newFlow(i).Orig, flow.ParkTimeout-parkSlack-86400*uint32(i%3-1))
		}
		time.Sleep(25 * time.Hour)
		for k, f := range b.kernel.Flows() {
			if f.Timeout < flow.ParkTimeout-parkSlack {
				t.Errorf("flow %d has %d s left", k.SrcPort, f.Timeout)
			}
		}
		if n := b.stats().Parks[flow.ParkUpdate]; n != 13 {
			t.Errorf("%d entries were parked anew, want 13", n)
		}
		a.stop()
		b.stop()
	})
}

// A child whose master comes later is parked with it; one whose master never comes,
// without.
func TestParkedMasters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		child, master := newFlow(7), newFlow(6)
		a.kernel.Create(child, 0)
		a.kernel.Create(master, 0)
		lone := newFlow(15)
		lone.Master = newFlow(14).Orig
		a.kernel.Create(lone, 0)
		time.Sleep(settled)
		flows := b.kernel.Flows()
		if f := flows[child.Orig]; f.Status&flow.StatusExpected == 0 || f.Master != master.Orig {
			t.Error("a child was parked without its master")
		}
		if f, ok := flows[lone.Orig]; !ok || f.Status&flow.StatusExpected != 0 {
			t.Error("a child whose master is nowhere was not parked, or with one")
		}
		a.stop()
		b.stop()
	})
}

// Expectations are parked after their masters, follow what becomes of them, and are the
// node's own with their masters.
func TestParkedExpectations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t, withParker, func(cfg *Config) { cfg.DumpExpects = cfg.Events.(*simnet.Kernel).DumpExpects })
		var masters []flow.Flow
		for i := range 4 {
			m := withHelper(i, 0)
			masters = append(masters, m)
			a.kernel.Create(m, 0)
			for j := range 3 {
				a.kernel.Expect(expects(&m, 10*i+j), 0)
			}
		}
		parked := func(want int, what string) {
			t.Helper()
			time.Sleep(settled)
			have := b.kernel.Expects()
			if len(have) != want {
				t.Errorf("%s: %d expectations in the kernel, want %d", what, len(have), want)
			}
			for k, x := range a.kernel.Expects() {
				h := have[k]
				if x, h = sameEverywhere(x), sameEverywhere(h); x != h {
					t.Errorf("%s: parked is %+v, want %+v", what, h, x)
				}
			}
			if own := b.internalTable(); len(own) > 0 {
				t.Errorf("%s: %d entries became the node's own", what, len(own))
			}
		}
		parked(12, "at first")
		x := expects(&masters[0], 1)
		a.kernel.Fulfil(x.Key(), 0)
		a.kernel.Destroy(masters[1].Orig, 0)
		parked(8, "after some ended")
		b.do(b.RequestKernelSync)
		parked(8, "after a dump")

		// Packets pass a master: what its peer still expects of it does not matter.
		b.kernel.Update(masters[2].Orig, 0, func(f *flow.Flow) { f.Mark, f.Has, f.Timeout = 3, f.Has|flow.HasMark, 100 })
		time.Sleep(settled)
		a.kernel.Expect(expects(&masters[2], 29), 0)
		time.Sleep(settled)
		if n := len(b.kernel.Expects()); n != 8 {
			t.Errorf("%d expectations, want 8", n)
		}
		b.do(b.FlushExternal)
		time.Sleep(settled)
		for k, x := range b.kernel.Expects() {
			if x.Master != masters[2].Orig {
				t.Errorf("%d is still expected after a flush", k.DstPort)
			}
		}
		a.stop()
		b.stop()
	})
}

// What comes while the parker is held waits.
func TestHoldPark(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := parkedPair(t)
		b.parker().set(func() { b.parker().pace = time.Second })
		a.create(t, 0, 10)
		time.Sleep(200 * time.Millisecond)
		held := make(chan struct{})
		b.do(func() { b.HoldPark(func() { close(held) }) })
		begin := time.Now()
		<-held
		if d := time.Since(begin); d == 0 || b.kernel.Len() != 10 {
			t.Errorf("held after %v, with %d entries", d, b.kernel.Len())
		}
		a.create(t, 10, 20)
		time.Sleep(settled)
		if n := b.kernel.Len(); n != 10 {
			t.Errorf("%d entries while the parker is held", n)
		}
		b.do(func() { b.HoldPark(nil) })
		time.Sleep(2 * settled)
		wantParked(t, b, a)
		a.stop()
		b.stop()
	})
	bubble(t, func(t *testing.T) { // and where nothing is parked
		a, _ := alone(t)
		called := false
		a.do(func() {
			a.HoldPark(func() { called = true })
			a.HoldPark(nil)
			a.SetPassive(true)
			a.SetOrphans(OrphansGo)
		})
		if n, w := a.Parked(); !called || a.Parks() || n != 0 || w != 0 || a.Orphans() != 0 {
			t.Error("a node that parks nothing")
		}
		synctest.Wait()
		a.stop()
	})
}

// TestParkedCluster is TestCluster with nodes that park what the others have, and
// change their roles: in the end each kernel has, besides its own flows, those of all
// others parked, and nothing else.
func TestParkedCluster(t *testing.T) { testParkedCluster(t, false) }

// TestMixedCluster is TestParkedCluster with some nodes that take over by commits.
func TestMixedCluster(t *testing.T) { testParkedCluster(t, true) }

func testParkedCluster(t *testing.T, mixed bool) {
	first, n := uint64(1), 12
	if raceEnabled || testing.Short() {
		n = 4
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "seeds" {
			n = *seeds
		}
	})
	for s := range uint64(n) {
		for _, what := range runCluster(t, first+s, flawNone, func(c *cluster) { c.parks, c.mixed = true, mixed }) {
			t.Error(what)
		}
		if t.Failed() {
			t.Fatalf("replay with: go test ./internal/engine -run '%s$' -seed %d", t.Name(), first+s)
		}
	}
}

// gone is Config.Gone of a member.
func (m *member) gone() (gone []uint8) {
	alive := map[uint8]bool{}
	for _, p := range m.Peers(m.now) {
		alive[p.Owner] = alive[p.Owner] || p.Alive && p.Met
	}
	for _, o := range m.replica.Owners() {
		if !alive[o] {
			gone = append(gone, o)
		}
	}
	return gone
}

// role gives a member a role, at random. One that is primary does not always say so.
func (c *cluster) role(m *member) {
	if c.r.IntN(2) == 0 {
		m.on(func() {
			m.Machine.SetRole(m.now, wire.RoleBackup+wire.Role(c.r.IntN(2)))
			m.SetPassive(true)
		})
		return
	}
	m.on(func() {})
	m.takeover()
	m.on(func() { m.Machine.SetRole(m.now, wire.Role(c.r.IntN(2))) })
}

// adopt is a takeover by a member.
func (c *cluster) adopt(m *member) {
	m.on(func() {})
	m.node.adopt()
}

// agreeParked checks the parked entries of a member's kernel against what it holds of
// the others.
func (c *cluster) agreeParked(m *member) {
	flows := m.kernel.Flows()
	m.on(func() {
		p := m.park
		if n, waiting := m.Parked(); waiting > 0 || p.flying > 0 {
			c.failf("%s is idle, and %d changes of %d parked entries wait", m.name, waiting, n)
		}
		n, known := 0, map[flow.Tuple]bool{}
		for _, o := range m.replica.list {
			marks := 0
			o.cache.Walk(0, 0, func(h flow.Handle) bool {
				key := o.cache.Key(h)
				known[key] = true
				flags := o.cache.Flags(h)
				if flags&extParked != 0 {
					marks++
				}
				f, there := flows[key]
				switch {
				case m.ours(&key):
					if flags&extParked != 0 {
						c.failf("%s: flow %d is its own, and counted as parked", m.name, key.SrcPort)
					}
				case flags&extEnded != 0:
				case !there || !f.Parked():
					c.failf("%s: flow %d of %s is not parked (flags %x): %v", m.name, key.SrcPort, m.OwnerName(o.id), flags, there)
				case !c.someMark(m, &key, f.Mark):
					c.failf("%s: flow %d is parked with mark %d, which nobody has", m.name, key.SrcPort, f.Mark)
				}
				return true
			})
			if marks != o.parked {
				c.failf("%s: %d entries of %s are parked, counted %d", m.name, marks, m.OwnerName(o.id), o.parked)
			}
			n += marks
		}
		if n != p.n {
			c.failf("%s: %d entries are parked, counted %d", m.name, n, p.n)
		}
		for k, f := range flows {
			if f.Parked() && !known[k] {
				c.failf("%s: flow %d is parked, and nobody has it", m.name, k.SrcPort)
			}
		}
	})
}

// someMark reports whether an owner has the flow t with this mark.
func (c *cluster) someMark(m *member, t *flow.Tuple, mark uint32) (some bool) {
	m.replica.holders(t, func(o *owned, h flow.Handle) {
		var f flow.Flow
		o.cache.Load(h, &f)
		some = some || f.Mark == mark
	})
	return some
}

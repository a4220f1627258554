package ftfw

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// daemon is the FT-FW of a conntrackd, told as naively as its rules are, with its
// defects: it forgets what a full resend queue has no room for, acknowledges
// nothing by timer while it sends, asks for a resync once, forgets everything in
// flight at a HELLO, and repeats control messages with the HELLO flags of old.
type daemon struct {
	objects  map[uint16]*object
	order    []*object // in the order of their creation, as good as any hash
	external map[uint16]uint32
	lost     map[uint16]bool // ports whose state fell out of the resend queue

	tx, rs []element
	limit  int // of the resend queue
	seq    wire.Seq
	hello  int // 0 INIT, 1 SAY, 2 DONE
	answer bool
	alive  monotime.Time

	known, pending bool
	last, ackFrom  wire.Seq
	window, size   int
}

type object struct {
	port    uint16
	mark    uint32
	dead    bool
	updated bool
}

// element is what the queues hold: an object or a control message.
type element struct {
	o        *object
	f        wire.Flags
	from, to wire.Seq
	seq      wire.Seq
}

func newDaemon(seq wire.Seq, limit int) *daemon {
	d := &daemon{objects: map[uint16]*object{}, limit: limit, size: 300}
	d.restart(seq, false)
	return d
}

// restart begins a new process, which reloads the flows of its kernel.
func (d *daemon) restart(seq wire.Seq, resync bool) {
	alive := d.own()
	*d = daemon{
		objects: map[uint16]*object{}, external: map[uint16]uint32{}, lost: map[uint16]bool{},
		limit: d.limit, size: d.size, window: d.size, seq: seq, alive: 1,
	}
	for _, p := range ports(alive) {
		d.insert(p, alive[p])
	}
	if resync {
		d.tx = append(d.tx, element{f: wire.FlagResync})
	}
}

func (d *daemon) insert(port uint16, mark uint32) *object {
	o := &object{port: port, mark: mark}
	d.objects[port] = o
	d.order = append(d.order, o)
	return o
}

// discard drops o from everything, delivered or not.
func (d *daemon) discard(o *object) {
	is := func(e element) bool { return e.o == o }
	d.tx, d.rs = slices.DeleteFunc(d.tx, is), slices.DeleteFunc(d.rs, is)
	d.order = slices.DeleteFunc(d.order, func(x *object) bool { return x == o })
	if d.objects[o.port] == o {
		delete(d.objects, o.port)
	}
}

func (d *daemon) change(r *rand.Rand, port uint16) {
	mark := r.Uint32()
	o := d.objects[port]
	switch {
	case o == nil || o.dead:
		if o != nil {
			d.discard(o)
		}
		o = d.insert(port, mark)
	case r.IntN(3) == 0:
		o.dead = true
	default:
		o.mark, o.updated = mark, true
	}
	d.enqueue(o)
}

func (d *daemon) enqueue(o *object) {
	is := func(e element) bool { return e.o == o }
	if slices.ContainsFunc(d.tx, is) {
		return
	}
	d.rs = slices.DeleteFunc(d.rs, is)
	d.tx = append(d.tx, element{o: o})
}

func (d *daemon) own() map[uint16]uint32 {
	own := map[uint16]uint32{}
	for p, o := range d.objects {
		if !o.dead {
			own[p] = o.mark
		}
	}
	return own
}

func (d *daemon) foreign() map[uint16]uint32 { return d.external }

func (d *daemon) next(now monotime.Time) monotime.Time {
	if len(d.tx) > 0 {
		return now
	}
	return d.alive
}

func (d *daemon) invariants(monotime.Time) error { return nil }

func (d *daemon) turn(now monotime.Time, send func([]byte)) {
	if len(d.tx) == 0 && now >= d.alive {
		if d.pending {
			d.tx = append(d.tx, element{f: wire.FlagAck, from: d.ackFrom, to: d.last})
			d.pending = false
		} else {
			d.tx = append(d.tx, element{f: wire.FlagAlive})
		}
	}
	if len(d.tx) == 0 {
		return
	}
	const capacity = 1472
	var b []byte
	for len(d.tx) > 0 {
		e := d.tx[0]
		d.tx = d.tx[1:]
		if d.hello == 0 {
			d.hello = 1
		}
		var f wire.Flags
		if d.hello == 1 {
			f = wire.FlagHello
		}
		if d.answer {
			f |= wire.FlagHelloBack
			d.answer = false
		}
		e.seq = d.seq
		d.seq++
		var m []byte
		if e.o != nil {
			t, fl := wire.CTNew, simWire(e.o.port, e.o.mark)
			switch {
			case e.o.dead:
				t = wire.CTDel
			case e.o.updated:
				t = wire.CTUpd
			}
			m = wire.AppendFlow(nil, wire.Conntrackd, t, f, e.seq, &fl)
		} else {
			e.f |= f // stays, when it is sent again
			m = wire.AppendControl(nil, e.f, e.seq, e.from, e.to)
		}
		if len(b)+len(m) >= capacity {
			send(b)
			b = nil
		}
		b = append(b, m...)
		if e.f&wire.FlagAlive == 0 {
			d.retain(e)
		}
	}
	send(b)
	d.alive = now.Add(time.Second)
}

// retain appends e to the resend queue; the oldest element of a full one is gone.
func (d *daemon) retain(e element) {
	if len(d.rs) == d.limit {
		if o := d.rs[0].o; o != nil {
			d.lost[o.port] = true
			if o.dead {
				d.discard(o)
				d.rs = append(d.rs, e)
				return
			}
		}
		d.rs = d.rs[1:]
	}
	d.rs = append(d.rs, e)
}

func (d *daemon) receive(_ monotime.Time, b []byte) error {
	rd := wire.Reader{Strict: true}
	rd.Reset(b)
	var m wire.Message
	for rd.Next(&m) {
		if m.Fault != wire.FaultNone {
			return fmt.Errorf("a conntrackd calls a message bad: %v", m.Fault)
		}
		d.take(&m)
	}
	return nil
}

func (d *daemon) take(m *wire.Message) {
	if m.Flags&wire.FlagHelloBack != 0 && d.hello == 1 {
		d.hello = 2
	}
	expected := d.last + 1
	switch {
	case m.Flags&wire.FlagHello != 0:
		d.answer = true
		if d.pending && m.Seq.Before(d.ackFrom) {
			d.window, d.ackFrom = d.size-1, m.Seq
		}
		gone := d.rs
		d.rs = nil
		for _, e := range gone {
			if e.o != nil && e.o.dead {
				d.discard(e.o)
			}
		}
	case !d.known:
	case m.Seq.Before(expected):
		return
	case m.Seq != expected:
		d.digest(m)
		if d.pending {
			d.tx = append(d.tx, element{f: wire.FlagAck, from: d.ackFrom, to: d.last})
		}
		d.tx = append(d.tx, element{f: wire.FlagNack, from: expected, to: m.Seq - 1})
		d.window, d.ackFrom, d.pending = d.size-1, m.Seq, true
		d.last, d.known = m.Seq, true
		return
	}
	d.digest(m)
	if !d.pending {
		d.pending, d.ackFrom = true, m.Seq
	}
	if d.window--; d.window == 0 {
		d.tx = append(d.tx, element{f: wire.FlagAck, from: d.ackFrom, to: m.Seq})
		d.window, d.pending = d.size, false
	}
	d.last, d.known = m.Seq, true
}

func (d *daemon) digest(m *wire.Message) {
	switch {
	case m.Type == wire.CTDel:
		delete(d.external, m.Flow.Orig.SrcPort)
	case m.Type != wire.Ctl:
		d.external[m.Flow.Orig.SrcPort] = m.Flow.Mark
	case m.Flags&wire.FlagAck != 0:
		for _, e := range d.withdraw(m.From, m.To) {
			if e.o != nil && e.o.dead {
				d.discard(e.o)
			}
		}
	case m.Flags&wire.FlagNack != 0:
		d.tx = append(d.tx, d.withdraw(m.From, m.To)...)
	case m.Flags&wire.FlagResync != 0:
		for _, o := range d.order {
			d.enqueue(o)
		}
	}
}

// withdraw takes the elements of a range of numbers out of the resend queue, which
// is in the order of its numbers.
func (d *daemon) withdraw(from, to wire.Seq) []element {
	first := 0
	for first < len(d.rs) && d.rs[first].seq.Before(from) {
		first++
	}
	last := first
	for last < len(d.rs) && !to.Before(d.rs[last].seq) {
		last++
	}
	out := slices.Clone(d.rs[first:last])
	d.rs = slices.Delete(d.rs, first, last)
	return out
}

// ports returns the keys of a map in order, so that a run can be repeated.
func ports(m map[uint16]uint32) (list []uint16) {
	for p := range 1 << 16 {
		if _, ok := m[uint16(p)]; ok {
			list = append(list, uint16(p))
		}
	}
	return list
}

// TestAgainstConntrackd runs a machine against the model of a conntrackd on a
// dedicated link: it loses and repeats, is cut and healed, and the conntrackd is
// restarted. When the faults end both sides are in step.
func TestAgainstConntrackd(t *testing.T) {
	eachSeed(t, *seeds/2, func(seed uint64) error {
		missing, stale, _, err := simulateConntrackd(seed, 131072, false)
		return errors.Join(err, none("missing", missing), none("stale", stale))
	})
}

// TestConntrackdForgets gives the conntrackd so small a resend queue that it
// forgets. What the machine then misses is only what the conntrackd forgot.
func TestConntrackdForgets(t *testing.T) {
	forgotten := 0
	eachSeed(t, *seeds/2, func(seed uint64) error {
		missing, stale, lost, err := simulateConntrackd(seed+1000, 20, false)
		forgotten += lost
		return errors.Join(err, none("missing", missing), none("stale", stale))
	})
	t.Logf("%d flows out of step because a conntrackd forgot them", forgotten)
}

// TestOwnRestartAgainstConntrackd restarts the machine. A conntrackd keeps what
// ended meanwhile, because its dialect has no end of a bulk update; it lacks nothing.
func TestOwnRestartAgainstConntrackd(t *testing.T) {
	kept := 0
	eachSeed(t, *seeds/2, func(seed uint64) error {
		missing, stale, _, err := simulateConntrackd(seed+2000, 131072, true)
		kept += len(stale)
		return errors.Join(err, none("missing", missing))
	})
	t.Logf("a conntrackd keeps %d flows that ended while we were away", kept)
}

func none(what string, list []uint16) error {
	if len(list) == 0 {
		return nil
	}
	return fmt.Errorf("%d flows %s: %v", len(list), what, list[:min(10, len(list))])
}

// simulateConntrackd runs one seed. It returns what the conntrackd misses of ours
// and holds too much, and how many flows it forgot to send. All else that the
// machine does not hold as the conntrackd has it is an error.
func simulateConntrackd(seed uint64, limit int, restarts bool) (missing, stale []uint16, forgotten int, err error) {
	r := rand.New(rand.NewPCG(seed, 78))
	ours, theirs := newNode("A", someConfig(r)), newDaemon(wire.Seq(r.Uint32()), limit)
	w := newNetwork(r, ours, theirs)
	w.loss, w.dup = r.Float64()*0.3, r.Float64()*0.05
	flows := 1 + r.IntN(1000)
	rate := [2]int{r.IntN(8), r.IntN(8)}
	churn := func() {
		for i, e := range w.ends {
			if e.down {
				continue
			}
			for range r.IntN(rate[i] + 1) {
				e.change(r, uint16(r.IntN(flows)))
			}
		}
	}
	for range 1 + r.IntN(4) {
		w.run(time.Duration(r.IntN(6000))*time.Millisecond, churn)
		switch r.IntN(4) {
		case 0:
			i := 1
			if restarts {
				i = 0
			}
			e := w.ends[i]
			e.down = true
			w.run(time.Duration(r.IntN(15000))*time.Millisecond, churn)
			e.down = false
			for range r.IntN(200) {
				e.change(r, uint16(r.IntN(flows))) // unseen by the process that is gone
			}
			if restarts {
				ours.restart(someConfig(r))
			} else {
				theirs.restart(wire.Seq(r.Uint32()), r.IntN(2) == 0)
			}
		case 1:
			e := w.ends[r.IntN(2)]
			e.cut = true
			w.run(time.Duration(r.IntN(15000))*time.Millisecond, churn)
			e.cut = false
		case 2:
			w.ends[0].cut, w.ends[1].cut = true, true
			w.run(time.Duration(r.IntN(15000))*time.Millisecond, churn)
			w.ends[0].cut, w.ends[1].cut = false, false
		}
	}
	w.run(time.Second, churn)
	w.loss, w.dup = 0, 0
	w.settle(60 * time.Second)
	errs := []error{w.err}
	missing, stale = differences(ours, theirs)
	m, s := differences(theirs, ours)
	for _, p := range append(m, s...) {
		if theirs.lost[p] {
			forgotten++
		} else {
			errs = append(errs, fmt.Errorf("the machine is not in step about flow %d of the conntrackd, which has not forgotten it", p))
		}
	}
	if p := ours.m.Peer(); p.Dirty+p.Unacked > 0 || p.BulkRunning || p.ResyncWanted || p.ResyncOpen {
		errs = append(errs, fmt.Errorf("the machine has not come to rest: %+v", p))
	}
	return missing, stale, forgotten, errors.Join(errs...)
}

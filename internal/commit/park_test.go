package commit

import (
	"errors"
	"testing"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// batch makes a batch of requests.
func batch(items ...flow.Park) *flow.ParkBatch {
	b := new(flow.ParkBatch)
	b.N = copy(b.Items[:], items)
	return b
}

func park(op flow.ParkOp, f flow.Flow) flow.Park { return flow.Park{Op: op, Flow: f} }

// parkedFlow is f as it lies in the kernel after it was parked.
func parkedFlow(f flow.Flow) flow.Flow {
	f.Timeout = flow.ParkTimeout
	if f.Orig.Proto == flow.TCP {
		f.TCPFlags = [2]uint8{0x0b, 0x0b}
	}
	return f
}

func timeout(n uint32) func(*flow.Flow) { return func(f *flow.Flow) { f.Timeout = n } }

func results(b *flow.ParkBatch) (r []flow.ParkResult) {
	for i := range b.N {
		r = append(r, b.Items[i].Result)
	}
	return r
}

func TestPark(t *testing.T) {
	live := tcpFlow(1)
	udp := udpFlow(2)
	nat := masqueraded(udp, 5000)
	gre := with(plain(flow.GRE, 0, 0), timeout(30))
	assured := func(f *flow.Flow) { f.Status |= flow.StatusSeenReply | flow.StatusAssured }
	child := with(udpFlow(3), func(f *flow.Flow) { f.Has |= flow.HasMaster; f.Master = live.Orig })
	last := park(flow.ParkCreate, child)
	last.Last = true
	helped := func(name string) func(*flow.Flow) {
		return func(f *flow.Flow) { f.Has |= flow.HasHelper; f.Helper, _ = flow.MakeName(name) }
	}
	cases := []struct {
		name   string
		kernel []flow.Flow
		ask    []flow.Park
		want   []flow.ParkResult
		timers map[flow.Tuple]uint32 // of what must be there afterwards, by original tuple
		gets   int
	}{
		{"created", nil, []flow.Park{park(flow.ParkCreate, live), park(flow.ParkCreate, nat)}, []flow.ParkResult{0, 0},
			map[flow.Tuple]uint32{live.Orig: flow.ParkTimeout, udp.Orig: flow.ParkTimeout}, 0},
		{"updated without a look", []flow.Flow{parkedFlow(udp)}, []flow.Park{park(flow.ParkUpdate, with(udp, assured))}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 0},
		{"gone, created again", nil, []flow.Park{park(flow.ParkUpdate, udp)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 2},
		{"parked by an earlier life", []flow.Flow{with(parkedFlow(udp), func(f *flow.Flow) { f.Timeout -= 86400 })},
			[]flow.Park{park(flow.ParkCreate, with(udp, assured))}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 1},
		{"alive here", []flow.Flow{with(udp, timeout(20))}, []flow.Park{park(flow.ParkCreate, udp)}, []flow.ParkResult{flow.ParkLocal},
			map[flow.Tuple]uint32{udp.Orig: 20}, 1},
		{"another flow has the reply", []flow.Flow{masqueraded(udpFlow(9), 5000)}, []flow.Park{park(flow.ParkCreate, nat)}, []flow.ParkResult{flow.ParkClash},
			map[flow.Tuple]uint32{udpFlow(9).Orig: 30}, 2},
		{"another parked flow has it: it is older", []flow.Flow{parkedFlow(masqueraded(udpFlow(9), 5000))}, []flow.Park{park(flow.ParkCreate, nat)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 2},
		{"another mapping is alive here", []flow.Flow{masqueraded(udp, 6000)}, []flow.Park{park(flow.ParkCreate, nat)}, []flow.ParkResult{flow.ParkClash},
			map[flow.Tuple]uint32{udp.Orig: 30}, 1},
		{"another mapping is parked", []flow.Flow{parkedFlow(masqueraded(udp, 6000))}, []flow.Park{park(flow.ParkRemake, nat)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 1},
		{"packets pass the other mapping by now", []flow.Flow{masqueraded(udp, 6000)}, []flow.Park{park(flow.ParkRemake, nat)}, []flow.ParkResult{flow.ParkClash},
			map[flow.Tuple]uint32{udp.Orig: 30}, 1},
		{"and nobody knew", []flow.Flow{parkedFlow(masqueraded(udp, 6000))}, []flow.Park{park(flow.ParkCreate, nat)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 1},
		{"a new flow with less status", []flow.Flow{with(parkedFlow(udp), assured)}, []flow.Park{park(flow.ParkUpdate, udp)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 1},
		{"deleted", []flow.Flow{parkedFlow(udp), parkedFlow(live)}, []flow.Park{park(flow.ParkDelete, udp)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{live.Orig: flow.ParkTimeout}, 1},
		{"deleted what is gone", nil, []flow.Park{park(flow.ParkDelete, udp)}, []flow.ParkResult{0}, nil, 1},
		{"packets pass it", []flow.Flow{with(live, timeout(432000))}, []flow.Park{park(flow.ParkDelete, live)}, []flow.ParkResult{flow.ParkTouched},
			map[flow.Tuple]uint32{live.Orig: lingerTimeout}, 1},
		{"packets pass it, and it ends soon", []flow.Flow{with(udp, timeout(20))}, []flow.Park{park(flow.ParkDelete, udp)}, []flow.ParkResult{flow.ParkTouched},
			map[flow.Tuple]uint32{udp.Orig: 20}, 1},
		{"it is the answers of another", []flow.Flow{parkedFlow(reversed(udp))}, []flow.Park{park(flow.ParkDelete, udp)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{reversed(udp).Orig: flow.ParkTimeout}, 1},
		{"deleted and created", []flow.Flow{parkedFlow(masqueraded(udp, 6000))}, []flow.Park{park(flow.ParkDelete, udp), park(flow.ParkCreate, nat)},
			[]flow.ParkResult{0, 0}, map[flow.Tuple]uint32{udp.Orig: flow.ParkTimeout}, 1},
		{"created and deleted", nil, []flow.Park{park(flow.ParkCreate, nat), park(flow.ParkDelete, udp)}, []flow.ParkResult{0, 0}, nil, 1},
		{"its master is missing", nil, []flow.Park{park(flow.ParkCreate, child)}, []flow.ParkResult{flow.ParkNoMaster}, nil, 0},
		{"and does not come", nil, []flow.Park{last}, []flow.ParkResult{0}, map[flow.Tuple]uint32{child.Orig: flow.ParkTimeout}, 2},
		{"after its master", nil, []flow.Park{park(flow.ParkCreate, live), park(flow.ParkCreate, child), park(flow.ParkUpdate, with(child, assured))},
			[]flow.ParkResult{0, 0, 0}, map[flow.Tuple]uint32{live.Orig: flow.ParkTimeout, child.Orig: flow.ParkTimeout}, 0},
		{"updated, made without its master", []flow.Flow{with(parkedFlow(child), func(f *flow.Flow) { f.Has &^= flow.HasMaster })},
			[]flow.Park{park(flow.ParkUpdate, with(child, assured))}, []flow.ParkResult{0}, map[flow.Tuple]uint32{child.Orig: flow.ParkTimeout}, 1},
		{"a helper that is not there", nil, []flow.Park{park(flow.ParkCreate, with(live, helped("sip")))}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{live.Orig: flow.ParkTimeout}, 2},
		{"released", []flow.Flow{parkedFlow(udp)}, []flow.Park{park(flow.ParkRelease, udp)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{udp.Orig: 30}, 0},
		{"released GRE", []flow.Flow{parkedFlow(gre)}, []flow.Park{park(flow.ParkRelease, gre)}, []flow.ParkResult{0},
			map[flow.Tuple]uint32{gre.Orig: timeoutGRE}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			k := newFake(t)
			for _, f := range c.kernel {
				k.insert(f)
			}
			b := batch(c.ask...)
			if err := NewParker(k, all).Park(b); err != nil {
				t.Fatal(err)
			}
			for i, r := range results(b) {
				if r != c.want[i] {
					t.Errorf("%v of item %d: %v, want %v", c.ask[i].Op, i, r, c.want[i])
				}
			}
			if len(k.entries) != len(c.timers) {
				t.Errorf("%d entries, want %d", len(k.entries), len(c.timers))
			}
			for tuple, timeout := range c.timers {
				f := k.find(tuple)
				if f == nil || f.Orig != tuple {
					t.Errorf("%s is missing", describe(&tuple))
				} else if f.Timeout != timeout {
					t.Errorf("%s: timeout %d, want %d", describe(&tuple), f.Timeout, timeout)
				}
			}
			if k.gets != c.gets {
				t.Errorf("%d looks, want %d", k.gets, c.gets)
			}
			for i := range b.N { // what was put in is what was asked for
				it := &b.Items[i]
				f := k.find(c.ask[i].Flow.Orig)
				if f == nil || it.Result != flow.ParkDone || it.Op == flow.ParkDelete || it.Op == flow.ParkRelease || i+1 < b.N {
					continue
				}
				if want := c.ask[i].Flow; f.Reply != want.Reply || f.TCPState != want.TCPState || f.Status&0xe != want.Status&0xe {
					t.Errorf("in the kernel is %+v, want %+v", f, want)
				}
				if f.Orig.Proto == flow.TCP && f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagBeLiberal == 0 {
					t.Error("its windows are judged")
				}
			}
		})
	}
}

func TestParkFullTable(t *testing.T) {
	k := newFake(t)
	k.max = 2
	b := batch(park(flow.ParkCreate, udpFlow(1)), park(flow.ParkCreate, udpFlow(2)), park(flow.ParkCreate, udpFlow(3)), park(flow.ParkUpdate, udpFlow(4)))
	if err := NewParker(k, all).Park(b); err != nil {
		t.Fatal(err)
	}
	for i, want := range []flow.ParkResult{flow.ParkDone, flow.ParkDone, flow.ParkFull, flow.ParkFull} {
		if got := b.Items[i].Result; got != want {
			t.Errorf("item %d: %v, want %v", i, got, want)
		}
	}
}

// Answers that were lost are asked for, and EPERM ends it all.
func TestParkLostAnswers(t *testing.T) {
	k := newFake(t)
	k.insert(udpFlow(1)) // alive
	k.flushErr = []error{unix.ENOBUFS}
	b := batch(park(flow.ParkCreate, udpFlow(1)), park(flow.ParkCreate, udpFlow(2)))
	if err := NewParker(k, all).Park(b); err != nil {
		t.Fatal(err)
	}
	if r := results(b); r[0] != flow.ParkLocal || r[1] != flow.ParkDone {
		t.Errorf("%v", r)
	}
	k.before = func(Op, *flow.Flow) unix.Errno { return unix.EPERM }
	if err := NewParker(k, all).Park(batch(park(flow.ParkCreate, udpFlow(3)))); !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want EPERM", err)
	}
}

// Whatever is asked for in whatever order, what packets pass is never changed, what
// was parked last is there unless something alive is in its place, and what was
// deleted last is not.
func TestParkProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newFake(t)
		alive := map[uint32]flow.Flow{}
		for range rapid.IntRange(0, 6).Draw(t, "entries in the kernel") {
			f := anyFlow(t, "kernel")
			f.Has &^= flow.HasHelper
			if k.byTuple[f.Orig] != 0 || k.byTuple[f.Reply] != 0 {
				continue
			}
			if rapid.Bool().Draw(t, "parked") {
				f.Timeout = flow.ParkTimeout
				k.insert(f)
			} else {
				id := k.insert(f)
				alive[id] = *k.entries[id]
			}
		}
		k.room = rapid.IntRange(0, 3).Draw(t, "room")
		if rapid.IntRange(0, 4).Draw(t, "answers lost") == 0 {
			k.flushErr = []error{unix.ENOBUFS}
		}
		p := NewParker(k, all)
		said := map[flow.Tuple]*flow.Park{}
		hint := map[flow.Tuple]bool{}
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			b := new(flow.ParkBatch)
			for range rapid.IntRange(0, 6).Draw(t, "requests") {
				f := anyFlow(t, "request")
				f.Has &^= flow.HasHelper
				it := park(flow.ParkCreate, f)
				switch {
				case rapid.IntRange(0, 3).Draw(t, "delete") == 0:
					it.Op = flow.ParkDelete
				case hint[f.Orig]: // as the loop does it: what was handed over is changed
					it.Op = flow.ParkRemake
				}
				b.Items[b.N] = it
				b.N++
				hint[f.Orig] = it.Op != flow.ParkDelete
			}
			if err := p.Park(b); err != nil {
				t.Fatal(err)
			}
			for i := range b.N {
				it := b.Items[i]
				said[it.Flow.Orig] = &it
				if it.Result != flow.ParkDone {
					hint[it.Flow.Orig] = false
				}
			}
		}
		for id, was := range alive {
			is := k.entries[id]
			if is == nil {
				t.Errorf("%s is gone", describe(&was.Orig))
				continue
			}
			if is.Timeout != min(was.Timeout, lingerTimeout) && is.Timeout != was.Timeout {
				t.Errorf("%s: timeout %d, had %d", describe(&was.Orig), is.Timeout, was.Timeout)
			}
			if is.Timeout = was.Timeout; *is != was {
				t.Errorf("%s was changed:\n%+v\n%+v", describe(&was.Orig), was, *is)
			}
		}
		for tuple, it := range said {
			have := k.find(tuple)
			switch {
			case it.Op == flow.ParkDelete && have != nil && have.Orig == tuple && have.Parked():
				t.Errorf("%s was deleted, and is there", describe(&tuple))
			case it.Op != flow.ParkDelete && it.Result == flow.ParkDone && have == nil:
				// Something newer may have taken its place.
				if k.find(it.Flow.Reply) == nil && len(said) == 1 {
					t.Errorf("%s was parked, and is not there", describe(&tuple))
				}
			}
		}
	})
}

func TestParkAllocates(t *testing.T) {
	k := newFake(t)
	k.insert(parkedFlow(udpFlow(1)))
	p := NewParker(quiet{}, all)
	b := batch(park(flow.ParkUpdate, udpFlow(1)), park(flow.ParkCreate, udpFlow(2)), park(flow.ParkRelease, udpFlow(3)))
	if n := testing.AllocsPerRun(100, func() {
		if err := p.Park(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
}

// quiet is a kernel that takes everything.
type quiet struct{}

var quietLen int

func (quiet) Add(Op, *flow.Flow) (int, error)   { quietLen++; return quietLen - 1, nil }
func (quiet) Flush(func(int, unix.Errno)) error { quietLen = 0; return nil }
func (quiet) Get(*flow.Tuple, *flow.Flow) error { return unix.ENOENT }

func TestUnpark(t *testing.T) {
	for _, room := range []int{0, 7} {
		k := newFake(t)
		k.room = room
		var read []flow.Flow
		for i := range uint16(500) {
			f := parkedFlow(udpFlow(i))
			f.ID = k.insert(f)
			if read = append(read, f); i%5 == 0 { // a packet has passed since
				k.find(f.Orig).Timeout = 30
			}
		}
		read = append(read, parkedFlow(udpFlow(600))) // gone
		k.insert(parkedFlow(reversed(udpFlow(700))))  // another flow has the tuple by now
		read = append(read, parkedFlow(udpFlow(700))) //
		k.insert(parkedFlow(udpFlow(701)))            // not asked for
		n, err := Unpark(k, read)
		if n != 400 || err != nil || len(k.entries) != 102 || k.largest > batchSize {
			t.Errorf("removed %d, %v, %d are left; at most %d in a batch", n, err, len(k.entries), k.largest)
		}
	}
	// The kernel may refuse, and have lost its answer.
	k := newFake(t)
	f := parkedFlow(udpFlow(1))
	k.insert(f)
	k.before = func(Op, *flow.Flow) unix.Errno { return unix.EPERM }
	if n, err := Unpark(k, []flow.Flow{f}); n != 0 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	k.before, k.flushErr = nil, []error{unix.EIO}
	if _, err := Unpark(k, []flow.Flow{f}); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
}

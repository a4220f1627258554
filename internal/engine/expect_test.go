package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"syncd/internal/cache"
	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/wire"
)

// withHelper is a flow that has a helper, number i of its kind, in a zone.
func withHelper(i int, zone uint16) flow.Flow {
	f := newFlow(6)
	f.Orig.SrcPort, f.Orig.Zone = uint16(20000+i), zone
	f.Reply, _ = f.Orig.Inverse()
	establish(&f)
	return f
}

// expects is expectation i of a flow.
func expects(master *flow.Flow, i int) flow.Expect {
	x := flow.Expect{
		Master: master.Orig, Tuple: master.Orig, Timeout: 300,
		Has: flow.ExpectHasTimeout | flow.ExpectHasFlags | flow.ExpectHasClass,
	}
	x.Tuple.SrcPort, x.Tuple.DstPort = 0, uint16(50000+i)
	x.Mask = flow.Tuple{Family: x.Tuple.Family, Proto: x.Tuple.Proto, DstPort: 0xffff}
	return x
}

// expectTable is a set of expectations by key, without what is of one kernel.
type expectTable map[flow.Tuple]flow.Expect

func sameEverywhere(x flow.Expect) flow.Expect {
	x.ID, x.Timeout, x.Has = 0, 0, x.Has&^(flow.ExpectHasID|flow.ExpectHasTimeout)
	return x
}

func (d *node) expectTable(of func() *cache.Cache) expectTable {
	t := expectTable{}
	d.do(func() {
		c := of()
		c.Walk(0, 0, func(h flow.Handle) bool {
			if c.IsExpect(h) && !c.Dead(h) {
				var x flow.Expect
				c.LoadExpect(h, &x)
				t[c.Key(h)] = sameEverywhere(x)
			}
			return true
		})
	})
	return t
}

func (d *node) internalExpects() expectTable { return d.expectTable(d.Internal) }
func (d *node) externalExpects() expectTable {
	return d.expectTable(func() *cache.Cache { return d.replica.of(onlyPeer).cache })
}

// kernelExpects is what the node should replicate of its kernel's expectations.
func (d *node) kernelExpects() expectTable {
	t := expectTable{}
	for key, x := range d.kernel.Expects() {
		t[key] = sameEverywhere(x)
	}
	return t
}

// expectDifferences says how got differs from want.
func expectDifferences(got, want expectTable) (s string) {
	for k, w := range want {
		if g, ok := got[k]; !ok {
			s += fmt.Sprintf("\n\tmissing %v", &w)
		} else if g != w {
			s += fmt.Sprintf("\n\thave %v\n\twant %v", &g, &w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			s += fmt.Sprintf("\n\tstale %v", &g)
		}
	}
	return s
}

// wantExpects compares the expectations of a kernel, of its internal cache, and of the
// external cache of the peer.
func wantExpects(t testing.TB, owner, peer *node, n int) {
	t.Helper()
	want := owner.kernelExpects()
	if len(want) != n {
		t.Errorf("the kernel has %d expectations, want %d", len(want), n)
	}
	if s := expectDifferences(owner.internalExpects(), want); s != "" {
		t.Errorf("internal cache of %s:%s", owner.name, s)
	}
	if s := expectDifferences(peer.externalExpects(), want); s != "" {
		t.Errorf("external cache of %s:%s", peer.name, s)
	}
}

// TestExpectEvents follows expectations from the kernel to the peer, in conntrackd's
// dialect.
func TestExpectEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		m, n := withHelper(1, 0), withHelper(2, 0)
		a.kernel.Create(m, 0)
		a.kernel.Create(n, 0)
		x, y := expects(&m, 1), expects(&n, 2)
		a.kernel.Expect(x, 0)
		a.kernel.Expect(y, 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 2)

		// One is fulfilled, and what it expected comes.
		child := newFlow(0)
		child.Orig, child.Master = x.Tuple, m.Orig
		child.Orig.SrcPort = 4000
		child.Reply, _ = child.Orig.Inverse()
		child.Has |= flow.HasMaster
		a.kernel.Fulfil(x.Key(), 0)
		a.kernel.Create(child, 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 1)
		wantInStep(t, a, b)

		// It comes again with the same tuple, as in the next transfer.
		a.kernel.Expect(x, 0)
		a.kernel.Fulfil(x.Key(), 0)
		a.kernel.Expect(x, 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 2)

		// The end of an earlier one comes late.
		old := a.kernel.Expects()[x.Key()]
		old.ID--
		a.kernel.InjectExpect(flow.EventDestroy, old)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 2)

		// With the master goes what it expected.
		a.kernel.Destroy(n.Orig, 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 1)
		if s := b.stats(); s.Expectations == 0 || s.ExternalNoDel != 0 {
			t.Errorf("%d messages about expectations, %d deletions of nothing", s.Expectations, s.ExternalNoDel)
		}
		a.stop()
		b.stop()
	})
}

// TestExpectFilter: only of selected helpers, and only of flows that are replicated.
func TestExpectFilter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t, func(c *Config) {
			c.Filter = filter.Compile(filter.Rules{
				Protocols: filter.List[uint8]{Ignore: []uint8{flow.UDP}},
				Expects:   filter.Expects{Helpers: []string{"ftp"}},
			})
		})
		good, sip, udp, gone := withHelper(1, 0), withHelper(2, 0), withHelper(3, 0), withHelper(4, 0)
		sip.Helper, _ = flow.MakeName("sip")
		udp.Orig.Proto = flow.UDP
		udp.Reply, _ = udp.Orig.Inverse()
		for i, m := range []flow.Flow{good, sip, udp, gone} {
			a.kernel.Create(m, 0)
			if !a.kernel.Expect(expects(&m, i), 0) {
				t.Fatal("the kernel does not take it")
			}
		}
		a.kernel.Destroy(gone.Orig, 0)
		time.Sleep(time.Second)
		got := a.internalExpects()
		want := expects(&good, 0)
		if _, ok := got[want.Key()]; len(got) != 1 || !ok {
			t.Errorf("%v", got)
		}
		if s := expectDifferences(b.externalExpects(), got); s != "" {
			t.Error(s)
		}
		if s := a.stats(); s.ExpectsFiltered != 2 || s.ExpectsNew != 4 || s.ExpectsDestroy != 1 {
			t.Errorf("filtered %d of %d, destroyed %d", s.ExpectsFiltered, s.ExpectsNew, s.ExpectsDestroy)
		}

		// A dump judges in the same way; what was fit when it came stays.
		a.do(func() { a.SetFilter(filter.Compile(filter.Rules{})) })
		a.do(a.RequestKernelSync)
		time.Sleep(2 * time.Second)
		if s := expectDifferences(a.internalExpects(), got); s != "" {
			t.Error(s)
		}
		a.do(func() { a.SetFilter(filter.Compile(filter.Rules{Expects: filter.Expects{All: true}})) })
		a.do(a.RequestKernelSync)
		time.Sleep(2 * time.Second)
		wantExpects(t, a, b, 3) // UDP passes now too
		a.stop()
		b.stop()
	})
}

// TestExpectDump: what events did not tell a dump finds, and what they told wrongly it
// corrects.
func TestExpectDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := simnet.New(1)
		k := simnet.NewKernel(1)
		m, late := withHelper(1, 0), withHelper(2, 0)
		k.Create(m, 0)
		k.Create(late, 0)
		k.Expect(expects(&m, 1), 0)
		a := newNode(t, "A", addrA, n, k)
		b := newNode(t, "B", addrB, n, simnet.NewKernel(2))
		a.start()
		b.start()
		time.Sleep(30 * time.Second)
		wantExpects(t, a, b, 1) // by the first dump and the bulk update

		// Nobody hears of an end, of a beginning, and of another with the same tuple.
		x, y, z := expects(&m, 1), expects(&late, 2), expects(&m, 3)
		k.Expect(z, 0)
		time.Sleep(time.Second)
		k.Mute(true)
		k.Fulfil(x.Key(), 0)
		k.Expect(y, 0)
		k.Fulfil(z.Key(), 0)
		z.Class = 1
		k.Expect(z, 0)
		k.Mute(false)
		a.do(a.RequestKernelSync)
		time.Sleep(3 * time.Second)
		wantExpects(t, a, b, 2)
		if s := a.stats(); s.Swept != 1 || s.Found != 1 {
			t.Errorf("swept %d, found %d", s.Swept, s.Found)
		}

		// What is known already is not told again.
		before := b.stats().Expectations
		a.do(a.RequestKernelSync)
		time.Sleep(3 * time.Second)
		if n := b.stats().Expectations - before; n != 0 {
			t.Errorf("%d messages after a dump that found nothing new", n)
		}
		a.stop()
		b.stop()
	})
}

// TestExpectDuringDump: an event is newer than the dump.
func TestExpectDuringDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex // the dump has a goroutine of its own
		var dumped []flow.Expect
		during := func() {}
		a, k := alone(t, func(c *Config) {
			c.DumpExpects = func(_ context.Context, fn func(*flow.Expect) error) error {
				mu.Lock()
				during()
				all := slices.Clone(dumped)
				mu.Unlock()
				time.Sleep(time.Millisecond) // the loop takes the events of this
				for i := range all {
					if err := fn(&all[i]); err != nil {
						return err
					}
				}
				return nil
			}
		})
		time.Sleep(time.Second) // the first dump has ended
		m := withHelper(1, 0)
		k.Create(m, 0)
		x, y, z := expects(&m, 1), expects(&m, 2), expects(&m, 3)
		k.Expect(x, 0)
		k.Expect(z, 0)
		synctest.Wait()
		now := func(x *flow.Expect) flow.Expect { return hidden(k.Expects()[x.Key()]) }
		mu.Lock()
		dumped = append(dumped, now(&x), now(&z))
		// While the dump runs one ends that it tells of, and one begins with the tuple of
		// one that the dump has seen before.
		during = func() {
			k.Fulfil(x.Key(), 0)
			k.Expect(y, 0)
			old := now(&y)
			old.Class, old.ID = 9, old.ID+1
			dumped = append(dumped, old)
		}
		mu.Unlock()
		a.do(a.RequestKernelSync)
		time.Sleep(3 * time.Second)
		if s := expectDifferences(a.internalExpects(), a.kernelExpects()); s != "" {
			t.Error(s)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(dumped) != 3 {
			t.Errorf("%d dumped", len(dumped))
		}
		a.stop()
	})
}

func hidden(x flow.Expect) flow.Expect {
	x.Tuple.Zone, x.Master.Zone = 0, 0
	return x
}

// TestExpectZones: the kernel does not say in which zone an expectation is. It is
// where its master is; if that cannot be known nothing is said, rather than
// something wrong.
func TestExpectZones(t *testing.T) {
	for _, mirror := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			a, k := alone(t, func(c *Config) { c.Mirror = mirror })
			one, zone5, twice, twice7 := withHelper(1, 0), withHelper(2, 5), withHelper(3, 0), withHelper(3, 7)
			for _, m := range []flow.Flow{one, zone5, twice, twice7} {
				k.Create(m, 0)
			}
			k.Expect(expects(&one, 1), 0)
			k.Expect(expects(&zone5, 2), 0)
			k.Expect(expects(&twice7, 3), 0)
			synctest.Wait()
			want := expectTable{}
			for key, x := range k.Expects() {
				if x.Tuple.Zone == 0 || x.Tuple.Zone == 5 && mirror {
					want[key] = sameEverywhere(x)
				}
			}
			if s := expectDifferences(a.internalExpects(), want); s != "" {
				t.Errorf("mirror %v:%s", mirror, s)
			}
			unfit := uint64(1)
			if !mirror {
				unfit = 2 // conntrackd's dialect has no zone of an expectation
			}
			if s := a.stats(); s.ExpectsUnfit != unfit {
				t.Errorf("mirror %v: %d unfit, want %d", mirror, s.ExpectsUnfit, unfit)
			}
			x := expects(&zone5, 2)
			x.Tuple.Zone = 5
			k.Fulfil(x.Key(), 0)
			synctest.Wait()
			delete(want, x.Key())
			if s := expectDifferences(a.internalExpects(), want); s != "" {
				t.Errorf("mirror %v, after its end:%s", mirror, s)
			}
			a.stop()
		})
	}
}

// TestExpectPurge: in conntrackd's dialect our purge of a master is no news for the
// peer, and neither is the end of its expectation, which the kernel makes by itself.
func TestExpectPurge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		m := withHelper(1, 0)
		a.kernel.Create(m, 0)
		a.kernel.Expect(expects(&m, 1), 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 1)
		a.kernel.Destroy(m.Orig, purgePort)
		time.Sleep(time.Second)
		if n := len(a.internalExpects()); n != 0 {
			t.Errorf("%d expectations are left", n)
		}
		if n := len(b.externalExpects()); n != 1 {
			t.Errorf("the peer holds %d, want the one", n)
		}
		// The flow comes back, and this time ends by itself.
		a.kernel.Create(m, 0)
		a.kernel.Expect(expects(&m, 1), 0)
		time.Sleep(time.Second)
		a.kernel.Destroy(m.Orig, 0)
		time.Sleep(time.Second)
		wantExpects(t, a, b, 0)
		a.stop()
		b.stop()
	})
}

// TestExpectReplica: with the same tuple as a flow, and in every way a message can
// come.
func TestExpectReplica(t *testing.T) {
	r := newReplica(10)
	m := withHelper(1, 0)
	x := expects(&m, 1)
	f := flow.Flow{Orig: x.Tuple}
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasStatus
	say := func(typ wire.Type, seq wire.Seq, d wire.Delivery) outcome {
		rd := wire.Reader{Sync: true, Seed: 7}
		if typ >= wire.ExpNew {
			rd.Reset(wire.AppendExpect(nil, wire.Syncd, typ, 0, seq, &x))
		} else {
			rd.Reset(wire.AppendFlow(nil, wire.Syncd, typ, 0, seq, &f))
		}
		var msg wire.Message
		if !rd.Next(&msg) || msg.Fault != wire.FaultNone {
			t.Fatal(msg.Fault)
		}
		d.Owner = 3
		return r.apply(d, &msg, 0, 1)
	}
	late, plain := wire.Delivery{Late: true, Remember: true}, wire.Delivery{Remember: true}
	for i, s := range []struct {
		typ    wire.Type
		seq    wire.Seq
		d      wire.Delivery
		want   outcome
		flows  int
		expect int
	}{
		{wire.ExpNew, 10, plain, applied, 0, 1},
		{wire.CTNew, 11, plain, applied, 1, 1},
		{wire.ExpUpd, 5, late, ignored, 1, 1},
		{wire.ExpDel, 12, plain, applied, 1, 0},
		{wire.ExpNew, 11, late, ignored, 1, 0}, // died later
		{wire.CTDel, 13, plain, applied, 0, 0},
		{wire.ExpDel, 14, plain, unknown, 0, 0},
		{wire.ExpUpd, 15, wire.Delivery{Merge: true}, applied, 0, 1}, // an update creates
		{wire.ExpUpd, 16, wire.Delivery{Merge: true}, applied, 0, 1},
	} {
		got := say(s.typ, s.seq, s.d)
		c := r.Cache(3)
		if got != s.want || c.ExpectLen() != s.expect || c.Len() != s.flows+s.expect {
			t.Errorf("step %d: outcome %d, %d expectations of %d entries", i, got, c.ExpectLen(), c.Len())
		}
	}
	var sum uint64
	for _, s := range r.Sums(3) {
		sum += s
	}
	if want := wire.FlowHash(7, wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 0, &x)); sum != want {
		t.Errorf("sums %x, want %x", sum, want)
	}
	// What is held is what was said; what changes in memory is found.
	if r.Audit(3, 7, 0); r.Found(3).Corrupted != 0 {
		t.Errorf("%+v", r.Found(3))
	}
	wrong := x
	wrong.Class++
	r.Cache(3).MergeExpect(r.Cache(3).LookupExpect(&x), &wrong, 2)
	if r.Audit(3, 7, 0); r.Found(3).Corrupted != 1 {
		t.Errorf("%+v", r.Found(3))
	}
	if s := r.Found(3).Samples; len(s) != 0 {
		t.Errorf("samples are told twice: %v", s)
	}
}

// TestExpectsDoNotAllocate: a busy SIP proxy has as many expectations as calls.
func TestExpectsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	e := quietEngine(t)
	m := withHelper(1, 0)
	var masters, begin, end flow.Batch
	masters.N = 1
	masters.Events[0] = event(flow.EventNew, m, 1)
	e.takeEvents(&masters)
	for i := range flow.ExpectBatchSize {
		x := expects(&m, i)
		x.ID, x.Has = uint32(i+1), x.Has|flow.ExpectHasID
		begin.Expects[i], end.Expects[i] = x, x
		begin.Events[i] = flow.Event{Kind: flow.EventNew, Expect: uint8(i + 1)}
		end.Events[i] = flow.Event{Kind: flow.EventDestroy, Expect: uint8(i + 1)}
	}
	begin.N, begin.NExpect = flow.ExpectBatchSize, flow.ExpectBatchSize
	end.N, end.NExpect = begin.N, begin.NExpect
	alive := 0
	if n := testing.AllocsPerRun(1000, func() {
		e.takeEvents(&begin)
		alive += e.internal.ExpectLen()
		e.takeEvents(&end)
		e.send()
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
	if alive != 1001*flow.ExpectBatchSize || e.internal.ExpectLen() != 0 {
		t.Errorf("%d were alive, %d are", alive, e.internal.ExpectLen())
	}
}

// shadow returns an entry as a flow, for what compares entries without regard to what
// they are: an expectation has its key, its master, its helper, and its class for a
// mark.
func shadow(c *cache.Cache, h flow.Handle) (f flow.Flow) {
	if !c.IsExpect(h) {
		c.Load(h, &f)
		return f
	}
	var x flow.Expect
	c.LoadExpect(h, &x)
	return shadowOf(&x)
}

func shadowOf(x *flow.Expect) flow.Flow {
	return flow.Flow{Orig: x.Key(), Master: x.Master, Helper: x.Helper, Mark: x.Class}
}

// keyOf, versionOf and isDeletion say what a data message is about, and what of it.

func keyOf(m *wire.Message) flow.Tuple {
	if m.IsExpect() {
		return m.Expect.Key()
	}
	return m.Flow.Orig
}

func versionOf(m *wire.Message) uint32 {
	if m.IsExpect() {
		return m.Expect.Class
	}
	return versionIn(&m.Flow)
}

// versionIn tells the states of a flow apart that cluster.change has made: it stands in the
// mark, or in the high half of the status.
func versionIn(f *flow.Flow) uint32 { return f.Mark ^ f.Status>>16*0x9e3779b1 }

func isDeletion(m *wire.Message) bool {
	return m.Type == wire.CTDel || m.Type == wire.CTEnd || m.Type == wire.ExpDel
}

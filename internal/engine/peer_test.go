package engine

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/wire"
)

// voice is a peer of the test's own making: it sends what it is told to.
type voice struct {
	*simnet.Port
	seq wire.Seq
}

// newVoice attaches a peer that has finished its greeting: it says that it hears
// us, and is not silent.
func newVoice(n *simnet.Network, addr netip.Addr) *voice {
	return &voice{Port: n.Port(addr), seq: 5000}
}

func (v *voice) data(t wire.Type, flows ...flow.Flow) {
	for _, f := range flows {
		f.Has |= flow.HasStatus | flow.HasReply | flow.HasTimeout
		v.Send([][]byte{wire.AppendFlow(nil, wire.Conntrackd, t, 0, v.seq, &f)})
		v.seq++
	}
}

// listening starts a node that hears voices from A and says nothing about its own.
func listening(t *testing.T, options ...func(*Config)) (*node, *simnet.Network) {
	n := simnet.New(1)
	b := newNode(t, "B", addrB, n, simnet.NewKernel(1), options...)
	b.start()
	synctest.Wait()
	return b, n
}

func TestExternalCache(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, n := listening(t)
		a := newVoice(n, addrA)
		opened, running := newFlow(0), newFlow(0)
		establish(&running)
		running.Mark, running.Helper = 5, flow.Name{'f', 't', 'p'}
		running.Has |= flow.HasMark | flow.HasHelper
		step := func(what string, want ...flow.Flow) {
			t.Helper()
			synctest.Wait()
			all := table{}
			for _, f := range want {
				all[f.Orig] = canonical(f)
			}
			if d := differences(b.externalTable(), all); d != "" {
				t.Errorf("%s: %s", what, d)
			}
		}
		a.data(wire.CTNew, opened)
		step("new", opened)
		a.data(wire.CTUpd, running)
		step("update", running)
		a.data(wire.CTUpd, opened)
		bare := opened
		bare.Status = opened.Status
		step("an update that tells less", bare)
		a.data(wire.CTUpd, newFlow(1))
		step("update of what is unknown", bare, newFlow(1))
		a.data(wire.CTDel, opened)
		step("deletion", newFlow(1))
		a.data(wire.CTDel, opened)
		step("deletion of what is unknown", newFlow(1))
		a.data(wire.CTNew, running)
		a.data(wire.CTNew, opened)
		step("new over what is there", opened, newFlow(1))
		translated, plain := newFlow(5), newFlow(5)
		plain.Status = 0
		plain.Reply, _ = plain.Orig.Inverse()
		a.data(wire.CTNew, translated)
		a.data(wire.CTUpd, plain)
		step("update without the translation", opened, newFlow(1), plain)

		var has bool
		b.do(func() {
			f := newFlow(1)
			has = b.replica.Cache(onlyPeer).Lookup(&f.Orig) != 0
		})
		if !has {
			t.Error("the entry is not in the cache of its owner")
		}
		if s := b.stats(); s.ExternalNew != 4 || s.ExternalUpd != 4 || s.ExternalDel != 1 || s.ExternalNoDel != 1 {
			t.Errorf("new %d, updates %d, deletions %d and %d", s.ExternalNew, s.ExternalUpd, s.ExternalDel, s.ExternalNoDel)
		}
		b.stop()
	})
}

// TestOwner: every owner has a cache of its own, so a deletion counts only from the
// owner.
func TestOwner(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, n := listening(t)
		a := newVoice(n, addrA)
		a.data(wire.CTNew, newFlow(0))
		synctest.Wait()
		f := newFlow(0)
		b.do(func() { b.replica.apply(wire.Delivery{Owner: 2}, &wire.Message{Type: wire.CTNew, Flow: f}, 0, b.now) })
		a.data(wire.CTDel, f)
		a.data(wire.CTDel, f)
		synctest.Wait()
		var first, second int
		b.do(func() { first, second = b.replica.Cache(onlyPeer).Len(), b.replica.Cache(2).Len() })
		if first != 0 || second != 1 || b.stats().ExternalNoDel != 1 {
			t.Errorf("after its owner deleted the flow: %d of its entries, %d of the other's, %d deletions of nothing",
				first, second, b.stats().ExternalNoDel)
		}
		b.stop()
	})
}

// TestForeignSender: while one sender is heard on a link another one is not listened
// to, and what makes no sense does not make a peer.
func TestForeignSender(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, n := listening(t)
		a, c := newVoice(n, addrA), newVoice(n, addrC)
		c.seq = 9_000_000
		peers := func() (m map[int]netip.Addr) {
			b.do(func() {
				m = map[int]netip.Addr{}
				for k, v := range b.PeerAddrs() {
					m[k] = v
				}
			})
			return m
		}
		noise := wire.AppendControl(nil, 0, 1, 0, 0) // a control message that says nothing
		c.Send([][]byte{noise})
		synctest.Wait()
		if p := peers(); len(p) != 0 || b.port.HeardCount() != 0 {
			t.Errorf("noise made a peer: %v", p)
		}
		a.data(wire.CTNew, newFlow(0))
		c.data(wire.CTNew, newFlow(1))
		c.data(wire.CTDel, newFlow(0))
		synctest.Wait()
		if got := b.externalTable(); len(got) != 1 || peers()[0] != addrA {
			t.Errorf("%d flows, peers %v", len(got), peers())
		}
		if s := b.stats(); s.ForeignPeer != 2 {
			t.Errorf("%d messages of a foreign sender, want 2", s.ForeignPeer)
		}
		time.Sleep(forgetSender)
		c.Send([][]byte{noise})
		synctest.Wait()
		if peers()[0] != addrA {
			t.Error("noise took the peer's place")
		}
		c.seq = 5001
		c.data(wire.CTNew, newFlow(1))
		synctest.Wait()
		if got := b.externalTable(); len(got) != 2 || peers()[0] != addrC {
			t.Errorf("after a silence: %d flows, peers %v", len(got), peers())
		}
		b.stop()
	})
}

// TestMalformed counts what makes no sense, by reason, and goes on.
func TestMalformed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, n := listening(t)
		a := newVoice(n, addrA)
		f := newFlow(0)
		f.Has |= flow.HasStatus
		good := wire.AppendFlow(nil, wire.Conntrackd, wire.CTNew, 0, 1, &f)
		bad := func(change func(b []byte)) []byte {
			b := append([]byte(nil), good...)
			change(b)
			return b
		}
		for _, tt := range []struct {
			fault wire.Fault
			b     []byte
		}{
			{wire.FaultTruncated, good[:5]},
			{wire.FaultSize, good[:len(good)-4]},
			{wire.FaultSize, bad(func(b []byte) { b[2], b[3] = 0, 0 })},
			{wire.FaultVersion, bad(func(b []byte) { b[0] = 2 << 4 })},
			{wire.FaultHeader, bad(func(b []byte) { b[0] = 1<<4 | 7 })},
			{wire.FaultPayload, bad(func(b []byte) { b[9] = 200 })},
		} {
			before := b.stats().Faults
			a.Send([][]byte{tt.b})
			synctest.Wait()
			before[tt.fault]++
			if got := b.stats().Faults; got != before {
				t.Errorf("%v: counted %v, want %v", tt.fault, got, before)
			}
		}
		a.Send([][]byte{{}}) // nothing at all
		a.data(wire.ExpNew)
		a.seq = 2
		a.data(wire.CTNew, f)
		synctest.Wait()
		if len(b.externalTable()) != 1 {
			t.Error("a good message after bad ones was not taken")
		}
		b.stop()
	})
}

// TestManyMessages fills several inboxes with one read.
func TestManyMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, n := listening(t)
		a := newVoice(n, addrA)
		var d []byte
		for i := range 1000 {
			f := newFlow(i)
			d = wire.AppendFlow(d, wire.Conntrackd, wire.CTNew, 0, a.seq, &f)
			a.seq++
		}
		a.Send([][]byte{d})
		synctest.Wait()
		if got := len(b.externalTable()); got != 1000 {
			t.Errorf("%d of 1000 arrived", got)
		}
		b.stop()
	})
}

// TestSweepAfterRestart: what a peer has lost with its process leaves the external
// cache, and nothing else does.
func TestSweepAfterRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		for i := range 100 {
			a.kernel.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)
		a.stop()
		a.kernel.Mute(true) // nobody listens
		for i := range 50 {
			a.kernel.Destroy(newFlow(i).Orig, 0)
			a.kernel.Create(newFlow(200+i), 0)
		}
		a.kernel.Mute(false)
		time.Sleep(3 * time.Second)
		if len(b.externalTable()) != 100 {
			t.Error("flows of a peer that is away for a moment were not kept")
		}
		a.start()
		time.Sleep(3 * time.Second)
		if p := b.problems(); p == "" {
			t.Error("before the sweep the node says that all is well")
		}
		time.Sleep(30 * time.Second)
		wantInStep(t, a, b)
		if s := b.stats(); s.ExternalSwept != 50 || b.ftfw.Stats.BulksReceived != 2 {
			t.Errorf("swept %d, bulk updates %d", s.ExternalSwept, b.ftfw.Stats.BulksReceived)
		}
		if p := b.problems(); p != "" {
			t.Errorf("after the sweep: %s", p)
		}
		a.stop()
		b.stop()
	})
}

// TestSilentPeerKeepsItsFlows: nothing is swept while the peer cannot be heard.
func TestSilentPeerKeepsItsFlows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a, b := pair(t)
		for i := range 100 {
			a.kernel.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		n.SetFaults(simnet.Faults{Cut: true})
		b.do(b.Mode().RequestResync)
		time.Sleep(24 * time.Hour)
		if got := len(b.externalTable()); got != 100 {
			t.Errorf("%d of 100 flows of a dead peer are kept", got)
		}
		a.stop()
		b.stop()
	})
}

func TestFlush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		for i := range 50 {
			a.kernel.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		a.do(a.FlushInternal)
		b.do(b.FlushExternal)
		time.Sleep(5 * time.Second)
		if i, x := len(a.internalTable()), len(b.externalTable()); i != 0 || x != 0 {
			t.Errorf("%d and %d entries after a flush", i, x)
		}
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		wantInStep(t, a, b)

		// A flush of the internal cache tells the peer nothing.
		a.do(a.FlushInternal)
		time.Sleep(5 * time.Second)
		if x := len(b.externalTable()); x != 50 {
			t.Errorf("the peer has %d of 50 entries after a flush of ours", x)
		}
		a.stop()
		b.stop()
	})
}

// TestFlushDuringDump: what the dump finds after a flush is taken anew.
func TestFlushDuringDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		for i := range 100 {
			k.Create(newFlow(i), 0)
		}
		time.Sleep(time.Minute)
		k.DumpPause = 10 * time.Millisecond
		a.do(a.RequestKernelSync)
		time.Sleep(320 * time.Millisecond)
		for i := range 100 {
			k.Update(newFlow(i).Orig, 0, establish)
		}
		synctest.Wait()
		a.do(func() {
			a.FlushInternal()
			a.RequestKernelSync()
		})
		time.Sleep(10 * time.Second)
		wantInternal(t, a)
		a.stop()
	})
}

// TestInternalLimit: at the limit new flows are refused, said so, and found when
// there is room again.
func TestInternalLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a, b := pair(t, func(c *Config) { c.InternalLimit = 100 })
		k := a.kernel
		for i := range 150 {
			k.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		if i, x := len(a.internalTable()), len(b.externalTable()); i != 100 || x != 100 {
			t.Errorf("%d and %d entries at a limit of 100", i, x)
		}
		if p := a.problems(); p == "" || a.stats().EventsRefused != 50 {
			t.Errorf("%d refused, problems %q", a.stats().EventsRefused, p)
		}
		for i := range 60 {
			k.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(10 * time.Second)
		wantInStep(t, a, b)
		if p := a.problems(); p != "" {
			t.Errorf("with room again: %s", p)
		}

		// With the peer gone, deletions wait until there is no other room.
		n.SetFaults(simnet.Faults{Cut: true})
		time.Sleep(15 * time.Second)
		for i := range 500 {
			k.Create(newFlow(1000+i), 0)
			k.Destroy(newFlow(1000+i).Orig, 0)
			synctest.Wait()
		}
		wantInternal(t, a)
		if s := a.stats(); s.Evicted == 0 || s.EventsRefused != 50 {
			t.Errorf("%d evicted, %d refused", s.Evicted, s.EventsRefused)
		}
		a.stop()
		b.stop()
	})
}

// TestEvictBehindTheLiving: flows that live on wait at the head of the queue while
// the peer is gone, and the deletions behind them must still make room.
func TestEvictBehindTheLiving(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t, func(c *Config) { c.InternalLimit = 2000 })
		for i := range 1000 {
			k.Create(newFlow(i), 0)
		}
		synctest.Wait()
		for i := range 3000 {
			k.Create(newFlow(5000+i), 0)
			k.Destroy(newFlow(5000+i).Orig, 0)
			synctest.Wait()
		}
		if s := a.stats(); s.EventsRefused != 0 {
			t.Errorf("%d flows refused while deletions held the room", s.EventsRefused)
		}
		wantInternal(t, a)
		a.stop()
	})
}

// TestExternalLimit: at the limit flows of the peer are refused, and asked for again
// when there is room.
func TestExternalLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t, func(c *Config) { c.ExternalLimit = 100 })
		k := a.kernel
		for i := range 150 {
			k.Create(newFlow(i), 0)
		}
		time.Sleep(5 * time.Second)
		if x := len(b.externalTable()); x != 100 || b.stats().ExternalRefused == 0 || b.problems() == "" {
			t.Errorf("%d entries, %d refused, problems %q", x, b.stats().ExternalRefused, b.problems())
		}
		for i := range 60 {
			k.Destroy(newFlow(i).Orig, 0)
		}
		time.Sleep(30 * time.Second)
		wantInStep(t, a, b)
		if p := b.problems(); p != "" {
			t.Errorf("with room again: %s", p)
		}
		a.stop()
		b.stop()
	})
}

// TestDo runs functions from many goroutines, one at a time and in the loop.
func TestDo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, _ := alone(t)
		ended := make(chan struct{})
		n := 0 // owned by the loop
		for range 50 {
			go func() {
				for range 20 {
					a.do(func() { n++ })
				}
				ended <- struct{}{}
			}()
		}
		for range 50 {
			<-ended
		}
		a.do(func() {
			if n != 1000 {
				t.Errorf("%d of 1000 functions ran", n)
			}
		})

		// What has returned nil has run, also around the end of the loop.
		var ran, returned atomic.Int64
		for range 50 {
			go func() {
				for {
					err := a.Do(t.Context(), func() { ran.Add(1) })
					if err != nil {
						if !errors.Is(err, ErrStopped) {
							t.Errorf("Do: %v", err)
						}
						ended <- struct{}{}
						return
					}
					returned.Add(1)
				}
			}()
		}
		for ran.Load() < 1000 {
			time.Sleep(0)
		}
		a.stop()
		for range 50 {
			<-ended
		}
		if ran.Load() != returned.Load() {
			t.Errorf("%d ran and %d returned without error", ran.Load(), returned.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e := quietEngine(t)
		if err := e.Do(ctx, func() {}); !errors.Is(err, context.Canceled) {
			t.Errorf("Do of a loop that does not run: %v", err)
		}
	})
}

// TestTimeouts: what is sent is the time that is left.
func TestTimeouts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		k.Create(newFlow(1), 0) // 300 s
		time.Sleep(100 * time.Second)
		var m wire.Message
		a.do(func() {
			f := newFlow(1)
			var r wire.Reader
			r.Reset(a.AppendFlow(nil, a.Internal().Lookup(&f.Orig), 0, 1, false, a.Now()))
			r.Next(&m)
		})
		if got := m.Flow.Timeout; got < 199 || got > 200 || m.Type != wire.CTNew {
			t.Errorf("%v with a timeout of %d s, want 200", m.Type, got)
		}
		a.stop()
	})
}

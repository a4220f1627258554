package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/sync/stream"
)

// mirrorPair is pair in the syncd dialect.
func mirrorPair(t *testing.T, options ...func(*Config)) (n *simnet.Network, a, b *node) {
	n, nodes := mirrorNodes(t, 2, func(int) []func(*Config) { return options })
	return n, nodes[0], nodes[1]
}

// mirrorNodes starts some nodes that speak the syncd dialect, each with options of its own,
// and waits until the first exchange is over.
func mirrorNodes(t *testing.T, count int, options func(i int) []func(*Config)) (n *simnet.Network, nodes []*node) {
	n = simnet.New(1)
	for i := range count {
		name, addr, session := string(rune('A'+i)), netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), uint64(i+1)
		words := rand.New(rand.NewPCG(session, 5))
		d := newNode(t, name, addr, n, simnet.NewKernel(session), append(slices.Clone(options(i)), func(cfg *Config) {
			cfg.Mirror, cfg.Sealer = true, named(session)
			cfg.NewMode = func(e *Engine) Mode {
				return stream.New(stream.Config{
					Name: name, Session: uint64(cfg.Sealer.(named)), FirstSeq: 1000,
					Random: func(b []byte) { binary.BigEndian.PutUint64(b[:8], words.Uint64()|1) },
				}, e, e.Replica())
			}
		})...)
		d.cfg.Leads = d.leads
		d.start()
		nodes = append(nodes, d)
	}
	time.Sleep(30 * time.Second)
	return n, nodes
}

// dialects runs a test with a pair in each dialect.
func dialects(t *testing.T, test func(t *testing.T, mirror bool, a, b *node), options ...func(*Config)) {
	for _, d := range []struct {
		name   string
		mirror bool
		pair   func(*testing.T, ...func(*Config)) (*simnet.Network, *node, *node)
	}{{"conntrackd", false, pair}, {"syncd", true, mirrorPair}} {
		t.Run(d.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				_, a, b := d.pair(t, options...)
				test(t, d.mirror, a, b)
				a.stop()
				b.stop()
			})
		})
	}
}

var (
	mobile = netip.MustParseAddr("203.0.113.1") // that newFlow translates to
	fixed  = netip.MustParseAddr("203.0.113.9")
)

func (d *node) host(addrs ...netip.Addr) { d.do(func() { d.SetHost(addrs) }) }

// opened creates n established flows on a node and returns those that are translated.
func (d *node) opened(n int) (translated []flow.Tuple) {
	for i := range n {
		f := newFlow(i)
		d.kernel.Create(f, 0)
		d.kernel.Update(f.Orig, 0, establish)
		if i%8 == 5 {
			translated = append(translated, f.Orig)
		}
	}
	time.Sleep(5 * time.Second)
	return translated
}

func (d *node) kill(tuples []flow.Tuple) {
	for _, t := range tuples {
		d.kernel.Kill(t, 0)
	}
}

func (t table) without(tuples ...flow.Tuple) table {
	less := table{}
	for k, f := range t {
		less[k] = f
	}
	for _, k := range tuples {
		delete(less, k)
	}
	return less
}

func wantTable(t testing.TB, what string, got, want table) {
	t.Helper()
	if d := differences(got, want); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

// The kernel destroys what it masqueraded when the address leaves. That is not the end
// of these flows, whichever news comes first.
func TestLeftBehind(t *testing.T) {
	dialects(t, func(t *testing.T, mirror bool, a, b *node) {
		a.host(mobile, fixed)
		mine := a.opened(64)
		all := a.kernelTable()

		a.host(fixed)
		a.kill(mine[:4])
		time.Sleep(time.Second)
		a.host(mobile, fixed)
		time.Sleep(5 * time.Second) // or what comes now would be of the first time
		a.kill(mine[4:])
		time.Sleep(limboTime / 2)
		wantTable(t, "the peer, while it is not clear", b.externalTable(), all)
		a.host(fixed)
		time.Sleep(time.Second)
		wantTable(t, "the peer", b.externalTable(), all)
		wantTable(t, "the internal cache", a.internalTable(), all)
		if n := a.stats().LeftBehind; n != 8 {
			t.Errorf("%d flows were left behind, want 8", n)
		}

		// Nor does the kernel's table say so.
		a.do(a.RequestKernelSync)
		time.Sleep(2 * time.Second)
		wantTable(t, "the peer after a resynchronisation", b.externalTable(), all)
		if n := a.stats().Swept; n != 0 {
			t.Errorf("%d swept", n)
		}
		// What changes otherwise goes on.
		a.kernel.Destroy(newFlow(0).Orig, 0)
		time.Sleep(time.Second)
		wantTable(t, "the peer after another end", b.externalTable(), all.without(newFlow(0).Orig))

		// Nobody takes them over: they end when their time is over, at last.
		time.Sleep(310 * time.Second)
		want := a.kernelTable()
		wantTable(t, "the internal cache in the end", a.internalTable(), want)
		wantTable(t, "the peer in the end", b.externalTable(), want)
		a.do(func() {
			if a.Engine.behind.due() != 0 {
				t.Error("something is still looked for")
			}
		})
	})
}

// Where the events of such ends found no room in the socket, the kernel's table tells of
// them, sooner or later than the news of the address.
func TestLeftBehindUnnoticed(t *testing.T) {
	for _, first := range []bool{true, false} {
		dialects(t, func(t *testing.T, mirror bool, a, b *node) {
			a.host(mobile, fixed)
			mine := a.opened(64)
			master := withHelper(100, 0)
			copy(master.Reply.Dst[:], []byte{203, 0, 113, 1})
			master.Status |= flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone | flow.StatusHelper
			a.kernel.Create(master, 0)
			a.kernel.Expect(expects(&master, 1), 0)
			time.Sleep(time.Second)
			all := a.kernelTable()

			a.kernel.Mute(true)
			a.kill(append(mine, master.Orig))
			a.kernel.Destroy(newFlow(0).Orig, 0)
			if first {
				a.host(fixed)
			}
			a.kernel.Mute(false)
			a.do(a.RequestKernelSync)
			if !first {
				time.Sleep(limboTime / 2)
				wantTable(t, "the peer, while it is not clear", b.externalTable(), all.without(newFlow(0).Orig))
				a.host(fixed)
			}
			time.Sleep(5 * time.Second)
			want := all.without(newFlow(0).Orig)
			wantTable(t, "the peer", b.externalTable(), want)
			wantTable(t, "the internal cache", a.internalTable(), want)
			if s := a.stats(); s.LeftBehind != 9 || s.Swept != 11 {
				t.Errorf("%d flows were left behind and %d swept, want 9 and 11", s.LeftBehind, s.Swept)
			}
			time.Sleep(310 * time.Second) // as any that was left behind
			wantTable(t, "the peer in the end", b.externalTable(), a.kernelTable())
		})
	}
}

// With the address still here, they have ended.
func TestNotLeftBehindUnnoticed(t *testing.T) {
	dialects(t, func(t *testing.T, mirror bool, a, b *node) {
		a.host(mobile, fixed)
		mine := a.opened(64)
		a.kernel.Mute(true)
		a.kill(mine)
		a.kernel.Mute(false)
		a.do(a.RequestKernelSync)
		time.Sleep(time.Second)
		wantTable(t, "the peer", b.externalTable(), a.kernelTable())
		if s := a.stats(); s.LeftBehind != 0 || s.Swept != 8 {
			t.Errorf("%d flows were left behind and %d swept, want 0 and 8", s.LeftBehind, s.Swept)
		}
	})
}

// Ends that only look similar are told.
func TestNotLeftBehind(t *testing.T) {
	foreign := func(f *flow.Flow) { f.Reply.Dst[3] = 77 }
	kill := func(k *simnet.Kernel, t flow.Tuple) { k.Kill(t, 0) }
	for _, tt := range []struct {
		name  string
		flow  int
		edit  func(*flow.Flow)
		end   func(k *simnet.Kernel, t flow.Tuple)
		after time.Duration // until it is told
	}{
		{"the address stays", 5, nil, kill, limboTime},
		{"not translated", 0, nil, kill, 0},
		{"translated to another address", 5, foreign, kill, 0},
		{"deleted by somebody", 5, nil, func(k *simnet.Kernel, t flow.Tuple) { k.Kill(t, 4711) }, 0},
		{"expired", 5, nil, func(k *simnet.Kernel, t flow.Tuple) { k.Destroy(t, 0) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialects(t, func(t *testing.T, mirror bool, a, b *node) {
				a.host(mobile, fixed)
				f := newFlow(tt.flow)
				if tt.edit != nil {
					tt.edit(&f)
				}
				a.kernel.Create(f, 0)
				a.opened(8)
				all := a.kernelTable()
				tt.end(a.kernel, f.Orig)
				if tt.after > 0 {
					time.Sleep(tt.after - 10*time.Millisecond)
					wantTable(t, "the peer, before it is clear", b.externalTable(), all)
					time.Sleep(20 * time.Millisecond)
				}
				time.Sleep(limboTime / 2)
				wantTable(t, "the peer", b.externalTable(), all.without(f.Orig))
				if n := a.stats().LeftBehind; n != 0 {
					t.Errorf("%d flows were left behind", n)
				}
			})
		})
	}
}

// A flow whose end waits, or that was left behind, comes back as another one, perhaps
// with the same id, by an event or in a dump.
func TestBackFromLimbo(t *testing.T) {
	for _, behind := range []bool{false, true} {
		for _, mute := range []bool{false, true} {
			dialects(t, func(t *testing.T, mirror bool, a, b *node) {
				a.kernel.ReuseIDs = true
				a.host(mobile)
				mine := a.opened(16)
				if behind {
					a.host()
				}
				a.kill(mine)
				time.Sleep(limboTime / 3)
				a.kernel.Mute(mute)
				again := newFlow(13)
				again.Mark = 99
				again.Has |= flow.HasMark
				a.kernel.Create(again, 0)
				a.kernel.Mute(false)
				if mute {
					a.do(a.RequestKernelSync)
				}
				time.Sleep(20 * time.Second)
				want := a.kernelTable()
				if f, ok := a.internalTable()[again.Orig]; !ok || f.TCPState != flow.TCPSynSent || f.Mark != 99 {
					t.Errorf("the new flow: %v %s", ok, text(f))
				}
				other := newFlow(5).Orig
				for what, got := range map[string]table{"internal": a.internalTable(), "external": b.externalTable()} {
					if _, kept := got[other]; kept != behind {
						t.Errorf("%s: the other flow is there: %v, want %v", what, kept, behind)
					}
					wantTable(t, what, got.without(other), want)
				}
				a.kernel.Destroy(again.Orig, 0) // and has an end of its own
				time.Sleep(time.Second)
				if _, there := b.externalTable()[again.Orig]; there {
					t.Error("the end of the new flow was not told")
				}
			})
		}
	}
}

// Once the peer has taken a flow over, or has seen its end, what was left behind here
// goes. In conntrackd's dialect nobody is told: it would end the flow there.
func TestLeftToThePeer(t *testing.T) {
	for _, standby := range []bool{true, false} {
		dialects(t, func(t *testing.T, mirror bool, a, b *node) { testLeftToThePeer(t, mirror, standby, a, b) })
	}
}

// standby says whether the node was told that it is not in charge any more.
func testLeftToThePeer(t *testing.T, mirror, standby bool, a, b *node) {
	a.host(mobile)
	mine := a.opened(64)
	all := a.kernelTable()
	a.host()
	a.kill(mine)
	if standby {
		a.mark()
	}
	time.Sleep(time.Second)

	for _, k := range mine { // the peer commits all, and one ends there
		f := all[k]
		f.Has |= flow.HasTimeout | flow.HasStatus
		f.Timeout = 300
		b.kernel.Create(f, commitPort)
	}
	time.Sleep(100 * time.Millisecond)
	b.do(func() { b.Engine.Mode().Bulk() })
	time.Sleep(2 * time.Second)
	b.kernel.Destroy(mine[0], 0)
	time.Sleep(behindLook + time.Second)
	wantTable(t, "the internal cache, soon", a.internalTable(), all.without(mine[0]))
	time.Sleep(behindHeld + behindLook)
	wantTable(t, "the internal cache, later", a.internalTable(), a.kernelTable())
	if len(a.externalTable()) != len(mine)-1 || b.kernel.Len() != len(mine)-1 {
		t.Errorf("the peer has %d flows, we know of %d", b.kernel.Len(), len(a.externalTable()))
	}
	want, told := all, 0
	switch {
	case mirror:
		want, told = a.kernelTable(), len(mine)
	case !standby: // what the peer has ended cannot end there again
		want, told = all.without(mine[0]), 1
	}
	wantTable(t, "what the peer has of us", b.externalTable(), want)
	if n := b.stats().ExternalDel; n != uint64(told) {
		t.Errorf("the peer was told of %d ends, want %d", n, told)
	}
}

// The limbo is bounded, and gives its memory back.
func TestLimboFull(t *testing.T) {
	e := quietEngine(t)
	e.SetHost([]netip.Addr{mobile})
	e.internal.SetLimit(maxLimbo + 100)
	b := &flow.Batch{N: 1}
	for i := range maxLimbo + 2 {
		f := newFlow(5)
		f.Orig.SrcPort, f.Orig.Dst[2] = uint16(i), byte(i>>16)
		f.ID = uint32(i + 1)
		f.Has |= flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasID
		b.Events[0] = flow.Event{Kind: flow.EventNew, Flow: f}
		e.takeEvents(b)
		b.Events[0] = flow.Event{Kind: flow.EventDestroy, Flow: f}
		e.takeEvents(b)
	}
	if n := e.internal.DeadLen() + int(e.Stats.Evicted); n != 2 || e.internal.Len() != maxLimbo {
		t.Errorf("%d ends were told at once, %d wait", n, e.internal.Len())
	}
	if due := e.behind.due(); due != e.now.Add(limboTime) {
		t.Errorf("due in %v", due.Sub(e.now))
	}
	e.now = e.now.Add(limboTime)
	turns := 1
	for e.behindWork() {
		turns++
	}
	if turns != maxLimbo/sweepSlots {
		t.Errorf("decided in %d turns", turns)
	}
	if e.internal.Len() != 0 || e.behind.limbo != nil || e.behind.due() != 0 {
		t.Errorf("%d still wait; %d slots", e.internal.Len(), cap(e.behind.limbo))
	}
}

// Flushing the cache forgets what waits.
func TestLimboFlush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, k := alone(t)
		a.host(mobile)
		a.opened(16)
		k.Kill(newFlow(5).Orig, 0)
		time.Sleep(limboTime / 2)
		a.do(a.FlushInternal)
		time.Sleep(time.Second)
		a.do(a.RequestKernelSync)
		time.Sleep(5 * time.Second)
		wantInternal(t, a)
		a.stop()
	})
}

// The expectations of a flow that was left behind are left behind with it; those of one
// that has ended end.
func TestExpectLeftBehind(t *testing.T) {
	for _, moves := range []bool{true, false} {
		dialects(t, func(t *testing.T, mirror bool, a, b *node) {
			a.host(mobile)
			master := withHelper(0, 0)
			copy(master.Reply.Dst[:], []byte{203, 0, 113, 1})
			master.Status |= flow.StatusSrcNAT | flow.StatusHelper
			a.kernel.Create(master, 0)
			a.kernel.Expect(expects(&master, 1), 0)
			time.Sleep(5 * time.Second)
			want := a.kernelExpects()
			if len(want) != 1 || expectDifferences(b.externalExpects(), want) != "" {
				t.Fatalf("%d expectations; the peer: %s", len(want), expectDifferences(b.externalExpects(), want))
			}
			a.kernel.Kill(master.Orig, 0)
			if n := len(a.kernelExpects()); n != 0 {
				t.Fatalf("the kernel still has %d expectations", n)
			}
			time.Sleep(limboTime / 2)
			if moves {
				a.host()
			}
			time.Sleep(2 * time.Second)
			if !moves {
				want = nil
			}
			for what, got := range map[string]expectTable{"internal": a.internalExpects(), "external": b.externalExpects()} {
				if d := expectDifferences(got, want); d != "" {
					t.Errorf("moves %v, %s: %s", moves, what, d)
				}
			}
			time.Sleep(330 * time.Second) // until the time of the master is over
			if n := len(a.internalExpects()) + len(b.externalExpects()); n != 0 {
				t.Errorf("%d expectations are left for ever", n)
			}
		})
	}
}

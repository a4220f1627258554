package engine

import (
	"errors"
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/sync/ftfw"
	"syncd/internal/wire"
)

var (
	seeds = flag.Int("seeds", 200, "how many seeds TestChurn runs")
	seed  = flag.Uint64("seed", 0, "the one seed to run")
)

// TestChurn runs two whole nodes while their kernels change, the network and the
// event sockets fail in all ways, dumps fail, and processes start again. When the
// faults end and the changes pause, kernel, internal cache and the external cache of
// the peer are equal, both ways.
func TestChurn(t *testing.T) {
	first, n := uint64(1), *seeds
	if raceEnabled || testing.Short() {
		n = min(n, 20)
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+uint64(n); s++ {
		churn(t, s)
	}
}

// world is two nodes and what happens to them.
type world struct {
	r     *rand.Rand
	net   *simnet.Network
	nodes [2]*node
	flows int
	rate  int // changes of a kernel in a step, at most
}

func churn(t *testing.T, seed uint64) {
	bubble(t, func(t *testing.T) {
		defer func() {
			if t.Failed() { // and so does the test that this bubble is of
				t.Logf("replay with: go test ./internal/engine -run TestChurn -seed %d", seed)
			}
		}()
		r := rand.New(rand.NewPCG(seed, 99))
		w := &world{r: r, net: simnet.New(seed), flows: 1 + r.IntN(400), rate: r.IntN(25)}
		window, queue := 2+r.IntN(300), 512<<r.IntN(4)
		for i := range w.nodes {
			k := simnet.NewKernel(seed*2 + uint64(i))
			k.ReuseIDs = r.IntN(2) == 0
			k.DumpPause = time.Duration(r.IntN(5)) * time.Millisecond
			k.SocketLimit = 20 + r.IntN(2000)
			for range r.IntN(w.flows + 1) {
				w.change(k)
			}
			d := newNode(t, string(rune('A'+i)), []netip.Addr{addrA, addrB}[i], w.net, k)
			d.cfg.NewMode = func(e *Engine) Mode {
				d.ftfw = ftfw.New(ftfw.Config{FirstSeq: wire.Seq(r.Uint32()), AckWindow: window, ResendQueue: queue, Resync: true}, e)
				return OnePeer(d.ftfw, e.Replica())
			}
			w.nodes[i] = d
			d.start()
		}
		a, b := w.nodes[0], w.nodes[1]
		faults := simnet.Faults{
			Loss: r.Float64() * 0.4, Duplicate: r.Float64() * 0.1,
			Delay: time.Duration(r.IntN(5)) * time.Millisecond, Jitter: time.Duration(r.IntN(40)) * time.Millisecond,
		}
		w.net.SetFaults(faults)
		for range 1 + r.IntN(5) {
			w.run(time.Duration(r.IntN(5000)) * time.Millisecond)
			w.trouble(faults)
		}
		w.net.SetFaults(simnet.Faults{})
		w.run(time.Second)
		time.Sleep(60 * time.Second)
		wantInStep(t, a, b)
		wantInStep(t, b, a)
		for _, d := range w.nodes {
			if p := d.problems(); p != "" {
				t.Errorf("%s is idle and says: %s", d.name, p)
			}
			d.stop()
		}
	})
}

// run lets the kernels change for a while.
func (w *world) run(d time.Duration) {
	const step = 20 * time.Millisecond
	for range d / step {
		for _, n := range w.nodes {
			for range w.r.IntN(w.rate + 1) {
				w.change(n.kernel)
			}
		}
		time.Sleep(step)
	}
}

// change creates, updates, destroys or makes anew one flow of a kernel.
func (w *world) change(k *simnet.Kernel) {
	r := w.r
	f := newFlow(r.IntN(w.flows))
	if f.Status&flow.StatusSrcNAT != 0 && r.IntN(4) == 0 {
		f.Status &^= flow.StatusSrcNAT
		f.Reply, _ = f.Orig.Inverse()
	}
	switch x := r.IntN(10); {
	case x < 4 && k.Create(f, 0):
	case x < 6:
		k.Destroy(f.Orig, 0)
		if r.IntN(3) == 0 {
			k.Create(f, 0)
		}
	default:
		k.Update(f.Orig, 0, func(f *flow.Flow) { w.update(f) })
	}
}

func (w *world) update(f *flow.Flow) {
	r := w.r
	switch r.IntN(5) {
	case 0:
		f.Mark = r.Uint32N(3)
		f.Has |= flow.HasMark
	case 1:
		f.Labels[r.IntN(2)] ^= 1 << r.IntN(2)
		f.Has |= flow.HasLabels
	case 2:
		f.Status |= flow.StatusSeenReply
	default:
		establish(f)
		if f.Orig.Proto == flow.TCP {
			f.TCPState = flow.TCPEstablished + uint8(r.IntN(5))
		}
	}
}

var errResized = errors.New("hash table resized")

// trouble is one thing that goes wrong, or that an operator does.
func (w *world) trouble(faults simnet.Faults) {
	r := w.r
	d, peer := w.nodes[0], w.nodes[1]
	if r.IntN(2) == 0 {
		d, peer = peer, d
	}
	switch r.IntN(9) {
	case 0: // the process is down for a while
		d.stop()
		w.run(time.Duration(r.IntN(12000)) * time.Millisecond)
		d.start()
	case 1: // one direction is cut
		w.net.SetDirection(d.port, peer.port, simnet.Faults{Cut: true})
		w.run(time.Duration(r.IntN(15000)) * time.Millisecond)
		w.net.SetFaults(faults)
	case 2: // both are
		w.net.SetFaults(simnet.Faults{Cut: true})
		w.run(time.Duration(r.IntN(15000)) * time.Millisecond)
		w.net.SetFaults(faults)
	case 3, 4: // the event reader gets no processor
		d.kernel.Stall(true)
		w.run(time.Duration(r.IntN(1000)) * time.Millisecond)
		d.kernel.Stall(false)
	case 5:
		d.kernel.FailDumps(errResized, errResized)
		d.do(d.RequestKernelSync)
	case 6:
		d.do(d.RequestKernelSync)
	case 7:
		d.do(func() {
			d.FlushExternal()
			d.Mode().RequestResync()
		})
	case 8: // what the peer holds of it afterwards is only known when it asks
		d.do(func() {
			d.FlushInternal()
			d.RequestKernelSync()
		})
		w.run(5 * time.Second)
		peer.do(peer.Mode().RequestResync)
	}
}

// TestChurnCanFail shows that the comparison sees a divergence: changes of which
// no event tells.
func TestChurnCanFail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, a, b := pair(t)
		a.kernel.Create(newFlow(0), 0)
		a.kernel.Create(newFlow(1), 0)
		a.kernel.Mute(true)
		a.kernel.Create(newFlow(2), 0)
		a.kernel.Destroy(newFlow(0).Orig, 0)
		a.kernel.Update(newFlow(1).Orig, 0, establish)
		time.Sleep(time.Minute)
		if differences(a.internalTable(), a.kernelTable()) == "" || differences(b.externalTable(), a.kernelTable()) == "" {
			t.Error("a silent change was not noticed")
		}
		a.stop()
		b.stop()
	})
}

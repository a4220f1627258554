package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// transfer is a TCP connection that is full in both directions.
type transfer struct {
	*stream
	name string
	half [2]*halfTransfer // to the far end, to the near end
	wg   sync.WaitGroup
}

// halfTransfer is one direction of it, as its receiving end sees it.
type halfTransfer struct {
	name  string
	moved atomic.Int64 // octets that arrived

	mu   sync.Mutex
	errs []error // that this end has heard of, reading or writing
}

// transferBlock is what is sent, again and again. Whatever part of it arrives can be
// compared in one piece with what is at the same place in two of them.
const transferBlock = 1 << 16

var transferPattern = func() []byte {
	b := make([]byte, transferBlock)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return append(b, b...)
}()

// startTransfer fills a connection in both directions until one of its ends is
// closed.
func startTransfer(t testing.TB, s *stream, name string) *transfer {
	t.Helper()
	tr := &transfer{stream: s, name: name}
	for i, end := range [2]struct {
		name string
		net.Conn
	}{{"to the far end", s.far}, {"to the near end", s.near}} {
		ok(t, end.SetReadDeadline(time.Time{}))
		h := &halfTransfer{name: name + ", " + end.name}
		tr.half[i] = h
		tr.wg.Go(func() { h.give(end) })
		tr.wg.Go(func() { h.take(end) })
	}
	t.Cleanup(tr.stop)
	return tr
}

// give writes until the connection ends.
func (h *halfTransfer) give(to net.Conn) {
	for {
		if _, err := to.Write(transferPattern[:transferBlock]); err != nil {
			h.hear(err)
			return
		}
	}
}

// take reads and compares until the connection ends.
func (h *halfTransfer) take(from net.Conn) {
	b := make([]byte, transferBlock)
	for at := 0; ; {
		n, err := from.Read(b)
		if !bytes.Equal(b[:n], transferPattern[at:at+n]) {
			err = fmt.Errorf("damaged after %d octets", h.moved.Load())
		}
		h.moved.Add(int64(n))
		at = (at + n) % transferBlock
		if err != nil {
			h.hear(err)
			return
		}
	}
}

func (h *halfTransfer) hear(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, err)
}

// ended returns why a direction has ended; nil while it has not. The kernel tells of a
// reset once, to whoever reads or writes first.
func (h *halfTransfer) ended() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.errs...)
}

func (tr *transfer) stop() {
	_, _ = tr.near.Close(), tr.far.Close()
	tr.wg.Wait()
}

// transfers are many of them.
type transfers []*transfer

func (all transfers) halves() []*halfTransfer {
	var h []*halfTransfer
	for _, tr := range all {
		h = append(h, tr.half[0], tr.half[1])
	}
	return h
}

// measure returns what moves in each direction in a time.
func (all transfers) measure(d time.Duration) []int64 {
	halves := all.halves()
	moved := make([]int64, len(halves))
	for i, h := range halves {
		moved[i] = -h.moved.Load()
	}
	time.Sleep(d)
	for i, h := range halves {
		moved[i] += h.moved.Load()
	}
	return moved
}

// rates says how much moved in a second, in MB/s.
func rates(moved []int64, d time.Duration) string {
	var b strings.Builder
	var sum int64
	for _, n := range moved {
		sum += n
		fmt.Fprintf(&b, " %.0f", float64(n)/1e6/d.Seconds())
	}
	return fmt.Sprintf("%.0f MB/s:%s", float64(sum)/1e6/d.Seconds(), b.String())
}

// Connections that are full in both directions, with windows that are scaled, keep
// their speed after a takeover, whatever was in flight; and whatever ends them then
// ends them at both ends.
func TestTransfer(t *testing.T) {
	for _, setup := range fidelitySetups {
		if setup.roles.receiver == theirs {
			continue // it does not restore scales: the connections stand still
		}
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			testTransfer(t, setup.roles, setup.opts)
		})
	}
}

func testTransfer(t *testing.T, r roles, opts duoOptions) {
	p, d := fidelityPair(t, r, opts)
	far := newPlaces()
	var all transfers
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, w := range ways(p, a)[:3] { // routed, source NAT, destination NAT
			all = append(all, startTransfer(t, far.openStream(t, w), family(a)+", "+w.name))
		}
	}
	// Some that are silent, to be reset afterwards.
	var silent []*stream
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, w := range ways(p, a)[:3] {
			for range 4 {
				silent = append(silent, far.openStream(t, w))
			}
		}
	}
	d.waitReplicated(10*time.Second, "the connections")
	const second = time.Second
	all.measure(second / 2) // windows grow
	before := all.measure(second)

	cut := time.Now()
	ok(t, p.TakeOver(d.nA, d.nB))
	d.b.Primary()
	back := time.Now()
	start := make([]int64, len(before))
	for i, h := range all.halves() {
		start[i] = h.moved.Load()
	}
	for i, h := range all.halves() {
		f := originalOf(t, d, all[i/2])
		if tcp := f.ProtoInfo.TCP; tcp.OriginalWindowScale == 0 || tcp.ReplyWindowScale == 0 {
			t.Errorf("%s: the scales %d and %d: this proves nothing", h.name, tcp.OriginalWindowScale, tcp.ReplyWindowScale)
		}
		if before[i] < 1<<20 {
			t.Errorf("%s: %d octets a second before: this proves nothing", h.name, before[i])
		}
		// Where windows are not scaled, a hundredth of it does not arrive.
		waitFor(t, 10*second, h.name+": as much has arrived again as in half a second before", func() bool {
			return h.moved.Load()-start[i] >= before[i]/2
		})
	}
	flowing := time.Since(back)
	after := all.measure(second)
	t.Logf("before %s", rates(before, second))
	t.Logf("after  %s; the address moved %v, all flowed %v later", rates(after, second),
		back.Sub(cut).Round(time.Millisecond), flowing.Round(time.Millisecond))
	for i, h := range all.halves() {
		if err := h.ended(); err != nil {
			t.Errorf("%s: %v", h.name, err)
		}
		if after[i] < before[i]/10 {
			t.Errorf("%s: %d octets a second after, %d before", h.name, after[i], before[i])
		}
	}

	// Resets, of connections in full flight and of silent ones, from either end.
	for i, tr := range all {
		here, there := tr.near, tr.half[0]
		if i%2 == 1 {
			here, there = tr.far, tr.half[1]
		}
		ok(t, here.(*net.TCPConn).SetLinger(0), here.Close())
		waitFor(t, transit, tr.name+": the other end has heard of the reset", func() bool { return errors.Is(there.ended(), syscall.ECONNRESET) })
		tr.stop()
	}
	judged := invalid(t, d.nB, flow.TCP)
	for i, s := range silent {
		here, there := s.near, s.far
		if i%2 == 1 {
			here, there = there, here
		}
		if i%4 >= 2 { // the others have been silent since before the takeover
			ok(t, s.say(there, here))
		}
		ok(t, here.(*net.TCPConn).SetLinger(0), here.Close())
		ok(t, there.SetReadDeadline(time.Now().Add(transit)))
		if _, err := there.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d: the other end has heard %v of the reset", i, err)
		}
	}
	if n := invalid(t, d.nB, flow.TCP) - judged; n != 0 {
		t.Errorf("%d packets of %d resets are invalid", n, len(silent))
	}
}

// originalOf returns the flow of a transfer in the first kernel.
func originalOf(t testing.TB, d *duo, tr *transfer) conntrack.Flow {
	t.Helper()
	_, f := find(t, kernelFlows(t, d.kA, d.accept), conversation{is: from(flow.TCP, tr.local())})
	return f
}

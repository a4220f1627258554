package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"syncd/internal/cache"
	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/simnet"
	"syncd/internal/sync/ftfw"
)

// Netlink ports of the sockets through which a node changes its own kernel.
const (
	commitPort = 70001
	purgePort  = 70002
	parkPort   = 70003
)

var (
	addrA = netip.MustParseAddr("192.0.2.1")
	addrB = netip.MustParseAddr("192.0.2.2")
	addrC = netip.MustParseAddr("192.0.2.3")
)

// bubble runs fn in virtual time. The clock is moved past the start of the process
// first, because that is where it stands everywhere else.
func bubble(t *testing.T, fn func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		if now := monotime.Now(); now < 0 {
			time.Sleep(time.Duration(-now) + time.Hour)
		}
		fn(t)
	})
}

// node is an engine with the real mode and caches on a simulated kernel and network.
type node struct {
	t      testing.TB
	name   string
	addr   netip.Addr
	net    *simnet.Network
	kernel *simnet.Kernel
	port   *simnet.Port
	cfg    Config
	*Engine
	ftfw   *ftfw.Machine
	cancel context.CancelFunc
	done   chan error
}

// newNode returns a node that start starts.
func newNode(t testing.TB, name string, addr netip.Addr, n *simnet.Network, k *simnet.Kernel, options ...func(*Config)) *node {
	d := &node{t: t, name: name, addr: addr, net: n, kernel: k}
	d.cfg = Config{
		Log: zap.NewNop(), Events: k, Dump: k.Dump, DumpExpects: k.DumpExpects,
		Filter: filter.Compile(filter.Rules{Expects: filter.Expects{All: true}}), InternalLimit: 1 << 16, ExternalLimit: 1 << 16,
		Labels: true, MarkMask: 0xffffffff,
		NewMode: func(e *Engine) Mode {
			d.ftfw = ftfw.New(ftfw.Config{FirstSeq: 1000, Resync: true}, e)
			return OnePeer(d.ftfw, e.Replica())
		},
	}
	for _, o := range options {
		o(&d.cfg)
	}
	return d
}

// start begins a process of the node, which knows nothing of an earlier one.
func (d *node) start() {
	d.port = d.net.Port(d.addr)
	d.cfg.Sender, d.cfg.Links = d.port, []LinkReader{d.port}
	d.Engine = New(d.cfg)
	d.SetOrigin(commitPort, OriginCommit)
	d.SetOrigin(purgePort, OriginPurge)
	d.SetOrigin(parkPort, OriginPark)
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan error, 1)
	run, done := d.Engine.Run, d.done
	go func() { done <- run(ctx) }()
}

// stop ends the process.
func (d *node) stop() {
	d.cancel()
	if err := <-d.done; !errors.Is(err, context.Canceled) {
		d.t.Errorf("%s: Run ended with %v", d.name, err)
	}
}

// do runs fn on the loop.
func (d *node) do(fn func()) {
	if err := d.Do(context.Background(), fn); err != nil {
		d.t.Errorf("%s: Do: %v", d.name, err)
	}
}

// stats returns the counters.
func (d *node) stats() (s Stats) {
	d.do(func() { s = d.Stats })
	return s
}

// problems returns what keeps the node from being in step.
func (d *node) problems() (p string) {
	d.do(func() { p = strings.Join(d.Problems(), "; ") })
	return p
}

// alone starts one node whose peer is never heard.
func alone(t *testing.T, options ...func(*Config)) (*node, *simnet.Kernel) {
	k := simnet.NewKernel(1)
	a := newNode(t, "A", addrA, simnet.New(1), k, options...)
	a.start()
	synctest.Wait()
	return a, k
}

// pair starts two nodes and waits until the first exchange is over.
func pair(t *testing.T, options ...func(*Config)) (n *simnet.Network, a, b *node) {
	n = simnet.New(1)
	a = newNode(t, "A", addrA, n, simnet.NewKernel(1), options...)
	b = newNode(t, "B", addrB, n, simnet.NewKernel(2), options...)
	a.start()
	b.start()
	time.Sleep(30 * time.Second)
	for _, d := range []*node{a, b} {
		if p := d.problems(); p != "" {
			t.Fatalf("%s is not in step at the start: %s", d.name, p)
		}
	}
	return n, a, b
}

// table is a set of flows in the form in which tables of different places are
// compared.
type table map[flow.Tuple]flow.Flow

// canonical returns of a flow what is replicated, all that is not known as zero.
// Whether an attribute is unknown or known and zero is left out: a kernel tells
// neither a mark of zero nor labels of which none is set.
func canonical(f flow.Flow) flow.Flow {
	c := flow.Flow{
		Orig: f.Orig, Reply: f.Reply, Master: f.Master, Status: f.Status, Mark: f.Mark,
		TCPState: f.TCPState, TCPWScale: f.TCPWScale, Labels: f.Labels, Helper: f.Helper,
		Synproxy: f.Synproxy, SeqAdj: f.SeqAdj,
	}
	if c.TCPState < flow.TCPEstablished {
		// Not agreed yet. What is left of an earlier flow with the same tuple and id,
		// whose end was lost, is overwritten when it is.
		c.TCPWScale = [2]uint8{}
	}
	return c
}

// kernelTable is what the node should replicate of its kernel.
func (d *node) kernelTable() table {
	t := table{}
	var match *filter.Filter
	d.do(func() { match = d.Filter() })
	for k, f := range d.kernel.Flows() {
		if f.Parked() || !match.Match(&f) || f.Orig.Zone != f.Reply.Zone && !d.cfg.Mirror {
			continue
		}
		f.Mark &= d.cfg.MarkMask
		if !d.cfg.Labels {
			f.Labels = [16]byte{}
		}
		if f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale == 0 {
			f.TCPWScale = [2]uint8{}
		}
		t[k] = canonical(f)
	}
	// What it expects is replicated if the flow is that expects it.
	for _, x := range d.kernel.Expects() {
		if _, ok := t[x.Master]; ok && match.MatchExpect(&x) {
			t[x.Key()] = canonical(shadowOf(&x))
		}
	}
	return t
}

func (d *node) internalTable() table { return d.cacheTable(d.Internal) }
func (d *node) externalTable() table {
	return d.cacheTable(func() *cache.Cache { return d.replica.of(onlyPeer).cache })
}

func (d *node) cacheTable(of func() *cache.Cache) table {
	t := table{}
	d.do(func() {
		c := of()
		c.Walk(0, 0, func(h flow.Handle) bool {
			if !c.Dead(h) {
				f := shadow(c, h)
				t[f.Orig] = canonical(f)
			}
			return true
		})
	})
	return t
}

// differences says how got differs from want, with a few examples; "" if it does
// not.
func differences(got, want table) string {
	var missing, stale, other []string
	for k, w := range want {
		g, ok := got[k]
		switch {
		case !ok:
			missing = append(missing, text(w))
		case g != w:
			other = append(other, fmt.Sprintf("have %s\n\t\twant %s", text(g), text(w)))
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			stale = append(stale, text(g))
		}
	}
	var s strings.Builder
	for _, d := range []struct {
		what  string
		flows []string
	}{{"missing", missing}, {"stale", stale}, {"different", other}} {
		if len(d.flows) > 0 {
			fmt.Fprintf(&s, "\n\t%d %s, for example\n\t\t%s", len(d.flows), d.what, d.flows[0])
		}
	}
	return s.String()
}

func text(f flow.Flow) string {
	return fmt.Sprintf("%d %d>%d zone %d reply %x:%d>%d status %#x mark %#x tcp %d wscale %v labels %x helper %s master %d synproxy %v seqadj %v",
		f.Orig.Proto, f.Orig.SrcPort, f.Orig.DstPort, f.Orig.Zone, f.Reply.Src[:4], f.Reply.SrcPort, f.Reply.DstPort, f.Status, f.Mark,
		f.TCPState, f.TCPWScale, f.Labels, f.Helper, f.Master.SrcPort, f.Synproxy, f.SeqAdj)
}

// wantInStep compares a kernel with its own internal cache and the external cache
// of the peer.
func wantInStep(t testing.TB, owner, peer *node) {
	t.Helper()
	want := owner.kernelTable()
	if d := differences(owner.internalTable(), want); d != "" {
		t.Errorf("internal cache of %s against its kernel: %s", owner.name, d)
	}
	if d := differences(peer.externalTable(), want); d != "" {
		t.Errorf("external cache of %s against the kernel of %s: %s", peer.name, owner.name, d)
	}
}

// wantInternal compares the kernel with the internal cache.
func wantInternal(t testing.TB, d *node) {
	t.Helper()
	if diff := differences(d.internalTable(), d.kernelTable()); diff != "" {
		t.Errorf("internal cache of %s against its kernel: %s", d.name, diff)
	}
}

// newFlow returns flow i of a colourful set: protocols, families, translations,
// zones, helpers and masters.
func newFlow(i int) flow.Flow {
	f := flow.Flow{Timeout: 300}
	o := &f.Orig
	o.Family, o.Proto = flow.IPv4, flow.TCP
	o.SrcPort, o.DstPort = uint16(1024+i), 443
	copy(o.Src[:], []byte{192, 0, 2, 10})
	copy(o.Dst[:], []byte{198, 51, 100, byte(i)})
	switch i % 8 {
	case 1:
		o.Proto = flow.UDP
	case 2:
		o.Family = flow.IPv6
		copy(o.Src[:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
		copy(o.Dst[:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 2})
	case 3:
		o.Zone = 7
	case 4:
		o.Proto, o.SrcPort, o.DstPort = flow.ICMP, uint16(i), 8<<8
	}
	f.Reply, _ = o.Inverse()
	switch i % 8 {
	case 5: // source translation
		copy(f.Reply.Dst[:], []byte{203, 0, 113, 1})
		f.Reply.DstPort = uint16(40000 + i)
		f.Status = flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone
	case 6:
		f.Helper, _ = flow.MakeName("ftp")
		f.Has |= flow.HasHelper
	case 7:
		f.Master = newFlow(6).Orig
		f.Status = flow.StatusExpected
		f.Has |= flow.HasMaster
	}
	if o.Proto == flow.TCP {
		f.TCPState = flow.TCPSynSent
		f.TCPFlags = [2]uint8{flow.TCPFlagWindowScale, 0}
		f.TCPWScale = [2]uint8{7, 0}
		f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	}
	return f
}

// establish is the update of a flow whose handshake is over.
func establish(f *flow.Flow) {
	f.Status |= flow.StatusSeenReply | flow.StatusAssured
	if f.Orig.Proto == flow.TCP {
		f.TCPState = flow.TCPEstablished
		f.TCPFlags[1], f.TCPWScale[1] = flow.TCPFlagWindowScale, 8
	}
}

// quietEngine returns an engine whose loop does not run, for driving single
// functions.
func quietEngine(t testing.TB, options ...func(*Config)) *Engine {
	d := newNode(t, "A", addrA, simnet.New(1), simnet.NewKernel(1), options...)
	d.port = d.net.Port(d.addr)
	d.cfg.Sender = d.port
	return New(d.cfg)
}

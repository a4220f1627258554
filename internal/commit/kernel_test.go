package commit_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"syncd/internal/commit"
	"syncd/internal/ctnetlink"
	"syncd/internal/flow"
	"syncd/internal/wire"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// writer makes a commit.Kernel of a ctnetlink.Writer.
type writer struct {
	*ctnetlink.Writer
	markMask uint32 // 0 for all
}

func (w writer) Add(op commit.Op, f *flow.Flow) (int, error) {
	ops := [...]ctnetlink.Op{
		commit.Create: ctnetlink.OpCreate,
		commit.Update: ctnetlink.OpUpdate,
		commit.Delete: ctnetlink.OpDelete,
	}
	i, err := w.Writer.Add(ops[op], f, ctnetlink.CreateOptions{Liberal: true, Labels: true, GuardID: true, MarkMask: w.markMask})
	if errors.Is(err, ctnetlink.ErrBatchFull) {
		err = commit.ErrBatchFull
	}
	return i, err
}

func (w writer) Flush(fail func(int, unix.Errno)) error {
	err := w.Writer.Flush(fail)
	if errors.Is(err, ctnetlink.ErrRepliesLost) {
		err = unix.ENOBUFS
	}
	return err
}

// node is a network namespace with its conntrack table.
type node struct {
	t      testing.TB
	handle netns.NsHandle
	writer writer
	oracle *conntrack.Conn
}

var nodes atomic.Uint32

// newNode makes a namespace in which conntrack and NAT are active and lo is up.
func newNode(t testing.TB) *node {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("not root: network namespaces cannot be made, and CI=true allows no skip")
		}
		t.Skip("not root: network namespaces cannot be made")
	}
	n := &node{t: t}
	name := fmt.Sprintf("syncd-co-%d-%d", os.Getpid(), nodes.Add(1))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the namespace
		var err error
		if n.handle, err = netns.NewNamed(name); err == nil {
			err = setUp()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make namespace: %v", err)
	}
	t.Cleanup(func() {
		n.handle.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	n.rules(expr.CtKeySTATE, expr.CtKeyLABELS)

	w, err := ctnetlink.NewWriter(ctnetlink.WriterConfig{NetNS: int(n.handle)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	n.writer = writer{Writer: w}
	if n.oracle, err = conntrack.Dial(&nl.Config{NetNS: int(n.handle)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.oracle.Close() })
	return n
}

func setUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// rules makes the namespace track, and use keys: without one of labels it keeps none.
func (n *node) rules(keys ...expr.CtKey) {
	n.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(n.handle)))
	if err != nil {
		n.t.Fatal(err)
	}
	c.FlushRuleset()
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "t"})
	chain := c.AddChain(&nftables.Chain{
		Name: "in", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	for _, key := range keys {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Ct{Register: 1, Key: key}, &expr.Counter{},
		}})
	}
	if err := c.Flush(); err != nil {
		n.t.Fatalf("load rules: %v", err)
	}
}

// inside runs fn on a thread in the namespace.
func (n *node) inside(fn func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(n.handle)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

// create puts flows into the table as they are.
func (n *node) create(flows ...flow.Flow) {
	n.t.Helper()
	for start := 0; start < len(flows); start += 64 {
		part := flows[start:min(start+64, len(flows))]
		for i := range part {
			if _, err := n.writer.Add(commit.Create, &part[i]); err != nil {
				n.t.Fatalf("create %+v: %v", part[i].Orig, err)
			}
		}
		if err := n.writer.Flush(func(i int, errno unix.Errno) {
			n.t.Fatalf("create %+v: %v", part[i].Orig, errno)
		}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// aged returns entries as they are handed out some time after the dump.
func aged(entries []commit.Entry, dumped time.Time) []commit.Entry {
	for i := range entries {
		entries[i].Age = time.Since(dumped)
	}
	return entries
}

// dump returns the table as a cache would hold it.
func (n *node) dump() []commit.Entry {
	n.t.Helper()
	var entries []commit.Entry
	if err := n.walk(func(f *flow.Flow) error {
		entries = append(entries, commit.Entry{Flow: *f})
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return entries
}

func (n *node) walk(fn func(*flow.Flow) error) error {
	return ctnetlink.Dump(n.t.Context(), ctnetlink.DumpFilter{NetNS: int(n.handle)}, func(ev *flow.Event) error {
		return fn(&ev.Flow)
	})
}

// table reads the table independently.
func (n *node) table() map[string]conntrack.Flow {
	n.t.Helper()
	flows, err := n.oracle.Dump(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	m := make(map[string]conntrack.Flow)
	for _, f := range flows {
		m[key(&f)] = f
	}
	if len(m) != len(flows) {
		n.t.Fatalf("%d entries under %d keys", len(flows), len(m))
	}
	return m
}

func key(f *conntrack.Flow) string {
	p := f.TupleOrig.Proto
	return fmt.Sprint(f.TupleOrig.IP.SourceAddress, ">", f.TupleOrig.IP.DestinationAddress, " proto ", p.Protocol,
		" ", p.SourcePort, ">", p.DestinationPort, " id ", p.ICMPID, " zone ", f.Zone, f.TupleOrig.Zone, f.TupleReply.Zone)
}

// source hands out entries as a cache does.
type source struct {
	entries []commit.Entry
	pass    commit.Pass
	pos     int
}

func (s *source) Next(p commit.Pass, dst []commit.Entry) (n int, err error) {
	if p != s.pass {
		s.pass, s.pos = p, 0
	}
	for ; s.pos < len(s.entries) && n < len(dst); s.pos++ {
		if commit.PassOf(&s.entries[s.pos].Flow) == p {
			dst[n] = s.entries[s.pos]
			n++
		}
	}
	if s.pos == len(s.entries) {
		err = io.EOF
	}
	return n, err
}

func (n *node) commit(entries []commit.Entry, o commit.Options) commit.Report {
	n.t.Helper()
	r, err := commit.Run(n.t.Context(), &source{entries: entries}, n.writer, o)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

var all = commit.Options{MarkMask: ^uint32(0), Labels: true}

func addr(s string) (a [16]byte) {
	ip := netip.MustParseAddr(s)
	copy(a[:], ip.AsSlice())
	return a
}

func newFlow(proto uint8, src, dst string, sport, dport uint16) flow.Flow {
	f := flow.Flow{
		Orig: flow.Tuple{Src: addr(src), Dst: addr(dst), SrcPort: sport, DstPort: dport, Family: flow.IPv4, Proto: proto},
		Has:  flow.HasReply | flow.HasStatus | flow.HasTimeout,
	}
	if strings.Contains(src, ":") {
		f.Orig.Family = flow.IPv6
	}
	f.Reply, _ = f.Orig.Inverse()
	f.Status = flow.StatusConfirmed | flow.StatusSeenReply | flow.StatusAssured
	f.Timeout = 600
	switch proto {
	case flow.TCP:
		f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
		f.TCPState = flow.TCPEstablished
		f.TCPFlags = [2]uint8{0x03, 0x03}
		f.TCPWScale = [2]uint8{7, 10}
	case flow.SCTP:
		f.Has |= flow.HasSCTP | flow.HasSCTPVtags
		f.SCTPState, f.SCTPVtag = flow.SCTPEstablished, [2]uint32{0x11223344, 0x55667788}
	}
	return f
}

func edit(f flow.Flow, fn func(*flow.Flow)) flow.Flow {
	fn(&f)
	return f
}

func snat(f flow.Flow, to string, port uint16) flow.Flow {
	f.Reply.Dst = addr(to)
	switch {
	case f.Orig.IsICMP():
		f.Reply.SrcPort = port
	case f.Orig.Proto == flow.GRE: // without a master its keys stay
	case f.Orig.HasPorts():
		f.Reply.DstPort = port
	}
	return f
}

func dnat(f flow.Flow, to string, port uint16) flow.Flow {
	f.Reply.Src = addr(to)
	if f.Orig.HasPorts() {
		f.Reply.SrcPort = port
	}
	return f
}

func zoned(f flow.Flow, zone uint16) flow.Flow { return zones(f, zone, zone) }

func zones(f flow.Flow, orig, reply uint16) flow.Flow {
	f.Orig.Zone, f.Reply.Zone = orig, reply
	return f
}

const (
	client4, server4, public4 = "192.0.2.1", "198.51.100.1", "203.0.113.1"
	client6, server6, public6 = "2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1"
)

// everyKind is a table with all protocols, translations and attributes.
func everyKind() []flow.Flow {
	master := edit(newFlow(flow.TCP, client4, server4, 2100, 21), func(f *flow.Flow) {
		f.Has |= flow.HasHelper | flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		f.Helper, _ = flow.MakeName("ftp")
		f.SeqAdj = [2]flow.SeqAdj{{Pos: 1000, Before: 3, After: 5}, {Pos: 2000, Before: -3, After: -5}}
	})
	split := zones(edit(newFlow(flow.TCP, client4, server4, 2200, 21), func(f *flow.Flow) {
		f.Has |= flow.HasHelper | flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		f.Helper, _ = flow.MakeName("ftp")
		f.SeqAdj[1] = flow.SeqAdj{Pos: 5, Before: 6, After: 7}
	}), 11, 0)
	child := func(port uint16, of *flow.Flow) flow.Flow {
		f := newFlow(flow.TCP, client4, server4, port, 20000)
		f.Has |= flow.HasMaster
		f.Master = of.Orig
		f.Orig.Zone, f.Reply.Zone = of.Orig.Zone, of.Reply.Zone
		return f
	}
	flows := []flow.Flow{
		child(2101, &master),
		master,
		split,
		child(2201, &split),
		zones(newFlow(flow.UDP, client4, server4, 2202, 53), 0, 12),
		zones(newFlow(flow.UDP, client4, server4, 2203, 53), 13, 0),
		zones(snat(newFlow(flow.TCP, client4, server4, 2204, 443), public4, 3204), 13, 0),
		zones(snat(newFlow(flow.UDP, client6, server6, 2205, 443), public6, 3205), 0, 14),
		zones(dnat(newFlow(flow.SCTP, client4, public4, 2206, 443), server4, 8443), 0, 14),
		zones(snat(newFlow(flow.ICMP, client4, server4, 79, 8<<8), public4, 100), 13, 0),
		snat(newFlow(flow.ICMPv6, client6, server6, 78, 128<<8), public6, 99),
		newFlow(flow.ICMP, client4, server4, 80, 13<<8), // timestamp
		snat(newFlow(flow.GRE, client4, server4, 0, 0), public4, 0),
		newFlow(flow.GRE, client6, server6, 0, 0),
		snat(newFlow(flow.GRE, client4, "198.51.100.2", 0x30, 0x40), public4, 0x40),
		newFlow(flow.ICMP, client4, server4, 77, 8<<8),
		snat(newFlow(flow.ICMP, client4, server4, 78, 8<<8), public4, 99),
		newFlow(flow.ICMPv6, client6, server6, 77, 128<<8),
		newFlow(50, client4, server4, 0, 0),
		snat(newFlow(51, client4, server4, 0, 0), public4, 0),
		newFlow(flow.DCCP, client4, server4, 0, 0),
		newFlow(flow.GRE, client4, server4, 0x10, 0x20),
		zoned(newFlow(flow.TCP, client4, server4, 1000, 443), 5),
		zoned(snat(newFlow(flow.UDP, client6, server6, 1000, 53), public6, 1053), 7),
		edit(newFlow(flow.UDP, client4, server4, 3000, 53), func(f *flow.Flow) { f.Has |= flow.HasMark; f.Mark = 0xdeadbeef }),
		edit(newFlow(flow.UDP, client4, server4, 3001, 53), func(f *flow.Flow) { f.Status = flow.StatusConfirmed }),
		edit(newFlow(flow.UDP, client4, server4, 3002, 53), func(f *flow.Flow) { f.Has |= flow.HasLabels; f.Labels[0], f.Labels[15] = 0x21, 0x80 }),
		edit(newFlow(flow.TCP, client4, server4, 3003, 80), func(f *flow.Flow) { f.Has |= flow.HasSynproxy; f.Synproxy = flow.Synproxy{ISN: 1, ITS: 2, TSOff: 3} }),
		edit(newFlow(flow.TCP, client4, server4, 3004, 80), func(f *flow.Flow) { f.TCPFlags, f.TCPWScale = [2]uint8{2, 2}, [2]uint8{} }),
	}
	for i, proto := range []uint8{flow.TCP, flow.UDP, flow.SCTP, flow.UDPLite} {
		for j, v := range [][3]string{{client4, server4, public4}, {client6, server6, public6}} {
			port := uint16(4000 + 100*i + 1000*j)
			flows = append(flows,
				newFlow(proto, v[0], v[1], port, 443),
				snat(newFlow(proto, v[0], v[1], port+1, 443), v[2], port+51),
				dnat(newFlow(proto, v[0], v[2], port+2, 443), v[1], 8443),
				snat(dnat(newFlow(proto, v[0], v[2], port+3, 443), v[1], 8443), v[2], port+53))
		}
	}
	for state := uint8(flow.TCPSynSent); state <= flow.TCPSynSent2; state++ {
		flows = append(flows, edit(newFlow(flow.TCP, client4, server4, 9000+uint16(state), 80), func(f *flow.Flow) { f.TCPState = state }))
	}
	for state := uint8(flow.SCTPClosed); state <= flow.SCTPHeartbeatSent; state++ {
		flows = append(flows, edit(newFlow(flow.SCTP, client4, server4, 9000+uint16(state), 80), func(f *flow.Flow) { f.SCTPState = state }))
	}
	return flows
}

// sameTables compares what two kernels hold, as far as it can be the same.
func sameTables(t *testing.T, a, b *node) {
	t.Helper()
	ta, tb := a.table(), b.table()
	for k, fa := range ta {
		fb, ok := tb[k]
		if !ok {
			t.Errorf("%s is missing", k)
			continue
		}
		if fb.TupleOrig.Proto.Protocol == flow.GRE {
			// Packets would not refresh it: its timeout must be fixed, and long.
			if uint32(fb.Status)&flow.StatusFixedTimeout == 0 || fb.Timeout < 80000 {
				t.Errorf("%s: status %v, timeout %d", k, fb.Status, fb.Timeout)
			}
			fb.Status &^= flow.StatusFixedTimeout
			fb.Timeout = fa.Timeout
		}
		// The two are not read at the same moment.
		if d := int(fa.Timeout) - int(fb.Timeout); d < -30 || d > 30 {
			t.Errorf("%s: timeout %d became %d", k, fa.Timeout, fb.Timeout)
		}
		if tcp := fb.ProtoInfo.TCP; tcp != nil {
			if tcp.OriginalFlags&0x0800 == 0 || tcp.ReplyFlags&0x0800 == 0 {
				t.Errorf("%s: not liberal: %#x %#x", k, tcp.OriginalFlags, tcp.ReplyFlags)
			}
			if fa.ProtoInfo.TCP != nil {
				const liberal = 0x0800
				fa.ProtoInfo.TCP.OriginalFlags |= liberal
				fa.ProtoInfo.TCP.ReplyFlags |= liberal
			}
		}
		fa.ID, fb.ID, fa.Timeout, fb.Timeout, fa.Use, fb.Use = 0, 0, 0, 0, 0, 0
		if diff := cmp.Diff(fa, fb, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
			t.Errorf("%s: -a +b\n%s", k, diff)
		}
		delete(tb, k)
	}
	for k := range tb {
		t.Errorf("%s came from nowhere", k)
	}
}

// overWire returns entries as they arrive at a peer, in the syncd dialect.
func overWire(t *testing.T, entries []commit.Entry) []commit.Entry {
	t.Helper()
	for i := range entries {
		var m wire.Message
		r := wire.Reader{Sync: true}
		r.Reset(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &entries[i].Flow))
		if !r.Next(&m) || m.Fault != wire.FaultNone {
			t.Fatalf("%+v: %v", entries[i].Flow, m.Fault)
		}
		entries[i].Flow = m.Flow
	}
	return entries
}

// TestKernelEveryKind puts a table of every kind of flow into another kernel, as it
// arrives there over the wire.
func TestKernelEveryKind(t *testing.T) {
	a, b := newNode(t), newNode(t)
	flows := everyKind()
	// Masters first here too.
	flows[0], flows[1] = flows[1], flows[0]
	a.create(flows...)
	dumped := time.Now()
	entries := overWire(t, a.dump())
	if len(entries) != len(flows) {
		t.Fatalf("%d entries of %d", len(entries), len(flows))
	}
	dry := all
	dry.DryRun = true
	if r := b.commit(aged(entries, dumped), dry); r.Created != len(flows) || len(b.table()) != 0 {
		t.Errorf("dry run: %s %q; %d entries", r.String(), r.Examples, len(b.table()))
	}
	r := b.commit(aged(entries, dumped), all)
	if r.Created != len(flows) || len(r.ByReason) != 0 || r.Related != 2 {
		t.Errorf("%s %q", r.String(), r.Examples)
	}
	sameTables(t, a, b)

	// What is translated is really translated, not only matched.
	for k, f := range b.table() {
		inverse := f.TupleOrig.IP.SourceAddress == f.TupleReply.IP.DestinationAddress &&
			f.TupleOrig.IP.DestinationAddress == f.TupleReply.IP.SourceAddress
		if translated := uint32(f.Status)&(flow.StatusSrcNAT|flow.StatusDstNAT) != 0; translated == inverse {
			t.Errorf("%s: reply %v>%v but status %#x", k, f.TupleReply.IP.SourceAddress, f.TupleReply.IP.DestinationAddress, uint32(f.Status))
		}
	}

	// Again: nothing to do.
	if r := b.commit(aged(entries, dumped), all); r.AlreadyThere != len(flows) {
		t.Errorf("again: %s %q", r.String(), r.Examples)
	}
	sameTables(t, a, b)

	// And out again: all but SCTP gets a second, and leaves with the next dump.
	notSCTP := func(flows []flow.Flow, chosen []bool) error {
		for i := range flows {
			chosen[i] = flows[i].Orig.Proto != flow.SCTP
		}
		return nil
	}
	p, err := commit.Purge(t.Context(), b.walk, notSCTP, b.writer, 1)
	if err != nil || p.Shortened+p.Deleted != p.Chosen || p.Shortened == 0 || p.Deleted == 0 {
		t.Errorf("%+v, %v", p, err)
	}
	time.Sleep(1500 * time.Millisecond)
	left := b.dump()
	for i := range left {
		if left[i].Flow.Orig.Proto != flow.SCTP {
			t.Errorf("%+v is left", left[i].Flow.Orig)
		}
	}
	if p.Chosen+len(left) != len(flows) || len(left) == 0 {
		t.Errorf("%d purged, %d left of %d", p.Chosen, len(left), len(flows))
	}
	b.inside(func() error {
		count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if got := strings.TrimSpace(string(count)); err == nil && got != fmt.Sprint(len(left)) {
			t.Errorf("the table has %s entries, want %d", got, len(left))
		}
		return err
	})
}

func TestKernelClashes(t *testing.T) {
	nat := func(port uint16) flow.Flow {
		return snat(newFlow(flow.TCP, client4, server4, port, 443), public4, port+1000)
	}
	mirror := func(f flow.Flow) flow.Flow { f.Orig, f.Reply = f.Reply, f.Orig; return f }
	unassured := func(f *flow.Flow) { f.Status = flow.StatusConfirmed }
	plain := func(f flow.Flow) flow.Flow { f.Reply, _ = f.Orig.Inverse(); return f }

	for _, tt := range []struct {
		name  string
		have  flow.Flow
		ours  flow.Flow
		count func(*commit.Report) int
		gone  bool // the entry that was there
	}{
		{"the same", nat(1), nat(1), func(r *commit.Report) int { return r.AlreadyThere }, false},
		{"less far", edit(nat(1), func(f *flow.Flow) { f.TCPState = flow.TCPSynRecv; f.Status = 0xa }), nat(1),
			func(r *commit.Report) int { return r.Updated }, false},
		{"further", edit(nat(1), func(f *flow.Flow) { f.TCPState = flow.TCPTimeWait }), nat(1),
			func(r *commit.Report) int { return r.AlreadyThere }, false},
		{"reversed", mirror(newFlow(flow.TCP, client4, server4, 1, 443)), newFlow(flow.TCP, client4, server4, 1, 443),
			func(r *commit.Report) int { return r.Replaced }, true},
		{"no translation, unassured", edit(plain(nat(1)), unassured), nat(1), func(r *commit.Report) int { return r.Replaced }, true},
		{"no translation, assured", plain(nat(1)), nat(1), func(r *commit.Report) int { return r.ByReason["conflict"] }, false},
		{"server first, translated, unassured", edit(plain(mirror(nat(1))), unassured), nat(1), func(r *commit.Report) int { return r.Replaced }, true},
		{"port taken", edit(nat(1), func(f *flow.Flow) { f.Orig.Src[3] = 99 }), nat(1), func(r *commit.Report) int { return r.ByReason["nat clash"] }, false},
		{"zones are apart", zoned(plain(nat(1)), 9), nat(1), func(r *commit.Report) int { return r.Created }, false},
		{"in a zone", zoned(edit(plain(nat(1)), unassured), 9), zoned(nat(1), 9), func(r *commit.Report) int { return r.Replaced }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.create(tt.have)
			before := n.dump()[0].Flow
			r := n.commit([]commit.Entry{{Flow: tt.ours}}, all)
			if tt.count(&r) != 1 || r.Refused != 0 {
				t.Errorf("%s %q", r.String(), r.Examples)
			}
			var got flow.Flow
			err := n.writer.Get(&before.Orig, &got)
			if there := err == nil && got.ID == before.ID && got.Orig == before.Orig && got.Reply == before.Reply; there == tt.gone {
				t.Errorf("the entry that was there: %v %+v", err, got.Orig)
			}
			if tt.count(&commit.Report{Created: 1, Updated: 1, AlreadyThere: 1, Replaced: 1}) == 0 {
				return // ours stays out
			}
			if err := n.writer.Get(&tt.ours.Orig, &got); err != nil || got.Orig != tt.ours.Orig || got.Reply != tt.ours.Reply {
				t.Errorf("ours: %v, %+v", err, got)
			}
		})
	}
}

// TestKernelZones: an entry whose directions are in different zones is found again,
// updated and deleted in its zones, and what is elsewhere is left alone.
func TestKernelZones(t *testing.T) {
	n := newNode(t)
	base := newFlow(flow.TCP, client4, server4, 5000, 443)
	ours := []flow.Flow{zones(base, 3, 0), snat(zones(base, 4, 0), public4, 6000)}
	ours = append(ours, zones(edit(base, func(f *flow.Flow) { f.Orig.SrcPort++; f.Reply.DstPort++ }), 0, 5))
	others := []flow.Flow{zoned(base, 6), zoned(snat(base, public4, 6000), 7)}
	earlier := make([]commit.Entry, len(ours))
	for i, f := range ours {
		f.TCPState, f.Timeout, f.Status = flow.TCPSynRecv, 60, flow.StatusConfirmed|flow.StatusSeenReply
		earlier[i].Flow = f
	}
	n.create(others...)
	if r := n.commit(earlier, all); r.Created != len(ours) || len(r.ByReason) != 0 {
		t.Fatalf("%s %q", r.String(), r.Examples)
	}
	later := make([]commit.Entry, len(ours))
	for i, f := range ours {
		f.Has, f.Mark = f.Has|flow.HasMark, uint32(70+i)
		later[i].Flow = f
	}
	if r := n.commit(later, all); r.Updated != len(ours) || len(r.ByReason) != 0 {
		t.Fatalf("%s %q", r.String(), r.Examples)
	}
	for i, f := range ours {
		var got flow.Flow
		if err := n.writer.Get(&f.Orig, &got); err != nil || got.Orig != f.Orig || got.Reply != f.Reply ||
			got.Mark != uint32(70+i) || got.TCPState != flow.TCPEstablished || got.Timeout < 590 {
			t.Errorf("%v: %+v", err, got)
		}
		if err := n.writer.Get(&f.Reply, &got); err != nil || got.Orig != f.Orig {
			t.Errorf("by the reply tuple: %v: %+v", err, got)
		}
	}
	p, err := commit.Purge(t.Context(), n.walk, func(flows []flow.Flow, chosen []bool) error {
		for i := range flows {
			chosen[i] = flows[i].Orig.Zone != flows[i].Reply.Zone
		}
		return nil
	}, n.writer, 1)
	if err != nil || p.Shortened != len(ours) {
		t.Errorf("%+v: %v", p, err)
	}
	time.Sleep(1500 * time.Millisecond)
	left := n.dump()
	if len(left) != len(others) {
		t.Errorf("%d entries are left, want %d", len(left), len(others))
	}
	for _, e := range left {
		if e.Flow.Orig.Zone != e.Flow.Reply.Zone || e.Flow.Mark != 0 {
			t.Errorf("is left: %+v", e.Flow)
		}
	}
	// Zones that no kernel can have are refused without a request.
	if r := n.commit([]commit.Entry{{Flow: zones(base, 3, 4)}}, all); r.Refused != 1 || r.ByReason["invalid"] != 1 {
		t.Errorf("%s", r.String())
	}
}

// TestKernelMark: the bits of the mark that are replicated are set, on an entry that is
// there too, and those that are not stay.
func TestKernelMark(t *testing.T) {
	n := newNode(t)
	marked := func(port uint16, mark uint32) flow.Flow {
		return edit(newFlow(flow.UDP, client4, server4, port, 53), func(f *flow.Flow) {
			f.Has |= flow.HasMark
			f.Mark = mark
		})
	}
	n.create(marked(1, 0xab00), marked(2, 0xab05), marked(3, 0))
	n.writer.markMask = 0xff
	o := commit.Options{MarkMask: 0xff}
	r := n.commit([]commit.Entry{{Flow: marked(1, 0x1207)}, {Flow: marked(2, 0x1207)}, {Flow: marked(3, 0x1207)}, {Flow: marked(4, 0x1207)}}, o)
	if r.Created != 1 || r.Updated != 2 || r.AlreadyThere != 1 {
		t.Errorf("%s", r.String())
	}
	for port, want := range []uint32{1: 0xab07, 2: 0xab05, 3: 0x07, 4: 0x07} {
		if port == 0 {
			continue
		}
		var got flow.Flow
		f := marked(uint16(port), 0)
		if err := n.writer.Get(&f.Orig, &got); err != nil || got.Mark != want {
			t.Errorf("%d: %v, mark %#x, want %#x", port, err, got.Mark, want)
		}
	}
}

// TestKernelLabels: labels that the kernel drops without a word, because no rule uses
// any, are reported, for entries that are created and for those that are there.
func TestKernelLabels(t *testing.T) {
	n := newNode(t)
	entries := func(from, to uint16) (list []commit.Entry) {
		for port := from; port < to; port++ {
			list = append(list, commit.Entry{Flow: edit(newFlow(flow.UDP, client4, server4, port, 53), func(f *flow.Flow) {
				f.Has |= flow.HasLabels
				f.Labels = [16]byte{0: byte(port), 15: 1}
			})})
		}
		return list
	}
	kept := func() (count int) {
		for _, e := range n.dump() {
			if e.Flow.Has&flow.HasLabels != 0 {
				count++
			}
		}
		return count
	}
	if r := n.commit(entries(0, 300), all); r.Created != 300 || len(r.ByReason) != 0 || kept() != 300 {
		t.Errorf("with a rule: %s; %d have labels", r.String(), kept())
	}
	n.rules(expr.CtKeySTATE)
	if r := n.commit(entries(300, 600), all); r.Created != 300 || r.ByReason["without labels"] != 300 || kept() != 300 {
		t.Errorf("without a rule: %s; %d have labels", r.String(), kept())
	}
	n.rules(expr.CtKeySTATE, expr.CtKeyLABELS)
	later := entries(300, 302)
	later[0].Flow.Mark, later[0].Flow.Has = 9, later[0].Flow.Has|flow.HasMark
	if r := n.commit(later, all); r.Updated != 1 || r.AlreadyThere != 1 || r.ByReason["without labels"] != 2 {
		t.Errorf("there since before the rule: %s", r.String())
	}
	var got flow.Flow
	if err := n.writer.Get(&later[0].Flow.Orig, &got); err != nil || got.Mark != 9 {
		t.Errorf("the rest of the update: %v, mark %d", err, got.Mark)
	}
	// One that was made under the rule, but without labels, learns them.
	bare := entries(600, 601)
	bare[0].Flow.Has &^= flow.HasLabels
	n.commit(bare, all)
	if r := n.commit(entries(600, 601), all); r.Updated != 1 || len(r.ByReason) != 0 || kept() != 301 {
		t.Errorf("there since the rule: %s; %d have labels", r.String(), kept())
	}
}

func TestKernelRefusals(t *testing.T) {
	n := newNode(t)
	named := func(f *flow.Flow) { f.Has |= flow.HasHelper; f.Helper, _ = flow.MakeName("no-such-helper") }
	orphan := func(f *flow.Flow) {
		f.Has |= flow.HasMaster
		f.Master = newFlow(flow.TCP, client4, server4, 4242, 21).Orig
	}
	r := n.commit([]commit.Entry{
		{Flow: edit(newFlow(flow.TCP, client4, server4, 1, 21), named)},
		{Flow: edit(newFlow(flow.TCP, client4, server4, 2, 21), orphan)},
		{Flow: newFlow(flow.ICMP, client4, server4, 3, 3<<8)}, // unreachable: an answer to nothing
		{Flow: newFlow(flow.UDP, client4, server4, 4, 53)},
	}, all)
	want := map[string]int{"without helper": 1, "without master": 1, "invalid": 1}
	if diff := cmp.Diff(want, r.ByReason); diff != "" || r.Created != 3 || r.Refused != 1 {
		t.Errorf("%s %q", r.String(), r.Examples)
	}
	if got := len(n.table()); got != 3 {
		t.Errorf("%d entries", got)
	}
}

// TestKernelFullTable: a commit into a table that is full says so, and nothing else
// happens to it. The limit of the machine stays as it is: the table is filled.
func TestKernelFullTable(t *testing.T) {
	limit, err := ctnetlink.MaxEntries()
	if err != nil {
		t.Fatal(err)
	}
	if limit == 0 || limit > 1<<19 {
		t.Skipf("nf_conntrack_max is %d: to fill such a table takes too long", limit)
	}
	const room, known, more = 1000, 500, 20_000
	n := newNode(t)
	numbered := func(i int) flow.Flow {
		f := newFlow(flow.TCP, client4, server4, uint16(i), 443)
		f.Orig.Src[1] = byte(i >> 16)
		f.Reply, _ = f.Orig.Inverse()
		return f
	}
	for i := 0; i < limit-room; {
		var part []flow.Flow
		for ; i < limit-room && len(part) < 64; i++ {
			f := numbered(i)
			if i < known {
				f.TCPState = flow.TCPSynRecv
			}
			part = append(part, f)
		}
		n.create(part...)
	}
	var entries []commit.Entry
	for i := limit - room; i < limit+more; i++ {
		entries = append(entries, commit.Entry{Flow: numbered(i)})
	}
	for i := range known { // the last ones, when it is full
		entries = append(entries, commit.Entry{Flow: numbered(i)})
	}
	r := n.commit(entries, all)
	t.Log(r.String())
	want := map[string]int{"table full": more}
	if diff := cmp.Diff(want, r.RefusedBy); diff != "" || r.Created != room || r.Updated != known {
		t.Errorf("%s %s", r.String(), diff)
	}
	if len(r.Examples) != 8 || !strings.HasSuffix(r.Examples[0], ": table full") {
		t.Errorf("%q", r.Examples)
	}
	if entries, _, err := ctnetlink.Count(int(n.handle)); err != nil || entries != uint32(limit) {
		t.Errorf("%d entries of %d, %v", entries, limit, err)
	}
	if r.Duration > 5*time.Second {
		t.Errorf("%d refusals took %v", r.Refused, r.Duration)
	}
}

// A connection that already runs through this node goes on, whatever an old
// replica says of it.
func TestKernelLiveConnection(t *testing.T) {
	n := newNode(t)
	var client, server net.Conn
	n.inside(func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		if client, err = net.DialTimeout("tcp4", l.Addr().String(), 5*time.Second); err != nil {
			return err
		}
		server, err = l.Accept()
		return err
	})
	defer client.Close()
	defer server.Close()
	talk := func() {
		t.Helper()
		buf := make([]byte, 5)
		for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
			pair[1].SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := pair[0].Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(pair[1], buf); err != nil || string(buf) != "hello" {
				t.Fatalf("%q, %v", buf, err)
			}
		}
	}
	talk()
	live := n.dump()
	if len(live) != 1 {
		t.Fatalf("%d entries", len(live))
	}
	before := live[0].Flow
	// It is made liberal: it may have moved on elsewhere since it was seen here.
	if r := n.commit([]commit.Entry{{Flow: before}}, all); r.Updated != 1 {
		t.Errorf("%s", r.String())
	}
	for dir, flags := range n.dump()[0].Flow.TCPFlags {
		if flags&^flow.TCPFlagBeLiberal != before.TCPFlags[dir]&^flow.TCPFlagBeLiberal || flags&flow.TCPFlagBeLiberal == 0 {
			t.Errorf("flags %#x became %#x", before.TCPFlags[dir], flags)
		}
	}
	for _, state := range []uint8{flow.TCPSynSent, flow.TCPSynRecv, flow.TCPEstablished, flow.TCPFinWait, flow.TCPTimeWait, flow.TCPClose} {
		replica := before
		replica.TCPState, replica.Timeout = state, 3
		replica.Status = flow.StatusConfirmed
		if r := n.commit([]commit.Entry{{Flow: replica}}, all); r.AlreadyThere != 1 {
			t.Errorf("state %d: %s", state, r.String())
		}
		talk()
		now := n.dump()[0].Flow
		if now.ID != before.ID || now.TCPState != flow.TCPEstablished || now.Status != before.Status || now.Timeout < 200 { // 300 s at least while data is not acknowledged
			t.Errorf("state %d: id %d, was %d; state %d status %#x timeout %d", state, now.ID, before.ID, now.TCPState, now.Status, now.Timeout)
		}
	}
}

// The scale that a SYN has offered is there after a takeover, and it counts if the
// answer, which passes only the new node, has one too.
func TestKernelOpening(t *testing.T) {
	const (
		client, server = "127.0.0.1", "127.0.0.2"
		cport, sport   = 41000, 443
		syn, ack       = 0x02, 0x10
		none           = 0xff
	)
	// send sends a segment from one of the addresses to the other. Its checksum is wrong:
	// connection tracking sees it when it is sent, and does not mind, but no stack
	// answers it.
	send := func(n *node, reply bool, flags, scale uint8) {
		t.Helper()
		n.inside(func() error {
			from, to, a, b := client, server, uint16(cport), uint16(sport)
			if reply {
				from, to, a, b = server, client, sport, cport
			}
			c, err := net.ListenPacket("ip4:tcp", from)
			if err != nil {
				return err
			}
			defer c.Close()
			var options []byte
			if flags&syn != 0 {
				options = []byte{2, 4, 0x05, 0xb4} // segment size
			}
			if scale != none {
				options = append(options, 3, 3, scale, 1) // RFC 7323, section 2.2, and a NOP
			}
			seg := binary.BigEndian.AppendUint16(nil, a)
			seg = binary.BigEndian.AppendUint16(seg, b)
			seq, acks := uint32(1000), uint32(5001)
			if reply {
				seq, acks = 5000, 1001
			}
			if flags&syn == 0 {
				seq++
			}
			if flags&ack == 0 {
				acks = 0
			}
			seg = binary.BigEndian.AppendUint32(seg, seq)
			seg = binary.BigEndian.AppendUint32(seg, acks)
			seg = append(seg, uint8(20+len(options))/4<<4, flags, 0x20, 0x00, 0, 0, 0, 0)
			_, err = c.WriteTo(append(seg, options...), &net.IPAddr{IP: net.ParseIP(to)})
			return err
		})
	}
	type state struct {
		state  uint8
		scaled [2]bool
		scale  [2]uint8
	}
	only := func(n *node) (*flow.Flow, state) {
		t.Helper()
		all := n.dump()
		if len(all) != 1 {
			t.Fatalf("%d entries", len(all))
		}
		f := &all[0].Flow
		s := state{state: f.TCPState, scale: f.TCPWScale}
		for dir := range s.scaled {
			s.scaled[dir] = f.TCPFlags[dir]&flow.TCPFlagWindowScale != 0
		}
		return f, s
	}
	for _, tt := range []struct {
		name       string
		syn, reply uint8 // scales
		again      bool  // the SYN is sent again, to the new node
		committed  state
		answered   state
	}{
		{"both scale", 7, 9, false,
			state{flow.TCPSynSent, [2]bool{true, true}, [2]uint8{7, 0}},
			state{flow.TCPEstablished, [2]bool{true, true}, [2]uint8{7, 9}}},
		{"both scale, and the SYN is sent again", 7, 9, true,
			state{flow.TCPSynSent, [2]bool{true, true}, [2]uint8{7, 0}},
			state{flow.TCPEstablished, [2]bool{true, true}, [2]uint8{7, 9}}},
		{"the answer has no scale", 7, none, false,
			state{flow.TCPSynSent, [2]bool{true, true}, [2]uint8{7, 0}},
			state{flow.TCPEstablished, [2]bool{true, false}, [2]uint8{0, 0}}},
		{"the SYN has no scale", none, 9, false,
			state{flow.TCPSynSent, [2]bool{}, [2]uint8{}},
			state{flow.TCPEstablished, [2]bool{false, true}, [2]uint8{0, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newNode(t), newNode(t)
			send(a, false, syn, tt.syn)
			f, s := only(a)
			if s.state != flow.TCPSynSent || s.scaled != [2]bool{tt.syn != none, false} {
				t.Fatalf("after the SYN: %+v", s)
			}
			if r := b.commit([]commit.Entry{{Flow: *f}}, all); r.Created != 1 {
				t.Fatalf("%s", r.String())
			}
			if _, s := only(b); s != tt.committed {
				t.Errorf("committed: %+v, want %+v", s, tt.committed)
			}
			if tt.again {
				send(b, false, syn, tt.syn)
				if _, s := only(b); s != tt.committed {
					t.Errorf("after the SYN was sent again: %+v, want %+v", s, tt.committed)
				}
			}
			send(b, true, syn|ack, tt.reply)
			send(b, false, ack, none)
			if _, s := only(b); s != tt.answered {
				t.Errorf("answered: %+v, want %+v", s, tt.answered)
			}
			// The kernel that saw all of it has the same.
			send(a, true, syn|ack, tt.reply)
			send(a, false, ack, none)
			if _, s := only(a); s != tt.answered {
				t.Errorf("on the node that saw the SYN: %+v, want %+v", s, tt.answered)
			}
		})
	}
}

func BenchmarkKernelCommit(b *testing.B) {
	const flows = 100_000
	n := newNode(b)
	entries := make([]commit.Entry, flows)
	for i := range entries {
		f := newFlow(flow.TCP, client4, server4, uint16(i), 443)
		f.Orig.Src[1] = byte(i >> 16)
		f.Reply, _ = f.Orig.Inverse()
		entries[i].Flow = f
	}
	for _, tt := range []struct {
		name  string
		purge bool
	}{{"create", true}, {"already there", false}} {
		b.Run(tt.name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				r := n.commit(entries, all)
				took += r.Duration
				if r.Created+r.AlreadyThere != flows {
					b.Fatalf("%s %q", r.String(), r.Examples)
				}
				if tt.purge {
					b.StopTimer()
					start := time.Now()
					p, err := commit.Purge(b.Context(), n.walk, func(flows []flow.Flow, chosen []bool) error {
						for i := range chosen {
							chosen[i] = true
						}
						return nil
					}, n.writer, 1)
					if err != nil || p.Shortened != flows {
						b.Fatalf("%+v, %v", p, err)
					}
					b.ReportMetric(flows/time.Since(start).Seconds(), "purged/s")
					if err := n.oracle.Flush(); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(flows*b.N)/took.Seconds(), "entries/s")
		})
		if tt.purge { // fill it for the next, which has nothing to add
			n.commit(entries, all)
			for i := range entries {
				entries[i].Flow.Timeout -= 300
			}
		}
	}
}

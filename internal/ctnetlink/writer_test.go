package ctnetlink

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// labelRule makes the kernel keep labels of entries that are created.
const labelRule = `table ip l { chain c { type filter hook input priority 0; ct label 1 counter; }; }`

// established returns a flow of proto that was seen in both directions.
func established(orig flow.Tuple) flow.Flow {
	f := flow.Flow{Orig: orig, Has: flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasMark,
		Status:  flow.StatusConfirmed | flow.StatusSeenReply | flow.StatusAssured,
		Timeout: 1000, Mark: 77}
	f.Reply, _ = orig.Inverse()
	switch orig.Proto {
	case flow.TCP:
		f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
		f.TCPState, f.TCPFlags, f.TCPWScale = flow.TCPEstablished, [2]uint8{3, 3}, [2]uint8{7, 14}
	case flow.SCTP:
		f.Has |= flow.HasSCTP | flow.HasSCTPVtags
		f.SCTPState, f.SCTPVtag = flow.SCTPEstablished, [2]uint32{0x11223344, 0x55667788}
	}
	return f
}

// samples are flows of every protocol, both families and every kind of translation.
func samples() map[string]flow.Flow {
	const host4, peer4, nat4, real4 = "192.0.2.10", "198.51.100.10", "203.0.113.1", "192.0.2.200"
	const host6, peer6, nat6, real6 = "2001:db8:1::10", "2001:db8:2::10", "2001:db8:3::1", "2001:db8:4::200"
	all := make(map[string]flow.Flow)
	port := uint16(10000)
	for name, proto := range map[string]uint8{
		"icmp": flow.ICMP, "tcp": flow.TCP, "udp": flow.UDP, "dccp": flow.DCCP, "gre": flow.GRE, "esp": 50,
		"icmpv6": flow.ICMPv6, "sctp": flow.SCTP, "udplite": flow.UDPLite, "any": 0, "last": 255,
	} {
		for family, addrs := range map[int][4]string{4: {host4, peer4, nat4, real4}, 6: {host6, peer6, nat6, real6}} {
			for _, kind := range []string{"plain", "snat", "dnat", "both", "ports"} {
				if proto == flow.ICMP && family == 6 || proto == flow.ICMPv6 && family == 4 {
					continue
				}
				port++
				orig := tuple(proto, addrs[0], addrs[1], port, 443)
				switch proto {
				case flow.ICMP:
					orig.DstPort = 8 << 8
				case flow.ICMPv6:
					orig.DstPort = 128 << 8
				case flow.TCP, flow.UDP, flow.GRE, flow.SCTP, flow.UDPLite:
				default:
					// Without ports (DCCP too, in this kernel) the destination tells samples apart.
					orig.SrcPort, orig.DstPort = 0, 0
					orig.Dst[2], orig.Dst[3] = orig.Dst[2]+byte(port>>8), byte(port)
					if family == 6 {
						orig.Dst[14], orig.Dst[15] = byte(port>>8), byte(port)
					}
				}
				f := established(orig)
				ends := tuple(proto, addrs[3], addrs[2], 0, 0) // source and destination of a translated reply
				if kind == "snat" || kind == "both" {
					f.Reply.Dst = ends.Dst
				}
				if kind == "dnat" || kind == "both" {
					f.Reply.Src = ends.Src
				}
				if kind == "ports" {
					switch proto {
					case flow.ICMP, flow.ICMPv6:
						f.Reply.SrcPort += 1000
						f.Reply.Dst = ends.Dst
					case flow.TCP, flow.UDP, flow.SCTP, flow.UDPLite:
						f.Reply.SrcPort, f.Reply.DstPort = 8443, port+1000
						f.Reply.Dst = ends.Dst
					default:
						continue
					}
				}
				all[fmt.Sprintf("%s/%d/%s", name, family, kind)] = f
			}
		}
	}
	return all
}

// expectDumped compares what the kernel shows of an entry with what it was made
// from.
func expectDumped(t *testing.T, name string, got, want flow.Flow) {
	t.Helper()
	const translation = flow.StatusSrcNAT | flow.StatusDstNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone
	snat, dnat := want.Translated()
	if snat != (got.Status&flow.StatusSrcNAT != 0) || dnat != (got.Status&flow.StatusDstNAT != 0) {
		t.Errorf("%s: status %#x, want source translation %v and destination translation %v", name, got.Status, snat, dnat)
	}
	if (snat || dnat) && got.Status&(flow.StatusSrcNATDone|flow.StatusDstNATDone) != flow.StatusSrcNATDone|flow.StatusDstNATDone {
		t.Errorf("%s: status %#x lacks the done bits", name, got.Status)
	}
	got.Status &^= translation
	want.Status &^= translation
	if got.Timeout > want.Timeout || got.Timeout+5 < want.Timeout {
		t.Errorf("%s: timeout %d, want %d", name, got.Timeout, want.Timeout)
	}
	got.Timeout = want.Timeout
	// What the kernel chooses or adds.
	got.ID, got.Use = want.ID, want.Use
	got.Has &^= flow.HasID | flow.HasUse
	diff(t, name, got, want)
}

func TestCreateEveryKind(t *testing.T) {
	ns := newNS(t, "create")
	w := ns.writer()
	all := samples()
	for name, f := range all {
		if errno := do(t, w, OpCreate, &f, CreateOptions{}); errno != 0 {
			t.Errorf("%s: %v", name, errno)
			delete(all, name)
		}
	}
	dumped := ns.dump(DumpFilter{})
	if len(dumped) != len(all) {
		t.Errorf("%d entries, want %d", len(dumped), len(all))
	}
	for name, f := range all {
		got, ok := dumped[f.Orig]
		if !ok {
			t.Errorf("%s: no entry", name)
			continue
		}
		expectDumped(t, name, got, f)
	}
	t.Logf("%d entries", len(all))

	// A get finds them by the original and by the translated reply tuple.
	for name, f := range all {
		var got flow.Flow
		if err := w.Get(&f.Orig, &got); err != nil {
			t.Errorf("%s: get: %v", name, err)
			continue
		}
		expectDumped(t, name, got, f)
		if err := w.Get(&f.Reply, &got); err != nil || got.Orig != f.Orig {
			t.Errorf("%s: get by reply tuple: %v, %+v", name, err, got.Orig)
		}
	}
	for name, f := range all {
		if errno := do(t, w, OpDelete, &f, CreateOptions{}); errno != 0 {
			t.Errorf("%s: delete: %v", name, errno)
		}
	}
	if left := ns.dump(DumpFilter{}); len(left) != 0 {
		t.Errorf("%d entries are left", len(left))
	}
}

func TestCreateRareAttributes(t *testing.T) {
	needCommand(t, "nft")
	ns := newNS(t, "rare")
	ns.run(labelRule, "nft", "-f", "-")
	w := ns.writer()

	master := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 5000, 21))
	master.Has |= flow.HasHelper | flow.HasLabels | flow.HasSeqAdjOrig | flow.HasSeqAdjRepl | flow.HasSynproxy
	master.Helper, _ = flow.MakeName("ftp")
	master.Labels = [16]byte{1: 2, 8: 0x80, 15: 1}
	master.SeqAdj = [2]flow.SeqAdj{{Pos: 1, Before: -2, After: 3}, {Pos: 0xffffffff, Before: 4, After: -5}}
	master.Synproxy = flow.Synproxy{ISN: 1, ITS: 0xffffffff, TSOff: 3}
	child := established(tuple(flow.TCP, "198.51.100.1", "192.0.2.1", 20, 6000))
	child.Has |= flow.HasMaster
	child.Master = master.Orig
	child.Status |= flow.StatusExpected // as its events show it; a create must not send it

	mustDo(t, w, OpCreate, &master, CreateOptions{Labels: true})
	mustDo(t, w, OpCreate, &child, CreateOptions{})
	dumped := ns.dump(DumpFilter{})
	want := master
	want.Status |= flow.StatusSeqAdjust | flow.StatusHelper
	// Which helper status bit a kernel shows is its own affair.
	got := dumped[master.Orig]
	got.Status |= flow.StatusHelper
	expectDumped(t, "master", got, want)
	expectDumped(t, "child", dumped[child.Orig], child)

	// An update of the expected flow must repeat EXPECTED, and one of the master
	// may carry everything but what cannot change.
	child.TCPState, child.Mark = flow.TCPTimeWait, 0
	mustDo(t, w, OpUpdate, &child, CreateOptions{})
	master.TCPState, master.Timeout, master.Labels[3] = flow.TCPFinWait, 50, 0xff
	master.SeqAdj[0].After = 9
	mustDo(t, w, OpUpdate, &master, CreateOptions{Labels: true})
	dumped = ns.dump(DumpFilter{})
	want = master
	want.Status |= flow.StatusSeqAdjust | flow.StatusHelper
	got = dumped[master.Orig]
	got.Status |= flow.StatusHelper
	expectDumped(t, "updated master", got, want)
	expectDumped(t, "updated child", dumped[child.Orig], child)

	// Labels go only where they are asked for.
	plain := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 5001, 53))
	plain.Has |= flow.HasLabels
	plain.Labels[0] = 1
	mustDo(t, w, OpCreate, &plain, CreateOptions{})
	if f := ns.dump(DumpFilter{})[plain.Orig]; f.Has&flow.HasLabels != 0 {
		t.Errorf("labels %x without being asked", f.Labels)
	}
}

func TestCreateTCPState(t *testing.T) {
	ns := newNS(t, "tcp")
	w := ns.writer()
	type state struct {
		flags, scale [2]uint8
	}
	for i, tt := range []struct {
		name    string
		has     flow.Attrs
		in      state
		liberal bool
		want    state
	}{
		{"all known", flow.HasTCPFlags | flow.HasTCPWScale, state{[2]uint8{0x37, 0x33}, [2]uint8{7, 9}}, false, state{[2]uint8{7, 3}, [2]uint8{7, 9}}},
		{"liberal", flow.HasTCPFlags | flow.HasTCPWScale, state{[2]uint8{0x31, 0x21}, [2]uint8{7, 9}}, true, state{[2]uint8{9, 9}, [2]uint8{7, 9}}},
		{"picked up in the middle", flow.HasTCPFlags | flow.HasTCPWScale, state{[2]uint8{8, 8}, [2]uint8{}}, false, state{[2]uint8{8, 8}, [2]uint8{}}},
		{"no scaling", flow.HasTCPFlags | flow.HasTCPWScale, state{[2]uint8{3, 2}, [2]uint8{7, 0}}, false, state{[2]uint8{3, 2}, [2]uint8{}}},
		{"scales unknown", flow.HasTCPFlags, state{[2]uint8{3, 3}, [2]uint8{}}, false, state{[2]uint8{8, 8}, [2]uint8{}}},
		{"nothing known", 0, state{}, false, state{[2]uint8{8, 8}, [2]uint8{}}},
	} {
		f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(1000+i), 80))
		f.Has = f.Has&^(flow.HasTCPFlags|flow.HasTCPWScale) | tt.has
		f.TCPFlags, f.TCPWScale = tt.in.flags, tt.in.scale
		mustDo(t, w, OpCreate, &f, CreateOptions{Liberal: tt.liberal})
		var got flow.Flow
		if err := w.Get(&f.Orig, &got); err != nil {
			t.Fatal(err)
		}
		diff(t, tt.name, fmt.Sprint(state{got.TCPFlags, got.TCPWScale}), fmt.Sprint(tt.want))
		if got.TCPState != flow.TCPEstablished {
			t.Errorf("%s: state %d", tt.name, got.TCPState)
		}
	}
}

func TestSCTPWithoutVtags(t *testing.T) {
	ns := newNS(t, "sctp")
	w := ns.writer()
	f := established(tuple(flow.SCTP, "192.0.2.1", "198.51.100.1", 1, 2))
	f.Has &^= flow.HasSCTPVtags
	mustDo(t, w, OpCreate, &f, CreateOptions{})
	var got flow.Flow
	if err := w.Get(&f.Orig, &got); err != nil || got.SCTPState != flow.SCTPNone {
		t.Errorf("%v, state %d", err, got.SCTPState)
	}
}

// TestZones makes the same tuple in several zones at once, as zone of both or of
// one direction, and finds, updates and deletes each.
func TestZones(t *testing.T) {
	ns := newNS(t, "zones")
	w := ns.writer()
	base := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 4000, 53))
	var all []flow.Flow
	for i, z := range [][2]uint16{{0, 0}, {7, 7}, {65535, 65535}} {
		f := base
		f.Orig.Zone, f.Reply.Zone, f.Mark = z[0], z[1], uint32(100+i)
		all = append(all, f)
	}
	// With a zone of one direction the other tuple is in none, where base is: so
	// these have other ports.
	for i, z := range [][2]uint16{{9, 0}, {0, 11}, {12, 0}} {
		f := base
		f.Orig.SrcPort += uint16(i + 1)
		f.Reply.DstPort = f.Orig.SrcPort
		f.Orig.Zone, f.Reply.Zone, f.Mark = z[0], z[1], uint32(200+i)
		all = append(all, f)
	}
	nat := &all[len(all)-1]
	nat.Reply.Dst, nat.Reply.DstPort = [16]byte{203, 0, 113, 1}, 50000

	for _, f := range all {
		mustDo(t, w, OpCreate, &f, CreateOptions{})
	}
	dumped := ns.dump(DumpFilter{})
	for _, f := range all {
		name := fmt.Sprintf("zones %d %d", f.Orig.Zone, f.Reply.Zone)
		expectDumped(t, name, dumped[f.Orig], f)
		var got flow.Flow
		if err := w.Get(&f.Orig, &got); err != nil || got.Mark != f.Mark {
			t.Errorf("%s: get: %v, mark %d, want %d", name, err, got.Mark, f.Mark)
		}
		if err := w.Get(&f.Reply, &got); err != nil || got.Mark != f.Mark {
			t.Errorf("%s: get by reply: %v, mark %d, want %d", name, err, got.Mark, f.Mark)
		}
		f.Mark += 1000
		mustDo(t, w, OpUpdate, &f, CreateOptions{})
	}
	dumped = ns.dump(DumpFilter{})
	for i, f := range all {
		f.Mark += 1000
		expectDumped(t, fmt.Sprintf("updated, zones %d %d", f.Orig.Zone, f.Reply.Zone), dumped[f.Orig], f)
		mustDo(t, w, OpDelete, &f, CreateOptions{})
		if left := len(ns.dump(DumpFilter{})); left != len(all)-i-1 {
			t.Errorf("%d entries after %d deletes", left, i+1)
		}
	}
	if zone := ns.dump(DumpFilter{HasZone: true, Zone: 7}); len(zone) != 0 {
		t.Errorf("zone 7 still has %v", zone)
	}
}

// TestFetch reads many entries at once: those that are there, in zones of both and of
// one direction, with what no event tells of them.
func TestFetch(t *testing.T) {
	ns := newNS(t, "fetch")
	w := ns.writer()
	var keys []flow.Tuple
	want := map[int]flow.Flow{}
	for i := range MaxBatch {
		f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(1000+i), 21))
		switch i % 4 {
		case 1:
			f.Orig.Zone = 9
		case 2:
			f.Reply.Zone = 9
		case 3:
			f.Orig.Zone, f.Reply.Zone = 9, 9
		}
		f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		f.SeqAdj = [2]flow.SeqAdj{{Pos: uint32(i), Before: -2, After: 3}, {Pos: 0xffffffff, Before: 4, After: -5}}
		keys = append(keys, f.Orig)
		if i%5 == 0 {
			continue // never made
		}
		mustDo(t, w, OpCreate, &f, CreateOptions{})
		f.Status |= flow.StatusSeqAdjust
		want[i] = f
	}
	waiting := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 1, 2))
	if _, err := w.Add(OpCreate, &waiting, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got := map[int]flow.Flow{}
	for range 3 { // one exchange does not disturb the next
		if err := w.Fetch(keys, func(i int, f *flow.Flow) { got[i] = *f }); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d entries, want %d", len(got), len(want))
		}
		for i, f := range want {
			expectDumped(t, fmt.Sprint("entry ", i), got[i], f)
			delete(got, i)
		}
	}
	// A reply tuple finds the entry, as it is.
	reply := want[1].Reply
	if err := w.Fetch([]flow.Tuple{reply}, func(i int, f *flow.Flow) { got[i] = *f }); err != nil || got[0].Orig != want[1].Orig {
		t.Errorf("by the reply tuple: %v, %+v", err, got[0].Orig)
	}
	if err := w.Fetch(nil, nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := w.Fetch(append(keys, reply), nil); !errors.Is(err, ErrBatchFull) {
		t.Errorf("of more than a batch: %v", err)
	}
	if w.Len() != 1 {
		t.Errorf("%d requests wait, want 1", w.Len())
	}
	if err := w.Flush(func(_ int, err unix.Errno) { t.Error(err) }); err != nil {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := w.Fetch(keys, func(int, *flow.Flow) {}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestMasterInZone(t *testing.T) {
	needCommand(t, "nft")
	ns := newNS(t, "mzone")
	w := ns.writer()
	master := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 5000, 21))
	master.Orig.Zone, master.Reply.Zone = 3, 3
	child := established(tuple(flow.TCP, "198.51.100.1", "192.0.2.1", 20, 6000))
	child.Orig.Zone, child.Reply.Zone = 3, 3
	child.Has |= flow.HasMaster
	child.Master = master.Orig
	if errno := do(t, w, OpCreate, &child, CreateOptions{}); errno != unix.ENOENT {
		t.Errorf("child without master: %v", errno)
	}
	mustDo(t, w, OpCreate, &master, CreateOptions{})
	mustDo(t, w, OpCreate, &child, CreateOptions{})
	child.Status |= flow.StatusExpected
	expectDumped(t, "child", ns.dump(DumpFilter{})[child.Orig], child)
}

// TestBatchErrors mixes requests that fail with others and checks that each error
// names its request.
func TestBatchErrors(t *testing.T) {
	ns := newNS(t, "batch")
	w := ns.writer()
	taken := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1, 80))
	mustDo(t, w, OpCreate, &taken, CreateOptions{})

	for round := range 5 {
		want := make(map[int]unix.Errno)
		for i := range MaxBatch {
			f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(1000+round*MaxBatch+i), 80))
			op, o := OpCreate, CreateOptions{}
			switch i % 9 {
			case 1:
				f = taken
				want[i] = unix.EEXIST
			case 3:
				op = OpUpdate
				want[i] = unix.ENOENT
			case 5:
				op = OpDelete
				want[i] = unix.ENOENT
			case 7:
				f.Has |= flow.HasMaster
				f.Master = f.Orig
				want[i] = unix.ENOENT
			case 8:
				op, o.GuardID = OpDelete, true
				f = taken
				f.Has, f.ID = f.Has|flow.HasID, 12345
				want[i] = unix.ENOENT
			}
			index, err := w.Add(op, &f, o)
			if err != nil || index != i {
				t.Fatalf("add %d: index %d, %v", i, index, err)
			}
		}
		if _, err := w.Add(OpCreate, &taken, CreateOptions{}); !errors.Is(err, ErrBatchFull) {
			t.Fatalf("add to a full batch: %v", err)
		}
		var got flow.Flow
		if err := w.Get(&taken.Orig, &got); err != nil { // must not disturb the batch
			t.Fatal(err)
		}
		errs := make(map[int]unix.Errno)
		if err := w.Flush(func(i int, errno unix.Errno) { errs[i] = errno }); err != nil {
			t.Fatal(err)
		}
		diff(t, "errors", errs, want)
		if w.Len() != 0 {
			t.Errorf("%d requests are left", w.Len())
		}
		w.seq = 1<<31 - 1 - 40 // the next batch crosses the end of the sequence numbers
	}
	entries, _, err := Count(ns.fd())
	if want := 5*(MaxBatch-(MaxBatch/9*5+1)) + 1; err != nil || int(entries) < want-5 || int(entries) != len(ns.dump(DumpFilter{})) {
		t.Errorf("%d entries (%v), dumped %d, want about %d", entries, err, len(ns.dump(DumpFilter{})), want)
	}
}

func TestDeleteGuard(t *testing.T) {
	ns := newNS(t, "guard")
	w := ns.writer()
	f := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 1, 80))
	mustDo(t, w, OpCreate, &f, CreateOptions{})
	if err := w.Get(&f.Orig, &f); err != nil {
		t.Fatal(err)
	}
	f.ID++
	if errno := do(t, w, OpDelete, &f, CreateOptions{GuardID: true}); errno != unix.ENOENT {
		t.Errorf("delete with a wrong id: %v", errno)
	}
	f.ID--
	mustDo(t, w, OpDelete, &f, CreateOptions{GuardID: true})
	if err := w.Get(&f.Orig, &f); err != unix.ENOENT {
		t.Errorf("get of nothing: %v", err)
	}
}

// TestClash: exact NAT attributes make a taken reply tuple an error instead of
// another port.
func TestClash(t *testing.T) {
	ns := newNS(t, "clash")
	w := ns.writer()
	a := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1000, 80))
	a.Reply.Dst, a.Reply.DstPort = [16]byte{203, 0, 113, 1}, 50000
	b := a
	b.Orig.SrcPort = 1001
	mustDo(t, w, OpCreate, &a, CreateOptions{})
	if errno := do(t, w, OpCreate, &b, CreateOptions{}); errno != unix.EEXIST {
		t.Errorf("clash of reply tuples: %v, want EEXIST", errno)
	}
}

func TestRepliesLost(t *testing.T) {
	ns := newNS(t, "lost")
	w := ns.writer()
	// The smallest buffer that the kernel gives holds two or three errors.
	if err := w.conn.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	f := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 1, 80))
	for range MaxBatch {
		if _, err := w.Add(OpDelete, &f, CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := w.Flush(func(int, unix.Errno) { n++ }); !errors.Is(err, ErrRepliesLost) {
		t.Errorf("%d errors read, then %v", n, err)
	}
	if errno := do(t, w, OpDelete, &f, CreateOptions{}); errno != unix.ENOENT {
		t.Errorf("the writer is broken afterwards: %v", errno)
	}
}

func TestWriterAllocates(t *testing.T) {
	ns := newNS(t, "allocs")
	w := ns.writer()
	f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1000, 80))
	f.Reply.DstPort = 2000
	failed := 0
	count := func(int, unix.Errno) { failed++ }
	var got flow.Flow
	if n := testing.AllocsPerRun(20, func() {
		for i := range uint16(50) {
			f.Orig.SrcPort, f.Reply.DstPort = 1000+i, 2000+i
			for _, op := range []Op{OpCreate, OpDelete} {
				if _, err := w.Add(op, &f, CreateOptions{Liberal: true}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := w.Add(OpDelete, &f, CreateOptions{}); err != nil { // an error to read
			t.Fatal(err)
		}
		if err := w.Flush(count); err != nil {
			t.Fatal(err)
		}
		if err := w.Get(&f.Orig, &got); err != unix.ENOENT {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for 102 requests", n)
	}
	if failed != 21 {
		t.Errorf("%d errors, want one in each of 21 runs", failed)
	}
}

func BenchmarkWriter(b *testing.B) {
	ns := newNS(b, "bench")
	w := ns.writer()
	const flows = 40000
	batch := func(op Op) {
		for i := 0; i < flows; {
			f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(i), uint16(i>>16)))
			if _, err := w.Add(op, &f, CreateOptions{Liberal: true}); err != nil {
				if err != ErrBatchFull {
					b.Fatal(err)
				}
				if err := w.Flush(func(_ int, errno unix.Errno) { b.Fatal(errno) }); err != nil {
					b.Fatal(err)
				}
				continue
			}
			i++
		}
		if err := w.Flush(func(_ int, errno unix.Errno) { b.Fatal(errno) }); err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	for b.Loop() {
		batch(OpCreate)
		batch(OpDelete)
		n += 2 * flows
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
}

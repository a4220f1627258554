package commit_test

import (
	"errors"
	"io"
	"maps"
	"testing"

	"syncd/internal/commit"
	"syncd/internal/ctnetlink"
	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

func (w writer) AddExpect(op commit.Op, x *flow.Expect) (int, error) {
	ops := [...]ctnetlink.Op{
		commit.Create: ctnetlink.OpCreate,
		commit.Update: ctnetlink.OpUpdate,
		commit.Delete: ctnetlink.OpDelete,
	}
	i, err := w.Writer.AddExpect(ops[op], x)
	if errors.Is(err, ctnetlink.ErrBatchFull) {
		err = commit.ErrBatchFull
	}
	return i, err
}

// expectSource hands out what it holds.
type expectSource []commit.ExpectEntry

func (s *expectSource) NextExpects(dst []commit.ExpectEntry) (int, error) {
	n := copy(dst, *s)
	*s = (*s)[n:]
	if len(*s) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// TestExpectsInKernel commits masters and then what they expect, of both families, with
// translations and in a zone, and compares the kernel's own dump.
func TestExpectsInKernel(t *testing.T) {
	n := newNode(t)
	tcp := func(v6 bool, src, dst byte, sport, dport uint16) (t flow.Tuple) {
		t = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: sport, DstPort: dport, Src: [16]byte{192, 0, 2, src}, Dst: [16]byte{198, 51, 100, dst}}
		if v6 {
			t.Family = flow.IPv6
			t.Src, t.Dst = [16]byte{0x20, 1, 0xd, 0xb8, 15: src}, [16]byte{0x20, 1, 0xd, 0xb8, 7: 1, 15: dst}
		}
		return t
	}
	var masters []flow.Flow
	var expects []flow.Expect
	for i := range uint16(150) {
		v6 := i%3 == 2
		m := flow.Flow{Orig: tcp(v6, 1, 1, 1000+i, 21), Timeout: 1000, Status: flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed}
		m.Orig.Zone = i % 2 * 7
		m.Has = flow.HasReply | flow.HasTimeout | flow.HasStatus | flow.HasTCP | flow.HasHelper
		m.TCPState = flow.TCPEstablished
		m.Helper, _ = flow.MakeName("ftp")
		m.Reply, _ = m.Orig.Inverse()
		x := flow.Expect{Master: m.Orig, Tuple: tcp(v6, 1, 1, 0, 2000+i), Timeout: 250, ID: 77, Helper: m.Helper}
		x.Has = flow.ExpectHasTimeout | flow.ExpectHasFlags | flow.ExpectHasClass | flow.ExpectHasID | flow.ExpectHasHelper
		x.Tuple.Zone = m.Orig.Zone
		x.Mask = flow.Tuple{Family: x.Tuple.Family, Proto: flow.TCP, DstPort: 0xffff}
		for j := range x.Tuple.AddrLen() {
			x.Mask.Src[j], x.Mask.Dst[j] = 0xff, 0xff
		}
		if i%5 == 0 { // active, through source translation
			m.Reply.Dst[3] = 200
			x.Tuple.Src, x.Tuple.Dst = m.Orig.Dst, m.Reply.Dst
			x.NAT = flow.Tuple{Family: x.Tuple.Family, Proto: flow.TCP, Src: m.Orig.Src, SrcPort: 2000 + i}
			x.NATDir = flow.DirReply
			copy(x.Fn[:], "nat-follow-master")
			x.Has |= flow.ExpectHasNAT | flow.ExpectHasFn
		}
		masters, expects = append(masters, m), append(expects, x)
	}
	var src expectSource
	for i := range masters {
		src = append(src, commit.ExpectEntry{Expect: expects[i]})
	}
	n.create(masters...)
	again := append(expectSource(nil), src...)
	r, err := commit.RunExpects(t.Context(), &src, n.writer, commit.Options{})
	if err != nil || r.Created != len(expects) {
		t.Fatalf("%v, %v", &r, err)
	}
	want := map[flow.Tuple]flow.Expect{}
	for _, x := range expects {
		var have flow.Expect
		if err := n.writer.GetExpect(&x.Tuple, &have); err != nil {
			t.Fatalf("%v: %v", x.Tuple, err)
		}
		if !flow.SameExpect(&x, &have) || have.Timeout > 250 || have.Timeout < 245 {
			t.Errorf("have %v\nwant %v", &have, &x)
		}
		x.Tuple.Zone, x.Master.Zone = 0, 0
		want[x.Master] = x
	}
	total := 0
	if err := ctnetlink.DumpExpects(t.Context(), int(n.handle), func(x *flow.Expect) error {
		total++
		if w := want[x.Master]; !flow.SameExpect(x, &w) {
			t.Errorf("dumped %v\nwant %v", x, &w)
		}
		return nil
	}); err != nil || total != len(expects) {
		t.Errorf("%d dumped, %v", total, err)
	}

	// A second time, with masters that are not there, have no helper, or have another
	// expectation in the place.
	gone, plain, other := again[0], again[1], again[2]
	gone.Expect.Tuple.DstPort, gone.Expect.Master.SrcPort = 9000, 9
	bare := masters[1]
	bare.Orig.SrcPort, bare.Reply.DstPort, bare.Has = 9001, 9001, bare.Has&^flow.HasHelper
	n.create(bare)
	plain.Expect.Tuple.DstPort, plain.Expect.Master = 9001, bare.Orig
	other.Expect.Master = masters[5].Orig
	other.Expect.NAT, other.Expect.Has = flow.Tuple{}, other.Expect.Has&^flow.ExpectHasNAT
	all := append(again, gone, plain, other)
	dry := append(expectSource(nil), all...)
	r, err = commit.RunExpects(t.Context(), &dry, n.writer, commit.Options{DryRun: true})
	if err != nil || r.AlreadyThere != len(expects) || r.Skipped != 1 || r.Created != 2 {
		t.Errorf("dry run: %v, %v", &r, err)
	}
	r, err = commit.RunExpects(t.Context(), &all, n.writer, commit.Options{})
	if err != nil || r.AlreadyThere != len(expects) || r.Created+r.Updated != 0 ||
		!maps.Equal(r.SkippedBy, map[string]int{"conflict": 1}) ||
		!maps.Equal(r.RefusedBy, map[string]int{"master is not there": 1, "master has no helper": 1}) {
		t.Errorf("second time: %v, %v", &r, err)
	}
	// One that has gone is made again.
	if _, err := n.writer.AddExpect(commit.Delete, &flow.Expect{Master: expects[3].Master, Tuple: expects[3].Tuple}); err != nil {
		t.Fatal(err)
	}
	if err := n.writer.Flush(func(_ int, errno unix.Errno) { t.Error(errno) }); err != nil {
		t.Fatal(err)
	}
	third := expectSource{{Expect: expects[3]}}
	if r, err = commit.RunExpects(t.Context(), &third, n.writer, commit.Options{}); err != nil || r.Created != 1 {
		t.Errorf("third time: %v, %v", &r, err)
	}
}

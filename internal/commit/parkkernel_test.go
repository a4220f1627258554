package commit_test

import (
	"testing"

	"syncd/internal/commit"
	"syncd/internal/flow"
)

// parked asks a parker for something and returns the results.
func (n *node) park(p *commit.Parker, items ...flow.Park) (results []flow.ParkResult) {
	n.t.Helper()
	for len(items) > 0 {
		b := new(flow.ParkBatch)
		b.N = copy(b.Items[:], items)
		items = items[b.N:]
		if err := p.Park(b); err != nil {
			n.t.Fatal(err)
		}
		for i := range b.N {
			results = append(results, b.Items[i].Result)
		}
	}
	return results
}

// TestParkInKernel parks, changes, remakes and removes flows, of which packets have
// passed some meanwhile, and looks at the kernel's own entries.
func TestParkInKernel(t *testing.T) {
	n := newNode(t)
	p := commit.NewParker(n.writer, commit.Options{MarkMask: 0xffffffff, Labels: true})
	const flows = 300
	numbered := func(i int) flow.Flow {
		f := flow.Flow{Timeout: 30, Status: flow.StatusConfirmed, Has: flow.HasReply | flow.HasStatus | flow.HasTimeout}
		f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.UDP, SrcPort: 1000 + uint16(i), DstPort: 53,
			Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}}
		if i%3 == 0 {
			f.Orig.Proto, f.Orig.DstPort = flow.TCP, 443
			f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
			f.TCPState, f.TCPFlags, f.TCPWScale = flow.TCPSynSent, [2]uint8{1, 0}, [2]uint8{7, 0}
		}
		f.Reply, _ = f.Orig.Inverse()
		if i%2 == 0 {
			f.Reply.Dst, f.Reply.DstPort = [16]byte{203, 0, 113, 1}, 20000+uint16(i)
		}
		return f
	}
	all := func(op flow.ParkOp, change func(i int, f *flow.Flow)) (items []flow.Park) {
		for i := range flows {
			f := numbered(i)
			if change != nil {
				change(i, &f)
			}
			items = append(items, flow.Park{Op: op, Flow: f})
		}
		return items
	}
	establish := func(_ int, f *flow.Flow) {
		f.Status |= flow.StatusSeenReply | flow.StatusAssured
		f.Mark, f.Has = 7, f.Has|flow.HasMark
		if f.Orig.Proto == flow.TCP {
			f.TCPState, f.TCPFlags, f.TCPWScale = flow.TCPEstablished, [2]uint8{3, 3}, [2]uint8{7, 9}
		}
	}
	check := func(what string, want []flow.Park) {
		t.Helper()
		for i := range want {
			w := &want[i].Flow
			var have flow.Flow
			if err := n.writer.Get(&w.Orig, &have); err != nil {
				t.Fatalf("%s: flow %d: %v", what, i, err)
			}
			const replicated = flow.StatusSeenReply | flow.StatusAssured
			if have.Orig != w.Orig || have.Reply != w.Reply || have.TCPState != w.TCPState || have.Mark != w.Mark ||
				(have.Status^w.Status)&replicated != 0 || have.Timeout < flow.ParkTimeout-5 || !have.Parked() {
				t.Fatalf("%s: flow %d is\n%+v\nwant\n%+v", what, i, have, *w)
			}
			if w.TCPState == flow.TCPEstablished && (have.TCPWScale != w.TCPWScale || have.TCPFlags[0]&have.TCPFlags[1]&flow.TCPFlagBeLiberal == 0) {
				t.Fatalf("%s: flow %d has scales %v, flags %x", what, i, have.TCPWScale, have.TCPFlags)
			}
		}
	}
	done := func(what string, results []flow.ParkResult) {
		t.Helper()
		for i, r := range results {
			if r != flow.ParkDone {
				t.Fatalf("%s: %d: %v", what, i, r)
			}
		}
	}
	items := all(flow.ParkCreate, nil)
	done("create", n.park(p, items...))
	check("created", items)
	done("create again", n.park(p, items...))
	check("created again", items)
	items = all(flow.ParkUpdate, establish)
	done("update", n.park(p, items...))
	check("updated", items)
	items = all(flow.ParkUpdate, nil) // another flow with the same tuple, of which less is known
	done("less", n.park(p, items...))
	check("with less status", items)
	items = all(flow.ParkRemake, func(i int, f *flow.Flow) {
		if establish(i, f); i%2 == 0 {
			f.Reply.DstPort += 5000
		}
	})
	done("remake", n.park(p, items...))
	check("remade", items)

	// Packets pass some.
	for i := range 10 {
		f := numbered(i)
		f.Has, f.Timeout = flow.HasTimeout, 432000
		if _, err := n.writer.Add(commit.Update, &f); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.writer.Flush(nil); err != nil {
		t.Fatal(err)
	}
	for i, r := range n.park(p, all(flow.ParkDelete, nil)...) {
		want := flow.ParkDone
		if i < 10 {
			want = flow.ParkTouched
		}
		if r != want {
			t.Errorf("delete %d: %v", i, r)
		}
	}
	for i := range flows {
		f := numbered(i)
		var have flow.Flow
		err := n.writer.Get(&f.Orig, &have)
		if (err == nil) != (i < 10) || err == nil && (have.Timeout > 300 || have.Timeout < 295) {
			t.Errorf("flow %d after the deletion: %v, timeout %d", i, err, have.Timeout)
		}
	}
	for i, r := range n.park(p, all(flow.ParkCreate, nil)...) {
		want := flow.ParkDone
		switch {
		case i < 10 && i%2 == 0:
			want = flow.ParkClash // it has the other port
		case i < 10:
			want = flow.ParkLocal
		}
		if r != want {
			t.Errorf("create %d: %v, want %v", i, r, want)
		}
	}
}

// TestParkExpectsInKernel parks expectations beside their masters.
func TestParkExpectsInKernel(t *testing.T) {
	n := newNode(t)
	p := commit.NewParker(n.writer, commit.Options{})
	m := flow.Flow{Timeout: 1000, Status: flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed}
	m.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: 1000, DstPort: 21, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}}
	m.Has = flow.HasReply | flow.HasTimeout | flow.HasStatus | flow.HasTCP | flow.HasHelper
	m.TCPState = flow.TCPEstablished
	m.Helper, _ = flow.MakeName("ftp")
	m.Reply, _ = m.Orig.Inverse()
	x := flow.Expect{Master: m.Orig, Timeout: 250, Has: flow.ExpectHasTimeout | flow.ExpectHasFlags | flow.ExpectHasClass}
	x.Tuple = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, DstPort: 2000, Src: m.Orig.Src, Dst: m.Orig.Dst}
	x.Mask = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, DstPort: 0xffff, Src: [16]byte{255, 255, 255, 255}, Dst: [16]byte{255, 255, 255, 255}}
	ask := func(op flow.ParkOp, x flow.Expect) flow.Park { return flow.Park{Op: op, IsExpect: true, Expect: x} }
	have := func() (x2 flow.Expect, there bool) {
		err := n.writer.GetExpect(&x.Tuple, &x2)
		return x2, err == nil
	}
	want := func(what string, got []flow.ParkResult, results ...flow.ParkResult) {
		t.Helper()
		for i, r := range results {
			if got[i] != r {
				t.Errorf("%s: %d: %v, want %v", what, i, got[i], r)
			}
		}
	}
	want("before its master", n.park(p, ask(flow.ParkCreate, x)), flow.ParkNoMaster)
	want("with its master", n.park(p, flow.Park{Op: flow.ParkCreate, Flow: m}, ask(flow.ParkCreate, x)), flow.ParkDone, flow.ParkDone)
	if h, there := have(); !there || h.Timeout > 250 || h.Timeout < 245 || h.Master != m.Orig {
		t.Errorf("%v, %+v", there, h)
	}
	want("again", n.park(p, ask(flow.ParkCreate, x)), flow.ParkDone)
	other := x
	other.NAT = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{203, 0, 113, 1}, SrcPort: 3000}
	copy(other.Fn[:], "nat-follow-master")
	other.Has |= flow.ExpectHasNAT | flow.ExpectHasFn
	want("another in its place", n.park(p, ask(flow.ParkCreate, other)), flow.ParkClash)
	want("that is known to be newer", n.park(p, ask(flow.ParkRemake, other)), flow.ParkDone)
	if h, there := have(); !there || h.NAT.SrcPort != 3000 {
		t.Errorf("%v, %+v", there, h)
	}
	want("deleted", n.park(p, ask(flow.ParkDelete, flow.Expect{Tuple: x.Tuple})), flow.ParkDone)
	if _, there := have(); there {
		t.Error("it was deleted, and is there")
	}
	want("deleted again", n.park(p, ask(flow.ParkDelete, flow.Expect{Tuple: x.Tuple})), flow.ParkDone)
}

// BenchmarkPark parks flows anew, updates what is parked, and removes it, on a real
// kernel.
func BenchmarkPark(b *testing.B) {
	const flows = 4096
	for _, op := range []flow.ParkOp{flow.ParkCreate, flow.ParkUpdate, flow.ParkDelete} {
		b.Run(op.String(), func(b *testing.B) {
			n := newNode(b)
			p := commit.NewParker(n.writer, commit.Options{MarkMask: 0xffffffff})
			batches := make([]flow.ParkBatch, flows/flow.ParkBatchSize)
			for i := range flows {
				f := flow.Flow{Timeout: 432000, Status: flow.StatusConfirmed | flow.StatusSeenReply | flow.StatusAssured}
				f.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
				f.TCPState, f.TCPFlags, f.TCPWScale = flow.TCPEstablished, [2]uint8{3, 3}, [2]uint8{7, 9}
				f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: 1000 + uint16(i), DstPort: 443,
					Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}}
				f.Reply, _ = f.Orig.Inverse()
				batches[i/flow.ParkBatchSize].Items[i%flow.ParkBatchSize].Flow = f
			}
			all := func(op flow.ParkOp) {
				for i := range batches {
					batches[i].N = flow.ParkBatchSize
					for j := range batches[i].Items {
						batches[i].Items[j].Op = op
					}
					if err := p.Park(&batches[i]); err != nil {
						b.Fatal(err)
					}
				}
			}
			all(flow.ParkCreate)
			b.ReportAllocs()
			for b.Loop() {
				if op != flow.ParkUpdate {
					b.StopTimer()
					all(map[flow.ParkOp]flow.ParkOp{flow.ParkCreate: flow.ParkDelete, flow.ParkDelete: flow.ParkCreate}[op])
					b.StartTimer()
				}
				all(op)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/flows, "ns/flow")
		})
	}
}

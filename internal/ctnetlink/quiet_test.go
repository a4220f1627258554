package ctnetlink

import (
	"testing"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// TestListenQuiet: of a writer that is to be quiet only deletions are told, of all
// others everything.
func TestListenQuiet(t *testing.T) {
	ns := newNS(t, "quiet")
	quiet, loud := ns.writer(), ns.writer()
	s := listen(t, ns, ListenConfig{Quiet: quiet.PortID(), BufferSize: 4 << 20})
	const n = 50
	do := func(w *Writer, op Op, first int) {
		t.Helper()
		for i := range n {
			f := bareFlow(first + i)
			if _, err := w.Add(op, &f, CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(func(i int, errno unix.Errno) { t.Errorf("%v %d: %v", op, i, errno) }); err != nil {
			t.Fatal(err)
		}
	}
	do(quiet, OpCreate, 0)
	do(quiet, OpUpdate, 0)
	do(loud, OpCreate, n)
	do(loud, OpUpdate, 0)  // what the quiet one has made
	do(quiet, OpUpdate, n) // and the other way round
	do(loud, OpDelete, n)
	do(quiet, OpDelete, 0)
	waitEvents(t, s.Listener, 4*n)
	events, _ := s.stop()
	got := map[uint32]map[flow.EventKind]int{}
	for i := range events {
		ev := &events[i]
		if got[ev.PortID] == nil {
			got[ev.PortID] = map[flow.EventKind]int{}
		}
		got[ev.PortID][ev.Kind]++
	}
	diff(t, "events by port", got, map[uint32]map[flow.EventKind]int{
		quiet.PortID(): {flow.EventDestroy: n},
		loud.PortID():  {flow.EventNew: n, flow.EventUpdate: n, flow.EventDestroy: n},
	})
	if bad := s.Stats().Bad; bad != 0 {
		t.Errorf("%d bad messages", bad)
	}
}

// bareFlow is flow i of a test.
func bareFlow(i int) flow.Flow {
	f := flow.Flow{Timeout: 100, Status: flow.StatusConfirmed, Has: flow.HasTimeout | flow.HasStatus}
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.UDP, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}, SrcPort: 1000 + uint16(i), DstPort: 53}
	f.Reply, _ = f.Orig.Inverse()
	return f
}

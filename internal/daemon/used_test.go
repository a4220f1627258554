package daemon

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"syncd/internal/cache"
	"syncd/internal/commit"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// heard are packets that have come, and then an error.
type heard struct {
	tuples []flow.Tuple
	err    error
	closed bool
}

func (h *heard) Read(dst []flow.Tuple) (int, error) {
	n := copy(dst, h.tuples)
	if h.tuples = h.tuples[n:]; n == 0 {
		return 0, h.err
	}
	return n, nil
}

func (h *heard) Close() error { h.closed = true; return nil }

// usedSource is a source of n flows of all classes, and the packets that it hears.
func usedSource(t *testing.T, n int) (d *Daemon, src *externalSource, tap *heard) {
	t.Helper()
	d, _ = newDaemon(t, validConfig)
	d.external(t, func(put func(flow.Flow)) {
		for i := range n {
			put(classes(i))
		}
	})
	time.Sleep(2 * cache.Resolution) // so that nothing counts as changed since
	tap = &heard{}
	src = &externalSource{ctx: t.Context(), engine: d.engine, since: monotime.Now().Add(-cache.Resolution)}
	src.used = newUsed(tap, func(err error) { t.Log(err) })
	return d, src, tap
}

// all takes all passes of a source, and counts how often each flow was handed out.
func (s *externalSource) all(t *testing.T) map[flow.Tuple]int {
	t.Helper()
	got := map[flow.Tuple]int{}
	for _, pass := range passes {
		take(t, s, pass, got, nil)
	}
	return got
}

// Flows of which packets come are handed out at once, whichever of their ends has sent
// them, and not again when it is their turn. Those with a master wait for it.
func TestUsedFirst(t *testing.T) {
	const n = 10_000
	_, src, tap := usedSource(t, n)
	established, replied, opening, related := classes(9000), classes(9003), classes(9004), classes(9005)
	reply, _ := replied.Orig.Inverse()
	unknown := testFlow(n+1, 0)
	tap.tuples = []flow.Tuple{unknown.Orig, related.Orig, established.Orig, reply, established.Orig, opening.Orig}
	first := make([]commit.Entry, 5)
	m, err := src.Next(commit.PassEstablished, first)
	if m != len(first) || err != nil {
		t.Fatal(m, err)
	}
	var order []flow.Tuple
	for i := range m {
		order = append(order, first[i].Flow.Orig)
	}
	// The rest of the room is for those whose turn it is.
	next, after := classes(0), classes(3)
	want := []flow.Tuple{established.Orig, replied.Orig, opening.Orig, next.Orig, after.Orig}
	if !slices.Equal(order, want) {
		t.Errorf("first come %v, want %v", order, want)
	}
	if src.used.early != 3 {
		t.Errorf("%d were handed out before their turn", src.used.early)
	}
	// More packets of what is in the kernel by now.
	tap.tuples = []flow.Tuple{established.Orig, next.Orig, after.Orig}
	got := src.all(t)
	for _, k := range order {
		got[k]++
	}
	for i := range n {
		if f := classes(i); got[f.Orig] != 1 {
			t.Errorf("flow %d was handed out %d times", i, got[f.Orig])
		}
	}
}

// What has changed since it was handed out early is handed out again.
func TestUsedFirstThenChanged(t *testing.T) {
	d, src, tap := usedSource(t, 3000)
	f := classes(2101) // opening
	tap.tuples = []flow.Tuple{f.Orig}
	if n, err := src.Next(commit.PassEstablished, make([]commit.Entry, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	d.external(t, func(put func(flow.Flow)) {
		f.TCPState = flow.TCPCloseWait
		put(f)
	})
	if got := src.all(t); got[f.Orig] == 0 {
		t.Error("its change is lost")
	}
}

// A walk that has ended before packets come ends all the same, and more packets than fit
// are no trouble.
func TestUsedFirstMany(t *testing.T) {
	const n = 3000
	_, src, tap := usedSource(t, n)
	for i := range 10 * n {
		f := classes(i % n)
		tap.tuples = append(tap.tuples, f.Orig)
	}
	got := src.all(t)
	for i := range n {
		if f := classes(i); got[f.Orig] != 1 {
			t.Errorf("flow %d was handed out %d times", i, got[f.Orig])
		}
	}
	if src.used.early == 0 {
		t.Error("no packet was looked at")
	}
}

// When packets cannot be seen any more the commit goes on without.
func TestUsedFirstFails(t *testing.T) {
	_, src, tap := usedSource(t, 3000)
	tap.err = io.ErrUnexpectedEOF
	var why []error
	src.used.failed = func(err error) { why = append(why, err) }
	if got := src.all(t); len(got) != 3000 {
		t.Errorf("%d flows were handed out", len(got))
	}
	if !tap.closed || len(why) != 1 || !errors.Is(why[0], io.ErrUnexpectedEOF) {
		t.Errorf("closed %v, told %v", tap.closed, why)
	}
	src.used.close()
}

// It costs no memory for each packet.
func TestUsedFirstAllocates(t *testing.T) {
	d, src, tap := usedSource(t, 3000)
	f := classes(2100)
	packet := []flow.Tuple{f.Orig}
	dst := make([]commit.Entry, 1)
	if err := d.engine.Do(t.Context(), func() {
		r, now := d.engine.Replica(), d.engine.Now()
		owners := r.Owners()
		if got := testing.AllocsPerRun(100, func() {
			tap.tuples = packet
			src.used.look()
			src.used.take(r, owners, now, dst)
		}); got != 0 {
			t.Errorf("%v allocations", got)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

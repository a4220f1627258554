package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"syncd/internal/cache"
	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// take reads one pass of a source, calling between after every chunk, and adds to
// got how often each flow was handed out.
func take(t *testing.T, src commit.Source, p commit.Pass, got map[flow.Tuple]int, between func(chunk int)) {
	t.Helper()
	dst := make([]commit.Entry, 100)
	for chunk := 0; ; chunk++ {
		n, err := src.Next(p, dst)
		for i := range n {
			got[dst[i].Flow.Orig]++
			if dst[i].Age < 0 || dst[i].Age > time.Minute {
				t.Errorf("age %v", dst[i].Age)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if between != nil {
			between(chunk)
		}
	}
}

// classes returns flows of all three passes: established, opening, and with a master.
func classes(i int) flow.Flow {
	switch i % 3 {
	case 0:
		return testFlow(i, flow.TCPEstablished)
	case 1:
		return testFlow(i, flow.TCPSynSent)
	}
	f := testFlow(i, flow.TCPEstablished)
	f.Has |= flow.HasMaster
	f.Master = testFlow(0, 0).Orig
	return f
}

var passes = []commit.Pass{commit.PassEstablished, commit.PassOthers, commit.PassRelated}

func TestSourceHandsOutEachOnce(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	const n = 10_000
	d.external(t, func(put func(flow.Flow)) {
		for i := range n {
			put(classes(i))
		}
	})
	time.Sleep(2 * cache.Resolution) // so that nothing counts as changed since
	src := &externalSource{ctx: t.Context(), engine: d.engine, since: monotime.Now().Add(-cache.Resolution)}
	for p, pass := range passes {
		got := map[flow.Tuple]int{}
		take(t, newReadAhead(src), pass, got, nil)
		for i := range n {
			f, want := classes(i), 0
			if i%3 == p {
				want = 1
			}
			if got[f.Orig] != want {
				t.Fatalf("flow %d was handed out %d times in pass %d", i, got[f.Orig], p)
			}
		}
	}
}

// TestSourceWhileTheCacheChanges: what is there from the beginning to the end is
// handed out, however it changes its class.
func TestSourceWhileTheCacheChanges(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	const n = 10_000
	d.external(t, func(put func(flow.Flow)) {
		for i := range n {
			put(classes(i))
		}
	})
	time.Sleep(2 * cache.Resolution)
	src := &externalSource{ctx: t.Context(), engine: d.engine, since: monotime.Now().Add(-cache.Resolution)}
	ahead := newReadAhead(src)
	got := map[flow.Tuple]int{}
	for p, pass := range passes {
		take(t, ahead, pass, got, func(chunk int) {
			if chunk > 20 {
				return
			}
			d.external(t, func(put func(flow.Flow)) {
				for i := chunk; i < n; i += 21 { // every flow, once in every pass
					f := classes(i)
					switch (i + p) % 4 {
					case 0: // any class to another one
						f.TCPState = flow.TCPEstablished
					case 1:
						f.TCPState = flow.TCPCloseWait
					case 2:
						put(testFlow(n+p*n+i, flow.TCPEstablished)) // comes
						continue
					case 3:
						g := testFlow(n+(p-1)*n+i, 0)
						x := externalCache(d.engine)
						if h := x.Lookup(&g.Orig); p > 0 && h != 0 {
							x.Remove(h) // and goes
						}
						continue
					}
					put(f)
				}
			})
		})
	}
	for i := range n {
		if f := classes(i); got[f.Orig] == 0 {
			t.Errorf("flow %d was never handed out", i)
		}
	}
}

func TestSourceOfOnePeer(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	const n = 100
	d.external(t, func(put func(flow.Flow)) {
		for i := range n {
			put(classes(i))
		}
	})
	if err := d.engine.Do(t.Context(), func() { // of an owner that is not the one
		f := testFlow(n, flow.TCPEstablished)
		if err := d.engine.Replica().Restore(7, &f, d.engine.Now()); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	d.mode = namedOwners{d.mode}
	for peer, want := range map[string]uint64{"": n + 1, "fw1": n, "fw7": 1} {
		src, err := d.newSource(t.Context(), peer)
		if err != nil {
			t.Fatal(err)
		}
		got := map[flow.Tuple]int{}
		for _, p := range passes {
			take(t, src, p, got, nil)
		}
		if src.total != want || uint64(len(got)) != want {
			t.Errorf("peer %q: %d flows of %d, want %d", peer, len(got), src.total, want)
		}
	}
	for _, o := range []ctl.CommitOptions{{Peer: "fw2"}, {Peer: "fw2", DryRun: true}} {
		_, err := d.Commit(t.Context(), o)
		const want = `commit: invalid request: unknown peer "fw2", known are 127.0.0.2, fw1, fw7`
		if !errors.Is(err, ctl.ErrInvalid) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	// One that is expected, and has told nothing.
	if src, err := d.newSource(t.Context(), "127.0.0.2"); err != nil || src.total != 0 {
		t.Errorf("%v", err)
	}
}

// namedOwners is a mode whose owners have names.
type namedOwners struct{ mode }

func (namedOwners) ownerName(o uint8) string { return fmt.Sprintf("fw%d", o) }

func TestSourceEndsWithItsContext(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	src := &externalSource{ctx: ctx, engine: d.engine}
	for range 100 { // the loop may take a call whose context has ended
		if _, err := src.Next(commit.PassOthers, make([]commit.Entry, 1)); errors.Is(err, context.Canceled) {
			return
		}
		src.ended = false
	}
	t.Error("a source went on after its context")
}

// scripted is a source that says how it goes on.
type scripted []fetched

func (s *scripted) Next(p commit.Pass, dst []commit.Entry) (int, error) {
	f := (*s)[0]
	*s = (*s)[1:]
	for i := range f.n {
		dst[i] = commit.Entry{Age: time.Duration(f.n)}
	}
	return f.n, f.err
}

// Reading ahead changes nothing in what a source says, and when.
func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	src := &scripted{{3, nil}, {2, nil}, {0, nil}, {4, io.EOF}, {0, io.EOF}, {1, nil}, {2, broken}}
	r := newReadAhead(src)
	for i, want := range []struct {
		pass commit.Pass
		room int
		fetched
	}{
		{0, 2, fetched{2, nil}}, {0, 2, fetched{1, nil}}, {0, 9, fetched{2, nil}}, {0, 9, fetched{0, nil}},
		{0, 3, fetched{3, nil}}, {0, 3, fetched{1, io.EOF}}, {0, 3, fetched{0, io.EOF}},
		{1, 3, fetched{0, io.EOF}},
		{2, 3, fetched{1, nil}}, {2, 3, fetched{2, nil}}, {2, 3, fetched{0, broken}},
	} {
		n, err := r.Next(want.pass, make([]commit.Entry, want.room))
		if n != want.n || err != want.err {
			t.Errorf("step %d: %d, %v, want %d, %v", i, n, err, want.n, want.err)
		}
	}
	// Whoever leaves early waits for what is being read.
	left := &scripted{{1, nil}, {1, nil}}
	r = newReadAhead(left)
	if n, err := r.Next(0, make([]commit.Entry, 1)); n != 1 || err != nil {
		t.Error(n, err)
	}
	r.close()
	if len(*left) != 0 {
		t.Error("it did not wait")
	}
}

func TestCommitIsExclusive(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	if err := d.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Commit(t.Context(), ctl.CommitOptions{}); !errors.Is(err, ctl.ErrBusy) {
		t.Errorf("a second commit: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.SetRole(ctx, ctl.RoleBackup, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a role during a commit: %v", err)
	}
	d.release()
}

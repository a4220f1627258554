package commit

import (
	"context"
	"errors"
	"testing"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

func TestPurge(t *testing.T) {
	fill := func(n int) *fakeKernel {
		k := newFake(t)
		for i := range n {
			k.insert(tcpFlow(uint16(i)))
		}
		return k
	}
	even := func(flows []flow.Flow, chosen []bool) error {
		for i := range flows {
			chosen[i] = flows[i].Orig.SrcPort%2 == 0
		}
		return nil
	}
	all := func(flows []flow.Flow, chosen []bool) error {
		for i := range flows {
			chosen[i] = true
		}
		return nil
	}
	const limit = 30
	short := func(k *fakeKernel) (n int) {
		for _, f := range k.entries {
			if f.Timeout <= limit {
				n++
			}
		}
		return n
	}
	check := func(t *testing.T, r PurgeReport, err error, want PurgeReport, wantErr error) {
		t.Helper()
		if r != want || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
			t.Errorf("%+v, %v; want %+v, %v", r, err, want, wantErr)
		}
	}

	t.Run("some", func(t *testing.T) {
		for _, room := range []int{0, 10} {
			k := fill(1000)
			k.room = room
			r, err := Purge(t.Context(), k.dump, even, k, limit)
			check(t, r, err, PurgeReport{Chosen: 500, Shortened: 500}, nil)
			if len(k.entries) != 1000 || short(k) != 500 {
				t.Errorf("%d left, %d of them short", len(k.entries), short(k))
			}
			for _, f := range k.entries {
				was := tcpFlow(f.Orig.SrcPort)
				was.ID, was.Has = f.ID, f.Has
				if f.Orig.SrcPort%2 == 0 {
					was.Timeout = limit
				}
				if *f != was {
					t.Errorf("%s is %+v, want %+v", describe(&f.Orig), *f, was)
				}
			}
		}
	})
	t.Run("never longer", func(t *testing.T) {
		k := newFake(t)
		timeouts := []uint32{0, 1, limit - 1, limit, limit + 1, 1 << 20}
		for i, s := range timeouts {
			k.insert(with(tcpFlow(uint16(i)), func(f *flow.Flow) { f.Timeout = s }))
		}
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 6, Shortened: 2}, nil)
		for i, s := range timeouts {
			if f := k.find(tcpFlow(uint16(i)).Orig); f.Timeout != min(s, limit) {
				t.Errorf("a timeout of %d became %d", s, f.Timeout)
			}
		}
	})
	t.Run("not to be touched", func(t *testing.T) {
		k := newFake(t)
		for i, status := range []uint32{flow.StatusFixedTimeout, flow.StatusOffload, flow.StatusHWOffload} {
			k.insert(with(tcpFlow(uint16(i)), func(f *flow.Flow) { f.Status |= status }))
		}
		k.insert(with(tcpFlow(9), func(f *flow.Flow) { f.Has &^= flow.HasTimeout }))
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 4}, nil)
		if k.flushes != 0 {
			t.Error("something was sent")
		}
	})
	t.Run("GRE with a fixed timeout is deleted", func(t *testing.T) {
		k := newFake(t)
		gre := func(key uint16) flow.Flow {
			return with(plain(flow.GRE, key, 0), func(f *flow.Flow) { f.Status |= flow.StatusFixedTimeout; f.Timeout = timeoutGRE })
		}
		for i := range uint16(300) {
			k.insert(with(tcpFlow(i), func(f *flow.Flow) { f.Timeout = 1 << 20 }))
			k.insert(gre(i))
		}
		free := with(plain(flow.GRE, 999, 0), func(f *flow.Flow) { f.Timeout = 180 })
		k.insert(free) // made by traffic
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if op == Delete && f.Orig.SrcPort == 7 { // another one has taken its place
				k.remove(k.byTuple[f.Orig])
				k.insert(gre(7))
			}
			return 0
		}
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 601, Shortened: 301, Deleted: 299}, nil)
		for i := range uint16(300) {
			f := gre(i)
			if there := k.find(f.Orig) != nil; there != (i == 7) {
				t.Errorf("entry %d is there: %v", i, there)
			}
		}
		if f := k.find(free.Orig); f == nil || f.Timeout != limit {
			t.Errorf("made by traffic: %+v", f)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		k := fill(10)
		r, err := Purge(t.Context(), k.dump, func([]flow.Flow, []bool) error { return nil }, k, limit)
		check(t, r, err, PurgeReport{}, nil)
		if k.flushes != 0 {
			t.Errorf("%d flushes", k.flushes)
		}
	})
	t.Run("gone", func(t *testing.T) {
		k := fill(10)
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if f.Orig.SrcPort == 3 {
				k.remove(k.byTuple[f.Orig])
			}
			return 0
		}
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 10, Shortened: 9}, nil)
	})
	t.Run("refused", func(t *testing.T) {
		k := fill(300)
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if f.Orig.SrcPort < 2 {
				return unix.EBUSY
			}
			return 0
		}
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 300, Shortened: 298, Refused: 2}, unix.EBUSY)
		if short(k) != 298 {
			t.Errorf("%d are short", short(k))
		}
	})
	t.Run("no permission", func(t *testing.T) {
		k := fill(3000)
		k.before = func(Op, *flow.Flow) unix.Errno { return unix.EPERM }
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		if r.Shortened != 0 || !errors.Is(err, unix.EPERM) || k.flushes != 1 {
			t.Errorf("%+v, %v, %d flushes", r, err, k.flushes)
		}
	})
	t.Run("answers lost", func(t *testing.T) {
		k := fill(300)
		k.flushErr = []error{unix.ENOBUFS}
		r, err := Purge(t.Context(), k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 300, Shortened: 300}, nil)
	})
	t.Run("cancelled", func(t *testing.T) {
		k := fill(3000)
		ctx, cancel := context.WithCancel(t.Context())
		k.before = func(Op, *flow.Flow) unix.Errno { cancel(); return 0 }
		r, err := Purge(ctx, k.dump, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: chunkSize, Shortened: chunkSize}, context.Canceled)
		if short(k) != chunkSize || len(k.batch) != 0 {
			t.Errorf("%d are short, %d wait", short(k), len(k.batch))
		}
	})
	t.Run("nobody to choose", func(t *testing.T) {
		k := fill(3000)
		boom := errors.New("boom")
		r, err := Purge(t.Context(), k.dump, func([]flow.Flow, []bool) error { return boom }, k, limit)
		check(t, r, err, PurgeReport{}, boom)
		if k.flushes != 0 {
			t.Error("something was sent")
		}
	})
	t.Run("dump fails", func(t *testing.T) {
		k := fill(300)
		boom := errors.New("boom")
		r, err := Purge(t.Context(), func(fn func(*flow.Flow) error) error {
			k.dump(fn)
			return boom
		}, all, k, limit)
		check(t, r, err, PurgeReport{Chosen: 300, Shortened: 300}, boom)
	})
}

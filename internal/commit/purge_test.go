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
	keepOdd := func(f *flow.Flow) bool { return f.Orig.SrcPort%2 == 1 }
	keepNone := func(*flow.Flow) bool { return false }

	t.Run("some", func(t *testing.T) {
		for _, room := range []int{0, 10} {
			k := fill(1000)
			k.room = room
			n, err := Purge(t.Context(), k.dump, keepOdd, k)
			if n != 500 || err != nil || len(k.entries) != 500 {
				t.Errorf("%d, %v; %d left", n, err, len(k.entries))
			}
			if want := (500 + batchSize - 1) / batchSize; room == 0 && k.flushes != want {
				t.Errorf("%d flushes, want %d", k.flushes, want)
			}
			for _, f := range k.entries {
				if !keepOdd(f) {
					t.Errorf("%s is left", describe(&f.Orig))
				}
			}
		}
	})
	t.Run("nothing", func(t *testing.T) {
		k := fill(10)
		if n, err := Purge(t.Context(), k.dump, func(*flow.Flow) bool { return true }, k); n != 0 || err != nil || k.flushes != 0 {
			t.Errorf("%d, %v, %d flushes", n, err, k.flushes)
		}
	})
	t.Run("gone and newer", func(t *testing.T) {
		k := fill(10)
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			switch f.Orig.SrcPort {
			case 3: // expired
				k.remove(f.ID)
			case 5: // and opened anew
				k.remove(f.ID)
				k.insert(tcpFlow(5))
			}
			return 0
		}
		n, err := Purge(t.Context(), k.dump, keepNone, k)
		if n != 8 || err != nil || len(k.entries) != 1 || k.find(tcpFlow(5).Orig) == nil {
			t.Errorf("%d, %v; %d left", n, err, len(k.entries))
		}
	})
	t.Run("refused", func(t *testing.T) {
		k := fill(300)
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if f.Orig.SrcPort < 2 {
				return unix.EBUSY
			}
			return 0
		}
		n, err := Purge(t.Context(), k.dump, keepNone, k)
		if n != 298 || !errors.Is(err, unix.EBUSY) || len(k.entries) != 2 {
			t.Errorf("%d, %v; %d left", n, err, len(k.entries))
		}
	})
	t.Run("no permission", func(t *testing.T) {
		k := fill(300)
		k.before = func(Op, *flow.Flow) unix.Errno { return unix.EPERM }
		n, err := Purge(t.Context(), k.dump, keepNone, k)
		if n != 0 || !errors.Is(err, unix.EPERM) || k.flushes != 1 {
			t.Errorf("%d, %v, %d flushes", n, err, k.flushes)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		k := fill(300)
		ctx, cancel := context.WithCancel(t.Context())
		k.before = func(Op, *flow.Flow) unix.Errno { cancel(); return 0 }
		n, err := Purge(ctx, k.dump, keepNone, k)
		if n != batchSize || !errors.Is(err, context.Canceled) || len(k.entries) != 300-batchSize || len(k.batch) != 0 {
			t.Errorf("%d, %v; %d left", n, err, len(k.entries))
		}
	})
	t.Run("dump fails", func(t *testing.T) {
		k := fill(300)
		boom := errors.New("boom")
		n, err := Purge(t.Context(), func(fn func(*flow.Flow) error) error {
			k.dump(fn)
			return boom
		}, keepNone, k)
		if n != 300 || !errors.Is(err, boom) || len(k.entries) != 0 {
			t.Errorf("%d, %v; %d left", n, err, len(k.entries))
		}
	})
}

package commit

import (
	"testing"

	"syncd/internal/flow"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestLabels: whether the kernel keeps labels is seen with one look at each batch that
// has some, of an entry that is still there.
func TestLabels(t *testing.T) {
	label := func(f *flow.Flow) { f.Labels[0], f.Has = 1, f.Has|flow.HasLabels }
	all := Options{Labels: true}
	flows := func(n int) *sliceSource {
		src := &sliceSource{}
		for i := range n {
			f := tcpFlow(uint16(i))
			if i%2 == 0 {
				label(&f)
			}
			src.entries = append(src.entries, Entry{Flow: f})
		}
		return src
	}
	t.Run("kept", func(t *testing.T) {
		k := newFake(t)
		r := mustRun(t, flows(1000), k, all)
		if r.Created != 1000 || len(r.ByReason) != 0 || k.gets != 8 {
			t.Errorf("%s; %d looks", r.String(), k.gets)
		}
	})
	t.Run("dropped", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		r := mustRun(t, flows(1000), k, all)
		if r.Created != 1000 || r.ByReason[reasonNoLabels] != 500 || k.gets != 8 {
			t.Errorf("%s; %d looks", r.String(), k.gets)
		}
	})
	t.Run("not wanted", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		if r := mustRun(t, flows(1000), k, Options{}); len(r.ByReason) != 0 || k.gets != 0 {
			t.Errorf("%s; %d looks", r.String(), k.gets)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		if r := mustRun(t, flows(10), k, Options{Labels: true, DryRun: true}); r.Created != 10 || len(r.ByReason) != 0 {
			t.Errorf("%s", r.String())
		}
	})
	t.Run("ended meanwhile", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		n := 0
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if n++; n == 128 { // the last of the first batch with labels is gone before it is looked at
				delete(k.byTuple, tcpFlow(126).Orig)
			}
			return 0
		}
		// What is counted later counts for it too.
		if r := mustRun(t, flows(256), k, all); r.ByReason[reasonNoLabels] != 128 {
			t.Errorf("%s", r.String())
		}
	})
	t.Run("orphans", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		orphan := with(tcpFlow(5), func(f *flow.Flow) {
			label(f)
			f.Has |= flow.HasMaster
			f.Master = tcpFlow(99).Orig
		})
		r := mustRun(t, source(orphan), k, all)
		if diff := cmp.Diff(map[string]int{reasonNoMaster: 1, reasonNoLabels: 1}, r.ByReason); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("of an entry that is there", func(t *testing.T) {
		k := newFake(t)
		k.noLabels = true
		k.insert(with(udpFlow(1), func(f *flow.Flow) { f.Timeout = 5 }))
		k.insert(udpFlow(2))
		r := mustRun(t, source(with(udpFlow(1), label), with(udpFlow(2), label)), k, all)
		want := Report{Entries: 2, Updated: 1, AlreadyThere: 1, ByReason: map[string]int{reasonNoLabels: 2}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Error(diff)
		}
		if now := k.find(udpFlow(1).Orig); now.Timeout != 30 {
			t.Errorf("timeout %d", now.Timeout)
		}
	})
}

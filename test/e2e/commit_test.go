package e2e

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"syncd/internal/ctl"
)

// Looking changes nothing, what is said of one peer is done for it alone, and
// whoever asks is told how far it is.
func TestCommitOfOnePeerAndDryRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, udp4, "")
	create(t, c.kernels[0], 0, 300)
	create(t, c.kernels[1], 300, 500)
	c.equal(10*time.Second, "before")
	inKernel := func(want int) {
		t.Helper()
		if n := len(kernelTable(t, c.kernels[2], isTestFlow)); n != want {
			t.Errorf("%d flows in the kernel, want %d", n, want)
		}
	}
	commit := func(o ctl.CommitOptions, entries, created, there uint64) {
		t.Helper()
		var last ctl.Progress
		o.Progress = func(p ctl.Progress) { last = p }
		r, err := c.fws[2].ctl.Commit(context.Background(), o)
		ok(t, err)
		if n := r.Total(); r.DryRun != o.DryRun || n.Entries != entries || n.Created != created || n.AlreadyThere != there {
			t.Errorf("%+v: %+v, want %d entries, %d created, %d there", o, r, entries, created, there)
		}
		if last.Done != entries || last.Total != entries {
			t.Errorf("%+v: at the end the progress is %+v", o, last)
		}
	}
	commit(ctl.CommitOptions{DryRun: true}, 500, 500, 0)
	inKernel(0)
	if s := c.fws[2].Status(); s.LastCommit != nil {
		t.Errorf("a dry run counts as the last commit: %+v", s.LastCommit)
	}
	commit(ctl.CommitOptions{Peer: "n2", DryRun: true}, 200, 200, 0)
	commit(ctl.CommitOptions{Peer: "n2"}, 200, 200, 0)
	inKernel(200)
	commit(ctl.CommitOptions{DryRun: true}, 500, 300, 200)
	inKernel(200)
	_, err := c.fws[2].ctl.Commit(context.Background(), ctl.CommitOptions{Peer: "n9"})
	if !errors.Is(err, ctl.ErrInvalid) || !strings.HasSuffix(err.Error(), `unknown peer "n9", known are n1, n2`) {
		t.Errorf("an unknown peer: %v", err)
	}
	commit(ctl.CommitOptions{}, 500, 300, 200)
	inKernel(500)
	c.equal(10*time.Second, "after") // n3 has the flows of n1 and n2, and says so
}

// TestLargeCommit: while many entries are committed nobody listens to the kernel, and
// what happens in its table meanwhile is found all the same.
func TestLargeCommit(t *testing.T) {
	const flows = 60_000
	for _, sealed := range []bool{false, true} {
		t.Run(map[bool]string{false: "conntrackd", true: "sealed"}[sealed], func(t *testing.T) {
			d := newDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: sealed})
			create(t, d.kA, 0, flows)
			waitFor(t, 30*time.Second, "everything is replicated", func() bool { return d.b.Status().External.Entries == flows })
			create(t, d.kB, 100_000, 102_000)
			waitFor(t, 10*time.Second, "the receiver's own flows", func() bool { return d.b.Status().Internal.Entries == 2000 })

			var stop atomic.Bool
			var churn errgroup.Group
			n := 0
			churn.Go(func() error { // as long as the commit runs
				for ; !stop.Load(); n++ {
					if n < 2000 {
						if err := d.kB.Delete(numbered(100_000 + n)); err != nil {
							return err
						}
					}
					if err := d.kB.Create(numbered(110_000 + n)); err != nil {
						return err
					}
				}
				return nil
			})
			r := d.b.Commit()
			stop.Store(true)
			ok(t, churn.Wait())
			if sum := r.Total(); sum.Created != flows {
				t.Errorf("%+v", sum)
			}
			t.Logf("%d flows came during the commit, which took %.2f s", n, r.DurationS)
			waitEqual(t, 10*time.Second, "the internal cache and the kernel", d.b.Internal, d.kernelB, form{})
			s, err := d.b.ctl.Stats(context.Background())
			ok(t, err)
			if s.Events.Own > 100 || s.Events.Dumps < 2 {
				t.Errorf("%d events of the own changes, %d dumps: nobody should have listened", s.Events.Own, s.Events.Dumps)
			}
			waitFor(t, 20*time.Second, "the receiver is in step", func() bool { return d.b.Status().InSync })
			own := uint64(max(2000-n, 0) + n)
			want := own + flows // what it carries now it says
			if !sealed {
				want = own // in this dialect a commit is not told by itself
			}
			waitFor(t, 20*time.Second, "the sender knows", func() bool { return d.a.Status().External.Entries == want })
		})
	}
}

// TestLargeTakeover: when a takeover returns, this node's cache has what its kernel
// has, and the table was read once for that.
func TestLargeTakeover(t *testing.T) {
	const flows = 40_000
	d := newDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: true})
	create(t, d.kA, 0, flows)
	waitFor(t, 30*time.Second, "everything is replicated", func() bool { return d.b.Status().External.Entries == flows })
	d.a.Stop()
	r, err := d.b.ctl.SetRole(context.Background(), ctl.RolePrimary, nil)
	ok(t, err)
	if n := d.b.Status().Internal.Entries; n != flows || r.Commit.Total().Created != flows {
		t.Errorf("%d entries of this node's own: %+v", n, r)
	}
	s, err := d.b.ctl.Stats(context.Background())
	ok(t, err)
	if s.Events.Dumps != 2 || s.Events.Own > 100 {
		t.Errorf("%d readings of the table, want one at the start and one now; %d events of the own changes", s.Events.Dumps, s.Events.Own)
	}
	if d := diff(d.b.Internal(), d.kernelB(), form{}); d != "" {
		t.Errorf("the internal cache and the kernel: %s", d)
	}
	t.Logf("%+v", r.Steps)
}

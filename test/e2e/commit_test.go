package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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

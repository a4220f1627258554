package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// fill makes many flows by several hands, destroyMany ends many.
func (c *cluster) fill(i, first, end int) {
	c.t.Helper()
	c.many(first, end, func(n int) error { return c.kernels[i].Create(numbered(n)) })
}

func (c *cluster) destroyMany(i, first, end int) {
	c.t.Helper()
	c.many(first, end, func(n int) error { return c.kernels[i].Delete(numbered(n)) })
}

func (c *cluster) many(first, end int, do func(n int) error) {
	c.t.Helper()
	const hands = 4
	var all errgroup.Group
	for hand := range hands {
		all.Go(func() error {
			for n := first + hand; n < end; n += hands {
				if err := do(n); err != nil {
					return fmt.Errorf("flow %d: %w", n, err)
				}
			}
			return nil
		})
	}
	ok(c.t, all.Wait())
}

// counted waits until a daemon holds as many flows of its only peer as there are,
// says so itself, and then compares all of them. It returns how long it took to
// the claim, which a comparison must bear out at once.
func (c *cluster) counted(receiver, flows int, timeout time.Duration, what string) time.Duration {
	c.t.Helper()
	f := c.fws[receiver]
	begin := time.Now()
	waitFor(c.t, timeout, fmt.Sprintf("%s: %d flows, in step and proven", what, flows), func() bool {
		s := f.Status()
		return s.External.Entries == uint64(flows) && c.proven(f, begin)
	})
	took := time.Since(begin)
	if d := c.differences(); d != "" {
		c.t.Errorf("%s: in step by its own words after %v, but:\n%s", what, took, d)
	}
	c.t.Logf("%s: %d flows, in step after %v", what, flows, took.Round(10*time.Millisecond))
	return took
}

// Most flows end while the link is cut, others begin: when it heals, nothing is
// missing and nothing stale within seconds.
func TestLinkCutManyFlows(t *testing.T) {
	t.Parallel()
	const before, ended, begun = 100_000, 60_000, 20_000
	c := newCluster(t, 2, udp4, "")
	c.fill(0, 0, before)
	c.counted(1, before, 20*time.Second, "before")
	cut := time.Now()
	ok(t, c.nodes[0].Unplug())
	c.destroyMany(0, 0, ended)
	c.fill(0, before, before+begun)
	t.Logf("%d ended and %d begun in %v", ended, begun, time.Since(cut).Round(time.Millisecond))
	time.Sleep(time.Until(cut.Add(10 * time.Second)))
	ok(t, c.nodes[0].Replug())
	c.counted(1, before-ended+begun, 10*time.Second, "after the cut")
	c.inStep(10 * time.Second)
	c.verified()
	c.clean()
}

// Very many flows end at once while the receiver hardly gets a processor, and the
// sender's event socket overflows.
func TestMassDeleteStarved(t *testing.T) {
	t.Parallel()
	const flows, rest = 100_000, 500
	c := newCluster(t, 2, multicast6, "[events]\nbuffer = \"256k\"\nbuffer_max = \"256k\"")
	c.fill(0, 0, flows+rest)
	c.counted(1, flows+rest, 30*time.Second, "before")
	overruns := c.fws[0].Stats().Events.Overruns

	ended := make(chan error, 1)
	go func() {
		for n := range flows {
			if err := c.kernels[0].Delete(numbered(n)); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	// Three quarters of the time the receiver stands still, for six seconds; the
	// sender does so for a moment, to lose events.
	for turn := range 15 {
		c.fws[1].Freeze()
		if turn == 1 {
			c.fws[0].Freeze()
		}
		time.Sleep(300 * time.Millisecond)
		if turn == 1 {
			c.fws[0].Thaw()
		}
		c.fws[1].Thaw()
		time.Sleep(100 * time.Millisecond)
	}
	ok(t, <-ended)
	c.counted(1, rest, 10*time.Second, "after the end of all others")
	s := c.fws[0].Stats().Events
	t.Logf("%d overruns, %d flows found by dumps", s.Overruns-overruns, s.Repaired)
	if s.Overruns == overruns {
		t.Error("the event socket did not overflow: the test is worth less")
	}
	c.inStep(10 * time.Second)
	if n := c.fws[0].Status().Internal.Dead; n != 0 {
		t.Errorf("%d deletions still wait to be acknowledged", n)
	}
	c.verified()
	c.clean()
}

// Datagrams are lost both ways while both nodes are busy; seconds after the last
// loss all are equal, and during it nothing but "not in step" is claimed wrongly.
func TestSealedLoss(t *testing.T) {
	for _, tt := range []struct {
		percent int
		tr      transport
	}{{5, udp6}, {30, multicast4}} {
		t.Run(fmt.Sprintf("%d percent", tt.percent), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, tt.tr, "")
			loss := lab.Loss{Interface: "sync0", UDPPort: port, Percent: tt.percent}
			ok(t, c.nodes[0].SetLoss(loss), c.nodes[1].SetLoss(loss))
			var both errgroup.Group
			both.Go(func() error { return churn(t, c.kernels[0], 0, 400, 20*time.Second) })
			both.Go(func() error { return churn(t, c.kernels[1], 20000, 200, 20*time.Second) })
			ok(t, both.Wait())
			ok(t, c.nodes[0].SetLoss(), c.nodes[1].SetLoss())
			c.equal(10*time.Second, "after the loss")
			c.inStep(10 * time.Second)
			for _, f := range c.fws {
				s := f.Stats().Sync
				t.Logf("%s: %d messages missed, %d resent, %d digests differed", f.node.Name(), s.Lost, s.Resent, s.DigestsDiffered)
				if s.Lost == 0 || s.Resent == 0 {
					t.Errorf("%s: %d messages did not come, %d were sent again", f.node.Name(), s.Lost, s.Resent)
				}
			}
			c.verified()
			c.clean()
		})
	}
}

// What a receiver has lost without noticing is found by the digests, and comes
// back without anybody's help.
func TestDigestFindsDivergence(t *testing.T) {
	t.Parallel()
	const flows = 5000
	c := newCluster(t, 2, udp4, "")
	create(t, c.kernels[0], 0, flows)
	create(t, c.kernels[1], 20000, 20500)
	c.equal(5*time.Second, "before")
	c.inStep(5 * time.Second)
	before := c.fws[1].Stats().Sync
	if before.DigestsAgreed == 0 || before.DigestsDiffered != 0 {
		t.Errorf("before: %d digests agreed, %d differed", before.DigestsAgreed, before.DigestsDiffered)
	}

	c.fws[1].Flush(ctl.External)
	c.equal(5*time.Second, "after a flush of the external cache")
	c.inStep(5 * time.Second)
	after := c.fws[1].Stats().Sync
	t.Logf("%d digests differed, %d buckets repaired", after.DigestsDiffered-before.DigestsDiffered, after.Repaired-before.Repaired)
	if after.DigestsDiffered == before.DigestsDiffered {
		t.Error("no digest has differed")
	}
	c.verified()

	// The same seen by verify itself: it says what was missing, and repairs it.
	c.fws[1].Flush(ctl.External)
	r, err := c.fws[1].ctl.Verify(context.Background())
	ok(t, err)
	if len(r.Peers) != 1 || r.OK || r.Peers[0].Missing != flows || !r.Peers[0].Proven || r.Peers[0].Stale != 0 || len(r.Entries) == 0 {
		t.Errorf("verify after a flush: %+v", r)
	}
	c.verified()

	// A flush of the internal cache, and what brings it back.
	c.fws[0].Flush(ctl.Internal)
	_, err = c.fws[0].ctl.Resync(context.Background(), true)
	ok(t, err)
	c.equal(5*time.Second, "after a flush of the internal cache")
	c.inStep(5 * time.Second)
	c.verified()
}

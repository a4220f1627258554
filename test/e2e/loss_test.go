package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"syncd/internal/lab"
)

// Datagrams are lost both ways while flows come, change and go; some seconds after
// the last loss both sides are equal.
func TestLoss(t *testing.T) {
	for _, r := range allRoles {
		for _, percent := range []int{5, 30} {
			t.Run(fmt.Sprintf("%s/%d percent", r, percent), func(t *testing.T) {
				t.Parallel()
				testLoss(t, r, percent)
			})
		}
	}
}

func testLoss(t *testing.T, r roles, percent int) {
	tr := udp4
	if percent == 30 {
		tr = multicast6
	}
	d := newDuo(t, r, tr, duoOptions{tracking: true})
	loss := lab.Loss{Interface: "sync0", UDPPort: port, Percent: percent}
	ok(t, d.nA.SetLoss(loss), d.nB.SetLoss(loss))
	const otherFlows = 20000 // of the other node, which is busy as well
	var both errgroup.Group
	both.Go(func() error { return churn(t, d.kA, 0, 400, 20*time.Second) })
	both.Go(func() error { return churn(t, d.kB, otherFlows, 200, 20*time.Second) })
	ok(t, both.Wait())
	ok(t, d.nA.SetLoss(), d.nB.SetLoss())
	d.waitReplicated(15*time.Second, "after the loss")
	waitEqual(t, 15*time.Second, "after the loss, the other direction", d.a.External, d.kernelB, d.reverse())
	ok(t, d.kB.Flush())
	d.b.Commit()
	d.checkCommitted()
	for _, f := range []*firewall{d.a, d.b} {
		if f.real {
			continue
		}
		// Without losses the test would prove nothing.
		if s := f.Stats().Sync; s.Lost == 0 || s.Resent == 0 {
			t.Errorf("%s: %d messages did not come, %d were sent again", f.node.Name(), s.Lost, s.Resent)
		}
	}
}

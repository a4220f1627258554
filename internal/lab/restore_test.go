package lab_test

import (
	"testing"
	"time"

	"syncd/internal/lab/labtest"
)

// Entries copied from kernel to kernel before the takeover keep every connection
// alive: so the topology and the rules are right, and whatever dies in a test of
// the daemon is the daemon's.
func TestTakeOverWithStateCopiedByHand(t *testing.T) {
	t.Parallel()
	p := labtest.Pair(t)
	tr := startTraffic(t, p, 2)
	time.Sleep(10 * interval)
	if n, err := labtest.CopyFlows(p.FW1.FD(), p.FW2.FD()); err != nil || n < len(tr) {
		t.Fatalf("copied %d flows (%v), want %d", n, err, len(tr))
	}
	for _, c := range tr {
		c.ForgetGap()
	}
	if err := p.TakeOver(p.FW1, p.FW2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * grace)
	tr.check(t, allAlive)
	var longest time.Duration
	for _, c := range tr {
		longest = max(longest, c.Record().Gap)
	}
	t.Logf("%d connections, longest gap %v", len(tr), longest)
}

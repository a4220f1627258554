package e2e

import (
	"testing"
	"time"
)

// A pair of conntrackds becomes a pair of syncds, one node at a time, and all
// connections live through both failovers that this takes.
func TestMigration(t *testing.T) {
	t.Parallel()
	need(t, "conntrackd")
	p := newPair(t)
	old1 := newConntrackd(t, p.FW1, conntrackdConfig("", newLink(multicast4, 0, 1)))
	old2 := newConntrackd(t, p.FW2, conntrackdConfig("", newLink(multicast4, 0, 2)))
	old1.Primary()
	old2.Backup()
	live := openTraffic(t, p)
	through := passes(p)
	k1, k2 := openKernel(t, p.FW1), openKernel(t, p.FW2)

	// The backup first: it learns everything from the conntrackd in charge.
	old2.Stop()
	new2 := newSyncd(t, p.FW2, syncdConfig("", newLink(multicast4, 0, 2)))
	new2.Backup()
	waitEqual(t, 10*time.Second, "syncd beside conntrackd", func() table { return new2.External().only(through) },
		func() table { return kernelTable(t, k1, through) }, form{})
	live.check(t, "before the failover")
	live.forgetGaps()
	new2.Primary()
	ok(t, p.Move(p.FW1, p.FW2))
	old1.Backup()
	time.Sleep(2 * grace)
	live.check(t, "on syncd")

	// Then the other one.
	old1.Stop()
	new1 := newSyncd(t, p.FW1, syncdConfig("", newLink(multicast4, 0, 1)))
	new1.Backup()
	waitEqual(t, 10*time.Second, "syncd beside syncd", func() table { return new1.External().only(through) },
		func() table { return kernelTable(t, k2, through) }, form{})
	live.forgetGaps()
	new1.Primary()
	ok(t, p.Move(p.FW2, p.FW1))
	new2.Backup()
	time.Sleep(2 * grace)
	live.check(t, "on the other syncd")
	for _, f := range []*firewall{new1, new2} {
		if bad := f.Malformed(); len(bad) > 0 {
			t.Errorf("%s found messages malformed: %v", f.node.Name(), bad)
		}
	}
}

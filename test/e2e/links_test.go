package e2e

import (
	"testing"
	"time"
)

// The first link goes down, the second one takes over, and nothing is lost.
func TestLinkTakesOver(t *testing.T) {
	for _, tr := range transports {
		for _, r := range allRoles {
			t.Run(tr.name+"/"+r.String(), func(t *testing.T) {
				t.Parallel()
				d := newDuo(t, r, tr, duoOptions{links: 2})
				create(t, d.kA, 0, 500)
				d.waitReplicated(10*time.Second, "over the first link")
				ok(t, d.nA.SetLink("sync0", false))
				create(t, d.kA, 500, 1000)
				destroy(t, d.kA, 0, 250)
				d.waitReplicated(10*time.Second, "over the second link")
				for _, f := range []*firewall{d.a, d.b} {
					// The far end hears of the lost carrier within a second or so.
					waitFor(t, 4*time.Second, f.node.Name()+" sends on the second link", func() bool {
						if f.real {
							return true
						}
						links := f.Status().Links
						return !links[0].Active && !links[0].Up && links[1].Active && links[1].Up
					})
				}
				// The other way over the second link, too.
				create(t, d.kB, 1000, 1100)
				waitEqual(t, 10*time.Second, "the other direction", d.a.External, d.kernelB, d.reverse())

				// The first link comes back, then the second one goes.
				ok(t, d.nA.SetLink("sync0", true), d.nA.Settle())
				destroy(t, d.kA, 250, 500)
				d.waitReplicated(10*time.Second, "with both links")
				ok(t, d.nA.SetLink("sync1", false))
				create(t, d.kA, 1100, 1500)
				d.waitReplicated(10*time.Second, "over the first link again")
			})
		}
	}
}

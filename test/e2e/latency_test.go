package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A change arrives at once, not with the next keep-alive a second later.
func TestLatency(t *testing.T) {
	for _, r := range allRoles {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			const changes = 15
			d := newDuo(t, r, udp4, duoOptions{})
			create(t, d.kA, 0, 1)
			d.waitReplicated(10*time.Second, "the first flow")
			var took []time.Duration
			for n := 1; n <= changes; n++ {
				time.Sleep(60 * time.Millisecond)
				f := numbered(n)
				begin := time.Now()
				create(t, d.kA, n, n+1)
				waitFor(t, 5*time.Second, fmt.Sprintf("flow %d is there", n), func() bool {
					_, there := d.external()[kernelTuple(&f)]
					return there
				})
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			t.Logf("until a flow can be seen at the peer, asking included: median %v, longest %v", took[changes/2], took[changes-1])
			if median := took[changes/2]; median > 200*time.Millisecond {
				t.Errorf("half of the changes took longer than %v", median)
			}
		})
	}
}

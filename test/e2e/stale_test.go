package e2e

import (
	"fmt"
	"testing"
	"time"

	"syncd/internal/lab"
)

// The daemon of the primary dies, the other node takes over; the daemon starts again,
// and is told its role or not; then the first node takes over again. What it finds in
// its kernel is from its first time in charge, with the windows of then.
func TestRestartAroundTakeover(t *testing.T) {
	for _, way := range []string{"instant", "commit"} {
		for _, told := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, told %v", way, told), func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				ok(t, p.LoadRules(p.Rules()))
				through := passes(p)
				d := &duo{t: t}
				d.opts.syncd = fmt.Sprintf("[takeover]\nmode = %q\n", way)
				start := func(n *lab.Node, number int) *firewall {
					return newSyncd(t, n, d.sealedConfig(newLink(udp4, 0, number)))
				}
				fw1, fw2 := start(p.FW1, 1), start(p.FW2, 2)
				k1 := openKernel(t, p.FW1)
				fw1.Primary()
				fw2.Backup()
				live := openTraffic(t, p)
				all := kernelTable(t, k1, through)
				waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return fw2.External().missing(all) == "" })
				fw1.Kill()
				ok(t, p.Move(p.FW1, p.FW2))
				fw2.Primary()
				time.Sleep(grace)
				live.check(t, "on the second")
				fw1.Start()
				if told {
					fw1.Backup()
				}
				time.Sleep(4 * time.Second)
				live.forgetGaps()
				ok(t, p.Move(p.FW2, p.FW1))
				fw1.Primary()
				fw2.Backup()
				time.Sleep(2 * grace)
				live.check(t, "back on the first")
			})
		}
	}
}

package e2e

import (
	"fmt"
	"testing"
	"time"

	"syncd/internal/ctl"
)

// Either side restarts, and what began and ended meanwhile is known afterwards.
func TestRestart(t *testing.T) {
	for _, r := range allRoles {
		for _, how := range []string{"stopped", "killed"} {
			for _, who := range []string{"sender", "receiver"} {
				t.Run(fmt.Sprintf("%s/%s %s", r, who, how), func(t *testing.T) {
					t.Parallel()
					testRestart(t, r, who == "sender", how == "killed")
				})
			}
		}
	}
}

func testRestart(t *testing.T, r roles, sender, kill bool) {
	const flows, change = 1000, 300
	d := newDuo(t, r, udp4, duoOptions{})
	create(t, d.kA, 0, flows)
	d.waitReplicated(10*time.Second, "before the restart")

	who := d.b
	if sender {
		who = d.a
	}
	if kill {
		who.Kill()
	} else {
		who.Stop()
	}
	destroy(t, d.kA, 0, change)
	create(t, d.kA, flows, flows+change)
	time.Sleep(time.Second)
	who.Start()
	// New changes must not wait for the repair.
	destroy(t, d.kA, change, change+10)
	create(t, d.kA, flows+change, flows+change+10)

	if sender && r.receiver == theirs {
		// Nobody can tell a conntrackd that does not ask what is gone, when he who
		// knew has lost his memory: it misses nothing, but keeps what ended
		// meanwhile until its external cache is flushed.
		ended := map[tuple]bool{}
		for n := range change {
			f := numbered(n)
			ended[kernelTuple(&f)] = true
		}
		waitEqual(t, 10*time.Second, "all but what ended meanwhile", func() table {
			return d.external().only(func(k tuple) bool { return !ended[k] })
		}, d.kernelA, d.form())
		d.b.Flush(ctl.External)
		d.b.Resync()
		d.waitReplicated(10*time.Second, "after a flush of the external cache")
		return
	}
	// A receiver of ours removes what its peer does not confirm 10 s after the
	// bulk update.
	d.waitReplicated(25*time.Second, "after the restart")
	d.b.Commit()
	d.checkCommitted()
}

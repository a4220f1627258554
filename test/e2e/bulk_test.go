package e2e

import (
	"fmt"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// Flows that are older than the daemons arrive without being asked for, and again
// when either side asks.
func TestBulk(t *testing.T) {
	for _, tr := range transports {
		for _, r := range allRoles {
			for _, senderFirst := range []bool{true, false} {
				if senderFirst && tr != udp4 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/sender first %v", tr.name, r, senderFirst), func(t *testing.T) {
					t.Parallel()
					testBulk(t, r, tr, senderFirst)
				})
			}
		}
	}
}

func testBulk(t *testing.T, r roles, tr transport, senderFirst bool) {
	const flows = 1500
	d := layDuo(t, r, tr, duoOptions{})
	create(t, d.kA, 0, flows)
	if senderFirst {
		d.startA()
		d.startB()
	} else {
		d.startB()
		d.startA()
	}
	if r.receiver == theirs && !senderFirst {
		t.Log("the conntrackd asked at its start, when nobody was there; our bulk update comes unasked")
	}
	d.waitReplicated(15*time.Second, "at the start")

	d.b.Flush(ctl.External)
	d.a.Bulk()
	d.waitReplicated(10*time.Second, "bulk update sent on command")

	d.b.Flush(ctl.External)
	d.b.Resync()
	d.waitReplicated(10*time.Second, "bulk update asked for on command")

	d.b.Commit()
	d.checkCommitted()
	ok(t, d.kB.Flush())

	// The other direction works as well.
	create(t, d.kB, flows, 2*flows)
	waitEqual(t, 10*time.Second, "the other direction", d.a.External, d.kernelB, d.reverse())
	d.a.Flush(ctl.External)
	d.a.Resync()
	waitEqual(t, 10*time.Second, "the other direction, asked for", d.a.External, d.kernelB, d.reverse())
	d.a.Flush(ctl.External)
	d.b.Bulk()
	waitEqual(t, 10*time.Second, "the other direction, sent", d.a.External, d.kernelB, d.reverse())
}

// Many flows that are older than the daemons arrive over a bad link, beside live
// changes.
func TestLargeBulk(t *testing.T) {
	for _, r := range allRoles {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			const flows = 12000
			d := layDuo(t, r, multicast4, duoOptions{})
			create(t, d.kA, 0, flows)
			loss := lab.Loss{Interface: "sync0", UDPPort: port, Percent: 3}
			ok(t, d.nA.SetLoss(loss), d.nB.SetLoss(loss))
			d.startA()
			d.startB()
			for n := 0; n < 1000; n += 100 {
				destroy(t, d.kA, n, n+100)
				create(t, d.kA, flows+n, flows+n+100)
				time.Sleep(50 * time.Millisecond)
			}
			d.waitReplicated(30*time.Second, "with losses")
			d.b.Commit()
			d.checkCommitted()
		})
	}
}

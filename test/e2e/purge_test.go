package e2e

import (
	"testing"
	"time"
)

// A node that became backup removes its old flows from its kernel after a while,
// which is not the end of these flows anywhere else; and it takes them over again
// when its turn comes.
func TestPurge(t *testing.T) {
	for _, r := range allRoles {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			const flows = 800
			d := newDuo(t, r, udp4, duoOptions{syncd: "[purge]\nafter = \"2s\"", mode: "PurgeTimeout 2"})
			d.a.Primary()
			d.b.Backup()
			create(t, d.kA, 0, flows)
			all := d.kernelA()
			d.waitReplicated(10*time.Second, "before")

			d.b.Primary()
			d.a.Backup()
			checkKernel(t, d.kernelB(), all, "the new primary")
			waitFor(t, 10*time.Second, "the old primary has purged", func() bool { return len(d.kernelA()) == 0 })
			checkKernel(t, d.kernelB(), all, "the new primary after the purge")
			waitEqual(t, 10*time.Second, "what the old primary knows", d.a.External, d.kernelB, form{})

			// Some end while the other one is in charge.
			destroy(t, d.kB, 0, 100)
			waitEqual(t, 10*time.Second, "what the old primary knows of the end of some", d.a.External, d.kernelB, form{})
			all = d.kernelB()
			d.a.Primary()
			d.b.Backup()
			checkKernel(t, d.kernelA(), all, "the old primary, primary again")
			waitFor(t, 10*time.Second, "the other one has purged", func() bool { return len(d.kernelB()) == 0 })
			time.Sleep(time.Second) // the time that a wrong deletion would take
			checkKernel(t, d.kernelA(), all, "the old primary after the purge")
			waitEqual(t, 20*time.Second, "what the other one knows", d.b.External, d.kernelA, form{})
		})
	}
}

func checkKernel(t testing.TB, got, want table, what string) {
	t.Helper()
	if d := diff(got, want, form{}); d != "" {
		t.Errorf("the kernel of %s:\n%s", what, d)
	}
}

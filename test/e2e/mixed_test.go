package e2e

import (
	"fmt"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

// The first node commits, the second one may take over at once, and the first is put in
// charge again while it still has what it had before. It is the node told to step back
// that is told first: it must not give up what the other one has from its own time.
func TestMixedTakeovers(t *testing.T) {
	for _, second := range []string{"commit", "instant"} {
		t.Run(second, func(t *testing.T) {
			p, err := lab.FirewallPair(newLab(t))
			ok(t, err)
			ok(t, p.LoadRules(p.Rules()))
			through := passes(p)
			d := &duo{t: t}
			start := func(n *lab.Node, number int, mode string) *firewall {
				d.opts.syncd = fmt.Sprintf("[purge]\nafter = \"20s\"\n[takeover]\nmode = %q\n", mode)
				return newSyncd(t, n, d.sealedConfig(newLink(udp4, 0, number)))
			}
			fw1, fw2 := start(p.FW1, 1, "commit"), start(p.FW2, 2, second)
			k1 := openKernel(t, p.FW1)
			fw1.Primary()
			fw2.Backup()
			live := openTraffic(t, p)
			openIdle(t, p)
			all := kernelTable(t, k1, through)
			waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return fw2.External().missing(all) == "" })
			live.forgetGaps()
			ok(t, p.Move(p.FW1, p.FW2))
			fw2.Primary()
			fw1.Backup()
			time.Sleep(5 * time.Second)
			live.check(t, "on the second")
			live.forgetGaps()
			fw2.Backup()
			time.Sleep(time.Second)
			ok(t, p.Move(p.FW2, p.FW1))
			fw1.Primary()
			time.Sleep(3 * time.Second)
			live.check(t, "back on the first")
			time.Sleep(25 * time.Second) // the purge
			tcp := func(k tuple) bool { return through(k) && k.proto == flow.TCP }
			if lacks := kernelTable(t, k1, tcp).missing(all.only(tcp)); lacks != "" {
				t.Errorf("after the purge the first kernel has lost:\n%s", lacks)
			}
			live.check(t, "in the end")
		})
	}
}

// Nodes tell each other their roles, and those that stand by keep what both have, until
// one of them is put in charge.
func TestRolesOfPeers(t *testing.T) {
	const n = 2000
	d := layDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: true, syncd: instant + "[purge]\nafter = \"4s\"\n"})
	d.startA()
	d.startB()
	says := func(fw *firewall, want string) {
		t.Helper()
		waitFor(t, 5*time.Second, "a peer says that it is "+want, func() bool {
			peers := fw.Status().Peers
			return len(peers) == 1 && peers[0].Role == want
		})
	}
	says(d.a, "")
	d.a.Primary()
	says(d.b, ctl.RolePrimary)
	d.b.Backup()
	says(d.a, ctl.RoleBackup)
	create(t, d.kA, 0, n)
	waitEqual(t, 10*time.Second, "parked", d.kernelB, d.kernelA, d.form())
	d.b.Primary() // both are
	waitFor(t, 10*time.Second, "taken over", func() bool { return len(d.b.Internal().only(isTestFlow)) == n })
	waitFor(t, 10*time.Second, "told", func() bool { return len(d.a.External().only(isTestFlow)) == n })
	done := make(chan error, 1)
	go func() {
		_, err := d.a.ctl.SetRole(t.Context(), ctl.RoleFault, nil)
		done <- err
	}()
	d.b.Backup()
	ok(t, <-done)
	says(d.a, ctl.RoleBackup)
	says(d.b, ctl.RoleFault)
	time.Sleep(6 * time.Second) // two passes of a purge
	for _, fw := range []*firewall{d.a, d.b} {
		if own := len(fw.Internal().only(isTestFlow)); own != n {
			t.Errorf("%s stands by and has %d of %d flows", fw.node.Name(), own, n)
		}
	}
	d.b.Primary()
	says(d.a, ctl.RolePrimary)
	waitFor(t, 10*time.Second, "the other one has yielded", func() bool { return len(d.a.Internal().only(isTestFlow)) == 0 })
	if own := len(d.b.Internal().only(isTestFlow)); own != n {
		t.Errorf("the primary has %d of %d flows", own, n)
	}
}

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
	"syncd/internal/lab/keepalived"
)

// shippedKeepalived is the example that operators start from. The tests run it,
// with nothing but names and addresses replaced.
const shippedKeepalived = "../../deploy/keepalived/keepalived.conf"

// vrrp is a real keepalived beside the syncd of a firewall.
type vrrp struct {
	t testing.TB
	*keepalived.Daemon
}

// newKeepalived writes the configuration of firewall 1 or 2 of a pair.
func newKeepalived(t testing.TB, fw *firewall, number int, syncd, dir string) *vrrp {
	t.Helper()
	shipped, err := os.ReadFile(shippedKeepalived)
	ok(t, err)
	config, err := keepalived.Config(string(shipped), fw.node, number, syncd+" ctl --socket "+fw.socket)
	ok(t, err)
	d, err := keepalived.New(fw.node, dir, config)
	ok(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(d.Log)
			t.Logf("the log of keepalived on %s:\n%s", fw.node.Name(), tail(string(b), 80))
		}
	})
	return &vrrp{t, d}
}

// Replace changes the configuration for the next start.
func (k *vrrp) Replace(old, with string) {
	k.t.Helper()
	b, err := os.ReadFile(k.Conf)
	ok(k.t, err)
	if !strings.Contains(string(b), old) {
		k.t.Fatalf("the configuration does not say %q", old)
	}
	ok(k.t, os.WriteFile(k.Conf, []byte(strings.ReplaceAll(string(b), old, with)), 0o600))
}

func (k *vrrp) Start() { k.t.Helper(); ok(k.t, k.Daemon.Start()) }
func (k *vrrp) Stop()  { k.t.Helper(); ok(k.t, k.Daemon.Stop()) }

// settle waits until every connection speaks again, and returns the longest gap
// since the last call.
func (tr traffic) settle(t testing.TB, patience time.Duration) (longest time.Duration, whose string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for name, c := range tr {
		for {
			r := c.Record()
			if r.Err != nil {
				t.Errorf("%s died: %v", name, r.Err)
				break
			}
			if r.Overdue < 4*interval {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s is silent for %v", name, r.Overdue)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for name, c := range tr {
		if r := c.Record(); r.Gap > longest {
			longest, whose = r.Gap, name
		}
	}
	tr.forgetGaps()
	if t.Failed() {
		t.FailNow()
	}
	return longest, whose
}

// A pair that is driven by keepalived alone, as deploy/keepalived/keepalived.conf
// has it: every way in which the addresses move keeps every connection.
func TestKeepalived(t *testing.T) {
	need(t, "keepalived")
	for _, mode := range []string{"commit", "instant"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			testKeepalived(t, mode)
		})
	}
}

func testKeepalived(t *testing.T, mode string) {
	l := newLab(t)
	p, err := lab.FirewallPair(l)
	ok(t, err)
	rules := p.Rules()
	rules.VRRP = true
	ok(t, p.LoadRules(rules))
	ok(t, keepalived.Release(p))

	// What scripts run must not be below a folder that others may write to.
	dir, err := l.Dir()
	ok(t, err)
	syncd := filepath.Join(dir, "syncd")
	program, err := os.ReadFile(bin)
	ok(t, err)
	ok(t, os.WriteFile(syncd, program, 0o700))

	// The purge is quick, so that no fail-back lives on what the first term as
	// primary has left in the kernel.
	extra := fmt.Sprintf("[purge]\nafter = \"2s\"\n[takeover]\nmode = %q", mode)
	fw1 := newSyncd(t, p.FW1, syncdConfig(extra, newLink(udp4, 0, 1)))
	fw2 := newSyncd(t, p.FW2, syncdConfig(extra, newLink(udp4, 0, 2)))
	ka1, ka2 := newKeepalived(t, fw1, 1, syncd, dir), newKeepalived(t, fw2, 2, syncd, dir)

	roles := func(what, want1, want2 string) {
		t.Helper()
		begin := time.Now()
		waitFor(t, 15*time.Second, fmt.Sprintf("%s: fw1 is %s, fw2 is %s", what, want1, want2), func() bool {
			return fw1.Status().Role == want1 && fw2.Status().Role == want2
		})
		t.Logf("%s: fw1 is %s, fw2 is %s after %v", what, want1, want2, time.Since(begin).Round(time.Millisecond))
	}
	// inStep waits until a takeover by to would lose nothing.
	inStep := func(from, to *firewall) {
		t.Helper()
		waitFor(t, 20*time.Second, "the external cache of "+to.node.Name()+" has what "+from.node.Name()+" carries", func() bool {
			have := to.External()
			for k := range from.Internal() {
				if _, there := have[k]; !there {
					return false
				}
			}
			return len(have) > 0
		})
	}

	// One after the other: who starts first is master, and stays so.
	ka1.Start()
	waitFor(t, 15*time.Second, "fw1 is primary", func() bool { return fw1.Status().Role == ctl.RolePrimary })
	ka2.Start()
	roles("start", ctl.RolePrimary, ctl.RoleBackup)
	tr := openTraffic(t, p)
	tr.settle(t, 5*time.Second)

	after := func(what string, atMost time.Duration) {
		t.Helper()
		gap, whose := tr.settle(t, 30*time.Second)
		t.Logf("%s: %d connections live; longest gap %v (%s)", what, len(tr), gap.Round(time.Millisecond), whose)
		if gap > atMost {
			t.Errorf("%s: a gap of %v", what, gap)
		}
	}
	// emptied waits until the old primary's kernel has nothing of the pair's
	// connections: they live on the other node alone.
	emptied := func(fw *firewall) {
		t.Helper()
		if mode == "instant" { // what it has it keeps for the other
			k := openKernel(t, fw.node)
			waitFor(t, 10*time.Second, fw.node.Name()+" has nothing of its own", func() bool {
				parked, others := parkedOf(t, &instantNode{fw, k}, passes(p))
				return len(parked) > 0 && len(others) == 0 && len(fw.Internal()) == 0
			})
			return
		}
		waitFor(t, 10*time.Second, fw.node.Name()+" has purged its kernel", func() bool {
			return strings.Contains(fw.Log(), "purged the kernel's flows") && len(fw.Internal()) == 0
		})
	}

	inStep(fw1, fw2)
	ka1.Stop()
	roles("keepalived stopped on the master", ctl.RoleBackup, ctl.RolePrimary)
	after("keepalived stopped on the master", 5*time.Second)

	ka1.Start()
	inStep(fw2, fw1)
	emptied(fw1)
	// It comes back as a backup and stays one. There is nothing to wait for but
	// time: three advertisements and more.
	time.Sleep(4 * time.Second)
	roles("keepalived back on fw1", ctl.RoleBackup, ctl.RolePrimary)
	after("keepalived back on fw1", time.Second)

	ka2.Stop()
	roles("fail-back", ctl.RolePrimary, ctl.RoleBackup)
	after("fail-back", 5*time.Second)
	ka2.Start()
	inStep(fw1, fw2)
	emptied(fw2)

	ok(t, p.FW1.Unplug())
	roles("all cables of the master pulled", ctl.RoleFault, ctl.RolePrimary)
	after("all cables of the master pulled", 15*time.Second)
	ok(t, p.FW1.Replug())
	time.Sleep(2 * time.Second)
	roles("cables back", ctl.RoleBackup, ctl.RolePrimary)
	inStep(fw2, fw1)
	after("cables back", time.Second)

	// The other way of the documentation: the addresses return to the node with
	// the higher priority.
	ka1.Stop()
	ka1.Replace("nopreempt", "preempt_delay 2")
	ka1.Start()
	roles("by priority", ctl.RolePrimary, ctl.RoleBackup)
	after("by priority", 5*time.Second)

	ka1.Stop()
	ka2.Stop()
	for _, fw := range []*firewall{fw1, fw2} {
		if r := fw.Status().LastCommit; r == nil || r.Flows.Refused != 0 {
			t.Errorf("the last commit of %s: %+v", fw.node.Name(), r)
		}
	}
}

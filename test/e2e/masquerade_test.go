package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

// keeper is a pair of firewalls with live traffic whose first one is a syncd.
type keeper struct {
	*lab.Pair
	instant  bool
	fw1, fw2 *firewall
	in1, in2 func() table // the kernels
	through  func(tuple) bool
}

// dialects are the ways in which a pair with a syncd in it can speak.
var dialects = []struct {
	name    string
	sealed  bool
	instant bool // takeover
	second  daemonKind
}{
	{"sealed", true, false, ours},
	{"conntrackd's dialect", false, false, ours},
	{"beside conntrackd", false, false, theirs},
	{"sealed, instant", true, true, ours},
	{"conntrackd's dialect, instant", false, true, ours},
	{"instant beside conntrackd", false, true, theirs},
}

// layKeeper builds a pair, masqueraded or with plain source NAT.
func layKeeper(t *testing.T, sealed, instant bool, second daemonKind, masquerade bool, after time.Duration) *keeper {
	t.Helper()
	p, err := lab.FirewallPair(newLab(t))
	ok(t, err)
	rules := p.Rules()
	if masquerade {
		rules, err = p.Masquerade()
		ok(t, err)
	}
	ok(t, p.LoadRules(rules))
	k := &keeper{Pair: p, instant: instant, through: passes(p)}
	more := fmt.Sprintf("[purge]\nafter = %q", after)
	if instant {
		more += "\n[takeover]\nmode = \"instant\""
	}
	d := &duo{t: t, opts: duoOptions{syncd: more}}
	start := func(kind daemonKind, n *lab.Node, number int) *firewall {
		l := newLink(udp4, 0, number)
		switch {
		case kind == theirs:
			return newConntrackd(t, n, conntrackdConfigMode(fmt.Sprintf("StartupResync on\nPurgeTimeout %.0f", after.Seconds()), "TCPWindowTracking off", l))
		case sealed:
			return newSyncd(t, n, d.sealedConfig(l))
		}
		return newSyncd(t, n, syncdConfig(more, l))
	}
	k.fw1, k.fw2 = start(ours, p.FW1, 1), start(second, p.FW2, 2)
	k1, k2 := openKernel(t, p.FW1), openKernel(t, p.FW2)
	k.in1 = func() table { return kernelTable(t, k1, k.through) }
	k.in2 = func() table { return kernelTable(t, k2, k.through) }
	// What ends on the second node is to be gone soon, but UDP must outlive a move.
	for _, s := range []string{"time_wait", "close", "last_ack", "fin_wait", "close_wait"} {
		ok(t, p.FW2.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_"+s, "2"))
	}
	for _, s := range []string{"udp_timeout", "udp_timeout_stream"} {
		ok(t, p.FW2.Sysctl("net.netfilter.nf_conntrack_"+s, "10"))
	}
	return k
}

// missing says which flows of want a table does not have.
func (t table) missing(want table) string {
	var lacks []string
	for k := range want {
		if _, there := t[k]; !there {
			lacks = append(lacks, k.String())
		}
	}
	return strings.Join(lacks, "\n")
}

// The address moves first, as with keepalived, and only then the daemons learn of
// their roles. What the first firewall masqueraded with the address ends in its kernel
// at that moment, and lives on the other one; with source NAT it stays, and goes with
// the purge. In the end the address comes back, and what has ended meanwhile is
// nowhere.
func TestMasquerade(t *testing.T) {
	for _, d := range dialects {
		for _, masquerade := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/masquerade %v", d.name, masquerade), func(t *testing.T) {
				t.Parallel()
				testMasquerade(t, layKeeper(t, d.sealed, d.instant, d.second, masquerade, 4*time.Second), masquerade)
			})
		}
	}
}

func testMasquerade(t *testing.T, k *keeper, masquerade bool) {
	k.fw1.Primary()
	k.fw2.Backup()
	live, some := openTraffic(t, k.Pair), openMore(t, k.Pair)
	time.Sleep(time.Second)
	all := k.in1()
	waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
	live.forgetGaps()
	some.forgetGaps()

	ok(t, k.Move(k.FW1, k.FW2))
	hidden := table{}
	for key, e := range all {
		if key.src == k.V4.Hidden || key.src == k.V6.Hidden {
			hidden[key] = e
		}
	}
	if len(hidden) != 12 {
		t.Fatalf("%d flows are hidden, want 12", len(hidden))
	}
	if masquerade && !k.instant { // which parks again what it has lost
		waitFor(t, 10*time.Second, "the first kernel has lost what is hidden", func() bool {
			return strings.Count(k.in1().missing(hidden)+"\n", "\n") == len(hidden)
		})
	}
	time.Sleep(500 * time.Millisecond) // more than the limbo
	if lacks := k.in1().missing(all); !masquerade && lacks != "" {
		t.Errorf("the first kernel has lost:\n%s", lacks)
	}
	known := k.fw2.External()
	if k.instant { // traffic passes there already
		maps.Copy(known, k.fw2.Internal())
	}
	if lacks := known.missing(all); lacks != "" {
		t.Errorf("after the address has moved, the new primary does not know any more:\n%s", lacks)
	}
	k.fw1.Backup()
	k.fw2.Primary()
	time.Sleep(2 * grace)
	live.check(t, "on the second firewall")
	some.check(t, "on the second firewall")
	behind := len(hidden)
	if k.instant { // the second one may have some before their end is told
		behind = 1
	}
	if n := int(k.fw1.Stats().Internal.LeftBehind); masquerade && n < behind || !masquerade && n != 0 {
		t.Errorf("%d flows were left behind, %d are hidden", n, len(hidden))
	}

	// Some end there, before the old primary has purged anything.
	var ended table
	before := k.in2()
	for name, c := range some {
		ok(t, c.Close())
		delete(some, name)
	}
	waitFor(t, 30*time.Second, "they have ended", func() bool {
		now := k.in2()
		ended = maps.Clone(before)
		maps.DeleteFunc(ended, func(key tuple, _ entry) bool { _, there := now[key]; return there })
		return len(ended) == 8
	})
	time.Sleep(time.Second)
	live.check(t, "before the return")

	live.forgetGaps()
	ok(t, k.Move(k.FW2, k.FW1))
	time.Sleep(500 * time.Millisecond)
	k.fw1.Primary()
	k.fw2.Backup()
	time.Sleep(2 * grace)
	live.check(t, "back on the first firewall")

	zombies := func(tab table) bool {
		for key := range ended {
			if _, there := tab[key]; there {
				return true
			}
		}
		return false
	}
	waitFor(t, 20*time.Second, "what ended elsewhere is nowhere", func() bool {
		return !zombies(k.in1()) && !zombies(k.in2()) && !zombies(k.fw1.Internal()) && !zombies(k.fw1.External())
	})
	switch {
	case k.instant: // what lives waits there
	case k.fw2.real:
		// It flushes its kernel without a word, and keeps what it has of us.
		waitFor(t, 10*time.Second, "the conntrackd has purged", func() bool { return len(k.in2()) == 0 })
	default:
		waitFor(t, 20*time.Second, "the second firewall has purged", func() bool { return len(k.in2()) == 0 && !zombies(k.fw2.External()) })
	}
	time.Sleep(time.Second)
	live.check(t, "in the end")
	// The purges on both nodes were no end of what lives.
	mine := k.in1()
	waitFor(t, 10*time.Second, "the backup knows what lives", func() bool { return k.fw2.External().missing(mine) == "" })
}

// An interface that goes down takes its masqueraded flows with it, although the
// address stays.
func TestMasqueradeInterfaceDown(t *testing.T) {
	t.Parallel()
	k := layKeeper(t, true, false, ours, true, 4*time.Second)
	k.fw1.Primary()
	k.fw2.Backup()
	live := openTraffic(t, k.Pair)
	all := k.in1()
	waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
	live.forgetGaps()
	ok(t, k.FW1.SetLink(lab.IfOutside, false))
	waitFor(t, 5*time.Second, "the first kernel has lost flows", func() bool { return len(k.in1()) < len(all) })
	time.Sleep(time.Second)
	if lacks := k.fw2.External().missing(all); lacks != "" {
		t.Errorf("after the interface went down, the backup does not know any more:\n%s", lacks)
	}
	_, err := k.fw1.ctl.SetRole(t.Context(), ctl.RoleFault, nil)
	ok(t, err)
	ok(t, k.TakeOver(k.FW1, k.FW2))
	k.fw2.Primary()
	time.Sleep(2 * grace)
	live.check(t, "on the second firewall")
	if n := k.fw1.Stats().Internal.LeftBehind; n == 0 {
		t.Error("no flow was left behind")
	}
}

// An interface goes down and comes back before anybody takes over: what the kernel has
// lost is put back when the node is primary again.
func TestMasqueradeFlap(t *testing.T) {
	for _, d := range dialects[:2] {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			k := layKeeper(t, d.sealed, d.instant, d.second, true, 4*time.Second)
			k.fw1.Primary()
			k.fw2.Backup()
			live := openTraffic(t, k.Pair)
			all := k.in1()
			waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
			live.forgetGaps()
			ok(t, k.FW1.SetLink(lab.IfOutside, false))
			waitFor(t, 5*time.Second, "the first kernel has lost flows", func() bool { return len(k.in1()) < len(all) })
			_, err := k.fw1.ctl.SetRole(t.Context(), ctl.RoleFault, nil)
			ok(t, err)
			time.Sleep(time.Second)
			ok(t, k.FW1.SetLink(lab.IfOutside, true))
			ok(t, k.FW1.Settle())
			time.Sleep(500 * time.Millisecond)
			r, err := k.fw1.ctl.SetRole(t.Context(), ctl.RolePrimary, nil)
			ok(t, err)
			t.Logf("%+v", r.Steps)
			if lacks := k.in1().missing(all); lacks != "" {
				t.Errorf("the kernel has lost:\n%s", lacks)
			}
			time.Sleep(2 * grace)
			live.check(t, "primary again")
			mine := k.in1()
			waitFor(t, 10*time.Second, "the backup knows what lives", func() bool { return k.fw2.External().missing(mine) == "" })
		})
	}
}

// Where traffic passes the old primary all the same, its entries live through the
// purge; those that nobody uses go. The other node keeps all.
func TestPurgeInUse(t *testing.T) {
	for _, d := range dialects[:3] { // with instant takeover nothing is purged that lives
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			k := layKeeper(t, d.sealed, d.instant, d.second, false, 4*time.Second)
			k.fw1.Primary()
			k.fw2.Backup()
			live := openTraffic(t, k.Pair)
			used := k.in1()
			openIdle(t, k.Pair)
			all := k.in1()
			idle := maps.Clone(all)
			maps.DeleteFunc(idle, func(key tuple, _ entry) bool { _, live := used[key]; return live })
			if len(idle) != 8 {
				t.Fatalf("%d idle flows, want 8", len(idle))
			}
			waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
			k.fw2.Primary() // the addresses stay where they are
			k.fw1.Backup()
			waitFor(t, 20*time.Second, "the purge is over", func() bool { return strings.Contains(k.fw1.Log(), "purged the kernel's flows") })
			live.check(t, "after the purge")
			for what, tab := range map[string]table{"kernel": k.in1(), "internal cache": k.fw1.Internal()} {
				if lacks := tab.missing(used); lacks != "" {
					t.Errorf("the old primary's %s has lost, although they are in use:\n%s", what, lacks)
				}
				if n := len(idle) - strings.Count(tab.missing(idle)+"\n", "\n"); n != 0 {
					t.Errorf("the old primary's %s still has %d flows that nobody uses", what, n)
				}
			}
			time.Sleep(time.Second) // the time that a wrong deletion would take
			if lacks := k.in2().missing(all); lacks != "" {
				t.Errorf("the new primary's kernel has lost:\n%s", lacks)
			}
		})
	}
}

// openIdle opens some connections, beside those of openTraffic, on which nothing is said
// after a greeting.
func openIdle(t testing.TB, p *lab.Pair) {
	t.Helper()
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, network := range []string{"tcp", "udp"} {
			for _, src := range []netip.Addr{a.Plain, a.Hidden} {
				c, err := lab.Open(t.Context(), lab.Spec{From: p.Client, Network: network, Local: src,
					To: netip.AddrPortFrom(a.Server, lab.PortService), Interval: time.Hour})
				ok(t, err)
				t.Cleanup(func() { _ = c.Close() })
			}
		}
	}
}

// A node takes over again in the middle of its purge: what its peer still has gets its
// timeout back, idle or not, and what has ended there ends here, although it was here
// before.
func TestFailbackDuringPurge(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			const after = 8 * time.Second
			k := layKeeper(t, d.sealed, d.instant, d.second, false, after)
			k1, k2 := openKernel(t, k.FW1), openKernel(t, k.FW2)
			k.fw1.Primary()
			k.fw2.Backup()
			for _, a := range []lab.Addresses{k.V4, k.V6} {
				serve(t, k.Server, netip.AddrPortFrom(a.Server, lab.PortService))
			}
			openIdle(t, k.Pair)
			tcp := func(key tuple) bool { return k.through(key) && key.proto == flow.TCP }
			all := kernelTable(t, k1, tcp)
			if len(all) != 4 {
				t.Fatalf("%d idle TCP connections, want 4", len(all))
			}
			waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
			ok(t, k.Move(k.FW1, k.FW2))
			k.fw2.Primary()
			k.fw1.Backup()
			if !d.instant {
				waitFor(t, after*3/4, "the flows that the peer has have little time left", func() bool {
					for _, f := range kernelFlows(t, k1, tcp) {
						if f.Timeout > uint32(after/time.Second)/2 {
							return false
						}
					}
					return true
				})
				if lacks := kernelTable(t, k1, tcp).missing(all); lacks != "" {
					t.Errorf("gone already:\n%s", lacks)
				}
			}
			var ended tuple // one of them, on the peer
			for key, f := range kernelFlows(t, k2, tcp) {
				ended = key
				ok(t, k2.Delete(f))
				delete(all, key)
				break
			}
			time.Sleep(500 * time.Millisecond)
			ok(t, k.Move(k.FW2, k.FW1))
			k.fw1.Primary()
			k.fw2.Backup()
			check := func(when string) {
				t.Helper()
				have := kernelFlows(t, k1, tcp)
				for key := range all {
					if f, there := have[key]; !there || f.Timeout < 400000 {
						t.Errorf("%s: %v is there: %v, for %d s", when, key, there, f.Timeout)
					}
				}
			}
			check("primary again")
			waitFor(t, 2*after, "the zombie is gone", func() bool {
				_, inKernel := kernelTable(t, k1, tcp)[ended]
				_, inCache := k.fw1.Internal()[ended]
				_, atPeer := k.fw2.External()[ended]
				return !inKernel && !inCache && !atPeer
			})
			time.Sleep(after)
			check("after the purge")
		})
	}
}

// A node that becomes backup or faulty while nobody takes over loses nothing, however
// long that lasts: its kernel has the only copy.
func TestPurgeNobodyTookOver(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			k := layKeeper(t, d.sealed, d.instant, d.second, false, 2*time.Second)
			k.fw1.Primary()
			k.fw2.Backup()
			live := openTraffic(t, k.Pair)
			openIdle(t, k.Pair)
			all := k.in1()
			waitFor(t, 10*time.Second, "the backup knows the connections", func() bool { return k.fw2.External().missing(all) == "" })
			k.fw1.Backup()
			time.Sleep(6 * time.Second)
			check := func(when string) {
				for what, tab := range map[string]table{"kernel": k.in1(), "internal cache": k.fw1.Internal(), "peer": k.fw2.External()} {
					if lacks := tab.missing(all); lacks != "" {
						t.Errorf("%s, the %s has lost:\n%s", when, what, lacks)
					}
				}
			}
			check("after the time of a purge")
			k.fw1.Primary()
			time.Sleep(4 * time.Second)
			check("primary again")
			live.check(t, "primary again")
		})
	}
}

// With DisableExternalCache a conntrackd puts our flows into its kernel as they come,
// and takes out whose end we tell it.
func TestPurgeWithoutExternalCache(t *testing.T) {
	t.Parallel()
	const flows = 400
	d := newDuo(t, roles{ours, theirs}, udp4, duoOptions{syncd: "[purge]\nafter = \"2s\"", mode: "DisableExternalCache on"})
	d.a.Primary()
	d.b.Backup()
	create(t, d.kA, 0, flows)
	all := d.kernelA()
	waitEqual(t, 10*time.Second, "the kernel of the conntrackd", d.kernelB, d.kernelA, form{tuplesOnly: true})
	d.b.Primary()
	d.a.Backup()
	waitFor(t, 15*time.Second, "the old primary has purged", func() bool { return len(d.kernelA()) == 0 })
	time.Sleep(2 * time.Second) // the time that a wrong deletion would take
	if lacks := d.kernelB().missing(all); lacks != "" {
		t.Errorf("the purge has ended flows on the new primary:\n%s", lacks)
	}
}

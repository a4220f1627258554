package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

const instant = "[takeover]\nmode = \"instant\"\n"

// parkedOf returns the flows of a kernel that are parked, and those that are not.
func parkedOf(t testing.TB, f *instantNode, accept func(tuple) bool) (parked, others table) {
	t.Helper()
	parked, others = table{}, table{}
	for k, fl := range kernelFlows(t, f.kernel, accept) {
		if fl.Timeout > flow.ParkedAbove {
			parked[k] = entry{tuple: k}
		} else {
			others[k] = entry{tuple: k}
		}
	}
	return parked, others
}

// instantNode is a firewall of a pair with its kernel's table.
type instantNode struct {
	*firewall
	kernel *conntrack.Conn
}

// secondOurs are the pairs whose second node is a syncd.
var secondOurs = []struct {
	name   string
	first  daemonKind
	sealed bool
}{
	{"sealed", ours, true},
	{"conntrackd's dialect", ours, false},
	{"beside a real conntrackd", theirs, false},
}

// Connections live through a takeover in keepalived's order: the address moves first,
// and the script comes late or never. Mappings of UDP that the standby has not seen a
// packet of for longer than their timeout are among them. Then the old one returns,
// what it carried becomes what it keeps for the other, and it takes over again.
func TestInstantTakeover(t *testing.T) {
	for _, c := range secondOurs {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testInstantTakeover(t, c.first, c.sealed)
		})
	}
}

// brief are the timeouts of a pair on which mappings are soon older than they are, in
// seconds, by the names of their sysctls.
var brief = map[string]int{"udp_timeout": 4, "udp_timeout_stream": 5, "icmp_timeout": 5}

// layBrief builds a pair with such timeouts that lets everything pass from the inside, and
// starts its daemons. Both have the options, if they are syncds.
func layBrief(t *testing.T, first daemonKind, sealed bool, options string) (p *lab.Pair, fw1, fw2 *firewall) {
	t.Helper()
	p = newPair(t)
	rules := p.Rules()
	rules.Allow = nil // everything from the inside, ping too
	ok(t, p.LoadRules(rules))
	for _, n := range []*lab.Node{p.FW1, p.FW2} {
		for name, seconds := range brief {
			ok(t, n.Sysctl("net.netfilter.nf_conntrack_"+name, fmt.Sprint(seconds)))
		}
	}
	start := func(kind daemonKind, n *lab.Node, number int) *firewall {
		switch {
		case kind == theirs:
			return newConntrackd(t, n, conntrackdConfig("TCPWindowTracking off", newLink(udp4, 0, number)))
		case sealed:
			return newSyncd(t, n, "[sync]\ninsecure = true\n"+options+newLink(udp4, 0, number).toml())
		}
		return newSyncd(t, n, syncdConfig(options, newLink(udp4, 0, number)))
	}
	return p, start(first, p.FW1, 1), start(ours, p.FW2, 2)
}

// isPing accepts the flows of echo requests.
func isPing(k tuple) bool {
	return k.proto == flow.ICMP && k.dport == 8<<8 || k.proto == flow.ICMPv6 && k.dport == 128<<8
}

// pingAll pings the server from every address: four flows, always the same.
func pingAll(t testing.TB, p *lab.Pair) {
	t.Helper()
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, src := range []netip.Addr{a.Plain, a.Hidden} {
			ping(t, p.Client, src, a.Server)
		}
	}
}

// Mappings of UDP that are in use for longer than their timeout, of which no event has
// told anything since, are committed, and for the whole of their timeout.
func TestCommitOfOldMappings(t *testing.T) {
	for _, c := range secondOurs {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, fw1, fw2 := layBrief(t, c.first, c.sealed, "")
			fw1.Primary()
			fw2.Backup()
			live := openTraffic(t, p)
			k1, k2, through := openKernel(t, p.FW1), openKernel(t, p.FW2), passes(p)
			time.Sleep(7 * time.Second) // longer than any mapping lives that no packet passes
			pingAll(t, p)
			all := kernelTable(t, k1, through)
			waitFor(t, 5*time.Second, "the standby knows the connections", func() bool { return fw2.External().missing(all) == "" })
			live.forgetGaps()
			fw2.Primary()
			mapped := kernelFlows(t, k2, through)
			ok(t, p.TakeOver(p.FW1, p.FW2))
			udp, pings := 0, 0
			for k := range all {
				f, there := mapped[k]
				switch {
				case !there:
					t.Errorf("%v was not committed", k)
				case k.proto == flow.UDP:
					udp++
					if f.Timeout < uint32(brief["udp_timeout"])-1 {
						t.Errorf("%v has %d s left", k, f.Timeout)
					}
				case isPing(k):
					pings++
				}
			}
			if udp != 12 || pings != 4 {
				t.Errorf("%d mappings of UDP, %d pings", udp, pings)
			}
			pingAll(t, p)
			time.Sleep(2 * grace)
			live.check(t, "after the takeover")
			for k, f := range kernelFlows(t, k2, through) {
				if was, there := mapped[k]; (k.proto == flow.UDP || isPing(k)) && (!there || was.ID != f.ID) {
					t.Errorf("%v goes on by another entry", k)
				}
			}
		})
	}
}

func testInstantTakeover(t *testing.T, first daemonKind, sealed bool) {
	p, fw1, fw2 := layBrief(t, first, sealed, instant)
	fw1.Primary()
	fw2.Backup()
	live := openTraffic(t, p)
	k1, k2 := openKernel(t, p.FW1), openKernel(t, p.FW2)
	through := passes(p)
	waitEqual(t, 10*time.Second, "the standby's kernel has the connections", func() table { return kernelTable(t, k2, through) },
		func() table { return kernelTable(t, k1, through) }, form{})
	n1, n2 := &instantNode{fw1, k1}, &instantNode{fw2, k2}
	if parked, others := parkedOf(t, n2, through); len(parked) == 0 || len(others) > 0 {
		t.Fatalf("%d parked entries, others: %v", len(parked), others)
	}
	// The standby does not take them for its own.
	if own := fw2.Internal().only(through); len(own) > 0 {
		t.Errorf("the standby has %d flows of its own: %v", len(own), own)
	}
	live.check(t, "before")
	time.Sleep(6 * time.Second) // longer than any mapping lives that no packet passes
	pingAll(t, p)
	waitFor(t, 2*time.Second, "the standby's kernel has the pings", func() bool {
		parked, _ := parkedOf(t, &instantNode{fw2, k2}, isPing)
		return len(parked) == 4
	})
	live.forgetGaps()

	ok(t, p.TakeOver(p.FW1, p.FW2))
	mapped := kernelFlows(t, k2, isPing)
	pingAll(t, p)
	for k, f := range kernelFlows(t, k2, isPing) {
		if was, there := mapped[k]; !there || was.ID != f.ID || f.Timeout > flow.ParkedAbove {
			t.Errorf("%v goes on by another entry, or none: %+v", k, f)
		}
	}
	time.Sleep(2 * grace)
	gap := live.check(t, "after the takeover, without a word to the daemon")
	if gap > 700*time.Millisecond {
		t.Errorf("a gap of %v", gap)
	}
	live.forgetGaps()
	fw2.Primary()
	if parked, others := parkedOf(t, n2, through); len(parked) > 0 || len(others) == 0 {
		t.Errorf("after the script %d entries are parked, %d not", len(parked), len(others))
	}
	waitEqual(t, 5*time.Second, "the new primary's own flows", func() table { return fw2.Internal().only(through) },
		func() table { return kernelTable(t, k2, through) }, form{})
	time.Sleep(grace)
	live.check(t, "after the script")

	// The old one comes back.
	more := openMore(t, p)
	ok(t, p.FW1.Replug())
	fw1.Backup()
	if first == theirs {
		fw2.leadToAndFro(t, fw1, p, n2, live, more)
		return
	}
	waitFor(t, 20*time.Second, "all that the returned one has is parked", func() bool {
		parked, others := parkedOf(t, n1, through)
		return len(parked) > 0 && len(others) == 0 && len(fw1.Internal().only(through)) == 0
	})
	waitEqual(t, 10*time.Second, "its kernel has the connections", func() table { return kernelTable(t, k1, through) },
		func() table { return kernelTable(t, k2, through) }, form{})
	live.check(t, "while the old one came back")
	more.check(t, "opened on the survivor")
	live.forgetGaps()
	ok(t, p.TakeOver(p.FW2, p.FW1))
	time.Sleep(grace)
	fw1.Primary()
	time.Sleep(grace)
	live.check(t, "after the return")
	more.check(t, "opened on the survivor, after the return")
	if parked, _ := parkedOf(t, n1, through); len(parked) > 0 {
		t.Errorf("after the return %d entries are still parked", len(parked))
	}
}

// leadToAndFro lets a conntrackd take over from f, which parks what it then carries, and
// f take over again before any script.
func (f *firewall) leadToAndFro(t *testing.T, other *firewall, p *lab.Pair, n *instantNode, live, more traffic) {
	t.Helper()
	through := passes(p)
	mine := kernelTable(t, n.kernel, through)
	waitFor(t, 10*time.Second, "the conntrackd knows the connections", func() bool { return other.External().missing(mine) == "" })
	live.check(t, "while the conntrackd came back")
	more.check(t, "opened on the survivor")
	live.forgetGaps()
	ok(t, p.Move(p.FW2, p.FW1))
	other.Primary()
	f.Backup()
	time.Sleep(2 * grace)
	live.check(t, "on the conntrackd again")
	more.check(t, "opened on the survivor, on the conntrackd")
	waitFor(t, 20*time.Second, "all that the conntrackd carries is parked", func() bool {
		parked, others := parkedOf(t, n, through)
		return len(parked) > 0 && len(others) == 0 && len(f.Internal().only(through)) == 0
	})
	live.forgetGaps()
	ok(t, p.TakeOver(p.FW1, p.FW2))
	time.Sleep(2 * grace)
	if gap := live.check(t, "after another takeover, without a word to the daemon"); gap > 700*time.Millisecond {
		t.Errorf("a gap of %v", gap)
	}
	more.check(t, "opened on the survivor, on the survivor again")
	f.Primary()
	if parked, _ := parkedOf(t, n, through); len(parked) > 0 {
		t.Errorf("in the end %d entries are still parked", len(parked))
	}
	live.check(t, "in the end")
}

// The gap of a takeover whose script comes a second after the address: as long as that
// with takeovers by commit, and none to speak of with instant ones.
func TestTakeoverGap(t *testing.T) {
	const late = time.Second
	for _, mode := range []string{"commit", "instant"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			extra := fmt.Sprintf("[takeover]\nmode = %q\n", mode)
			fw1 := newSyncd(t, p.FW1, syncdConfig(extra, newLink(udp4, 0, 1)))
			fw2 := newSyncd(t, p.FW2, syncdConfig(extra, newLink(udp4, 0, 2)))
			fw1.Primary()
			fw2.Backup()
			live := openTraffic(t, p)
			k1, through := openKernel(t, p.FW1), passes(p)
			waitEqual(t, 10*time.Second, "the standby knows the connections", func() table { return fw2.External().only(through) },
				func() table { return kernelTable(t, k1, through) }, form{})
			live.forgetGaps()
			ok(t, p.TakeOver(p.FW1, p.FW2))
			time.Sleep(late)
			fw2.Primary()
			time.Sleep(2 * grace)
			gap := live.check(t, "after the takeover")
			if mode == "commit" && gap < late || mode == "instant" && gap > late/2 {
				t.Errorf("a gap of %v", gap)
			}
		})
	}
}

// What is parked is the active node's table, flow by flow and field by field, through
// churn, restarts of either side, and a flush; it is nobody's own and is not told to
// anybody; and a takeover gives it the timeouts that it had.
func TestInstantMirror(t *testing.T) {
	need(t, "conntrack")
	for _, c := range []struct {
		name   string
		r      roles
		sealed bool
	}{
		{"sealed", roles{ours, ours}, true},
		{"conntrackd's dialect", roles{ours, ours}, false},
		{"beside a real conntrackd", roles{theirs, ours}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testInstantMirror(t, c.r, c.sealed)
		})
	}
}

func testInstantMirror(t *testing.T, r roles, sealed bool) {
	d := layDuo(t, r, udp4, duoOptions{sealed: sealed, syncd: instant + "[filter]\nlabels = true"})
	allowLabels(t, d.nA, d.nB)
	d.startA()
	d.startB()
	d.a.Primary()
	d.b.Backup()
	n := &instantNode{d.b, d.kB}
	equal := func(timeout time.Duration, what string) {
		t.Helper()
		waitEqual(t, timeout, what, d.kernelB, d.kernelA, d.form())
		if parked, others := parkedOf(t, n, isTestFlow); len(others) > 0 {
			t.Errorf("%s: %d are parked, %d are not", what, len(parked), len(others))
		}
	}
	quiet := func(what string) {
		t.Helper()
		if own := d.b.Internal().only(isTestFlow); len(own) > 0 {
			t.Errorf("%s: %d parked flows are the standby's own", what, len(own))
		}
		if back := d.a.External().only(isTestFlow); len(back) > 0 {
			t.Errorf("%s: %d flows came back", what, len(back))
		}
	}

	all := specimens()
	makeAll(t, d.nA, d.kA, all)
	equal(10*time.Second, "flows of all kinds")
	in := d.form()
	parked := map[tuple]conntrack.Flow{}
	for k, f := range kernelFlows(t, d.kB, isTestFlow) {
		parked[in.tuple(k)] = f
	}
	for k, a := range kernelFlows(t, d.kA, isTestFlow) {
		b := parked[in.tuple(k)]
		if k.proto == flow.GRE { // its timeout is fixed by the takeover
			b.Status |= flow.StatusFixedTimeout
			b.Timeout = 86400
		} else {
			b.Timeout = a.Timeout
		}
		if bad := compareCommitted(r, d.opts, a, b); bad != "" {
			t.Errorf("%v is not parked as it is:\n%s", k, bad)
		}
	}
	quiet("flows of all kinds")
	ok(t, d.kA.Flush())
	equal(10*time.Second, "all flows have ended")

	sent := func() (n uint64) {
		for what, m := range d.b.Stats().Sync.MessagesSent {
			if what == "data" || what == "compact" || strings.HasPrefix(what, "CT_") {
				n += m
			}
		}
		return n
	}
	told := sent()
	ok(t, churn(t, d.kA, 10000, 3000, 4*time.Second))
	equal(10*time.Second, "after churn")
	quiet("after churn")
	if now := sent(); now != told {
		t.Errorf("the standby told %d changes of what is parked", now-told)
	}
	s := d.b.Stats().Parked
	t.Logf("after churn: %+v", *s)
	for why, n := range s.NotParked {
		if n > 0 {
			t.Errorf("%d requests: %s", n, why)
		}
	}

	// The standby's daemon starts again, without what it knew.
	create(t, d.kA, 0, 300)
	equal(10*time.Second, "before the restarts")
	keeps := func(what string, first, end int) {
		t.Helper()
		have := d.kernelB()
		for i := first; i < end; i++ {
			f := numbered(i)
			if _, there := have[kernelTuple(&f)]; !there {
				t.Fatalf("%s: flow %d has left the standby's kernel", what, i)
			}
		}
	}
	d.b.Kill()
	destroy(t, d.kA, 0, 100)
	create(t, d.kA, 300, 350)
	d.b.Start()
	d.b.Backup()
	for range 20 {
		keeps("while the standby's daemon starts", 100, 300)
		time.Sleep(100 * time.Millisecond)
	}
	equal(30*time.Second, "after a restart of the standby's daemon")
	quiet("after a restart of the standby's daemon")

	if r.sender == ours {
		d.a.Kill()
		destroy(t, d.kA, 100, 200)
		time.Sleep(200 * time.Millisecond)
		d.a.Start()
		for range 20 {
			keeps("while the active daemon starts", 200, 350)
			time.Sleep(100 * time.Millisecond)
		}
		equal(30*time.Second, "after a restart of the active daemon")
		quiet("after a restart of the active daemon")
	}

	d.b.Flush(ctl.External)
	waitFor(t, 5*time.Second, "a flush takes what is parked out of the kernel", func() bool { return len(d.kernelB()) == 0 })
	d.b.Resync()
	equal(30*time.Second, "after a flush")

	// Takeover. The commit's report, and the timeouts of the states.
	want := kernelFlows(t, d.kA, isTestFlow)
	d.b.Primary()
	got := kernelFlows(t, d.kB, isTestFlow)
	for k, a := range want {
		b, there := got[in.tuple(k)]
		if !there {
			b, there = got[k]
		}
		if !there {
			t.Errorf("%v is lost", k)
		} else if bad := compareCommitted(r, d.opts, a, b); bad != "" {
			t.Errorf("%v was not taken over as it is:\n%s", k, bad)
		}
	}
	rep := d.b.Status().LastCommit
	if rep == nil || rep.Total().Updated != uint64(len(want)) {
		t.Errorf("the takeover: %+v of %d", rep, len(want))
	}
	if own := d.b.Internal().only(isTestFlow); len(own) != len(want) {
		t.Errorf("%d own flows after the takeover of %d", len(own), len(want))
	}
	if r.sender == theirs {
		return
	}

	// The old one yields all of it, which ends none of it.
	d.a.Backup()
	waitFor(t, 10*time.Second, "the old primary has parked everything", func() bool {
		_, others := parkedOf(t, &instantNode{d.a, d.kA}, isTestFlow)
		return len(others) == 0 && len(d.a.Internal().only(isTestFlow)) == 0
	})
	time.Sleep(500 * time.Millisecond) // what a wrong deletion would take
	if n := len(d.kernelB()); n != len(want) {
		t.Errorf("%d flows on the new primary, want %d", n, len(want))
	}
	destroy(t, d.kB, 200, 250)
	waitEqual(t, 10*time.Second, "the old primary's kernel", d.kernelA, d.kernelB, d.reverse())
}

// A standby goes back from instant takeover to committing: what it has parked is not its
// own, and leaves its kernel when its peer has told everything, not before. A commit
// brings it back.
func TestInstantNoMore(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		t.Run(fmt.Sprintf("sealed %v", sealed), func(t *testing.T) {
			t.Parallel()
			d := layDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: sealed, syncd: instant})
			d.startA()
			d.startB()
			d.a.Primary()
			d.b.Backup()
			create(t, d.kA, 0, 3000)
			waitEqual(t, 10*time.Second, "parked", d.kernelB, d.kernelA, d.form())
			d.a.Kill()
			d.b.Stop()
			config, err := os.ReadFile(d.b.config)
			ok(t, err)
			d.b.write(strings.Replace(string(config), instant, "", 1))
			d.b.Start()
			d.b.Backup()
			time.Sleep(5 * time.Second)
			if n := len(d.kernelB()); n != 3000 {
				t.Errorf("alone: %d of 3000 entries are left", n)
			}
			if own := d.b.Internal().only(isTestFlow); len(own) > 0 {
				t.Errorf("%d parked flows became the standby's own", len(own))
			}
			d.a.Start()
			d.a.Primary()
			waitFor(t, 20*time.Second, "what was parked leaves", func() bool { return len(d.kernelB()) == 0 })
			time.Sleep(time.Second)
			if own, back := d.b.Internal().only(isTestFlow), d.a.External().only(isTestFlow); len(own)+len(back) > 0 {
				t.Errorf("%d parked flows became the standby's own, %d were told", len(own), len(back))
			}
			if n := len(d.kernelA()); n != 3000 {
				t.Errorf("%d of 3000 flows are left on the active node", n)
			}
			d.b.Primary()
			waitEqual(t, 10*time.Second, "committed", d.kernelB, d.kernelA, d.form())
		})
	}
}

// Bulk transfers in both directions, with and without source NAT, go on at once and at
// full rate when the address moves, before any script.
func TestInstantBulk(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	fw1 := newSyncd(t, p.FW1, "[sync]\ninsecure = true\n"+instant+newLink(udp4, 0, 1).toml())
	fw2 := newSyncd(t, p.FW2, "[sync]\ninsecure = true\n"+instant+newLink(udp4, 0, 2).toml())
	fw1.Primary()
	fw2.Backup()
	far := newPlaces()
	var moved []*atomic.Int64
	pump := func(from, to net.Conn) {
		n := new(atomic.Int64)
		moved = append(moved, n)
		go func() { // until the test closes the connection
			b := make([]byte, 64<<10)
			for {
				if _, err := from.Write(b); err != nil {
					return
				}
			}
		}()
		go func() {
			b := make([]byte, 256<<10)
			for {
				m, err := io.ReadAtLeast(to, b, 1)
				if err != nil {
					return
				}
				n.Add(int64(m))
			}
		}()
	}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		to := netip.AddrPortFrom(a.Server, lab.PortService)
		for _, src := range []netip.Addr{a.Plain, a.Hidden} {
			s := far.openStream(t, way{near: p.Client, src: src, to: to, far: p.Server, at: to})
			for _, c := range []net.Conn{s.near, s.far} {
				ok(t, c.SetDeadline(time.Time{}))
			}
			pump(s.near, s.far)
			pump(s.far, s.near)
		}
	}
	// watch returns the octets that each transfer moved in a time, and the longest time in
	// which one moved none.
	watch := func(d time.Duration) (octets []int64, stall time.Duration) {
		first := make([]int64, len(moved))
		last, since := make([]int64, len(moved)), make([]time.Time, len(moved))
		for i, n := range moved {
			first[i] = n.Load()
			last[i], since[i] = first[i], time.Now()
		}
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			for i, n := range moved {
				if now := n.Load(); now != last[i] {
					last[i], since[i] = now, time.Now()
				}
				stall = max(stall, time.Since(since[i]))
			}
		}
		for i := range last {
			octets = append(octets, last[i]-first[i])
		}
		return octets, stall
	}
	k2 := &instantNode{fw2, openKernel(t, p.FW2)}
	through := passes(p)
	waitFor(t, 5*time.Second, "the transfers are parked", func() bool {
		parked, _ := parkedOf(t, k2, through)
		return len(parked) == len(moved)/2
	})
	before, _ := watch(time.Second)
	ok(t, p.TakeOver(p.FW1, p.FW2))
	_, stall := watch(2 * time.Second)
	after, _ := watch(time.Second)
	var sumBefore, sumAfter int64
	for i := range before {
		sumBefore += before[i]
		sumAfter += after[i]
		if after[i] < before[i]/10 {
			t.Errorf("transfer %d: %d MB in the second before, %d MB after", i, before[i]>>20, after[i]>>20)
		}
	}
	t.Logf("%d transfers: %d MB/s before, longest stall %v, %d MB/s after", len(before), sumBefore>>20, stall.Round(time.Millisecond), sumAfter>>20)
	if stall > 1500*time.Millisecond || sumAfter < sumBefore/3 {
		t.Errorf("a stall of %v, %d MB/s of %d are left", stall, sumAfter>>20, sumBefore>>20)
	}
}

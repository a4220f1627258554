package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

const (
	refreshEvery = 2 * time.Second  // of ALARM, on both sides
	cacheTimeout = 10 * time.Second // likewise
)

// otherMode is a replication mode other than FT-FW: more of the [sync] table, and
// conntrackd's Mode block.
type otherMode struct{ name, syncd, conntrackd string }

var (
	notrackMode = otherMode{
		name:       "notrack",
		syncd:      "mode = \"notrack\"\nbulk_interval = \"2s\"",
		conntrackd: "Mode NOTRACK {\nStartupResync on\n}\n",
	}
	alarmMode = otherMode{
		name:       "alarm",
		syncd:      fmt.Sprintf("mode = \"alarm\"\nrefresh = %q\ncache_timeout = %q", refreshEvery, cacheTimeout),
		conntrackd: fmt.Sprintf("Mode ALARM {\nRefreshTime %.0f\nCacheTimeout %.0f\n}\n", refreshEvery.Seconds(), cacheTimeout.Seconds()),
	}
)

// each runs a test with some pairs of daemons in conntrackd's dialect, and with two
// syncds in the sealed one.
func (m otherMode) each(t *testing.T, pairs []roles, test func(*testing.T, *duo)) {
	t.Parallel()
	for _, r := range pairs {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			test(t, m.lay(t, r, false))
		})
	}
	t.Run("sealed", func(t *testing.T) {
		t.Parallel()
		test(t, m.lay(t, roles{ours, ours}, true))
	})
}

// lay is layDuo for the mode.
func (m otherMode) lay(t testing.TB, r roles, sealed bool) *duo {
	t.Helper()
	more := m.syncd
	if sealed {
		more += "\npeer_dead_after = \"3s\""
	}
	d := layDuo(t, r, udp4, duoOptions{syncd: more, sealed: sealed})
	syncd := d.configOf
	d.configOf = func(kind daemonKind, node int) string {
		if kind == ours {
			return syncd(kind, node)
		}
		return m.conntrackd + newLink(udp4, 0, node).conntrackd() + "Options {\nTCPWindowTracking off\n}\n"
	}
	return d
}

// check fails the test if a syncd is not in the mode, does not come to be in sync, or
// has refused anything. What was malformed is checked by the duo.
func (m otherMode) check(d *duo) {
	d.t.Helper()
	for _, f := range []*firewall{d.a, d.b} {
		if f.real {
			continue
		}
		if s := f.Status(); s.Mode != m.name {
			d.t.Errorf("%s is in mode %s, want %s", f.node.Name(), s.Mode, m.name)
		}
		waitFor(d.t, 10*time.Second, f.node.Name()+" is in sync", func() bool { return f.Status().InSync })
		for why, n := range f.Stats().Sync.Refused {
			if n != 0 {
				d.t.Errorf("%s refused %d datagrams: %s", f.node.Name(), n, why)
			}
		}
		calm(d.t, f.Log())
	}
}

// lose runs f while nothing of a arrives at b, and returns what b holds then.
func (d *duo) lose(f func()) table {
	d.t.Helper()
	ok(d.t, d.nB.SetLoss(lab.Loss{Interface: "sync0", UDPPort: port, Percent: 100}))
	f()
	time.Sleep(500 * time.Millisecond) // until the last of it has been sent
	held := d.external()
	ok(d.t, d.nB.SetLoss())
	return held
}

// change gives the flows from number first up to below end another mark, timeout
// and state.
func change(t testing.TB, k *conntrack.Conn, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		f := numbered(n)
		f.Mark = uint32(n) + 100000
		f.Timeout = 900
		if f.ProtoInfo.TCP != nil {
			f.ProtoInfo.TCP.State = flow.TCPCloseWait
		}
		if err := k.Update(f); err != nil {
			t.Fatalf("change flow %d: %v", n, err)
		}
	}
}

// tuplesOf returns the identities of the flows from number first up to below end.
func tuplesOf(first, end int) (tuples []tuple) {
	for n := first; n < end; n++ {
		f := numbered(n)
		tuples = append(tuples, kernelTuple(&f))
	}
	return tuples
}

// count returns how many of the flows a table has.
func (t table) count(tuples []tuple) (n int) {
	for _, k := range tuples {
		if _, there := t[k]; there {
			n++
		}
	}
	return n
}

// liveChanges lets flows begin, change and end: on a from 0 on, of which there are 300
// already, and on b from 10000 on.
func (d *duo) liveChanges() {
	d.t.Helper()
	create(d.t, d.kA, 300, 600)
	change(d.t, d.kA, 200, 400)
	destroy(d.t, d.kA, 250, 350)
	d.waitReplicated(5*time.Second, "live changes")
	create(d.t, d.kB, 10000, 10300)
	change(d.t, d.kB, 10100, 10200)
	destroy(d.t, d.kB, 10150, 10250)
	waitEqual(d.t, 5*time.Second, "live changes, the other direction", d.a.External, d.kernelB, d.reverse())
}

// takeOver makes b primary, whose kernel is empty before: then it has what a's has, and
// a hears of it.
func (d *duo) takeOver() {
	d.t.Helper()
	ok(d.t, d.kB.Flush())
	waitEqual(d.t, 5*time.Second, "the end of all flows of the other direction", d.a.External, d.kernelB, d.reverse())
	d.b.Primary()
	d.checkCommitted()
	waitEqual(d.t, 8*time.Second, "what was committed, back at its origin", d.a.External, d.kernelB, d.reverse())
}

// NOTRACK carries changes and bulk updates. What is lost heals: in the sealed dialect
// all of it, in conntrackd's all but deletions.
func TestNotrack(t *testing.T) {
	notrackMode.each(t, allRoles, testNotrack)
}

func testNotrack(t *testing.T, d *duo) {
	create(t, d.kA, 0, 300)
	d.startA()
	d.startB()
	d.waitReplicated(10*time.Second, "flows that are older than the daemons")
	d.liveChanges()

	d.b.Flush(ctl.External)
	d.b.Resync()
	d.waitReplicated(5*time.Second, "bulk update asked for on command")
	d.b.Flush(ctl.External)
	d.a.Bulk()
	d.waitReplicated(5*time.Second, "bulk update sent on command")

	before := d.external()
	held := d.lose(func() {
		create(t, d.kA, 600, 700)
		change(t, d.kA, 400, 500)
		if d.opts.sealed {
			destroy(t, d.kA, 0, 100)
		}
	})
	if bad := diff(held, before, form{}); bad != "" {
		t.Errorf("not everything was lost:\n%s", bad)
	}
	if d.b.real {
		d.b.Resync() // it does not do that by itself
	}
	d.waitReplicated(10*time.Second, "after a loss")
	if !d.b.real && d.b.Stats().Sync.Lost == 0 {
		t.Error("no loss was counted")
	}

	if !d.opts.sealed {
		// Nothing in this dialect says that a bulk update is complete.
		ended := tuplesOf(0, 100)
		d.lose(func() { destroy(t, d.kA, 0, 100) })
		time.Sleep(time.Second)
		if n := d.external().count(ended); n != len(ended) {
			t.Errorf("%d flows are left whose end was lost, want %d", n, len(ended))
		}
		d.b.Flush(ctl.External)
		d.b.Resync()
		d.waitReplicated(5*time.Second, "flush and resync")
	}
	d.takeOver()
	notrackMode.check(d)
}

// A sealed NOTRACK heals by itself, with losses in both directions and for as long as
// they last.
func TestNotrackHeals(t *testing.T) {
	t.Parallel()
	d := notrackMode.lay(t, roles{ours, ours}, true)
	d.startA()
	d.startB()
	loss := lab.Loss{Interface: "sync0", UDPPort: port, Percent: 5}
	ok(t, d.nA.SetLoss(loss), d.nB.SetLoss(loss))
	ok(t, churn(t, d.kA, 0, 400, 5*time.Second))
	// A deletion heals when all of its part of a bulk update gets through.
	d.waitReplicated(30*time.Second, "while much is lost still")
	if d.b.Stats().Sync.Lost == 0 {
		t.Error("no loss was counted")
	}
	ok(t, d.nA.SetLoss(), d.nB.SetLoss())
	d.takeOver()
	notrackMode.check(d)
}

// ALARM sends every flow again and again: what is lost comes soon, and the flow whose
// end was lost goes after the timeout, while all others stay.
func TestAlarm(t *testing.T) {
	alarmMode.each(t, allRoles, testAlarm)
}

func testAlarm(t *testing.T, d *duo) {
	create(t, d.kA, 0, 300)
	d.startA()
	d.startB()
	d.waitReplicated(10*time.Second, "flows that are older than the daemons")
	d.liveChanges()

	d.b.Flush(ctl.External)
	d.waitReplicated(10*time.Second, "refreshed")
	// Both are allowed; in this mode a conntrackd does nothing then.
	d.b.Resync()
	d.a.Bulk()

	created, ended := tuplesOf(600, 700), tuplesOf(0, 100)
	stay := tuplesOf(100, 250)
	lost := time.Now()
	d.lose(func() {
		create(t, d.kA, 600, 700)
		destroy(t, d.kA, 0, 100)
	})
	// An entry may have been refreshed last a whole interval before its end.
	oldest := lost.Add(cacheTimeout - refreshEvery - time.Second)
	begin := time.Now()
	for {
		asked := time.Now()
		now := d.external()
		if n := now.count(stay); n != len(stay) {
			t.Fatalf("%d flows that live are left, want %d", n, len(stay))
		}
		if n := now.count(created); n != len(created) && asked.Sub(begin) > refreshEvery+5*time.Second {
			t.Fatalf("%d flows have come whose beginning was lost, want %d", n, len(created))
		}
		n := now.count(ended)
		if n != len(ended) && time.Now().Before(oldest.Add(-500*time.Millisecond)) {
			t.Fatalf("%d flows are left whose end was lost, want %d until the timeout", n, len(ended))
		}
		if n == 0 {
			break
		}
		if asked.Sub(lost) > cacheTimeout+4*time.Second {
			t.Fatalf("%d flows are left whose end was lost", n)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("expired %v after the loss", time.Since(lost).Round(time.Millisecond))
	d.waitReplicated(5*time.Second, "after the timeout")
	d.takeOver()
	alarmMode.check(d)
}

// What is not refreshed because its node died goes after the timeout in conntrackd's
// dialect, as it does with conntrackd. In the sealed one it stays until it is needed.
func TestAlarmDeadPeer(t *testing.T) {
	alarmMode.each(t, []roles{{ours, ours}, {theirs, ours}}, testAlarmDeadPeer)
}

func testAlarmDeadPeer(t *testing.T, d *duo) {
	d.startA()
	d.startB()
	create(t, d.kA, 0, 200)
	d.waitReplicated(5*time.Second, "before")
	d.a.Kill()
	died := time.Now()
	time.Sleep(cacheTimeout - refreshEvery - 3*time.Second)
	if n := len(d.external()); n != 200 {
		t.Errorf("%d flows %v after the death, want all 200", n, time.Since(died))
	}
	if !d.opts.sealed {
		waitFor(t, 10*time.Second, "the flows of the dead node have expired", func() bool { return len(d.external()) == 0 })
		return
	}
	time.Sleep(time.Until(died.Add(cacheTimeout + 4*time.Second)))
	if diff := diff(d.external(), d.kernelA(), form{}); diff != "" {
		t.Errorf("what is kept of the dead node:\n%s", diff)
	}
	d.b.Commit()
	d.checkCommitted()
}

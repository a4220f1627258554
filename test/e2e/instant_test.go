package e2e

import (
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

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

// Connections live through a takeover in keepalived's order: the address moves first,
// and the script comes late or never. Mappings of UDP that the standby has not seen a
// packet of for longer than their timeout are among them. Then the old one returns,
// what it carried becomes what it keeps for the other, and it takes over again.
func TestInstantTakeover(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  daemonKind
		sealed bool
	}{
		{"sealed", ours, true},
		{"conntrackd's dialect", ours, false},
		{"beside a real conntrackd", theirs, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testInstantTakeover(t, c.first, c.sealed)
		})
	}
}

func testInstantTakeover(t *testing.T, first daemonKind, sealed bool) {
	p := newPair(t)
	for _, n := range []*lab.Node{p.FW1, p.FW2} {
		ok(t, n.Sysctl("net.netfilter.nf_conntrack_udp_timeout", "4"))
		ok(t, n.Sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "5"))
		ok(t, n.Sysctl("net.netfilter.nf_conntrack_icmp_timeout", "5"))
	}
	start := func(kind daemonKind, n *lab.Node, number int) *firewall {
		switch {
		case kind == theirs:
			return newConntrackd(t, n, conntrackdConfig("TCPWindowTracking off", newLink(udp4, 0, number)))
		case sealed:
			return newSyncd(t, n, "[sync]\ninsecure = true\n"+instant+newLink(udp4, 0, number).toml())
		}
		return newSyncd(t, n, syncdConfig(instant, newLink(udp4, 0, number)))
	}
	fw1, fw2 := start(first, p.FW1, 1), start(ours, p.FW2, 2)
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
	live.forgetGaps()

	ok(t, p.TakeOver(p.FW1, p.FW2))
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

package host

import (
	"fmt"
	"strconv"
)

// Room that a table should have beyond what it holds or may have to take over:
// entries that have expired count until they are collected, and so do ended ones
// whose end could not be told yet.
const room = 1.3

// judgeTable judges the size of the conntrack table against what is in it and what
// the peers have.
func judgeTable(f *Facts) []Finding {
	const maxName, bucketsName = netfilter + "nf_conntrack_max", netfilter + "nf_conntrack_buckets"
	limit, okMax := f.sysctl(maxName)
	if _, exists := f.Sysctls[maxName]; !exists {
		return nil // the kernel's finding says it
	}
	out := Finding{ID: "table.max", Found: f.Sysctls[maxName].Value, Want: "the same on all nodes", Verdict: Unknown}
	if !okMax {
		out.Found, out.Why = "unreadable", f.Sysctls[maxName].Err
		return []Finding{out}
	}
	out.Verdict = OK
	out.Why = "each node must be able to hold the connections of all; compare with syncd check --compare"
	if limit == 0 {
		out.Found, out.Why = "0 (no limit)", "the table grows until memory is full"
	}
	all := []Finding{out}
	all = append(all, judgeBuckets(f, limit, bucketsName), judgeExpectMax(f), judgeFill(f, limit, maxName))
	return append(all, judgePeers(f, limit, maxName)...)
}

func judgeBuckets(f *Facts, limit int64, name string) Finding {
	out := Finding{ID: "table.buckets", Found: f.Sysctls[name].Value, Want: "as many as nf_conntrack_max",
		Why: "the hash table has a bucket for every entry"}
	n, ok := f.sysctl(name)
	switch {
	case !ok || n <= 0:
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "the size of the hash table could not be read"
	case limit == 0:
		out.Verdict, out.Why = Note, "without a limit of entries it cannot be said whether the hash table is large enough"
	case limit > n:
		// Four entries a bucket cost a commit two and a half times as long.
		out.Verdict = Note
		if limit >= 4*n {
			out.Verdict = Warning
		}
		out.Why = fmt.Sprintf("with a full table %.1f entries share a bucket, which slows every new connection and a commit", float64(limit)/float64(n))
		out.Fix = setCommand(name, limit)
	}
	return out
}

func judgeExpectMax(f *Facts) Finding {
	const name = netfilter + "nf_conntrack_expect_max"
	out := Finding{ID: "table.expect_max", Found: f.Sysctls[name].Value, Want: "more than helpers expect at once",
		Why: "helpers (FTP, SIP) expect connections; beyond this the kernel refuses to"}
	n, ok := f.sysctl(name)
	now, err := strconv.ParseInt(f.Expects.Value, 10, 64)
	switch {
	case !ok:
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "the limit of expectations could not be read"
	case f.Expects.ok() && err == nil && float64(now)*room > float64(n):
		out.Verdict, out.Fix = Warning, setCommand(name, max(4096, 2*now))
		out.Found = fmt.Sprintf("%d, of which %d are used", n, now)
		out.Why = "the table of expectations is almost full; a takeover would have some refused"
	case n < 256:
		out.Verdict, out.Fix = Note, setCommand(name, 4096)
		out.Why = "few expectations fit; helpers of many connections need more"
	}
	return out
}

func judgeFill(f *Facts, limit int64, name string) Finding {
	out := Finding{ID: "table.entries", Want: "at most three quarters of nf_conntrack_max", Why: "there is room for more connections"}
	now, err := strconv.ParseInt(f.Count.Value, 10, 64)
	switch {
	case !f.Count.ok() || err != nil:
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "the number of entries could not be read"
		return out
	case limit == 0:
		out.Found = fmt.Sprintf("%d", now)
		return out
	}
	out.Found = fmt.Sprintf("%d of %d (%.0f %%)", now, limit, 100*float64(now)/float64(limit))
	if float64(now)*room > float64(limit) {
		out.Verdict, out.Fix = Warning, setCommand(name, roundUp(2*now))
		out.Why = "when the table is full the kernel refuses new connections, and a takeover is refused what does not fit"
	}
	return out
}

// judgePeers holds the table against what the peers of a running daemon have.
func judgePeers(f *Facts, limit int64, name string) []Finding {
	if f.Daemon.None != "" {
		return []Finding{{ID: "peer.flows", Verdict: Unknown, Found: f.Daemon.None, Want: "a table with room for the flows of all nodes",
			Why: "only a running daemon knows what the peers have", Fix: "systemctl start syncd"}}
	}
	var all []Finding
	var sum uint64
	for _, p := range f.Daemon.Peers {
		sum += p.Flows
	}
	for _, p := range f.Daemon.Peers {
		out := Finding{ID: "peer.flows", Subject: p.Name, Found: fmt.Sprintf("%d flows, room for %d", p.Flows, limit),
			Want: "a table with room for the flows of all nodes", Why: "this node can take over all connections of the peer"}
		switch {
		case limit == 0:
			out.Found = fmt.Sprintf("%d flows, room without limit", p.Flows)
		case p.Flows > uint64(limit):
			out.Verdict, out.Fix = Error, setCommand(name, roundUp(int64(float64(sum)*room)))
			out.Why = "the peer has more connections than this node's table can hold: a takeover would lose some for certain"
		case float64(sum)*room > float64(limit):
			out.Verdict, out.Fix = Warning, setCommand(name, roundUp(int64(float64(sum)*room)))
			out.Why = "the connections of the peers leave too little room in this node's table"
		}
		all = append(all, out)
	}
	if len(all) == 0 {
		all = append(all, Finding{ID: "peer.flows", Verdict: Unknown, Found: "no peer heard", Want: "a table with room for the flows of all nodes",
			Why: "the daemon has not heard of a peer yet"})
	}
	return all
}

// roundUp returns the next power of two, at least 65536: what a table may well have.
func roundUp(n int64) int64 {
	p := int64(65536)
	for p < n {
		p *= 2
	}
	return p
}

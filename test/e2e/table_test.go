package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"syncd/internal/flow"
)

// tuple is the identity of a flow in a form that all our sources have: kernel,
// syncd's dump and conntrackd's.
type tuple struct {
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16 // ICMP: identifier, and type<<8 | code
	zone         uint16
}

func (t tuple) String() string {
	return fmt.Sprintf("%d %s,%d>%s,%d zone %d", t.proto, t.src, t.sport, t.dst, t.dport, t.zone)
}

// entry is what can be said of a flow in a cache.
type entry struct {
	tuple
	state     string // as conntrack(8) prints it, of TCP and SCTP
	mark      uint32
	assured   bool
	unreplied bool
}

// table is the content of a cache.
type table map[tuple]entry

// fromDump makes an entry of a flow in a dump of syncd.
func fromDump(f *flow.Flow) entry {
	addr := func(a [16]byte) netip.Addr {
		if f.Orig.Family == flow.IPv4 {
			return netip.AddrFrom4([4]byte(a[:4]))
		}
		return netip.AddrFrom16(a)
	}
	e := entry{
		tuple: tuple{
			proto: f.Orig.Proto, src: addr(f.Orig.Src), dst: addr(f.Orig.Dst),
			sport: f.Orig.SrcPort, dport: f.Orig.DstPort, zone: f.Orig.Zone,
		},
		mark:      f.Mark,
		assured:   f.Status&flow.StatusAssured != 0,
		unreplied: f.Status&flow.StatusSeenReply == 0,
	}
	if f.Has&flow.HasTCP != 0 {
		e.state = tcpStates[f.TCPState]
	}
	if f.Has&flow.HasSCTP != 0 {
		e.state = sctpStates[f.SCTPState]
	}
	return e
}

// States as conntrack(8) prints them, by the kernel's number.
var (
	tcpStates = []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
		"TIME_WAIT", "CLOSE", "SYN_SENT2"}
	sctpStates = []string{"NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT",
		"SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED"}
)

// parseLine reads a line of a dump of conntrackd. Of the reply tuple, which the
// internal cache has too, nothing is taken.
func parseLine(line string) (entry, error) {
	e := entry{}
	fields := strings.Fields(line)
	if len(fields) < 4 {
		return e, fmt.Errorf("a line of a dump has too few fields: %q", line)
	}
	proto, err := strconv.ParseUint(fields[1], 10, 8)
	if err != nil {
		return e, fmt.Errorf("a line of a dump: %q: %w", line, err)
	}
	e.proto = uint8(proto)
	if !strings.Contains(fields[2], "=") {
		e.state = fields[2]
	}
	seen := map[string]bool{}
	var typ, code uint64
	for _, field := range fields[2:] {
		key, value, isPair := strings.Cut(field, "=")
		switch {
		case field == "[ASSURED]":
			e.assured = true
		case field == "[UNREPLIED]":
			e.unreplied = true
		case !isPair || seen[key]:
			continue
		}
		seen[key] = true
		var n uint64
		switch key {
		case "src":
			e.src, err = netip.ParseAddr(value)
		case "dst":
			e.dst, err = netip.ParseAddr(value)
		case "sport", "dport", "type", "code", "id", "mark", "zone", "srckey", "dstkey":
			n, err = strconv.ParseUint(value, 0, 32)
		}
		if err != nil {
			return e, fmt.Errorf("a line of a dump: %q: %w", line, err)
		}
		switch key {
		case "sport", "srckey", "id":
			e.sport = uint16(n)
		case "dport", "dstkey":
			e.dport = uint16(n)
		case "type":
			typ = n
		case "code":
			code = n
		case "mark":
			e.mark = uint32(n)
		case "zone":
			e.zone = uint16(n)
		}
	}
	if e.proto == flow.ICMP || e.proto == flow.ICMPv6 {
		e.dport = uint16(typ<<8 | code)
	}
	return e, nil
}

// form says how tables are compared.
type form struct {
	tuplesOnly bool // not the attributes of flows
	portless   bool // not the ports of UDP-Lite and the keys of GRE
}

// reduce returns a table without what is not to be compared.
func (f form) reduce(t table) table {
	r := table{}
	for k, e := range t {
		k = f.tuple(k)
		e.tuple = k
		if f.tuplesOnly {
			e = entry{tuple: k}
		}
		r[k] = e
	}
	return r
}

// tuple returns the identity of a flow without what is not to be compared.
func (f form) tuple(k tuple) tuple {
	if f.portless && (k.proto == flow.UDPLite || k.proto == flow.GRE) {
		k.sport, k.dport = 0, 0
	}
	return k
}

// diff says what differs between two tables, in at most a few lines; empty if
// nothing does.
func diff(got, want table, in form) string {
	got, want = in.reduce(got), in.reduce(want)
	var lines []string
	for k, w := range want {
		g, there := got[k]
		switch {
		case !there:
			lines = append(lines, "missing: "+k.String())
		case g != w:
			lines = append(lines, fmt.Sprintf("differs: %v\n\tgot  %+v\n\twant %+v", k, g, w))
		}
	}
	for k := range got {
		if _, wanted := want[k]; !wanted {
			lines = append(lines, "stale: "+k.String())
		}
	}
	slices.Sort(lines)
	if n := len(lines); n > 10 {
		lines = append(lines[:10], fmt.Sprintf("... %d differences in all; %d flows, want %d", n, len(got), len(want)))
	}
	return strings.Join(lines, "\n")
}

// waitEqual waits until got returns the table that want returns, and ends the test
// with the difference if that takes too long.
func waitEqual(t testing.TB, timeout time.Duration, what string, got, want func() table, in form) {
	t.Helper()
	begin := time.Now()
	for {
		d := diff(got(), want(), in)
		if d == "" {
			t.Logf("%s: equal after %v", what, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > timeout {
			t.Fatalf("%s: after %v there are differences:\n%s", what, timeout, d)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// only returns the part of a table whose flows are accepted.
func (t table) only(accept func(tuple) bool) table {
	part := maps.Clone(t)
	maps.DeleteFunc(part, func(k tuple, _ entry) bool { return !accept(k) })
	return part
}

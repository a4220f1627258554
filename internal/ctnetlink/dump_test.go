package ctnetlink

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// fill creates n flows.
func fill(t testing.TB, w *Writer, n int) {
	t.Helper()
	fail := func(_ int, errno unix.Errno) { t.Fatal(errno) }
	for i := range n {
		f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(i), uint16(i>>16)))
		_, err := w.Add(OpCreate, &f, CreateOptions{})
		if errors.Is(err, ErrBatchFull) {
			if err := w.Flush(fail); err != nil {
				t.Fatal(err)
			}
			_, err = w.Add(OpCreate, &f, CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(fail); err != nil {
		t.Fatal(err)
	}
}

func TestDumpAndCount(t *testing.T) {
	ns := newNS(t, "dump")
	w := ns.writer()
	const n = 5000
	fill(t, w, n)
	seen := make(map[uint16]int)
	if err := Dump(t.Context(), DumpFilter{NetNS: ns.fd()}, func(ev *flow.Event) error {
		seen[ev.Flow.Orig.SrcPort]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for port := range uint16(n) {
		if seen[port] != 1 {
			t.Fatalf("flow %d was told %d times", port, seen[port])
		}
	}
	entries, limit, err := Count(ns.fd())
	if err != nil || entries != n {
		t.Errorf("count %d, %v", entries, err)
	}
	if want, err := MaxEntries(); err != nil || int(limit) != want {
		t.Errorf("limit %d, sysctl %d, %v", limit, want, err)
	}
}

func TestDumpFilters(t *testing.T) {
	ns := newNS(t, "filter")
	w := ns.writer()
	v4 := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1, 80))
	v4.Mark = 0x10
	v6 := established(tuple(flow.TCP, "2001:db8::1", "2001:db8::2", 2, 80))
	v6.Mark = 0x21
	fresh := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 3, 80))
	fresh.Status, fresh.Mark = flow.StatusConfirmed, 0
	both := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 4, 80))
	both.Orig.Zone, both.Reply.Zone, both.Mark = 5, 5, 0x20
	reply := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 5, 80))
	reply.Reply.Zone, reply.Mark = 5, 0x30
	for _, f := range []flow.Flow{v4, v6, fresh, both, reply} {
		mustDo(t, w, OpCreate, &f, CreateOptions{})
	}
	for _, tt := range []struct {
		name   string
		filter DumpFilter
		want   string // source ports
	}{
		{"all", DumpFilter{}, "12345"},
		{"v4", DumpFilter{Family: flow.IPv4}, "1345"},
		{"v6", DumpFilter{Family: flow.IPv6}, "2"},
		{"mark", DumpFilter{Mark: 0x20, MarkMask: 0xf0}, "24"},
		{"mark with bits outside of the mask", DumpFilter{Mark: 0xff20, MarkMask: 0xf0}, "24"},
		{"mark zero", DumpFilter{MarkMask: 0xffffffff}, "3"},
		{"assured", DumpFilter{Status: flow.StatusAssured, StatusMask: flow.StatusAssured}, "1245"},
		{"not assured", DumpFilter{StatusMask: flow.StatusAssured}, "3"},
		{"zone", DumpFilter{HasZone: true, Zone: 5}, "45"},
		{"no zone", DumpFilter{HasZone: true}, "123"},
		{"combined", DumpFilter{Family: flow.IPv4, HasZone: true, Zone: 5, Mark: 0x30, MarkMask: 0xff}, "5"},
		{"none", DumpFilter{HasZone: true, Zone: 6}, ""},
	} {
		got := make([]byte, 6)
		for t := range ns.dump(tt.filter) {
			got[t.SrcPort] = byte('0' + t.SrcPort)
		}
		if s := strings.ReplaceAll(string(got), "\x00", ""); s != tt.want {
			t.Errorf("%s: flows %s, want %s", tt.name, s, tt.want)
		}
	}
}

func TestDumpEnds(t *testing.T) {
	ns := newNS(t, "ends")
	fill(t, ns.writer(), 2000)
	enough := errors.New("enough of it")
	n := 0
	err := Dump(t.Context(), DumpFilter{NetNS: ns.fd()}, func(*flow.Event) error {
		if n++; n == 10 {
			return enough
		}
		return nil
	})
	if err != enough || n != 10 {
		t.Errorf("%v after %d entries", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	err = Dump(ctx, DumpFilter{NetNS: ns.fd()}, func(*flow.Event) error {
		if n++; n == 10 {
			cancel()
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n == 2000 {
		t.Errorf("%v after %d entries", err, n)
	}
}

// TestDumpAnswers feeds answers that this kernel will not give on request.
func TestDumpAnswers(t *testing.T) {
	msg := func(typ, flags uint16, errno int32) []byte {
		b := appendHeader(nil, typ, flags, dumpSeq, 0)
		native.PutUint32(b[nlHeaderLen:], uint32(errno))
		return finish(b, 0)
	}
	none := func([]byte) error { return nil }
	if err := answer(msg(unix.NLMSG_ERROR, 0, -int32(unix.EBUSY)), none); !errors.Is(err, unix.EBUSY) {
		t.Errorf("error: %v", err)
	}
	if err := answer(msg(unix.NLMSG_DONE, 0, -int32(unix.ENOMEM)), none); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("done with an error: %v", err)
	}
	if err := answer(msg(unix.NLMSG_DONE, 0, 0), none); err != errEnough {
		t.Errorf("done: %v", err)
	}
	if err := answer([]byte{1, 2, 3}, none); err == nil {
		t.Error("no error for garbage")
	}
	cut := msg(unix.NLMSG_DONE, 0, 0)
	native.PutUint32(cut, nlHeaderLen)
	if err := answer(cut[:nlHeaderLen], none); err == nil {
		t.Error("no error for a DONE without its number")
	}
	d := dumper{fn: func(*flow.Event) error { return nil }}
	if err := answer(msg(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 0), d.message); err != errEnough || d.end() != ErrInterrupted {
		t.Errorf("interrupted: %v, %v", err, d.end())
	}
	d = dumper{before: 1024}
	if got := d.end(); got != ErrResized {
		t.Errorf("resized: %v", got)
	}
}

func TestStatsAgainstOracle(t *testing.T) {
	ns := newNS(t, "stats")
	fill(t, ns.writer(), 100)
	c, err := conntrack.Dial(&netlink.Config{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Stats(ns.fd())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d CPUs, want %d, %v", len(got), len(want), err)
	}
	var all []conntrack.Stats
	for _, s := range got {
		all = append(all, conntrack.Stats{
			CPUID: uint16(s.CPU), Found: s.Found, Invalid: s.Invalid, Insert: s.Insert, InsertFailed: s.InsertFailed,
			Drop: s.Drop, EarlyDrop: s.EarlyDrop, Error: s.Error, SearchRestart: s.SearchRestart,
		})
	}
	diff(t, "stats", all, want)
}

func TestHost(t *testing.T) {
	ns := newNS(t, "host")
	for _, value := range []string{"0", "1", "2"} {
		ns.sysctl("net/netfilter/nf_conntrack_events", value)
		ns.do(func() error {
			if v, err := Events(); err != nil || value != string(rune('0'+v)) {
				t.Errorf("events %d, %v, want %s", v, err, value)
			}
			return nil
		})
	}
	if n, err := Buckets(); err != nil || n <= 0 {
		t.Errorf("buckets %d, %v", n, err)
	}
	if _, err := sysctl("nf_conntrack_nonsense"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown sysctl: %v", err)
	}
}

func TestLongTimeouts(t *testing.T) {
	ns := newNS(t, "long")
	ns.do(func() error {
		if long, err := LongTimeouts(flow.ParkedAbove); err != nil || len(long) != 0 {
			t.Errorf("the kernel's defaults: %v, %v", long, err)
		}
		return nil
	})
	ns.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "1000001")
	ns.sysctl("net/netfilter/nf_conntrack_generic_timeout", "1000000")
	ns.do(func() error {
		long, err := LongTimeouts(flow.ParkedAbove)
		if err != nil || len(long) != 1 || long["net.netfilter.nf_conntrack_tcp_timeout_established"] != 1000001 {
			t.Errorf("%v, %v", long, err)
		}
		return nil
	})
}

// BenchmarkDump dumps 40,000 flows; nf_conntrack_max is shared, so not more.
func BenchmarkDump(b *testing.B) {
	ns := newNS(b, "dumpb")
	const n = 40000
	fill(b, ns.writer(), n)
	total := 0
	for b.Loop() {
		if err := Dump(b.Context(), DumpFilter{NetNS: ns.fd()}, func(*flow.Event) error { total++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "flows/s")
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"syncd/test/bench/rig"
	"syncd/test/bench/rig/rigtest"
)

// brisk is the example of keepalived's configuration, but for a death that is noticed in less
// than half of the time.
func brisk(t *testing.T) string {
	t.Helper()
	example, err := os.ReadFile("../../../deploy/keepalived/keepalived.conf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keepalived.conf")
	if err := os.WriteFile(file, bytes.ReplaceAll(example, []byte("advert_int 1"), []byte("advert_int 0.4")), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // these tests wait most of the time
	os.Exit(m.Run())
}

// small returns options of a measurement that takes seconds.
func small(t *testing.T, bin, kinds, cutKinds string) *options {
	t.Helper()
	dir := t.TempDir()
	o := &options{
		bin: bin, keepalived: brisk(t), back: 2 * time.Second,
		json: filepath.Join(dir, "results.json"), markdown: filepath.Join(dir, "results.md"),
		runs: 1, flows: 500, connections: 4, every: 10 * time.Millisecond,
		cutRuns: 1, cutFlows: 1000, cutChanges: 800, cut: 300 * time.Millisecond,
	}
	if err := o.parse(kinds, cutKinds); err != nil {
		t.Fatal(err)
	}
	return o
}

// The whole measurement with small numbers, the parts beside each other: what it says is
// not worth much, but with so few flows nobody may lose anything.
func TestQuick(t *testing.T) {
	bin := rigtest.Build(t, "conntrackd", "keepalived")
	t.Parallel()
	for _, k := range []string{"syncd", "syncd-instant", "conntrackd"} {
		t.Run(k, func(t *testing.T) {
			t.Parallel()
			o := small(t, bin, k, k)
			var out bytes.Buffer
			if err := run(t.Context(), o, &out); err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			t.Logf("%s", &out)
			var r Report
			b, err := os.ReadFile(o.json)
			if err == nil {
				err = json.Unmarshal(b, &r)
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Takeovers) != 1 || len(r.Cuts) != 1 || len(r.Summary) == 0 || r.Kernel == "" {
				t.Fatalf("the results are not complete: %+v", r)
			}
			d := r.Takeovers[0]
			if d.TCP != 4 || d.UDP != 4 || d.TCPKept != 4 || d.UDPKept != 4 {
				t.Errorf("connections were lost: %+v", d)
			}
			if d.DownS <= 0 || d.DownS > 15 || d.LastS > 5 {
				t.Errorf("implausible times: %+v", d)
			}
			if k == "syncd-instant" && d.UDPUnmoved != 4 {
				t.Errorf("mappings were made anew in spite of instant takeover: %+v", d)
			}
			c := r.Cuts[0]
			if !c.Divergence.Zero() || c.CleanS <= 0 || c.CutS < 0.3 {
				t.Errorf("after a short cut: %+v", c)
			}
			if md, err := os.ReadFile(o.markdown); err != nil || !strings.Contains(string(md), "| stale entries on the backup (flows) | 0 |") {
				t.Errorf("%v: the table is not as documents have it:\n%s", err, md)
			}
		})
	}
}

// When nobody replicates, nothing comes back: the prober would see it.
func TestNothingComesBack(t *testing.T) {
	bin := rigtest.Build(t, "conntrackd", "keepalived")
	t.Parallel()
	o := small(t, bin, "syncd", "syncd")
	// A notify line that does nothing: the connections are in the external cache, and stay there.
	example, err := os.ReadFile(o.keepalived)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.keepalived, bytes.Replace(example, []byte("/usr/sbin/syncd ctl primary"), []byte("/bin/true /usr/sbin/syncd ctl"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := measureTakeover(t.Context(), o, rig.Sealed)
	if !errors.Is(err, errNoCommit) {
		t.Fatalf("error %v", err)
	}
	if s.TCPKept != 0 || s.UDPKept != 0 || s.DownS == 0 {
		t.Errorf("without a takeover: %+v", s)
	}
}

func TestOptions(t *testing.T) {
	good := options{runs: 1, flows: 1, connections: 1, every: time.Millisecond, cutFlows: 2, cutChanges: 1, cut: time.Second, back: 1}
	for _, tt := range []struct {
		change func(*options)
		kinds  string
		want   string
	}{
		{func(*options) {}, "syncd", ""},
		{func(*options) {}, "ipvs", "-kinds"},
		{func(o *options) { o.runs = 0 }, "syncd", "-runs 0"},
		{func(o *options) { o.cutChanges = 3 }, "syncd", "numbers"},
		{func(o *options) { o.connections = 0 }, "syncd", "-connections 0"},
		{func(o *options) { o.every = time.Second }, "syncd", "-every"},
		{func(o *options) { o.cut = 0 }, "syncd", "-cut"},
	} {
		o := good
		tt.change(&o)
		err := o.parse(tt.kinds, "conntrackd")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

// A row has a median where every run came to a figure, and a ratio where conntrackd did.
func TestRow(t *testing.T) {
	samples := []Cut{
		{Kind: rig.Sealed, CleanS: 1}, {Kind: rig.Sealed, CleanS: 3}, {Kind: rig.Sealed, CleanS: 2},
		{Kind: rig.Conntrackd, CleanS: 8},
		{Kind: rig.Plain, CleanS: 4}, {Kind: rig.Plain},
	}
	figure := func(s *Cut) (float64, bool) { return s.CleanS, s.CleanS > 0 }
	kind := func(s *Cut) rig.Kind { return s.Kind }
	r := row(samples, kind, "clean", "s", "", figure)
	if r.Values[rig.Sealed] != 2 || r.Ratio[rig.Sealed] != 0.25 {
		t.Errorf("%+v", r)
	}
	if _, there := r.Values[rig.Plain]; there {
		t.Errorf("one run of the plain one never came to it: %+v", r)
	}
	if r = row(samples[:3], kind, "clean", "s", "", figure); len(r.Ratio) != 0 {
		t.Errorf("a ratio to nothing: %+v", r)
	}
}

// The segment has a checksum that its receiver finds right.
func TestKeepalive(t *testing.T) {
	from, to := netip.MustParseAddr("198.51.100.20"), netip.MustParseAddrPort("203.0.113.10:7000")
	b := keepalive(&connection{port: 40000, next: 0x01020304, want: 0x05060708}, from, to)
	pseudo := append(append(from.AsSlice(), to.Addr().AsSlice()...), 0, 6, 0, byte(len(b)))
	all := append(append(pseudo, b[:]...), 0)
	var sum uint32
	for i := 0; i < len(all); i += 2 {
		sum += uint32(all[i])<<8 | uint32(all[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("checksum: %#x", sum)
	}
	if b[7] != 3 {
		t.Errorf("it begins at octet %#x of the stream", b[4:8])
	}
}

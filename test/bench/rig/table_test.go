package rig

import (
	"net/netip"
	"os"
	"testing"
)

func TestCompare(t *testing.T) {
	a, b, c := Key{Src: 1}, Key{Src: 2}, Key{Src: 3}
	up, down := State{TCP: "ESTABLISHED"}, State{TCP: "CLOSE"}
	d := Compare(Table{a: up, b: up}, Table{a: down, c: up})
	if d != (Divergence{Missing: 1, Stale: 1, Different: 1}) || d.Zero() {
		t.Errorf("%+v", d)
	}
	if !Compare(Table{a: up}, Table{a: up}).Zero() {
		t.Error("equal tables differ")
	}
}

func TestParseLine(t *testing.T) {
	v := func(s string) uint32 { return v4(netip.MustParseAddr(s)) }
	for _, c := range []struct {
		line string
		k    Key
		s    State
	}{
		{"tcp      6 ESTABLISHED src=198.18.0.2 dst=198.19.0.1 sport=1012 dport=80 [ASSURED] mark=0 zone=7 [active since 45s]",
			Key{v("198.18.0.2"), v("198.19.0.1"), 1012, 80, 6}, State{TCP: "ESTABLISHED", Assured: true}},
		{"udp      17 src=198.18.0.2 dst=198.19.0.1 sport=1 dport=53 [UNREPLIED] mark=0 [active since 1s]",
			Key{v("198.18.0.2"), v("198.19.0.1"), 1, 53, 17}, State{Unreplied: true}},
	} {
		k, s, err := parseLine(c.line)
		if err != nil || k != c.k || s != c.s {
			t.Errorf("%q: %+v %+v %v", c.line, k, s, err)
		}
		if !measured(k) {
			t.Errorf("%q is not a flow of the load", c.line)
		}
	}
	for _, bad := range []string{"", "tcp six ESTABLISHED src=1", "tcp 6 ESTABLISHED src=x dst=y"} {
		if _, _, err := parseLine(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestAccounting(t *testing.T) {
	// Ourselves: something must be there.
	pid := os.Getpid()
	if _, err := CPU(1 << 22); err == nil {
		t.Error("a process that cannot exist has used time")
	}
	if d, err := CPU(pid); err != nil || d <= 0 {
		t.Errorf("processor time %v %v", d, err)
	}
	if m, err := MemoryOf(pid); err != nil || m.RSS < 1<<20 || m.PSS <= 0 || m.PSS > m.RSS {
		t.Errorf("memory %+v %v", m, err)
	}
	if n, err := Wakeups(pid); err != nil || n == 0 {
		t.Errorf("woken %d times: %v", n, err)
	}
	if d, err := Waited(pid); err != nil || d < 0 {
		t.Errorf("waited %v: %v", d, err)
	}
	if _, err := Drops(pid); err != nil {
		t.Error(err)
	}
	if s := Scheduling(pid); s != "SCHED_OTHER, nice 0" {
		t.Logf("scheduling: %s", s)
	}
}

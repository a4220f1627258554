package demo

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write testdata anew")

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestPicture(t *testing.T) {
	alive := func(n int) map[kind]tally {
		m := map[kind]tally{}
		for k, opened := range share(200) {
			m[k] = tally{opened: opened, alive: min(n, opened)}
		}
		return m
	}
	var got strings.Builder
	for _, v := range []view{
		{title: "part 1: before"},
		{title: "part 2: in step", elapsed: 61234 * time.Millisecond, kinds: alive(99),
			firewalls: [2]firewallView{{carries: true, syncd: true, rate: 123456}, {syncd: true, entries: 12345}},
			steps:     []string{"  0.1 s  one", "  0.2 s  two", "  0.3 s  three", "  0.4 s  four", "  0.5 s  five", "  0.6 s  six", "  0.7 s  seven"}},
		{title: "part 1: taken over", kinds: alive(7), firewalls: [2]firewallView{{dead: true}, {carries: true, rate: 77}}},
	} {
		lines := v.render()
		if len(lines) != viewHeight {
			t.Errorf("%s: %d lines, want %d", v.title, len(lines), viewHeight)
		}
		for _, l := range lines {
			l = escapes.ReplaceAllString(l, "")
			if n := utf8.RuneCountInString(l); n > viewWidth {
				t.Errorf("%s: %d columns, want at most %d: %s", v.title, n, viewWidth, l)
			}
			got.WriteString(strings.TrimRight(l, " ") + "\n")
		}
	}
	const file = "testdata/picture.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the picture is not that of %s (-update writes it anew):\n%s", file, &got)
	}
}

func TestShare(t *testing.T) {
	for _, n := range []int{0, 1, 12, 200, 1001} {
		sum, udp := 0, 0
		for k, m := range share(n) {
			sum += m
			if k.udp {
				udp += m
			}
		}
		if sum != n || udp != n-n*3/5 {
			t.Errorf("share(%d) gives %d, of which UDP %d", n, sum, udp)
		}
	}
}

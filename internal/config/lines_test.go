package config

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// Every "@path" in a comment says what begins on its line.
const indexed = `
title = "x" # @title
a.b.c = 1 # @a @a.b @a.b.c
a."b".d = '''
# @nothing = 1
[no.table]''' # and no comment of a line of its own
"quo ted"."" = "\" # [x]" # @"quo ted" @"quo ted".""

[ table . sub ] # @table @table.sub
k = [ # @table.sub.k
  1, # @table.sub.k[0]
  # 7,
  [ # @table.sub.k[1]
    "]", ',', # @table.sub.k[1][0] @table.sub.k[1][1]
  ], { x = 1, y.z = """ " ""  # @table.sub.k[2] @table.sub.k[2].x @table.sub.k[2].y @table.sub.k[2].y.z
"""""}, 2026-01-01 10:00:00, # @table.sub.k[3]
] # end
l = true # @table.sub.l

[[link]] # @link @link[0]
peers = ["a", # @link[0].peers @link[0].peers[0]
  "b"] # @link[0].peers[1]
[link.sub] # @link[0].sub
x = 1 # @link[0].sub.x
[[link.many]] # @link[0].many @link[0].many[0]
y = 1 # @link[0].many[0].y
[[link]] # @link[1]
inline = { p = { q = [ 1 ] }, r = "}" } # @link[1].inline @link[1].inline.p @link[1].inline.p.q @link[1].inline.p.q[0] @link[1].inline.r
after = 1 # @link[1].after
`

func TestIndexLines(t *testing.T) {
	if _, err := newDocument("t", indexed); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"a.b.d": 4}
	for i, line := range strings.Split(indexed, "\n") {
		_, marks, _ := strings.Cut(line, "# @")
		for mark := range strings.SplitSeq(marks, " @") {
			if mark != "" && !strings.HasPrefix(mark, "nothing") {
				want[mark] = i + 1
			}
		}
	}
	got := indexLines(indexed)
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] != got[path] {
			t.Errorf("%s is on line %d, want %d", path, got[path], want[path])
		}
	}
	for path, line := range want {
		if got[path] == 0 {
			t.Errorf("%s is not found, want line %d", path, line)
		}
	}
}

func TestIndexLinesCRLF(t *testing.T) {
	got := indexLines("\ufeff# c\r\n[a]\r\nb = 1\r\n\r\nc = [\r\n2]\r\n")
	for path, line := range map[string]int{"a": 2, "a.b": 3, "a.c": 5, "a.c[0]": 6} {
		if got[path] != line {
			t.Errorf("%s is on line %d, want %d", path, got[path], line)
		}
	}
}

func TestLineOfWhatIsMissing(t *testing.T) {
	d, err := newDocument("t", "\n[sync]\nx = 1\n\n[[link]]\n[[link]]\n")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"sync.x": 3, "sync.y": 2, "sync.y[3]": 2, "node.name": 1, "node": 1, "link": 5, "link[0].type": 5, "link[1].peers[7]": 6, "link[2]": 5, "": 1,
	} {
		if got := d.line(path); got != want {
			t.Errorf("line of %q is %d, want %d", path, got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"mode", "wire", "keys", "ack_window", "ttl"}
	for name, want := range map[string]string{
		"ack_windw": "ack_window", "ack-window": "ack_window", "Wire": "wire", "key": "keys", "moed": "mode", "tl": "ttl",
		"xyz": "", "": "", "buffer": "events.buffer", "interface": "link.interface", strings.Repeat("mode", 99): "",
	} {
		if got := suggest(name, names, keyNames()); got != want {
			t.Errorf("suggest(%q) = %q, want %q", name, got, want)
		}
	}
}

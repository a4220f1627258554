package skeleton

import (
	"testing"

	"pgregory.net/rapid"
)

// TestTable: what was learned is found by exactly the messages of its kind and length with
// its octets under the mask.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), MinLen, MaxLen).Draw(t, "octets")
		var mask Mask
		for i, m := range rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 1, 0xff}), len(b), len(b)).Draw(t, "mask") {
			mask[i] = m
		}
		var table Table[int]
		table.Learn(b, 3, &mask, 7)
		if p := table.Find(b, 3); p == nil || *p != 7 {
			t.Fatal("not found")
		}
		if table.Find(b, 4) != nil {
			t.Fatal("found by another kind")
		}
		if table.Find(b[:len(b)-1], 3) != nil || table.Find(append(b[:len(b):len(b)], 0), 3) != nil {
			t.Fatal("found by another length")
		}
		for i := range b {
			c := append([]byte(nil), b...)
			c[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			if (table.Find(c, 3) != nil) != (mask[i] == 0) {
				t.Fatalf("octet %d: mask %d", i, mask[i])
			}
		}
	})
}

// Two of one length are known together, and the one of them that was not used last makes
// room for a third.
func TestPlaces(t *testing.T) {
	var table Table[int]
	mask := Mask{0xff}
	msg := func(n byte) []byte { return []byte{n, 2, 3, 4, 5, 6, 7, 8} }
	known := func(want ...bool) {
		t.Helper()
		for n, want := range want {
			if p := table.Find(msg(byte(n)), 0); (p != nil) != want || p != nil && *p != n {
				t.Errorf("%d: %v, want %v", n, p != nil, want)
			}
		}
	}
	known(false, false, false)
	table.Learn(msg(0), 0, &mask, 0)
	known(true, false, false)
	table.Learn(msg(1), 0, &mask, 1)
	known(true, true, false) // 1 was used last
	table.Learn(msg(2), 0, &mask, 2)
	known(false, true, true)
	if table.Find(nil, 0) != nil || table.Find(make([]byte, MaxLen+1), 0) != nil {
		t.Error("found by what is too short or too long")
	}
	learn := 0
	for range 4 * each {
		if table.Missed() {
			learn++
		}
	}
	if learn != 4 {
		t.Errorf("%d of %d are to be learned from", learn, 4*each)
	}
}

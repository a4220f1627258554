package seal

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// model is the window as a set of all that was seen.
type model struct {
	floor, top uint64
	seen       map[uint64]bool
}

func (m *model) check(c uint64) Fault {
	switch {
	case c <= m.floor, c < m.top && m.top-c >= 8192:
		return FaultOld
	case m.seen[c]:
		return FaultReplayed
	}
	return FaultNone
}

// TestWindow holds the window against the model, with counters near everything that
// could be special: the ends of the window, of a block, of the ring, and of the
// numbers.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		m := model{seen: map[uint64]bool{}}
		try := func(c uint64) {
			want := m.check(c)
			if got := w.check(c); got != want {
				t.Fatalf("counter %d: %v, want %v (top %d, floor %d)", c, got, want, m.top, m.floor)
			}
			if want == FaultNone {
				w.mark(c)
				m.seen[c] = true
				m.top = max(m.top, c)
			}
		}
		if rapid.Bool().Draw(t, "late") {
			try(math.MaxUint64 - 3*windowSize)
		}
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [3]int {
			return [3]int{
				rapid.IntRange(0, 9).Draw(t, "what"),
				rapid.SampledFrom([]int{1, 63, 64, 65, 127, 128, 8128, 8191, 8192, 8193, 8255, 8256, 8257, 8320, 16512}).Draw(t, "far"),
				rapid.IntRange(-70, 70).Draw(t, "off"),
			}
		}), 100, 200).Draw(t, "steps")
		for _, s := range steps {
			distance := uint64(s[1] + s[2]) // wraps
			switch s[0] {
			case 0, 1, 2: // ahead
				if c := m.top + distance; s[1]+s[2] > 0 && c > m.top {
					try(c)
				}
			case 3, 4: // a run of neighbours
				for i := range uint64(150) {
					try(m.top - m.top%64 + i)
				}
			case 5:
				if s[1] == 1 {
					w.shut()
					m.floor = m.top
				}
			default: // behind
				if c := m.top - distance; c <= m.top {
					try(c)
				}
			}
			try(m.top)
		}
	})
}

// The last counter of all is nothing special.
func TestWindowEnds(t *testing.T) {
	var w window
	if f := w.check(0); f != FaultOld {
		t.Errorf("counter 0: %v", f)
	}
	w.mark(math.MaxUint64)
	for c, want := range map[uint64]Fault{
		math.MaxUint64: FaultReplayed, math.MaxUint64 - 1: FaultNone,
		math.MaxUint64 - 8191: FaultNone, math.MaxUint64 - 8192: FaultOld, 1: FaultOld,
	} {
		if got := w.check(c); got != want {
			t.Errorf("counter %d: %v, want %v", c, got, want)
		}
	}
}

package seal

// windowSize is how far a counter may be behind the highest one: 80 ms of the
// reordering of a link that carries 100,000 datagrams a second.
const windowSize = 8192

// windowBlocks is one more than windowSize needs, so that the block of the highest
// counter can be partly ahead of it (RFC 6479, section 2).
const windowBlocks = windowSize/64 + 1

// window tells counters that were seen from new ones. The zero window has seen
// none and refuses the counter 0.
type window struct {
	floor uint64 // counters up to this one are refused
	top   uint64 // highest counter marked

	// blocks is a ring of bits: counter c is bit c%64 of block c/64%windowBlocks.
	// Invariant: the bits of counters above top-windowSize, up to top, tell whether
	// the counter was marked. Bits of counters above top mean nothing.
	blocks [windowBlocks]uint64
}

// check returns FaultNone for a counter that may still come, FaultOld or
// FaultReplayed.
func (w *window) check(c uint64) Fault {
	switch {
	case c <= w.floor:
		return FaultOld
	case c > w.top:
		return FaultNone
	case w.top-c >= windowSize:
		return FaultOld
	case w.blocks[c/64%windowBlocks]>>(c%64)&1 != 0:
		return FaultReplayed
	}
	return FaultNone
}

// mark notes that c was seen. check(c) has returned FaultNone.
func (w *window) mark(c uint64) {
	if c > w.top {
		// The blocks after that of top hold counters of the ring's last turn.
		first, last := w.top/64+1, c/64
		if last-w.top/64 >= windowBlocks {
			clear(w.blocks[:])
		} else {
			for b := first; b <= last; b++ {
				w.blocks[b%windowBlocks] = 0
			}
		}
		w.top = c
	}
	w.blocks[c/64%windowBlocks] |= 1 << (c % 64)
}

// shut refuses everything that is not newer than what has been seen.
func (w *window) shut() { w.floor = w.top }

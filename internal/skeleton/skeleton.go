// Package skeleton knows messages again that differ in their values alone.
//
// Messages of attributes repeat each other: those about flows of one kind have the same
// attributes in the same order, and so the same octets but for the values. Whoever reads
// such messages learns from one of them which octets these are, and where the values
// begin, keeps that in a Table, and reads the next one of the kind without a walk over its
// attributes. It must mean the same to both ways of reading: the package promises only
// that the octets of the mask are those of the message that was learned from, and as many.
//
// It knows nothing of formats. Nothing here is safe for concurrent use.
package skeleton

import "encoding/binary"

const (
	// MaxLen bounds messages that can be known, in octets. MinLen is a word.
	MaxLen = 320
	MinLen = 8

	sets = 16 // by length
	ways = 2
	each = 8 // messages that are not known to one that is worth learning from, which costs more than a walk
)

// Mask marks the octets of a message that must not differ: those that are not 0.
type Mask [MaxLen]byte

// Table keeps what was learned: a T for each skeleton, the latest ones. The zero Table is
// empty.
type Table[T any] struct {
	sets   [sets][ways]entry[T] // of each the first was used last
	missed uint8                // modulo each
}

type entry[T any] struct {
	length  uint16 // in octets; 0 for none
	kind    uint8
	must    [MaxLen / 8]masked
	learned T
}

// masked is a word of which the bits of mask must be those of want. Words are those of
// the message, little-endian; the last one may overlap the one before it.
type masked struct{ mask, want uint64 }

// Find returns what was learned of messages of this kind with the skeleton of b, or nil.
// It is valid until the next call.
func (t *Table[T]) Find(b []byte, kind uint8) *T {
	if len(b) < MinLen || len(b) > MaxLen {
		return nil
	}
	set := &t.sets[len(b)/4%sets]
	for i := range set {
		e := &set[i]
		if int(e.length) != len(b) || e.kind != kind || !e.matches(b) {
			continue
		}
		if i > 0 {
			set[0], set[i] = set[i], set[0]
		}
		return &set[0].learned
	}
	return nil
}

// Missed takes note of a message that is not known, and reports whether to learn from it,
// as of the first.
func (t *Table[T]) Missed() bool {
	t.missed = (t.missed + 1) % each
	return t.missed == 1
}

// Learn keeps what is to be known of messages with the octets of b under the mask. b has
// MinLen to MaxLen octets.
func (t *Table[T]) Learn(b []byte, kind uint8, mask *Mask, learned T) {
	e := &t.sets[len(b)/4%sets][ways-1]
	*e = entry[T]{length: uint16(len(b)), kind: kind, learned: learned}
	for i := range (len(b) + 7) / 8 {
		at := min(8*i, len(b)-8)
		m := spread(binary.LittleEndian.Uint64(mask[at:]))
		e.must[i] = masked{m, binary.LittleEndian.Uint64(b[at:]) & m}
	}
}

// spread returns w with all bits set in the octets that are not 0.
func spread(w uint64) (m uint64) {
	for i := range 8 {
		if w>>(8*i)&0xff != 0 {
			m |= 0xff << (8 * i)
		}
	}
	return m
}

func (e *entry[T]) matches(b []byte) bool {
	var differ uint64
	last := (len(b) - 1) / 8
	must := e.must[:last+1]
	for i := range must[:last] {
		differ |= (binary.LittleEndian.Uint64(b[8*i:]) ^ must[i].want) & must[i].mask
	}
	differ |= (binary.LittleEndian.Uint64(b[len(b)-8:]) ^ must[last].want) & must[last].mask
	return differ == 0
}

package cache

import (
	"math/bits"
	"unsafe"
)

// The index maps hashes to handles by extendible hashing. The highest bits of a
// hash choose the segment through the directory, the middle ones the bucket in
// it (home), the lowest octet is the tag.
const (
	bucketSlots    = 12
	segmentBuckets = 63
	segmentSlots   = segmentBuckets * bucketSlots

	// splitAt keeps buckets at 10 of 12 on average: beyond that probes
	// become long.
	splitAt = segmentBuckets * 10

	// maxDepth bounds the directory. 2^22 segments would hold ten times
	// the largest cache; only a broken hash could come here.
	maxDepth = 22
)

// bucket is one cache line. A free slot has tag 0 and handle 0.
type bucket struct {
	tagsLo uint64 // tags of slots 0 to 7, slot 0 in the lowest octet
	tagsHi uint32 // tags of slots 8 to 11
	// passed counts the entries that found this bucket full on their way
	// from home. A search ends where it is 0, and so a removal needs no
	// tombstone.
	passed uint16
	_      uint16
	slots  [bucketSlots]uint32
}

// segment is 4096 octets, a size class of the allocator; its header has the size
// of a bucket so that buckets stay aligned to cache lines.
type segment struct {
	n       uint16 // entries
	depth   uint8  // how many of the highest bits all hashes here have in common; at most index.depth
	_       [61]byte
	buckets [segmentBuckets]bucket
}

type index struct {
	dir      []*segment // 1<<depth; segments of lesser depth occur in a run
	depth    uint8
	segments int
	spare    *segment // what the last split left over, empty
}

func newIndex() index {
	return index{dir: []*segment{new(segment)}, segments: 1}
}

// tag is never 0, which marks a free slot.
func tag(hash uint64) uint8 { return max(1, uint8(hash)) }

// home scales 32 middle bits to the number of buckets.
func home(hash uint64) int { return int(uint64(uint32(hash>>8)) * segmentBuckets >> 32) }

// next is the bucket to try after i.
func next(i int) int {
	if i++; i < segmentBuckets {
		return i
	}
	return 0
}

const lowBits = 0x7f7f7f7f7f7f7f7f

// match returns the high bit of every octet where word has tag t, and nothing
// else (the shorter trick with a borrow also marks octets above a match).
func match(word uint64, t uint8) uint64 {
	x := word ^ uint64(t)*0x0101010101010101
	return ^((x&lowBits + lowBits) | x | lowBits)
}

// matches returns a set of the slots with tag t. Take them out with slot.
func (b *bucket) matches(t uint8) (lo, hi uint64) {
	// The upper half of hi is no slot: mask it.
	return match(b.tagsLo, t), match(uint64(b.tagsHi), t) & 0x80808080
}

// slot is the number of the lowest slot in a word of matches.
func slot(m uint64) int { return bits.TrailingZeros64(m) >> 3 }

// free returns a free slot, or -1.
func (b *bucket) free() int {
	lo, hi := b.matches(0)
	switch {
	case lo != 0:
		return slot(lo)
	case hi != 0:
		return 8 + slot(hi)
	}
	return -1
}

// set writes tag and handle of slot i.
func (b *bucket) set(i int, t uint8, handle uint32) {
	if i < 8 {
		b.tagsLo = b.tagsLo&^(0xff<<(8*i)) | uint64(t)<<(8*i)
	} else {
		b.tagsHi = b.tagsHi&^(0xff<<(8*(i-8))) | uint32(t)<<(8*(i-8))
	}
	b.slots[i] = handle
}

// find returns the slot with this tag and handle, or -1.
func (b *bucket) find(t uint8, handle uint32) int {
	lo, hi := b.matches(t)
	for ; lo != 0; lo &= lo - 1 {
		if i := slot(lo); b.slots[i] == handle {
			return i
		}
	}
	for ; hi != 0; hi &= hi - 1 {
		if i := 8 + slot(hi); b.slots[i] == handle {
			return i
		}
	}
	return -1
}

// segment returns where entries with this hash are.
func (x *index) segment(hash uint64) *segment { return x.dir[hash>>(64-x.depth)] }

// reserve makes room for one more entry with this hash, which insert then finds.
// It reports false when splitting does not help, which a working hash excludes.
func (x *index) reserve(hash uint64, hashOf func(handle uint32) uint64) bool {
	for {
		s := x.segment(hash)
		if s.n < splitAt {
			return true
		}
		if s.depth == maxDepth {
			return s.n < segmentSlots
		}
		x.split(hash, s, hashOf)
	}
}

// insert adds an entry after reserve.
func (x *index) insert(hash uint64, handle uint32) { x.segment(hash).insert(hash, handle) }

func (s *segment) insert(hash uint64, handle uint32) {
	i := home(hash)
	for {
		b := &s.buckets[i]
		if j := b.free(); j >= 0 {
			b.set(j, tag(hash), handle)
			s.n++
			return
		}
		b.passed++
		i = next(i)
	}
}

// remove takes an entry out and reports whether it was there.
func (x *index) remove(hash uint64, handle uint32) bool {
	s, t := x.segment(hash), tag(hash)
	for i, n := home(hash), 0; n < segmentBuckets; i, n = next(i), n+1 {
		b := &s.buckets[i]
		j := b.find(t, handle)
		if j < 0 {
			if b.passed == 0 {
				return false
			}
			continue
		}
		b.set(j, 0, 0)
		s.n--
		for k := home(hash); k != i; k = next(k) {
			s.buckets[k].passed--
		}
		return true
	}
	return false
}

// split replaces s, where hash belongs, by two segments of the next depth.
func (x *index) split(hash uint64, s *segment, hashOf func(handle uint32) uint64) {
	if s.depth == x.depth {
		x.double()
	}
	lo, hi := x.newSegment(s.depth+1), x.newSegment(s.depth+1)

	// The directory names s in one run, all entries that begin with its bits.
	run := 1 << (x.depth - s.depth)
	first := int(hash>>(64-x.depth)) &^ (run - 1)
	for i := range run {
		if i < run/2 {
			x.dir[first+i] = lo
		} else {
			x.dir[first+i] = hi
		}
	}

	for i := range s.buckets {
		for _, handle := range s.buckets[i].slots {
			if handle != 0 {
				x.insert(hashOf(handle), handle)
			}
		}
	}
	*s = segment{}
	x.spare = s
	x.segments++
}

func (x *index) newSegment(depth uint8) *segment {
	s := x.spare
	if s == nil {
		s = new(segment)
	}
	x.spare = nil
	s.depth = depth
	return s
}

func (x *index) double() {
	dir := make([]*segment, 2*len(x.dir))
	for i, s := range x.dir {
		dir[2*i], dir[2*i+1] = s, s
	}
	x.dir = dir
	x.depth++
}

// bytes is the memory that the index holds.
func (x *index) bytes() uint64 {
	n := x.segments
	if x.spare != nil {
		n++
	}
	return uint64(n)*uint64(unsafe.Sizeof(segment{})) + uint64(len(x.dir))*uint64(unsafe.Sizeof(x.spare))
}

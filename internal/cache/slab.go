package cache

import "unsafe"

// 512 records of 96 octets are six pages of the allocator exactly, and a chunk
// small enough that allocating and clearing it goes unnoticed.
const (
	chunkBits  = 9
	chunkSlots = 1 << chunkBits
)

// slab hands out numbered slots that never move. Number 0 is never handed out.
type slab[T any] struct {
	chunks []*[chunkSlots]T
	used   uint32 // slots ever handed out; their numbers are 1 to used
}

// at returns slot i, which must have been handed out or be 0.
func (s *slab[T]) at(i uint32) *T {
	return &s.chunks[i>>chunkBits][i%chunkSlots]
}

// grow hands out a slot that was never used before. It is zero.
func (s *slab[T]) grow() uint32 {
	i := s.used + 1
	if int(i>>chunkBits) >= len(s.chunks) {
		s.chunks = append(s.chunks, new([chunkSlots]T))
	}
	s.used = i
	return i
}

// bytes is the memory that the slab holds.
func (s *slab[T]) bytes() uint64 {
	var chunk [chunkSlots]T
	return uint64(len(s.chunks))*uint64(unsafe.Sizeof(chunk)) + uint64(cap(s.chunks))*uint64(unsafe.Sizeof(&chunk))
}

package cache

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"

	"syncd/internal/flow"
)

// key is a tuple packed into words. The addresses of IPv4 fill the first word
// and leave the others zero.
type key struct {
	addr [4]uint64
	word uint64 // see keyWord
}

// familyProtoShift is where keyWord has the family and the protocol: what both
// directions of a flow have in common.
const familyProtoShift = 48

// keyWord packs all of t but the addresses: the ports in the lowest 32 bits, then
// the zone, the family and the protocol.
func keyWord(t *flow.Tuple) uint64 {
	return uint64(t.SrcPort) | uint64(t.DstPort)<<16 | uint64(t.Zone)<<32 |
		uint64(t.Family)<<familyProtoShift | uint64(t.Proto)<<56
}

// setKeyWord is the inverse of keyWord.
func setKeyWord(t *flow.Tuple, w uint64) {
	t.SrcPort, t.DstPort, t.Zone = uint16(w), uint16(w>>16), uint16(w>>32)
	t.Family, t.Proto = uint8(w>>familyProtoShift), uint8(w>>56)
}

func keyProto(word uint64) uint8 { return uint8(word >> 56) }

func isIPv4(word uint64) bool { return uint8(word>>familyProtoShift) == flow.IPv4 }

// addrsIPv4 packs both addresses of an IPv4 tuple.
func addrsIPv4(t *flow.Tuple) uint64 {
	return uint64(binary.LittleEndian.Uint32(t.Src[:])) | uint64(binary.LittleEndian.Uint32(t.Dst[:]))<<32
}

func setAddrsIPv4(t *flow.Tuple, w uint64) {
	binary.LittleEndian.PutUint32(t.Src[:], uint32(w))
	binary.LittleEndian.PutUint32(t.Dst[:], uint32(w>>32))
}

// addrWords splits an address of 16 octets into two words.
func addrWords(a *[16]byte) (lo, hi uint64) {
	return binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:])
}

func setAddrWords(a *[16]byte, lo, hi uint64) {
	binary.LittleEndian.PutUint64(a[:8], lo)
	binary.LittleEndian.PutUint64(a[8:], hi)
}

func makeKey(t *flow.Tuple) (k key) {
	k.word = keyWord(t)
	if isIPv4(k.word) {
		k.addr[0] = addrsIPv4(t)
		return k
	}
	k.addr[0], k.addr[1] = addrWords(&t.Src)
	k.addr[2], k.addr[3] = addrWords(&t.Dst)
	return k
}

// hasher is a keyed hash of packed tuples: folded multiplications of pairs of
// words that were hidden with secret words first. Without the secret nobody can
// choose tuples that meet in one bucket.
type hasher struct{ secret [8]uint64 }

func newHasher() (h hasher) {
	for i := range h.secret {
		h.secret[i] = maphash.String(maphash.MakeSeed(), "cache")
	}
	return h
}

// fold multiplies to 128 bits and folds the halves, so that every bit of the
// result depends on every bit of both words.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (h *hasher) sum(addr *[4]uint64, word uint64) uint64 {
	s := &h.secret
	a := addr[0]
	if !isIPv4(word) {
		// The last two words are hidden by other secrets than the first two,
		// so that swapping source and destination changes the sum.
		a = fold(addr[0]^s[2], addr[1]^s[3]) + fold(addr[2]^s[4], addr[3]^s[5])
	}
	// One multiplication leaves the outer bits of the result weak when few
	// bits of its input vary; the second one spreads them.
	return fold(fold(a^s[0], word^s[1])^s[6], s[7]|1)
}

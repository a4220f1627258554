package wire

import (
	"encoding/binary"
	"math/bits"

	"syncd/internal/flow"
)

// Constants of the hash: odd numbers with well mixed bits.
const (
	hashK0 = 0xa0761d6478bd642f
	hashK1 = 0xe7037ed1a0b428db
	hashK2 = 0x8ebc6af09c88c6e3
)

// mix folds the 128-bit product of a and b.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Hash is the hash function of the syncd dialect (docs/protocol.md, section 7). It
// takes b in words of 8 octets, little-endian, the last one padded with zeros:
//
//	h = seed ^ K0
//	for each word: h = fold((h ^ word) * K1) + K2     (fold: high half xor low half)
//	result: fold((h ^ len(b)) * K0)
//
// It tells states apart that differ by accident; it is no defence against someone
// who may write messages.
func Hash(seed uint64, b []byte) uint64 {
	h := seed ^ hashK0
	n := uint64(len(b))
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h^binary.LittleEndian.Uint64(b), hashK1) + hashK2
	}
	if len(b) > 0 {
		var w [8]byte
		copy(w[:], b)
		h = mix(h^binary.LittleEndian.Uint64(w[:]), hashK1) + hashK2
	}
	return mix(h^n, hashK0)
}

// FlowHash returns the hash of what a data message says but for TIMEOUT, which runs by
// itself. msg is a whole message that AppendFlow or AppendExpect made or that a Reader
// accepted.
func FlowHash(seed uint64, msg []byte) uint64 {
	hash, _ := FlowHashes(seed, msg)
	return hash
}

// FlowHashes returns FlowHash and, of a message with STATE, the hash of all that is not in
// STATE, which StateHash takes; of any other message 0.
func FlowHashes(seed uint64, msg []byte) (hash, fixed uint64) {
	if len(msg) > 0 && Type(msg[0]&0xf) <= CTDel {
		if before, state, ok := splitState(msg); ok {
			fixed = Hash(seed, before)
			return StateHash(fixed, stateAt(state[4:])), fixed
		}
		return withoutTimeout(seed, msg, ctTimeout), 0
	}
	return withoutTimeout(seed, msg, expTimeout), 0
}

// withoutTimeout hashes the attributes of msg but the first with the number of TIMEOUT.
func withoutTimeout(seed uint64, msg []byte, timeout uint16) uint64 {
	body := msg[min(HeaderLen, len(msg)):]
	for at := 0; at+4 <= len(body); {
		n := int(binary.BigEndian.Uint16(body[at:]))
		if n < 4 || n > len(body)-at {
			break
		}
		if binary.BigEndian.Uint16(body[at+2:]) == timeout {
			end := min(at+(n+3)&^3, len(body))
			return Hash(Hash(seed, body[:at]), body[end:])
		}
		at += (n + 3) &^ 3
	}
	return Hash(Hash(seed, body), nil)
}

// StateHash returns the hash of a flow with this state of which all else has the hash fixed:
// fixed + Hash(fixed mod 2^32, status and what is behind the timeout). The seed makes what is
// added differ by flow, or the sum over a bucket would not see two flows exchange their
// states; it is short so that who keeps the hash of a flow can change the state in it with
// 32 bits more.
func StateHash(fixed uint64, s flow.State) uint64 { return fixed + stateHash(uint32(fixed), s) }

func stateHash(fixed uint32, s flow.State) uint64 {
	return hashWord(uint64(fixed), uint64(s.Status)<<32|uint64(s.Word&^flow.KnowsTimeout))
}

// hashWord is Hash of the eight octets of w, big-endian.
func hashWord(seed, w uint64) uint64 {
	return mix((mix(seed^hashK0^bits.ReverseBytes64(w), hashK1)+hashK2)^8, hashK0)
}

// ChangeState returns what becomes of the hash of a flow when its state changes from was
// to is. fixed is the low half of what FlowHashes returned.
func ChangeState(hash uint64, fixed uint32, was, is flow.State) uint64 {
	return hash - stateHash(fixed, was) + stateHash(fixed, is)
}

// Bucket returns the bucket of the flow with this identity, or of the expectation with
// this key: the low 7 bits of Hash with seed 0 over 40 octets: source (16), destination
// (16), source port, destination port and zone (2 each, big-endian), protocol, family
// number, with flow.ExpectKey for an expectation.
func Bucket(t *flow.Tuple) uint8 {
	var b [40]byte
	copy(b[:], t.Src[:])
	copy(b[16:], t.Dst[:])
	binary.BigEndian.PutUint16(b[32:], t.SrcPort)
	binary.BigEndian.PutUint16(b[34:], t.DstPort)
	binary.BigEndian.PutUint16(b[36:], t.Zone)
	b[38], b[39] = t.Proto, t.Family
	return uint8(Hash(0, b[:]) & (Buckets - 1))
}

package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Constants of the format, see the package documentation.
const (
	magic   = "SYNC"
	version = 1
	suite   = 1 // HKDF-SHA256, AES-256-GCM
	info    = "syncd seal v1" + string(rune(suite))

	offKey     = 6
	offSession = 8
	offCounter = 16

	tagSize   = 16
	nonceSize = 12
)

// HeaderSize is the length of the clear header. A plaintext that begins at this
// offset of a buffer can be sealed and opened in place.
const HeaderSize = 24

// Overhead is how many octets a sealed datagram is longer than its plaintext.
const Overhead = HeaderSize + tagSize

// newAEAD derives the traffic key of k and session. It allocates.
func newAEAD(k Key, session uint64) (cipher.AEAD, error) {
	var salt [8]byte
	binary.BigEndian.PutUint64(salt[:], session)
	secret, err := hkdf.Key(sha256.New, k.secret[:], salt[:], info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive a traffic key: %w", err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("set up AES: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("set up GCM: %w", err)
	}
	return aead, nil
}

// nonce is the storage of one nonce. It lives in a Box, because what is passed to
// an interface escapes to the heap.
type nonce [nonceSize]byte

// of returns the nonce of a counter.
func (n *nonce) of(counter uint64) []byte {
	binary.BigEndian.PutUint64(n[4:], counter)
	return n[:]
}

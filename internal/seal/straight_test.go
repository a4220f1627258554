package seal

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// A second implementation of the format, from the standards and without the
// package's own code, its constants included: the oracle of the tests.

// straightHMAC is RFC 2104 with SHA-256, for keys of at most 64 octets.
func straightHMAC(key []byte, msg ...byte) []byte {
	inner, outer := make([]byte, 64), make([]byte, 64)
	copy(inner, key)
	copy(outer, key)
	for i := range 64 {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	h := sha256.Sum256(append(inner, msg...))
	h = sha256.Sum256(append(outer, h[:]...))
	return h[:]
}

// straightHKDF is RFC 5869 for one block of output.
func straightHKDF(secret, salt, info []byte) []byte {
	prk := straightHMAC(salt, secret...)
	return straightHMAC(prk, append(append([]byte{}, info...), 1)...)
}

// straightMultiply is the multiplication of NIST SP 800-38D, section 6.3, bit by
// bit.
func straightMultiply(x, y [16]byte) (z [16]byte) {
	v := y
	for i := range 128 {
		if x[i/8]>>(7-i%8)&1 != 0 {
			for j := range z {
				z[j] ^= v[j]
			}
		}
		carry := v[15] & 1
		for j := 15; j > 0; j-- {
			v[j] = v[j]>>1 | v[j-1]<<7
		}
		v[0] >>= 1
		if carry != 0 {
			v[0] ^= 0xe1
		}
	}
	return z
}

// straightGCM is the encryption of NIST SP 800-38D, section 7.1, for nonces of 12
// octets.
func straightGCM(key, nonce, plaintext, aad []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	encrypt := func(in [16]byte) (out [16]byte) {
		block.Encrypt(out[:], in[:])
		return out
	}
	counter := func(n uint32) (c [16]byte) {
		copy(c[:], nonce)
		binary.BigEndian.PutUint32(c[12:], n)
		return c
	}
	var out []byte
	for i, p := range plaintext {
		stream := encrypt(counter(uint32(i/16 + 2)))
		out = append(out, p^stream[i%16])
	}
	h := encrypt([16]byte{})
	var s [16]byte
	absorb := func(data []byte) {
		for len(data) > 0 {
			n := min(16, len(data))
			for i, d := range data[:n] {
				s[i] ^= d
			}
			s = straightMultiply(s, h)
			data = data[n:]
		}
	}
	absorb(aad)
	absorb(out)
	var lengths [16]byte
	binary.BigEndian.PutUint64(lengths[:], uint64(len(aad))*8)
	binary.BigEndian.PutUint64(lengths[8:], uint64(len(out))*8)
	absorb(lengths[:])
	mask := encrypt(counter(1))
	for i := range s {
		out = append(out, s[i]^mask[i])
	}
	return out
}

// straightSeal is the format as the package documentation states it.
func straightSeal(key []byte, session, counter uint64, plaintext []byte) (datagram, trafficKey []byte) {
	sum := sha256.Sum256(append([]byte("syncd key id v1"), key...))
	salt := binary.BigEndian.AppendUint64(nil, session)
	trafficKey = straightHKDF(key, salt, []byte("syncd seal v1\x01"))
	datagram = append(datagram, 'S', 'Y', 'N', 'C', 1, 1, sum[0], sum[1])
	datagram = append(datagram, salt...)
	datagram = binary.BigEndian.AppendUint64(datagram, counter)
	nonce := binary.BigEndian.AppendUint64(make([]byte, 4), counter)
	return append(datagram, straightGCM(trafficKey, nonce, plaintext, datagram)...), trafficKey
}

// The oracle itself is held against published vectors.
func TestStraight(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// RFC 5869, appendix A.1; the first 32 octets of its 42.
	okm := straightHKDF(unhex("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
		unhex("000102030405060708090a0b0c"), unhex("f0f1f2f3f4f5f6f7f8f9"))
	if got, want := hex.EncodeToString(okm), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"; got != want {
		t.Errorf("HKDF: %s, want %s", got, want)
	}
	// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 16.
	ct := straightGCM(unhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"), unhex("cafebabefacedbaddecaf888"),
		unhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"),
		unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"))
	if got, want := hex.EncodeToString(ct), "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"+
		"76fc6ece0f4e1768cddf8853bb2d551b"; got != want {
		t.Errorf("GCM: %s, want %s", got, want)
	}
}

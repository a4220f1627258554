package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Key is a secret that all nodes of a cluster share. Keys can be compared with ==;
// the zero Key is none.
type Key struct{ secret [32]byte }

// keyWord begins the line of a key file that holds the key.
const keyWord = "syncd-key-1"

// keyIDLabel keeps the id apart from every other use of the key.
const keyIDLabel = "syncd key id v1"

// NewKey returns a random key.
func NewKey() Key {
	var k Key
	rand.Read(k.secret[:]) // does not fail
	return k
}

// ID returns the id that datagrams name the key by. It is no secret; two keys in
// 65536 have the same.
func (k Key) ID() uint16 {
	sum := sha256.Sum256(append([]byte(keyIDLabel), k.secret[:]...))
	return binary.BigEndian.Uint16(sum[:])
}

// Format implements fmt.Formatter: whatever the verb, it is the id that is printed
// and never the secret.
func (k Key) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key 0x%04x", k.ID()) }

// Text returns the content of a key file.
func (k Key) Text() []byte {
	return fmt.Appendf(nil, "# syncd %v. Who has it can read and forge what the nodes send to each other.\n%s %s\n",
		k, keyWord, base64.StdEncoding.EncodeToString(k.secret[:]))
}

// ParseKey reads the content of a key file: one line "syncd-key-1 " and the
// base64 of 32 octets, beside empty lines and comments (lines that begin with #).
// Errors say what is wrong in which line, and contain nothing of the text.
func ParseKey(text []byte) (Key, error) {
	var k Key
	found := 0 // line of the key
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if found != 0 {
			return Key{}, fmt.Errorf("line %d: there is a key in line %d already; a file holds one", n, found)
		}
		found = n
		if err := k.parse(line); err != nil {
			return Key{}, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if found == 0 {
		return Key{}, errors.New("there is no key in it")
	}
	return k, nil
}

// parse reads the line that holds the key.
func (k *Key) parse(line []byte) error {
	word, secret, _ := bytes.Cut(line, []byte(" "))
	if string(word) != keyWord {
		return errors.New("want \"" + keyWord + " \" and the key in base64")
	}
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, bytes.TrimSpace(secret))
	switch {
	case err != nil: // names an offset only, and that of the trimmed text
		return errors.New("the key is not in base64 (44 characters, the last one is =)")
	case len(b) != len(k.secret):
		return fmt.Errorf("the key has %d octets, want %d", len(b), len(k.secret))
	}
	copy(k.secret[:], b)
	if *k == (Key{}) {
		return errors.New("the key is all zeros")
	}
	return nil
}

// readKey is ParseKey for a reader. It reads no more than a key file can need.
func readKey(r io.Reader) (Key, error) {
	const limit = 64 << 10
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return Key{}, err
	}
	if len(text) > limit {
		return Key{}, fmt.Errorf("it has more than %d octets: that is no key file", limit)
	}
	return ParseKey(text)
}

package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"syncd/internal/monotime"
)

// maxKeys bounds the keys of a Box. A rotation needs two.
const maxKeys = 16

// Box seals the datagrams of this node and opens those of its peers. The package
// documentation says which methods may run at the same time.
type Box struct {
	session uint64
	keys    []boxKey // the first seals; ids are unique

	// The sealing half.
	counter   uint64 // of the last datagram sealed
	header    [offCounter]byte
	aead      cipher.AEAD // traffic key of keys[0] and session
	sealNonce nonce

	// The opening half. Peer.box of every peer in the map is this Box.
	peers     map[uint64]*Peer // by session
	heard     uint64           // authentic datagrams so far, to order peers by their last one
	derive    limiter
	openNonce nonce

	// Stats counts what Open was given. It belongs to the opening half.
	Stats Stats
	// Forgotten counts sessions that were dropped to make room. In a healthy
	// cluster it stays zero. It belongs to the opening half.
	Forgotten uint64
}

// boxKey is a configured key.
type boxKey struct {
	Key
	id uint16
}

// NewSession returns a random session id. A process uses one for one Box: two boxes
// with the same session and key would repeat their nonces.
func NewSession() uint64 {
	var b [8]byte
	rand.Read(b[:]) // does not fail
	return binary.BigEndian.Uint64(b[:])
}

// New returns a Box that seals as session, which must be new (see NewSession). Its
// errors are those of SetKeys.
func New(session uint64, keys []Key) (*Box, error) {
	b := &Box{session: session, peers: make(map[uint64]*Peer)}
	copy(b.header[:], magic)
	b.header[4], b.header[5] = version, suite
	binary.BigEndian.PutUint64(b.header[offSession:], session)
	if err := b.SetKeys(keys); err != nil {
		return nil, err
	}
	return b, nil
}

// Session returns the session id of this node.
func (b *Box) Session() uint64 { return b.session }

// Peer returns the session with this id, or nil if it is not known. It belongs to the
// opening half.
func (b *Box) Peer(session uint64) *Peer { return b.peers[session] }

// Sealed returns how many datagrams Seal has sealed.
func (b *Box) Sealed() uint64 { return b.counter }

// SetKeys replaces the keys: the first seals from now on, all of them open. Sessions,
// counters and windows stay. An error leaves the keys as they were; it names keys
// by their place in the list, counted from 1, and their id.
func (b *Box) SetKeys(keys []Key) error {
	switch {
	case len(keys) == 0:
		return errors.New("seal: no keys")
	case len(keys) > maxKeys:
		return fmt.Errorf("seal: %d keys, at most %d can be used at once", len(keys), maxKeys)
	}
	list := make([]boxKey, 0, len(keys))
	for i, k := range keys {
		id := k.ID()
		if k == (Key{}) {
			return fmt.Errorf("seal: key %d is empty", i+1)
		}
		// With unique ids the header alone decides which key is tried.
		for j, other := range list {
			if other.Key == k {
				return fmt.Errorf("seal: keys %d and %d are the same (id 0x%04x)", j+1, i+1, id)
			}
			if other.id == id {
				return fmt.Errorf("seal: keys %d and %d have the same id 0x%04x by chance: make another key", j+1, i+1, id)
			}
		}
		list = append(list, boxKey{k, id})
	}
	aead, err := newAEAD(list[0].Key, b.session)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	b.keys, b.aead = list, aead
	binary.BigEndian.PutUint16(b.header[offKey:], list[0].id)
	for _, p := range b.peers {
		p.traffic = make([]cipher.AEAD, len(list)) // derived again when needed
	}
	return nil
}

// Seal appends the sealed datagram of plaintext to dst. It allocates only if dst
// has no room for Overhead octets more than plaintext. To seal in place, plaintext
// is what follows dst after HeaderSize octets; any other overlap is a mistake of
// the caller and panics. After 2^64-1 datagrams it returns dst as it is.
func (b *Box) Seal(dst, plaintext []byte) []byte {
	if b.counter == math.MaxUint64 {
		return dst
	}
	b.counter++
	start := len(dst)
	dst = append(dst, b.header[:]...)
	dst = binary.BigEndian.AppendUint64(dst, b.counter)
	return b.aead.Seal(dst, b.sealNonce.of(b.counter), plaintext, dst[start:])
}

// Open checks a datagram, in the order of the Faults, and appends its plaintext to
// dst. Without a fault, peer is the session that sealed it: unless peer.Met, the
// plaintext may be as old as the key, and only the greeting in it may be used.
//
// Open does not allocate if dst has room for the plaintext, except to derive the
// traffic key of a session: once for each key, and for unknown sessions as often as
// the limit allows. To open in place, dst is datagram[HeaderSize:HeaderSize]; any
// other overlap is a mistake of the caller and panics. A forged datagram leaves
// zeros behind dst.
func (b *Box) Open(dst, datagram []byte, now monotime.Time) (plain []byte, peer *Peer, fault Fault) {
	key, fault := b.checkHeader(datagram)
	if fault != FaultNone {
		return nil, nil, b.drop(nil, fault)
	}
	session := binary.BigEndian.Uint64(datagram[offSession:])
	counter := binary.BigEndian.Uint64(datagram[offCounter:])
	p := b.peers[session]
	if p != nil {
		if fault = p.window.check(counter); fault != FaultNone {
			return nil, nil, b.drop(p, fault)
		}
	}
	aead, fault := b.traffic(p, key, session, now)
	if fault != FaultNone {
		return nil, nil, b.drop(p, fault)
	}
	plain, err := aead.Open(dst, b.openNonce.of(counter), datagram[HeaderSize:], datagram[:HeaderSize])
	if err != nil {
		return nil, nil, b.drop(p, FaultForged)
	}
	if p == nil {
		p = b.greet(session)
		p.traffic[key] = aead
	}
	p.window.mark(counter)
	b.heard++
	p.heard = b.heard
	b.Stats.Opened++
	p.Stats.Opened++
	return plain, p, FaultNone
}

// checkHeader does the checks that need no session, and returns the index of the key
// that the header names.
func (b *Box) checkHeader(datagram []byte) (key int, fault Fault) {
	switch {
	case len(datagram) < Overhead:
		return 0, FaultShort
	case string(datagram[:len(magic)]) != magic:
		return 0, FaultMagic
	case datagram[4] != version:
		return 0, FaultVersion
	case datagram[5] != suite:
		return 0, FaultSuite
	}
	id := binary.BigEndian.Uint16(datagram[offKey:])
	key = slices.IndexFunc(b.keys, func(k boxKey) bool { return k.id == id })
	switch {
	case key < 0:
		return 0, FaultKey
	case binary.BigEndian.Uint64(datagram[offSession:]) == b.session:
		return 0, FaultReflected
	case binary.BigEndian.Uint64(datagram[offCounter:]) == 0:
		return 0, FaultOld // never sealed
	}
	return key, FaultNone
}

// traffic returns the traffic key of a key and a session, which is unknown if p is
// nil.
func (b *Box) traffic(p *Peer, key int, session uint64, now monotime.Time) (cipher.AEAD, Fault) {
	switch {
	case p == nil && !b.derive.allow(now):
		return nil, FaultFlood
	case p != nil && p.traffic[key] != nil:
		return p.traffic[key], FaultNone
	}
	aead, err := newAEAD(b.keys[key].Key, session)
	if err != nil { // SetKeys has made one of the same kind
		return nil, FaultForged
	}
	if p != nil {
		// Kept even if the datagram turns out to be forged: at most one for each key,
		// so that forging costs us no second derivation.
		p.traffic[key] = aead
	}
	return aead, FaultNone
}

// drop counts a fault, for the session that the datagram names too if it is known.
func (b *Box) drop(p *Peer, f Fault) Fault {
	b.Stats.Faults[f]++
	if p != nil {
		p.Stats.Faults[f]++
	}
	return f
}

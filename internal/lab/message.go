package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// messageSize is the length in octets of every message of the traffic, on TCP a
// frame and on UDP a datagram.
const messageSize = 160

const messageMagic = 0x4c61_6254 // "LabT"

// What a message is.
const (
	kindHello  = 1 + iota // dialing side: here I am, with the pattern that I want
	kindAsk               // dialing side, Echo
	kindAnswer            // far side: to a hello or an ask, with its number
	kindPush              // far side, Push
)

// message is one unit of traffic. In octets, big-endian: 0 magic, 4 kind,
// 5 pattern, 8 id, 12 interval in microseconds, 16 number, 24 address seen,
// 40 its port, 42 nothing, 48 to the end a filling that follows from the rest.
type message struct {
	kind     byte
	pattern  Pattern
	id       uint32        // of the connection, as the dialing side counts
	interval time.Duration // of the pushes that are asked for
	number   uint64

	// seen is the dialing side's address and port as the far side sees them.
	// Messages of the dialing side leave it unset.
	seen netip.AddrPort
}

var errDamaged = errors.New("damaged message")

// append appends the message in its messageSize octets.
func (m message) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, messageMagic)
	b = append(b, m.kind, byte(m.pattern), 0, 0)
	b = binary.BigEndian.AppendUint32(b, m.id)
	b = binary.BigEndian.AppendUint32(b, uint32(m.interval.Microseconds()))
	b = binary.BigEndian.AppendUint64(b, m.number)
	seen := [16]byte{}
	if m.seen.IsValid() {
		seen = m.seen.Addr().As16()
	}
	b = append(b, seen[:]...)
	b = binary.BigEndian.AppendUint16(b, m.seen.Port())
	b = append(b, make([]byte, 6)...)
	for i := 48; i < messageSize; i++ {
		b = append(b, m.filling(i))
	}
	return b
}

// filling is the octet at place i: another one in every message, so that a piece
// of one message in another shows.
func (m message) filling(i int) byte {
	return byte(uint64(i)*31 + m.number*7 + uint64(m.id)*13 + uint64(m.kind))
}

// parse reads a message and checks every octet of it.
func parse(b []byte) (message, error) {
	if len(b) != messageSize || binary.BigEndian.Uint32(b) != messageMagic {
		return message{}, errDamaged
	}
	m := message{
		kind:     b[4],
		pattern:  Pattern(b[5]),
		id:       binary.BigEndian.Uint32(b[8:]),
		interval: time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Microsecond,
		number:   binary.BigEndian.Uint64(b[16:]),
	}
	if addr := netip.AddrFrom16([16]byte(b[24:40])); addr != netip.IPv6Unspecified() {
		m.seen = netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(b[40:]))
	}
	for i := 48; i < messageSize; i++ {
		if b[i] != m.filling(i) {
			return message{}, errDamaged
		}
	}
	return m, nil
}

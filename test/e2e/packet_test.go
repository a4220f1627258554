package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// rawEndpoint sends and receives packets of a protocol that no socket here speaks:
// they are made by hand.
type rawEndpoint struct {
	*net.IPConn
	at   netip.AddrPort
	pack func(to netip.AddrPort, payload []byte) []byte
	// unpack returns the payload of a packet and the port that it came from, or
	// false if it is none of this end.
	unpack func(packet []byte) (port uint16, payload []byte, ok bool)
}

// openRaw opens a raw socket. The functions of the end are left to the caller.
func openRaw(t testing.TB, n *lab.Node, proto uint8, at netip.AddrPort) *rawEndpoint {
	t.Helper()
	r := &rawEndpoint{at: at}
	family := "ip4"
	if at.Addr().Is6() {
		family = "ip6"
	}
	ok(t, n.Do(func() error {
		c, err := net.ListenPacket(fmt.Sprintf("%s:%d", family, proto), at.Addr().String())
		if err != nil {
			return err
		}
		r.IPConn = c.(*net.IPConn)
		return nil
	}))
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (r *rawEndpoint) local() netip.AddrPort { return r.at }

func (r *rawEndpoint) send(to netip.AddrPort, payload []byte) error {
	_, err := r.WriteTo(r.pack(to, payload), &net.IPAddr{IP: to.Addr().AsSlice()})
	return err
}

func (r *rawEndpoint) receive(payload []byte) (netip.AddrPort, error) {
	if err := r.SetReadDeadline(time.Now().Add(transit)); err != nil {
		return netip.AddrPort{}, err
	}
	b := make([]byte, 2048)
	for {
		n, seen, err := r.ReadFrom(b)
		if err != nil {
			return netip.AddrPort{}, err
		}
		port, p, mine := r.unpack(b[:n])
		if mine && string(p) == string(payload) {
			addr, _ := netip.AddrFromSlice(seen.(*net.IPAddr).IP)
			return netip.AddrPortFrom(addr.Unmap(), port), nil
		}
	}
}

// openEcho opens one end of an ICMP or ICMPv6 echo. The near one asks, and its port
// is the identifier; the far one answers by hand, to whatever identifier it saw.
func openEcho(t testing.TB, n *lab.Node, at netip.AddrPort, far bool) *rawEndpoint {
	t.Helper()
	proto, request, reply := uint8(flow.ICMP), icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if at.Addr().Is6() {
		proto, request, reply = flow.ICMPv6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	out, in := request, reply
	if far {
		out, in = reply, request
	}
	r := openRaw(t, n, proto, at)
	r.pack = func(to netip.AddrPort, payload []byte) []byte {
		id := at.Port()
		if far {
			id = to.Port()
		}
		b, err := (&icmp.Message{Type: out, Body: &icmp.Echo{ID: int(id), Seq: 1, Data: payload}}).Marshal(nil)
		ok(t, err)
		return b
	}
	r.unpack = func(packet []byte) (uint16, []byte, bool) {
		m, err := icmp.ParseMessage(int(proto), packet)
		if err != nil || m.Type != in {
			return 0, nil, false
		}
		echo := m.Body.(*icmp.Echo)
		if far {
			return uint16(echo.ID), echo.Data, true
		}
		return 0, echo.Data, uint16(echo.ID) == at.Port()
	}
	return r
}

// openGRE opens one end of a GRE tunnel; payloads are whole GRE packets.
func openGRE(t testing.TB, n *lab.Node, addr netip.Addr) *rawEndpoint {
	t.Helper()
	r := openRaw(t, n, flow.GRE, netip.AddrPortFrom(addr, 0))
	r.pack = func(_ netip.AddrPort, payload []byte) []byte { return payload }
	r.unpack = func(packet []byte) (uint16, []byte, bool) { return 0, packet, true }
	return r
}

// greKeyed returns a GRE packet with a key (RFC 2890).
func greKeyed(key uint32, payload []byte) []byte {
	const keyPresent, etherTypeTEB = 0x2000, 0x6558
	b := binary.BigEndian.AppendUint16(nil, keyPresent)
	b = binary.BigEndian.AppendUint16(b, etherTypeTEB)
	b = binary.BigEndian.AppendUint32(b, key)
	return append(b, payload...)
}

// greCall returns an enhanced GRE packet, as of PPTP (RFC 2637), of a call.
func greCall(call uint16, payload []byte) []byte {
	const keyPresent, version1, etherTypePPP = 0x2000, 0x0001, 0x880b
	b := binary.BigEndian.AppendUint16(nil, keyPresent|version1)
	b = binary.BigEndian.AppendUint16(b, etherTypePPP)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = binary.BigEndian.AppendUint16(b, call)
	return append(b, payload...)
}

// openSCTP opens one end of an SCTP association. The payload of a packet is what
// follows on its ports: verification tag and chunks, but not the checksum.
func openSCTP(t testing.TB, n *lab.Node, at netip.AddrPort) *rawEndpoint {
	t.Helper()
	const header = 12 // ports, verification tag, checksum: RFC 9260, section 3.1
	r := openRaw(t, n, flow.SCTP, at)
	r.pack = func(to netip.AddrPort, payload []byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, at.Port())
		b = binary.BigEndian.AppendUint16(b, to.Port())
		b = append(b, payload[:4]...)
		b = append(b, 0, 0, 0, 0)
		b = append(b, payload[4:]...)
		// Appendix A: the checksum goes out with its low octet first.
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	}
	r.unpack = func(p []byte) (uint16, []byte, bool) {
		if len(p) < header || binary.BigEndian.Uint16(p[2:]) != at.Port() {
			return 0, nil, false
		}
		return binary.BigEndian.Uint16(p), append(append([]byte(nil), p[4:8]...), p[header:]...), true
	}
	return r
}

// Chunks of SCTP (RFC 9260, section 3.2).
const (
	chunkData       = 0
	chunkInit       = 1
	chunkInitAck    = 2
	chunkSACK       = 3
	chunkCookieEcho = 10
	chunkCookieAck  = 11
)

// association is an SCTP association between two ends that are made by hand.
type association struct {
	datagrams
	nearTag, farTag uint32 // verification tags: what each end wants to find in packets to it
	tsn             uint32
}

// sctp returns a verification tag and one chunk.
func sctp(tag uint32, typ, flags byte, value ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = append(b, typ, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// sctpInit returns the value of an INIT chunk.
func sctpInit(tag uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 65536)    // receiver window
	b = binary.BigEndian.AppendUint32(b, 10<<16|5) // streams out and in
	return binary.BigEndian.AppendUint32(b, 1)     // first TSN
}

// associate begins an association; establish completes it.
func associate(t testing.TB, w way, port uint16, nearTag, farTag uint32) *association {
	t.Helper()
	a := &association{nearTag: nearTag, farTag: farTag, datagrams: datagrams{
		near: openSCTP(t, w.near, netip.AddrPortFrom(w.src, port)),
		far:  openSCTP(t, w.far, w.at),
		to:   w.to,
	}}
	cookie := []byte{0, 7, 0, 8, 'c', 'o', 'o', 'k'} // a parameter: type 7, length 8
	ok(t, a.toFar(sctp(0, chunkInit, 0, sctpInit(nearTag)...)))
	ok(t, a.toNear(sctp(nearTag, chunkInitAck, 0, append(sctpInit(farTag), cookie...)...)))
	ok(t, a.toFar(sctp(farTag, chunkCookieEcho, 0, cookie[4:]...)))
	return a
}

func (a *association) establish() error {
	return a.toNear(sctp(a.nearTag, chunkCookieAck, 0))
}

// data returns a DATA chunk with a tag, sack what acknowledges the last one.
func (a *association) data(tag uint32) []byte {
	a.tsn++
	b := binary.BigEndian.AppendUint32(nil, a.tsn)
	b = append(b, make([]byte, 8)...) // stream, number in the stream, protocol
	const whole = 3                   // begins and ends here
	return sctp(tag, chunkData, whole, append(b, a.payload()...)...)
}

func (a *association) sack(tag uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, a.tsn)
	b = binary.BigEndian.AppendUint32(b, 65536)
	return sctp(tag, chunkSACK, 0, append(b, 0, 0, 0, 0)...)
}

// goOn sends data from both ends, the far one first, each acknowledged by the
// other.
func (a *association) goOn() error {
	return errors.Join(
		a.toNear(a.data(a.nearTag)), a.toFar(a.sack(a.farTag)),
		a.toFar(a.data(a.farTag)), a.toNear(a.sack(a.nearTag)))
}

// wrong sends data with verification tags that are wrong: the other end's, and one
// that is nobody's.
func (a *association) wrong() (uint64, error) {
	return 4, errors.Join(
		a.near.send(a.to, a.data(a.nearTag)), a.near.send(a.to, a.data(a.farTag+1)),
		a.far.send(a.seen, a.data(a.farTag)), a.far.send(a.seen, a.data(a.nearTag+1)))
}

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"syncd/internal/lab"
	"syncd/test/bench/rig"
)

// packetLoad sends the packets of TCP connections through A, from raw sockets on both
// sides of it: the kernel itself makes, changes and ends the flows.
type packetLoad struct {
	sides [2]*rawSide // client, server
	lives []packetLife
	next  int
}

type packetLife struct {
	step  uint8
	round uint32 // how often its ports were used before
}

// steps are the packets of a connection. After the last one the flow is in TIME_WAIT,
// and the next SYN with the same ports ends it and begins another.
var steps = []struct {
	server bool
	flags  byte
	// Sequence numbers relative to the initial ones of both sides.
	seq, ack uint32
}{
	{false, syn, 0, 0},
	{true, syn | ack, 0, 1},
	{false, ack, 1, 1},
	{false, fin | ack, 1, 1},
	{true, ack, 1, 2},
	{true, fin | ack, 1, 2},
	{false, ack, 2, 2},
}

const fin, syn, ack = 0x01, 0x02, 0x10

const packetLen = 14 + 20 + 20 // Ethernet, IPv4, TCP without options

func newPacketLoad(r *rig.Rig, lives int) (*packetLoad, error) {
	p := &packetLoad{lives: make([]packetLife, lives)}
	for i, end := range []struct {
		node, gateway *lab.Node
		ifname        string // of the gateway
	}{{r.Client, r.A, rig.IfInside}, {r.Server, r.A, rig.IfOutside}} {
		s, err := openSide(end.node, end.gateway, end.ifname)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.sides[i] = s
	}
	return p, nil
}

func (p *packetLoad) close() error {
	var errs []error
	for _, s := range p.sides {
		if s != nil {
			errs = append(errs, unix.Close(s.fd))
		}
	}
	return errors.Join(errs...)
}

// rawSide sends frames on the interface of one node.
type rawSide struct {
	fd   int
	head [14]byte // Ethernet
	buf  [][packetLen]byte
}

func openSide(n, gateway *lab.Node, gatewayIf string) (s *rawSide, err error) {
	s = &rawSide{}
	var to net.HardwareAddr
	if err := gateway.Do(func() error {
		l, err := netlink.LinkByName(gatewayIf)
		if err == nil {
			to = l.Attrs().HardwareAddr
		}
		return err
	}); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		l, err := netlink.LinkByName(rig.IfHost)
		if err != nil {
			return err
		}
		copy(s.head[:], to)
		copy(s.head[6:], l.Attrs().HardwareAddr)
		binary.BigEndian.PutUint16(s.head[12:], unix.ETH_P_IP)
		// Protocol 0: nothing is received.
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
	})
	return s, err
}

// flush sends what is in buf. Frames go one by one: the kernel works each off, to the
// end of its way through A, before the next one.
func (s *rawSide) flush() error {
	for i := range s.buf {
		if _, err := unix.Write(s.fd, s.buf[i][:]); err != nil && err != unix.ENOBUFS {
			return fmt.Errorf("send packet: %w", err)
		}
	}
	s.buf = s.buf[:0]
	return nil
}

// send sends packets at a rate.
func (p *packetLoad) send(ctx context.Context, rate int, d time.Duration) (packets int, took time.Duration, err error) {
	return pace(ctx, rate, 0, d, func(due int) error {
		for range due {
			l := &p.lives[p.next]
			st := &steps[l.step]
			s := p.sides[0]
			if st.server {
				s = p.sides[1]
			}
			s.buf = append(s.buf, [packetLen]byte{})
			s.packet(&s.buf[len(s.buf)-1], uint32(p.next), l)
			if l.step++; int(l.step) == len(steps) {
				l.step = 0
				l.round++
			}
			p.next = (p.next + 1) % len(p.lives)
		}
		return errors.Join(p.sides[0].flush(), p.sides[1].flush())
	})
}

// packet writes the next packet of life n.
func (s *rawSide) packet(b *[packetLen]byte, n uint32, l *packetLife) {
	st := &steps[l.step]
	src, sport := key(n, targetPacket)
	dst, dport := targetPacket, uint16(443)
	// The initial numbers of a later connection lie beyond those of an earlier one.
	seq, ackNo := 1000+l.round<<16+st.seq, 5000+l.round<<16+st.ack
	if st.server {
		src, dst, sport, dport = dst, src, dport, sport
		seq, ackNo = 5000+l.round<<16+st.seq, 1000+l.round<<16+st.ack
	}
	if st.flags&ack == 0 {
		ackNo = 0
	}
	copy(b[:], s.head[:])
	ip := b[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], packetLen-14)
	binary.BigEndian.PutUint32(ip[12:], src)
	binary.BigEndian.PutUint32(ip[16:], dst)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip, 0)))
	tcp := b[34:]
	binary.BigEndian.PutUint16(tcp, sport)
	binary.BigEndian.PutUint16(tcp[2:], dport)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ackNo)
	tcp[12], tcp[13] = 5<<4, st.flags
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(tcp, sum(ip[12:20], unix.IPPROTO_TCP+20))))
}

// sum adds the 16-bit words of b (RFC 1071); fold brings a sum to 16 bits.
func sum(b []byte, s uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

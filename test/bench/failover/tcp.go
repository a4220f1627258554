package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tcpRST = 4
	tcpACK = 16
)

// tcpConn is an established connection whose both ends are ordinary sockets. Nothing is
// written while it is probed: TCP's own timers, which grow with every loss, would hide
// when the path was there again.
type tcpConn struct {
	net.Conn
}

// sequence reads the numbers of a connection at rest: of the octet that would be sent
// next, and of the one that is expected next (tcp(7), TCP_REPAIR).
func (t tcpConn) sequence() (next, want uint32, err error) {
	raw, err := t.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	const ( // enum of linux/tcp.h
		recvQueue = 1
		sendQueue = 2
		offNoWP   = -1 // without a window probe
	)
	queue := func(fd, which int) (uint32, error) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, which); err != nil {
			return 0, err
		}
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		return uint32(n), err
	}
	cerr := raw.Control(func(f uintptr) {
		fd := int(f)
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return
		}
		var serr, rerr error
		next, serr = queue(fd, sendQueue)
		want, rerr = queue(fd, recvQueue)
		err = errors.Join(serr, rerr, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, offNoWP))
	})
	if err = errors.Join(err, cerr); err != nil {
		return 0, 0, fmt.Errorf("numbers of a TCP connection: %w", err)
	}
	return next, want, nil
}

// lives reports whether data passes in both directions.
func (t tcpConn) lives() bool {
	if t.SetDeadline(time.Now().Add(3*time.Second)) != nil {
		return false
	}
	b := []byte("there?")
	if _, err := t.Write(b); err != nil {
		return false
	}
	_, err := io.ReadFull(t, b)
	return err == nil && string(b) == "there?"
}

// serveTCP echoes what comes over connections until the listener is closed.
func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the client judges
		}()
	}
}

// keepalive returns the segment of TCP's keep-alive: the last octet once more, which the
// far side has (RFC 9293, section 3.8.4). It is answered at once.
func keepalive(c *connection, from netip.Addr, to netip.AddrPort) [21]byte {
	var b [21]byte
	binary.BigEndian.PutUint16(b[0:], c.port)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], c.next-1)
	binary.BigEndian.PutUint32(b[8:], c.want)
	b[12], b[13] = 5<<4, tcpACK
	binary.BigEndian.PutUint16(b[14:], 500) // window
	// The checksum of RFC 9293, section 3.1, with its pseudo header.
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(b))
	src, dst := from.As4(), to.Addr().As4()
	for _, part := range [][]byte{src[:], dst[:], b[:]} {
		for i, octet := range part {
			if i%2 == 0 {
				sum += uint32(octet) << 8
			} else {
				sum += uint32(octet)
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}

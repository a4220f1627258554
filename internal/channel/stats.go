package channel

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Stats are the counters of a link since it was opened; Reopen keeps them.
type Stats struct {
	// Sent counts each datagram once for each destination that the kernel took
	// it for; Received counts the datagrams that Receive delivered.
	SentDatagrams, SentOctets         uint64
	ReceivedDatagrams, ReceivedOctets uint64

	SendErrors SendErrors
	Drops      Drops
}

// SendErrors counts datagrams that were not sent, by reason and destination.
type SendErrors struct {
	Full        uint64 // the send buffer stayed full (EAGAIN)
	NoBuffer    uint64 // no memory, or the queue of the interface was full (ENOBUFS, ENOMEM)
	Unreachable uint64 // no route to a peer (ENETUNREACH, EHOSTUNREACH)
	Down        uint64 // the interface is down or gone (ENETDOWN, ENODEV, ENXIO)
	Refused     uint64 // no one listens at a peer (ECONNREFUSED)
	TooLong     uint64 // more than MaxPayload (EMSGSIZE)
	Denied      uint64 // a local firewall rule or security policy (EPERM, EACCES)
	Other       uint64
}

// Drops counts datagrams that arrived and were not delivered, by reason.
type Drops struct {
	Kernel         uint64 // the kernel dropped them: receive buffer full, or wrong checksum
	Foreign        uint64 // the sender is not a peer
	WrongInterface uint64 // they came by another interface
	Own            uint64 // this node sent them
	Truncated      uint64 // longer than a buffer of the Batch
}

// counters is the live form of Stats. Send and Receive write it, anyone reads.
type counters struct {
	sentDatagrams, sentOctets         atomic.Uint64
	receivedDatagrams, receivedOctets atomic.Uint64

	full, noBuffer, unreachable, down, refused, tooLong, denied, otherError atomic.Uint64

	foreign, wrongInterface, own, truncated atomic.Uint64
}

// sendError returns the counter of an error of sending, and whether the error
// belongs to the ordinary life of a link, which its user need not hear of.
func (c *counters) sendError(errno unix.Errno) (n *atomic.Uint64, ordinary bool) {
	switch errno {
	case unix.EAGAIN:
		return &c.full, true
	case unix.ENOBUFS, unix.ENOMEM:
		return &c.noBuffer, true
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		return &c.unreachable, true
	case unix.ENETDOWN, unix.ENODEV, unix.ENXIO:
		return &c.down, true
	case unix.ECONNREFUSED:
		return &c.refused, true
	case unix.EMSGSIZE:
		return &c.tooLong, false
	case unix.EPERM, unix.EACCES:
		return &c.denied, false
	}
	return &c.otherError, false
}

// Stats returns a snapshot. Each counter is exact; together they are not from one
// instant.
func (l *Link) Stats() Stats {
	l.mu.Lock()
	kernel := l.pastDrops
	if s := l.current.Load(); s != nil {
		kernel += s.kernelDrops()
	}
	l.mu.Unlock()
	c := &l.counters
	return Stats{
		SentDatagrams:     c.sentDatagrams.Load(),
		SentOctets:        c.sentOctets.Load(),
		ReceivedDatagrams: c.receivedDatagrams.Load(),
		ReceivedOctets:    c.receivedOctets.Load(),
		SendErrors: SendErrors{
			Full:        c.full.Load(),
			NoBuffer:    c.noBuffer.Load(),
			Unreachable: c.unreachable.Load(),
			Down:        c.down.Load(),
			Refused:     c.refused.Load(),
			TooLong:     c.tooLong.Load(),
			Denied:      c.denied.Load(),
			Other:       c.otherError.Load(),
		},
		Drops: Drops{
			Kernel:         kernel,
			Foreign:        c.foreign.Load(),
			WrongInterface: c.wrongInterface.Load(),
			Own:            c.own.Load(),
			Truncated:      c.truncated.Load(),
		},
	}
}

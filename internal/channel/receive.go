package channel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/gate"
	"syncd/internal/monotime"
)

// controlSize is room for the packet information of either family (RFC 3542 6,
// ip(7)), the only control message that is asked for.
const controlSize = 64

// A Batch is a set of buffers for datagrams. It belongs to one goroutine at a
// time.
type Batch struct {
	N int // datagrams that the last Receive delivered

	size   int // of a buffer, in octets
	buf    []byte
	ctrl   []byte
	names  []rawAddr
	iovs   []unix.Iovec
	hdrs   []unix.Mmsghdr // slot i of all of these belongs to hdrs[i]
	used   int            // slots before this one carry what the kernel wrote there
	kept   []int          // slots of the datagrams 0 to N-1
	origin []netip.AddrPort
}

// NewBatch returns a Batch for up to n datagrams of up to size octets each. Both
// must be positive. A longer datagram is dropped and counted as truncated.
func NewBatch(n, size int) *Batch {
	b := &Batch{
		size:   size,
		buf:    make([]byte, n*size),
		ctrl:   make([]byte, n*controlSize),
		names:  make([]rawAddr, n),
		iovs:   make([]unix.Iovec, n),
		hdrs:   make([]unix.Mmsghdr, n),
		used:   n,
		kept:   make([]int, n),
		origin: make([]netip.AddrPort, n),
	}
	for i := range b.hdrs {
		b.iovs[i].Base = &b.buf[i*size]
		b.iovs[i].SetLen(size)
		h := &b.hdrs[i].Hdr
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Name = b.names[i].octets()
		h.Control = &b.ctrl[i*controlSize]
	}
	return b
}

// Datagram returns the octets of datagram i, 0 <= i < N. They are valid until the
// next Receive.
func (b *Batch) Datagram(i int) []byte {
	slot := b.kept[i]
	return b.buf[slot*b.size:][:b.hdrs[slot].Len:b.size]
}

// From returns where datagram i came from, 0 <= i < N. A link-local IPv6 address
// has the name of the interface as its zone.
func (b *Batch) From(i int) netip.AddrPort { return b.origin[i] }

// reset gives the slots back that the kernel has written to.
func (b *Batch) reset() {
	b.N = 0
	for i := range b.hdrs[:b.used] {
		h := &b.hdrs[i].Hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	b.used = 0
}

// Receive waits until at least one datagram is there, and fills b with those
// that are. It drops what a link must not deliver, and counts it by the reason.
// After Close it returns net.ErrClosed; any other error is of the system, and
// Receive may be called again.
func (l *Link) Receive(b *Batch) error {
	for {
		s, err := l.open()
		if err != nil {
			b.N = 0
			return err
		}
		b.reset()
		errno, open := s.receiver.read(b)
		if errno != 0 {
			return fmt.Errorf("link %s: receive: %w", l.cfg.Name, errno)
		}
		if !open {
			continue // closed for good or for a Reopen: open tells
		}
		s.receiver.filter(b)
		if b.N > 0 {
			return nil
		}
	}
}

// A receiver reads the receiving socket of a link.
type receiver struct {
	socket   *socket
	counters *counters
	index    int // of the interface
	zone     string
	own      netip.Addr // without a zone, like peers
	peers    []netip.Addr
	zoned    []netip.Addr // the same with their zones

	// call is attempt as a function value, made once since making it allocates.
	// attempt takes its argument and leaves its results in the fields below.
	call  func(fd int)
	batch *Batch
	errno unix.Errno

	pace  gate.Pace
	pause time.Duration // before the next read
}

// gather is how long datagrams may pile up in the kernel while they follow each other
// within that time, so that a wake-up carries many. A datagram after a pause is received
// at once.
const gather = 700 * time.Microsecond

func (r *receiver) init(l *Link, s *sockets) {
	r.socket = s.recv
	r.counters = &l.counters
	r.index = s.index
	r.zone = l.cfg.Interface
	r.own = s.local.WithZone("")
	r.zoned = l.cfg.Peers
	for _, peer := range r.zoned {
		r.peers = append(r.peers, peer.WithZone(""))
	}
	r.call = r.attempt
	r.pace = gate.Pace{Least: gather}
}

// read fills the slots of b from the socket. open is false if the socket has been
// closed.
func (r *receiver) read(b *Batch) (errno unix.Errno, open bool) {
	if r.pause > 0 && r.socket.gate.Pause(r.pause) != nil {
		return 0, false
	}
	r.batch = b
	defer func() { r.batch = nil }()
	for {
		if !r.socket.use(r.call) {
			return 0, false
		}
		if r.errno != unix.EAGAIN {
			r.pace.Full = len(b.hdrs)
			r.pause = r.pace.Got(monotime.Now(), b.used)
			return r.errno, true
		}
		if r.socket.gate.Wait() != nil {
			return 0, false
		}
	}
}

// attempt reads what is there.
func (r *receiver) attempt(fd int) {
	for {
		n, errno := recvmmsg(fd, r.batch.hdrs)
		if errno == unix.EINTR {
			continue
		}
		r.batch.used, r.errno = n, errno
		return
	}
}

// filter keeps the slots of b that hold datagrams for the user of the link.
func (r *receiver) filter(b *Batch) {
	var octets uint64
	for slot := range b.used {
		from, reason := r.check(b, slot)
		if reason != nil {
			reason.Add(1)
			continue
		}
		b.kept[b.N] = slot
		b.origin[b.N] = from
		b.N++
		octets += uint64(b.hdrs[slot].Len)
	}
	r.counters.receivedDatagrams.Add(uint64(b.N))
	r.counters.receivedOctets.Add(octets)
}

// check returns the sender of the datagram in slot, or the counter of the reason
// to drop it. A sender is known by its address alone: conntrackd sends from an
// ephemeral port.
func (r *receiver) check(b *Batch, slot int) (from netip.AddrPort, reason *atomic.Uint64) {
	h := &b.hdrs[slot].Hdr
	// The socket is bound to the interface already. This is the second lock on
	// the door to the connection table.
	if arrivalIndex(b.ctrl[slot*controlSize:][:h.Controllen]) != r.index {
		return from, &r.counters.wrongInterface
	}
	addr, port := b.names[slot].get()
	if addr == r.own {
		return from, &r.counters.own
	}
	addr, ok := r.sender(addr)
	if !ok {
		return from, &r.counters.foreign
	}
	if h.Flags&unix.MSG_TRUNC != 0 {
		return from, &r.counters.truncated
	}
	return netip.AddrPortFrom(addr, port), nil
}

// sender returns addr with its zone, and whether it may send to this link.
func (r *receiver) sender(addr netip.Addr) (netip.Addr, bool) {
	for i, peer := range r.peers {
		if addr == peer {
			return r.zoned[i], true
		}
	}
	if len(r.peers) > 0 || !addr.IsValid() {
		return addr, false
	}
	if addr.Is6() && addr.IsLinkLocalUnicast() {
		// The zone's name is interned, so this looks up and does not allocate.
		addr = addr.WithZone(r.zone)
	}
	return addr, true
}

// arrivalIndex returns the index of the interface that a datagram came by, from
// its control messages, or 0 if they do not tell.
func arrivalIndex(ctrl []byte) int {
	for len(ctrl) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(ctrl)
		if err != nil {
			return 0
		}
		switch {
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return int(binary.NativeEndian.Uint32(data))
		case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return int(binary.NativeEndian.Uint32(data[16:]))
		}
		ctrl = rest
	}
	return 0
}

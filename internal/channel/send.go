package channel

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// sendBatch is how many datagrams one system call carries at most.
	sendBatch = 64

	// A Send waits at most maxWaits times waitMillis for room in the socket
	// buffer. Its caller is the loop that keeps up with the kernel's events.
	maxWaits   = 4
	waitMillis = 1
)

// Send sends every datagram to every peer, or to the group. It returns how many
// datagrams the kernel took for all destinations.
//
// What cannot be sent is dropped and counted: the protocol above repairs. So a
// full buffer (after a few milliseconds of waiting), a missing route, or an
// interface that is down is no error; sent tells. Errors are net.ErrClosed after
// Close, ErrTooLong if a datagram exceeds MaxPayload, which is then up to date,
// and what else the system refuses (a firewall rule for instance). The remaining
// datagrams are sent nevertheless.
func (l *Link) Send(datagrams [][]byte) (sent int, err error) {
	s := l.current.Load()
	if s == nil {
		return 0, l.sendWithout(datagrams)
	}
	sent, err, open := s.sender.write(datagrams)
	if !open {
		return 0, l.sendWithout(datagrams)
	}
	return sent, err
}

// sendWithout is Send when there are no sockets.
func (l *Link) sendWithout(datagrams [][]byte) error {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	l.counters.down.Add(uint64(len(datagrams) * l.Destinations()))
	return nil
}

// A sender writes to the sending socket of a link.
type sender struct {
	link    *Link
	sockets *sockets
	socket  *socket

	names   []rawAddr // the destinations
	namelen uint32
	iovs    [sendBatch]unix.Iovec
	hdrs    [sendBatch]unix.Mmsghdr // hdrs[i] sends iovs[i]

	// call is attempt as a function value, made once since making it allocates.
	// attempt takes its argument and leaves its results in the fields below.
	call      func(fd int)
	datagrams [][]byte
	sent      int
	err       error
	waits     int  // left in this Send
	partial   bool // the datagram being sent has failed for a destination
}

func (w *sender) init(l *Link, s *sockets) {
	w.link = l
	w.sockets = s
	w.socket = s.send
	destinations := l.cfg.destinations()
	w.names = make([]rawAddr, len(destinations))
	for i, addr := range destinations {
		w.namelen = w.names[i].set(addr, s.index, l.cfg.Port)
	}
	for i := range w.hdrs {
		h := &w.hdrs[i].Hdr
		h.Iov = &w.iovs[i]
		h.SetIovlen(1)
		h.Namelen = w.namelen
	}
	w.call = w.attempt
}

// write sends the datagrams. open is false if the socket has been closed.
func (w *sender) write(datagrams [][]byte) (sent int, err error, open bool) {
	w.datagrams, w.sent, w.err, w.waits, w.partial = datagrams, 0, nil, maxWaits, false
	open = w.socket.use(w.call)
	w.datagrams = nil
	return w.sent, w.err, open
}

// attempt sends all copies, a copy being a datagram for one destination. Copy i
// is datagram i/len(names) for destination i%len(names).
func (w *sender) attempt(fd int) {
	copies := len(w.datagrams) * len(w.names)
	for first := 0; first < copies; first += sendBatch {
		n := min(copies-first, sendBatch)
		w.fill(first, n)
		for done := 0; done < n; {
			m, errno := w.link.sendmmsg(fd, w.hdrs[done:n])
			switch {
			case errno == unix.EINTR:
			case errno == unix.EAGAIN && w.waits > 0:
				w.waits--
				w.link.writable(fd)
			case errno == unix.EAGAIN:
				// No room, and no more patience: what is left is dropped.
				w.link.counters.full.Add(uint64(copies - first - done))
				return
			case errno != 0 || m == 0:
				w.failed(first+done, fd, errno)
				done++
			default:
				w.took(first+done, w.hdrs[done:done+m])
				done += m
			}
		}
	}
}

// fill points the first n headers at the copies from first on.
func (w *sender) fill(first, n int) {
	for i := range n {
		d := w.datagrams[(first+i)/len(w.names)]
		w.iovs[i].Base = unsafe.SliceData(d)
		w.iovs[i].SetLen(len(d))
		w.hdrs[i].Hdr.Name = w.names[(first+i)%len(w.names)].octets()
	}
}

// took accounts for copies that the kernel took, the first of which is number
// first.
func (w *sender) took(first int, hdrs []unix.Mmsghdr) {
	var octets uint64
	for i := range hdrs {
		octets += uint64(hdrs[i].Len)
		w.finish(first + i)
	}
	w.link.counters.sentDatagrams.Add(uint64(len(hdrs)))
	w.link.counters.sentOctets.Add(octets)
}

// failed accounts for a copy that is dropped.
func (w *sender) failed(i, fd int, errno unix.Errno) {
	w.partial = true
	w.finish(i)
	counter, ordinary := w.link.counters.sendError(errno)
	counter.Add(1)
	if ordinary || w.err != nil {
		return
	}
	if errno != unix.EMSGSIZE {
		w.err = fmt.Errorf("link %s: send: %w", w.link.cfg.Name, errno)
		return
	}
	w.link.measure(fd, w.sockets)
	w.err = fmt.Errorf("link %s: send: %w: %d octets, %d fit", w.link.cfg.Name, ErrTooLong,
		len(w.datagrams[i/len(w.names)]), w.link.MaxPayload())
}

// finish counts the datagram of copy i as sent if this was its last copy and none
// has failed.
func (w *sender) finish(i int) {
	if i%len(w.names) != len(w.names)-1 {
		return
	}
	if !w.partial {
		w.sent++
	}
	w.partial = false
}

// measure reads the MTU of the interface and of the paths to the peers, after the
// kernel has refused a datagram for its length.
func (l *Link) measure(fd int, s *sockets) {
	if mtu, err := readMTU(fd, l.cfg.Interface); err == nil {
		l.mtu.Store(int64(mtu))
	}
	l.pathMTU.Store(int64(s.pathMTU(&l.cfg)))
}

// waitWritable waits a moment for room in the buffer of fd.
func waitWritable(fd int) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	// A signal or an error ends the wait early, which does no harm.
	_, _ = unix.Poll(fds[:], waitMillis)
}

package channel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoInterface is in the error of Open and Reopen when no interface has
	// the configured name.
	ErrNoInterface = errors.New("no such interface")

	// ErrNoAddress is in the error of Open and Reopen when the local address is
	// not (or not yet) configured on this host.
	ErrNoAddress = errors.New("address is not on this host")

	// ErrTooLong is in the error of Send when a datagram was dropped because it
	// exceeds MaxPayload.
	ErrTooLong = errors.New("datagram too long")
)

// A Link is one dedicated link. See the package comment for who may call what.
type Link struct {
	cfg Config // normalised, never changes

	// current holds the open sockets; nil after a failed Reopen and after Close.
	current atomic.Pointer[sockets]

	// mu guards opening and closing, and with them the fields below. changed is
	// closed and replaced whenever current or closed changes, for a Receive that
	// waits for sockets.
	mu      sync.Mutex
	closed  bool
	changed chan struct{}
	// pastDrops is the sum of the kernel's drops of sockets that are closed.
	pastDrops uint64

	up       atomic.Bool  // state of the interface
	mtu      atomic.Int64 // of the interface
	pathMTU  atomic.Int64 // smallest one known to a peer, 0 if none is known
	counters counters

	// The system calls of Send, fields so that tests can fail them.
	sendmmsg func(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno)
	writable func(fd int)
}

// Open opens the sockets of a link. Errors begin with "link NAME:" and say what
// is wrong and where.
func Open(cfg Config) (*Link, error) {
	if cfg.Name == "" {
		cfg.Name = cfg.Interface
	}
	name := cfg.Name
	cfg, err := cfg.normal()
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	l := &Link{
		cfg:      cfg,
		changed:  make(chan struct{}),
		sendmmsg: sendmmsg,
		writable: waitWritable,
	}
	if err := l.Reopen(); err != nil {
		return nil, err
	}
	return l, nil
}

// Reopen closes the sockets of the link, if it has any, and opens new ones on
// the interface that has the configured name now. A Receive that waits goes on
// with the new sockets. After an error the link is without sockets until a
// Reopen succeeds.
func (l *Link) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("link %s: %w", l.cfg.Name, net.ErrClosed)
	}
	l.release()
	s, err := l.openSockets()
	if err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	l.SetUp(s.up, s.mtu)
	l.current.Store(s)
	l.signal()
	return nil
}

// Close closes the sockets. A Receive that waits returns net.ErrClosed.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("link %s: %w", l.cfg.Name, net.ErrClosed)
	}
	l.closed = true
	l.release()
	l.signal()
	return nil
}

// release closes the sockets. The caller holds mu.
func (l *Link) release() {
	s := l.current.Swap(nil)
	if s == nil {
		return
	}
	l.pastDrops += s.kernelDrops()
	s.close()
}

// signal wakes a Receive that waits for sockets. The caller holds mu.
func (l *Link) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// open returns the current sockets. If there are none it waits for a Reopen, or
// returns net.ErrClosed after Close.
func (l *Link) open() (*sockets, error) {
	for {
		if s := l.current.Load(); s != nil {
			return s, nil
		}
		l.mu.Lock()
		s, closed, changed := l.current.Load(), l.closed, l.changed
		l.mu.Unlock()
		switch {
		case closed:
			return nil, net.ErrClosed
		case s == nil:
			<-changed
		}
	}
}

// Name returns the name of the link for messages.
func (l *Link) Name() string { return l.cfg.Name }

// Interface returns the name of the interface of the link.
func (l *Link) Interface() string { return l.cfg.Interface }

// Index returns the index of the interface that the link is open on, or 0 if the
// link has no sockets. When the interface of that name has another index now,
// the link is deaf and must be reopened.
func (l *Link) Index() int {
	if s := l.current.Load(); s != nil {
		return s.index
	}
	return 0
}

// Up reports whether the link can carry datagrams: it has sockets, and its
// interface was up and running when the owner last told, or when it was opened.
func (l *Link) Up() bool { return l.up.Load() && l.current.Load() != nil }

// SetUp tells the state of the interface: whether it is administratively up with
// a carrier, and its MTU in octets (0: unknown, keep the last one). It may be told
// as often as wanted. When something has changed, what is known about the path
// MTU to peers is forgotten, so that a restored path is used again.
func (l *Link) SetUp(up bool, mtu int) {
	changed := l.up.Swap(up) != up
	if mtu > 0 && l.mtu.Swap(int64(mtu)) != int64(mtu) {
		changed = true
	}
	if changed {
		l.pathMTU.Store(0)
	}
}

// maxUDP4 is the largest payload that the 16-bit total length of IPv4 leaves.
const maxUDP4 = 65535 - 20 - 8

// MaxPayload returns the largest datagram, in octets, that fits in the MTU of the
// interface (and of the path, as far as it is known) without fragmentation.
func (l *Link) MaxPayload() int {
	mtu := l.mtu.Load()
	if path := l.pathMTU.Load(); path > 0 && path < mtu {
		mtu = path
	}
	return min(max(int(mtu)-l.cfg.overhead(), 0), maxUDP4)
}

// Destinations returns how many destinations Send sends each datagram to.
func (l *Link) Destinations() int { return len(l.cfg.destinations()) }

// Buffers returns the effective sizes of the socket buffers in octets, as the
// kernel tells them: it doubles what was asked for, to pay for its own overhead.
// They are 0 while the link has no sockets.
func (l *Link) Buffers() (recv, send int) {
	if s := l.current.Load(); s != nil {
		return s.recvBuffer, s.sendBuffer
	}
	return 0, 0
}

// Local returns the address of this node on the link. It is the zero Addr for a
// multicast link that was configured without one and has no sockets.
func (l *Link) Local() netip.Addr {
	if s := l.current.Load(); s != nil {
		return s.local
	}
	return l.cfg.Local
}

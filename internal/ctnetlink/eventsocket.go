package ctnetlink

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"syncd/internal/gate"
)

// eventSocket is a netfilter socket that the runtime's poller does not watch: it
// would wake a thread for each event. Who reads it waits at its gate.
type eventSocket struct {
	fd   int
	port uint32
	gate *gate.Gate

	mu     sync.Mutex
	closed bool
	held   bool // somebody reads, and closes fd after a close
}

// dialEvents opens the socket in the network namespace of descriptor netNS, or in that
// of the calling thread if netNS is 0.
func dialEvents(netNS int) (*eventSocket, error) {
	conn, raw, err := dial(netNS)
	if err != nil {
		return nil, err
	}
	s := &eventSocket{port: conn.PID()}
	// A second descriptor of the same socket is not in the poller.
	var dupErr error
	err = raw.Control(func(fd uintptr) { s.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, os.NewSyscallError("dup", dupErr), conn.Close()); err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	if s.gate, err = gate.New(s.fd); err != nil {
		unix.Close(s.fd)
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return s, nil
}

// hold keeps the descriptor open until release, for the one who reads.
func (s *eventSocket) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.held = true
	return nil
}

func (s *eventSocket) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	if s.closed {
		unix.Close(s.fd)
	}
}

// close ends waiting at the gate, and with it reading.
func (s *eventSocket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.closed = true
	err := s.gate.Close()
	if !s.held {
		err = errors.Join(err, unix.Close(s.fd))
	}
	return err
}

// isClosed reports whether reading must end.
func (s *eventSocket) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// member joins or leaves (unix.NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP) a
// multicast group.
func (s *eventSocket) member(option int, group uint32) error {
	return s.do(func() error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, option, int(group)))
	})
}

// setReadBuffer is setReadBuffer for this socket.
func (s *eventSocket) setReadBuffer(size int) (n int, err error) {
	err = s.do(func() error {
		if size > 0 {
			// The kernel doubles what it is given. Beyond net.core.rmem_max only the force
			// of CAP_NET_ADMIN goes.
			if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2) != nil {
				if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size/2); err != nil {
					return fmt.Errorf("set receive buffer: %w", err)
				}
			}
		}
		if n, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
			return fmt.Errorf("read receive buffer size: %w", err)
		}
		return nil
	})
	return n, err
}

// do runs f unless the socket is closed.
func (s *eventSocket) do(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	return f()
}

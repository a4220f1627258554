// Package gate lets a reader of a busy socket sleep while messages pile up.
//
// The runtime's poller watches a socket all the time: each message that arrives
// wakes a thread, whether a goroutine waits for it or not. At 100,000 messages a
// second this costs more than the messages. A Gate watches the socket only while its
// user waits for it, by an epoll instance of its own, which the runtime's poller
// watches in turn; during a pause nothing wakes but the timer.
//
// An Alarm wakes the goroutine that waits for nothing but time, in the same way.
//
// A Gate knows nothing of what is read. The socket must not be in the runtime's
// poller (not an os.File, net.Conn or the like); it stays the caller's, who closes
// it after the gate.
package gate

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Gate waits for one socket. Wait and Pause belong to one goroutine; SetDeadline and
// Close may be called from any.
type Gate struct {
	socket int
	epoll  polled // holds the socket
	timer  polled

	// The functions that look are built once, since making them allocates. They leave
	// an error in err. Their system calls do not wait, so they are raw: the runtime is
	// not told, since telling it would wake its monitor.
	seen, slept func(fd uintptr) bool
	err         error
	arm         bool          // the socket is to be watched from now on
	d           time.Duration // of the pause; 0 once its timer is set
	events      [1]unix.EpollEvent
	expired     [8]byte
}

// polled is a descriptor in the runtime's poller.
type polled struct {
	file *os.File
	raw  syscall.RawConn
}

func (p *polled) open(fd int, name string, err error) error {
	if err != nil {
		return os.NewSyscallError(name, err)
	}
	// The poller takes what does not block.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	p.file = os.NewFile(uintptr(fd), name)
	p.raw, err = p.file.SyscallConn()
	return err
}

func (p *polled) close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

// New returns a gate for a non-blocking socket.
func New(socket int) (*Gate, error) {
	g := &Gate{socket: socket}
	g.seen = func(fd uintptr) bool {
		if g.arm {
			// It is seen once each time that it is armed, if it is readable already too.
			g.arm = false
			if g.err = g.control(int(fd), unix.EPOLL_CTL_MOD, unix.EPOLLIN|unix.EPOLLONESHOT); g.err != nil {
				return true
			}
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&g.events[0])), uintptr(len(g.events)), 0, 0, 0)
		if errno != 0 {
			g.err = os.NewSyscallError("epoll_pwait", errno)
			return true
		}
		return n > 0
	}
	g.slept = func(fd uintptr) bool {
		if g.d != 0 {
			// This also takes back an expiry that nobody has waited for.
			spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(g.d))}
			g.d = 0
			g.err = os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(int(fd), 0, &spec, nil))
			return g.err != nil
		}
		_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&g.expired[0])), uintptr(len(g.expired)))
		if errno == unix.EAGAIN {
			return false
		}
		if errno != 0 {
			g.err = os.NewSyscallError("read timer", errno)
		}
		return true
	}
	if err := g.open(); err != nil {
		g.Close()
		return nil, fmt.Errorf("gate: %w", err)
	}
	return g, nil
}

func (g *Gate) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err := g.epoll.open(fd, "epoll_create1", err); err != nil {
		return err
	}
	if err := g.control(fd, unix.EPOLL_CTL_ADD, unix.EPOLLONESHOT); err != nil {
		return err
	}
	fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	return g.timer.open(fd, "timerfd_create", err)
}

func (g *Gate) control(epoll, op int, events uint32) error {
	g.events[0] = unix.EpollEvent{Events: events, Fd: int32(g.socket)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, op, g.socket, &g.events[0]))
}

// Wait waits until the socket is readable or has an error. It may return early once,
// when the socket was emptied after a Wait that a deadline has ended. The error is
// os.ErrClosed after Close, and os.ErrDeadlineExceeded when the deadline has passed.
func (g *Gate) Wait() error {
	g.arm = true
	return g.run(g.epoll.raw.Read(g.seen))
}

// Pause sleeps for some time, whatever comes in on the socket. Its errors are those of
// Wait.
func (g *Gate) Pause(d time.Duration) error {
	g.d = max(d, 1)
	return g.run(g.timer.raw.Read(g.slept))
}

// run returns what went wrong in a call of the poller.
func (g *Gate) run(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	case err != nil:
		return os.ErrClosed // the poller has no other error, and does not wrap this one
	}
	err, g.err = g.err, nil
	return err
}

// SetDeadline ends Wait and Pause at a time, those that are under way included. The
// zero time means never.
func (g *Gate) SetDeadline(t time.Time) error {
	return errors.Join(g.epoll.file.SetReadDeadline(t), g.timer.file.SetReadDeadline(t))
}

// Close ends Wait and Pause. The socket stays open.
func (g *Gate) Close() error { return errors.Join(g.epoll.close(), g.timer.close()) }

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a UNIX socket in octets: sun_path has 108, one
// of which ends it (unix(7)).
const maxPath = 107

// socketMode lets root and the group of the socket command the daemon.
const socketMode = 0o660

func checkPath(path string) error {
	switch {
	case path == "" || path == "@":
		return errors.New("control socket: the path is empty")
	case len(path) > maxPath:
		return fmt.Errorf("control socket: the path has %d octets, a UNIX socket can have %d: %s", len(path), maxPath, path)
	}
	return nil
}

func isAbstract(path string) bool { return strings.HasPrefix(path, "@") }

// socket is a listening UNIX socket that no second process can take over.
type socket struct {
	*net.UnixListener
	lock *os.File // nil for an abstract socket
}

// openSocket claims path. One process at a time can have it: a lock on the file
// path+".lock" decides, which the kernel releases however that process ends. The
// lock file itself stays, because removing it would let two processes lock two
// files of one name. The name of an abstract socket is its own lock.
func openSocket(path string) (*socket, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	s := new(socket)
	if !isAbstract(path) {
		var err error
		if s.lock, err = lockSocket(path); err != nil {
			return nil, err
		}
		if err := removeStale(path); err != nil {
			s.lock.Close()
			return nil, err
		}
	}
	// The mode is set before bind, so that there is no moment in which the file
	// has a wider one.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }); e != nil {
			return e
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err == nil && s.lock != nil {
		// The umask may have narrowed the mode.
		if err = os.Chmod(path, socketMode); err != nil {
			ln.Close()
		}
	}
	if err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, servedError(path)
		}
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s.UnixListener = ln.(*net.UnixListener)
	return s, nil
}

// lockSocket takes the lock that belongs to path.
func lockSocket(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: the directory %s does not exist (RuntimeDirectory= of systemd makes it)", filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, servedError(path)
	}
	return nil, fmt.Errorf("control socket: lock %s.lock: %w", path, err)
}

// removeStale removes the socket of a process that was killed. The caller holds
// the lock. It removes nothing but a socket that nobody answers.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket: %s exists and is no socket", path)
	}
	// Somebody can answer without holding the lock when the lock file was
	// removed by hand.
	if pid, ok := listenerPID(path); ok {
		return fmt.Errorf("control socket: another process is serving %s (pid %d)", path, pid)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

func servedError(path string) error {
	if pid, ok := listenerPID(path); ok {
		return fmt.Errorf("control socket: another syncd is serving %s (pid %d)", path, pid)
	}
	return fmt.Errorf("control socket: another syncd is serving %s", path)
}

// listenerPID asks the kernel who listens at path; ok is false when nobody does.
func listenerPID(path string) (pid int32, ok bool) {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0, false
	}
	defer c.Close()
	if cred := peerCred(c.(*net.UnixConn)); cred != nil {
		pid = cred.Pid
	}
	return pid, true
}

// peerCred returns who is at the other end, nil when the kernel does not say.
func peerCred(c *net.UnixConn) *unix.Ucred {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}) != nil || err != nil {
		return nil
	}
	return cred
}

// Close stops listening, removes the socket file and then releases the lock: in
// this order, so that the file of a successor is never removed.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if s.lock != nil {
		s.lock.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// boundedListener lets at most cap(slots) connections live at once; the others
// wait in the backlog. It turns away those that admit refuses.
type boundedListener struct {
	net.Listener
	slots chan struct{}
	done  chan struct{} // closed by Close
	once  sync.Once
	admit func(*unix.Ucred) bool
}

// boundedConn gives its slot back when it is closed.
type boundedConn struct {
	net.Conn
	cred    *unix.Ucred // nil when not known
	release func()
}

func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	release := sync.OnceFunc(func() { <-l.slots })
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			release()
			return nil, err
		}
		cred := peerCred(c.(*net.UnixConn))
		if l.admit(cred) {
			return &boundedConn{Conn: c, cred: cred, release: release}, nil
		}
		c.Close()
	}
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

package rig

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/ctl"
)

// Looker asks a daemon again and again how many ends of flows it has applied to its
// external cache, and takes as little time for it as may be: with plain system calls,
// so that nothing of the asking waits for another goroutine. It belongs to one
// goroutine, best one with a thread of its own.
type Looker struct {
	d      *Daemon
	fd     int // the connection to a syncd; of a conntrackd each answer is a connection
	reader *bufio.Reader
}

// Looker returns one. It is to be closed.
func (d *Daemon) Looker() (*Looker, error) {
	l := &Looker{d: d, fd: -1}
	if d.Kind == Conntrackd {
		return l, nil
	}
	var err error
	if l.fd, err = connect(d.socket); err != nil {
		return nil, err
	}
	l.reader = bufio.NewReader(plainReader(l.fd))
	return l, nil
}

// Close closes the connection.
func (l *Looker) Close() error {
	if l.fd < 0 {
		return nil
	}
	return unix.Close(l.fd)
}

// Ends returns the count and when the answer was there.
func (l *Looker) Ends() (n uint64, at time.Time, err error) {
	if l.d.Kind == Conntrackd {
		return l.conntrackdEnds()
	}
	if err := writeAll(l.fd, []byte("GET /v1/stats HTTP/1.1\r\nHost: syncd\r\n\r\n")); err != nil {
		return 0, at, err
	}
	resp, err := http.ReadResponse(l.reader, nil)
	if err != nil {
		return 0, at, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	at = time.Now()
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET /v1/stats: %s", resp.Status)
	}
	if err != nil {
		return 0, at, err
	}
	var s ctl.Stats
	err = json.Unmarshal(body, &s)
	return s.External.Deleted, at, err
}

func (l *Looker) conntrackdEnds() (n uint64, at time.Time, err error) {
	fd, err := connect(l.d.socket)
	if err != nil {
		return 0, at, err
	}
	defer unix.Close(fd)
	if err := writeAll(fd, binary.NativeEndian.AppendUint32(nil, askCaches)); err != nil {
		return 0, at, err
	}
	text, err := io.ReadAll(plainReader(fd))
	at = time.Now()
	if err != nil {
		return 0, at, err
	}
	_, external, _ := strings.Cut(string(text), externalCache)
	n, err = after(external, destroyedCount)
	return n, at, err
}

// connect connects to a socket of the file system. The descriptor blocks.
func connect(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		b = b[n:]
	}
	return nil
}

// plainReader reads a descriptor that blocks.
type plainReader int

func (r plainReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(r), b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Package snapshot is the file in which a node keeps what it holds of its peers
// while its process restarts: the external caches, by owner.
//
// It is written once, at the stop, and read once, at the start. What is read is in
// doubt until the peers confirm it; but if a peer has died meanwhile, it is the
// only copy of its connections.
//
// # Format
//
// All integers are big-endian.
//
//	octets 0-7   magic "SYNCDSN1"
//	       8-15  when it was written, wall clock, ns since the epoch
//	then for each owner:
//	       1     length of the name, not 0
//	       n     name
//	       then messages CT_NEW and EXP_NEW of the syncd dialect, each of which begins
//	       with its length in its own header; the number in the header is the age
//	       of the entry in seconds. A header of eight zero octets ends the owner.
//	then   1     zero
//	then   32    SHA-256 of everything before
//
// What must not enter: sockets, goroutines, and any knowledge of the engine.
package snapshot

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

const magic = "SYNCDSN1"

// maxMessage is the length of the longest message, in octets.
const maxMessage = max(wire.MaxFlowLen, wire.MaxExpectLen, beforeState)

// beforeState is the length of the longest message that versions wrote which had no STATE.
const beforeState = 324

// Entry is one entry of a snapshot, a flow or an expectation.
type Entry struct {
	Flow     flow.Flow
	Expect   flow.Expect
	IsExpect bool
	Age      time.Duration // since its owner last said something about it
}

// ErrCorrupt is in the error of a Reader whose file is damaged or of another format.
var ErrCorrupt = errors.New("snapshot is damaged")

// Writer writes a snapshot. Its methods return the first error that occurred.
type Writer struct {
	w    *bufio.Writer
	sum  hash.Hash
	buf  []byte
	open bool // an owner has begun
	err  error
}

// NewWriter begins a snapshot that is written at this time.
func NewWriter(w io.Writer, now time.Time) *Writer {
	s := &Writer{sum: sha256.New(), buf: make([]byte, 0, maxMessage)}
	s.w = bufio.NewWriterSize(io.MultiWriter(w, s.sum), 1<<16)
	s.put([]byte(magic))
	s.put(binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano())))
	return s
}

func (s *Writer) put(b []byte) {
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
}

// Owner begins the entries of an owner, whose name has 1 to wire.MaxName octets.
func (s *Writer) Owner(name string) error {
	s.end()
	if name == "" || len(name) > wire.MaxName {
		return fmt.Errorf("write snapshot: owner %q: %w", name, errors.New("not a name"))
	}
	s.put([]byte{byte(len(name))})
	s.put([]byte(name))
	s.open = true
	return s.err
}

// end ends the owner that is open.
func (s *Writer) end() {
	if s.open {
		s.put(make([]byte, wire.HeaderLen))
		s.open = false
	}
}

// Flow adds an entry of the present owner.
func (s *Writer) Flow(f *flow.Flow, age time.Duration) error {
	s.buf = wire.AppendFlow(s.buf[:0], wire.Syncd, wire.CTNew, 0, seconds(age), f)
	s.put(s.buf)
	return s.err
}

// Expect adds an expectation of the present owner.
func (s *Writer) Expect(x *flow.Expect, age time.Duration) error {
	s.buf = wire.AppendExpect(s.buf[:0], wire.Syncd, wire.ExpNew, 0, seconds(age), x)
	s.put(s.buf)
	return s.err
}

// seconds is an age as it stands in the number of a message.
func seconds(age time.Duration) wire.Seq { return wire.Seq(max(0, min(age/time.Second, 1<<31))) }

// Close ends the snapshot. It does not close the writer below.
func (s *Writer) Close() error {
	s.end()
	s.put([]byte{0})
	if s.err == nil {
		s.err = s.w.Flush()
	}
	s.put(s.sum.Sum(nil))
	if s.err == nil {
		s.err = s.w.Flush()
	}
	if s.err != nil {
		return fmt.Errorf("write snapshot: %w", s.err)
	}
	return nil
}

// Read reads a snapshot: owner is called for each owner, then entry for each of its
// entries, which is reused. The sum stands at the end, so nothing of it may be
// believed before Read has returned nil: read it twice, and use the second time.
func Read(r io.Reader, owner func(name string) error, entry func(*Entry) error) (written time.Time, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read snapshot: %w", err)
		}
	}()
	sum := sha256.New()
	b := bufio.NewReaderSize(r, 1<<16)
	take := func(p []byte) error {
		if _, err := io.ReadFull(b, p); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return fmt.Errorf("%w: it is cut short", ErrCorrupt)
			}
			return err
		}
		sum.Write(p)
		return nil
	}
	var head [len(magic) + 8]byte
	if err := take(head[:]); err != nil {
		return written, err
	}
	if string(head[:len(magic)]) != magic {
		return written, fmt.Errorf("%w: it does not begin with %q", ErrCorrupt, magic)
	}
	written = time.Unix(0, int64(binary.BigEndian.Uint64(head[len(magic):])))
	var (
		name [256]byte
		msg  [maxMessage]byte
		rd   = wire.Reader{Sync: true}
		m    wire.Message
		e    Entry
	)
	for {
		if err := take(name[:1]); err != nil {
			return written, err
		}
		n := int(name[0])
		if n == 0 {
			break
		}
		if n > wire.MaxName {
			return written, fmt.Errorf("%w: a name of %d octets", ErrCorrupt, n)
		}
		if err := take(name[:n]); err != nil {
			return written, err
		}
		if err := owner(string(name[:n])); err != nil {
			return written, err
		}
		for {
			if err := take(msg[:wire.HeaderLen]); err != nil {
				return written, err
			}
			if [wire.HeaderLen]byte(msg[:wire.HeaderLen]) == [wire.HeaderLen]byte{} {
				break
			}
			size := int(binary.BigEndian.Uint16(msg[2:]))
			if size < wire.HeaderLen || size > len(msg) {
				return written, fmt.Errorf("%w: an entry of %d octets", ErrCorrupt, size)
			}
			if err := take(msg[wire.HeaderLen:size]); err != nil {
				return written, err
			}
			rd.Reset(msg[:size])
			if !rd.Next(&m) || m.Fault != wire.FaultNone || m.Type != wire.CTNew && m.Type != wire.ExpNew {
				return written, fmt.Errorf("%w: an entry is malformed", ErrCorrupt)
			}
			if e.IsExpect = m.IsExpect(); e.IsExpect {
				e.Expect = m.Expect
			} else {
				e.Flow = m.Flow
			}
			e.Age = time.Duration(m.Seq) * time.Second
			if err := entry(&e); err != nil {
				return written, err
			}
		}
	}
	want := sum.Sum(nil)
	var got [sha256.Size]byte
	if err := take(got[:]); err != nil {
		return written, err
	}
	if string(want) != string(got[:]) {
		return written, fmt.Errorf("%w: its sum is wrong", ErrCorrupt)
	}
	return written, nil
}

package ctnetlink

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

const (
	// MaxBatch is how many requests go to the kernel at once. It takes its lock per
	// request, so that more gains nothing, and the replies must fit into the buffer.
	MaxBatch = 128

	batchBytes     = 48 << 10
	writeSlots     = 16
	writeSlotLen   = 4096    // holds any entry, and any error with the request that it quotes
	writeSendBuf   = 1 << 20 // a message may be as long as this less 32
	writeReceive   = 2 << 20 // an error costs about 832 octets, so far more than a batch
	getSequenceBit = 1 << 31 // keeps gets apart from the requests of a batch
)

var (
	// ErrBatchFull is returned by Add when a Flush must come first.
	ErrBatchFull = errors.New("ctnetlink: batch is full")
	// ErrRepliesLost is returned by Flush when the kernel could not queue every
	// error: the requests were all carried out or refused, but which is not known.
	ErrRepliesLost = errors.New("ctnetlink: replies of the kernel were lost")
)

// WriterConfig says where a Writer writes.
type WriterConfig struct {
	NetNS int // descriptor of the network namespace, 0 for that of the calling thread
}

// Writer creates, updates and deletes entries in batches. It belongs to one
// goroutine at a time.
type Writer struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	rx   *rxVector

	buf    []byte // encoded requests
	n      int    // how many
	seq    uint32 // of the first request in buf; those of gets have getSequenceBit
	getSeq uint32
	getBuf []byte
	// fetchBuf is made by the first Fetch: few writers are used for it.
	fetchBuf []byte
	ev       flow.Event // where a reply is decoded

	send     func(fd uintptr) bool // built once; sends out, leaves its result in sent and errno
	recv     func(fd uintptr) bool // built once; leaves its result in received and errno
	out      []byte
	sent     int
	received int
	errno    syscall.Errno
}

// NewWriter opens a socket for requests. The error wraps ErrNoCapability if the
// kernel does not allow them.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	conn, raw, err := dial(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("ctnetlink: open writer: %w", err)
	}
	w := &Writer{
		conn: conn, raw: raw,
		rx:     newRxVector(writeSlots, writeSlotLen),
		buf:    make([]byte, 0, batchBytes),
		getBuf: make([]byte, 0, maxRequestLen),
	}
	w.send = func(fd uintptr) bool {
		w.sent, w.errno = sendTo(fd, w.out)
		return true // the kernel works off the requests before it returns
	}
	w.recv = func(fd uintptr) bool {
		w.received, w.errno = w.rx.recv(fd)
		return true
	}
	if err := w.open(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ctnetlink: open writer: %w", err)
	}
	return w, nil
}

func (w *Writer) open() error {
	if _, err := setReadBuffer(w.conn, writeReceive); err != nil {
		return err
	}
	if err := w.conn.SetWriteBuffer(writeSendBuf / 2); err != nil {
		return fmt.Errorf("set send buffer: %w", err)
	}
	// Errors need not quote the request; kernels before 4.3 do it all the same.
	if err := w.conn.SetOption(netlink.CapAcknowledge, true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("set NETLINK_CAP_ACK: %w", err)
	}
	// The socket can be had without the capability; only a request tells.
	var none flow.Flow
	none.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.UDP}
	if err := w.Get(&none.Orig, &none); err != nil && !errors.Is(err, unix.ENOENT) {
		return capability(err)
	}
	return nil
}

// PortID is the netlink port of the socket: events of what the Writer changes
// carry it.
func (w *Writer) PortID() uint32 { return w.conn.PID() }

// Close closes the socket.
func (w *Writer) Close() error { return w.conn.Close() }

// Len is how many requests wait for Flush.
func (w *Writer) Len() int { return w.n }

// Reset forgets the requests that were added and not flushed.
func (w *Writer) Reset() {
	w.seq = (w.seq + uint32(w.n)) &^ getSequenceBit
	w.buf, w.n = w.buf[:0], 0
}

// Add encodes a request into the batch and returns its index there. It returns
// ErrBatchFull when there is no room, and another error when f cannot be
// expressed; the batch is then as it was. f is not kept.
func (w *Writer) Add(op Op, f *flow.Flow, o CreateOptions) (index int, err error) {
	if w.n == MaxBatch || len(w.buf)+maxRequestLen > cap(w.buf) {
		return 0, ErrBatchFull
	}
	w.buf, err = appendRequest(w.buf, op, w.sequence(w.n), f, o)
	if err != nil {
		return 0, err
	}
	w.n++
	return w.n - 1, nil
}

func (w *Writer) sequence(index int) uint32 { return (w.seq + uint32(index)) &^ getSequenceBit }

// Flush sends the batch and calls fn for each request that the kernel refused;
// those that it does not name were carried out. The kernel goes through all of
// them in order, whatever comes of each. The batch is empty afterwards.
//
// An error means that the batch was not sent, or that fn may not have been told
// everything (ErrRepliesLost).
func (w *Writer) Flush(fn func(index int, err unix.Errno)) error {
	if w.n == 0 {
		return nil
	}
	defer w.Reset()
	if err := w.exchange(w.buf); err != nil {
		return fmt.Errorf("ctnetlink: send batch: %w", err)
	}
	err := w.eachDatagram(func(b []byte) error {
		w.replies(b, fn)
		return nil
	})
	if err != nil && err != ErrRepliesLost {
		err = fmt.Errorf("ctnetlink: read replies: %w", err)
	}
	return err
}

// eachDatagram reads what the kernel has answered and calls fn for each datagram, until fn
// fails. ErrRepliesLost means that there was more than the socket could hold.
func (w *Writer) eachDatagram(fn func(b []byte) error) error {
	lost := false
	for {
		if err := w.raw.Read(w.recv); err != nil {
			return err
		}
		switch w.errno {
		case 0:
		case unix.EAGAIN:
			if lost {
				return ErrRepliesLost
			}
			return nil
		case unix.ENOBUFS:
			lost = true
			continue
		default:
			return os.NewSyscallError("recvmmsg", w.errno)
		}
		for i := range w.received {
			if err := fn(w.rx.datagram(i)); err != nil {
				return err
			}
		}
	}
}

// replies tells fn about the errors in one datagram.
func (w *Writer) replies(b []byte, fn func(index int, err unix.Errno)) {
	for {
		msg, rest, ok := message(b)
		if !ok {
			return
		}
		b = rest
		if native.Uint16(msg[4:]) != unix.NLMSG_ERROR {
			continue
		}
		seq := native.Uint32(msg[8:])
		if seq&getSequenceBit != 0 {
			continue
		}
		index := (seq - w.seq) &^ getSequenceBit
		errno, ok := messageErrno(msg)
		if ok && errno != 0 && index < uint32(w.n) {
			fn(int(index), errno)
		}
	}
}

// Get reads the entry that holds t in either direction into f; with t the
// original tuple of a flow the caller must compare Orig if the direction matters.
// The zone of t is that of the direction that it names. The error is unix.ENOENT
// when there is no such entry. Requests that wait for Flush stay as they are.
func (w *Writer) Get(t *flow.Tuple, f *flow.Flow) error {
	w.getSeq = (w.getSeq + 1) | getSequenceBit
	b := appendHeader(w.getBuf[:0], msgGet, 0, w.getSeq, t.Family)
	b = finish(appendIdentity(b, t), 0)
	if err := w.exchange(b); err != nil {
		return fmt.Errorf("ctnetlink: get: %w", err)
	}
	msg, err := w.reply("get")
	if err != nil {
		return err
	}
	if err := DecodeEvent(msg, &w.ev); err != nil {
		return err
	}
	*f = w.ev.Flow
	return nil
}

// reply returns the answer to the get with number getSeq, valid until something else
// is read. what it asks for stands in the error.
func (w *Writer) reply(what string) ([]byte, error) {
	for {
		if err := w.raw.Read(w.recv); err != nil {
			return nil, fmt.Errorf("ctnetlink: %s: %w", what, err)
		}
		if w.errno != 0 {
			return nil, fmt.Errorf("ctnetlink: %s: %w", what, os.NewSyscallError("recvmmsg", w.errno))
		}
		for i := range w.received {
			msg, _, ok := message(w.rx.datagram(i))
			if !ok || native.Uint32(msg[8:]) != w.getSeq {
				continue
			}
			if native.Uint16(msg[4:]) == unix.NLMSG_ERROR {
				if errno, ok := messageErrno(msg); ok && errno != 0 {
					return nil, errno
				}
				return nil, errMessageLength
			}
			return msg, nil
		}
	}
}

// Fetch reads the entries that hold keys, at most MaxBatch, in one exchange and calls
// fn with the index of the key for each that is there; as with Get the caller must
// compare Orig if the direction matters. The flow is lent for the call. Requests that
// wait for Flush stay as they are. After ErrRepliesLost fn has been called for some.
func (w *Writer) Fetch(keys []flow.Tuple, fn func(index int, f *flow.Flow)) error {
	if len(keys) > MaxBatch {
		return fmt.Errorf("ctnetlink: fetch: %d keys: %w", len(keys), ErrBatchFull)
	}
	if len(keys) == 0 {
		return nil
	}
	first := w.getSeq + 1
	w.getSeq += uint32(len(keys))
	b := w.fetchBuf[:0]
	for i := range keys {
		start := len(b)
		b = appendHeader(b, msgGet, 0, first+uint32(i)|getSequenceBit, keys[i].Family)
		b = finish(appendIdentity(b, &keys[i]), start)
	}
	w.fetchBuf = b
	if err := w.exchange(b); err != nil {
		return fmt.Errorf("ctnetlink: fetch: %w", err)
	}
	err := w.eachDatagram(func(b []byte) error {
		msg, _, ok := message(b)
		if !ok || native.Uint16(msg[4:]) == unix.NLMSG_ERROR {
			return nil // not there
		}
		index := (native.Uint32(msg[8:]) - first) &^ getSequenceBit
		if index >= uint32(len(keys)) {
			return nil
		}
		if err := DecodeEvent(msg, &w.ev); err != nil {
			return err
		}
		fn(int(index), &w.ev.Flow)
		return nil
	})
	if err != nil && err != ErrRepliesLost {
		err = fmt.Errorf("ctnetlink: fetch: %w", err)
	}
	return err
}

// exchange hands b to the kernel, which has answered when it returns.
func (w *Writer) exchange(b []byte) error {
	w.out = b
	if err := w.raw.Write(w.send); err != nil {
		return err
	}
	if w.errno != 0 {
		return os.NewSyscallError("send", w.errno)
	}
	if w.sent != len(b) {
		return unix.EMSGSIZE
	}
	return nil
}

// sendTo writes b to the peer of the socket, which for an unconnected netlink
// socket is the kernel.
func sendTo(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, err := unix.Write(int(fd), b)
		if err == unix.EINTR {
			continue
		}
		errno, _ := err.(syscall.Errno)
		return n, errno
	}
}

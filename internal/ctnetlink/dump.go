package ctnetlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

const (
	// The kernel fills at most 32 KiB of a read, each read prepares the next piece.
	dumpSlots   = 4
	dumpSlotLen = 32 << 10
	dumpSeq     = 1
)

var (
	// ErrResized is returned by Dump when the hash table was resized meanwhile: the
	// dump then misses flows and doubles others, and must be repeated.
	ErrResized = errors.New("ctnetlink: dump: conntrack hash table was resized meanwhile")
	// ErrInterrupted is returned by Dump when the kernel says that the dump is not
	// consistent (NLM_F_DUMP_INTR), so that it must be repeated.
	ErrInterrupted = errors.New("ctnetlink: dump: interrupted by a change")
)

// DumpFilter says which entries a dump returns, and from where. The zero value
// means all entries of the current network namespace. All conditions must hold.
type DumpFilter struct {
	NetNS  int   // descriptor of the network namespace, 0 for that of the calling thread
	Family uint8 // flow.IPv4, flow.IPv6, or 0 for both

	Mark, MarkMask     uint32 // mark&MarkMask == Mark; no condition if MarkMask is 0
	Status, StatusMask uint32 // status&StatusMask == Status; no condition if StatusMask is 0

	HasZone bool   // Zone is a condition
	Zone    uint16 // of either direction; 0 for flows that have no zone at all
}

// match repeats the filter here, because a kernel that does not know one of its
// parts ignores it without a word. A flow has one zone, in one direction or both.
func (df *DumpFilter) match(f *flow.Flow) bool {
	return (df.Family == 0 || f.Orig.Family == df.Family) &&
		f.Mark&df.MarkMask == df.Mark&df.MarkMask &&
		f.Status&df.StatusMask == df.Status&df.StatusMask &&
		(!df.HasZone || max(f.Orig.Zone, f.Reply.Zone) == df.Zone)
}

// appendAttributes appends the filter as the kernel understands it. CTA_FILTER,
// which could name addresses, is never used: with IPv6 some kernels match
// everything but the address.
func (df *DumpFilter) appendAttributes(b []byte) []byte {
	if df.MarkMask != 0 {
		b = appendU32(b, ctaMark, df.Mark&df.MarkMask)
		b = appendU32(b, ctaMarkMask, df.MarkMask)
	}
	if df.StatusMask != 0 {
		b = appendU32(b, ctaStatus, df.Status&df.StatusMask)
		b = appendU32(b, ctaStatusMask, df.StatusMask)
	}
	if df.HasZone {
		b = appendU16(b, ctaZone, df.Zone)
	}
	return b
}

// Dump calls fn for every entry that the filter lets through, on a socket of its
// own, with Kind EventDump. The event is lent for the call and then used again. An
// error of fn ends the dump and is returned as it is.
//
// Entries that exist all the time are told exactly once; those that come, go or
// are made anew meanwhile may be told, also twice, or not. After ErrResized and
// ErrInterrupted even that does not hold, and fn has been called for what came.
// When ctx ends, its error is returned.
func Dump(ctx context.Context, filter DumpFilter, fn func(*flow.Event) error) error {
	b := appendHeader(make([]byte, 0, maxRequestLen), msgGet, unix.NLM_F_DUMP, dumpSeq, filter.Family)
	b = finish(filter.appendAttributes(b), 0)
	d := dumper{filter: filter, fn: fn, before: buckets()}
	if err := query(ctx, filter.NetNS, b, d.message); err != nil {
		return err
	}
	return d.end()
}

// dumper is one dump.
type dumper struct {
	filter      DumpFilter
	fn          func(*flow.Event) error
	ev          flow.Event // lent to fn
	before      int        // hash table size at the beginning
	interrupted bool
}

func (d *dumper) message(msg []byte) error {
	if native.Uint16(msg[6:])&unix.NLM_F_DUMP_INTR != 0 {
		d.interrupted = true
	}
	if native.Uint16(msg[4:]) != msgNew {
		return nil
	}
	if err := DecodeEvent(msg, &d.ev); err != nil {
		return err
	}
	d.ev.Kind = flow.EventDump
	if !d.filter.match(&d.ev.Flow) {
		return nil
	}
	return d.fn(&d.ev)
}

// end judges a dump that came to its end.
func (d *dumper) end() error {
	switch {
	case d.interrupted:
		return ErrInterrupted
	case buckets() != d.before:
		return ErrResized
	}
	return nil
}

// buckets is the size of the hash table, which all namespaces share; -1 where it
// cannot be read, which hides resizes but harms nothing else.
func buckets() int {
	n, err := Buckets()
	if err != nil {
		return -1
	}
	return n
}

// errEnough ends a query without error.
var errEnough = errors.New("enough")

// query sends one request, which must have sequence number dumpSeq, on a socket of
// its own and calls fn for each message of the answer, NLMSG_DONE included, until
// that or the first error.
func query(ctx context.Context, netNS int, request []byte, fn func(msg []byte) error) error {
	conn, raw, err := dial(netNS)
	if err != nil {
		return fmt.Errorf("ctnetlink: dump: %w", err)
	}
	defer conn.Close()
	// Left to run beyond the end of the dump it does nothing: the socket is closed.
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(0, 1)) })()

	if err := write(raw, request); err != nil {
		return fmt.Errorf("ctnetlink: dump: %w", capability(err))
	}
	r := reader{raw: raw, rx: newRxVector(dumpSlots, dumpSlotLen)}
	for {
		n, err := r.recv()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("ctnetlink: dump: %w", err)
		}
		for i := range n {
			switch err := answer(r.rx.datagram(i), fn); err {
			case nil:
			case errEnough:
				return nil
			default:
				return err
			}
		}
	}
}

// answer passes the messages of one datagram to fn; errEnough after the last one
// of the answer.
func answer(b []byte, fn func(msg []byte) error) error {
	for len(b) > 0 {
		msg, rest, ok := message(b)
		if !ok {
			return errMessageLength
		}
		b = rest
		if native.Uint32(msg[8:]) != dumpSeq {
			continue
		}
		typ := native.Uint16(msg[4:])
		if typ == unix.NLMSG_ERROR || typ == unix.NLMSG_DONE {
			errno, ok := messageErrno(msg)
			if !ok {
				return errMessageLength
			}
			if errno != 0 {
				return fmt.Errorf("ctnetlink: dump: %w", capability(errno))
			}
		}
		if err := fn(msg); err != nil {
			return err
		}
		if typ == unix.NLMSG_DONE {
			return errEnough
		}
	}
	return nil
}

// reader waits for datagrams.
type reader struct {
	raw   syscall.RawConn
	rx    *rxVector
	n     int
	errno syscall.Errno
}

func (r *reader) recv() (int, error) {
	err := r.raw.Read(func(fd uintptr) bool {
		r.n, r.errno = r.rx.recv(fd)
		return r.errno != unix.EAGAIN
	})
	if err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	return r.n, nil
}

func write(raw syscall.RawConn, b []byte) error {
	var errno syscall.Errno
	if err := raw.Write(func(fd uintptr) bool {
		_, errno = sendTo(fd, b)
		return true
	}); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("send", errno)
	}
	return nil
}

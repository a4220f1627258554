package ctnetlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
	"syncd/internal/gate"
	"syncd/internal/monotime"
)

const (
	// A vector of 16 to 64 is where the cost of a recvmmsg stops falling, and no
	// event is longer than a few hundred octets.
	listenSlots   = 64
	listenSlotLen = 1984 // an odd number of cache lines, so that slots do not share places in a processor's cache

	// minTruesize is less than any queued message is charged for (events cost 1280),
	// so that buffer size / minTruesize bounds the queue from above.
	minTruesize = 512

	// A read of some 50 events makes the wake-up a small part of their cost; fewer than 12 are
	// worth a longer pause. This and the pause of the receiving node's link are most of the
	// time that an event takes to the peer.
	defaultGather = 500 * time.Microsecond
	longestGather = 600 * time.Microsecond
	fewEvents     = 12
)

// ListenConfig says how to listen. The zero value listens in the current network
// namespace with the kernel's default buffer.
type ListenConfig struct {
	NetNS int // descriptor of the network namespace, 0 for that of the calling thread

	// Groups are the multicast groups to join; nil means those of conntrack
	// entries (new, update and destroy) and of expectations (new and destroy; the
	// kernel never tells of an update). Messages of other groups count as bad.
	Groups []uint32

	BufferSize int // receive buffer wanted, in octets; 0 leaves the default
	BufferMax  int // after an overrun the buffer is doubled up to this; 0 never

	// Quiet is the port of a Writer whose creations and updates are not told, only its
	// deletions; 0 for none.
	Quiet uint32

	// Gather is how long events may pile up in the kernel while one follows the other
	// within that time, so that a wake-up carries many: up to 600 µs while they are
	// few. An event after a pause is passed on at once. 0 means 500 µs, less than 0 not
	// at all.
	Gather time.Duration
}

// ListenStats counts what a Listener did since it was opened.
type ListenStats struct {
	Events   uint64 // decoded and handed over
	Bad      uint64 // messages that could not be decoded
	Overruns uint64 // episodes of a full buffer, one batch with Overrun each
	Reads    uint64 // recvmmsg calls that returned something
}

// Listener receives conntrack events. Run belongs to one goroutine; Pause, Resume,
// BufferSize, PortID, Stats, Drops and Close may be called from any.
type Listener struct {
	sock *eventSocket
	pace gate.Pace // belongs to Run
	max  int       // BufferMax

	events, bad, overruns, reads atomic.Uint64
	bufferSize                   atomic.Int64

	groups  []uint32
	member  sync.Mutex  // held by Pause and Resume
	resumed atomic.Bool // Resume was called, and Run has not noticed

	drops struct {
		sync.Mutex
		file *os.File // /proc/net/netlink of the socket's namespace, nil if not readable
	}

	// The rest belongs to the goroutine in Run.
	layouts layouts
	rx      *rxVector
	n       int // datagrams in rx
	next    int // first datagram in rx that is not decoded yet, n if none

	batch *flow.Batch // being filled, kept between runs
	// draining counts down the messages that may still have been queued before the
	// overrun, or before Resume; 0 when none is outstanding.
	draining    int
	overran     bool // the batch that ends it tells of an overrun
	tellResumed bool // it tells that events were not listened to
}

// Listen opens the event socket, joins the groups and sets the buffer. Events
// queue in the kernel from then on, so a dump that starts after Listen misses
// nothing. The error is or wraps ErrNoCapability if the kernel does not allow it.
func Listen(cfg ListenConfig) (*Listener, error) {
	sock, err := dialEvents(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("ctnetlink: listen: %w", err)
	}
	l := &Listener{
		sock: sock, max: cfg.BufferMax,
		rx: newRxVector(listenSlots, listenSlotLen),
	}
	if cfg.Gather == 0 {
		cfg.Gather = defaultGather
	}
	if cfg.Gather > 0 {
		l.pace = gate.Pace{Least: cfg.Gather, Most: longestGather, Few: fewEvents}
	}
	if err := l.open(cfg); err != nil {
		sock.close()
		return nil, fmt.Errorf("ctnetlink: listen: %w", err)
	}
	return l, nil
}

func (l *Listener) open(cfg ListenConfig) error {
	// The buffer first: a busy table fills the default one at once.
	size, err := l.sock.setReadBuffer(cfg.BufferSize)
	if err != nil {
		return err
	}
	l.bufferSize.Store(int64(size))
	groups := cfg.Groups
	if groups == nil {
		// On one socket, because their order matters: the end of an expectation comes
		// before the flow that fulfilled it.
		groups = []uint32{unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_UPDATE, unix.NFNLGRP_CONNTRACK_DESTROY,
			unix.NFNLGRP_CONNTRACK_EXP_NEW, unix.NFNLGRP_CONNTRACK_EXP_DESTROY}
	}
	if cfg.Quiet != 0 {
		if err := l.sock.quiet(cfg.Quiet); err != nil {
			return fmt.Errorf("filter events of port %d: %w", cfg.Quiet, err)
		}
	}
	l.groups = groups
	if err := l.join(); err != nil {
		return err
	}
	// The file shows the namespace that it was opened in, so it is kept open. It
	// only feeds a counter: without it Drops reports nothing.
	_ = inNetNS(cfg.NetNS, func() (err error) {
		l.drops.file, err = os.Open("/proc/thread-self/net/netlink")
		return err
	})
	return nil
}

func (l *Listener) join() error {
	for _, g := range l.groups {
		if err := l.sock.member(unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join group %d: %w", g, capability(err))
		}
	}
	return nil
}

// Pause leaves the event groups: until Resume, what happens in the table tells
// nobody here, and the kernel spares itself the building of events if nobody else
// listens. What is queued is still read. An error leaves some of the groups;
// Resume must be called all the same.
//
// Entries that are born in a pause tell of their later life only if
// nf_conntrack_events is 1.
func (l *Listener) Pause() error {
	l.member.Lock()
	defer l.member.Unlock()
	for _, g := range l.groups {
		if err := l.sock.member(unix.NETLINK_DROP_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("ctnetlink: pause: leave group %d: %w", g, err)
		}
	}
	return nil
}

// Resume joins the event groups again. When Run has passed on all that was queued
// before, it passes a batch with Resumed set: whoever keeps a copy of the table must
// read it again from there on. An error means that events stay away.
func (l *Listener) Resume() error {
	l.member.Lock()
	defer l.member.Unlock()
	if err := l.join(); err != nil {
		return fmt.Errorf("ctnetlink: resume: %w", err)
	}
	l.resumed.Store(true)
	if err := l.sock.gate.SetDeadline(time.Unix(0, 1)); err != nil { // wakes Run
		return fmt.Errorf("ctnetlink: resume: %w", err)
	}
	return nil
}

// Run reads events until ctx ends, which is no error, or the socket fails. It
// takes empty batches from free and passes filled ones to full, in the order in which
// the kernel sent the events: a batch goes when it is full or when the socket has
// been read empty. While free is empty nothing is read and the kernel's buffer
// takes what comes.
//
// When that buffer overflows, everything that was queued before is still read and passed
// on; then comes one batch with Overrun set, with or without events in it.
//
// Events that were read but not passed on when ctx ended are kept for the next Run.
func (l *Listener) Run(ctx context.Context, free <-chan *flow.Batch, full chan<- *flow.Batch) error {
	if err := l.sock.hold(); err != nil {
		return fmt.Errorf("ctnetlink: listen: %w", err)
	}
	defer l.sock.release()
	if err := l.sock.gate.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("ctnetlink: listen: %w", err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.sock.gate.SetDeadline(time.Unix(0, 1))
		close(interrupted)
	})
	err := l.run(ctx, free, full)
	if !stop() {
		<-interrupted // or it would hit the next Run
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("ctnetlink: listen: %w", err)
}

func (l *Listener) run(ctx context.Context, free <-chan *flow.Batch, full chan<- *flow.Batch) error {
	got := 0 // events read since the last pause
	for {
		if err := l.take(ctx, free); err != nil {
			return err
		}
		if l.resumed.Load() && l.resumed.Swap(false) {
			l.tellResumed = true
			l.drain()
		}
		if l.next == l.n {
			// With something in hand only look; wait when there is nothing to pass on.
			idle := l.batch.N == 0 && l.batch.NExpect == 0 && l.draining == 0
			var errno syscall.Errno
			l.n, errno = l.rx.recv(uintptr(l.sock.fd))
			l.next = 0
			switch errno {
			case 0:
				l.reads.Add(1)
			case unix.EAGAIN:
				if idle {
					if err := l.wait(ctx); err != nil {
						return err
					}
					continue
				}
			case unix.ENOBUFS:
				l.overrun()
				continue
			default:
				return os.NewSyscallError("recvmmsg", errno)
			}
			got += l.n
		}
		if err := l.decode(ctx, free, full); err != nil {
			return err
		}
		if l.n == listenSlots && l.draining != 1 {
			continue // there may be more
		}
		if err := l.flush(ctx, full); err != nil {
			return err
		}
		if got > 0 {
			d := l.pace.Got(monotime.Now(), got)
			got = 0
			if d > 0 {
				if err := l.ended(ctx, l.sock.gate.Pause(d)); err != nil {
					return err
				}
			}
		}
		if l.sock.isClosed() {
			return os.ErrClosed
		}
	}
}

// wait waits for events.
func (l *Listener) wait(ctx context.Context) error { return l.ended(ctx, l.sock.gate.Wait()) }

// ended says what the end of waiting means: an error if Run has to end.
func (l *Listener) ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	// Resume wants to be noticed. Should ctx end just now, its deadline must not be
	// lost.
	if err := l.sock.gate.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err()
}

// take makes sure that there is a batch with room.
func (l *Listener) take(ctx context.Context, free <-chan *flow.Batch) error {
	if l.batch != nil {
		return nil
	}
	select {
	case l.batch = <-free:
		l.batch.N, l.batch.NExpect, l.batch.Overrun = 0, 0, false
		l.batch.Resumed = false
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pass hands the batch over.
func (l *Listener) pass(ctx context.Context, full chan<- *flow.Batch) error {
	select {
	case full <- l.batch:
		l.batch = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decode turns the datagrams of the last read into events. Each event is a
// datagram of its own.
func (l *Listener) decode(ctx context.Context, free <-chan *flow.Batch, full chan<- *flow.Batch) error {
	var events, bad uint64
	defer func() {
		l.events.Add(events)
		l.bad.Add(bad)
	}()
	for ; l.next < l.n; l.next++ {
		if l.batch.N == flow.BatchSize || l.batch.NExpect == flow.ExpectBatchSize {
			if err := l.pass(ctx, full); err != nil {
				return err
			}
			if err := l.take(ctx, free); err != nil {
				return err
			}
		}
		msg := l.rx.datagram(l.next)
		// Entries first: expectations are rare, and must not cost them anything.
		if l.layouts.decode(msg, &l.batch.Events[l.batch.N]) != nil && !l.expect(msg) {
			bad++
			continue
		}
		l.batch.N++
		events++
	}
	if l.draining > 1 {
		l.draining = max(l.draining-l.n, 1)
	}
	return nil
}

// expect decodes msg as an event about an expectation into the batch, which has room,
// and reports whether it is one.
func (l *Listener) expect(msg []byte) bool {
	b := l.batch
	kind, port, err := DecodeExpect(msg, &b.Expects[b.NExpect])
	if err != nil {
		return false
	}
	b.NExpect++
	b.Events[b.N] = flow.Event{Kind: kind, PortID: port, Expect: uint8(b.NExpect)}
	return true
}

// flush hands over what there is after the socket has been read empty.
func (l *Listener) flush(ctx context.Context, full chan<- *flow.Batch) error {
	if l.batch.N == 0 && l.draining == 0 {
		return nil
	}
	l.batch.Overrun, l.batch.Resumed = l.overran, l.tellResumed
	if err := l.pass(ctx, full); err != nil {
		l.batch.Overrun, l.batch.Resumed = false, false // the next Run may still add events to it
		return err
	}
	l.draining, l.overran, l.tellResumed = 0, false, false
	return nil
}

// overrun begins an episode. The kernel reports it before the events that were
// queued earlier, and queues nothing more until those have been read; so at most a
// whole buffer of them is to come before the batch that tells of the loss.
func (l *Listener) overrun() {
	if !l.overran {
		l.overran = true
		l.overruns.Add(1)
	}
	l.drain()
	if size := int(l.bufferSize.Load()); size < l.max {
		if n, err := l.sock.setReadBuffer(min(2*size, l.max)); err == nil {
			l.bufferSize.Store(int64(n))
		}
	}
}

// drain begins to count what may be queued now.
func (l *Listener) drain() { l.draining = max(l.BufferSize()/minTruesize, 2) }

// PortID is the netlink port of the socket.
func (l *Listener) PortID() uint32 { return l.sock.port }

// BufferSize is the receive buffer that the kernel granted, in octets.
func (l *Listener) BufferSize() int { return int(l.bufferSize.Load()) }

// Stats returns the counters.
func (l *Listener) Stats() ListenStats {
	return ListenStats{
		Events:   l.events.Load(),
		Bad:      l.bad.Load(),
		Overruns: l.overruns.Load(),
		Reads:    l.reads.Load(),
	}
}

// Drops returns how many events the kernel threw away for want of buffer, as
// /proc/net/netlink shows it; ok is false when it cannot be known.
func (l *Listener) Drops() (drops uint64, ok bool) {
	l.drops.Lock()
	defer l.drops.Unlock()
	if l.drops.file == nil {
		return 0, false
	}
	if _, err := l.drops.file.Seek(0, io.SeekStart); err != nil {
		return 0, false
	}
	table, err := io.ReadAll(l.drops.file)
	if err != nil {
		return 0, false
	}
	return parseDrops(table, l.PortID())
}

// parseDrops finds the netfilter socket of a port in the text of
// /proc/net/netlink: sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode.
func parseDrops(table []byte, port uint32) (uint64, bool) {
	const protocol, pid, drops = 1, 2, 8
	for line := range bytes.Lines(table) {
		c := bytes.Fields(line)
		if len(c) <= drops || string(c[protocol]) != strconv.Itoa(unix.NETLINK_NETFILTER) ||
			string(c[pid]) != strconv.FormatUint(uint64(port), 10) {
			continue
		}
		n, err := strconv.ParseUint(string(c[drops]), 10, 64)
		return n, err == nil
	}
	return 0, false
}

// Close closes the socket. A Run that is going on ends with an error.
func (l *Listener) Close() error {
	l.drops.Lock()
	defer l.drops.Unlock()
	var err error
	if l.drops.file != nil {
		err = l.drops.file.Close()
		l.drops.file = nil
	}
	return errors.Join(l.sock.close(), err)
}

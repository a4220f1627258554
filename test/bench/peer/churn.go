package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/ctnetlink"
	"syncd/internal/flow"
	"syncd/internal/lab"
	"syncd/test/bench/rig"
)

// generator asks a kernel for changes of its table at a set rate. It belongs to one
// goroutine.
type generator struct {
	w       *ctnetlink.Writer
	refused int
	errno   unix.Errno // of the last one that was refused

	standing uint32 // flows made by fill: numbers 0 to standing-1
	born     uint32 // lives begun by churn

	// ends are the times at which the kernel has ended lives, in order, if they are
	// wanted.
	stamp bool
	ends  []time.Time
}

func newGenerator(n *lab.Node) (*generator, error) {
	w, err := ctnetlink.NewWriter(ctnetlink.WriterConfig{NetNS: n.FD()})
	if err != nil {
		return nil, err
	}
	return &generator{w: w}, nil
}

func (g *generator) close() error { return g.w.Close() }

// Flows are told apart by their source; standing ones and those of the churn have
// different targets.
var (
	sourceNet    = binary.BigEndian.Uint32(rig.FlowSource.Addr().AsSlice())
	targetFill   = binary.BigEndian.Uint32(rig.FlowTarget.Addr().AsSlice()) + 1
	targetChurn  = targetFill + 1
	targetPacket = targetFill + 2
)

// key returns the addresses and ports of flow n: 16384 ports on each of 65536 hosts.
func key(n, target uint32) (src uint32, sport uint16) {
	return sourceNet + n>>14&0xffff, 1024 + uint16(n&0x3fff)
}

func tcpFlow(n, target uint32, state uint8, status uint32) (f flow.Flow) {
	src, sport := key(n, target)
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: sport, DstPort: 443}
	binary.BigEndian.PutUint32(f.Orig.Src[:], src)
	binary.BigEndian.PutUint32(f.Orig.Dst[:], target)
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	f.Status, f.Timeout, f.TCPState = flow.StatusConfirmed|status, 3600, state
	f.TCPFlags, f.TCPWScale = [2]uint8{3, 3}, [2]uint8{7, 7}
	return f
}

// stages are the life of a connection as the kernel tells it: eight events.
var stages = []struct {
	op     ctnetlink.Op
	state  uint8
	status uint32
}{
	{ctnetlink.OpCreate, flow.TCPSynSent, 0},
	{ctnetlink.OpUpdate, flow.TCPSynRecv, flow.StatusSeenReply},
	{ctnetlink.OpUpdate, flow.TCPEstablished, flow.StatusSeenReply | flow.StatusAssured},
	{ctnetlink.OpUpdate, flow.TCPFinWait, flow.StatusSeenReply | flow.StatusAssured},
	{ctnetlink.OpUpdate, flow.TCPCloseWait, flow.StatusSeenReply | flow.StatusAssured},
	{ctnetlink.OpUpdate, flow.TCPLastAck, flow.StatusSeenReply | flow.StatusAssured},
	{ctnetlink.OpUpdate, flow.TCPTimeWait, flow.StatusSeenReply | flow.StatusAssured},
	{ctnetlink.OpDelete, 0, 0},
}

// tick is how often the generator looks what is due: what is due at 100,000 events/s
// are 20.
const tick = 200 * time.Microsecond

// pace calls step at a rate until n are done, or for a duration if n is 0, and returns
// how many it did. step is told how many are due, 64 at most.
func pace(ctx context.Context, rate int, n int, d time.Duration, step func(due int) error) (done int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	for {
		took = time.Since(begin)
		if n > 0 && done >= n || n == 0 && took >= d {
			return done, took, nil
		}
		if ctx.Err() != nil {
			return done, took, ctx.Err()
		}
		due := min(int(took.Seconds()*float64(rate))-done, 64)
		if n > 0 {
			due = min(due, n-done)
		}
		if due <= 0 {
			nap(tick)
			continue
		}
		if err := step(due); err != nil {
			return done, took, err
		}
		done += due
	}
}

// nap sleeps in the kernel: the runtime's timers are too coarse here.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // a signal that ends it early does no harm
}

func (g *generator) add(op ctnetlink.Op, f *flow.Flow) error {
	_, err := g.w.Add(op, f, ctnetlink.CreateOptions{})
	return err
}

func (g *generator) flush() error {
	return g.w.Flush(func(_ int, errno unix.Errno) { g.refused++; g.errno = errno })
}

// flushStamped is flush, which notes when the requests named in ended, of n, were
// carried out: the kernel works them off one after the other.
func (g *generator) flushStamped(n int, ended []int) error {
	begin := time.Now()
	err := g.flush()
	if g.stamp {
		each := time.Since(begin) / time.Duration(n)
		for _, i := range ended {
			g.ends = append(g.ends, begin.Add(time.Duration(i)*each))
		}
	}
	return err
}

// check returns an error if the kernel has refused something: the load would not be
// what it is said to be.
func (g *generator) check() error {
	if g.refused > 0 {
		return fmt.Errorf("the kernel refused %d changes, the last one with: %w", g.refused, g.errno)
	}
	return nil
}

// fill makes n established flows.
func (g *generator) fill(ctx context.Context, n, rate int) (done int, took time.Duration, err error) {
	done, took, err = pace(ctx, rate, n, 0, func(due int) error {
		for range due {
			f := tcpFlow(g.standing, targetFill, flow.TCPEstablished, flow.StatusSeenReply|flow.StatusAssured)
			if err := g.add(ctnetlink.OpCreate, &f); err != nil {
				return err
			}
			g.standing++
		}
		return g.flush()
	})
	if err == nil {
		err = g.check()
	}
	return done, took, err
}

// life is a connection of the churn.
type life struct {
	n     uint32
	stage uint8 // what comes next
	wait  uint8 // rounds until it begins, so that all stages are there at any moment
}

// churn lets connections live, so many at the same time. Each takes its turn, so that
// the events of one are far apart: lives/rate seconds. At the end those that have not
// ended are deleted, at the same rate.
func (g *generator) churn(ctx context.Context, rate, lives int, d time.Duration) (events int, took time.Duration, err error) {
	all := make([]life, lives)
	for i := range all {
		all[i].wait = uint8(i % len(stages))
	}
	next := 0
	step := func(due int) error {
		var ended []int // which requests of the batch end a life
		for i := range due {
			for all[next].wait > 0 {
				all[next].wait--
				next = (next + 1) % lives
			}
			l := &all[next]
			if l.stage == 0 {
				l.n = g.born
				g.born++
			}
			s := &stages[l.stage]
			f := tcpFlow(l.n, targetChurn, s.state, s.status)
			if err := g.add(s.op, &f); err != nil {
				return err
			}
			if s.op == ctnetlink.OpDelete && g.stamp {
				ended = append(ended, i)
			}
			l.stage = (l.stage + 1) % uint8(len(stages))
			next = (next + 1) % lives
		}
		return g.flushStamped(due, ended)
	}
	events, took, err = pace(ctx, rate, 0, d, step)
	if err != nil {
		return events, took, err
	}
	var left []uint32
	for _, l := range all {
		if l.stage != 0 {
			left = append(left, l.n)
		}
	}
	done, more, err := pace(ctx, rate, len(left), 0, func(due int) error {
		for _, n := range left[:due] {
			f := tcpFlow(n, targetChurn, 0, 0)
			if err := g.add(ctnetlink.OpDelete, &f); err != nil {
				return err
			}
		}
		left = left[due:]
		var ended []int
		for i := range due {
			ended = append(ended, i)
		}
		return g.flushStamped(due, ended)
	})
	if err == nil {
		err = g.check()
	}
	return events + done, took + more, err
}

package rig

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/ctnetlink"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

var (
	sourceNet = binary.BigEndian.Uint32(FlowSource.Addr().AsSlice())
	targetNet = binary.BigEndian.Uint32(FlowTarget.Addr().AsSlice())
)

// Flow returns flow n of those to a target (1, 2 ...): an established TCP connection
// in full flight. There are 16384 ports on each of 65536 hosts.
func Flow(n int, target uint32) (f flow.Flow) {
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: 1024 + uint16(n&0x3fff), DstPort: 443}
	binary.BigEndian.PutUint32(f.Orig.Src[:], sourceNet+uint32(n>>14))
	binary.BigEndian.PutUint32(f.Orig.Dst[:], targetNet+target)
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	f.Status = flow.StatusConfirmed | flow.StatusSeenReply | flow.StatusAssured
	f.Timeout, f.TCPState = 3600, flow.TCPEstablished
	f.TCPFlags, f.TCPWScale = [2]uint8{3, 3}, [2]uint8{7, 7}
	return f
}

// Load makes changes in the kernel of a node. It belongs to one goroutine.
type Load struct {
	w       *ctnetlink.Writer
	refused error
}

// NewLoad opens a socket in the node.
func NewLoad(n *lab.Node) (*Load, error) {
	w, err := ctnetlink.NewWriter(ctnetlink.WriterConfig{NetNS: n.FD()})
	return &Load{w: w}, err
}

// Close closes the socket.
func (l *Load) Close() error { return l.w.Close() }

// Add adds a change of flow n to a target to the batch.
func (l *Load) Add(op ctnetlink.Op, n int, target uint32) error {
	f := Flow(n, target)
	_, err := l.w.Add(op, &f, ctnetlink.CreateOptions{})
	return err
}

// Flush lets the kernel carry out the batch. What the kernel has refused, now or
// earlier, is an error: the load would not be what it is said to be.
func (l *Load) Flush() error {
	err := l.w.Flush(func(_ int, errno unix.Errno) {
		if l.refused == nil {
			l.refused = fmt.Errorf("the kernel refused a change of the load: %w", errno)
		}
	})
	return errors.Join(err, l.refused)
}

// Range makes one change of each of n flows to a target from the first on, at a rate
// of changes a second.
func (l *Load) Range(ctx context.Context, op ctnetlink.Op, first, n int, target uint32, rate int) error {
	begin := time.Now()
	// A batch is what is due in a millisecond or so.
	batch := min(max(rate/1000, 1), ctnetlink.MaxBatch)
	for i := 0; i < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		for range min(batch, n-i) {
			if err := l.Add(op, first+i, target); err != nil {
				return err
			}
			i++
		}
		if err := l.Flush(); err != nil {
			return err
		}
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
	}
	return nil
}

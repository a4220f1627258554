package ctnetlink

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// AddExpect encodes a request about an expectation into the batch, as Add does for
// entries; both kinds may be in one batch.
//
// A create fails with EEXIST when there is an expectation that the tuple of x
// matches, with EBUSY when one overlaps with it otherwise, with ENOENT when there is no
// such master, with EOPNOTSUPP when that has no helper, and with EMFILE when the
// table is full (nf_conntrack_expect_max). The oldest of a master gives way when its
// helper allows no more. Its timeout is that of the helper; an update sets that of x.
// A delete with an ID spares another expectation with the same tuple.
func (w *Writer) AddExpect(op Op, x *flow.Expect) (index int, err error) {
	if w.n == MaxBatch || len(w.buf)+maxRequestLen > cap(w.buf) {
		return 0, ErrBatchFull
	}
	w.buf, err = appendExpect(w.buf, op, w.sequence(w.n), x)
	if err != nil {
		return 0, fmt.Errorf("ctnetlink: %v expectation: %w", op, err)
	}
	w.n++
	return w.n - 1, nil
}

// GetExpect reads the expectation that the tuple t matches, in its zone, into x. The error
// is unix.ENOENT when there is none. Requests that wait for Flush stay as they are.
func (w *Writer) GetExpect(t *flow.Tuple, x *flow.Expect) error {
	w.getSeq = (w.getSeq + 1) | getSequenceBit
	b := appendHeader(w.getBuf[:0], msgExpectGet, 0, w.getSeq, t.Family)
	b = appendTuple(b, ctaExpectTuple, t, 0)
	if t.Zone != 0 {
		b = appendU16(b, ctaExpectZone, t.Zone)
	}
	if err := w.exchange(finish(b, 0)); err != nil {
		return fmt.Errorf("ctnetlink: get expectation: %w", err)
	}
	msg, err := w.reply("get expectation")
	if err != nil {
		return err
	}
	if _, _, err := DecodeExpect(msg, x); err != nil {
		return err
	}
	x.Tuple.Zone, x.Master.Zone = t.Zone, t.Zone
	return nil
}

// DumpExpects calls fn for every expectation in the network namespace of descriptor
// netNS (0 for that of the calling thread), on a socket of its own. The expectation is
// lent for the call and then used again. An error of fn ends the dump and is returned
// as it is; what holds for entries that come and go during Dump holds here.
func DumpExpects(ctx context.Context, netNS int, fn func(*flow.Expect) error) error {
	b := finish(appendHeader(nil, msgExpectGet, unix.NLM_F_DUMP, dumpSeq, unix.AF_UNSPEC), 0)
	var x flow.Expect
	interrupted := false
	err := query(ctx, netNS, b, func(msg []byte) error {
		if native.Uint16(msg[6:])&unix.NLM_F_DUMP_INTR != 0 {
			interrupted = true
		}
		if native.Uint16(msg[4:]) != msgExpectNew {
			return nil
		}
		if _, _, err := DecodeExpect(msg, &x); err != nil {
			return err
		}
		return fn(&x)
	})
	if err == nil && interrupted {
		return ErrInterrupted
	}
	return err
}

package commit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"

	"golang.org/x/sys/unix"
)

// ExpectEntry is one expectation of an external cache.
type ExpectEntry struct {
	Expect flow.Expect
	Age    time.Duration // since its owner last said something about it
}

// ExpectSource hands out the expectations of a cache.
type ExpectSource interface {
	// NextExpects copies expectations into dst and returns how many. The last ones
	// come with, or are followed by, io.EOF; any other error ends the commit.
	NextExpects(dst []ExpectEntry) (n int, err error)
}

// ExpectKernel is a table of expectations, with requests gathered into batches. What is
// said of Kernel holds here.
type ExpectKernel interface {
	// AddExpect puts one request at the end of the batch. An Update sets the timeout,
	// nothing else; a Create cannot set it.
	AddExpect(op Op, x *flow.Expect) (int, error)
	Flush(fail func(index int, errno unix.Errno)) error
	// GetExpect fills x with the expectation that t matches. The error is or wraps
	// ENOENT if there is none.
	GetExpect(t *flow.Tuple, x *flow.Expect) error
}

// Reasons of expectations, as they stand in Report.ByReason.
const (
	reasonMasterGone  = "master is not there"
	reasonMasterPlain = "master has no helper"
	reasonExpectFull  = "expectation table full" // nf_conntrack_expect_max
	reasonUnknownPart = "unknown class or function"
)

// expectReasonOf names why the kernel refused to create x.
func expectReasonOf(errno unix.Errno, x *flow.Expect) string {
	switch errno {
	case unix.ENOENT:
		return reasonMasterGone
	case unix.EOPNOTSUPP:
		return reasonMasterPlain
	case unix.EMFILE:
		return reasonExpectFull
	case unix.EINVAL, unix.ERANGE:
		if x.Has&(flow.ExpectHasClass|flow.ExpectHasFn|flow.ExpectHasNAT) != 0 {
			return reasonUnknownPart
		}
	}
	return reasonOf(errno)
}

// expectBatch is how many expectations are worked on at once. As many requests fit
// into a batch whatever they carry.
const expectBatch = 64

// RunExpects commits the expectations that src hands out. Their masters must be in the
// kernel by then. Errors are as with Run; of the options Timeout and DryRun count.
//
// What is there stays: another expectation of the same may be newer than ours, because
// the helper on this node may have made it.
func RunExpects(ctx context.Context, src ExpectSource, k ExpectKernel, o Options) (Report, error) {
	r := &expectRunner{k: k, o: o, start: monotime.Now()}
	r.report.DryRun = o.DryRun
	r.fail = r.answer
	err := r.run(ctx, src)
	r.report.Duration = monotime.Now().Sub(r.start)
	return r.report, err
}

// expectRunner is one commit of expectations.
type expectRunner struct {
	k       ExpectKernel
	o       Options
	report  Report
	start   monotime.Time
	entries [expectBatch]ExpectEntry
	errnos  [expectBatch]unix.Errno // of the last requests, by entry
	asked   [expectBatch]int        // entry of each request in the batch
	n       int                     // requests in the batch
	fail    func(int, unix.Errno)   // r.answer, bound once
	stray   error                   // an answer to nothing that was asked
	have    flow.Expect             // what GetExpect found last
}

func (r *expectRunner) run(ctx context.Context, src ExpectSource) error {
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("commit expectations: %w", context.Cause(ctx))
		}
		n, err := src.NextExpects(r.entries[:])
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return fmt.Errorf("commit expectations: read cache: %w", err)
		}
		if err := r.commit(n); err != nil {
			return fmt.Errorf("commit expectations: %w", err)
		}
		if last {
			return nil
		}
	}
}

// commit settles the first n entries.
func (r *expectRunner) commit(n int) error {
	var todo [expectBatch]int
	rest := todo[:0]
	for i := range n {
		r.report.Entries++
		r.prepare(&r.entries[i])
		rest = append(rest, i)
	}
	if r.o.DryRun {
		for _, i := range rest {
			if _, err := r.look(i); err != nil {
				return err
			}
		}
		return nil
	}
	for tries := 0; len(rest) > 0; tries++ {
		if err := r.request(Create, rest); err != nil {
			return err
		}
		var done, update [expectBatch]int
		made, again := done[:0], rest[:0]
		there := update[:0]
		for _, i := range rest {
			x := &r.entries[i].Expect
			switch errno := r.errnos[i]; errno {
			case 0:
				if r.report.Created++; x.Has&flow.ExpectHasTimeout != 0 {
					made = append(made, i)
				}
			case unix.EPERM:
				key := x.Key()
				return fmt.Errorf("%s: %w", describe(&key), errno)
			case unix.EEXIST:
				free, err := r.look(i)
				switch {
				case err != nil:
					return err
				case free && tries < maxTries:
					again = append(again, i) // it has gone meanwhile
				case free:
					r.skip(x, reasonBusy)
				case r.errnos[i] == 0:
					there = append(there, i)
				}
			case unix.EBUSY, unix.EALREADY:
				r.skip(x, reasonConflict) // it overlaps with another one
			default:
				r.refuse(x, expectReasonOf(errno, x))
			}
		}
		// A create takes the timeout of the helper. One that has been fulfilled since
		// then does not need any.
		if err := r.request(Update, append(made, there...)); err != nil {
			return err
		}
		rest = again
	}
	return nil
}

// prepare makes of an entry of the cache what is to be created.
func (r *expectRunner) prepare(e *ExpectEntry) {
	x := &e.Expect
	x.Has &^= flow.ExpectHasID
	switch {
	case r.o.Timeout != 0:
		x.Timeout = r.o.Timeout
		x.Has |= flow.ExpectHasTimeout
	case x.Has&flow.ExpectHasTimeout != 0:
		x.Timeout = max(flow.Remaining(x.Timeout, e.Age), 1)
	}
}

// look finds out what the kernel has in the place of entry i. free says that nothing
// is; otherwise the entry has been counted, and errnos[i] is 0 if its timeout is to be
// set.
func (r *expectRunner) look(i int) (free bool, err error) {
	x := &r.entries[i].Expect
	switch err := r.k.GetExpect(&x.Tuple, &r.have); {
	case errors.Is(err, unix.ENOENT):
		if r.o.DryRun {
			r.report.Created++
		}
		return true, nil
	case err != nil:
		key := x.Key()
		return false, fmt.Errorf("look for %s: %w", describe(&key), err)
	case !sameExpect(x, &r.have):
		r.skip(x, reasonConflict)
		return false, nil
	}
	if x.Has&flow.ExpectHasTimeout == 0 || uint64(x.Timeout) <= uint64(r.have.Timeout)+timeoutSlack {
		r.report.AlreadyThere++
		return false, nil
	}
	r.report.Updated++
	r.errnos[i] = 0
	return false, nil
}

// sameExpect reports whether the kernel's expectation have does what x is to do. What
// x does not know does not count.
func sameExpect(x, have *flow.Expect) bool {
	const described = flow.ExpectHasClass | flow.ExpectHasNAT | flow.ExpectHasFn
	a, b := *x, *have
	for _, e := range []*flow.Expect{&a, &b} {
		// Of the mask only the source varies, and of a helper's name only the master's
		// counts.
		e.Mask.Dst, e.Mask.DstPort, e.Mask.Zone = [16]byte{}, 0, 0
		e.Helper, e.Has = flow.Name{}, e.Has&described
		e.Flags &= flow.ExpectFlagPermanent | flow.ExpectFlagInactive
	}
	if a.Mask.Family == 0 {
		b.Mask = a.Mask
	}
	b.Mask.Proto = a.Mask.Proto
	if a.Has&flow.ExpectHasClass == 0 {
		b.Class, b.Has = 0, b.Has&^flow.ExpectHasClass
	}
	return flow.SameExpect(&a, &b)
}

// request asks for op of these entries and leaves the answers in errnos.
func (r *expectRunner) request(op Op, entries []int) error {
	for _, i := range entries {
		r.errnos[i] = 0
		at, err := r.k.AddExpect(op, &r.entries[i].Expect)
		if err != nil {
			if errors.Is(err, ErrBatchFull) {
				return fmt.Errorf("batch of %d expectations: %w", len(entries), err)
			}
			r.errnos[i] = unix.EINVAL // cannot be put into words
			continue
		}
		if at != r.n {
			return fmt.Errorf("request %d of a batch got number %d", r.n, at)
		}
		r.asked[at] = i
		r.n++
	}
	if r.n == 0 {
		return nil
	}
	err := r.k.Flush(r.fail)
	if errors.Is(err, unix.ENOBUFS) {
		// Nobody knows which of them failed. EEXIST makes each look for itself.
		for _, i := range r.asked[:r.n] {
			if op == Create && r.errnos[i] == 0 {
				r.errnos[i] = unix.EEXIST
			}
		}
		err = nil
	}
	r.n = 0
	if err != nil {
		return err
	}
	return r.stray
}

// answer notes that the kernel refused a request of the batch.
func (r *expectRunner) answer(at int, errno unix.Errno) {
	if at < 0 || at >= r.n {
		r.stray = fmt.Errorf("answer to request %d of a batch of %d: %w", at, r.n, errno)
		return
	}
	r.errnos[r.asked[at]] = errno
}

func (r *expectRunner) skip(x *flow.Expect, reason string) {
	key := x.Key()
	r.report.Skipped++
	increment(&r.report.SkippedBy, reason)
	r.report.remarkAll(&key, reason, 1)
}

func (r *expectRunner) refuse(x *flow.Expect, reason string) {
	key := x.Key()
	r.report.Refused++
	increment(&r.report.RefusedBy, reason)
	r.report.remarkAll(&key, reason, 1)
}

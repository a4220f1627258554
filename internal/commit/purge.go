package commit

import (
	"context"
	"errors"
	"fmt"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// Purge deletes the entries of the kernel for which keep is false, and returns
// how many it deleted. dump calls fn for each entry of the kernel and returns its
// error at once; it must use another socket than k. An entry is deleted by its
// original tuple and its ID, so that a newer one with the same tuple stays.
//
// An entry that is gone already does no harm. If the kernel refuses to delete
// others, the rest is purged all the same and the first refusal is returned. ctx
// is looked at between batches.
func Purge(ctx context.Context, dump func(fn func(*flow.Flow) error) error, keep func(*flow.Flow) bool, k Kernel) (int, error) {
	p := purger{k: k}
	p.fail = p.answer
	err := dump(func(f *flow.Flow) error {
		if keep(f) {
			return nil
		}
		return p.delete(ctx, f)
	})
	if flushErr := p.flush(); err == nil {
		err = flushErr
	}
	if err == nil && p.refused > 0 {
		err = fmt.Errorf("%d entries not deleted: %w", p.refused, p.first)
	}
	if err != nil {
		err = fmt.Errorf("purge: %w", err)
	}
	return p.deleted, err
}

// purger is one purge.
type purger struct {
	k       Kernel
	fail    func(int, unix.Errno) // p.answer, bound once
	n       int                   // requests in the batch
	deleted int
	refused int
	first   error // why the first was refused
}

func (p *purger) delete(ctx context.Context, f *flow.Flow) error {
	if p.n == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, err := p.k.Add(Delete, f)
	if errors.Is(err, ErrBatchFull) {
		if err := p.flush(); err != nil {
			return err
		}
		_, err = p.k.Add(Delete, f)
	}
	if err != nil {
		p.refuse(err)
		return nil
	}
	if p.n++; p.n < batchSize {
		return nil
	}
	return p.flush()
}

func (p *purger) flush() error {
	if p.n == 0 {
		return nil
	}
	p.deleted += p.n
	p.n = 0
	if err := p.k.Flush(p.fail); err != nil {
		return err
	}
	if errors.Is(p.first, unix.EPERM) {
		return p.first
	}
	return nil
}

// answer notes that a request of the batch failed.
func (p *purger) answer(_ int, errno unix.Errno) {
	p.deleted--
	if errno != unix.ENOENT {
		p.refuse(errno)
	}
}

func (p *purger) refuse(err error) {
	p.refused++
	if p.first == nil {
		p.first = err
	}
}

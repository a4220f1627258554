package commit

import (
	"context"
	"errors"
	"fmt"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// PurgeReport counts what a purge did.
type PurgeReport struct {
	Chosen    int // entries that are to end
	Shortened int // of these, those that had more time left
	Deleted   int // of these, those whose time cannot be shortened
	Refused   int // of these, those that the kernel did not let us shorten or delete
}

// Purge makes entries of the kernel end that nobody uses: the chosen ones get a timeout
// of limit seconds, and never a longer one than they have. The next packet gives an
// entry its usual timeout again, so what is in use stays. An entry whose time is over
// leaves the table when somebody finds it, as a dump does.
//
// dump calls fn for each entry of the kernel and returns its error at once; it must use
// another socket than k. choose looks at some entries at a time and says in chosen which
// are to end. Entries of a fixed timeout, and those that a flowtable handles, are shown
// to it but stay as they are. Only those of GRE are deleted: they have it from a commit,
// and neither packets nor we can change it.
//
// An entry that is gone already does no harm. If the kernel refuses others, the rest is
// purged all the same and the first refusal is returned. ctx is looked at between
// batches.
func Purge(ctx context.Context, dump func(fn func(*flow.Flow) error) error, choose func(flows []flow.Flow, chosen []bool) error, k Kernel, limit uint32) (PurgeReport, error) {
	p := purger{k: k, choose: choose, limit: limit}
	p.fail = p.answer
	err := dump(func(f *flow.Flow) error {
		p.flows[p.n] = *f
		if p.n++; p.n < len(p.flows) {
			return nil
		}
		return p.batch(ctx)
	})
	if batchErr := p.batch(ctx); err == nil {
		err = batchErr
	}
	if err == nil && p.report.Refused > 0 {
		err = fmt.Errorf("%d entries not shortened: %w", p.report.Refused, p.first)
	}
	if err != nil {
		err = fmt.Errorf("purge: %w", err)
	}
	return p.report, err
}

// purger is one purge.
type purger struct {
	k      Kernel
	choose func([]flow.Flow, []bool) error
	limit  uint32
	fail   func(int, unix.Errno) // p.answer, bound once

	flows  [chunkSize]flow.Flow
	chosen [chunkSize]bool
	n      int

	sent    int             // requests in the batch
	deletes [batchSize]bool // which of them are deletes
	report  PurgeReport
	first   error // why the first was refused
}

// batch purges the entries that were gathered.
func (p *purger) batch(ctx context.Context) error {
	n := p.n
	p.n = 0
	if n == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	clear(p.chosen[:])
	if err := p.choose(p.flows[:n], p.chosen[:n]); err != nil {
		return err
	}
	for i := range n {
		if !p.chosen[i] {
			continue
		}
		p.report.Chosen++
		f := &p.flows[i]
		if f.Orig.Proto == flow.GRE && f.Status&flow.StatusFixedTimeout != 0 {
			f.Has &= flow.HasID // no other entry with this tuple
			if err := p.request(Delete, f); err != nil {
				return err
			}
			continue
		}
		const untouchable = flow.StatusFixedTimeout | flow.StatusOffload | flow.StatusHWOffload
		if f.Has&flow.HasTimeout == 0 || f.Timeout <= p.limit || f.Status&untouchable != 0 {
			continue
		}
		f.Has, f.Timeout = flow.HasTimeout, p.limit
		if err := p.request(Update, f); err != nil {
			return err
		}
	}
	return p.flush()
}

// request adds a request to the batch, and sends it when it is full.
func (p *purger) request(op Op, f *flow.Flow) error {
	_, err := p.k.Add(op, f)
	if errors.Is(err, ErrBatchFull) {
		if err := p.flush(); err != nil {
			return err
		}
		_, err = p.k.Add(op, f)
	}
	if err != nil {
		p.refuse(err)
		return nil
	}
	p.deletes[p.sent] = op == Delete
	if p.sent++; p.sent < batchSize {
		return nil
	}
	return p.flush()
}

func (p *purger) flush() error {
	if p.sent == 0 {
		return nil
	}
	for _, del := range p.deletes[:p.sent] {
		*p.count(del)++
	}
	p.sent = 0
	if err := p.k.Flush(p.fail); err != nil && !errors.Is(err, unix.ENOBUFS) { // of that many some were done
		return err
	}
	if errors.Is(p.first, unix.EPERM) {
		return p.first
	}
	return nil
}

// count is where a request of the batch is counted.
func (p *purger) count(del bool) *int {
	if del {
		return &p.report.Deleted
	}
	return &p.report.Shortened
}

// answer notes that request i of the batch failed.
func (p *purger) answer(i int, errno unix.Errno) {
	*p.count(p.deletes[i])--
	if errno != unix.ENOENT {
		p.refuse(errno)
	}
}

func (p *purger) refuse(err error) {
	p.report.Refused++
	if p.first == nil {
		p.first = err
	}
}

// Unpark removes those of the flows from the kernel that are still parked there, as an
// earlier process has left them, and returns how many these were. What packets have
// passed since somebody read the table stays as it is.
func Unpark(k Kernel, flows []flow.Flow) (removed int, err error) {
	sent := 0
	flush := func() error {
		removed += sent
		sent = 0
		if err := k.Flush(func(int, unix.Errno) { removed-- }); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("unpark: %w", err)
		}
		return nil
	}
	var have flow.Flow
	for i := range flows {
		t := &flows[i].Orig
		switch err := k.Get(t, &have); {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return removed, errors.Join(fmt.Errorf("unpark: look for %s: %w", describe(t), err), flush())
		}
		if have.Orig != *t || !have.Parked() {
			continue
		}
		have.Has &= flow.HasID // no other entry with this tuple
		_, err := k.Add(Delete, &have)
		if errors.Is(err, ErrBatchFull) {
			if err := flush(); err != nil {
				return removed, err
			}
			_, err = k.Add(Delete, &have)
		}
		if err != nil {
			return removed, errors.Join(fmt.Errorf("unpark: delete %s: %w", describe(t), err), flush())
		}
		if sent++; sent == batchSize {
			if err := flush(); err != nil {
				return removed, err
			}
		}
	}
	return removed, flush()
}

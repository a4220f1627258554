package commit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"

	"golang.org/x/sys/unix"
)

// Run commits what src hands out. It returns early with an error when ctx ends
// (it looks between batches), when src fails, or when nothing more can be done
// with k; the report then tells how far it came. That the kernel refuses an
// entry is not an error but a figure of the report, with one exception: EPERM,
// which every other entry would meet too.
func Run(ctx context.Context, src Source, k Kernel, o Options) (Report, error) {
	r := newRunner(k, o)
	err := r.run(ctx, src)
	r.report.Duration = monotime.Now().Sub(r.start)
	return r.report, err
}

const (
	// maxTries bounds the rounds of an entry whose place in the kernel changes all
	// the time.
	maxTries = 6
	// fullAfter is how many creates in a row must fail for want of room until the
	// table counts as full.
	fullAfter = 2 * batchSize
	// maxOrphans bounds how many entries wait for their master.
	maxOrphans = 1024

	progressPeriod = 200 * time.Millisecond
)

// step is what is asked of the kernel for an item.
type step uint8

const (
	stepCreate  step = iota
	stepUpdate       // other holds the request
	stepReplace      // other holds what is to be deleted first
	stepAsk          // whether it is there: other is an update that changes nothing
)

// item is one entry on its way through the rounds of a batch.
type item struct {
	flow    *flow.Flow // the prepared entry
	other   *flow.Flow // see step
	step    step
	tries   uint8
	deleted bool       // something gave way to it
	related bool       // it has a master, or had one
	err     unix.Errno // of its last create or update
	delErr  unix.Errno // of its last delete
}

// request says whose answer an index of the batch is.
type request struct {
	it  *item
	del bool
}

// orphan is a prepared entry whose master was not there.
type orphan struct {
	flow    flow.Flow
	deleted bool // of its item
}

// runner is one commit. It is used by one goroutine and thrown away.
type runner struct {
	k      Kernel
	o      Options
	report Report

	chunk []Entry
	items []item
	other []flow.Flow // other[i] belongs to items[i] of the first round
	have  flow.Flow   // what Get found last

	sent     [batchSize]request
	n        int                   // requests in the batch
	stray    error                 // an answer to nothing that was asked
	fail     func(int, unix.Errno) // r.answer, bound once
	orphans  []orphan
	labelled labelled
	noRoom   int  // creates since the last one that found room
	giveUp   bool // a master that is missing now will not come any more
	start    monotime.Time
	said     monotime.Time // of the last Progress
}

func newRunner(k Kernel, o Options) *runner {
	r := &runner{
		k:     k,
		o:     o,
		chunk: make([]Entry, chunkSize),
		items: make([]item, 0, batchSize),
		other: make([]flow.Flow, batchSize),
		start: monotime.Now(),
	}
	r.said = r.start
	r.report.DryRun = o.DryRun
	r.fail = r.answer
	return r
}

func (r *runner) run(ctx context.Context, src Source) error {
	for p := range passes {
		for last := false; !last; {
			n, end, err := fill(src, p, r.chunk)
			if err != nil {
				return err
			}
			last = end
			for rest := r.chunk[:n]; len(rest) > 0; {
				part := rest[:min(len(rest), batchSize)]
				rest = rest[len(part):]
				if err := r.commit(ctx, part); err != nil {
					return err
				}
			}
		}
	}
	return r.adopt(ctx)
}

// commit prepares and settles one batch of entries.
func (r *runner) commit(ctx context.Context, part []Entry) error {
	if ctx.Err() != nil {
		return fmt.Errorf("commit: %w", context.Cause(ctx))
	}
	r.items = r.items[:0]
	for i := range part {
		f := &part[i].Flow
		r.report.Entries++
		if f.Has&flow.HasMaster != 0 {
			r.report.Related++
		}
		if reason := prepare(&part[i], &r.o); reason != "" {
			r.report.skip(f, reason)
			if f.Has&flow.HasMaster != 0 {
				r.report.OfRelated.Skipped++
			}
			continue
		}
		r.add(f, false)
		if part[i].Parked {
			it := &r.items[len(r.items)-1]
			if part[i].Current && f.Orig.Proto != flow.GRE { // of which the status says that the timeout is fixed
				*it.other = flow.Flow{Orig: f.Orig, Reply: f.Reply, Has: flow.HasTimeout, Timeout: f.Timeout}
			} else {
				asUpdate(it.other, f, f.Has&flow.HasMaster != 0)
			}
			it.step = stepUpdate
		}
	}
	if err := r.settle(); err != nil {
		return err
	}
	if len(r.orphans) > maxOrphans-batchSize {
		if err := r.adopt(ctx); err != nil {
			return err
		}
	}
	r.progress()
	runtime.Gosched() // the loop has packets to read
	return nil
}

// add puts a prepared entry among the items.
func (r *runner) add(f *flow.Flow, deleted bool) {
	it := item{flow: f, deleted: deleted, other: &r.other[len(r.items)], related: f.Has&flow.HasMaster != 0}
	if r.noRoom >= fullAfter && len(r.items) > 0 {
		// Each create in a full table makes the kernel look for something to drop,
		// which is a living flow of somebody. So one entry of each batch tries whether
		// there is room again; of the others only those that are there can be helped.
		it.step = stepAsk
		*it.other = flow.Flow{Orig: f.Orig, Reply: f.Reply}
	}
	r.items = append(r.items, it)
}

// adopt tries the entries again that had no master, as long as that helps: the
// master of one may have been another of them. Those that are left are created
// without: they lose their link to the helper's flow, not their connection.
func (r *runner) adopt(ctx context.Context) error {
	defer func() { r.giveUp = false }()
	for len(r.orphans) > 0 {
		orphans := r.orphans
		r.orphans = nil
		for rest := orphans; len(rest) > 0; {
			if ctx.Err() != nil {
				return fmt.Errorf("commit: %w", context.Cause(ctx))
			}
			part := rest[:min(len(rest), batchSize)]
			rest = rest[len(part):]
			r.items = r.items[:0]
			for i := range part {
				r.add(&part[i].flow, part[i].deleted)
			}
			if err := r.settle(); err != nil {
				return err
			}
		}
		r.giveUp = len(r.orphans) == len(orphans)
	}
	return nil
}

// settle sends the items, round by round, until each is counted.
func (r *runner) settle() error {
	todo := r.items
	if r.o.DryRun {
		var err error
		if todo, err = r.keep(todo, r.look); err != nil {
			return err
		}
	}
	for len(todo) > 0 {
		if err := r.send(todo); err != nil {
			return err
		}
		var err error
		if todo, err = r.keep(todo, r.outcome); err != nil {
			return err
		}
	}
	return r.checkLabels()
}

// keep returns, in the memory of todo, the items that want another round.
func (r *runner) keep(todo []item, again func(*item) (bool, error)) ([]item, error) {
	next := todo[:0]
	for i := range todo {
		related := todo[i].related
		var before Counts
		if related {
			before = r.report.counts()
		}
		yes, err := again(&todo[i])
		if err != nil {
			return nil, err
		}
		if related {
			r.report.OfRelated.add(before, r.report.counts())
		}
		if yes {
			next = append(next, todo[i])
		}
	}
	return next, nil
}

// send asks the kernel for the steps of all items and leaves the answers in them.
func (r *runner) send(items []item) (err error) {
	for i := range items {
		it := &items[i]
		it.err, it.delErr = 0, 0
		switch it.step {
		case stepCreate:
			it.err, err = r.request(Create, it, it.flow)
		case stepUpdate, stepAsk:
			it.err, err = r.request(Update, it, it.other)
		case stepReplace:
			// Both in one batch, if it has room: the gap is a few microseconds.
			if it.delErr, err = r.request(Delete, it, it.other); err == nil {
				it.err, err = r.request(Create, it, it.flow)
			}
		}
		if err != nil {
			return err
		}
	}
	return r.flush()
}

// request adds one request to the batch, after a flush where it must. What cannot
// be put into words counts as if the kernel had refused it.
func (r *runner) request(op Op, it *item, f *flow.Flow) (unix.Errno, error) {
	if r.n == batchSize {
		if err := r.flush(); err != nil {
			return 0, err
		}
	}
	i, err := r.k.Add(op, f)
	if errors.Is(err, ErrBatchFull) {
		if err := r.flush(); err != nil {
			return 0, err
		}
		i, err = r.k.Add(op, f)
	}
	if err != nil {
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			return errno, nil
		}
		return unix.EINVAL, nil
	}
	if i != r.n {
		return 0, fmt.Errorf("commit: request %d of a batch got number %d", r.n, i)
	}
	r.sent[i] = request{it: it, del: op == Delete}
	r.n++
	return 0, nil
}

// answer notes that the kernel refused request i of the batch.
func (r *runner) answer(i int, errno unix.Errno) {
	if i < 0 || i >= r.n {
		r.stray = fmt.Errorf("commit: answer to request %d of a batch of %d: %w", i, r.n, errno)
		return
	}
	if q := r.sent[i]; q.del {
		q.it.delErr = errno
	} else {
		q.it.err = errno
	}
}

func (r *runner) flush() error {
	if r.n == 0 {
		return nil
	}
	err := r.k.Flush(r.fail)
	if errors.Is(err, unix.ENOBUFS) {
		// Nobody knows which of them failed. EEXIST makes each look for itself.
		for _, q := range r.sent[:r.n] {
			if q.it.err == 0 {
				q.it.err = unix.EEXIST
			}
		}
		err = nil
	}
	r.n = 0
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return r.stray
}

// outcome counts the item by the kernel's answer, or sets its next step and
// returns true.
func (r *runner) outcome(it *item) (again bool, err error) {
	it.tries++
	it.deleted = it.deleted || it.step == stepReplace && it.delErr == 0
	f := it.flow
	switch {
	case it.step == stepAsk && it.err == unix.ENOENT:
		r.report.refuse(f, reasonTableFull)
		return false, nil

	case it.step == stepAsk && it.err == 0:
		return r.look(it)

	case it.err == 0:
		if it.step != stepUpdate {
			r.noRoom = 0
		}
		switch {
		case it.step == stepUpdate:
			r.report.Updated++
			return false, nil
		case it.deleted:
			r.report.Replaced++
		default:
			r.report.Created++
		}
		r.labelled.note(f)
		return false, nil

	case it.err == unix.EPERM && it.step != stepUpdate:
		return false, fmt.Errorf("commit: %s: %w", describe(&f.Orig), it.err)

	case it.tries >= maxTries:
		r.report.skip(f, reasonBusy)
		return false, nil

	case it.err == unix.EEXIST:
		return r.look(it)

	// An entry that was made before any rule used labels has no room for them. All else
	// of the update is done.
	case it.step == stepUpdate && it.err == unix.ENOSPC && it.other.Has&flow.HasLabels != 0:
		r.report.remark(f, reasonNoLabels)
		if it.other.Has == flow.HasLabels {
			r.report.AlreadyThere++
		} else {
			r.report.Updated++
		}
		return false, nil

	// Between look and update it went away, advanced, or got a fixed timeout.
	case it.step == stepUpdate && (it.err == unix.ENOENT || it.err == unix.EBUSY || it.err == unix.EPERM):
		return r.look(it)

	case it.err == unix.EOPNOTSUPP && it.step != stepUpdate && f.Has&flow.HasHelper != 0:
		f.Has &^= flow.HasHelper
		r.report.remark(f, reasonNoHelper)
		it.step = stepCreate
		return true, nil

	case it.err == unix.ENOENT && f.Has&flow.HasMaster != 0:
		it.step = stepCreate
		if !r.giveUp {
			r.orphans = append(r.orphans, orphan{flow: *f, deleted: it.deleted})
			return false, nil
		}
		f.Has &^= flow.HasMaster
		r.report.remark(f, reasonNoMaster)
		return true, nil
	}
	if it.err == unix.ENOMEM {
		r.noRoom++
	}
	r.report.refuse(f, reasonOf(it.err))
	return false, nil
}

// look finds out what the kernel has in the place of the item. It counts the
// item, or sets its next step and returns true.
func (r *runner) look(it *item) (again bool, err error) {
	f := it.flow
	v, err := r.judge(it, &f.Orig)
	inWay := r.have
	switch {
	case err != nil:
	case v == verdictFree:
		v, err = r.judge(it, &f.Reply)
		inWay = r.have
	case v == verdictReplace:
		// Nothing should give way as long as our flow cannot be created anyway.
		var reply verdict
		if reply, err = r.judge(it, &f.Reply); reply == verdictNATClash {
			v = reply
		}
	}
	if err != nil {
		errno, ok := errors.AsType[unix.Errno](err)
		if !ok || errno == unix.EPERM {
			return false, fmt.Errorf("commit: look for %s: %w", describe(&f.Orig), err)
		}
		r.report.refuse(f, reasonOf(errno))
		return false, nil
	}

	count := &r.report.Created
	switch v {
	case verdictThere:
		r.report.AlreadyThere++
		return false, nil
	case verdictConflict:
		r.report.skip(f, reasonConflict)
		return false, nil
	case verdictNATClash:
		r.report.skip(f, reasonNATClash)
		return false, nil
	case verdictFree:
		it.step = stepCreate
	case verdictUpdate:
		it.step, count = stepUpdate, &r.report.Updated
	case verdictReplace:
		it.step, count = stepReplace, &r.report.Replaced
		*it.other = inWay
	}
	if r.o.DryRun {
		*count++
		return false, nil
	}
	return true, nil
}

// judge decides about the entry that holds t, and leaves it in r.have.
func (r *runner) judge(it *item, t *flow.Tuple) (verdict, error) {
	switch err := r.k.Get(t, &r.have); {
	case errors.Is(err, unix.ENOENT):
		return verdictFree, nil
	case err != nil:
		return verdictFree, err
	}
	return decide(it.other, it.flow, &r.have, &r.o), nil
}

// progress tells the caller how far the commit is, now and then.
func (r *runner) progress() {
	if r.o.Progress == nil {
		return
	}
	if now := monotime.Now(); now.Sub(r.said) >= progressPeriod {
		r.said = now
		r.report.Duration = now.Sub(r.start)
		r.o.Progress(&r.report)
	}
}

package commit

import (
	"errors"
	"fmt"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// lingerTimeout is what a flow keeps at most that its owner has ended although packets
// pass it here, in seconds: the next one gives it the timeout of its state.
const lingerTimeout = 300

// Parker parks entries of peers in the kernel: with a long timeout, so that they are
// there when the packets come, whenever that is. It is used by one goroutine.
//
// A batch costs one message to the kernel and no look, as long as nothing is in the
// way: what is known to be parked is updated, and what is not is created. Only what is
// to be deleted is looked at first, because packets may have come here unnoticed: they
// change nothing but the timeout. Whatever the kernel refuses is looked at by itself.
// What is not parked is never replaced nor deleted; an update may reach what packets
// have begun to pass a moment ago, and the next packet sets that right.
type Parker struct {
	k      Kernel
	x      ExpectKernel // the same; nil if it has no expectations
	o      Options
	b      *flow.ParkBatch // the one at work
	sent   [batchSize]parked
	n      int
	fail   func(int, unix.Errno) // p.answer, bound once
	again  []int                 // items of b that the kernel refused
	errnos [flow.ParkBatchSize]unix.Errno
	f      flow.Flow // the entry that an item is to become
	u      flow.Flow // an update of one
	have   flow.Flow // what Get found last
}

// parked says what a request of the batch was.
type parked struct {
	item   int
	silent bool // a failure does not matter: another request follows
}

// NewParker returns a Parker that writes to k. Of the options, MarkMask and Labels
// count.
func NewParker(k Kernel, o Options) *Parker {
	p := &Parker{k: k, o: o}
	p.o.Timeout = flow.ParkTimeout
	p.x, _ = k.(ExpectKernel)
	p.fail = p.answer
	return p
}

// Park does what the batch asks for, in its order, and writes the results into it. An
// error means that the Kernel is of no more use.
func (p *Parker) Park(b *flow.ParkBatch) error {
	p.b, p.again = b, p.again[:0]
	for i := range b.N {
		if err := p.ask(i); err != nil {
			return err
		}
	}
	return p.settle()
}

// settle sends what is in the batch, and looks at what was refused.
func (p *Parker) settle() error {
	if err := p.flush(); err != nil {
		return err
	}
	for _, i := range p.again {
		if err := p.resolve(i, p.errnos[i]); err != nil {
			return err
		}
	}
	p.again = p.again[:0]
	return nil
}

// ask asks for one item.
func (p *Parker) ask(i int) error {
	it := &p.b.Items[i]
	it.Result = flow.ParkDone
	if it.IsExpect {
		return p.expect(it)
	}
	switch it.Op {
	case flow.ParkDelete:
		return p.askDelete(i, it)
	case flow.ParkRelease:
		p.f = flow.Flow{Orig: it.Flow.Orig, Reply: it.Flow.Reply, Has: flow.HasTimeout, Timeout: remaining(&it.Flow, it.Age, 0)}
		if p.f.Orig.Proto == flow.GRE {
			p.f.Has |= flow.HasStatus
			p.f.Status = it.Flow.Status & (flow.StatusSeenReply | flow.StatusAssured | flow.StatusExpected)
			fixGRE(&p.f)
		}
		return p.request(Update, &p.f, parked{item: i})
	}
	if reason := p.prepare(it); reason != "" {
		it.Result = flow.ParkRefused
		return nil
	}
	switch it.Op {
	case flow.ParkUpdate:
		p.update(p.f.Has&flow.HasMaster != 0 && !it.Last)
		return p.request(Update, &p.u, parked{item: i})
	case flow.ParkRemake: // rare, and something has to give way: look
		if err := p.settle(); err != nil {
			return err
		}
		return p.resolve(i, unix.EEXIST)
	}
	return p.request(Create, &p.f, parked{item: i})
}

// askDelete asks for the deletion of a parked entry. One that packets pass stays.
func (p *Parker) askDelete(i int, it *flow.Park) error {
	// What was asked for before may be about the same flow; deletions come first, as a
	// rule, and do not matter.
	if p.n > 0 && p.b.Items[p.sent[p.n-1].item].Op != flow.ParkDelete || len(p.again) > 0 {
		if err := p.settle(); err != nil {
			return err
		}
	}
	switch there, err := p.look(&it.Flow.Orig); {
	case err != nil || !there:
		return err
	case p.have.Orig != it.Flow.Orig:
		return nil // the answers of another flow
	case !p.have.Parked():
		it.Result = flow.ParkTouched
		it.Flow = p.have
		if p.have.Timeout <= lingerTimeout || p.have.Status&flow.StatusFixedTimeout != 0 {
			return nil
		}
		it.Flow.Timeout = lingerTimeout
		p.f = flow.Flow{Orig: p.have.Orig, Reply: p.have.Reply, Has: flow.HasTimeout, Timeout: lingerTimeout}
		return p.request(Update, &p.f, parked{i, true})
	}
	return p.request(Delete, &p.have, parked{item: i})
}

// prepare makes of an item the entry to be created, in p.f.
func (p *Parker) prepare(it *flow.Park) string {
	e := Entry{Flow: it.Flow, Age: it.Age}
	reason := prepare(&e, &p.o)
	p.f = e.Flow
	return reason
}

// update makes of the entry to be created, p.f, the request p.u to update it.
func (p *Parker) update(expected bool) {
	asUpdate(&p.u, &p.f, expected)
	if p.o.MarkMask != 0 {
		p.u.Has |= flow.HasMark // one that was taken away is not told as such
	}
}

// asUpdate makes of f, which is prepared to be created, a request u to update the entry
// that is there. expected says whether that one was made with its master: the kernel
// wants to be told so, and takes neither master nor helper.
func asUpdate(u, f *flow.Flow, expected bool) {
	*u = *f
	u.Has &^= flow.HasMaster | flow.HasHelper
	if expected {
		u.Status |= flow.StatusExpected
	}
}

// request adds one request to the batch, after a flush where it must.
func (p *Parker) request(op Op, f *flow.Flow, q parked) error {
	if p.n == batchSize {
		if err := p.flush(); err != nil {
			return err
		}
	}
	i, err := p.k.Add(op, f)
	if errors.Is(err, ErrBatchFull) {
		if err := p.flush(); err != nil {
			return err
		}
		i, err = p.k.Add(op, f)
	}
	if err != nil {
		if !q.silent {
			p.b.Items[q.item].Result = flow.ParkRefused
		}
		return nil
	}
	if i != p.n {
		return fmt.Errorf("commit: request %d of a batch got number %d", p.n, i)
	}
	p.sent[i] = q
	p.n++
	return nil
}

// flush sends the batch. What was refused is in p.again then.
func (p *Parker) flush() error {
	if p.n == 0 {
		return nil
	}
	err := p.k.Flush(p.fail)
	if errors.Is(err, unix.ENOBUFS) {
		for _, q := range p.sent[:p.n] { // nobody knows which of them failed
			if !q.silent {
				p.refused(q.item, unix.EEXIST)
			}
		}
		err = nil
	}
	p.n = 0
	if err != nil {
		return fmt.Errorf("commit: park: %w", err)
	}
	return nil
}

func (p *Parker) answer(i int, errno unix.Errno) {
	if i >= 0 && i < p.n && !p.sent[i].silent {
		p.refused(p.sent[i].item, errno)
	}
}

// refused notes an item that needs a look, once.
func (p *Parker) refused(item int, errno unix.Errno) {
	p.errnos[item] = errno
	for _, i := range p.again {
		if i == item {
			return
		}
	}
	p.again = append(p.again, item)
}

// look reads the entry that holds t, into p.have.
func (p *Parker) look(t *flow.Tuple) (there bool, err error) {
	err = p.k.Get(t, &p.have)
	errno, refused := errors.AsType[unix.Errno](err)
	switch {
	case err == nil:
		return true, nil
	case refused && errno != unix.EPERM:
		return false, nil
	}
	return false, fmt.Errorf("commit: look for %s: %w", describe(t), err)
}

// resolve looks at an item that the kernel refused with errno, until its result is
// known.
func (p *Parker) resolve(i int, errno unix.Errno) error {
	it := &p.b.Items[i]
	switch it.Op {
	case flow.ParkDelete, flow.ParkRelease: // gone, or about to be
		if errno == unix.EPERM {
			return fmt.Errorf("commit: %v %s: %w", it.Op, describe(&it.Flow.Orig), errno)
		}
		return nil
	}
	p.prepare(it)
	for range maxTries {
		switch {
		case errno == unix.EPERM && it.Op != flow.ParkUpdate:
			return fmt.Errorf("commit: park %s: %w", describe(&it.Flow.Orig), errno)
		case errno == unix.ENOSPC && it.Op == flow.ParkUpdate && p.f.Has&flow.HasLabels != 0:
			return nil // all is done but the labels, for which the entry has no room
		case errno == unix.ENOMEM || errno == unix.ENOSPC:
			it.Result = flow.ParkFull
			return nil
		case errno == unix.EOPNOTSUPP && p.f.Has&flow.HasHelper != 0:
			p.f.Has &^= flow.HasHelper
		case errno == unix.ENOENT && it.Op != flow.ParkUpdate && p.f.Has&flow.HasMaster != 0:
			if !it.Last {
				it.Result = flow.ParkNoMaster
				return nil
			}
			p.f.Has &^= flow.HasMaster
		case errno == unix.ENOENT, errno == unix.EEXIST, errno == unix.EBUSY, errno == unix.EPERM:
		default:
			it.Result = flow.ParkRefused
			return nil
		}
		result, again, err := p.retry(it)
		if err != nil {
			return err
		}
		if again == 0 {
			it.Result = result
			return nil
		}
		errno = again
	}
	it.Result = flow.ParkRefused
	return nil
}

// retry does what the kernel's table asks for in the place of an item: it returns the
// result, or with again the kernel's new answer.
func (p *Parker) retry(it *flow.Park) (result flow.ParkResult, again unix.Errno, err error) {
	f := &p.f
	there, err := p.look(&f.Orig)
	if err == nil && !there {
		there, err = p.look(&f.Reply)
	}
	if err != nil {
		return 0, 0, err
	}
	if !there {
		// From here on it is a creation, whatever it was: the kernel's answer is about that.
		if it.Op == flow.ParkUpdate {
			it.Op = flow.ParkCreate
		}
		again, err = p.alone(Create, f)
		return flow.ParkDone, again, err
	}
	same := p.have.Orig == f.Orig && p.have.Reply == f.Reply
	if !p.have.Parked() {
		if same {
			return flow.ParkLocal, 0, nil
		}
		return flow.ParkClash, 0, nil
	}
	const growing = flow.StatusSeenReply | flow.StatusAssured
	if same && it.Op != flow.ParkRemake && p.have.Status&growing&^f.Status == 0 {
		p.update(p.have.Status&flow.StatusExpected != 0)
		again, err = p.alone(Update, &p.u)
		if again == unix.ENOSPC && p.u.Has&flow.HasLabels != 0 {
			again = 0
		}
		return flow.ParkDone, again, err
	}
	// What is parked there is older than what is told now, and no update makes it so.
	// Both in one batch, if it has room: the gap is a few microseconds.
	if _, err := p.k.Add(Delete, &p.have); err != nil {
		return flow.ParkRefused, 0, nil
	}
	again, err = p.alone(Create, f)
	return flow.ParkDone, again, err
}

// alone sends one request, after what is in the batch, and returns the kernel's answer,
// 0 for success.
func (p *Parker) alone(op Op, f *flow.Flow) (answer unix.Errno, err error) {
	at, err := p.k.Add(op, f)
	if err != nil {
		if ferr := p.k.Flush(func(int, unix.Errno) {}); ferr != nil && !errors.Is(ferr, unix.ENOBUFS) {
			return 0, fmt.Errorf("commit: park: %w", ferr)
		}
		if errors.Is(err, ErrBatchFull) {
			return p.alone(op, f)
		}
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			return errno, nil
		}
		return unix.EINVAL, nil
	}
	err = p.k.Flush(func(i int, errno unix.Errno) {
		if i == at {
			answer = errno
		}
	})
	if errors.Is(err, unix.ENOBUFS) {
		return unix.EEXIST, nil
	}
	if err != nil {
		err = fmt.Errorf("commit: park: %w", err)
	}
	return answer, err
}

// expect does what is asked for about an expectation. These are few, so they go one by
// one, after their masters. An expectation keeps the timeout that it has on its owner:
// there, too, nothing refreshes it.
func (p *Parker) expect(it *flow.Park) error {
	if err := p.settle(); err != nil {
		return err
	}
	if p.x == nil {
		it.Result = flow.ParkRefused
		return nil
	}
	x := it.Expect
	x.Has &^= flow.ExpectHasID
	if it.Op == flow.ParkDelete || it.Op == flow.ParkRemake {
		x.Master.Family = x.Tuple.Family // else it is no expectation; nothing more is needed
		errno, err := p.aloneExpect(Delete, &x)
		switch {
		case err != nil:
			return err
		case errno == unix.EPERM:
			return fmt.Errorf("commit: delete an expectation: %w", errno)
		case errno != 0 && errno != unix.ENOENT:
			it.Result = flow.ParkRefused
			return nil
		case it.Op == flow.ParkDelete:
			return nil
		}
	}
	errno, err := p.aloneExpect(Create, &x)
	if err != nil {
		return err
	}
	switch errno {
	case 0:
		if x.Has&flow.ExpectHasTimeout == 0 {
			return nil
		}
		// A create takes the timeout of the helper.
		x.Timeout = max(flow.Remaining(x.Timeout, it.Age), 1)
		_, err = p.aloneExpect(Update, &x)
		return err
	case unix.EEXIST:
		var have flow.Expect
		switch err := p.x.GetExpect(&x.Tuple, &have); {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("commit: look for an expectation: %w", err)
		case err != nil || !sameExpect(&x, &have):
			it.Result = flow.ParkClash
		}
	case unix.EBUSY, unix.EALREADY:
		it.Result = flow.ParkClash // it overlaps with another one
	case unix.ENOENT:
		it.Result = flow.ParkNoMaster
	case unix.EPERM:
		return fmt.Errorf("commit: park an expectation: %w", errno)
	default:
		it.Result = flow.ParkRefused
	}
	return nil
}

// aloneExpect is alone for an expectation.
func (p *Parker) aloneExpect(op Op, x *flow.Expect) (answer unix.Errno, err error) {
	if _, err := p.x.AddExpect(op, x); err != nil {
		return unix.EINVAL, nil // it cannot be put into words
	}
	err = p.k.Flush(func(_ int, errno unix.Errno) { answer = errno })
	if errors.Is(err, unix.ENOBUFS) {
		return unix.EEXIST, nil
	}
	if err != nil {
		err = fmt.Errorf("commit: park: %w", err)
	}
	return answer, err
}

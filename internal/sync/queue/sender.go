package queue

import (
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Store is the cache whose flows a mode sends.
type Store interface {
	Walker
	// AppendFlow appends the current state of h as one message. A dead flow is
	// sent as CT_DEL, a flow that was updated since it was added as CT_UPD
	// unless replace is set, any other as CT_NEW.
	AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, now monotime.Time) []byte
	// Dead reports whether h has been destroyed.
	Dead(h flow.Handle) bool
	// Release says that the deletion of h has been sent: the mode has forgotten
	// it, and the slot may be used again.
	Release(h flow.Handle)
}

// Dirty is the list of the flows that changed since they were sent.
const Dirty = 1

// Sender sends flows once each, best effort: what has left is not kept, a dead flow
// is released as soon as its deletion has left. The mark of a flow says that it took
// the place of another with the same tuple, and that the peer was not told yet.
type Sender struct {
	Lists
	store Store
	Next  wire.Seq // number of the next message
}

// NewSender returns a sender whose first message has number first, with n lists.
func NewSender(store Store, first wire.Seq, n int) Sender {
	return Sender{Lists: NewLists(n), store: store, Next: first}
}

// Enqueue puts h among the dirty flows. See Mark for replace.
func (s *Sender) Enqueue(h flow.Handle, replace bool) {
	s.Put(Dirty, h)
	if replace {
		s.Mark(h, true)
	}
}

// Number gives out the next number, for a message that is not a flow.
func (s *Sender) Number() wire.Seq {
	s.Next++
	return s.Next - 1
}

// Append appends the message of h to b, of which the datagram begins at start, and
// takes h out of its list. It reports false, and appends nothing, if the message
// does not fit in limit octets; alone in its datagram it always fits. gone means
// that h was dead, and is released.
func (s *Sender) Append(now monotime.Time, b []byte, start, limit int, h flow.Handle) (_ []byte, ok, gone bool) {
	end := len(b)
	b = s.store.AppendFlow(b, h, 0, s.Next, s.Marked(h), now)
	if len(b)-start > limit && end > start {
		return b[:end], false, false
	}
	s.Next++
	return b, true, s.DropOne(h)
}

// Drop empties the list of dirty flows when nobody listens.
func (s *Sender) Drop() {
	for h := s.First(Dirty); h != 0; h = s.First(Dirty) {
		s.DropOne(h)
	}
}

// DropOne takes h out of its list as if it had been sent, and reports whether it was
// dead, and is released.
func (s *Sender) DropOne(h flow.Handle) (gone bool) {
	s.Forget(h)
	if gone = s.store.Dead(h); gone {
		s.store.Release(h)
	}
	return gone
}

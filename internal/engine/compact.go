package engine

import (
	"math/bits"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// AppendCompact implements stream.Store.
func (e *Engine) AppendCompact(b []byte, h flow.Handle, seq, base wire.Seq, now monotime.Time) ([]byte, bool) {
	c := e.internal
	switch {
	case c.Dead(h):
		return wire.AppendCTEnd(b, seq, uint32(h), base), true
	case c.IsExpect(h) || c.Altered(h):
		return b, false
	}
	s := c.State(h)
	if s.Word&flow.KnowsTimeout != 0 {
		s.Timeout = s.Remaining(now.Sub(c.Updated(h)))
	}
	return wire.AppendCTState(b, seq, uint32(h), base, s), true
}

// names tells which entry is meant by a number that its owner has given a flow. An entry
// here may be out of date: meta.base of the entry that it leads to decides.
//
// Owners give their numbers from 1 up, as caches do (see cache.Handle). Memory is taken
// for those that come, and by no owner, whatever it says, for more than slots: the numbers
// beyond share their places, and the last one to come has it.
type names struct {
	chunks []*[namesLen]uint32
	slots  uint32 // a power of 2
}

const (
	namesLen = 4096
	maxNames = 1 << 28

	// noRoom stands in the place of a flow that was refused, with the low bits of the number
	// of its message.
	noRoom = 1 << 31
)

// newNames returns an empty table for an owner of which limit entries are held.
func newNames(limit int) names {
	slots := uint32(maxNames)
	if limit > 0 && limit < maxNames/4 {
		slots = max(uint32(1)<<bits.Len32(uint32(4*limit-1)), namesLen)
	}
	return names{slots: slots}
}

// get returns what stands at a number, 0 if nothing does.
func (n *names) get(number uint32) uint32 {
	i := number & (n.slots - 1)
	if c := int(i / namesLen); c < len(n.chunks) && n.chunks[c] != nil {
		return n.chunks[c][i%namesLen]
	}
	return 0
}

func (n *names) set(number, v uint32) {
	i := number & (n.slots - 1)
	c := int(i / namesLen)
	for c >= len(n.chunks) {
		n.chunks = append(n.chunks, nil)
	}
	if n.chunks[c] == nil {
		n.chunks[c] = new([namesLen]uint32)
	}
	n.chunks[c][i%namesLen] = v
}

// forget empties the table and gives its memory back.
func (n *names) forget() { n.chunks = nil }

// Begin implements stream.Replica.
func (r *Replica) Begin(owner uint8) { r.of(owner).names.forget() }

// Follows implements stream.Replica.
func (r *Replica) Follows(owner uint8, msg *wire.Message) bool {
	o := r.of(owner)
	return o.named(msg) != 0 || msg.Type == wire.CTState && o.wasRefused(msg)
}

// named returns the entry that a compact message is about, or 0.
func (o *owned) named(msg *wire.Message) flow.Handle {
	// Entries that are gone, or of an earlier session, have no base.
	if v := o.names.get(msg.Handle); v != 0 && v&noRoom == 0 && msg.Base != 0 && o.at(flow.Handle(v)).base == msg.Base {
		return flow.Handle(v)
	}
	return 0
}

// wasRefused reports whether the message that a compact one refers to was refused. It is of
// no use to ask for the state of the flow again and again; its end may be the end of flows of
// ours, so it must be known of which.
func (o *owned) wasRefused(msg *wire.Message) bool {
	return o.names.get(msg.Handle) == noRoom|uint32(msg.Base)&^noRoom
}

// name notes the entry that a message has made, so that others can refer to it; 0 if it was
// refused.
func (o *owned) name(h flow.Handle, msg *wire.Message) {
	switch {
	case msg.Handle == 0:
	case h == 0:
		o.names.set(msg.Handle, noRoom|uint32(msg.Seq)&^noRoom)
	default:
		o.names.set(msg.Handle, uint32(h))
		m := o.at(h)
		m.base, m.fixed = msg.Seq, uint32(msg.Fixed)
	}
}

// applyCompact applies a compact message, which is in its place. It does what the message
// with all of the flow would have done.
func (r *Replica) applyCompact(o *owned, d wire.Delivery, msg *wire.Message, now monotime.Time) outcome {
	h := o.named(msg)
	if h == 0 {
		return refused
	}
	m := o.at(h)
	if d.Late && msg.Seq.Before(m.seq) {
		return ignored
	}
	if msg.Type == wire.CTEnd {
		key := o.cache.Key(h)
		if d.Remember {
			o.bury(r.limit, &key, msg.Seq)
		}
		r.remove(o, h, &key)
		return applied
	}
	flags := uint8(0)
	if r.park != nil {
		if flags = o.cache.Flags(h); flags&extParked != 0 {
			r.park.remember(o, h)
		}
	}
	was, is := o.cache.State(h), msg.State.Of(o.cache.Proto(h))
	o.cache.SetState(h, is, now)
	if r.park != nil {
		r.park.said(o, h, flags, false)
	}
	m.seq = msg.Seq
	hash := wire.ChangeState(m.hash, m.fixed, was, is)
	o.sums[m.bucket] += hash - m.hash
	m.hash = hash
	return o.confirm(h, d)
}

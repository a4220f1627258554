package cache

import "syncd/internal/flow"

// Resolution is the unit in which the times of entries are kept, about 67 ms: what
// Created and Updated return is at most this much too early.
const Resolution = 1 << timeShift // ns

const timeShift = 26

// coarse returns the 32 bits of now that a record keeps: enough for 9 years
// between the oldest time that is kept and the latest one seen, wherever the zero
// point of the clock is.
func (c *Cache) coarse(now Time) uint32 {
	t := int64(now) >> timeShift
	c.latest = max(c.latest, t)
	return uint32(t)
}

// fine is the inverse of coarse.
func (c *Cache) fine(t uint32) Time {
	now := Time(c.latest-int64(uint32(c.latest)-t)) << timeShift
	if now == 0 {
		return 1 // 0 would be "never"
	}
	return now
}

// Load writes the whole wide form of a flow to f, all that is not known or not
// stored as zero.
func (c *Cache) Load(h Handle, f *flow.Flow) {
	if !c.LoadFlow(h, f) {
		panic("cache: handle of no flow")
	}
}

// LoadFlow does what Load does if entry h is a flow, and otherwise returns false and
// leaves f alone.
func (c *Cache) LoadFlow(h Handle, f *flow.Flow) bool {
	r := c.at(h)
	if r.state&stateExpect != 0 {
		return false
	}
	*f = flow.Flow{}
	r.load(f)
	if r.extra == 0 {
		return true
	}
	e := c.extras.at(r.extra)
	if r.state&stateWideReply != 0 {
		f.Reply = e.reply
	}
	f.Master = e.master
	f.Labels = e.labels
	f.Helper = e.helper
	f.SeqAdj = e.seqAdj
	f.Synproxy = e.synproxy
	f.Secctx = e.secctx
	return true
}

// State returns the state of a flow.
func (c *Cache) State(h Handle) flow.State {
	r := c.flowAt(h)
	return flow.MakeState(keyProto(r.word), r.has, r.status, r.timeout, r.tcpState, r.tcpFlags, r.tcpWScale, r.sctpState)
}

// SetState gives a flow the state s, which is one of its protocol. All else stays as it is;
// Updated becomes now.
func (c *Cache) SetState(h Handle, s flow.State, now Time) {
	r := c.flowAt(h)
	c.touch(r, now)
	r.has = r.has&^flow.StateAttrs | s.Has()
	r.status, r.timeout = s.Status, s.Timeout
	r.tcpState, r.sctpState = 0, 0
	if s.Word&flow.KnowsSCTP != 0 {
		r.sctpState = s.ProtoState()
	} else {
		r.tcpState = s.ProtoState()
	}
	r.tcpFlags, r.tcpWScale = s.TCPFlags(), s.TCPWScale()
}

// Altered reports whether something has changed since Settle that a message with the state
// of the flow alone does not tell. A new flow is altered.
func (c *Cache) Altered(h Handle) bool { return c.at(h).state&stateAltered != 0 }

// Settle says that all of the flow is told.
func (c *Cache) Settle(h Handle) { c.at(h).state &^= stateAltered }

// Key returns the original tuple of a flow, or the key of an expectation.
func (c *Cache) Key(h Handle) (t flow.Tuple) {
	c.at(h).orig(&t)
	return t
}

// Proto is the protocol of an entry.
func (c *Cache) Proto(h Handle) uint8 { return keyProto(c.at(h).word) }

// Created is when the entry was inserted or replaced, see Resolution.
func (c *Cache) Created(h Handle) Time { return c.fine(c.at(h).created) }

// Updated is when an attribute was last taken over, see Resolution.
func (c *Cache) Updated(h Handle) Time { return c.fine(c.at(h).updated) }

// Has says which attributes of a flow are known.
func (c *Cache) Has(h Handle) flow.Attrs { return c.at(h).has }

// Status is the conntrack status of a flow, 0 if not known.
func (c *Cache) Status(h Handle) uint32 { return c.at(h).status }

// Timeout is the timeout of an entry in seconds as it was last said.
func (c *Cache) Timeout(h Handle) uint32 { return c.at(h).timeout }

// ID is the kernel's id of an entry, 0 if not known.
func (c *Cache) ID(h Handle) uint32 { return c.at(h).id }

// TCPState is the TCP state of an entry, flow.TCPNone if not known.
func (c *Cache) TCPState(h Handle) uint8 { return c.at(h).tcpState }

// Dead reports whether SetDead was called on an entry.
func (c *Cache) Dead(h Handle) bool { return c.at(h).state&stateDead != 0 }

// Mark is the sweep epoch of an entry: a sweep marks what it confirms with its
// epoch, and then removes what has another one. It has nothing to do with the
// mark of the flow.
func (c *Cache) Mark(h Handle) uint8 { return c.at(h).epoch }

// SetMark sets the sweep epoch of an entry.
func (c *Cache) SetMark(h Handle, epoch uint8) { c.at(h).epoch = epoch }

// Owner is the peer that owns an entry, as a number of the caller's choice.
func (c *Cache) Owner(h Handle) uint8 { return c.at(h).owner }

// SetOwner sets the owner of an entry.
func (c *Cache) SetOwner(h Handle, owner uint8) { c.at(h).owner = owner }

// Flags are eight bits of an entry whose meaning is the caller's.
func (c *Cache) Flags(h Handle) uint8 { return c.at(h).flags }

// SetFlags sets the bits of set, and clears those of clear that are not in set.
func (c *Cache) SetFlags(h Handle, set, clear uint8) {
	r := c.at(h)
	r.flags = r.flags&^clear | set
}

// Holds reports whether h names an entry.
func (c *Cache) Holds(h Handle) bool {
	return h != 0 && uint32(h) <= c.records.used && c.records.at(uint32(h)).state != 0
}

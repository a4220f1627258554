package alarm

import (
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// ConntrackdStats counts what happened since the start, in messages.
type ConntrackdStats struct {
	SendStats
	DataReceived uint64

	Swallowed  uint64 // with any flag: another mode's
	BadType    uint64 // of unknown types
	BadPayload uint64 // data messages that did not parse
}

// Conntrackd is ALARM in conntrackd's dialect. It is not safe for concurrent use.
type Conntrackd struct {
	cfg      Config
	replica  Expirer
	r        refresher
	expireAt monotime.Time
	started  bool
	Stats    ConntrackdStats
}

// NewConntrackd returns a machine that sends the flows of store. Entries of replica
// belong to OnlyPeer.
func NewConntrackd(cfg Config, store queue.Store, replica Expirer) *Conntrackd {
	cfg.fill()
	m := &Conntrackd{cfg: cfg, replica: replica}
	m.r.init(&cfg, store, &m.Stats.SendStats)
	return m
}

// Enqueue says that h changed. replace says that the flow took the place of another
// with the same tuple that the peer may still hold.
func (m *Conntrackd) Enqueue(h flow.Handle, replace bool) { m.r.send.Enqueue(h, replace) }

// Forget drops h: the slot is about to be used for something else.
func (m *Conntrackd) Forget(h flow.Handle) { m.r.send.Forget(h) }

// ForgetAll drops every flow, before the cache is emptied.
func (m *Conntrackd) ForgetAll() { m.r.clear() }

// Evict returns 0: no deletion waits for anything but its turn.
func (m *Conntrackd) Evict() flow.Handle { return 0 }

// Bulk sends everything once, at a steady pace. conntrackd does nothing then.
func (m *Conntrackd) Bulk() { m.r.all() }

// RequestResync does nothing, because a peer cannot be asked. Requests returns 0,
// Confirmed does nothing, and ResyncComplete returns false: no entry of the external
// cache is in doubt, it is refreshed or it expires.
func (m *Conntrackd) RequestResync()                    {}
func (m *Conntrackd) Requests() uint64                  { return 0 }
func (m *Conntrackd) Confirmed(monotime.Time)           {}
func (m *Conntrackd) ResyncComplete(monotime.Time) bool { return false }

// Receive takes one message. A message of a wrong protocol version, or one that could
// not be framed, must not be given to it.
func (m *Conntrackd) Receive(_ monotime.Time, msg *wire.Message) wire.Verdict {
	switch {
	case msg.Flags != 0:
		m.Stats.Swallowed++
		return wire.Control
	case msg.Type > wire.ExpDel:
		m.Stats.BadType++
		return wire.Bad
	case msg.Fault != wire.FaultNone:
		m.Stats.BadPayload++
		return wire.Bad
	}
	m.Stats.DataReceived++
	return wire.Deliver
}

// Advance acts on the deadlines that have passed.
func (m *Conntrackd) Advance(now monotime.Time) {
	m.r.advance(now)
	if m.started && now < m.expireAt {
		return
	}
	if m.started {
		m.replica.Expire(OnlyPeer, now.Add(-m.cfg.CacheTimeout))
	}
	m.started, m.expireAt = true, now.Add(expireEvery(m.cfg.CacheTimeout))
}

// Next returns the earliest time at which there is something to do that is not
// waiting already.
func (m *Conntrackd) Next(now monotime.Time) monotime.Time {
	if !m.started {
		return now
	}
	return monotime.Earliest(m.r.next(now, true), m.expireAt)
}

// Pending reports whether AppendDatagram has something to send now.
func (m *Conntrackd) Pending(now monotime.Time) bool { return m.r.ready(now) }

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it. b must have room for limit plus one message, so that no step allocates.
func (m *Conntrackd) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	return m.r.append(now, b, len(b), limit)
}

// LastSeq returns the number of the last message sent; those received mean nothing.
func (m *Conntrackd) LastSeq() (sent, received wire.Seq) { return m.r.send.Next - 1, 0 }

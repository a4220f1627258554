package notrack

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

const (
	aliveInterval  = time.Second     // ALIVE after this much silence of ours
	resyncInterval = 3 * time.Second // between two RESYNCs that nothing answers
	resyncTries    = 5               // how many a live peer with nothing to tell gets
	farBack        = 4096            // numbers that go back so far are those of a new process
)

// ConntrackdConfig holds what an operator may set.
type ConntrackdConfig struct {
	FirstSeq     wire.Seq      // number of the first message; conntrackd takes the Unix time
	Resync       bool          // ask the peer for its state at the start
	DeadAfter    time.Duration // silence after which the peer counts as gone (10 s)
	BulkInterval time.Duration // after a loss the peer's state is asked for at most this often; 0 for never
}

// ConntrackdStats counts what happened since the start, in messages unless named
// otherwise.
type ConntrackdStats struct {
	DataSent, ResyncSent, AliveSent             uint64
	DataReceived, ResyncReceived, AliveReceived uint64

	Lost       uint64 // numbers of the peer that were left out
	Before     uint64 // messages with a number that had passed; delivered all the same
	BadHeader  uint64 // flags that make no sense, or of another mode
	BadPayload uint64 // data messages that did not parse
	BulksSent  uint64 // bulk updates completed
	BulkFlows  uint64 // flows sent by them
	Silences   uint64 // times that the peer went silent
	Restarts   uint64 // restarts of the peer that were noticed
}

// Conntrackd is NOTRACK with one peer in conntrackd's dialect. It is not safe for
// concurrent use.
type Conntrackd struct {
	cfg  ConntrackdConfig
	send queue.Sender

	walk  queue.Walk // of the bulk update under way
	again bool       // another one was asked for meanwhile
	pace  queue.Pace

	sent     bool // something has been
	lastSend monotime.Time
	alive    bool // send ALIVE with the next datagram, if nothing else is to be sent

	known  bool          // last is valid
	last   wire.Seq      // number of the last message accepted
	heard  monotime.Time // last valid message; 0 for never
	silent bool          // the peer was declared gone

	resync request
	Stats  ConntrackdStats
}

// request is our request for the peer's state.
type request struct {
	wanted bool          // it has to be sent at next
	sent   bool          // it was sent since it was wanted
	next   monotime.Time // 0 for at once
	tries  int           // how often it was sent to a live peer
	last   monotime.Time // when it was made last; 0 for never
	heal   monotime.Time // when it is to be made because of a loss; 0 for never
}

// at returns when a RESYNC is to leave, if it is wanted.
func (r *request) at(now monotime.Time) monotime.Time {
	if r.next == 0 {
		return now
	}
	return r.next
}

func (r *request) due(now monotime.Time) bool { return r.wanted && now >= r.at(now) }

// NewConntrackd returns a machine that sends the flows of store.
func NewConntrackd(cfg ConntrackdConfig, store queue.Store) *Conntrackd {
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 10 * time.Second
	}
	m := &Conntrackd{cfg: cfg, send: queue.NewSender(store, cfg.FirstSeq, 1), alive: true}
	m.walk.Init(store, nil)
	if cfg.Resync {
		m.RequestResync()
	}
	return m
}

// SetDeadAfter changes the silence after which the peer counts as gone.
func (m *Conntrackd) SetDeadAfter(d time.Duration) { m.cfg.DeadAfter = d }

// Enqueue says that h changed. replace says that the flow took the place of another
// with the same tuple that the peer may still hold.
func (m *Conntrackd) Enqueue(h flow.Handle, replace bool) { m.send.Enqueue(h, replace) }

// Forget drops h from the queue: the slot is about to be used for something else.
func (m *Conntrackd) Forget(h flow.Handle) { m.send.Forget(h) }

// ForgetAll drops every flow, before the cache is emptied. A bulk update that is
// under way ends.
func (m *Conntrackd) ForgetAll() {
	m.send.Clear()
	m.walk.Stop()
	m.again = false
}

// Evict returns 0: no deletion waits for anything but its turn.
func (m *Conntrackd) Evict() flow.Handle { return 0 }

// Bulk starts a bulk update; one that is under way is followed by another.
func (m *Conntrackd) Bulk() {
	if m.walk.Active() {
		m.again = true
		return
	}
	m.walk.Begin()
}

// RequestResync asks the peer for its whole state.
func (m *Conntrackd) RequestResync() {
	r := &m.resync
	r.wanted, r.sent, r.next, r.tries, r.heal = true, false, 0, 0, 0
}

// Requests returns 0, Confirmed does nothing, and ResyncComplete returns false:
// nothing tells when a bulk update of the peer is complete, so no entry of the
// external cache is ever in doubt.
func (m *Conntrackd) Requests() uint64                  { return 0 }
func (m *Conntrackd) Confirmed(monotime.Time)           {}
func (m *Conntrackd) ResyncComplete(monotime.Time) bool { return false }

// Receive takes one message of the peer. A message of a wrong protocol version, or
// one that could not be framed, must not be given to it. Bad leaves the machine as it
// was, except that a data message whose header is good takes its number with it.
func (m *Conntrackd) Receive(now monotime.Time, msg *wire.Message) wire.Verdict {
	ctl := msg.Type == wire.Ctl
	if msg.Fault == wire.FaultHeader || !msg.HeaderValid() || ctl && msg.Flags&(wire.FlagAck|wire.FlagNack) != 0 {
		m.Stats.BadHeader++
		return wire.Bad
	}
	m.listen(now)
	m.count(now, msg.Seq)
	switch {
	case ctl && msg.Flags&wire.FlagResync != 0:
		m.Stats.ResyncReceived++
		m.Bulk()
		return wire.Control
	case ctl:
		m.Stats.AliveReceived++
		return wire.Control
	case msg.Fault != wire.FaultNone:
		m.Stats.BadPayload++
		return wire.Bad
	}
	m.Stats.DataReceived++
	if m.resync.sent {
		m.resync.wanted = false // this may be the answer
	}
	return wire.Deliver
}

// listen notes a sign of life. A peer that was not there has missed our state, and
// we its.
func (m *Conntrackd) listen(now monotime.Time) {
	switch {
	case m.heard == 0:
		m.Bulk()
		if m.resync.wanted {
			m.resync.next, m.resync.tries = 0, 0 // nobody was there to hear it
		}
	case m.silent || now.Sub(m.heard) >= m.cfg.DeadAfter:
		m.Bulk()
		m.RequestResync()
	}
	m.heard, m.silent = now, false
}

// count compares a number with the one before it. The reference follows the peer,
// even backwards.
func (m *Conntrackd) count(now monotime.Time, seq wire.Seq) {
	if m.known {
		switch d := seq.Sub(m.last + 1); {
		case d < -farBack:
			m.Stats.Restarts++
			m.Bulk()
			m.RequestResync()
		case d < 0:
			m.Stats.Before++
			m.heal(now) // something old may have overwritten something newer
		case d > 0:
			m.Stats.Lost += uint64(d)
			m.heal(now)
		}
	}
	m.known, m.last = true, seq
}

// heal lets a RESYNC leave as soon as that may be.
func (m *Conntrackd) heal(now monotime.Time) {
	r := &m.resync
	if r.heal != 0 || m.cfg.BulkInterval == 0 {
		return
	}
	r.heal = now.Add(resyncInterval) // the loss may go on for a while
	if r.last != 0 {
		r.heal = max(r.heal, r.last.Add(m.cfg.BulkInterval))
	}
}

// Advance acts on the deadlines that have passed.
func (m *Conntrackd) Advance(now monotime.Time) {
	if m.sent && now.Sub(m.lastSend) >= aliveInterval {
		m.alive = true
	}
	if !m.silent && m.heard != 0 && now.Sub(m.heard) >= m.cfg.DeadAfter {
		m.silent = true
		m.Stats.Silences++
	}
	if r := &m.resync; r.heal != 0 && now >= r.heal {
		m.RequestResync()
	}
}

// Next returns the earliest time at which there is something to do that is not
// waiting already.
func (m *Conntrackd) Next(now monotime.Time) monotime.Time {
	next := m.lastSend.Add(aliveInterval)
	if !m.sent {
		next = now
	}
	if m.heard != 0 && !m.silent {
		next = monotime.Earliest(next, m.heard.Add(m.cfg.DeadAfter))
	}
	if m.resync.wanted {
		next = monotime.Earliest(next, m.resync.at(now))
	}
	if m.walk.Active() {
		next = monotime.Earliest(next, m.pace.Next())
	}
	return monotime.Earliest(next, m.resync.heal)
}

// Pending reports whether AppendDatagram has something to do now.
func (m *Conntrackd) Pending(now monotime.Time) bool {
	return m.alive || m.send.First(queue.Dirty) != 0 || m.resync.due(now) || m.walk.Active() && m.pace.Left(now)
}

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it. b must have room for limit plus one message, so that no step allocates.
func (m *Conntrackd) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	start := len(b)
	if m.resync.due(now) {
		b = wire.AppendControl(b, wire.FlagResync, m.send.Number(), 0, 0)
		m.asked(now)
	}
	b = m.appendFlows(now, b, start, limit)
	if len(b) == start && m.alive {
		b = wire.AppendControl(b, wire.FlagAlive, m.send.Number(), 0, 0)
		m.Stats.AliveSent++
	}
	if len(b) > start {
		m.alive, m.sent, m.lastSend = false, true, now
	}
	return b
}

// asked notes that a RESYNC has left.
func (m *Conntrackd) asked(now monotime.Time) {
	r := &m.resync
	m.Stats.ResyncSent++
	r.sent, r.last, r.next = true, now, now.Add(resyncInterval)
	if m.heard != 0 && !m.silent {
		if r.tries++; r.tries >= resyncTries {
			r.wanted = false // it has nothing
		}
	}
}

// appendFlows appends flows: live changes first, a bulk update in the room that they
// leave.
func (m *Conntrackd) appendFlows(now monotime.Time, b []byte, start, limit int) []byte {
	var ok bool
	for h := m.send.First(queue.Dirty); h != 0; h = m.send.First(queue.Dirty) {
		if b, ok, _ = m.send.Append(now, b, start, limit, h); !ok {
			return b
		}
		m.Stats.DataSent++
	}
	for m.walk.Active() && m.pace.Left(now) {
		h := m.walk.Step()
		if h == 0 {
			m.pace.Spend(now, queue.StepCost)
			if !m.walk.Active() {
				m.bulkOver()
			}
			continue
		}
		if b, ok, _ = m.send.Append(now, b, start, limit, h); !ok {
			m.walk.Back(h)
			return b
		}
		m.pace.Spend(now, 1)
		m.Stats.DataSent++
		m.Stats.BulkFlows++
	}
	return b
}

func (m *Conntrackd) bulkOver() {
	m.Stats.BulksSent++
	if m.again {
		m.again = false
		m.walk.Begin()
	}
}

// ConntrackdPeer describes the peer and what is under way, for status.
type ConntrackdPeer struct {
	Heard        monotime.Time // last sign of life, 0 for never
	Silent       bool          // heard once, but not for ConntrackdConfig.DeadAfter
	Dirty        int           // flows that wait to be sent
	BulkRunning  bool          // we are sending a bulk update
	ResyncWanted bool          // our request for its state is not answered
	Unsure       bool          // something was lost since it was answered
}

// Peer returns the state of the peer.
func (m *Conntrackd) Peer() ConntrackdPeer {
	return ConntrackdPeer{
		Heard: m.heard, Silent: m.silent, Dirty: m.send.Len(queue.Dirty), BulkRunning: m.walk.Active(),
		ResyncWanted: m.resync.wanted, Unsure: m.resync.heal != 0,
	}
}

// LastSeq returns the number of the last message sent, and of the last accepted.
func (m *Conntrackd) LastSeq() (sent, received wire.Seq) { return m.send.Next - 1, m.last }

package ftfw

import (
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Enqueue says that h changed: its current state must reach the peer. A second
// change before it leaves costs nothing. replace says that the flow took the
// place of another with the same tuple that the peer may still hold.
func (m *Machine) Enqueue(h flow.Handle, replace bool) {
	s := m.slot(h)
	if replace {
		s.replace = true
	}
	switch s.state {
	case dirty:
		return
	case inFlight:
		m.land(s.seq)
	}
	m.push(h, s)
}

// Warm reads the slots of flows, of which some may be 0: most of them will be enqueued
// soon, and here all wait for memory together.
func (m *Machine) Warm(flows []flow.Handle) {
	for _, h := range flows {
		if c := int(h / chunkLen); c < len(m.slots) {
			m.warmed += uint64(m.slots[c][h%chunkLen].seq)
		}
	}
}

// Forget drops h from the queues: the slot is about to be used for something
// else, and nothing of it is sent any more.
func (m *Machine) Forget(h flow.Handle) {
	s := m.slot(h)
	switch s.state {
	case dirty:
		m.unlink(h, s)
	case inFlight:
		m.land(s.seq)
	}
	*s = slot{}
	if m.bulk.hold == h {
		m.bulk.hold = 0
	}
}

// ForgetAll drops every flow from the queues, before the cache is emptied. A
// bulk update that is running ends.
func (m *Machine) ForgetAll() {
	m.slots = nil
	m.head, m.tail, m.dirty, m.flying = 0, 0, 0, 0
	for n := m.base; n != m.next; n++ {
		m.at(n).h = 0
	}
	m.bulk = bulk{}
}

// Bulk starts a bulk update, or extends the one that is running to a full round
// from where it is.
func (m *Machine) Bulk() {
	b := &m.bulk
	b.since = m.next
	switch {
	case !b.running:
		*b = bulk{running: true, since: b.since, last: b.last}
	case b.ended:
		b.wrap, b.stop = true, ^flow.Handle(0)
	case b.pos != 0:
		b.wrap, b.stop = true, b.pos
	}
}

// Evict gives up the oldest deletion that the peer has not acknowledged, so that
// its slot can be used; 0 if the peer lives, or if there is none among the oldest
// few. The peer may keep that flow until it asks for our whole state.
func (m *Machine) Evict() flow.Handle {
	if m.heard != 0 && !m.silent {
		return 0 // it will acknowledge in a moment
	}
	const few = 256
	n := 0
	for h := m.head; h != 0 && n < few; h, n = m.slot(h).next, n+1 {
		if m.store.Dead(h) {
			m.Forget(h)
			m.Stats.Evicted++
			return h
		}
	}
	end := m.base + wire.Seq(min(few, int(m.next-m.base)))
	for s := m.base; s != end; s++ {
		if h := m.at(s).h; h != 0 && m.store.Dead(h) {
			m.Forget(h)
			m.Stats.Evicted++
			return h
		}
	}
	return 0
}

// Pending reports whether AppendDatagram has something to send now.
func (m *Machine) Pending(now monotime.Time) bool {
	return m.alive || len(m.controls) > 0 || m.resyncDue() || m.dataReady(now)
}

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it; nothing is appended when nothing waits. b must have room for limit
// plus one message, so that no step allocates.
func (m *Machine) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	start := len(b)
	for m.firstControl < len(m.controls) && len(b)-start+controlLen <= limit {
		c := m.controls[m.firstControl]
		m.firstControl++
		b = m.appendControl(b, c)
	}
	if m.firstControl == len(m.controls) {
		m.controls, m.firstControl = m.controls[:0], 0
	}
	if m.resyncDue() && len(b)-start+controlLen <= limit {
		b = m.appendControl(b, control{f: wire.FlagResync})
		if !m.resync.asked {
			// What came since the need was found came without loss detection, if
			// either side was saying HELLO. The peer's answer begins here.
			m.resync.asked = true
			m.resync.doubts++
		}
		m.resync.wanted, m.resync.waiting = false, true
		m.resync.seq, m.resync.sentAt = m.next-1, now
		m.resync.progress = now
	}
	b = m.appendData(now, b, start, limit)
	if len(b) == start && m.alive {
		b = wire.AppendControl(b, wire.FlagAlive|m.helloFlags(), m.take(sent{}), 0, 0)
		m.Stats.AliveSent++
	}
	if len(b) > start {
		m.alive, m.lastSend = false, now
		if m.tick == 0 {
			m.startTick(now)
		}
	}
	return b
}

// controlLen is the length of a control message with a range.
const controlLen = 16

// appendData fills the rest of a datagram with flows: live changes first, a bulk
// update in the room that they leave.
func (m *Machine) appendData(now monotime.Time, b []byte, start, limit int) []byte {
	var ok bool
	for m.dirty > 0 && m.mayFly(now) {
		h := m.head
		s := m.slot(h)
		if b, ok = m.appendFlow(b, start, limit, h, s, now); !ok {
			return b
		}
		m.unlink(h, s)
		s.state = inFlight
	}
	for m.bulkReady(now) {
		h := m.nextBulk()
		if h == 0 {
			break
		}
		s := m.slot(h)
		if s.state == inFlight && s.seq.Before(m.bulk.since) {
			m.land(s.seq) // the peer may have emptied its cache after it came
			s.state = clean
		}
		if s.state != clean { // leaves by itself, or has left since
			m.bulk.hold = 0
			continue
		}
		if b, ok = m.appendFlow(b, start, limit, h, s, now); !ok {
			break
		}
		s.state = inFlight
		if m.flying > bulkInFlight {
			if m.bulk.burst == 0 {
				m.bulk.burst = bulkTrickle
			}
			m.bulk.burst--
		}
		m.bulk.hold, m.bulk.last = 0, now
		m.Stats.BulkFlows++
	}
	return b
}

// appendFlow appends the message of one flow if it fits, gives it a number and
// records it in the resend queue. The caller sets the state.
func (m *Machine) appendFlow(b []byte, start, limit int, h flow.Handle, s *slot, now monotime.Time) ([]byte, bool) {
	end := len(b)
	b = m.store.AppendFlow(b, h, m.helloFlags(), m.next, s.replace, now)
	if len(b)-start > limit && end > start {
		return b[:end], false
	}
	s.seq = m.take(sent{h: h})
	m.flying++
	m.Stats.DataSent++
	return b, true
}

func (m *Machine) appendControl(b []byte, c control) []byte {
	switch c.f {
	case wire.FlagAck:
		m.Stats.AckSent++
	case wire.FlagNack:
		m.Stats.NackSent++
	case wire.FlagResync:
		m.Stats.ResyncSent++
	}
	f := c.f | m.helloFlags()
	return wire.AppendControl(b, f, m.take(sent{ctl: c.f, from: c.from, to: c.to}), c.from, c.to)
}

// helloFlags are the flags that the next message carries besides its own.
func (m *Machine) helloFlags() (f wire.Flags) {
	if m.hello == helloSay {
		f = wire.FlagHello
	}
	if m.helloBack {
		f |= wire.FlagHelloBack
	}
	return f
}

// take gives out the next number for a message that has been appended, and enters
// the message into the resend queue.
func (m *Machine) take(e sent) wire.Seq {
	n := m.next
	if int(n-m.base) == len(m.ring) {
		m.makeRoom()
	}
	*m.at(n) = e
	m.next++
	m.started = true
	m.helloBack = false
	return n
}

// makeRoom grows the ring or, at its limit, gives up the oldest number: its flow
// becomes dirty again. A control message is not said again here, or two full
// rings would talk for ever; what a lost NACK asked for comes with a bulk update.
func (m *Machine) makeRoom() {
	if len(m.ring) < 2*m.cfg.ResendQueue {
		ring := make([]sent, 2*len(m.ring))
		for n := m.base; n != m.next; n++ {
			ring[int(n)&(len(ring)-1)] = *m.at(n)
		}
		m.ring = ring
		return
	}
	if m.at(m.base).ctl == wire.FlagNack && !m.resync.wanted && !m.resync.waiting {
		m.RequestResync()
	}
	m.giveUp(m.base)
	m.base++
}

func (m *Machine) at(n wire.Seq) *sent { return &m.ring[int(n)&(len(m.ring)-1)] }

// land takes a flow out of the resend queue; its slot's state is the caller's.
func (m *Machine) land(n wire.Seq) {
	m.at(n).h = 0
	m.flying--
}

// again takes number n, which the peer seems to lack, out of the resend queue, so
// that what it said is said again. It reports whether that was a flow.
func (m *Machine) again(n wire.Seq) bool {
	if e := *m.at(n); e.ctl == wire.FlagAck || e.ctl == wire.FlagNack {
		m.queueControl(control{e.ctl, e.from, e.to})
	}
	return m.giveUp(n)
}

// giveUp takes number n out of the resend queue, delivered or not: its flow
// becomes dirty again, a RESYNC is wanted again, an ACK or NACK is forgotten. It
// reports whether there was a flow.
func (m *Machine) giveUp(n wire.Seq) bool {
	e := m.at(n)
	h := e.h
	if e.ctl == wire.FlagResync && m.resync.seq == n {
		m.resync.wanted, m.resync.waiting, m.resync.open = true, false, false
	}
	*e = sent{}
	if h == 0 {
		return false
	}
	m.flying--
	m.push(h, m.slot(h))
	return true
}

// mayFly reports whether data may leave: the peer detects loss, is alive, and the
// resend queue has room.
func (m *Machine) mayFly(now monotime.Time) bool {
	return m.hello == helloDone && m.flying < m.cfg.ResendQueue &&
		m.heard != 0 && now.Sub(m.heard) < m.cfg.DeadAfter
}

func (m *Machine) bulkReady(now monotime.Time) bool {
	if !m.bulk.running || !m.mayFly(now) {
		return false
	}
	return m.flying < bulkInFlight || m.bulkPaced() && (m.bulk.burst > 0 || now.Sub(m.bulk.last) >= bulkPace)
}

// bulkPaced reports whether a bulk update that waits for room in flight goes on a
// little by time alone: some peers acknowledge late while they are busy.
func (m *Machine) bulkPaced() bool { return m.flying < m.cfg.ResendQueue-bulkTrickle }

func (m *Machine) dataReady(now monotime.Time) bool {
	return m.dirty > 0 && m.mayFly(now) || m.bulkReady(now)
}

// nextBulk returns the next flow of the bulk update, or 0 when it is complete.
func (m *Machine) nextBulk() flow.Handle {
	b := &m.bulk
	for b.hold == 0 {
		if b.ended {
			if !b.wrap {
				b.running = false
				m.Stats.BulksSent++
				return 0
			}
			b.wrap, b.ended, b.pos = false, false, 0
		}
		if b.pos = m.store.Walk(b.pos, bulkWalk, m.found); b.pos == 0 {
			b.ended = true
		}
	}
	return b.hold
}

// bulkFound takes what the walk of a bulk update finds. It always stops the walk.
func (m *Machine) bulkFound(h flow.Handle) bool {
	b := &m.bulk
	if !b.wrap && b.stop != 0 && h >= b.stop {
		b.ended = true
	} else {
		b.hold = h
	}
	return false
}

// push appends h to the queue of dirty flows.
func (m *Machine) push(h flow.Handle, s *slot) {
	s.state = dirty
	s.prev, s.next = m.tail, 0
	if m.tail == 0 {
		m.head = h
	} else {
		m.slot(m.tail).next = h
	}
	m.tail = h
	m.dirty++
}

// unlink takes h out of the queue of dirty flows; its state is the caller's.
func (m *Machine) unlink(h flow.Handle, s *slot) {
	if s.prev == 0 {
		m.head = s.next
	} else {
		m.slot(s.prev).next = s.next
	}
	if s.next == 0 {
		m.tail = s.prev
	} else {
		m.slot(s.next).prev = s.prev
	}
	s.prev, s.next = 0, 0
	m.dirty--
	s.state = clean
}

// slot returns the slot of h, growing the table to hold it. Chunks never move,
// so growing never stops the loop.
func (m *Machine) slot(h flow.Handle) *slot {
	c := int(h / chunkLen)
	for c >= len(m.slots) {
		m.slots = append(m.slots, new([chunkLen]slot))
	}
	return &m.slots[c][h%chunkLen]
}

package ftfw

import (
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Receive takes one message of the peer. A message of a wrong protocol version,
// or one that could not be framed, must not be given to it.
//
// Bad leaves the machine as it was, except that a data message whose header is
// good and whose attributes did not parse takes its number with it: the peer
// would only send the same again.
func (m *Machine) Receive(now monotime.Time, msg *wire.Message) wire.Verdict {
	if msg.Fault == wire.FaultHeader || !msg.HeaderValid() {
		m.Stats.BadHeader++
		return wire.Bad
	}
	wasSilent := m.silent
	m.listen(now)
	hello := msg.Flags&wire.FlagHello != 0
	if msg.Flags&wire.FlagHelloBack != 0 && m.hello == helloSay && m.started {
		m.hello = helloDone
	}
	switch {
	case hello && m.lateHello(now, msg.Seq):
		m.Stats.Before++
		return wire.Drop
	case hello:
		m.receiveHello(now, msg.Seq)
	case m.known && msg.Seq.Before(m.last+1):
		if !m.beforeTooLong(now) {
			m.Stats.Before++
			return m.receiveLate(now, msg)
		}
		m.RequestResync()
	case m.known && msg.Seq != m.last+1:
		m.receiveGap(now, m.last+1, msg.Seq)
	}
	m.helloing, m.before = hello, 0
	m.accept(now, msg.Seq)
	if wasSilent && !hello {
		// What it destroyed meanwhile may be more than it could remember.
		m.RequestResync()
	}
	return m.digest(now, msg)
}

// listen notes a sign of life.
func (m *Machine) listen(now monotime.Time) {
	if m.resync.open && m.heard != 0 && now.Sub(m.heard) > hearing {
		m.resync.progress = now // it may have sent what we did not hear
	}
	if m.heard == 0 {
		m.Bulk() // whatever it holds of us is of an earlier process
	}
	m.heard, m.silent = now, false
}

// lateHello reports whether a message with HELLO is a late or repeated one of the
// peer's present process. Taken for a new start it would move the stream back, and
// old messages on their way could then overwrite newer state. A process that has
// really started repeats its HELLO every second.
func (m *Machine) lateHello(now monotime.Time, seq wire.Seq) bool {
	return m.known && m.lastHello != 0 && now.Sub(m.lastHello) < lateness &&
		seq.Before(m.last+1) && !seq.Before(m.firstHello)
}

// beforeTooLong reports whether nothing but old numbers has come for so long that
// they cannot be late: the peer counts elsewhere than we believe.
func (m *Machine) beforeTooLong(now monotime.Time) bool {
	if m.before == 0 {
		m.before = now
	}
	return now.Sub(m.before) >= lateness
}

// receiveLate handles a message whose place in the stream has passed. Its data may
// be older than what came since, so it is dropped, and comes again because it was
// asked for. What a control message says is as true late as in time.
func (m *Machine) receiveLate(now monotime.Time, msg *wire.Message) wire.Verdict {
	if msg.Type != wire.Ctl {
		return wire.Drop
	}
	return m.digest(now, msg)
}

// receiveHello handles a HELLO: the peer has started and does not know that we
// hear it. It knows nothing of what is in flight, and holds nothing of ours.
func (m *Machine) receiveHello(now monotime.Time, seq wire.Seq) {
	m.Stats.Hellos++
	m.helloBack = true
	if m.pending && seq.Before(m.ackFrom) {
		m.window, m.ackFrom = m.cfg.AckWindow, seq
	}
	m.lastHello = now
	if m.helloing {
		return
	}
	m.firstHello = seq
	if m.known {
		m.Stats.Restarts++
		// What waits to be said is about the numbers of its former process.
		m.controls, m.firstControl = m.controls[:0], 0
		// The peer may have lost its acknowledgement of our HELLO with its
		// process; its numbers may start anywhere.
		m.pending = false
		m.window = m.cfg.AckWindow
		m.RequestResync()
	}
	for n := m.base; n != m.next; n++ {
		m.giveUp(n)
	}
	m.base = m.next
	if m.known {
		m.Bulk()
	}
}

// receiveGap handles a message that is ahead of the expected number: what was
// received is acknowledged, what is missing is asked for.
func (m *Machine) receiveGap(now monotime.Time, expected, seq wire.Seq) {
	m.Stats.Gaps++
	missing := uint32(seq - expected)
	m.Stats.Missing += uint64(missing)
	if m.pending {
		m.queueControl(control{wire.FlagAck, m.ackFrom, expected - 1})
		m.pending = false
	}
	m.queueControl(control{wire.FlagNack, expected, seq - 1})
	m.window = m.cfg.AckWindow
	m.resync.progress, m.resync.trouble = now, now
	if missing >= lostForSure {
		m.RequestResync()
	}
}

// accept advances the stream of the peer to seq.
func (m *Machine) accept(now monotime.Time, seq wire.Seq) {
	m.known, m.last = true, seq
	if !m.pending {
		m.pending, m.ackFrom, m.ackDue = true, seq, now.Add(aliveInterval)
	}
	if m.window--; m.window <= 0 {
		m.ack()
		m.window = m.cfg.AckWindow
	}
}

// ack queues the acknowledgement of what is pending.
func (m *Machine) ack() {
	m.queueControl(control{wire.FlagAck, m.ackFrom, m.last})
	m.pending = false
}

func (m *Machine) queueControl(c control) {
	if len(m.controls) == maxControl {
		// Among what is given up may be the only word of a loss.
		m.Stats.CtlDropped += uint64(maxControl)
		m.controls, m.firstControl = m.controls[:0], 0
		m.RequestResync()
	}
	m.controls = append(m.controls, c)
}

// digest acts on a message that is in its place.
func (m *Machine) digest(now monotime.Time, msg *wire.Message) wire.Verdict {
	if msg.Type != wire.Ctl {
		if msg.Fault != wire.FaultNone {
			m.Stats.BadPayload++
			return wire.Bad
		}
		m.Stats.DataReceived++
		return wire.Deliver
	}
	switch f := msg.Flags; {
	case f&wire.FlagAck != 0:
		m.Stats.AckReceived++
		m.receiveAck(now, msg.From, msg.To)
	case f&wire.FlagNack != 0:
		m.Stats.NackReceived++
		m.resync.trouble = now
		m.receiveNack(msg.From, msg.To)
	case f&wire.FlagResync != 0:
		m.Stats.ResyncReceived++
		m.Bulk()
	default:
		m.Stats.AliveReceived++
	}
	return wire.Control
}

// clip cuts a range of numbers to those of the resend queue; n is how many are
// left.
func (m *Machine) clip(from, to wire.Seq) (first wire.Seq, n uint32) {
	// Lengths, not Before: a range may be as long as half of all numbers, and then
	// its ends say nothing about where it lies.
	length, own := uint32(to-from)+1, uint32(m.next-m.base)
	if at := uint32(from - m.base); at < own {
		return from, min(length, own-at)
	}
	if ahead := uint32(m.base - from); ahead < length {
		return m.base, min(length-ahead, own)
	}
	return from, 0
}

func (m *Machine) receiveAck(now monotime.Time, from, to wire.Seq) {
	first, n := m.clip(from, to)
	if n == 0 {
		return
	}
	for i := range n {
		m.confirm(now, first+wire.Seq(i))
	}
	if high := first + wire.Seq(n-1); !m.anyAck || m.acked.Before(high) {
		m.acked, m.anyAck = high, true
	}
	m.retire()
}

// confirm takes number n out of the resend queue because the peer has it.
func (m *Machine) confirm(now monotime.Time, n wire.Seq) {
	e := m.at(n)
	h := e.h
	if e.ctl == wire.FlagResync && m.resync.waiting && m.resync.seq == n {
		m.resyncArrived(now)
	}
	*e = sent{}
	if h == 0 {
		return
	}
	m.flying--
	s := m.slot(h)
	s.state, s.replace = clean, false
	if m.store.Dead(h) {
		m.Forget(h)
		m.store.Release(h)
	}
}

// retire moves the beginning of the resend queue past what is done with.
func (m *Machine) retire() {
	for m.base != m.next {
		if e := m.at(m.base); e.h != 0 || e.ctl != 0 {
			return
		}
		m.base++
	}
}

func (m *Machine) receiveNack(from, to wire.Seq) {
	first, n := m.clip(from, to)
	for i := range n {
		if m.again(first + wire.Seq(i)) {
			m.Stats.Resent++
		}
	}
	m.retire()
}

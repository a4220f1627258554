package ftfw

import (
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Advance acts on the deadlines that have passed.
func (m *Machine) Advance(now monotime.Time) {
	idle := now.Sub(m.lastSend) >= aliveInterval
	if m.pending && (idle || now >= m.ackDue) {
		m.ack()
	}
	if len(m.controls) == 0 && idle {
		m.alive = true
	}
	if !m.silent && m.heard != 0 && now.Sub(m.heard) >= m.cfg.DeadAfter {
		m.silent = true
		m.Stats.Silences++
	}
	if m.tick != 0 && now >= m.tick {
		m.everySecond(now)
	}
	m.advanceResync(now)
}

// Next returns the earliest time at which Advance or AppendDatagram has something
// to do that is not waiting already.
func (m *Machine) Next(now monotime.Time) monotime.Time {
	next := m.lastSend.Add(aliveInterval)
	if m.pending {
		next = monotime.Earliest(next, m.ackDue)
	}
	next = monotime.Earliest(next, m.tick)
	if m.bulk.running && m.mayFly(now) && m.bulkPaced() {
		next = monotime.Earliest(next, m.bulk.last.Add(bulkPace))
	}
	return next
}

// startTick begins the bookkeeping of how old the numbers in flight are.
func (m *Machine) startTick(now monotime.Time) {
	for i := range m.history {
		m.history[i] = m.base
	}
	m.tick = now.Add(time.Second)
}

// everySecond sends again what was sent resendAfter seconds ago and is still not
// acknowledged although later numbers are. Nobody will ask for it: the peer has
// lost its knowledge of the gap, or we have lost its acknowledgement.
func (m *Machine) everySecond(now monotime.Time) {
	old := m.history[m.hpos]
	m.history[m.hpos] = m.next
	m.hpos = (m.hpos + 1) % len(m.history)
	m.tick = now.Add(time.Second)
	if m.base == m.next {
		m.tick = 0
		return
	}
	for m.base.Before(old) && m.base != m.next && m.anyAck && m.base.Before(m.acked) {
		if m.again(m.base) {
			m.Stats.Retried++
		}
		m.base++
	}
	m.retire()
}

// RequestResync asks the peer for its whole state as soon as that can be asked
// for reliably, and again until it is known to have heard.
//
// Until then every entry of the external cache is in doubt; Requests tells the
// owner of that cache.
func (m *Machine) RequestResync() {
	m.resync.wanted, m.resync.waiting, m.resync.open, m.resync.asked = true, false, false, false
	m.resync.doubts++
	m.Stats.Requests++
}

// Requests returns a number that grows whenever every entry of the external cache
// comes into doubt: when the peer's whole state is found to be needed, and when the
// request leaves. What a message brings afterwards is confirmed.
func (m *Machine) Requests() uint64 { return m.resync.doubts }

// resyncDue reports whether a RESYNC can leave now: it must not be in the phase
// in which either side detects no loss.
func (m *Machine) resyncDue() bool {
	return m.resync.wanted && m.hello == helloDone && m.known && !m.helloing && !m.silent
}

func (m *Machine) resyncArrived(now monotime.Time) {
	m.resync.waiting = false
	m.resync.open, m.resync.progress = true, now
}

// advanceResync decides whether a RESYNC that was sent has arrived. conntrackd may
// acknowledge it minutes later while it is busy, so an ACK alone would not do. But
// it was sent with loss detection on both sides: when nothing was lost either way
// since, and the peer has heard later messages of ours without asking for this
// one, it has it.
func (m *Machine) advanceResync(now monotime.Time) {
	r := &m.resync
	if !r.waiting || now.Sub(r.sentAt) < resyncInterval {
		return
	}
	switch {
	case m.next-1 != r.seq && r.trouble <= r.sentAt && m.heard.Sub(r.sentAt) > aliveInterval:
		m.resyncArrived(now)
	case now.Sub(r.sentAt) > 2*resyncInterval:
		r.waiting, r.wanted = false, true
	}
}

// Confirmed says that a message of the peer confirmed an entry that was in doubt
// since the last request: its bulk update goes on.
func (m *Machine) Confirmed(now monotime.Time) { m.resync.progress = now }

// ResyncComplete reports once that the bulk update which the peer sent on our
// request is over as far as can be known: conntrackd's dialect has no end of a
// bulk update, but a peer sends it in one go, and for a while now there has been
// no sign of it, nor of anything missing.
//
// It is not over before the peer has acknowledged the request or a later message:
// on a link that carries one direction only, silence would look the same.
func (m *Machine) ResyncComplete(now monotime.Time) bool {
	r := &m.resync
	if !r.open || now.Sub(r.progress) < quiet || now.Sub(m.heard) > hearing {
		return false
	}
	if !m.anyAck || m.acked.Before(r.seq) {
		return false
	}
	r.open = false
	m.Stats.BulksReceived++
	return true
}

// Peer describes the peer and what is under way, for status.
type Peer struct {
	Heard        monotime.Time // last sign of life, 0 for never
	Silent       bool          // heard once, but not for Config.DeadAfter
	Helloing     bool          // it does not know yet that we hear it
	HelloDone    bool          // it has heard us
	Unacked      int           // flows in flight
	Dirty        int           // flows that wait to be sent
	BulkRunning  bool          // we are sending a bulk update
	ResyncWanted bool          // our request for its state is not answered
	ResyncOpen   bool          // its bulk update is under way
}

// Peer returns the state of the peer.
func (m *Machine) Peer() Peer {
	return Peer{
		Heard: m.heard, Silent: m.silent, Helloing: m.helloing, HelloDone: m.hello == helloDone,
		Unacked: m.flying, Dirty: m.dirty, BulkRunning: m.bulk.running,
		ResyncWanted: m.resync.wanted || m.resync.waiting, ResyncOpen: m.resync.open,
	}
}

// LastSeq returns the number of the last message sent, and of the last accepted.
func (m *Machine) LastSeq() (sent, received wire.Seq) { return m.next - 1, m.last }

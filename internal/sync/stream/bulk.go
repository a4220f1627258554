package stream

import (
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// bulkWork reports whether a message of a bulk update can leave now.
func (m *Machine) bulkWork(now monotime.Time) bool {
	b := &m.bulk
	switch b.stage {
	case bulkIdle:
		return !b.next.Empty()
	case bulkBeginning:
		return m.heardBegin() || now.Sub(b.begun) >= beginPatience || now.Sub(b.told) >= beginRepeat
	case bulkWalking:
		return m.bulkRoom(now) > 0
	}
	return m.passed(b.ticket)
}

// heardBegin reports whether every peer that wants something of the bulk update
// knows that it has begun.
func (m *Machine) heardBegin() bool {
	for _, p := range m.peers {
		if p.counted && p.told != m.bulk.id && !p.wants.And(m.bulk.mask).Empty() {
			return false
		}
	}
	return true
}

// bulkRoom returns how many flows of a bulk update may leave now. It waits for the
// slowest peer, but not for one that has stalled while others go on, and leaves half
// of the queue to live changes.
func (m *Machine) bulkRoom(now monotime.Time) int {
	kept := int(m.next - m.base)
	lag, going := 0, false
	for _, p := range m.peers {
		if behind := int(m.next - 1 - p.covered); p.counted && (behind == 0 || now.Sub(p.progress) < stall) {
			lag, going = max(lag, behind), true
		}
	}
	if !going {
		lag = kept
	}
	return min(min(bulkInFlight, max(m.cfg.ResendQueue/4, 1))-lag, m.cfg.ResendQueue/2-kept)
}

// appendBulk appends messages of the bulk update.
func (m *Machine) appendBulk(now monotime.Time, out []byte, start, limit int) []byte {
	b := &m.bulk
	const markerLen = 28
	if b.stage == bulkIdle && !b.next.Empty() {
		*b = bulk{stage: bulkBeginning, id: b.id + 1, mask: b.next, begun: now}
		if b.mask == wire.AllBuckets {
			m.floor = m.next // all flows are told anew: what somebody lacks will not be missed
		}
	}
	if b.stage == bulkBeginning {
		switch {
		case b.told != 0 && (m.heardBegin() || now.Sub(b.begun) >= beginPatience):
			b.stage = bulkWalking
		case b.told == 0 || now.Sub(b.told) >= beginRepeat:
			if len(out)-start+markerLen > limit {
				return out
			}
			out = wire.AppendBulk(out, wire.BulkBegin, m.take(sent{kind: wire.BulkBegin}), b.id, b.mask)
			b.told = now
			m.Stats.BulkSent++
			return out
		}
	}
	room := 0
	if b.stage == bulkWalking {
		room = m.bulkRoom(now)
	}
	for ; room > 0; room-- {
		h := m.nextBulk()
		if h == 0 {
			b.stage, b.ticket = bulkEnding, m.ticket
			break
		}
		s := m.slot(h)
		if s.state == inFlight { // under an older number
			m.at(s.number).h = 0
			m.flying--
			m.push(h, s)
		}
		if s.state == dirty {
			b.hold = 0 // leaves by itself, before the end does
			continue
		}
		var ok bool
		if out, ok = m.appendFlow(out, start, limit, h, s, true, now); !ok {
			return out
		}
		s.state, s.number = inFlight, m.next-1
		b.hold = 0
		m.Stats.BulkFlows++
	}
	if b.stage == bulkEnding && m.passed(b.ticket) && len(out)-start+markerLen <= limit {
		out = wire.AppendBulk(out, wire.BulkEnd, m.take(sent{kind: wire.BulkEnd}), b.id, b.mask)
		b.stage, b.end = bulkIdle, m.next-1
		m.Stats.BulkSent++
		m.Stats.BulksSent++
	}
	return out
}

// nextBulk returns the next flow of the bulk update, or 0 at its end.
func (m *Machine) nextBulk() flow.Handle {
	b := &m.bulk
	for b.hold == 0 && !b.ended {
		if b.pos = m.store.Walk(b.pos, bulkWalk, m.found); b.pos == 0 {
			b.ended = true
		}
	}
	return b.hold
}

// bulkFound takes what the walk finds, and stops it there.
func (m *Machine) bulkFound(h flow.Handle) bool {
	if !m.bulk.mask.Has(m.store.Bucket(h)) {
		return true
	}
	m.bulk.hold = h
	return false
}

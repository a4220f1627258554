package stream

import (
	"slices"

	"syncd/internal/monotime"
)

// Advance acts on the deadlines that have passed.
func (m *Machine) Advance(now monotime.Time) {
	left := false
	switch {
	case !m.heldUp():
		m.heldSince = 0
	case m.heldSince == 0:
		m.heldSince = now
	}
	m.peers = slices.DeleteFunc(m.peers, func(p *peer) bool {
		return !p.met && !p.alive(now, m.cfg.DeadAfter) // a life that is over
	})
	for _, p := range m.peers {
		alive := p.alive(now, m.cfg.DeadAfter)
		if !alive {
			p.statusDue = 0 // nobody there
		}
		if !p.counted {
			continue
		}
		idle := now.Sub(p.progress)
		switch {
		case !alive, p.covered != m.next-1 && idle >= m.cfg.DeadAfter:
		case m.heldSince != 0 && p.covered.Before(m.base) && idle >= stall && now.Sub(m.heldSince) >= stall:
		default:
			continue
		}
		m.leaveOut(p)
		left = true
	}
	if left {
		m.retire()
	}
	m.Applied(now)
}

// heldUp reports whether the slowest peer holds up the others.
func (m *Machine) heldUp() bool {
	return m.queueFull() || m.bulk.stage == bulkWalking && int(m.next-m.base) >= m.cfg.ResendQueue/2
}

// Next returns the earliest time at which there is something to do that is not
// waiting already.
func (m *Machine) Next(now monotime.Time) monotime.Time {
	next := m.helloDue
	counted := false
	for _, p := range m.peers {
		if p.met && p.statusDue != 0 {
			next = monotime.Earliest(next, p.statusDue)
		}
		if p.counted {
			counted = true
			next = monotime.Earliest(next, p.heard.Add(m.cfg.DeadAfter))
			if p.covered != m.next-1 {
				next = monotime.Earliest(next, p.progress.Add(m.cfg.DeadAfter))
			}
		}
	}
	if m.heldUp() {
		next = monotime.Earliest(next, now.Add(stall/4))
	}
	if counted && !m.queueFull() { // else what is due cannot leave, and waiting for it would be no waiting
		next = monotime.Earliest(next, m.digestDue)
		if m.bulk.stage == bulkBeginning {
			next = monotime.Earliest(next, m.bulk.told.Add(beginRepeat))
		}
	}
	return next
}

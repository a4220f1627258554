package stream

import (
	"slices"

	"syncd/internal/monotime"
)

// Advance acts on the deadlines that have passed.
func (m *Machine) Advance(now monotime.Time) {
	left, full := false, m.queueFull()
	m.peers = slices.DeleteFunc(m.peers, func(p *peer) bool {
		return !p.met && !p.alive(now, m.cfg.DeadAfter) // a life that is over
	})
	for _, p := range m.peers {
		if !p.counted {
			continue
		}
		if !p.alive(now, m.cfg.DeadAfter) || full && p.covered.Before(m.base) && now.Sub(p.progress) >= stall {
			m.leaveOut(p)
			left = true
		}
	}
	if left {
		m.retire()
	}
	m.Applied(now)
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
		}
	}
	if m.queueFull() {
		next = monotime.Earliest(next, now.Add(stall/4))
	}
	if counted {
		next = monotime.Earliest(next, m.digestDue)
		if m.bulk.stage == bulkBeginning {
			next = monotime.Earliest(next, m.bulk.told.Add(beginRepeat))
		}
	}
	return next
}

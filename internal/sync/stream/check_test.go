package stream

import (
	"fmt"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// check returns an error that names the first invariant of m that does not hold.
func check(m *Machine) error {
	for _, f := range []func(*Machine) error{checkQueue, checkRing, checkSlots, checkPeers} {
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

// checkQueue: the queue is one list, linked both ways, oldest ticket first.
func checkQueue(m *Machine) error {
	var prev flow.Handle
	n := 0
	for h := m.head; h != 0; n++ {
		s := m.slot(h)
		switch {
		case n == m.dirty:
			return fmt.Errorf("more than %d flows in the queue", m.dirty)
		case s.state != dirty:
			return fmt.Errorf("flow %d is in the queue in state %d", h, s.state)
		case s.prev != prev:
			return fmt.Errorf("flow %d: back to %d, want %d", h, s.prev, prev)
		case prev != 0 && !m.slot(prev).number.Before(s.number), m.ticket.Before(s.number):
			return fmt.Errorf("flow %d: ticket %d is out of order", h, s.number)
		}
		prev, h = h, s.next
	}
	if n != m.dirty || m.tail != prev {
		return fmt.Errorf("%d flows in the queue up to %d, want %d up to %d", n, prev, m.dirty, m.tail)
	}
	return nil
}

// checkRing: what is retained is bounded, and names flows that are in flight there.
func checkRing(m *Machine) error {
	kept := int(m.next - m.base)
	if kept > len(m.ring) || kept > m.cfg.ResendQueue {
		return fmt.Errorf("%d messages kept, ring of %d, limit %d", kept, len(m.ring), m.cfg.ResendQueue)
	}
	n := 0
	for k := m.base; k != m.next; k++ {
		e := m.at(k)
		if e.h == 0 {
			continue
		}
		n++
		if s := m.slot(e.h); s.state != inFlight || s.number != k || e.kind != 0 {
			return fmt.Errorf("number %d: flow %d in state %d at %d, kind %d", k, e.h, s.state, s.number, e.kind)
		}
	}
	if n != m.flying {
		return fmt.Errorf("%d flows in the ring, %d in flight", n, m.flying)
	}
	return nil
}

// checkSlots: every slot is where its state says, and the sums are those of the
// slots.
func checkSlots(m *Machine) error {
	var sums [wire.Buckets]uint64
	var count uint32
	var states [3]int
	for c, chunk := range m.slots {
		for i := range chunk {
			s, h := &chunk[i], flow.Handle(c*chunkLen+i)
			states[s.state]++
			if s.hash != 0 {
				sums[s.bucket] += s.hash
				count++
			}
			if s.state != dirty && s.prev|s.next != 0 {
				return fmt.Errorf("flow %d: linked in state %d", h, s.state)
			}
			if s.state == inFlight && m.at(s.number).h != h {
				return fmt.Errorf("flow %d: the ring has %d at number %d", h, m.at(s.number).h, s.number)
			}
		}
	}
	switch {
	case states[dirty] != m.dirty || states[inFlight] != m.flying:
		return fmt.Errorf("%d slots dirty, %d in flight, want %d and %d", states[dirty], states[inFlight], m.dirty, m.flying)
	case sums != m.sums:
		return fmt.Errorf("the sums are not those of the slots")
	case count != m.count:
		return fmt.Errorf("%d flows in the sums, want %d", count, m.count)
	case m.bulk.hold != 0 && m.bulk.stage != bulkWalking:
		return fmt.Errorf("flow %d held in stage %d", m.bulk.hold, m.bulk.stage)
	}
	return nil
}

// checkPeers: the number of peers and what is known of each is bounded and in order.
func checkPeers(m *Machine) error {
	if len(m.peers) > maxPeers || len(m.owners) > maxOwners {
		return fmt.Errorf("%d peers, %d owners", len(m.peers), len(m.owners))
	}
	sessions, names := map[uint64]bool{}, map[string]bool{}
	for _, p := range m.peers {
		if sessions[p.session] || p.met && names[p.name] {
			return fmt.Errorf("session %x or name %q twice", p.session, p.name)
		}
		sessions[p.session] = true
		names[p.name] = names[p.name] || p.met
		switch {
		case p.met != (p.owner != 0), int(p.owner) > len(m.owners), p.counted && !p.met:
			return fmt.Errorf("%s: met %v, counted %v, owner %d of %d", p.name, p.met, p.counted, p.owner, len(m.owners))
		case p.counted && uint32(p.covered+1-m.base) > uint32(m.next-m.base):
			return fmt.Errorf("%s: covered %d is not in %d-%d", p.name, p.covered, m.base-1, m.next-1)
		case len(p.missing) > maxMissing, len(p.lacks) > wire.MaxRanges:
			return fmt.Errorf("%s: %d ranges missing, %d lacking", p.name, len(p.missing), len(p.lacks))
		}
		for i, g := range p.missing {
			switch {
			case g.To.Before(g.From), !g.To.Before(p.expected), !g.From.Before(p.expected):
				return fmt.Errorf("%s: %d-%d missing, %d expected", p.name, g.From, g.To, p.expected)
			case i > 0 && !p.missing[i-1].To.Before(g.From), i > 0 && g.since < p.missing[i-1].since:
				return fmt.Errorf("%s: missing ranges %v are not ascending", p.name, p.missing)
			}
		}
	}
	return nil
}

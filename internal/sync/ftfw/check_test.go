package ftfw

import (
	"fmt"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// check verifies every invariant of m: a flow is in exactly one state, and the
// queue, the slots and the resend queue agree about it.
func check(m *Machine) error {
	n, last := 0, flow.Handle(0)
	for h := m.head; h != 0; h = m.slot(h).next {
		s := m.slot(h)
		switch {
		case s.state != dirty:
			return fmt.Errorf("flow %d is in the queue of dirty flows in state %d", h, s.state)
		case s.prev != last:
			return fmt.Errorf("flow %d follows %d in the queue and names %d", h, last, s.prev)
		}
		if last, n = h, n+1; n > m.dirty {
			return fmt.Errorf("the queue has more than %d flows", m.dirty)
		}
	}
	if n != m.dirty || last != m.tail {
		return fmt.Errorf("the queue has %d flows up to %d, the count is %d and the tail %d", n, last, m.dirty, m.tail)
	}
	if len(m.ring)&(len(m.ring)-1) != 0 || int(m.next-m.base) > len(m.ring) {
		return fmt.Errorf("%d numbers in a ring of %d", m.next-m.base, len(m.ring))
	}
	if len(m.ring) > max(1024, 4*m.cfg.ResendQueue) {
		return fmt.Errorf("ring of %d for a resend queue of %d", len(m.ring), m.cfg.ResendQueue)
	}
	n = 0
	for q := m.base; q != m.next; q++ {
		e := m.at(q)
		if e.h == 0 {
			continue
		}
		n++
		if s := m.slot(e.h); s.state != inFlight || s.seq != q {
			return fmt.Errorf("number %d names flow %d, which is in state %d with number %d", q, e.h, s.state, s.seq)
		}
		if e.ctl != 0 {
			return fmt.Errorf("number %d is a flow and a control message", q)
		}
	}
	if n != m.flying {
		return fmt.Errorf("%d flows in the resend queue, the count is %d", n, m.flying)
	}
	if m.flying > m.cfg.ResendQueue {
		return fmt.Errorf("%d flows in flight, the limit is %d", m.flying, m.cfg.ResendQueue)
	}
	// The slots name no flow that the queues do not know.
	count := [3]int{}
	for c, chunk := range m.slots {
		for i := range chunk {
			s := &chunk[i]
			count[s.state]++
			if s.state != dirty && (s.prev != 0 || s.next != 0) {
				return fmt.Errorf("flow %d has neighbours in state %d", c*chunkLen+i, s.state)
			}
		}
	}
	if count[dirty] != m.dirty || count[inFlight] != m.flying {
		return fmt.Errorf("slots say %d dirty and %d in flight, the counts %d and %d", count[dirty], count[inFlight], m.dirty, m.flying)
	}
	switch {
	case m.firstControl > len(m.controls) || len(m.controls) > maxControl:
		return fmt.Errorf("control %d of %d", m.firstControl, len(m.controls))
	case m.bulk.hold != 0 && !m.bulk.running:
		return fmt.Errorf("flow %d is held for a bulk update that does not run", m.bulk.hold)
	case m.pending && (!m.known || m.last.Before(m.ackFrom)):
		return fmt.Errorf("acknowledgement of %d to %d waits", m.ackFrom, m.last)
	case m.window < 1 || m.window > m.cfg.AckWindow:
		return fmt.Errorf("window %d of %d", m.window, m.cfg.AckWindow)
	case m.hello == helloDone && !m.started:
		return fmt.Errorf("the peer answered a HELLO that was never said")
	case m.resync.wanted && m.resync.waiting, m.resync.wanted && m.resync.open, m.resync.waiting && m.resync.open:
		return fmt.Errorf("a request in two states: %+v", m.resync)
	case m.anyAck && !m.acked.Before(m.next):
		return fmt.Errorf("acknowledged %d of %d", wire.Seq(m.acked), m.next)
	}
	return nil
}

package stream

import (
	"testing"

	"syncd/internal/wire"
)

// givenUpDuringBulk proves (5.7): of a bulk update that began before something was
// given up nobody knows what it has sent, so its end removes nothing.
func givenUpDuringBulk(t *testing.T) {
	for name, giveUp := range map[string]func(*hand, wire.Seq){
		"lost": func(h *hand, q wire.Seq) {
			h.receive(wire.AppendVoid(nil, q, h.n.session, true, nil))
		},
		"too much is missing": func(h *hand, q wire.Seq) {
			for i := range wire.Seq(maxMissing + 1) {
				h.data(q+2*i, 9, 1, true)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHand(t, Config{})
			h.meet()
			h.bulk(1)
			q := h.peer().expected
			h.data(q, 1, 1, false)
			h.receive(wire.AppendBulk(nil, wire.BulkBegin, q+1, 2, wire.AllBuckets))
			giveUp(h, q+3) // q+2 told of flow 1 again
			h.n.m.Applied(h.now)
			end := h.peer().expected
			h.receive(wire.AppendBulk(nil, wire.BulkEnd, end, 2, wire.AllBuckets))
			h.holds(1)
			if h.peer().wanted != wire.AllBuckets {
				t.Errorf("wants %x", h.peer().wanted)
			}

			// A beginning that is repeated counts: all flows come after it.
			h.receive(wire.AppendBulk(nil, wire.BulkBegin, end+1, 2, wire.AllBuckets))
			h.data(end+2, 2, 2, false)
			h.receive(wire.AppendBulk(nil, wire.BulkEnd, end+3, 2, wire.AllBuckets))
			h.holds(2)
		})
	}
}

// TestFullQueueHasNoDeadline: what is due but cannot leave does not keep the caller
// awake.
func TestFullQueueHasNoDeadline(t *testing.T) {
	h := newHand(t, Config{ResendQueue: 8})
	h.meet()
	m := h.n.m
	h.status(m.next-1, nil)
	h.sent()
	for port := range uint16(20) {
		h.n.set(port, false)
	}
	h.sent()
	if !m.queueFull() {
		t.Fatal("the queue is not full")
	}
	h.at(digestInterval + beginRepeat)
	m.bulk.stage, m.bulk.told = bulkBeginning, 1
	for range 5 { // HELLO and STATUS
		h.sent()
	}
	if next := m.Next(h.now); !h.now.Before(next) {
		t.Errorf("the deadline is %v ago, and there is nothing to send: %v", h.now.Sub(next), m.Pending(h.now))
	}
}

package alarm

import (
	"slices"
	"testing"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// shelf is a store of flows, alive (1) or dead (2) by handle, and an external
// cache that notes what is asked of it.
type shelf struct {
	flows    []byte
	released []flow.Handle
	expired  []expiry
}

type expiry struct {
	owner     uint8
	olderThan monotime.Time
}

func (s *shelf) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, _ monotime.Time) []byte {
	if s.flows[h] == 0 {
		panic("sent after its release")
	}
	fl := flowOf(h)
	t := wire.CTUpd
	switch {
	case s.flows[h] == 2:
		t = wire.CTDel
	case replace:
		t = wire.CTNew
	}
	return wire.AppendFlow(b, wire.Conntrackd, t, f, seq, &fl)
}

func flowOf(h flow.Handle) flow.Flow {
	f := flow.Flow{Has: flow.HasMark | flow.HasStatus, Mark: uint32(h)}
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: uint16(h), DstPort: 80}
	f.Reply, _ = f.Orig.Inverse()
	return f
}

func (s *shelf) Dead(h flow.Handle) bool { return s.flows[h] == 2 }
func (s *shelf) Release(h flow.Handle) {
	s.released = append(s.released, h)
	s.flows[h] = 0
}
func (s *shelf) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
	for h := from; int(h) < len(s.flows); h++ {
		if max--; max < 0 {
			return h
		}
		if s.flows[h] == 1 && !fn(h) {
			return (h + 1) % flow.Handle(len(s.flows))
		}
	}
	return 0
}
func (s *shelf) Expire(owner uint8, olderThan monotime.Time) {
	s.expired = append(s.expired, expiry{owner, olderThan})
}

// full returns a shelf with n flows that are alive.
func full(n int) *shelf {
	return &shelf{flows: append([]byte{0}, slices.Repeat([]byte{1}, n)...)}
}

// sender is what both machines have in common.
type sender interface {
	Pending(monotime.Time) bool
	AppendDatagram(monotime.Time, []byte, int) []byte
}

// send returns what m sends now.
func send(tb testing.TB, m sender, now monotime.Time) (out []wire.Message) {
	tb.Helper()
	r := wire.Reader{Sync: true}
	for k := 0; m.Pending(now); k++ {
		if k == 1000 {
			tb.Fatal("no end of sending")
		}
		b := m.AppendDatagram(now, nil, 1400)
		r.Reset(b)
		for msg := new(wire.Message); r.Next(msg); msg = new(wire.Message) {
			if msg.Fault != wire.FaultNone {
				tb.Fatalf("a message with a fault: %v", msg.Fault)
			}
			out = append(out, *msg)
		}
	}
	return out
}

package ftfw

import (
	"encoding/binary"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// FuzzMachine drives a machine with some flows by a program of single octets:
// datagrams of any content, flows that change, and time that passes. Nothing
// panics, the invariants hold after each step, and no step sends without end.
//
//	0x00 n, n octets   a datagram as it is
//	0x01 5 octets      a control message: flags, and its number and range near ours
//	0x02 3 octets      a flow: type, flags, number near the last
//	0x03 port, 0x04 port, 0x05 port   add or replace, update, destroy
//	0x06 n             n times 50 ms pass
//	0x07               a bulk update, a request, a flush, an eviction by the next octet
func FuzzMachine(f *testing.F) {
	f.Add([]byte{3, 1, 6, 1, 1, 0x50, 0, 0, 0, 0, 6, 30, 1, 0x08, 1, 0, 0, 9, 6, 20})
	f.Add([]byte{3, 1, 3, 2, 6, 1, 1, 0x50, 0, 0, 0, 0, 6, 1, 1, 0x04, 1, 0, 0, 9, 6, 2, 5, 1, 6, 1, 1, 0x08, 2, 0, 0, 99})
	f.Add([]byte{1, 0x60, 0, 0, 0, 0, 6, 1, 2, 0, 0, 1, 2, 0, 0, 5, 2, 2, 0x20, 200, 6, 250, 6, 250, 1, 0x02, 9, 0, 0, 0, 6, 1})
	f.Add([]byte{1, 0x50, 0, 0, 0, 0, 3, 1, 7, 0, 6, 1, 7, 0, 7, 1, 6, 200, 7, 2, 3, 1, 7, 3})
	f.Add(append([]byte{0, 8}, 0x1a, 0x30, 0, 8, 0x6b, 0, 0xb3, 0xb4))
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 2000 {
			return
		}
		n := newNode("A", Config{FirstSeq: 1<<32 - 20, AckWindow: 4, ResendQueue: 16, Resync: true})
		now := monotime.Time(1)
		next := func() byte {
			if len(program) == 0 {
				return 0
			}
			b := program[0]
			program = program[1:]
			return b
		}
		receive := func(b []byte) {
			var rd wire.Reader
			rd.Reset(b)
			var m wire.Message
			for rd.Next(&m) {
				if m.Fault == wire.FaultTruncated || m.Fault == wire.FaultSize || m.Fault == wire.FaultVersion {
					continue
				}
				n.m.Receive(now, &m)
				n.follow(now)
			}
		}
		near := func(s wire.Seq) wire.Seq { return s + wire.Seq(int8(next())) }
		for len(program) > 0 {
			switch op := next(); op & 7 {
			case 0:
				k := min(int(next()), len(program))
				receive(program[:k])
				program = program[k:]
			case 1:
				flags, seq := wire.Flags(next()), near(n.m.last)
				from := near(n.m.base)
				to := from + wire.Seq(binary.BigEndian.Uint16([]byte{next(), next()}))
				receive(wire.AppendControl(nil, flags, seq, from, to))
			case 2:
				fl := simWire(uint16(op), 1)
				receive(wire.AppendFlow(nil, wire.Conntrackd, wire.Type(next()%3), wire.Flags(next()), near(n.m.last), &fl))
			case 3:
				n.add(uint16(next()), 1)
			case 4, 5:
				p := uint16(next())
				h, ok := n.byPort[p]
				switch {
				case !ok || n.flows[h].dead:
				case op&7 == 4:
					n.update(p, 2)
				default:
					n.destroy(p)
				}
			case 6:
				for range next() {
					now = now.Add(50 * time.Millisecond)
					n.turn(now, func([]byte) {})
				}
			case 7:
				switch next() & 3 {
				case 0:
					n.m.Bulk()
				case 1:
					n.m.RequestResync()
				case 2:
					n.flush()
				case 3:
					n.evict()
				}
			}
			n.turn(now, func([]byte) {})
			if n.m.Pending(now) {
				t.Fatalf("still sending after 64 datagrams: %+v", n.m.Peer())
			}
			if err := n.invariants(now); err != nil {
				t.Fatal(err)
			}
		}
	})
}

package wire_test

import (
	"testing"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// An ordinary flow of a firewall with source NAT, as it is sent most often, and
// one with everything.
func plainMessage(t testing.TB) []byte { return byName(t, "tcp4-snat-real-upd") }

func fullMessage() []byte {
	v6 := make([]byte, 32)
	return message(0, 0, 1, attr(1, v6...), attrStatus, attrTCP, attrPort, attrState, attr(25, 7), attr(26, 7),
		attrTimeout, attr(7, 0, 0, 0, 1), attr(9, v6...), attr(10, 6), attr(11, 1, 1, 1, 1), attr(29, v6[:16]...),
		attr(30, v6[:16]...), attr(14, 1, 2), attr(15, 1, 2), attr(16, make([]byte, 24)...),
		attr(27, []byte("ftp\x00")...), attr(28, make([]byte, 16)...), attr(31, make([]byte, 12)...), attr(32, 0, 1))
}

func byName(t testing.TB, name string) []byte {
	for _, v := range vectors(t) {
		if v.Name == name {
			return octets(t, v.Hex)
		}
	}
	t.Fatalf("no vector %s", name)
	return nil
}

func TestAllocs(t *testing.T) {
	var (
		r       wire.Reader
		m       wire.Message
		buf     = make([]byte, 0, 4096)
		expect  = byName(t, "exp4-nat-new")
		streams = [][]byte{
			plainMessage(t), fullMessage(), expect, byName(t, "ack-nack-batch"),
			goodWith(attr(0x100, 1)), message(0, 0, 1), good(1)[:7],
		}
	)
	for i, b := range streams {
		if n := testing.AllocsPerRun(100, func() {
			r.Reset(b)
			for r.Next(&m) {
			}
		}); n != 0 {
			t.Errorf("stream %d: %v allocations", i, n)
		}
	}
	f, e := one(t, fullMessage()).Flow, one(t, expect).Expect
	if n := testing.AllocsPerRun(100, func() {
		buf = wire.AppendFlow(buf[:0], wire.Syncd, wire.CTNew, 0, 1, &f)
		buf = wire.AppendExpect(buf, wire.Syncd, wire.ExpNew, 0, 2, &e)
		buf = wire.AppendControl(buf, wire.FlagAck, 3, 1, 2)
	}); n != 0 {
		t.Errorf("append: %v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	run := func(name string, datagram []byte) {
		b.Run(name, func(b *testing.B) {
			var r wire.Reader
			var m wire.Message
			b.ReportAllocs()
			b.SetBytes(int64(len(datagram)))
			for b.Loop() {
				r.Reset(datagram)
				for r.Next(&m) {
					if m.Fault != wire.FaultNone {
						b.Fatal(m.Fault)
					}
				}
			}
		})
	}
	run("plain", plainMessage(b))
	run("full", fullMessage())
	run("expect", byName(b, "exp4-nat-new"))
	run("ack", byName(b, "ack-plain"))
}

func BenchmarkAppendFlow(b *testing.B) {
	run := func(name string, f flow.Flow) {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, wire.MaxFlowLen)
			b.ReportAllocs()
			for b.Loop() {
				buf = wire.AppendFlow(buf[:0], wire.Syncd, wire.CTUpd, 0, 1, &f)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
	run("plain", one(b, plainMessage(b)).Flow)
	run("full", one(b, fullMessage()).Flow)
}

func BenchmarkAppendExpect(b *testing.B) {
	e := one(b, byName(b, "exp4-nat-new")).Expect
	buf := make([]byte, 0, wire.MaxExpectLen)
	b.ReportAllocs()
	for b.Loop() {
		buf = wire.AppendExpect(buf[:0], wire.Syncd, wire.ExpNew, 0, 1, &e)
	}
}

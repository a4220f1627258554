package ctnetlink

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// recorded returns the messages of testdata/events.txt.
func recorded(t testing.TB) [][]byte { t.Helper(); return recordedIn(t, "testdata/events.txt") }

// recordedIn returns the messages of a file, which are those of a little-endian host.
func recordedIn(t testing.TB, file string) (msgs [][]byte) {
	t.Helper()
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the recorded messages are in little-endian host order")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		msg, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

func TestDecodeRecorded(t *testing.T) {
	msgs := recorded(t)
	var seen flow.Attrs
	var status uint32
	for _, msg := range msgs {
		ev := compareWithOracle(t, msg)
		seen |= ev.Flow.Has
		status |= ev.Flow.Status
		if f := &ev.Flow; f.Has&flow.HasMaster != 0 && f.Master.Family == 0 {
			t.Errorf("empty master: %+v", f)
		}
	}
	if missing := (flow.HasEventTime<<1 - 1) &^ seen &^ flow.HasSecctx; missing != 0 {
		t.Errorf("attributes %b are in no message", missing)
	}
	const want = flow.StatusSrcNAT | flow.StatusDstNAT | flow.StatusExpected | flow.StatusHelper | flow.StatusSeqAdjust
	if status&want != want {
		t.Errorf("status bits %#x are in no message", want&^status)
	}
}

// attr, nest and entry build messages for what no kernel here sends.
func attr(typ uint16, v ...byte) []byte {
	return pad(append(appendHeaderOf(nil, typ, len(v)), v...))
}

func nest(typ uint16, attrs ...[]byte) []byte {
	return attr(typ|attrNested, bytes.Join(attrs, nil)...)
}

var anyTuple = tuple(flow.TCP, "192.0.2.1", "192.0.2.2", 1, 2)

func entry(attrs ...[]byte) []byte {
	b := appendHeader(nil, msgNew, 0, 0, flow.IPv4)
	b = appendTuple(b, ctaTupleOrig, &anyTuple, 0)
	return finish(append(b, bytes.Join(attrs, nil)...), 0)
}

func TestDecodeCrafted(t *testing.T) {
	decode := func(msg []byte) (ev flow.Event) {
		t.Helper()
		if err := DecodeEvent(msg, &ev); err != nil {
			t.Fatal(err)
		}
		return ev
	}
	t.Run("secctx", func(t *testing.T) {
		f := decode(entry(nest(ctaSecctx, attr(ctaSecctxName, []byte("system_u:object_r:x\x00")...)))).Flow
		if got := cString(f.Secctx[:]); got != "system_u:object_r:x" || f.Has != flow.HasSecctx {
			t.Errorf("secctx %q, has %b", got, f.Has)
		}
		long := decode(entry(nest(ctaSecctx, attr(ctaSecctxName, bytes.Repeat([]byte{'x'}, 100)...)))).Flow
		if long.Secctx != [64]byte(bytes.Repeat([]byte{'x'}, 64)) {
			t.Errorf("long secctx is not cut: %q", long.Secctx)
		}
	})
	t.Run("helper name", func(t *testing.T) {
		f := decode(entry(nest(ctaHelp, attr(ctaHelpName, []byte("a-name-longer-than-15\x00")...)))).Flow
		if f.Helper.String() != "a-name-longer-t" {
			t.Errorf("helper %q", f.Helper)
		}
	})
	t.Run("offloaded", func(t *testing.T) {
		// As the kernel dumps what a flowtable forwards: no timeout, no protocol state.
		f := decode(entry(attr(ctaStatus, 0, 0, 0x41, 0x8e), attr(ctaMark, 0, 0, 0, 0), attr(ctaID, 1, 2, 3, 4))).Flow
		want := flow.StatusOffload | flow.StatusConfirmed | flow.StatusAssured | flow.StatusSeenReply | flow.StatusSrcNATDone | flow.StatusDstNATDone
		if f.Status != uint32(want) || f.Has != flow.HasStatus|flow.HasMark|flow.HasID {
			t.Errorf("status %#x, has %b", f.Status, f.Has)
		}
	})
	t.Run("reply missing", func(t *testing.T) {
		f := decode(entry(attr(ctaZone, 0, 9))).Flow
		want, _ := f.Orig.Inverse()
		if f.Has&flow.HasReply != 0 || f.Reply != want || f.Orig.Zone != 9 || f.Reply.Zone != 9 {
			t.Errorf("reply %+v, has %b", f.Reply, f.Has)
		}
	})
	t.Run("half a pair", func(t *testing.T) {
		f := decode(entry(nest(ctaProtoInfo, nest(ctaProtoInfoTCP,
			attr(ctaTCPState, 3), attr(ctaTCPWScaleOrig, 7), attr(ctaTCPFlagsRepl, 1, 0))))).Flow
		if f.Has != flow.HasTCP || f.TCPWScale != [2]uint8{} || f.TCPFlags != [2]uint8{} {
			t.Errorf("has %b, scales %v, flags %v", f.Has, f.TCPWScale, f.TCPFlags)
		}
	})
	t.Run("unusual order", func(t *testing.T) {
		for _, want := range []flow.Tuple{
			tuple(flow.UDP, "192.0.2.1", "192.0.2.9", 1000, 2000),
			tuple(flow.SCTP, "2001:db8::1", "2001:db8::9", 1000, 2000),
		} {
			ip := nest(ctaTupleIP, attr(ctaIPv6Dst, want.Dst[:]...), attr(ctaIPv6Src, want.Src[:]...))
			if want.Family == flow.IPv4 {
				ip = nest(ctaTupleIP, attr(ctaIPv4Dst, want.Dst[:4]...), attr(ctaIPv4Src, want.Src[:4]...))
			}
			proto := nest(ctaTupleProto, attr(ctaProtoDstPort, 7, 0xd0), attr(ctaProtoSrcPort, 3, 0xe8), attr(ctaProtoNum, want.Proto))
			want.Zone = 8
			zone := attr(ctaTupleZone, 0, 8)
			f := decode(entry(nest(ctaTupleReply, zone, proto, ip))).Flow
			diff(t, "unusual", f.Reply, want)
			usual := want
			f = decode(entry(appendTuple(nil, ctaTupleReply, &usual, 8))).Flow
			diff(t, "usual", f.Reply, want)
		}
	})
	t.Run("own port id", func(t *testing.T) {
		msg := entry()
		native.PutUint32(msg[12:], 0xfffff000)
		if ev := decode(msg); ev.PortID != 0xfffff000 {
			t.Errorf("port id %#x", ev.PortID)
		}
	})
	t.Run("unknown attributes", func(t *testing.T) {
		if f := decode(entry(attr(99, 1, 2, 3), attr(17, 1))).Flow; f.Has != 0 {
			t.Errorf("has %b", f.Has)
		}
	})
	t.Run("32-bit counters", func(t *testing.T) {
		f := decode(entry(nest(ctaCountersOrig, attr(ctaCountersPackets32, 0, 0, 0, 5), attr(ctaCountersBytes32, 0, 0, 1, 0)))).Flow
		if f.Counters[0] != (flow.Counter{Packets: 5, Bytes: 256}) {
			t.Errorf("counters %v", f.Counters)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	v6dst := attr(ctaIPv6Dst, make([]byte, 16)...)
	for name, msg := range map[string][]byte{
		"nothing":             nil,
		"no nfgenmsg":         entry()[:nlHeaderLen],
		"length beyond data":  entry()[:len(entry())-1],
		"length too short":    func() []byte { b := entry(); native.PutUint32(b, 19); return b }(),
		"done":                func() []byte { b := entry(); native.PutUint16(b[4:], unix.NLMSG_DONE); return b }(),
		"expectation":         func() []byte { b := entry(); native.PutUint16(b[4:], 0x200); return b }(),
		"get":                 func() []byte { b := entry(); native.PutUint16(b[4:], msgGet); return b }(),
		"no tuple":            finish(appendHeader(nil, msgNew, 0, 0, flow.IPv4), 0),
		"attribute too long":  entry([]byte{255, 0, ctaMark, 0}),
		"attribute too short": entry([]byte{3, 0, ctaMark, 0}),
		"mark of 2 octets":    entry(attr(ctaMark, 1, 2)),
		"zone of 1 octet":     entry(attr(ctaZone, 1)),
		"nest cut":            entry(nest(ctaProtoInfo, []byte{40, 0, ctaProtoInfoTCP, 0})),
		"state of 0 octets":   entry(nest(ctaProtoInfo, nest(ctaProtoInfoTCP, attr(ctaTCPState)))),
		"time of 4 octets":    entry(attr(ctaEventTime, 1, 2, 3, 4)),
		"master without ip":   entry(nest(ctaTupleMaster, nest(ctaTupleProto, attr(ctaProtoNum, 6)))),
		"two families":        entry(nest(ctaTupleReply, nest(ctaTupleIP, attr(ctaIPv4Src, 1, 2, 3, 4), v6dst))),
		"short address":       entry(nest(ctaTupleReply, nest(ctaTupleIP, attr(ctaIPv4Src, 1, 2, 3), attr(ctaIPv4Dst, 1, 2, 3, 4)))),
	} {
		var ev flow.Event
		if err := DecodeEvent(msg, &ev); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestLabelOrder follows nf_conntrack_labels: label n is bit n%w of the n/w-th
// unsigned long of w bits.
func TestLabelOrder(t *testing.T) {
	for _, label := range []int{0, 1, 7, 8, 31, 32, 63, 64, 100, 127} {
		want := [labelsLen]byte{}
		want[label/8] = 1 << (label % 8)

		var be64, be32 [labelsLen]byte
		binary.BigEndian.PutUint64(be64[label/64*8:], 1<<(label%64))
		binary.BigEndian.PutUint32(be32[label/32*4:], 1<<(label%32))
		le := want
		for word, got := range map[int]*[labelsLen]byte{8: &be64, 4: &be32, 1: &le} {
			kernel := *got
			swapLabels(got, word)
			if *got != want {
				t.Errorf("label %d, words of %d octets: %x, want %x", label, word, *got, want)
			}
			swapLabels(got, word)
			if *got != kernel {
				t.Errorf("label %d, words of %d octets: swap is not its own inverse", label, word)
			}
		}
	}
}

func TestDecodeAllocates(t *testing.T) {
	msgs := recorded(t)
	var ev flow.Event
	if n := testing.AllocsPerRun(10, func() {
		for _, msg := range msgs {
			if err := DecodeEvent(msg, &ev); err != nil {
				t.Fatal(err)
			}
			_ = DecodeEvent(msg[:len(msg)-1], &ev)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d messages", n, len(msgs))
	}
}

func FuzzDecodeEvent(f *testing.F) {
	for _, msg := range recorded(f) {
		f.Add(msg)
	}
	f.Add(entry(nest(ctaSecctx, attr(ctaSecctxName, 'x'))))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var a, b flow.Event
		errA := DecodeEvent(msg, &a)
		// What lies behind the message must not matter, nor what ev held before.
		longer := append(append(make([]byte, 0, len(msg)+64), msg...), bytes.Repeat([]byte{0xff}, 64)...)
		b.Flow.Has, b.Flow.Mark, b.Kind = ^flow.Attrs(0), 1, 9
		if n := len(msg); n >= 4 && int(native.Uint32(msg)) > n {
			longer = longer[:n:n]
		}
		errB := DecodeEvent(longer, &b)
		if errA != errB && (errA == nil || errB == nil) {
			t.Fatalf("errors %v and %v", errA, errB)
		}
		if errA == nil && a != b {
			t.Fatalf("two results:\n%+v\n%+v", a, b)
		}
		if errA == nil && a.Flow.Orig.Family == 0 {
			t.Fatal("no family")
		}
	})
}

func BenchmarkDecodeEvent(b *testing.B) {
	for name, pick := range map[string]func(*flow.Event) bool{
		"tcp-new":     func(ev *flow.Event) bool { return ev.Kind == flow.EventNew && ev.Flow.Orig.Proto == flow.TCP },
		"udp-new":     func(ev *flow.Event) bool { return ev.Kind == flow.EventNew && ev.Flow.Orig.Proto == flow.UDP },
		"tcp-destroy": func(ev *flow.Event) bool { return ev.Kind == flow.EventDestroy && ev.Flow.Orig.Proto == flow.TCP },
	} {
		var ev flow.Event
		for _, msg := range recorded(b) {
			if DecodeEvent(msg, &ev) != nil || !pick(&ev) {
				continue
			}
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(msg)))
				for b.Loop() {
					if err := DecodeEvent(msg, &ev); err != nil {
						b.Fatal(err)
					}
				}
			})
			break
		}
	}
}

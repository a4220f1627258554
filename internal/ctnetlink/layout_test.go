package ctnetlink

import (
	"bytes"
	"testing"

	"syncd/internal/flow"
)

// learnedFrom returns what is known after msg has come: it is learned from the first.
func learnedFrom(msg []byte) *layouts {
	k := new(layouts)
	_ = k.decode(msg, new(flow.Event))
	return k
}

// sameAsWalk compares what decode and DecodeEvent make of a message.
func sameAsWalk(t *testing.T, k *layouts, msg []byte) {
	t.Helper()
	was := bytes.Clone(msg)
	got := flow.Event{Kind: 9, PortID: 9, Expect: 9, Flow: flow.Flow{Has: ^flow.Attrs(0), Mark: 1, Counters: [2]flow.Counter{{Bytes: 1}}}}
	var want flow.Event
	errGot, errWant := k.decode(msg, &got), DecodeEvent(msg, &want)
	if errGot != errWant || errWant == nil && got != want {
		t.Fatalf("% x:\n%+v %v, walked\n%+v %v", msg, got, errGot, want, errWant)
	}
	if !bytes.Equal(msg, was) {
		t.Fatal("the message was written to")
	}
}

// TestLayouts: to a layout each bit of an event means what it means to the walk, and what
// is frequent has one.
func TestLayouts(t *testing.T) {
	known := map[flow.EventKind]map[uint8]int{flow.EventNew: {}, flow.EventUpdate: {}, flow.EventDestroy: {}}
	for _, msg := range recorded(t) {
		k := learnedFrom(msg)
		sameAsWalk(t, k, msg)
		var ev flow.Event
		if k.Find(msg, 0) != nil && DecodeEvent(msg, &ev) == nil {
			known[ev.Kind][ev.Flow.Orig.Proto]++
		}
		for bit := range 8 * len(msg) {
			c := bytes.Clone(msg)
			c[bit/8] ^= 1 << (bit % 8)
			sameAsWalk(t, k, c)
		}
		for n := range len(msg) {
			sameAsWalk(t, k, msg[:n])
		}
		// Whatever an event looks like, what is learned from it is right.
		for i := headerLen; i < len(msg); i++ {
			for _, v := range []byte{0, 1, 4, 5, 8, 0xff} {
				c := bytes.Clone(msg)
				c[i] = v
				k := learnedFrom(c)
				sameAsWalk(t, k, c)
				sameAsWalk(t, k, msg)
			}
		}
	}
	for kind, protos := range known {
		if protos[flow.TCP] == 0 || protos[flow.UDP] == 0 {
			t.Errorf("%v: known are, by protocol, %v", kind, protos)
		}
	}
}

// Halves of pairs, what comes twice, and what is longer than it should be.
func TestLayoutsOfOddities(t *testing.T) {
	reply := appendTuple(nil, ctaTupleReply, &anyTuple, 0)
	tcp := func(attrs ...[]byte) []byte { return nest(ctaProtoInfo, nest(ctaProtoInfoTCP, attrs...)) }
	for name, msg := range map[string][]byte{
		"one scale":        entry(reply, tcp(attr(ctaTCPState, 3), attr(ctaTCPWScaleOrig, 7))),
		"the other scale":  entry(reply, tcp(attr(ctaTCPState, 3), attr(ctaTCPWScaleRepl, 7))),
		"flags of one":     entry(reply, tcp(attr(ctaTCPFlagsOrig, 3, 0))),
		"a mark twice":     entry(reply, attr(ctaMark, 0, 0, 0, 1), attr(ctaMark, 0, 0, 0, 2)),
		"a reply twice":    entry(reply, appendTuple(nil, ctaTupleReply, &anyTuple, 7)),
		"a long mark":      entry(reply, attr(ctaMark, 0, 0, 0, 1, 2)),
		"no reply":         entry(attr(ctaMark, 0, 0, 0, 1)),
		"half a timestamp": entry(reply, nest(ctaTimestamp, attr(ctaTimestampStart, 0, 0, 0, 1, 0, 0, 0, 2))),
		"half the counts":  entry(reply, nest(ctaCountersRepl, attr(ctaCountersBytes, 0, 0, 0, 1, 0, 0, 0, 2))),
	} {
		t.Run(name, func(t *testing.T) {
			k := learnedFrom(msg)
			sameAsWalk(t, k, msg)
			for i := headerLen; i < len(msg); i++ {
				c := bytes.Clone(msg)
				c[i] ^= 1
				sameAsWalk(t, k, c)
			}
		})
	}
}

// What has no layout costs no allocation either, nor does learning.
func TestLayoutsDoNotAllocate(t *testing.T) {
	msgs := recorded(t)
	var ev flow.Event
	if n := testing.AllocsPerRun(20, func() {
		k := layouts{}
		for range 9 {
			for _, msg := range msgs {
				_ = k.decode(msg, &ev)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzLayouts: whatever was learned, an event is decoded as DecodeEvent does.
func FuzzLayouts(f *testing.F) {
	msgs := recorded(f)
	for i, msg := range msgs {
		f.Add(msg, msg)
		f.Add(msg, msgs[(i+1)%len(msgs)])
	}
	f.Fuzz(func(t *testing.T, b, c []byte) {
		k := learnedFrom(b)
		sameAsWalk(t, k, b)
		sameAsWalk(t, k, c)
		sameAsWalk(t, k, b)
	})
}

func BenchmarkDecodeKnown(b *testing.B) {
	var ev flow.Event
	for _, msg := range recorded(b) {
		if DecodeEvent(msg, &ev) != nil || ev.Kind != flow.EventUpdate || ev.Flow.Orig.Proto != flow.TCP {
			continue
		}
		k := learnedFrom(msg)
		b.Run("walk", func(b *testing.B) {
			for b.Loop() {
				_ = DecodeEvent(msg, &ev)
			}
		})
		b.Run("known", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if k.decode(msg, &ev) != nil {
					b.Fatal("not decoded")
				}
			}
		})
		break
	}
}

package ftfw

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// Each test here proves a sentence of the package documentation, or a fact about
// conntrackd that a peer relies on. The sentence is quoted.

// count returns how many of the messages sent so far begin with prefix.
func (x *exchange) count(prefix string) (n int) {
	for _, b := range x.sent {
		for _, m := range messages(b) {
			if strings.HasPrefix(m, prefix) {
				n++
			}
		}
	}
	return n
}

// "ACKs leave at least once a second, traffic or not."
func TestAckEverySecond(t *testing.T) {
	x := newExchange(t, Config{AckWindow: 1 << 20})
	x.establish(1)
	x.add(1, 1)
	for seq := wire.Seq(2); seq < 1002; seq++ {
		x.update(1, uint32(seq))
		x.flow(wire.CTUpd, 0, seq, 9)
		x.wait(10 * time.Millisecond)
	}
	if n := x.count("ACK"); n < 9 || n > 11 {
		t.Errorf("%d ACKs in ten seconds of traffic both ways", n)
	}
}

// "ACKWindow: messages between two ACKs of a busy stream."
func TestAckWindow(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10, AckWindow: 5})
	x.establish(100) // the first of five
	for seq := wire.Seq(101); seq <= 116; seq++ {
		x.flow(wire.CTNew, 0, seq, 1)
	}
	x.wait(0)
	x.want("ACK #12 101-104, ACK #13 105-109, ACK #14 110-114")
}

// "If a HELLO was received since the last message, set HELLO_BACK once and forget
// it. So HELLO_BACK rides on exactly one message; the other messages of the same
// datagram do not have it."
func TestHelloBackOnce(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.establish(1)
	for p := range uint16(3) {
		x.add(p, 1)
	}
	x.say(wire.FlagAlive|wire.FlagHello, 2, 0, 0)
	x.say(wire.FlagAlive|wire.FlagHello, 3, 0, 0)
	x.wait(500 * time.Millisecond)
	x.want("CT_NEW+HELLO_BACK #12 flow 0 mark 1, CT_NEW #13 flow 1 mark 1, CT_NEW #14 flow 2 mark 1")
}

// "No data leaves while our HELLO is unanswered, because the peer detects no loss
// in that phase, nor while the peer is silent. Flows stay dirty."
func TestNoDataUnheard(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.add(1, 1)
	x.wait(5 * time.Second)
	x.say(wire.FlagAlive|wire.FlagHello, 1, 0, 0)
	x.wait(5 * time.Second)
	if n := x.count("CT"); n != 0 || x.m.Peer().Dirty != 1 {
		t.Fatalf("%d data messages while helloing, %d dirty", n, x.m.Peer().Dirty)
	}
	if x.count("ALIVE+HELLO")+x.count("ACK+HELLO") < 9 {
		t.Errorf("HELLO is not on every message: %q", x.sent)
	}
	x.say(wire.FlagAlive|wire.FlagHelloBack, 2, 0, 0)
	x.wait(0)
	if x.count("CT_NEW #") != 1 {
		t.Fatal("no data after the HELLO was answered")
	}
	x.wait(10 * time.Second)
	x.sent = nil
	x.update(1, 2)
	x.add(2, 1)
	x.wait(30 * time.Second)
	if n := x.count("CT"); n != 0 || x.m.Peer().Dirty != 2 || !x.m.Peer().Silent {
		t.Fatalf("%d data messages to a silent peer: %+v", n, x.m.Peer())
	}
	x.say(wire.FlagAlive, 3, 0, 0)
	x.wait(0)
	if x.count("CT_UPD")+x.count("CT_NEW") != 2 || x.count("RESYNC") != 1 {
		t.Errorf("after the silence: %q", x.sent)
	}
}

// "When the resend queue is full, sending stops until room is acknowledged. Nothing
// is dropped from it."
func TestQueueLimit(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10, ResendQueue: 100})
	x.establish(1)
	for p := range uint16(1000) {
		x.add(p, 1)
	}
	got := map[string]bool{}
	seq := wire.Seq(2)
	for range 100 {
		x.wait(time.Millisecond)
		if p := x.m.Peer(); p.Unacked > 100 || p.Dirty+p.Unacked+len(got) != 1000 {
			t.Fatalf("%+v, %d delivered", p, len(got))
		}
		for _, b := range x.sent {
			for _, m := range messages(b) {
				if _, f, ok := strings.Cut(m, "flow "); ok {
					got[f] = true
				}
			}
		}
		x.sent = nil
		sent, _ := x.m.LastSeq()
		x.say(wire.FlagAck, seq, 10, sent)
		seq++
	}
	if len(got) != 1000 || x.m.Peer().Unacked != 0 {
		t.Errorf("%d flows delivered, %+v", len(got), x.m.Peer())
	}
}

// "A dead flow is released" by the ACK of its deletion, and by nothing else, once.
// Release panics in this test's store if the flow is unknown or not dead.
func TestRelease(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.establish(1)
	x.add(1, 1)
	x.wait(0)    // number 12
	x.destroy(1) // and what is acknowledged now is its life
	x.say(wire.FlagAck, 2, 12, 12)
	if x.released != 0 {
		t.Fatal("released before the deletion was sent")
	}
	x.wait(0) // number 13
	x.say(wire.FlagNack, 3, 13, 13)
	x.wait(0) // number 14
	x.say(wire.FlagAck, 4, 13, 13)
	if x.released != 0 {
		t.Fatal("released by the ACK of a message that was given up")
	}
	x.say(wire.FlagAck, 5, 14, 14)
	x.say(wire.FlagAck, 6, 0, 20)
	x.say(wire.FlagAck, 6, 0, 20)
	if x.released != 1 || len(x.byPort) != 0 {
		t.Errorf("released %d times, %d slots in use", x.released, len(x.byPort))
	}
}

// Forget, ForgetAll and Evict in every state of a flow: nothing of it leaves
// afterwards, and its handle can be used again.
func TestForget(t *testing.T) {
	ways := map[string]func(x *exchange, h flow.Handle) bool{
		"Forget":    func(x *exchange, h flow.Handle) bool { x.m.Forget(h); return true },
		"ForgetAll": func(x *exchange, h flow.Handle) bool { x.m.ForgetAll(); return true },
		"Evict": func(x *exchange, h flow.Handle) bool {
			if x.m.Evict() != 0 {
				x.t.Error("gave up a deletion although the peer is there")
			}
			x.m.silent = true
			got := x.m.Evict()
			x.m.silent = false
			if got == 0 && x.flows[h].dead && x.m.slot(h).state != clean {
				x.t.Error("nothing to evict, although a deletion waits")
			}
			if got != 0 && got != h {
				x.t.Errorf("evicted flow %d, which is alive", got)
			}
			return got == h
		},
	}
	states := map[string]func(x *exchange){
		"clean":          func(x *exchange) { x.wait(0); x.say(wire.FlagAck, 2, 0, 100) },
		"dirty":          func(x *exchange) {},
		"in flight":      func(x *exchange) { x.wait(0) },
		"dead dirty":     func(x *exchange) { x.wait(0); x.say(wire.FlagAck, 2, 0, 100); x.destroy(5) },
		"dead in flight": func(x *exchange) { x.wait(0); x.destroy(5); x.wait(0) },
		"dirty again":    func(x *exchange) { x.wait(0); x.say(wire.FlagNack, 2, 0, 100) },
		"held by a bulk update": func(x *exchange) {
			x.wait(0)
			x.say(wire.FlagAck, 2, 0, 100)
			x.m.Bulk()
			x.m.nextBulk() // 4
			x.m.bulk.hold = 0
			x.m.nextBulk()
		},
	}
	for way, forget := range ways {
		for state, bring := range states {
			t.Run(fmt.Sprintf("%s %s", way, state), func(t *testing.T) {
				x := newExchange(t, Config{FirstSeq: 10})
				x.establish(1)
				x.add(4, 1)
				x.add(5, 1)
				bring(x)
				h := x.byPort[5]
				if !forget(x, h) {
					return // Evict takes only the dead
				}
				if err := check(x.m); err != nil {
					t.Fatal(err)
				}
				x.sent = nil
				x.remove(h) // AppendFlow panics from now on
				x.wait(time.Second)
				x.say(wire.FlagNack, 3, 0, 100)
				x.wait(time.Second)
				x.say(wire.FlagAck, 4, 0, 100)
				x.add(6, 1)
				if x.byPort[6] != h {
					t.Fatal("the handle is not used again")
				}
				x.sent = nil
				x.wait(time.Second)
				if x.count("CT_NEW") == 0 || x.released != 0 {
					t.Errorf("the new flow: %q, %d released", x.sent, x.released)
				}
			})
		}
	}
}

// "Never has more than bulkInFlight messages unacknowledged": the bulk update goes
// on with ACKs, and a little without.
func TestBulkPace(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.establish(1)
	for p := range uint16(4000) {
		x.add(p, 1)
	}
	sent := func() wire.Seq { s, _ := x.m.LastSeq(); return s }
	x.wait(100 * time.Millisecond)
	x.say(wire.FlagAck, 2, 0, sent())
	x.m.Bulk()
	x.turn(x.now, func([]byte) {})
	if n := x.m.Peer().Unacked; n != bulkInFlight {
		t.Fatalf("%d in flight", n)
	}
	x.wait(210 * time.Millisecond)
	if n := x.m.Peer().Unacked; n < bulkInFlight+4*bulkTrickle || n > bulkInFlight+5*bulkTrickle {
		t.Errorf("%d in flight after 0.2 s without ACK", n)
	}
	for seq := wire.Seq(3); x.m.Peer().BulkRunning || x.m.Peer().Unacked > 0; seq++ {
		x.say(wire.FlagAck, seq, 0, sent())
		x.wait(time.Millisecond)
	}
	if n := x.m.Stats.BulkFlows; n != 4000 {
		t.Errorf("the bulk update sent %d flows", n)
	}
}

// "A second request while one is running extends it to a full round from where it
// is": every flow leaves after the last request, none three times.
func TestBulkExtended(t *testing.T) {
	for at := range 12 {
		x := newExchange(t, Config{FirstSeq: 10, ResendQueue: 10})
		x.establish(1)
		const flows = 100
		for p := range uint16(flows) {
			x.add(p, 1)
		}
		seq := wire.Seq(2)
		ack := func() {
			sent, _ := x.m.LastSeq()
			x.say(wire.FlagAck, seq, 0, sent)
			seq++
			x.wait(time.Millisecond)
		}
		for x.m.Peer().Dirty > 0 || x.m.Peer().Unacked > 0 {
			ack()
		}
		x.m.Bulk()
		for range at {
			ack()
		}
		x.sent = nil
		x.m.Bulk()
		for k := 0; x.m.Peer().BulkRunning || x.m.Peer().Unacked > 0; k++ {
			if k > 1000 {
				t.Fatal("no end")
			}
			ack()
		}
		times := map[string]int{}
		for _, b := range x.sent {
			for _, m := range messages(b) {
				if _, f, ok := strings.Cut(m, "flow "); ok {
					times[f]++
				}
			}
		}
		for f, n := range times {
			if n > 2 {
				t.Errorf("asked again after %d ACKs: flow %s left %d times", at, f, n)
			}
		}
		if len(times) != flows {
			t.Errorf("asked again after %d ACKs: %d of %d flows left since", at, len(times), flows)
		}
	}
}

// "Bad leaves the machine as it was, except that a data message whose header is
// good and whose attributes did not parse takes its number with it."
func TestBad(t *testing.T) {
	x := newExchange(t, Config{})
	x.establish(1)
	before := fmt.Sprintf("%+v", x.m.Peer())
	for _, m := range []wire.Message{
		{Type: 7, Seq: 2},
		{Type: wire.Ctl, Seq: 2},
		{Type: wire.Ctl, Flags: wire.FlagAck, Seq: 2, From: 9, To: 8},
		{Type: wire.CTNew, Flags: wire.FlagAck, Seq: 2},
		{Type: wire.CTNew, Seq: 2, Fault: wire.FaultHeader},
	} {
		if v := x.m.Receive(x.now.Add(time.Second), &m); v != wire.Bad {
			t.Errorf("%+v: verdict %d", m, v)
		}
	}
	if after := fmt.Sprintf("%+v", x.m.Peer()); after != before || x.m.Stats.BadHeader != 5 {
		t.Errorf("the machine changed from %s to %s", before, after)
	}
	m := wire.Message{Type: wire.CTNew, Seq: 2, Fault: wire.FaultPayload}
	if v := x.m.Receive(x.now, &m); v != wire.Bad || x.m.last != 2 {
		t.Errorf("verdict %d, last number %d", v, x.m.last)
	}
}

// A message of a range that is not the peer's to speak of changes nothing: ACK and
// NACK of numbers never used, or used long ago.
func TestForeignRanges(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 1<<32 - 3}) // wraps
	x.establish(1)
	for p := range uint16(5) {
		x.add(p, 1)
	}
	x.wait(0) // numbers -1 to 3
	for i, r := range [][2]wire.Seq{{4, 1000}, {1 << 31, 1<<31 + 10}, {1<<32 - 1000, 1<<32 - 2}, {100, 1<<31 + 50}} {
		x.say(wire.FlagAck, wire.Seq(2+2*i), r[0], r[1])
		x.say(wire.FlagNack, wire.Seq(3+2*i), r[0], r[1])
	}
	if p := x.m.Peer(); p.Unacked != 5 || p.Dirty != 0 {
		t.Errorf("%+v", p)
	}
	x.say(wire.FlagAck, 10, 1<<32-1, 1)
	if p := x.m.Peer(); p.Unacked != 2 {
		t.Errorf("%+v", p)
	}
}

// "The bulk update that follows counts as over only when the peer has acknowledged
// a message since." Both directions are cut, and one heals: B hears A, and A never
// hears that B asks for its state. Nothing that B holds may be thrown away.
func TestOneWay(t *testing.T) {
	w, a, b := pair(t, Config{Resync: true})
	for p := range uint16(100) {
		a.add(p, 1)
	}
	w.settle(15 * time.Second)
	w.ends[0].cut, w.ends[1].cut = true, true
	w.settle(15 * time.Second)
	w.ends[0].cut = false
	w.settle(120 * time.Second)
	if len(b.external) != 100 || b.swept != 0 {
		t.Errorf("B holds %d flows and has thrown %d away, %+v", len(b.external), b.swept, b.m.resync)
	}
	w.ends[1].cut = false
	w.settle(60 * time.Second)
	if missing, stale := differences(a, b); len(missing)+len(stale) != 0 || b.doubt {
		t.Errorf("after all is healed B lacks %d flows, holds %d too many, in doubt: %v", len(missing), len(stale), b.doubt)
	}
}

// "What stays unacknowledged while later numbers are acknowledged is sent again
// after a while": a NACK too, or what it asks for would never come.
func TestRetried(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.establish(1)
	x.flow(wire.CTNew, 0, 5, 1)
	x.add(1, 1)
	x.wait(0)
	x.want("NACK #12 2-4, CT_NEW #13 flow 1 mark 1")
	for seq := wire.Seq(6); seq < 16; seq++ {
		x.wait(time.Second)
		sent, _ := x.m.LastSeq()
		x.say(wire.FlagAck, seq, 14, sent)
		if x.m.acked != sent {
			t.Fatalf("acknowledged %d, the machine believes %d", sent, x.m.acked)
		}
	}
	if x.count("NACK") != 1 || x.count("CT_NEW") != 1 || x.m.Stats.Retried != 1 {
		t.Errorf("%+v", x.m.Stats)
	}
}

// "Every entry of the external cache comes into doubt when the peer's whole state is
// found to be needed, and when the request leaves": what was heard while either side
// said HELLO confirms nothing.
func TestRequests(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10, Resync: true})
	needed := x.m.Requests()
	x.wait(0)
	x.flow(wire.CTNew, wire.FlagHello, 1, 9)
	if x.m.Requests() != needed {
		t.Error("in doubt again")
	}
	x.say(wire.FlagAlive|wire.FlagHelloBack, 2, 0, 0)
	x.wait(0)
	if x.m.Stats.ResyncSent != 1 || x.m.Requests() != needed+1 {
		t.Errorf("%d requests sent, %d times in doubt since", x.m.Stats.ResyncSent, x.m.Requests()-needed)
	}
}

// A bulk update that waits for the last of the resend queue waits for ACKs, not for
// a time: Next names no time that has passed, which wait checks.
func TestBulkWaits(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10, ResendQueue: bulkInFlight + bulkTrickle + 10})
	x.establish(1)
	for p := range uint16(bulkInFlight + 20) {
		x.add(p, 1)
	}
	x.wait(100 * time.Millisecond)
	x.m.Bulk()
	x.wait(3 * time.Second)
	if p := x.m.Peer(); !p.BulkRunning || p.Unacked < bulkInFlight {
		t.Errorf("%+v", p)
	}
}

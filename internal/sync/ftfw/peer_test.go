package ftfw

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// exchange is one node, A, and a scripted peer in the test's hand.
type exchange struct {
	t *testing.T
	*node
	now  monotime.Time // starts at 1 ns: 0 is never
	sent [][]byte      // datagrams of A that the script has not looked at
}

func newExchange(t *testing.T, cfg Config) *exchange {
	return &exchange{t: t, node: newNode("A", cfg), now: 1}
}

// establish finishes the HELLO of A. It takes one message of the script, with
// number seq, and two of A: an ALIVE and the ACK of seq.
func (x *exchange) establish(seq wire.Seq) {
	x.t.Helper()
	x.wait(0)
	x.say(wire.FlagAlive|wire.FlagHelloBack, seq, 0, 0)
	x.wait(time.Second)
	if !x.m.Peer().HelloDone || x.m.pending {
		x.t.Fatalf("not established: %+v", x.m.Peer())
	}
	x.sent = nil
}

func (x *exchange) take(b []byte) {
	x.t.Helper()
	if err := x.receive(x.now, b); err != nil {
		x.t.Fatal(err)
	}
}

// say gives A a control message, flow a message about a flow.
func (x *exchange) say(f wire.Flags, seq, from, to wire.Seq) {
	x.t.Helper()
	x.take(wire.AppendControl(nil, f, seq, from, to))
}

func (x *exchange) flow(t wire.Type, f wire.Flags, seq wire.Seq, port uint16) {
	x.t.Helper()
	fl := simWire(port, 1)
	x.take(wire.AppendFlow(nil, wire.Conntrackd, t, f, seq, &fl))
}

// wait lets the time pass from deadline to deadline and collects what A sends.
func (x *exchange) wait(d time.Duration) {
	x.t.Helper()
	for stop := x.now.Add(d); ; {
		x.turn(x.now, func(b []byte) { x.sent = append(x.sent, b) })
		if err := x.invariants(x.now); err != nil {
			x.t.Fatal(err)
		}
		next := min(stop, x.next(x.now))
		if x.now >= stop {
			return
		}
		x.now = max(next, x.now+1)
	}
}

// want compares what A has sent since the last look: one string for each datagram,
// its messages separated by commas.
func (x *exchange) want(datagrams ...string) {
	x.t.Helper()
	var got []string
	for _, b := range x.sent {
		got = append(got, strings.Join(messages(b), ", "))
	}
	x.sent = nil
	if !slices.Equal(got, datagrams) {
		x.t.Fatalf("A sent\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(datagrams, "\n  "))
	}
}

func messages(b []byte) (list []string) {
	var rd wire.Reader
	rd.Reset(b)
	var m wire.Message
	for rd.Next(&m) {
		list = append(list, describe(&m))
	}
	return list
}

// The scenarios below are those that were recorded with a real conntrackd in the
// place of A.

// Loss detection by a fresh node. The window is 300.
func TestRecordedLoss(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 50})
	x.wait(0)
	x.want("ALIVE+HELLO #50")
	x.flow(wire.CTNew, 0, 1000, 1) // accepted whatever its number
	x.wait(time.Second)
	x.want("ACK+HELLO #51 1000-1000")
	x.flow(wire.CTNew, 0, 1001, 2)
	x.flow(wire.CTNew, 0, 1003, 4) // delivered at once
	x.wait(0)
	x.want("ACK+HELLO #52 1001-1001, NACK+HELLO #53 1002-1002")
	x.flow(wire.CTNew, 0, 1002, 3) // dropped
	x.flow(wire.CTNew, 0, 1003, 4) // dropped
	x.flow(wire.CTNew, 0, 1014, 5)
	x.wait(0)
	x.want("ACK+HELLO #54 1003-1003, NACK+HELLO #55 1004-1013")
	if got := ports(x.foreign()); !slices.Equal(got, []uint16{1, 2, 4, 5}) {
		t.Errorf("delivered flows %v", got)
	}
	// conntrackd counts two more at each loss.
	if s := x.m.Stats; s.Before != 2 || s.Missing != 1+10 || s.Gaps != 2 {
		t.Errorf("%+v", s)
	}
	x.say(wire.FlagAlive|wire.FlagHello, 5, 0, 0)
	x.wait(time.Second)
	x.want("ACK+HELLO+HELLO_BACK #56 5-5")
	x.say(wire.FlagAlive, 6, 0, 0)
	x.say(wire.FlagAlive|wire.FlagHello, 4, 0, 0)
	x.wait(time.Second)
	x.want("ACK+HELLO+HELLO_BACK #57 4-4")
}

// The resend queue.
func TestRecordedResendQueue(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 98})
	x.establish(7)
	x.add(1, 1)
	x.add(2, 1)
	x.add(3, 1)
	x.wait(0)
	x.want("CT_NEW #100 flow 1 mark 1, CT_NEW #101 flow 2 mark 1, CT_NEW #102 flow 3 mark 1")
	x.say(wire.FlagNack, 8, 101, 101)
	x.wait(0)
	x.want("CT_NEW #103 flow 2 mark 1")
	x.update(3, 2)
	x.destroy(1)
	x.wait(0)
	x.want("CT_UPD #104 flow 3 mark 2, CT_DEL #105 flow 1 mark 1")
	if len(x.byPort) != 3 || len(x.own()) != 2 {
		t.Errorf("%d objects, %d alive", len(x.byPort), len(x.own()))
	}
	x.say(wire.FlagAck, 9, 100, 150)
	if len(x.byPort) != 2 || x.m.Peer().Unacked != 0 {
		t.Errorf("%d objects, %d in flight", len(x.byPort), x.m.Peer().Unacked)
	}
	x.say(wire.FlagResync, 10, 0, 0)
	x.wait(0)
	x.want("CT_NEW #106 flow 2 mark 1, CT_UPD #107 flow 3 mark 2")
	x.say(wire.FlagNack, 11, 50, 200)
	x.wait(0)
	// conntrackd sends these in the order of its queue. Here control messages go
	// first, because a peer may be waiting for them.
	x.want("ACK #108 7-7, CT_NEW #109 flow 2 mark 1, CT_UPD #110 flow 3 mark 2")
	// Stricter: "HELLO of the peer makes everything in flight dirty again and starts
	// a bulk update, so a peer that restarts gets our state unasked." conntrackd
	// forgets what is in flight.
	x.say(wire.FlagAlive|wire.FlagHello, 3, 0, 0)
	x.wait(0)
	x.want("CT_NEW+HELLO_BACK #111 flow 2 mark 1, CT_UPD #112 flow 3 mark 2")
}

// One message is to be acknowledged while A sends all the time. Stricter: "ACKs
// leave at least once a second, traffic or not." conntrackd acknowledges only when
// it has been quiet for a second.
func TestRecordedAckStarvation(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.establish(1)
	x.add(1, 0)
	x.wait(0)
	x.flow(wire.CTNew, 0, 2, 9)
	x.sent = nil
	for mark := range uint32(12) {
		x.update(1, mark+1)
		x.wait(440 * time.Millisecond)
	}
	acks := 0
	for _, b := range x.sent {
		for _, m := range messages(b) {
			if strings.HasPrefix(m, "ACK") {
				acks++
			}
		}
	}
	if acks != 1 {
		t.Errorf("%d ACKs for one message", acks)
	}
}

// The window of a fast stream: 700 messages after two that the timer has
// acknowledged already, which still count.
func TestRecordedWindow(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.wait(0)
	x.say(wire.FlagAlive|wire.FlagHelloBack, 697, 0, 0)
	x.wait(time.Second)
	x.say(wire.FlagAlive, 698, 0, 0)
	x.wait(time.Second)
	x.sent = nil
	for i := range 700 {
		x.flow(wire.CTNew, 0, wire.Seq(699+i), uint16(i))
	}
	x.wait(time.Second)
	x.want("ACK #13 699-996, ACK #14 997-1296", "ACK #15 1297-1398")
}

// Two senders, interleaved after the HELLO of both: only the later one is heard.
func TestRecordedTwoSenders(t *testing.T) {
	x := newExchange(t, Config{})
	x.establish(1)
	x.say(wire.FlagAlive|wire.FlagHello, 100001, 0, 0)
	x.say(wire.FlagAlive|wire.FlagHello, 500001, 0, 0)
	for i := range 3 {
		x.flow(wire.CTNew, 0, wire.Seq(100002+i), uint16(1+i))
		x.flow(wire.CTNew, 0, wire.Seq(500002+i), uint16(11+i))
	}
	if got := ports(x.foreign()); !slices.Equal(got, []uint16{11, 12, 13}) || x.m.Stats.Before != 3 {
		t.Errorf("heard %v, %d messages before their time", got, x.m.Stats.Before)
	}
}

// A fresh pair, both of which want the state of the other. A is up with 3 flows.
func TestRecordedFreshPair(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10, Resync: true})
	for p := range uint16(3) {
		x.add(p+1, 1)
	}
	x.wait(500 * time.Millisecond)
	x.want("ALIVE+HELLO #10")
	x.say(wire.FlagResync|wire.FlagHello, 70, 0, 0)
	x.wait(500 * time.Millisecond)
	// Stricter: "No data leaves while our HELLO is unanswered, because the peer
	// detects no loss in that phase." conntrackd answers with its flows, with HELLO.
	x.want("ACK+HELLO+HELLO_BACK #11 70-70")
	x.say(wire.FlagAck|wire.FlagHelloBack, 71, 11, 11)
	x.wait(0)
	// "A request for the peer's state (RESYNC) leaves only when both sides have
	// finished their HELLO." conntrackd's is its first message.
	x.want("RESYNC #12, CT_NEW #13 flow 1 mark 1, CT_NEW #14 flow 2 mark 1, CT_NEW #15 flow 3 mark 1")
	x.say(wire.FlagAck, 72, 12, 15)
	x.wait(1000 * time.Millisecond)
	x.want("ACK #16 71-72")
	for seq := wire.Seq(73); seq < 78; seq++ { // then one ACK each way per second
		x.say(wire.FlagAck, seq, seq-57, seq-57)
		x.wait(time.Second)
		x.want(describe(&wire.Message{Type: wire.Ctl, Flags: wire.FlagAck, Seq: seq - 56, From: seq, To: seq}))
	}
}

// The peer is stopped and started again: it gets the state of A with HELLO_BACK on
// the first message only, and no HELLO.
func TestRecordedRestart(t *testing.T) {
	x := newExchange(t, Config{FirstSeq: 10})
	x.add(1, 1)
	x.add(2, 1)
	x.establish(70)
	x.say(wire.FlagAck, 71, 0, 20)
	x.wait(3 * time.Second)
	x.sent = nil
	x.say(wire.FlagResync|wire.FlagHello, 500, 0, 0)
	x.wait(0)
	x.want("CT_NEW+HELLO_BACK #17 flow 1 mark 1, CT_NEW #18 flow 2 mark 1")
}

// TestRecordedOctets drives machines with the numbers of recorded datagrams of real
// conntrackds and compares the octets.
func TestRecordedOctets(t *testing.T) {
	file, err := os.ReadFile("../../wire/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct{ Name, Hex string }
	if err := json.Unmarshal(file, &vectors); err != nil {
		t.Fatal(err)
	}
	recorded := func(name string) []byte {
		t.Helper()
		for _, v := range vectors {
			if v.Name == name {
				b, err := hex.DecodeString(v.Hex)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
		t.Fatalf("no vector %s", name)
		return nil
	}
	same := func(x *exchange, name string) []byte {
		t.Helper()
		if want := recorded(name); len(x.sent) != 1 || !bytes.Equal(x.sent[0], want) {
			t.Fatalf("%s: sent %x, want %x", name, x.sent, want)
		}
		b := x.sent[0]
		x.sent = nil
		return b
	}

	// A fresh pair, from its first message to its steady state.
	const n = 0x6b00b3b4
	a, b := newExchange(t, Config{FirstSeq: n}), newExchange(t, Config{FirstSeq: n})
	b.now = monotime.Time(5 * time.Second)
	a.wait(0)
	b.take(same(a, "hello-alive"))
	b.wait(0)
	a.take(same(b, "ack-hello-helloback"))
	a.wait(time.Second)
	b.take(same(a, "ack-helloback"))
	b.wait(time.Second)
	same(b, "ack-plain")

	// Seven messages, acknowledged by the timer.
	a = newExchange(t, Config{FirstSeq: n + 1})
	a.establish(n + 4)
	for seq := range wire.Seq(7) {
		a.say(wire.FlagAlive, n+5+seq, 0, 0)
	}
	a.wait(time.Second)
	same(a, "ack-range")

	// Losses, before any HELLO_BACK.
	a = newExchange(t, Config{FirstSeq: 0x6b00b991})
	a.wait(0)
	a.flow(wire.CTNew, 0, 1001, 1)
	a.wait(time.Second)
	a.sent = nil
	a.flow(wire.CTNew, 0, 1003, 1)
	a.wait(0)
	same(a, "nack-single")
	a.flow(wire.CTNew, 0, 1014, 1)
	a.wait(0)
	same(a, "ack-nack-batch")

	// The RESYNC of conntrackd says HELLO. Ours leaves later, and is otherwise the
	// same.
	want := recorded("resync-hello")
	want[1] &^= byte(wire.FlagHello)
	a = newExchange(t, Config{FirstSeq: 0x6b00b7c4 - 2, Resync: true})
	a.wait(0)
	a.say(wire.FlagAlive|wire.FlagHelloBack, 7, 0, 0)
	a.sent = nil
	a.m.take(sent{}) // spends a number
	a.wait(0)
	if len(a.sent) != 1 || !bytes.Equal(a.sent[0], want) {
		t.Errorf("RESYNC %x, want %x", a.sent, want)
	}
}

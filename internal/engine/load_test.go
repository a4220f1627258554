package engine

import (
	"encoding/binary"
	"testing"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// lives are the messages, or events, of whole lives of TCP connections beside flows
// that stand: what bench-peer makes, without the kernel and without sealing.
const (
	livesStanding = 200_000
	livesAtOnce   = 20_000
)

// liveFlow is the flow of a life at a stage, or one that stands if stage is below 0.
func liveFlow(n, stage int) (f flow.Flow) {
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: 1024 + uint16(n&0x3fff), DstPort: 443}
	binary.BigEndian.PutUint32(f.Orig.Src[:], 0xc6120000+uint32(n>>14))
	copy(f.Orig.Dst[:], []byte{203, 0, 113, 1})
	states := [...]uint8{flow.TCPSynSent, flow.TCPSynRecv, flow.TCPEstablished, flow.TCPFinWait, flow.TCPCloseWait, flow.TCPLastAck, flow.TCPTimeWait, flow.TCPTimeWait}
	f.Status = flow.StatusConfirmed | flow.StatusSeenReply | flow.StatusAssured
	f.TCPState = flow.TCPEstablished
	if stage >= 0 {
		f.Orig.Dst[3] = 2
		f.TCPState = states[stage]
		f.Status = [...]uint32{flow.StatusConfirmed, flow.StatusConfirmed | flow.StatusSeenReply, f.Status}[min(stage, 2)]
	}
	f.Reply, _ = f.Orig.Inverse()
	f.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale | flow.HasID
	f.Timeout, f.ID = 3600, uint32(n+1)
	f.TCPFlags, f.TCPWScale = [2]uint8{3, 3}, [2]uint8{7, 7}
	return f
}

func roomForLives(cfg *Config) {
	cfg.InternalLimit, cfg.ExternalLimit = 2*(livesStanding+livesAtOnce), 2*(livesStanding+livesAtOnce)
}

const stagesOfLife = 8

// eachStage calls do with every stage of every life, as they follow each other when
// livesAtOnce are at different stages.
func eachStage(do func(life, stage int)) {
	for turn := range stagesOfLife {
		for life := range livesAtOnce {
			do(life, (turn+life)%stagesOfLife)
		}
	}
}

// BenchmarkBackupOfLives is the way of a message from the plain datagram to the
// external cache while connections come and go beside many that stand.
func BenchmarkBackupOfLives(b *testing.B) {
	d := newDialogue(b, roomForLives)
	d.rd.Seed = peerSession
	var ins [inboxes]*inbox
	for i := range ins {
		ins[i] = &inbox{from: d.in.from}
		for k := range ins[i].session {
			ins[i].session[k] = peerSession
		}
	}
	turn := 0
	bases := make([]wire.Seq, livesStanding+livesAtOnce+1) // by handle
	// number makes a message the next one of the stream.
	number := func(msg []byte) {
		be := binary.BigEndian
		be.PutUint32(msg[4:], uint32(d.seq))
		switch n := int(be.Uint16(msg[2:])); wire.Type(msg[0] & 0xf) {
		case wire.CTState, wire.CTEnd:
			be.PutUint32(msg[12:], uint32(bases[be.Uint32(msg[8:])]))
		default:
			bases[be.Uint32(msg[n-16:])] = d.seq
		}
		d.seq++
	}
	// take reads some datagrams, and lets the loop take them.
	take := func(datagrams ...[]byte) {
		in := ins[turn%inboxes]
		full := func() {
			d.takeMessages(in)
			turn++
			in = ins[turn%inboxes]
			in.n = 0
		}
		in.n = 0
		for _, plain := range datagrams {
			d.opened = append(d.opened[:0], plain...)
			for at := 0; at < len(d.opened); at += int(binary.BigEndian.Uint16(d.opened[at+2:])) {
				number(d.opened[at:])
			}
			for d.rd.Reset(d.opened); d.rd.Next(&in.msgs[in.n]); {
				if in.n++; in.n == len(in.msgs) {
					full()
				}
			}
		}
		full()
	}
	var datagrams [][]byte
	var datagram []byte
	add := func(t wire.Type, handle int, f *flow.Flow) {
		var msg []byte
		switch t {
		case wire.CTState:
			msg = wire.AppendCTState(nil, 0, uint32(handle), 0, f.State())
		case wire.CTEnd:
			msg = wire.AppendCTEnd(nil, 0, uint32(handle), 0)
		default:
			msg = wire.AppendFlow(nil, wire.Syncd, t, 0, 0, f)
			wire.SetHandle(msg, uint32(handle))
		}
		if len(datagram)+len(msg) > 1400 {
			datagrams = append(datagrams, datagram)
			datagram = nil
		}
		datagram = append(datagram, msg...)
	}
	for n := range livesStanding {
		f := liveFlow(n, -1)
		add(wire.CTNew, n+1, &f)
	}
	for _, g := range datagrams {
		take(g)
	}
	datagrams, datagram = nil, nil
	messages := 0
	var told [livesAtOnce]bool
	eachStage(func(life, stage int) {
		f := liveFlow(life, stage)
		t := wire.CTState
		switch {
		case stage == 0 || !told[life]:
			t = wire.CTNew
		case stage == stagesOfLife-1:
			t = wire.CTEnd
		}
		told[life] = true
		messages++
		add(t, livesStanding+life+1, &f)
	})
	perDatagram := float64(messages) / float64(len(datagrams))
	const wake = 6 // datagrams that a wake-up finds
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n += wake; n > len(datagrams) {
			n = wake
		}
		take(datagrams[n-wake : n]...)
		d.mode.Advance(d.now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/(float64(b.N*wake)*perDatagram), "ns/message")
	if s := &d.Stats; s.ExternalDel < uint64(min(b.N, 100)) || s.ExternalRefused > 0 || d.stream.Stats.Unfollowed > 0 {
		b.Fatalf("%+v", *s)
	}
}

// BenchmarkActiveOfLives is the way of an event from its batch to a sealed datagram that
// is acknowledged, under the same load.
func BenchmarkActiveOfLives(b *testing.B) {
	d := newDialogue(b, roomForLives)
	var batches []*flow.Batch
	var batch *flow.Batch
	add := func(kind flow.EventKind, f flow.Flow) {
		if batch == nil || batch.N == len(batch.Events) {
			batch = new(flow.Batch)
			batches = append(batches, batch)
		}
		batch.Events[batch.N] = event(kind, f, f.ID)
		batch.N++
	}
	var circulating [eventBatches]flow.Batch
	n := 0
	take := func(b *flow.Batch) {
		c := &circulating[n%len(circulating)]
		n++
		*c = *b // as if just decoded: it is in the processor's cache
		d.takeEvents(c)
		d.mode.Advance(d.now)
		d.send()
		d.cover()
	}
	for n := range livesStanding {
		add(flow.EventNew, liveFlow(n, -1))
		if batch.N == len(batch.Events) {
			take(batch)
			batch.N = 0
		}
	}
	take(batch)
	batches, batch = nil, nil
	eachStage(func(life, stage int) {
		f := liveFlow(life, stage)
		f.ID += livesStanding
		switch stage {
		case 0:
			add(flow.EventNew, f)
		case stagesOfLife - 1:
			add(flow.EventDestroy, f)
		default:
			add(flow.EventUpdate, f)
		}
	})
	sent := d.stream.Stats.DataSent
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		take(batches[i])
		if i++; i == len(batches) {
			i = 0
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flow.BatchSize), "ns/event")
	if n := d.stream.Stats.DataSent - sent; n < uint64(b.N*flow.BatchSize*9/10) {
		b.Fatalf("%d messages of %d events", n, b.N*flow.BatchSize)
	}
}

// Both modes of FT-FW have slots to warm, and none is made by it.
func TestWarmSlots(t *testing.T) {
	for name, e := range map[string]*Engine{"conntrackd": quietEngine(t), "syncd": newDialogue(t).Engine} {
		if e.warmer == nil {
			t.Fatalf("%s: the mode is not warmed", name)
		}
		flows := []flow.Handle{0, 1, 1 << 20}
		if n := testing.AllocsPerRun(10, func() { e.warmer.Warm(flows) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

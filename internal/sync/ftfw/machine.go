package ftfw

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Store is the cache whose flows the machine sends.
type Store interface {
	// AppendFlow appends the current state of h as one message. A dead flow is
	// sent as CT_DEL, a flow that was updated since it was added as CT_UPD
	// unless replace is set, any other as CT_NEW.
	AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, now monotime.Time) []byte
	// Dead reports whether h has been destroyed.
	Dead(h flow.Handle) bool
	// Release says that the peer has acknowledged the deletion of h: the machine
	// has forgotten it, and the slot may be used again.
	Release(h flow.Handle)
	// Walk visits at most max slots from position from (0 is the beginning),
	// calling fn with each flow that is alive until it returns false, and
	// returns the position to go on at, 0 at the end.
	Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle
}

// Config holds what an operator may set. The zero value of a field stands for
// its default.
type Config struct {
	FirstSeq    wire.Seq      // number of the first message; conntrackd takes the Unix time
	AckWindow   int           // messages between two ACKs of a busy stream (300); at least 2, or two machines acknowledge ACKs for ever
	ResendQueue int           // most messages unacknowledged (131072)
	DeadAfter   time.Duration // silence after which the peer counts as gone (10 s)
	Resync      bool          // ask the peer for its state at the start
}

const (
	aliveInterval  = time.Second             // ALIVE or ACK after this much silence of ours
	resyncInterval = 3 * time.Second         // how soon a RESYNC is known to have arrived, or repeated
	resendAfter    = 5                       // seconds without ACK before a message is given up and its flow sent again
	bulkInFlight   = 1024                    // messages in flight above which a bulk update waits
	bulkPace       = 50 * time.Millisecond   // how long it waits at most before it tries some more
	bulkTrickle    = 64                      // how many those are
	bulkWalk       = 512                     // slots visited at once in search of the next flow
	lostForSure    = 100_000                 // a gap of so many numbers is larger than what peers keep for resending
	maxControl     = 8192                    // control messages waiting; more mean a peer that makes us answer and never reads
	quiet          = 10 * time.Second        // a bulk of the peer is over after this much time without news of it
	lateness       = 2 * time.Second         // no datagram is on its way for longer
	hearing        = 2500 * time.Millisecond // a live peer is never silent for longer
)

// chunkLen is the number of slots that are allocated at once.
const chunkLen = 4096

// state of a flow as the sender sees it.
const (
	clean    = iota // the peer has acknowledged the current state, or nothing is known of the flow
	dirty           // in the queue
	inFlight        // sent as number slot.seq, not acknowledged
)

// slot is what the machine keeps for a handle. Invariant: state == dirty iff the
// slot is linked into Machine.queue; state == inFlight iff ring(seq) names it.
type slot struct {
	seq        wire.Seq
	prev, next flow.Handle
	state      uint8
	replace    bool // this incarnation took the place of one that the peer may still hold
}

// sent is an entry of the resend queue, found by its number.
type sent struct {
	h        flow.Handle // 0: not a flow
	ctl      wire.Flags  // 0: not a control message
	from, to wire.Seq
}

// control is a control message that waits to be sent.
type control struct {
	f        wire.Flags
	from, to wire.Seq
}

// Machine is one FT-FW peer. It is not safe for concurrent use.
type Machine struct {
	cfg   Config
	store Store

	// Sender.
	next         wire.Seq // number of the next message
	started      bool     // a message has been sent
	hello        helloState
	helloBack    bool              // answer a HELLO with the next message
	slots        []*[chunkLen]slot // by handle
	warmed       uint64            // of what Warm has read, so that it is read
	head         flow.Handle       // queue of dirty flows, oldest first
	tail         flow.Handle
	dirty        int
	controls     []control // controls[firstControl:] wait to be sent
	firstControl int
	lastSend     monotime.Time
	alive        bool // send ALIVE with the next datagram, if nothing else is to be sent

	// Resend queue: ring[n & mask] for base <= n < next. Every entry before base
	// has been acknowledged or given up.
	ring    []sent
	base    wire.Seq
	flying  int      // flows in flight
	acked   wire.Seq // highest number acknowledged, valid if anyAck
	anyAck  bool
	history [resendAfter]wire.Seq // value of next, one entry a second, oldest at hpos
	hpos    int
	tick    monotime.Time // when the next entry is due; 0 while nothing is in flight

	bulk  bulk
	found func(flow.Handle) bool // m.bulkFound, built once

	// Receiver.
	known    bool
	last     wire.Seq // last number accepted, valid if known
	pending  bool     // [ackFrom, last] waits to be acknowledged
	ackFrom  wire.Seq
	ackDue   monotime.Time
	window   int
	heard    monotime.Time // last valid message; 0 for never
	helloing bool          // the last message of the peer carried HELLO
	silent   bool          // the peer was declared gone

	firstHello wire.Seq      // the first message of the peer's present process, if it began with HELLO
	lastHello  monotime.Time // when it last said HELLO
	before     monotime.Time // since when nothing but old numbers has come; 0 after one in its place

	resync resync

	Stats Stats
}

type helloState uint8

const (
	helloSay  helloState = iota // every message says HELLO
	helloDone                   // the peer has answered
)

// bulk is a bulk update being sent. It walks from pos to the end of the cache
// and, if wrap is set, once more from the beginning to stop.
type bulk struct {
	running bool
	wrap    bool
	ended   bool          // this lap is over
	pos     flow.Handle   // where the walk goes on
	stop    flow.Handle   // where the second lap ends; 0 while none was asked for
	since   wire.Seq      // number of the next message when it was last asked for
	last    monotime.Time // when the last of its messages left
	burst   int           // how many more of a bulkTrickle may leave
	hold    flow.Handle   // found by the walk, not sent yet
}

// resync is our request for the peer's state.
type resync struct {
	doubts   uint64   // how often the external cache came into doubt
	asked    bool     // it was sent at least once
	wanted   bool     // it has to be sent (again)
	waiting  bool     // it was sent; not known to have arrived
	open     bool     // the peer's bulk update is under way: from the request to its presumed end
	seq      wire.Seq // number of the last RESYNC
	sentAt   monotime.Time
	trouble  monotime.Time // last loss on either side
	progress monotime.Time // last sign that the peer's bulk update goes on, or that something is missing
}

// Stats counts what happened since the start. Units are messages unless named
// otherwise.
type Stats struct {
	DataSent, AckSent, NackSent, ResyncSent, AliveSent      uint64
	DataReceived, AckReceived, NackReceived, ResyncReceived uint64
	AliveReceived, Hellos                                   uint64
	Resent                                                  uint64 // flows sent again because the peer asked
	Retried                                                 uint64 // flows sent again because no ACK came
	Missing                                                 uint64 // numbers that a gap left out (each is asked for again)
	Gaps                                                    uint64 // gaps in the peer's stream
	Before                                                  uint64 // late, reordered or repeated messages of the peer, dropped
	BadHeader                                               uint64 // messages whose flags make no sense
	BadPayload                                              uint64 // data messages that did not parse
	BulksSent                                               uint64 // bulk updates completed
	BulksReceived                                           uint64 // bulk updates that we asked for, complete as far as can be known
	BulkFlows                                               uint64 // flows sent by them
	Restarts                                                uint64 // restarts of the peer that were noticed
	Silences                                                uint64 // times that the peer went silent
	Evicted                                                 uint64 // deletions given up undelivered, for want of room
	Requests                                                uint64 // times that the peer's whole state was found to be needed
	CtlDropped                                              uint64 // control messages given up, too many waiting
}

// New returns a machine that sends the flows of store.
func New(cfg Config, store Store) *Machine {
	if cfg.AckWindow == 0 {
		cfg.AckWindow = 300
	}
	if cfg.ResendQueue == 0 {
		cfg.ResendQueue = 131072
	}
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 10 * time.Second
	}
	m := &Machine{
		cfg: cfg, store: store,
		next: cfg.FirstSeq, base: cfg.FirstSeq,
		window: cfg.AckWindow,
		ring:   make([]sent, 1024),
		alive:  true,
	}
	m.found = m.bulkFound
	if cfg.Resync {
		m.RequestResync()
	}
	return m
}

// SetDeadAfter changes the silence after which the peer counts as gone.
func (m *Machine) SetDeadAfter(d time.Duration) { m.cfg.DeadAfter = d }

package stream

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/wire"
)

// Store is the cache whose flows the machine sends.
type Store interface {
	// AppendFlow appends the current state of h as one message: CT_DEL for a dead
	// flow.
	AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, now monotime.Time) []byte
	// AppendCompact appends the current state of h as one message that refers to that with
	// number base, the last one that AppendFlow made of it: CT_END for a dead flow. It
	// reports false, and appends nothing, if something has changed since that such a
	// message does not tell.
	AppendCompact(b []byte, h flow.Handle, seq, base wire.Seq, now monotime.Time) ([]byte, bool)
	// Dead reports whether h has been destroyed.
	Dead(h flow.Handle) bool
	// Release says that the deletion of h need not be remembered any more: the
	// machine has forgotten it, and the slot may be used again.
	Release(h flow.Handle)
	// Walk visits at most max slots from position from (0 is the beginning),
	// calling fn with each flow that is alive until it returns false, and
	// returns the position to go on at, 0 at the end.
	Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle
	// Bucket returns the bucket of h: wire.Bucket of the identity as AppendFlow
	// sends it, which is what peers see.
	Bucket(h flow.Handle) uint8
}

// Replica is the cache of what peers have sent, by owner: a small number that
// stands for a node's name as long as this process lives.
type Replica interface {
	// Doubt puts the owner's entries in these buckets in doubt. A message that
	// is delivered and confirms takes its flow out of doubt.
	Doubt(owner uint8, m wire.Mask)
	// Sweep removes the entries of these buckets that are still in doubt. It may
	// take its time; until it is done the buckets are in Doubtful. Doubt ends it:
	// what is put in doubt afterwards is not removed by it.
	Sweep(owner uint8, m wire.Mask)
	// Doubtful returns the owner's buckets that have entries in doubt.
	Doubtful(owner uint8) wire.Mask
	// Whole says that nothing older than what has come can come any more:
	// deletions need not be remembered. It is called often.
	Whole(owner uint8)
	// Begin says that what comes of the owner from now on is of another session: numbers
	// and handles of the one before mean nothing any more.
	Begin(owner uint8)
	// Follows reports whether a compact message of the owner refers to what is held: the
	// message with number msg.Base is the last one that told all of the flow msg.Handle.
	Follows(owner uint8, msg *wire.Message) bool
	// Sums returns the sums of the hashes of what is held of the owner.
	Sums(owner uint8) *[wire.Buckets]uint64
}

// Config holds what an operator may set, and who we are.
type Config struct {
	Name        string // of this node
	Session     uint64 // random, not 0
	FirstSeq    wire.Seq
	Random      func([]byte)  // fills with unpredictable octets, for challenges
	ResendQueue int           // most messages that a peer may lag behind (131072)
	AckWindow   int           // messages between two STATUS of a busy stream, if that is not too often (256)
	DeadAfter   time.Duration // silence after which a peer is left out (10 s)

	// Meet is told of a session that has proven that it lives, Drop of one that
	// is forgotten: for whoever opens sealed datagrams. Both may be nil.
	Meet, Drop func(session uint64)
}

const (
	helloInterval  = time.Second
	helloAtMost    = 50 * time.Millisecond // between two HELLOs
	statusDelay    = 20 * time.Millisecond
	statusApart    = 5 * time.Millisecond // between two STATUS of a busy stream, unless so many AckWindows pass
	statusAtOnce   = 4
	statusRepeat   = 100 * time.Millisecond
	minPatience    = 10 * time.Millisecond // with numbers that may only be late
	maxPatience    = 200 * time.Millisecond
	stall          = 500 * time.Millisecond // how long a peer may hold up others
	digestInterval = time.Second
	maxRepairWait  = 30 * time.Second // between repairs that do not help, of a full cache for one
	beginRepeat    = 100 * time.Millisecond
	beginPatience  = time.Second
	bulkInFlight   = 2048 // messages in flight above which a bulk update waits
	bulkWalk       = 512  // slots visited at once in search of the next flow
	maxMissing     = 1024 // ranges kept for one stream; more and everything is wanted
	maxPeers       = wire.MaxGreets
	maxOwners      = 250
	chunkLen       = 4096
)

const (
	clean = iota
	dirty
	inFlight
)

// slot is what the machine keeps for a handle. Invariant: state == dirty iff the
// slot is linked into Machine.queue; state == inFlight iff the ring names it at
// number.
type slot struct {
	hash       uint64   // of what was sent last, 0 if the peers hold nothing, or unsent
	fixed      uint64   // wire.FlowHashes of message base
	base       wire.Seq // number of the last message that told all, if others may refer to it, else 0
	number     wire.Seq // inFlight: of the message; dirty: the ticket
	prev, next flow.Handle
	state      uint8
	bucket     uint8 // valid if hash is not 0
}

// sent is an entry of the ring of what may be asked for again.
type sent struct {
	h    flow.Handle // 0: not a flow
	kind wire.Kind   // of a marker; 0: none
}

// Machine is one node's protocol state. It is not safe for concurrent use.
type Machine struct {
	cfg     Config
	self    meet.Self
	store   Store
	replica Replica

	next      wire.Seq
	slots     []*[chunkLen]slot
	warmed    uint64 // of what Warm has read, so that it is read
	head      flow.Handle
	tail      flow.Handle
	dirty     int
	ticket    wire.Seq // of the flow that became dirty last
	ring      []sent   // ring[n & mask] for base <= n < next
	base      wire.Seq
	floor     wire.Seq // messages before it may be unknown to a peer: none refers to them
	compact   bool     // all peers that count understand messages that refer to others
	flying    int
	sums      [wire.Buckets]uint64
	count     uint32 // flows in sums
	digestDue monotime.Time
	heldSince monotime.Time // when Advance first saw that a peer holds up others; 0 if none does

	bulk  bulk
	found func(flow.Handle) bool

	peers    []*peer
	owners   []string // by owner-1: the names that were ever met
	helloDue monotime.Time
	lastHi   monotime.Time
	greets   []wire.Greet // scratch
	ranges   []wire.Range // scratch

	Stats Stats
}

// bulk is the bulk update under way, or the last one.
type bulk struct {
	stage  uint8 // bulk* constants
	id     uint32
	mask   wire.Mask
	next   wire.Mask // what is wanted after it
	pos    flow.Handle
	ended  bool // the walk is over
	hold   flow.Handle
	ticket wire.Seq      // flows that were dirty when the walk ended have left once the queue is past this
	begun  monotime.Time // when its beginning was first sent
	told   monotime.Time // and last
	end    wire.Seq      // number of its end
}

const (
	bulkIdle = iota
	bulkBeginning
	bulkWalking
	bulkEnding
)

// Stats counts what happened since the start, in messages unless named otherwise.
type Stats struct {
	DataSent, HelloSent, StatusSent, VoidSent, BulkSent, DigestSent                         uint64
	DataReceived, HelloReceived, StatusReceived, VoidReceived, BulkReceived, DigestReceived uint64

	CompactSent, CompactReceived uint64 // of DataSent and DataReceived, those that refer to another message
	Unfollowed                   uint64 // those that refer to a message that has not come: taken for lost

	Unmet      uint64 // from sessions that are not met
	Unknown    uint64 // of kinds that are not known
	Bad        uint64 // with flags or content that make no sense
	Before     uint64 // repeated, or too late: dropped
	Late       uint64 // out of order, in time
	Missing    uint64 // numbers that were left out
	Gaps       uint64
	Resent     uint64 // flows sent again because a peer lacked them
	LeftOut    uint64 // times that a peer stopped counting
	Lost       uint64 // times that a peer was told to want everything
	BulksSent  uint64 // bulk updates completed
	BulkFlows  uint64
	Met        uint64 // sessions met
	Agreed     uint64 // digests that proved a peer's stream
	Differed   uint64 // digests that did not
	BadBuckets uint64 // buckets that differed
	Conflicts  uint64 // two live sessions with one name
	OwnersFull uint64 // names beyond what can be told apart
}

// New returns a machine that sends the flows of store and judges replica.
func New(cfg Config, store Store, replica Replica) *Machine {
	if cfg.ResendQueue == 0 {
		cfg.ResendQueue = 131072
	}
	if cfg.AckWindow == 0 {
		cfg.AckWindow = 256
	}
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 10 * time.Second
	}
	if cfg.Meet == nil {
		cfg.Meet = func(uint64) {}
	}
	if cfg.Drop == nil {
		cfg.Drop = func(uint64) {}
	}
	m := &Machine{
		cfg: cfg, self: meet.NewSelf(), store: store, replica: replica,
		next: cfg.FirstSeq, base: cfg.FirstSeq, floor: cfg.FirstSeq,
		ring: make([]sent, 1024),
	}
	m.found = m.bulkFound
	return m
}

// SetRole changes the role that this node says it has, which is told at once.
func (m *Machine) SetRole(now monotime.Time, r wire.Role) {
	if m.self.Set(r) {
		m.helloDue = now // before anything that is said because of it
	}
}

// SetDeadAfter changes the silence after which a peer is left out.
func (m *Machine) SetDeadAfter(d time.Duration) { m.cfg.DeadAfter = d }

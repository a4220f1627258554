package engine

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"

	"go.uber.org/zap"

	"syncd/internal/cache"
	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Mode is a replication mode: a pure state machine that the loop drives.
// Packages ftfw and stream document the methods. Those of the sending side:
//
//   - Enqueue says that a flow changed, Forget and ForgetAll that slots are about to
//     be used for something else; Evict gives up a deletion for want of room.
//   - Bulk sends everything, RequestResync asks the peers for everything.
//
// And of the receiving side:
//
//   - Receive judges a message of a session (0 where datagrams are not sealed). One
//     to be delivered is applied to the Replica before the next Receive.
//   - Confirmed says that an entry in doubt was confirmed.
type Mode interface {
	sendingMode
	Receive(now monotime.Time, session uint64, m *wire.Message) (wire.Verdict, wire.Delivery)
	Advance(now monotime.Time)
}

// sendingMode is what all modes have in common.
type sendingMode interface {
	Enqueue(h flow.Handle, replace bool)
	Forget(h flow.Handle)
	ForgetAll()
	Evict() flow.Handle
	Bulk()
	RequestResync()
	Confirmed(now monotime.Time)
	Next(now monotime.Time) monotime.Time
	Pending(now monotime.Time) bool
	AppendDatagram(now monotime.Time, b []byte, limit int) []byte
}

// warmer is a mode that keeps something for each flow in memory of its own.
type warmer interface {
	// Warm reads what is kept for these flows, of which some are 0: most will change
	// soon, and waiting for memory is shorter together.
	Warm(flows []flow.Handle)
}

// Sealer seals and opens datagrams. Seal is called by the loop, Open by the link
// readers, at the same time.
type Sealer interface {
	// Seal appends the sealed form of plain to b.
	Seal(b, plain []byte) []byte
	// Open appends the content of a sealed datagram to b and returns it with the
	// session that sealed it. ok is false for a datagram to be dropped, which the
	// implementation has counted.
	Open(b, datagram []byte, now monotime.Time) (plain []byte, session uint64, ok bool)
	// Overhead is how many octets Seal adds.
	Overhead() int
}

// Sender is where datagrams go: the dedicated links behind one face.
type Sender interface {
	// Send sends every datagram to every peer. It does not block; what cannot be
	// sent is counted by the implementation and lost, which the mode repairs.
	Send(datagrams [][]byte)
	// MaxPayload is the largest datagram that does not fragment, in octets.
	MaxPayload() int
	// Heard says that a valid message came in on a link, by its index.
	Heard(link int)
}

// LinkReader is the receiving side of one link.
type LinkReader interface {
	// Read blocks until datagrams have come and returns their number, or an error
	// when the link is closed.
	Read() (int, error)
	// Datagram returns datagram i of the last Read, and its sender. The octets
	// are valid until the next Read.
	Datagram(i int) ([]byte, netip.Addr)
	// Close ends a Read that blocks. The engine calls it when its loop ends.
	Close() error
}

// EventSource is the kernel's event stream. Run fills batches taken from free and
// passes them to full until ctx ends.
type EventSource interface {
	Run(ctx context.Context, free <-chan *flow.Batch, full chan<- *flow.Batch) error
}

// DumpFunc reads the kernel's whole table. The event is reused between calls.
type DumpFunc func(ctx context.Context, fn func(*flow.Event) error) error

// FetchFunc reads single entries of the kernel's table, by their original tuples, and
// calls fn for each that is there. The flow is lent for the call. It is called by one
// goroutine.
type FetchFunc func(ctx context.Context, keys []flow.Tuple, fn func(*flow.Flow)) error

// Alarm wakes the loop at a time. Its methods are called by the loop.
type Alarm interface {
	// Rings yields when the time has come, or earlier; Heard is called then.
	Rings() <-chan struct{}
	Heard()
	// Set sets the time, in the place of the one before.
	Set(now, at monotime.Time)
}

// Config assembles an engine. Everything is owned by the engine from New on.
type Config struct {
	Log           *zap.Logger // nil for none
	Events        EventSource
	Dump          DumpFunc
	DumpExpects   ExpectDumpFunc // nil: there are no expectations
	Fetch         FetchFunc      // nil: sequence adjustments are known from dumps alone
	Sender        Sender
	Links         []LinkReader
	NewMode       func(*Engine) Mode // the mode sends the flows of the engine, its Store
	Alarm         Alarm              // nil: a timer of the runtime
	Sealer        Sealer             // nil: datagrams are plain, and there is one peer
	Filter        *filter.Filter
	InternalLimit int            // entries, dead ones included
	ExternalLimit int            // entries of one peer
	Labels        bool           // replicate labels
	MarkMask      uint32         // bits of the mark that are replicated
	Parker        Parker         // nil: what peers have stays out of the kernel until it is committed
	ParkedBefore  bool           // without a Parker: entries as one leaves them are from an earlier life with one, and not ours
	Gone          func() []uint8 // owners of which nobody will tell the end; nil: all once the peer is silent. Called on the loop
	// Leads reports whether an owner may be in charge, by its own word, and whether it
	// knows our role, and what is held of it is what it has. nil: both of every owner. Led is told that
	// another one leads while this node stands by; it may be nil. Called on the loop.
	Leads  func(owner uint8) (leads, known bool)
	Led    func()
	Mirror bool // the syncd dialect: peers hold exactly the internal cache, own changes are replicated too
}

// Engine is the loop and what it owns. All fields below the first group belong to
// the loop's goroutine; others enter by Do.
type Engine struct {
	cfg   Config
	log   *zap.Logger
	calls chan call
	done  chan struct{} // closed when the loop has ended
	loads chan error    // the outcome of the first dump, once
	turns atomic.Uint64

	mode     Mode
	warmer   warmer // the mode, or nil if it has nothing to warm
	internal *cache.Cache
	replica  *Replica
	filter   *filter.Filter
	origins  map[uint32]Origin
	now      monotime.Time
	scratch  flow.Flow   // for AppendFlow
	scratchX flow.Expect // the same

	kernel   kernelSync
	fetch    fetches
	expects  expectSync
	peer     peerSync
	park     *parking // nil without Config.Parker
	behind   behind
	lead     lead
	remnants bool        // there may be remnants
	standby  bool        // this node is not in charge, and has remnants from when it was
	full     bool        // an event was refused for want of room in the internal cache
	evictAt  flow.Handle // where the search for a deletion to give up goes on
	out      outbox

	Stats Stats
}

// Origin says who made a change in the kernel.
type Origin uint8

const (
	OriginOther  Origin = iota // traffic, timers, other programs: replicated
	OriginCommit               // our commit: enters the internal cache, is not replicated by itself
	OriginPurge                // our purge: timeouts that say nothing, ends that are not replicated
	OriginPark                 // our parker: what is parked is not ours
)

// Stats counts what the loop did since the start.
type Stats struct {
	EventsNew, EventsUpdate, EventsDestroy uint64
	EventsFiltered                         uint64 // not to be replicated, by the filter
	EventsUnfit                            uint64 // flows that this dialect cannot express (zones of one direction)
	EventsStale                            uint64 // arrived after the flow had been destroyed
	EventsRefused                          uint64 // no room in the internal cache
	Evicted                                uint64 // deletions given up undelivered, for want of room
	EventsOwn                              uint64 // made by our commit or purge
	ExpectsNew, ExpectsDestroy             uint64 // events about expectations
	ExpectsFiltered                        uint64 // of helpers that are not selected, or of masters that are not replicated
	ExpectsUnfit                           uint64 // of which the zone cannot be known or told
	Dumped                                 uint64 // flows told by dumps
	Overruns                               uint64
	LeftBehind                             uint64 // masqueraded flows whose address has left this host
	Purged                                 uint64 // remnants that ended here
	Resyncs                                uint64 // dumps of the kernel's table completed
	ResyncsFailed                          uint64
	Swept                                  uint64 // internal entries that a resync did not find any more, those left behind among them
	Found                                  uint64 // flows found by a resync that no event had told of
	Fetched                                uint64 // flows that were asked for singly
	FetchedNews                            uint64 // of them, those of which that told something
	FetchesFailed                          uint64

	Messages                   uint64
	Faults                     [wire.FaultType + 1]uint64 // by wire.Fault
	ForeignPeer                uint64                     // messages of a second sender, which this dialect cannot tell apart
	ExternalNew, ExternalUpd   uint64
	ExternalDel, ExternalNoDel uint64 // deletions, and those of unknown flows
	ExternalOld                uint64 // messages that something newer had overtaken
	ExternalRefused            uint64 // no room in the external cache
	ExternalSwept              uint64 // entries that a bulk update of the peer did not confirm
	Expectations               uint64 // of all these, messages about expectations

	Parks       [flow.ParkRelease + 1]uint64 // what the parker did, by flow.ParkOp
	ParkResults [flow.ParkResults]uint64     // those that came to something else than was asked for, by flow.ParkResult
	Touched     uint64                       // parked entries that became ours because packets passed them
	Adopted     uint64                       // parked entries that became ours because this node was put in charge
	Yielded     uint64                       // entries of ours that became another node's

	Datagrams uint64 // sent
}

// New returns an engine. Run starts it.
func New(cfg Config) *Engine {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log,
		calls:    make(chan call),
		done:     make(chan struct{}),
		loads:    make(chan error, 1),
		internal: cache.New(cfg.InternalLimit),
		replica:  newReplica(cfg.ExternalLimit),
		filter:   cfg.Filter,
		origins:  map[uint32]Origin{},
		now:      monotime.Now(),
	}
	e.kernel.forget()
	e.peer.addr = map[int]netip.Addr{}
	if cfg.Parker != nil {
		e.park = newParking(e.replica)
	}
	e.mode = cfg.NewMode(e)
	e.warmer, _ = e.mode.(warmer)
	return e
}

// ErrStopped is returned by Do when the loop has ended.
var ErrStopped = errors.New("engine: stopped")

type call struct {
	fn   func()
	done chan struct{}
}

// Do runs fn on the loop and returns when it has run. fn owns the engine
// meanwhile: it must be short and must not block.
func (e *Engine) Do(ctx context.Context, fn func()) error {
	c := call{fn: fn, done: make(chan struct{})}
	select {
	case e.calls <- c:
	case <-e.done:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	<-c.done // what the loop has taken it runs, before anything else
	return nil
}

// Loaded returns a channel that yields the outcome of the first dump of the
// kernel's table, and, after it was read, of a later one: a dump that failed is
// repeated.
func (e *Engine) Loaded() <-chan error { return e.loads }

// The methods below are for functions run by Do.

// Internal returns the internal cache, Replica the external ones.
func (e *Engine) Internal() *cache.Cache { return e.internal }
func (e *Engine) Replica() *Replica      { return e.replica }

// Mode returns the replication mode.
func (e *Engine) Mode() Mode { return e.mode }

// Now returns the time of this turn.
func (e *Engine) Now() monotime.Time { return e.now }

// SetFilter replaces the filter. Flows already in the cache stay until they end.
func (e *Engine) SetFilter(f *filter.Filter) { e.filter = f }

// SetReplicated changes which parts of a flow are replicated, from its next event
// on.
func (e *Engine) SetReplicated(labels bool, markMask uint32) {
	e.cfg.Labels, e.cfg.MarkMask = labels, markMask
}

// Filter returns the filter in force.
func (e *Engine) Filter() *filter.Filter { return e.filter }

// SetOrigin says that changes made by the netlink socket with this port are ours.
// OriginOther forgets the port.
func (e *Engine) SetOrigin(port uint32, o Origin) {
	if o == OriginOther {
		delete(e.origins, port)
		return
	}
	e.origins[port] = o
}

// Problems names what keeps this node from being in step, in plain sentences.
func (e *Engine) Problems() (p []string) {
	if e.full {
		p = append(p, "the internal cache is full: some flows are not replicated")
	}
	if e.replica.refusing() {
		p = append(p, "the external cache is full: some flows of a peer are not kept")
	}
	switch {
	case e.kernel.paused:
		p = append(p, "a commit runs, during which changes of the kernel's table are not followed")
	case e.kernel.running:
		p = append(p, "a resynchronisation with the kernel is under way")
	case e.kernel.wanted:
		p = append(p, "a resynchronisation with the kernel is due")
	}
	if e.park != nil && e.park.full {
		p = append(p, "the kernel's table is full: some flows of a peer are not in it")
	}
	if e.replica.doubtful() {
		p = append(p, "entries of a peer are not confirmed yet")
	}
	return p
}

const (
	// Of what circulates between readers and the loop there is little, so that it stays in
	// the processor's cache; what does not fit waits in the kernel's buffers.
	eventBatches = 8
	dumpBatches  = 8
	inboxes      = 4 // per link

	// What is taken in one turn is the work of a millisecond or less: what it leads to is
	// sent before more is taken. Nobody waits for a dump.
	takeAtMost  = 16
	dumpsAtMost = 4
)

// Run is the loop. It returns when ctx ends, or with the error of a reader that
// could not go on.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer close(e.done)
	rd := startReaders(ctx, cancel, e.cfg, e.park)
	defer rd.stop(e.cfg.Links)
	defer cancel(nil)

	e.kernel.batches = make(chan *flow.Batch, dumpBatches)
	e.kernel.free = make(chan *flow.Batch, dumpBatches)
	for range dumpBatches {
		e.kernel.free <- new(flow.Batch)
	}
	e.kernel.ended = make(chan error, 1)
	defer e.kernel.stop()
	e.RequestKernelSync()
	e.fetch.start(ctx, e.cfg.Fetch)
	defer e.fetch.stop()

	var answers chan *flow.ParkBatch
	if e.park != nil {
		answers = e.park.done
	}
	alarm := e.cfg.Alarm
	if alarm == nil {
		a := newTimerAlarm()
		defer a.timer.Stop()
		alarm = a
	}
	busy := true
	for {
		if !busy {
			select {
			case b := <-rd.events:
				e.tick()
				e.takeEvents(b)
				rd.freeEvents <- b
			case in := <-rd.inbox:
				e.tick()
				e.takeMessages(in)
				in.home <- in
			case b := <-e.kernel.batches:
				e.tick()
				e.takeDump(b)
				e.kernel.free <- b
			case err := <-e.kernel.ended:
				e.tick()
				e.dumpEnded(err)
			case j := <-e.fetch.answered:
				e.tick()
				e.takeFetched(j)
			case b := <-answers:
				e.tick()
				e.parkAnswered(b)
			case c := <-e.calls:
				e.tick()
				c.fn()
				close(c.done)
			case <-alarm.Rings():
				alarm.Heard()
				e.tick()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		} else {
			e.tick()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		e.drain(rd, answers)
		e.mode.Advance(e.now)
		busy = e.slice(ctx)
		if e.send() {
			busy = true
		}
		if !busy {
			alarm.Set(monotime.Now(), e.deadline())
		}
	}
}

func (e *Engine) tick() {
	e.now = monotime.Now()
	e.turns.Add(1)
}

// drain takes what waits besides the input that ended the wait, but only so much:
// deadlines and sending must have their turn. Events and all else take turns, so
// that a flood of one does not keep the other waiting.
func (e *Engine) drain(rd *readers, answers <-chan *flow.ParkBatch) {
	dumps, left := e.kernel.batches, dumpsAtMost
	for range takeAtMost {
		idle := true
		select {
		case b := <-rd.events:
			e.takeEvents(b)
			rd.freeEvents <- b
			idle = false
		default:
		}
		select {
		case in := <-rd.inbox:
			e.takeMessages(in)
			in.home <- in
		case b := <-dumps:
			e.takeDump(b)
			e.kernel.free <- b
			if left--; left == 0 {
				dumps = nil
			}
		case err := <-e.kernel.ended:
			e.dumpEnded(err)
		case j := <-e.fetch.answered:
			e.takeFetched(j)
		case b := <-answers:
			e.parkAnswered(b)
		case c := <-e.calls:
			c.fn()
			close(c.done)
		default:
			if idle {
				return
			}
		}
	}
}

// slice does a bounded part of the long work that waits, and reports whether some
// is left.
func (e *Engine) slice(ctx context.Context) bool {
	e.advancePeer()
	removed, more := e.replica.Work()
	e.Stats.ExternalSwept += removed
	if e.sweepInternal() {
		more = true
	}
	if e.behindWork() {
		more = true
	}
	if e.cfg.Leads != nil && (e.standby || e.park != nil && e.park.passive) {
		e.lookLeads()
	}
	if e.park != nil && e.parkSome() {
		more = true
	}
	e.startDump(ctx)
	e.startFetch()
	return more
}

// deadline is when the loop must turn again without input.
func (e *Engine) deadline() monotime.Time {
	next := monotime.Earliest(e.mode.Next(e.now), monotime.Earliest(e.kernel.due(), e.fetch.next()))
	next = monotime.Earliest(next, e.behind.due())
	if e.park != nil {
		next = monotime.Earliest(next, e.park.dueAt(e.kernel.first))
		if e.park.held && e.mode.Pending(e.now) {
			next = monotime.Earliest(next, e.park.sent.Add(heldSend))
		}
	}
	return next
}

// maxBurst is the number of datagrams of one turn.
const maxBurst = 64

// outbox holds the buffers of outgoing datagrams.
type outbox struct {
	bufs  [][]byte
	plain []byte // a datagram before it is sealed
	limit int
}

// send lets the mode fill datagrams and sends them. It reports whether more
// waits.
func (e *Engine) send() bool {
	if !e.mode.Pending(e.now) || e.park != nil && e.park.busy(e.now) {
		return false
	}
	limit := min(e.cfg.Sender.MaxPayload(), maxDatagram)
	o := &e.out
	if limit != o.limit {
		o.bufs, o.plain, o.limit = nil, make([]byte, 0, limit+room), limit
	}
	if e.cfg.Sealer != nil {
		limit -= e.cfg.Sealer.Overhead()
	}
	n := 0
	for n < maxBurst && e.mode.Pending(e.now) {
		if n == len(o.bufs) {
			o.bufs = append(o.bufs, make([]byte, 0, o.limit+room))
		}
		if e.cfg.Sealer == nil {
			o.bufs[n] = e.mode.AppendDatagram(e.now, o.bufs[n][:0], limit)
		} else if o.plain = e.mode.AppendDatagram(e.now, o.plain[:0], limit); len(o.plain) > 0 {
			o.bufs[n] = e.cfg.Sealer.Seal(o.bufs[n][:0], o.plain)
		} else {
			o.bufs[n] = o.bufs[n][:0]
		}
		if len(o.bufs[n]) == 0 {
			break
		}
		n++
	}
	if n > 0 {
		e.cfg.Sender.Send(o.bufs[:n])
		e.Stats.Datagrams += uint64(n)
	}
	return n == maxBurst
}

// room is what a mode may write beyond its limit before it takes it back.
const room = max(wire.MaxFlowLen, wire.MaxExpectLen, wire.MaxSyncLen)

// maxDatagram bounds datagrams on links with a very large MTU (octets).
const maxDatagram = 16384

// dialect is that of the messages about flows.
func (e *Engine) dialect() wire.Dialect {
	if e.cfg.Mirror {
		return wire.Syncd
	}
	return wire.Conntrackd
}

// AppendFlow, Dead, Release and Walk make the internal cache the store of the
// mode.

// AppendFlow implements ftfw.Store.
func (e *Engine) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, now monotime.Time) []byte {
	fl := &e.scratch
	isFlow := e.internal.LoadFlow(h, fl)
	t := wire.CTNew
	switch {
	case e.internal.Dead(h):
		t = wire.CTDel
	case !replace && e.internal.Flags(h)&flagUpdated != 0:
		t = wire.CTUpd
	}
	if !isFlow {
		return e.appendExpect(b, h, t+wire.ExpNew, f, seq, now)
	}
	if fl.Has&flow.HasTimeout != 0 {
		fl.Timeout = fl.Remaining(now.Sub(e.internal.Updated(h)))
	}
	e.internal.Settle(h)
	return wire.AppendFlow(b, e.dialect(), t, f, seq, fl)
}

// Dead implements ftfw.Store.
func (e *Engine) Dead(h flow.Handle) bool { return e.internal.Dead(h) }

// Release implements ftfw.Store.
func (e *Engine) Release(h flow.Handle) { e.internal.Remove(h) }

// Bucket implements stream.Store.
func (e *Engine) Bucket(h flow.Handle) uint8 {
	key := e.internal.Key(h)
	return wire.Bucket(&key)
}

// Walk implements ftfw.Store.
func (e *Engine) Walk(from flow.Handle, max int, fn func(flow.Handle) bool) flow.Handle {
	return e.internal.Walk(from, max, func(h flow.Handle) bool {
		return e.internal.Dead(h) || fn(h)
	})
}

// Flags of internal entries.
const (
	flagUpdated    = 1 << iota // changed since it was added
	flagNewDue                 // added by an update or a dump: its NEW event may still come
	flagFetchDue               // stands in fetches.due
	flagFetchAgain             // is to stand there once more when its turn has come
	flagFetching               // asked for, and neither added nor replaced since
	flagYields                 // from before this node was told not to be in charge, and no traffic seen since
)

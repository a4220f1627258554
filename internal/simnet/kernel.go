package simnet

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"syncd/internal/flow"
)

// Kernel is a connection-tracking table that tells of its changes as ctnetlink
// does: an update carries only what changed, a destruction next to nothing, and a
// dump reads one bucket after the other while the table changes.
type Kernel struct {
	// ReuseIDs makes a flow that comes again with the tuple of the last one
	// destroyed get its id, as happens when it falls into the same slot.
	ReuseIDs bool
	// DumpPause is the time between two buckets of a dump.
	DumpPause time.Duration
	// Quiet is the netlink port of somebody whose creations and updates are not told.
	Quiet uint32
	// SocketLimit is how many events the socket holds; more are dropped.
	SocketLimit int

	mu      sync.Mutex
	rand    *rand.Rand
	buckets [buckets]map[flow.Tuple]*flow.Flow
	n       int
	lastID  uint32
	gone    flow.Tuple // the last flow destroyed, and its id
	goneID  uint32

	mute      bool
	paused    bool
	resumed   bool // to be told when the socket has been read empty
	socket    []queued
	expects   map[flow.Tuple]*flow.Expect // by key, with their zones
	congested bool                        // events were dropped, and go on being so until the socket is empty
	stalled   bool                        // the reader sleeps
	ready     chan struct{}               // has a token when the reader may have something to do
	overruns  int

	dumpErrors []error // of the next dumps
	dumps      int

	fetchErrors []error // of the next fetches
	fetched     int
}

const (
	buckets     = 64
	socketLimit = 100_000
)

// NewKernel returns an empty table.
func NewKernel(seed uint64) *Kernel {
	k := &Kernel{
		SocketLimit: socketLimit,
		rand:        rand.New(rand.NewPCG(seed, 0x6b65726e656c)),
		ready:       make(chan struct{}, 1),
		expects:     map[flow.Tuple]*flow.Expect{},
	}
	for i := range k.buckets {
		k.buckets[i] = map[flow.Tuple]*flow.Flow{}
	}
	return k
}

func (k *Kernel) bucket(t *flow.Tuple) map[flow.Tuple]*flow.Flow {
	h := uint32(2166136261)
	for _, c := range t.Src {
		h = (h ^ uint32(c)) * 16777619
	}
	h = (h ^ uint32(t.SrcPort)) * 16777619
	h = (h ^ uint32(t.Zone)) * 16777619
	return k.buckets[h>>16%buckets]
}

// Create adds a flow, with an id of the kernel's choice, and reports whether its
// tuple was free. port is the netlink port of whoever does it, 0 for traffic.
func (k *Kernel) Create(f flow.Flow, port uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.bucket(&f.Orig)
	if b[f.Orig] != nil {
		return false
	}
	k.lastID += 1 + k.rand.Uint32N(1000)
	f.ID = k.lastID
	if k.ReuseIDs && k.goneID != 0 && k.gone == f.Orig {
		f.ID = k.goneID
	}
	f.Status |= flow.StatusConfirmed
	f.Has |= flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasID
	if f.Orig.Proto == flow.TCP {
		f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale // all of it, whoever made the flow of what
	}
	b[f.Orig] = &f
	k.n++
	k.emit(flow.EventNew, f, f.Has, port)
	return true
}

// Update lets change work on a flow and tells of what it changed. It reports
// whether there is such a flow.
func (k *Kernel) Update(t flow.Tuple, port uint32, change func(*flow.Flow)) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.bucket(&t)[t]
	if f == nil {
		return false
	}
	was := *f
	change(f)
	k.emit(flow.EventUpdate, *f, told(&was, f), port)
	return true
}

// told says which attributes an update event carries.
func told(was, is *flow.Flow) flow.Attrs {
	has := flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasID | is.Has&flow.HasHelper
	if was.TCPState != is.TCPState {
		has |= is.Has & (flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale)
	}
	if was.Mark != is.Mark || is.Mark != 0 {
		has |= flow.HasMark
	}
	if was.Labels != is.Labels {
		has |= flow.HasLabels
	}
	return has
}

// Touch lets a packet pass a flow that changes nothing but the timeout, of which no
// event tells. It reports whether there is such a flow.
func (k *Kernel) Touch(t flow.Tuple, timeout uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.bucket(&t)[t]
	if f != nil {
		f.Timeout = timeout
	}
	return f != nil
}

// Destroy removes a flow, and reports whether there was one.
func (k *Kernel) Destroy(t flow.Tuple, port uint32) bool {
	return k.destroy(t, port, 0)
}

// Kill removes a flow that has time left, as the kernel does with those that it has
// masqueraded with an address that is removed.
func (k *Kernel) Kill(t flow.Tuple, port uint32) bool {
	return k.destroy(t, port, flow.HasTimeout)
}

func (k *Kernel) destroy(t flow.Tuple, port uint32, more flow.Attrs) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.bucket(&t)
	f := b[t]
	if f == nil {
		return false
	}
	delete(b, t)
	k.n--
	k.gone, k.goneID = t, f.ID
	f.Status |= flow.StatusDying
	k.emit(flow.EventDestroy, *f, flow.HasReply|flow.HasStatus|flow.HasID|more, port)
	k.orphan(t)
	return true
}

// emit queues an event about f that carries the attributes named by has. A mark
// of zero is told only by the event that makes it so.
func (k *Kernel) emit(kind flow.EventKind, f flow.Flow, has flow.Attrs, port uint32) {
	if f.Mark == 0 && kind == flow.EventNew {
		has &^= flow.HasMark
	}
	if kind == flow.EventNew && f.Labels == ([16]byte{}) {
		has &^= flow.HasLabels
	}
	k.queue(flow.Event{Kind: kind, PortID: port, Flow: keep(f, has)})
}

// queued is an event in the socket, with the expectation that it is about if its
// Expect is not 0.
type queued struct {
	ev flow.Event
	x  flow.Expect
}

func (k *Kernel) queue(ev flow.Event) { k.enqueue(queued{ev: ev}) }

func (k *Kernel) enqueue(q queued) {
	if k.mute || k.paused || k.Quiet != 0 && q.ev.PortID == k.Quiet && q.ev.Kind != flow.EventDestroy {
		return
	}
	if k.congested || len(k.socket) >= k.SocketLimit {
		if !k.congested {
			k.overruns++
		}
		k.congested = true
		k.wake()
		return
	}
	k.socket = append(k.socket, q)
	k.wake()
}

// keep returns f with nothing but the attributes of has.
func keep(f flow.Flow, has flow.Attrs) flow.Flow {
	g := flow.Flow{Orig: f.Orig, Reply: f.Reply, Has: has & f.Has}
	CopyAttrs(&g, &f, g.Has)
	return g
}

// CopyAttrs copies the attributes named by has, of those that a Kernel knows.
func CopyAttrs(to, from *flow.Flow, has flow.Attrs) {
	if has&flow.HasMaster != 0 {
		to.Master = from.Master
	}
	if has&flow.HasStatus != 0 {
		to.Status = from.Status
	}
	if has&flow.HasTimeout != 0 {
		to.Timeout = from.Timeout
	}
	if has&flow.HasMark != 0 {
		to.Mark = from.Mark
	}
	if has&flow.HasID != 0 {
		to.ID = from.ID
	}
	if has&flow.HasTCP != 0 {
		to.TCPState = from.TCPState
	}
	if has&flow.HasTCPFlags != 0 {
		to.TCPFlags = from.TCPFlags
	}
	if has&flow.HasTCPWScale != 0 {
		to.TCPWScale = from.TCPWScale
	}
	if has&flow.HasLabels != 0 {
		to.Labels = from.Labels
	}
	if has&flow.HasHelper != 0 {
		to.Helper = from.Helper
	}
	if has&flow.HasSeqAdjOrig != 0 {
		to.SeqAdj[flow.DirOriginal] = from.SeqAdj[flow.DirOriginal]
	}
	if has&flow.HasSeqAdjRepl != 0 {
		to.SeqAdj[flow.DirReply] = from.SeqAdj[flow.DirReply]
	}
	if has&flow.HasSynproxy != 0 {
		to.Synproxy = from.Synproxy
	}
	if has&flow.HasSecctx != 0 {
		to.Secctx = from.Secctx
	}
}

// Inject queues an event as it is, without touching the table.
func (k *Kernel) Inject(ev flow.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.queue(ev)
}

// Mute makes changes tell nobody, as those of entries without an event extension.
func (k *Kernel) Mute(mute bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mute = mute
}

// Pause leaves the event groups, Resume joins them again, as ctnetlink.Listener does.
func (k *Kernel) Pause() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = true
	return nil
}

// Resume ends a pause.
func (k *Kernel) Resume() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused, k.resumed = false, true
	k.wake()
	return nil
}

// Limit changes SocketLimit of a kernel in use.
func (k *Kernel) Limit(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.SocketLimit = n
}

// Stall makes the reader of events sleep, so that the socket fills.
func (k *Kernel) Stall(stalled bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stalled = stalled
	k.wake()
}

// Len is the number of flows.
func (k *Kernel) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.n
}

// Flows returns a copy of the table.
func (k *Kernel) Flows() map[flow.Tuple]flow.Flow {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := make(map[flow.Tuple]flow.Flow, k.n)
	for _, b := range k.buckets {
		for t, f := range b {
			m[t] = *f
		}
	}
	return m
}

// Overruns counts the episodes of a full socket.
func (k *Kernel) Overruns() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.overruns
}

// Dumps counts the dumps that have begun.
func (k *Kernel) Dumps() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dumps
}

// FailDumps makes the next dumps end with these errors, after they have told
// everything.
func (k *Kernel) FailDumps(errs ...error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dumpErrors = append(k.dumpErrors, errs...)
}

// Dump calls fn for the flows of the table, bucket by bucket. A flow that is there
// all the time is told once; one that comes, goes or changes meanwhile is told as
// its bucket was when its turn came.
func (k *Kernel) Dump(ctx context.Context, fn func(*flow.Event) error) error {
	k.mu.Lock()
	k.dumps++
	var failure error
	if len(k.dumpErrors) > 0 {
		failure, k.dumpErrors = k.dumpErrors[0], k.dumpErrors[1:]
	}
	k.mu.Unlock()

	var chunk []flow.Event
	for _, b := range k.buckets {
		if k.DumpPause > 0 {
			select {
			case <-time.After(k.DumpPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		chunk = chunk[:0]
		k.mu.Lock()
		for _, f := range b {
			g := *f
			g.Has |= flow.HasMark // told also when zero
			if g.Labels == ([16]byte{}) {
				g.Has &^= flow.HasLabels
			}
			chunk = append(chunk, flow.Event{Kind: flow.EventDump, Flow: keep(g, g.Has)})
		}
		k.mu.Unlock()
		for i := range chunk {
			if err := fn(&chunk[i]); err != nil {
				return err
			}
		}
	}
	return failure
}

// Adjust gives a flow a sequence adjustment as a helper does: nobody is told. It
// reports whether there is such a flow.
func (k *Kernel) Adjust(t flow.Tuple, adj [2]flow.SeqAdj) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.bucket(&t)[t]
	if f == nil {
		return false
	}
	f.SeqAdj = adj
	f.Status |= flow.StatusSeqAdjust
	f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	return true
}

// FailFetches makes the next fetches end with these errors, after they have told
// everything.
func (k *Kernel) FailFetches(errs ...error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetchErrors = append(k.fetchErrors, errs...)
}

// Fetched counts the flows that were asked for by Fetch.
func (k *Kernel) Fetched() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fetched
}

// Fetch calls fn for those of the flows that are there.
func (k *Kernel) Fetch(ctx context.Context, keys []flow.Tuple, fn func(*flow.Flow)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetched += len(keys)
	for i := range keys {
		if f := k.bucket(&keys[i])[keys[i]]; f != nil {
			g := *f
			fn(&g)
		}
	}
	if len(k.fetchErrors) == 0 {
		return nil
	}
	err := k.fetchErrors[0]
	k.fetchErrors = k.fetchErrors[1:]
	return err
}

// Run hands over what is in the socket, as an event source does.
func (k *Kernel) Run(ctx context.Context, free <-chan *flow.Batch, full chan<- *flow.Batch) error {
	var b *flow.Batch
	for {
		if b == nil {
			select {
			case b = <-free:
			case <-ctx.Done():
				return nil
			}
		}
		if !k.fill(b) {
			select {
			case <-k.ready:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case full <- b:
			b = nil
		case <-ctx.Done():
			return nil
		}
	}
}

// fill takes events out of the socket, and reports whether there was anything to
// tell. The loss is told with the event that was the last to get in.
func (k *Kernel) fill(b *flow.Batch) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	b.N, b.Overrun, b.Resumed = 0, false, false
	if k.stalled {
		return false
	}
	b.NExpect = 0
	for b.N < min(len(b.Events), len(k.socket)) {
		q := &k.socket[b.N]
		if q.ev.Expect != 0 {
			if b.NExpect == len(b.Expects) {
				break
			}
			b.Expects[b.NExpect] = q.x
			b.NExpect++
			q.ev.Expect = uint8(b.NExpect)
		}
		b.Events[b.N] = q.ev
		b.N++
	}
	k.socket = append(k.socket[:0], k.socket[b.N:]...)
	if len(k.socket) == 0 && k.congested {
		b.Overrun, k.congested = true, false
	}
	if len(k.socket) == 0 && k.resumed {
		b.Resumed, k.resumed = true, false
	}
	return b.N > 0 || b.Overrun || b.Resumed
}

func (k *Kernel) wake() {
	select {
	case k.ready <- struct{}{}:
	default:
	}
}

package notrack

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// Store is the cache whose flows the machine sends.
type Store interface {
	queue.Store
	// Bucket returns the bucket of h: wire.Bucket of the identity as AppendFlow
	// sends it.
	Bucket(h flow.Handle) uint8
}

// Replica is the cache of what peers have sent, by owner.
type Replica interface {
	// Doubt puts the owner's entries in these buckets in doubt. A message that is
	// delivered and confirms takes its flow out of doubt.
	Doubt(owner uint8, m wire.Mask)
	// Sweep removes the entries of these buckets that are still in doubt. It may
	// take its time; until it is done the buckets are in Doubtful. Doubt ends it.
	Sweep(owner uint8, m wire.Mask)
	// Doubtful returns the owner's buckets that have entries in doubt.
	Doubtful(owner uint8) wire.Mask
}

// SyncdConfig holds what an operator may set, and who we are.
type SyncdConfig struct {
	meet.Config
	FirstSeq     wire.Seq
	BulkInterval time.Duration // in which everything is sent again; 0 for never
}

const (
	statusRepeat = 250 * time.Millisecond // while something is wanted
	statusRoom   = 48                     // octets
)

// SyncdStats counts what happened since the start, in messages unless named
// otherwise. What concerns the meeting is in Meeting.
type SyncdStats struct {
	DataSent, StatusSent, BulkSent             uint64
	DataReceived, StatusReceived, BulkReceived uint64

	Unknown   uint64 // of kinds that mean nothing in this mode
	Bad       uint64 // data messages that did not parse
	Before    uint64 // repeated or late: dropped
	Missing   uint64 // numbers that were left out
	Gaps      uint64
	BulksSent uint64 // rounds of bulk updates completed that were asked for
	BulkFlows uint64 // flows sent by bulk updates
	Whole     uint64 // bulk updates of a part received whole
	Holed     uint64 // and those in which something was missed
}

// Syncd is NOTRACK with any number of peers in the syncd dialect. It is not safe for
// concurrent use.
type Syncd struct {
	cfg     SyncdConfig
	replica Replica
	send    queue.Sender
	peers   *meet.Table[follow]
	bulk    bulk

	Stats SyncdStats
}

// NewSyncd returns a machine that sends the flows of store and judges replica.
func NewSyncd(cfg SyncdConfig, store Store, replica Replica) *Syncd {
	m := &Syncd{
		cfg: cfg, replica: replica,
		send:  queue.NewSender(store, cfg.FirstSeq, 1),
		peers: meet.New[follow](cfg.Config),
	}
	m.bulk.init(store)
	return m
}

// SetDeadAfter changes the silence after which a peer counts as gone.
func (m *Syncd) SetDeadAfter(d time.Duration) { m.peers.SetDeadAfter(d) }

// SetBulkInterval changes the time in which everything is sent again.
func (m *Syncd) SetBulkInterval(d time.Duration) { m.cfg.BulkInterval = d }

// Enqueue says that h changed. replace says that the flow took the place of another
// with the same tuple; a message replaces what the receiver has in any case.
func (m *Syncd) Enqueue(h flow.Handle, replace bool) { m.send.Enqueue(h, replace) }

// Forget drops h from the queue: the slot is about to be used for something else.
// Peers that hold the flow lose it with the next bulk update.
func (m *Syncd) Forget(h flow.Handle) { m.send.Forget(h) }

// ForgetAll drops every flow, before the cache is emptied.
func (m *Syncd) ForgetAll() {
	m.send.Clear()
	m.bulk.rewind()
}

// Evict returns 0: no deletion waits for anything but its turn.
func (m *Syncd) Evict() flow.Handle { return 0 }

// Bulk sends everything to everyone.
func (m *Syncd) Bulk() { m.bulk.want(allParts) }

// RequestResync wants everything of every peer.
func (m *Syncd) RequestResync() {
	for _, p := range m.peers.Peers() {
		if p.Met {
			p.State.wanted, p.State.statusDue = wire.AllBuckets, 0
		}
	}
}

// Confirmed does nothing: the replica knows what is in doubt.
func (m *Syncd) Confirmed(monotime.Time) {}

// Advance acts on the deadlines that have passed.
func (m *Syncd) Advance(now monotime.Time) { m.peers.Advance(now) }

// Next returns the earliest time at which there is something to do that is not
// waiting already; 0 if that is now.
func (m *Syncd) Next(now monotime.Time) monotime.Time {
	next := m.peers.Next()
	if next == 0 {
		return now
	}
	for _, p := range m.peers.Peers() {
		if m.asks(now, p) {
			next = monotime.Earliest(next, max(p.State.statusDue, now))
		}
	}
	if m.peers.Alive(now) {
		next = monotime.Earliest(next, m.bulk.next(now, m.cfg.BulkInterval))
	}
	return next
}

// Pending reports whether AppendDatagram has something to do now.
func (m *Syncd) Pending(now monotime.Time) bool {
	if m.peers.HelloDue(now) || m.send.First(queue.Dirty) != 0 {
		return true
	}
	for _, p := range m.peers.Peers() {
		if m.statusReady(now, p) {
			return true
		}
	}
	return m.peers.Alive(now) && m.bulk.ready(now, m.cfg.BulkInterval)
}

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it. b must have room for limit plus one message, so that no step allocates.
func (m *Syncd) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	start := len(b)
	if m.peers.HelloDue(now) {
		b = m.peers.AppendHello(now, b, m.send.Next)
	}
	for _, p := range m.peers.Peers() {
		if m.statusReady(now, p) && (len(b)-start+statusRoom <= limit || len(b) == start) {
			b = m.appendStatus(now, b, p)
		}
	}
	if !m.peers.Alive(now) {
		// Whoever comes asks for everything, and who comes back gets it.
		m.send.Drop()
		m.bulk.cancel()
		return b
	}
	for h := m.send.First(queue.Dirty); h != 0; h = m.send.First(queue.Dirty) {
		var ok bool
		if b, ok, _ = m.send.Append(now, b, start, limit, h); !ok {
			return b
		}
		m.Stats.DataSent++
	}
	return m.appendBulk(now, b, start, limit)
}

// asks reports whether p is to be told what we want of it.
func (m *Syncd) asks(now monotime.Time, p *meet.Peer[follow]) bool {
	return p.Met && p.Knows && !p.State.wanted.Empty() && p.Alive(now, m.peers.DeadAfter())
}

func (m *Syncd) statusReady(now monotime.Time, p *meet.Peer[follow]) bool {
	return m.asks(now, p) && (p.State.statusDue == 0 || now >= p.State.statusDue)
}

func (m *Syncd) appendStatus(now monotime.Time, b []byte, p *meet.Peer[follow]) []byte {
	f := &p.State
	f.statusDue = now.Add(statusRepeat)
	m.Stats.StatusSent++
	return wire.AppendStatus(b, m.send.Next, p.Session, f.expected-1, f.bulk, f.wanted, nil)
}

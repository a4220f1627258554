package alarm

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// SyncdConfig holds what an operator may set, and who we are.
type SyncdConfig struct {
	meet.Config
	Alarm Config
}

// SyncdStats counts what happened since the start, in messages. What concerns the
// meeting is in Meeting.
type SyncdStats struct {
	SendStats
	DataReceived uint64

	Unknown uint64 // of kinds that mean nothing in this mode
	Bad     uint64 // data messages that did not parse
	Before  uint64 // repeated or late: dropped
	Missing uint64 // numbers that were left out
}

// follow is what is known of a peer's stream.
type follow struct {
	since    monotime.Time // meet.Peer.Since when it was looked at last
	told     bool          // it has got everything since
	expected wire.Seq
	expireAt monotime.Time
}

// Syncd is ALARM with any number of peers in the syncd dialect. It is not safe for
// concurrent use.
type Syncd struct {
	cfg     Config
	replica Expirer
	r       refresher
	peers   *meet.Table[follow]
	Stats   SyncdStats
}

// NewSyncd returns a machine that sends the flows of store.
func NewSyncd(cfg SyncdConfig, store queue.Store, replica Expirer) *Syncd {
	cfg.Alarm.fill()
	m := &Syncd{cfg: cfg.Alarm, replica: replica, peers: meet.New[follow](cfg.Config)}
	m.r.init(&cfg.Alarm, store, &m.Stats.SendStats)
	return m
}

// SetDeadAfter changes the silence after which a peer counts as gone.
func (m *Syncd) SetDeadAfter(d time.Duration) { m.peers.SetDeadAfter(d) }

// Enqueue says that h changed. replace says that the flow took the place of another
// with the same tuple; a message replaces what the receiver has in any case.
func (m *Syncd) Enqueue(h flow.Handle, replace bool) { m.r.send.Enqueue(h, replace) }

// Forget drops h: the slot is about to be used for something else.
func (m *Syncd) Forget(h flow.Handle) { m.r.send.Forget(h) }

// ForgetAll drops every flow, before the cache is emptied.
func (m *Syncd) ForgetAll() { m.r.clear() }

// Evict returns 0: no deletion waits for anything but its turn.
func (m *Syncd) Evict() flow.Handle { return 0 }

// Bulk sends everything to everyone, once, at a steady pace.
func (m *Syncd) Bulk() { m.r.all() }

// RequestResync does nothing: everything comes by itself. Confirmed does nothing:
// no entry of the external cache is in doubt, it is refreshed or it expires.
func (m *Syncd) RequestResync()          {}
func (m *Syncd) Confirmed(monotime.Time) {}

// Receive takes one message of a session. A message that is to be delivered must be
// applied before the next one is given in.
func (m *Syncd) Receive(now monotime.Time, session uint64, msg *wire.Message) (v wire.Verdict, d wire.Delivery) {
	p, j := m.peers.Receive(now, session, msg)
	switch j {
	case meet.Refused:
		return wire.Bad, d
	case meet.Ignored:
		return wire.Drop, d
	case meet.Met:
		p.State = follow{since: p.Since, expected: msg.Seq}
		m.greeted(now, p)
		return wire.Control, d
	case meet.Greeted:
		if p != nil {
			m.greeted(now, p)
			m.see(&p.State, msg.Seq)
		}
		return wire.Control, d
	}
	m.greeted(now, p)
	f := &p.State
	switch data := msg.Type != wire.SyncCtl; {
	case !data && !msg.Sync.Kind.InStream():
		m.Stats.Unknown++
		m.see(f, msg.Seq)
		return wire.Control, d
	case msg.Seq.Before(f.expected):
		m.Stats.Before++
		return wire.Drop, d
	default:
		m.see(f, msg.Seq)
		f.expected = msg.Seq + 1
		if !data {
			m.Stats.Unknown++
			return wire.Control, d
		}
	}
	if msg.Fault != wire.FaultNone {
		m.Stats.Bad++
		return wire.Bad, d
	}
	m.Stats.DataReceived++
	return wire.Deliver, wire.Delivery{Owner: p.Owner, Confirms: true}
}

// greeted sends everything to a peer that hears us for the first time, or may do so
// again. Its entries do not expire before they could all have been refreshed.
func (m *Syncd) greeted(now monotime.Time, p *meet.Peer[follow]) {
	f := &p.State
	if f.since != p.Since || f.expireAt == 0 {
		f.since, f.told = p.Since, false
		f.expireAt = now.Add(m.cfg.CacheTimeout)
	}
	if !p.Knows {
		f.told = false
	} else if !f.told {
		f.told = true
		m.r.all()
	}
}

// see notes that a stream has come as far as seq: what lies between is lost.
func (m *Syncd) see(f *follow, seq wire.Seq) {
	if f.expected.Before(seq) {
		m.Stats.Missing += uint64(uint32(seq - f.expected))
		f.expected = seq
	}
}

// Advance acts on the deadlines that have passed.
func (m *Syncd) Advance(now monotime.Time) {
	m.peers.Advance(now)
	m.r.advance(now)
	for _, p := range m.peers.Peers() {
		if f := &p.State; p.Met && p.Alive(now, m.peers.DeadAfter()) && now >= f.expireAt {
			// What its silence has kept from being refreshed is not too old.
			m.replica.Expire(p.Owner, p.Heard.Add(-m.cfg.CacheTimeout))
			f.expireAt = now.Add(expireEvery(m.cfg.CacheTimeout))
		}
	}
}

// Next returns the earliest time at which there is something to do that is not
// waiting already.
func (m *Syncd) Next(now monotime.Time) monotime.Time {
	next := m.peers.Next()
	if next == 0 {
		return now
	}
	for _, p := range m.peers.Peers() {
		if p.Met && p.Alive(now, m.peers.DeadAfter()) {
			next = min(next, p.State.expireAt)
		}
	}
	return monotime.Earliest(next, m.r.next(now, m.peers.Alive(now)))
}

// Pending reports whether AppendDatagram has something to do now.
func (m *Syncd) Pending(now monotime.Time) bool {
	return m.peers.HelloDue(now) || m.r.changed() || m.peers.Alive(now) && m.r.ready(now)
}

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it. b must have room for limit plus one message, so that no step allocates.
func (m *Syncd) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	start := len(b)
	if m.peers.HelloDue(now) {
		b = m.peers.AppendHello(now, b, m.r.send.Next)
	}
	if !m.peers.Alive(now) {
		m.r.drop(now)
		return b
	}
	return m.r.append(now, b, start, limit)
}

// SyncdPeer describes a peer, for status.
type SyncdPeer struct {
	Name    string
	Session uint64
	Owner   uint8
	Met     bool          // in both directions
	Heard   monotime.Time // last sign of life
	Alive   bool
	Role    wire.Role // that it says it has
}

// Peers returns the state of every session that is known.
func (m *Syncd) Peers(now monotime.Time) []SyncdPeer {
	states := make([]SyncdPeer, 0, len(m.peers.Peers()))
	for _, p := range m.peers.Peers() {
		states = append(states, SyncdPeer{
			Name: p.Name, Session: p.Session, Owner: p.Owner, Met: p.Met && p.Knows,
			Heard: p.Heard, Alive: p.Alive(now, m.peers.DeadAfter()), Role: p.Role.Role,
		})
	}
	return states
}

// Meeting returns the counters of how sessions were met.
func (m *Syncd) Meeting() meet.Stats { return m.peers.Stats }

// SetRole changes the role that this node says it has, which is told at once.
func (m *Syncd) SetRole(now monotime.Time, r wire.Role) { m.peers.SetRole(now, r) }

// Leads reports whether the node with this owner number may be in charge, by its word, and
// whether it knows our role (see meet.View.Knows), and what is held of it and has not
// been told of since it is heard has expired.
func (m *Syncd) Leads(now monotime.Time, owner uint8) (leads, known bool) {
	p := m.peers.Living(now, owner)
	if p == nil {
		return false, false
	}
	return p.Role.Leads(), m.peers.Knows(p) && now.Sub(p.Since) >= m.cfg.CacheTimeout
}

// Owner returns the owner number of a name, or 0.
func (m *Syncd) Owner(name string) uint8 { return m.peers.Owner(name) }

// AddOwner gives a name an owner number, for entries that were loaded from an earlier
// life; 0 if there is none left.
func (m *Syncd) AddOwner(name string) uint8 { return m.peers.AddOwner(name) }

// OwnerName returns the name that an owner number stands for.
func (m *Syncd) OwnerName(owner uint8) string { return m.peers.OwnerName(owner) }

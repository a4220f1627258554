package notrack

import (
	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// follow is what is known of a peer's stream.
type follow struct {
	since     monotime.Time // meet.Peer.Since when it was looked at last
	expected  wire.Seq
	wanted    wire.Mask     // we ask for these buckets
	unsure    wire.Mask     // something of these may have been lost
	statusDue monotime.Time // 0 for at once

	// The bulk update under way: from its BULK_BEGIN to its BULK_END.
	bulk   uint32 // id of the last BULK_BEGIN
	mask   wire.Mask
	open   bool
	intact bool // no number was missed since
}

// Receive takes one message of a session. A message that is to be delivered must be
// applied to the replica before the next one is given in. Bad leaves the machine as it
// was, except that a data message whose attributes did not parse takes its number with
// it.
func (m *Syncd) Receive(now monotime.Time, session uint64, msg *wire.Message) (v wire.Verdict, d wire.Delivery) {
	p, j := m.peers.Receive(now, session, msg)
	switch j {
	case meet.Refused:
		return wire.Bad, d
	case meet.Ignored:
		return wire.Drop, d
	case meet.Met:
		p.State = follow{since: p.Since, expected: msg.Seq, wanted: wire.AllBuckets, unsure: wire.AllBuckets}
		m.replica.Doubt(p.Owner, wire.AllBuckets)
		return wire.Control, d
	case meet.Greeted:
		if p != nil {
			m.returned(p)
			m.see(&p.State, msg.Seq)
		}
		return wire.Control, d
	}
	m.returned(p)
	f := &p.State
	data := msg.Type != wire.SyncCtl
	if !data && !msg.Sync.Kind.InStream() {
		m.see(f, msg.Seq)
		m.receiveAside(now, msg.Sync)
		return wire.Control, d
	}
	if msg.Seq.Before(f.expected) {
		m.Stats.Before++
		return wire.Drop, d
	}
	m.see(f, msg.Seq)
	f.expected = msg.Seq + 1
	switch {
	case !data:
		m.receiveMarker(p, msg.Sync)
		return wire.Control, d
	case msg.Fault != wire.FaultNone:
		m.Stats.Bad++
		return wire.Bad, d
	}
	m.Stats.DataReceived++
	// Nothing older than what has come is ever delivered, so whatever comes is news.
	return wire.Deliver, wire.Delivery{Owner: p.Owner, Confirms: true}
}

// returned sends everything to a peer that comes back after a silence: if nobody else
// was there, changes were not even sent meanwhile.
func (m *Syncd) returned(p *meet.Peer[follow]) {
	if p.State.since != p.Since {
		p.State.since = p.Since
		m.Bulk()
	}
}

// see notes that a stream has come as far as seq: what lies between is lost.
func (m *Syncd) see(f *follow, seq wire.Seq) {
	if !f.expected.Before(seq) {
		return
	}
	m.Stats.Gaps++
	m.Stats.Missing += uint64(uint32(seq - f.expected))
	f.expected, f.intact, f.unsure = seq, false, wire.AllBuckets
}

// receiveAside handles a message that is not of the stream.
func (m *Syncd) receiveAside(now monotime.Time, s *wire.Sync) {
	if s.Kind != wire.Status {
		m.Stats.Unknown++
		return
	}
	m.Stats.StatusReceived++
	if s.To == m.cfg.Session {
		m.askFor(now, s.Mask)
	}
}

// receiveMarker handles a message of the stream that is not a flow.
func (m *Syncd) receiveMarker(p *meet.Peer[follow], s *wire.Sync) {
	f := &p.State
	switch s.Kind {
	case wire.BulkBegin:
		m.Stats.BulkReceived++
		if f.open && f.bulk == s.Bulk && f.mask == s.Mask {
			return // repeated, by a sender that waits for STATUS
		}
		f.bulk, f.mask, f.open, f.intact = s.Bulk, s.Mask, true, true
		f.wanted = f.wanted.Less(s.Mask)
		m.replica.Doubt(p.Owner, s.Mask)
	case wire.BulkEnd:
		m.Stats.BulkReceived++
		if !f.open || f.bulk != s.Bulk || f.mask != s.Mask {
			return // its beginning was missed
		}
		f.open = false
		if !f.intact {
			m.Stats.Holed++
			return
		}
		m.Stats.Whole++
		f.unsure = f.unsure.Less(s.Mask)
		m.replica.Sweep(p.Owner, s.Mask)
	default:
		m.Stats.Unknown++
	}
}

// SyncdPeer describes a peer, for status.
type SyncdPeer struct {
	Name     string
	Session  uint64
	Owner    uint8
	Met      bool          // in both directions
	Heard    monotime.Time // last sign of life
	Alive    bool
	Role     wire.Role // that it says it has
	Wanted   bool      // we ask for some of its flows
	Unsure   bool      // something of it may have been lost and has not come since
	Doubtful bool      // entries of it are not confirmed
}

// Peers returns the state of every session that is known.
func (m *Syncd) Peers(now monotime.Time) []SyncdPeer {
	states := make([]SyncdPeer, 0, len(m.peers.Peers()))
	for _, p := range m.peers.Peers() {
		s := SyncdPeer{
			Name: p.Name, Session: p.Session, Owner: p.Owner, Met: p.Met && p.Knows,
			Heard: p.Heard, Alive: p.Alive(now, m.peers.DeadAfter()), Role: p.Role.Role,
			Wanted: !p.State.wanted.Empty(), Unsure: !p.State.unsure.Empty(),
		}
		s.Doubtful = p.Met && !m.replica.Doubtful(p.Owner).Empty()
		states = append(states, s)
	}
	return states
}

// Meeting returns the counters of how sessions were met.
func (m *Syncd) Meeting() meet.Stats { return m.peers.Stats }

// Owner returns the owner number of a name, or 0.
func (m *Syncd) Owner(name string) uint8 { return m.peers.Owner(name) }

// AddOwner gives a name an owner number, for entries that were loaded from an earlier
// life; 0 if there is none left.
func (m *Syncd) AddOwner(name string) uint8 { return m.peers.AddOwner(name) }

// OwnerName returns the name that an owner number stands for.
func (m *Syncd) OwnerName(owner uint8) string { return m.peers.OwnerName(owner) }

// SetRole changes the role that this node says it has, which is told at once.
func (m *Syncd) SetRole(now monotime.Time, r wire.Role) { m.peers.SetRole(now, r) }

// Leads reports whether the node with this owner number may be in charge, by its word, and
// whether it knows our role (see meet.View.Knows), and nothing of it is wanted any more.
func (m *Syncd) Leads(now monotime.Time, owner uint8) (leads, known bool) {
	p := m.peers.Living(now, owner)
	if p == nil {
		return false, false
	}
	return p.Role.Leads(), m.peers.Knows(p) && p.State.wanted.Empty()
}

// InStep reports whether everything of ours has left.
func (m *Syncd) InStep() bool {
	return m.send.First(queue.Dirty) == 0 && !m.bulk.running() && m.bulk.wanted == 0
}

package stream

import (
	"time"

	"syncd/internal/monotime"
	"syncd/internal/sync/meet"
	"syncd/internal/wire"
)

// peer is a session of another node.
type peer struct {
	session   uint64
	name      string
	owner     uint8 // 0 until it is met
	met       bool
	knows     bool // it has met us
	heard     monotime.Time
	challenge [16]byte  // that we want echoed
	theirs    [16]byte  // that it wants echoed
	role      meet.View // what it says of its role; zero until it is met
	compact   bool      // it understands messages that refer to others

	// Its stream, as we follow it. Valid if met.
	expected   wire.Seq
	missing    []gap         // before expected, ascending
	patience   time.Duration // with gaps that may only be late
	wanted     wire.Mask
	bulkSeen   uint32 // id of the last BULK_BEGIN
	bulkMask   wire.Mask
	bulkAt     wire.Seq // its number
	ending     bool     // BULK_END came, we are not whole yet
	sweeping   bool     // the replica removes what was not confirmed
	uncovered  int      // messages that no STATUS of ours covers
	statusDue  monotime.Time
	statusAt   monotime.Time // of the last one
	proven     monotime.Time // last digest that agreed
	repairAt   monotime.Time // when buckets that differ may be wanted again
	repairWait time.Duration // 0 since a digest agreed
	differed   bool          // the last one did not

	// Our stream, as far as it follows. Valid if counted.
	counted  bool
	covered  wire.Seq      // it has, or was told not to expect, everything up to here
	progress monotime.Time // when covered last grew
	wants    wire.Mask
	told     uint32       // id of the last bulk update of ours whose beginning it has seen
	lacks    []wire.Range // to be answered by VOID
	ticket   wire.Seq     // once the queue is past it, what it lacked has left again
	void     bool         // a VOID is due
	lost     bool         // and it says that we do not know any more
	losing   bool         // it has not been heard to know that yet
	lostAt   wire.Seq     // what we do not know any more is before this
}

// gap is a range of numbers that have not come, and since when that is known.
type gap struct {
	wire.Range
	since monotime.Time
}

// whole reports whether we lack nothing of the peer's stream so far.
func (p *peer) whole() bool { return len(p.missing) == 0 }

func (p *peer) alive(now monotime.Time, dead time.Duration) bool { return now.Sub(p.heard) < dead }

func (m *Machine) find(session uint64) *peer {
	for _, p := range m.peers {
		if p.session == session {
			return p
		}
	}
	return nil
}

// meetable returns the entry of a session that has greeted us, making one in the
// place of the longest unheard if there is no room; nil if there is none.
func (m *Machine) meetable(now monotime.Time, session uint64) *peer {
	if p := m.find(session); p != nil {
		return p
	}
	p := &peer{session: session, heard: now}
	m.cfg.Random(p.challenge[:])
	if len(m.peers) < maxPeers {
		m.peers = append(m.peers, p)
		return p
	}
	oldest := -1
	for i, q := range m.peers {
		if (!q.met || !q.alive(now, m.cfg.DeadAfter)) && (oldest < 0 || q.heard < m.peers[oldest].heard) {
			oldest = i
		}
	}
	if oldest < 0 {
		return nil
	}
	m.leaveOut(m.peers[oldest])
	m.cfg.Drop(m.peers[oldest].session)
	m.peers[oldest] = p
	return p
}

// meet makes p a peer: it has proven that it lives now. seq is the number that its
// stream goes on with.
func (m *Machine) meet(now monotime.Time, p *peer, seq wire.Seq) {
	if p.name == m.cfg.Name {
		m.Stats.Conflicts++
	}
	for i := 0; i < len(m.peers); i++ {
		q := m.peers[i]
		if q == p || !q.met || q.name != p.name {
			continue
		}
		if q.alive(now, 3*helloInterval) {
			m.Stats.Conflicts++ // or a restart within three seconds
		}
		m.leaveOut(q)
		m.cfg.Drop(q.session)
		m.peers = append(m.peers[:i], m.peers[i+1:]...)
		i--
	}
	owner := uint8(0)
	for i, name := range m.owners {
		if name == p.name {
			owner = uint8(i + 1)
		}
	}
	if owner == 0 {
		if len(m.owners) == maxOwners {
			m.Stats.OwnersFull++
			return
		}
		m.owners = append(m.owners, p.name)
		owner = uint8(len(m.owners))
	}
	p.met, p.owner = true, owner
	m.cfg.Meet(p.session)
	m.replica.Begin(owner)
	p.expected = seq
	p.wanted = wire.AllBuckets
	p.statusDue = now
	p.patience = minPatience
	m.Stats.Met++
}

// leaveOut stops keeping things for p.
func (m *Machine) leaveOut(p *peer) {
	if p.counted {
		p.counted = false
		m.Stats.LeftOut++
	}
	p.lacks, p.void, p.lost, p.losing, p.wants = p.lacks[:0], false, false, false, wire.Mask{}
}

// Owner returns the owner number of a name, or 0; AddOwner gives it one, for
// entries that were loaded from an earlier life.
func (m *Machine) Owner(name string) uint8 {
	for i, n := range m.owners {
		if n == name {
			return uint8(i + 1)
		}
	}
	return 0
}

// AddOwner returns the owner number of a name, giving it one if need be; 0 if
// there is none left.
func (m *Machine) AddOwner(name string) uint8 {
	if o := m.Owner(name); o != 0 || len(m.owners) == maxOwners {
		return o
	}
	m.owners = append(m.owners, name)
	return uint8(len(m.owners))
}

// OwnerName returns the name that an owner number stands for.
func (m *Machine) OwnerName(owner uint8) string {
	if owner == 0 || int(owner) > len(m.owners) {
		return ""
	}
	return m.owners[owner-1]
}

// PeerState describes a peer, for status.
type PeerState struct {
	Name     string
	Session  uint64
	Owner    uint8
	Met      bool          // in both directions
	Heard    monotime.Time // last sign of life
	Alive    bool
	Lag      int           // messages of ours that it has not covered; meaningless unless Counted
	Counted  bool          // we keep for it what it has not got
	Missing  int           // ranges of its stream that we lack
	Wanted   bool          // we want a bulk update of some of its buckets
	Doubtful bool          // entries of it are not confirmed
	Wants    bool          // it wants a bulk update of ours
	Proven   monotime.Time // when a digest of its stream last agreed; 0 for never
	Differed bool          // the last digest did not agree
	Role     wire.Role     // that it says it has

	// Shadow: another session of this name is met and alive. This one is a record of an
	// earlier life, which anybody can repeat and which is never met, or a restarted peer
	// that will be met in a moment: neither says anything of the peer yet.
	Shadow bool
}

// Peers returns the state of every session that is known.
func (m *Machine) Peers(now monotime.Time) []PeerState {
	states := make([]PeerState, 0, len(m.peers))
	for _, p := range m.peers {
		s := PeerState{
			Name: p.name, Session: p.session, Owner: p.owner, Met: p.met && p.knows,
			Heard: p.heard, Alive: p.alive(now, m.cfg.DeadAfter), Counted: p.counted,
			Missing: len(p.missing), Wanted: !p.wanted.Empty(), Wants: !p.wants.Empty(),
			Proven: p.proven, Differed: p.differed, Role: p.role.Role, Shadow: m.shadowed(p, now),
		}
		if p.met {
			s.Doubtful = !m.replica.Doubtful(p.owner).Empty() || p.ending
		}
		if p.counted {
			s.Lag = int(m.next - 1 - p.covered)
		}
		states = append(states, s)
	}
	return states
}

// Leads reports whether the node with this owner number may be in charge, by the word of
// a session that is met and heard, and whether our flows may be given up in its favour:
// it knows our role (see meet.View.Knows), and what is held of it is what it has, but for
// what is in doubt.
func (m *Machine) Leads(now monotime.Time, owner uint8) (leads, known bool) {
	for _, p := range m.peers {
		if p.met && p.owner == owner && p.alive(now, m.cfg.DeadAfter) {
			return p.role.Leads(), p.role.Knows(&m.self) && p.whole() && p.wanted.Empty()
		}
	}
	return false, false
}

// shadowed is PeerState.Shadow.
func (m *Machine) shadowed(p *peer, now monotime.Time) bool {
	if p.met {
		return false
	}
	for _, q := range m.peers {
		if q.met && q.name == p.name && q.alive(now, m.cfg.DeadAfter) {
			return true
		}
	}
	return false
}

// InStep reports whether everything of ours has reached every peer that counts.
func (m *Machine) InStep() bool { return m.dirty == 0 && m.flying == 0 && m.bulk.stage == bulkIdle }

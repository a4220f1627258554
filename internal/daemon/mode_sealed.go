package daemon

import (
	"fmt"
	"net/netip"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/monotime"
	"syncd/internal/sync/alarm"
	"syncd/internal/sync/notrack"
	"syncd/internal/sync/stream"
	"syncd/internal/wire"
)

// streamMode is FT-FW in the syncd dialect.
type streamMode struct {
	d *Daemon
	e *engine.Engine
	m *stream.Machine
}

func (o *streamMode) ownerName(owner uint8) string          { return o.m.OwnerName(owner) }
func (o *streamMode) addOwner(name string) uint8            { return o.m.AddOwner(name) }
func (o *streamMode) setDeadAfter(d time.Duration)          { o.m.SetDeadAfter(d) }
func (o *streamMode) setRole(r wire.Role)                   { o.m.SetRole(o.e.Now(), r) }
func (o *streamMode) leads(owner uint8) (leads, known bool) { return o.m.Leads(o.e.Now(), owner) }

func (o *streamMode) gone() []uint8 {
	alive := map[uint8]bool{}
	for _, p := range o.m.Peers(o.e.Now()) {
		alive[p.Owner] = alive[p.Owner] || p.Alive && p.Met
	}
	return without(o.e.Replica().Owners(), alive)
}

// without returns the owners that are not in alive.
func without(owners []uint8, alive map[uint8]bool) (gone []uint8) {
	for _, o := range owners {
		if !alive[o] {
			gone = append(gone, o)
		}
	}
	return gone
}

func (o *streamMode) look(s *view) {
	d, m := o.d, &o.m.Stats
	s.alone = true
	peers := o.m.Peers(s.now)
	for i := range peers {
		p := &peers[i]
		if p.Shadow {
			continue // or anybody could spoil the status by repeating an old record
		}
		peer := ctl.PeerStatus{
			Name: p.Name, Address: addrText(o.e.SessionAddr(p.Session)), HeardAgeS: s.now.Sub(p.Heard).Seconds(), State: ctl.PeerUp,
			Bulk: p.Doubtful || p.Wants, Resync: p.Wanted, Role: peerRole(p.Role),
		}
		if c := o.e.Replica().Cache(p.Owner); p.Owner != 0 && c != nil {
			peer.Flows = uint64(c.Len())
		}
		if p.Counted {
			peer.Unacked = uint64(max(p.Lag, 0))
		}
		if p.Proven != 0 {
			peer.ProvenAgeS = s.now.Sub(p.Proven).Seconds()
		}
		var problem string
		switch {
		case !p.Alive:
			peer.State = ctl.PeerSilent
			problem = fmt.Sprintf("peer %s has been silent for %v", p.Name, s.now.Sub(p.Heard).Round(time.Second))
		case !p.Met:
			peer.State = ctl.PeerHelloing
			problem = fmt.Sprintf("the greeting with peer %s is under way", p.Name)
		case p.Wanted || p.Doubtful:
			problem = fmt.Sprintf("a bulk update from peer %s is under way", p.Name)
		case p.Wants:
			problem = fmt.Sprintf("a bulk update to peer %s is under way", p.Name)
		case p.Proven == 0 || s.now.Sub(p.Proven) > provenFor:
			problem = fmt.Sprintf("no digest has proven lately that we are in step with peer %s", p.Name)
		case !p.Counted:
			problem = fmt.Sprintf("peer %s does not confirm what we send", p.Name)
		}
		if p.Alive {
			s.alone = false
			if s.proven == 0 || p.Proven < s.proven {
				s.proven = p.Proven
			}
		}
		peer.InSync = problem == ""
		if problem != "" {
			s.problems = append(s.problems, problem)
		}
		s.peers = append(s.peers, peer)
	}
	if len(peers) == 0 {
		s.problems = append(s.problems, "no peer has been heard yet")
	}
	es := &s.engine
	s.sync = ctl.SyncStats{
		MessagesSent: map[string]uint64{
			"data": m.DataSent - m.CompactSent, "compact": m.CompactSent, "hello": m.HelloSent, "status": m.StatusSent, "void": m.VoidSent, "bulk": m.BulkSent, "digest": m.DigestSent,
		},
		MessagesReceived: map[string]uint64{
			"data": m.DataReceived - m.CompactReceived, "compact": m.CompactReceived, "hello": m.HelloReceived, "status": m.StatusReceived, "void": m.VoidReceived,
			"bulk": m.BulkReceived, "digest": m.DigestReceived,
		},
		AcksSent: m.StatusSent, AcksReceived: m.StatusReceived,
		Lost: m.Missing, Before: m.Before, Resent: m.Resent, Unfollowed: m.Unfollowed, BulksSent: m.BulksSent,
		DigestsAgreed: m.Agreed, DigestsDiffered: m.Differed, Repaired: m.BadBuckets,
		Malformed: malformed(es, m.Bad), Refused: d.box.stats(),
	}
}

// provenFor is how old the last proof of being in step may be.
const provenFor = 5 * time.Second

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// bestEffortPeer is what NOTRACK and ALARM say of a peer in the syncd dialect.
type bestEffortPeer struct {
	name       string
	session    uint64
	owner      uint8
	met, alive bool
	heard      monotime.Time
	role       wire.Role
	problem    string // beyond that
}

// lookBestEffort adds peers without proofs.
func lookBestEffort(s *view, d *Daemon, e *engine.Engine, peers []bestEffortPeer) {
	s.alone = true
	lives := map[string]bool{}
	for _, p := range peers {
		lives[p.name] = lives[p.name] || p.met && p.alive
	}
	for _, p := range peers {
		if !p.met && lives[p.name] {
			continue // a record of an earlier life, played by somebody
		}
		peer := ctl.PeerStatus{
			Name: p.name, Address: addrText(e.SessionAddr(p.session)),
			HeardAgeS: s.now.Sub(p.heard).Seconds(), State: ctl.PeerUp,
			Role: peerRole(p.role),
		}
		if c := e.Replica().Cache(p.owner); p.owner != 0 && c != nil {
			peer.Flows = uint64(c.Len())
		}
		problem := p.problem
		switch {
		case !p.alive:
			peer.State = ctl.PeerSilent
			problem = fmt.Sprintf("peer %s has been silent for %v", p.name, s.now.Sub(p.heard).Round(time.Second))
		case !p.met:
			peer.State = ctl.PeerHelloing
			problem = fmt.Sprintf("the greeting with peer %s is under way", p.name)
		}
		s.alone = s.alone && !p.alive
		if peer.InSync = problem == ""; !peer.InSync {
			s.problems = append(s.problems, problem)
		}
		s.peers = append(s.peers, peer)
	}
	if len(peers) == 0 {
		s.problems = append(s.problems, "no peer has been heard yet")
	}
	s.sync.Refused = d.box.stats()
}

// goneBestEffort returns the owners among whose sessions none lives.
func goneBestEffort(e *engine.Engine, peers []bestEffortPeer) []uint8 {
	alive := map[uint8]bool{}
	for _, p := range peers {
		alive[p.owner] = alive[p.owner] || p.alive && p.met
	}
	return without(e.Replica().Owners(), alive)
}

// sealedNotrackMode is NOTRACK in the syncd dialect.
type sealedNotrackMode struct {
	d *Daemon
	e *engine.Engine
	m *notrack.Syncd
}

func (o *sealedNotrackMode) ownerName(owner uint8) string { return o.m.OwnerName(owner) }
func (o *sealedNotrackMode) addOwner(name string) uint8   { return o.m.AddOwner(name) }
func (o *sealedNotrackMode) setDeadAfter(d time.Duration) { o.m.SetDeadAfter(d) }
func (o *sealedNotrackMode) setRole(r wire.Role)          { o.m.SetRole(o.e.Now(), r) }
func (o *sealedNotrackMode) leads(owner uint8) (leads, known bool) {
	return o.m.Leads(o.e.Now(), owner)
}
func (o *sealedNotrackMode) gone() []uint8 { return goneBestEffort(o.e, o.peers()) }

func (o *sealedNotrackMode) peers() (peers []bestEffortPeer) {
	for _, p := range o.m.Peers(o.e.Now()) {
		b := bestEffortPeer{name: p.Name, session: p.Session, owner: p.Owner, met: p.Met, alive: p.Alive, heard: p.Heard, role: p.Role}
		switch {
		case p.Wanted || p.Doubtful:
			b.problem = fmt.Sprintf("a bulk update from peer %s is under way", p.Name)
		case p.Unsure:
			b.problem = fmt.Sprintf("messages of peer %s were lost since its last bulk update", p.Name)
		}
		peers = append(peers, b)
	}
	return peers
}

func (o *sealedNotrackMode) look(s *view) {
	lookBestEffort(s, o.d, o.e, o.peers())
	m, h := &o.m.Stats, o.m.Meeting()
	s.sync.MessagesSent = map[string]uint64{"data": m.DataSent, "hello": h.HelloSent, "status": m.StatusSent, "bulk": m.BulkSent}
	s.sync.MessagesReceived = map[string]uint64{"data": m.DataReceived, "hello": h.HelloReceived, "status": m.StatusReceived, "bulk": m.BulkReceived}
	s.sync.Lost, s.sync.Before, s.sync.BulksSent, s.sync.BulksReceived = m.Missing, m.Before, m.BulksSent, m.Whole
	s.sync.Malformed = malformed(&s.engine, h.Bad+m.Bad)
}

// sealedAlarmMode is ALARM in the syncd dialect.
type sealedAlarmMode struct {
	d *Daemon
	e *engine.Engine
	m *alarm.Syncd
}

func (o *sealedAlarmMode) ownerName(owner uint8) string          { return o.m.OwnerName(owner) }
func (o *sealedAlarmMode) addOwner(name string) uint8            { return o.m.AddOwner(name) }
func (o *sealedAlarmMode) setDeadAfter(d time.Duration)          { o.m.SetDeadAfter(d) }
func (o *sealedAlarmMode) setRole(r wire.Role)                   { o.m.SetRole(o.e.Now(), r) }
func (o *sealedAlarmMode) leads(owner uint8) (leads, known bool) { return o.m.Leads(o.e.Now(), owner) }
func (o *sealedAlarmMode) gone() []uint8                         { return goneBestEffort(o.e, o.peers()) }

func (o *sealedAlarmMode) peers() (peers []bestEffortPeer) {
	for _, p := range o.m.Peers(o.e.Now()) {
		peers = append(peers, bestEffortPeer{name: p.Name, session: p.Session, owner: p.Owner, met: p.Met, alive: p.Alive, heard: p.Heard, role: p.Role})
	}
	return peers
}

func (o *sealedAlarmMode) look(s *view) {
	lookBestEffort(s, o.d, o.e, o.peers())
	m, h := &o.m.Stats, o.m.Meeting()
	s.sync.MessagesSent = map[string]uint64{"data": m.DataSent, "hello": h.HelloSent}
	s.sync.MessagesReceived = map[string]uint64{"data": m.DataReceived, "hello": h.HelloReceived}
	s.sync.Lost, s.sync.Before = m.Missing, m.Before
	s.sync.Malformed = malformed(&s.engine, h.Bad+m.Bad)
}

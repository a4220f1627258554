package daemon

import (
	"fmt"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/monotime"
	"syncd/internal/sync/alarm"
	"syncd/internal/sync/ftfw"
	"syncd/internal/sync/notrack"
	"syncd/internal/wire"
)

// onePeer is what the modes of conntrackd's dialect have in common: one peer without
// a name.
type onePeer struct {
	d *Daemon
	e *engine.Engine
}

// onlyOwner names the peer of conntrackd's dialect in a snapshot. No node can have
// this name.
const onlyOwner = "(peer)"

func (o onePeer) addOwner(name string) uint8 {
	if name != onlyOwner {
		return 0
	}
	return 1
}

func (o onePeer) gone() []uint8 { return o.e.Replica().Owners() }

// conntrackd's dialect has no roles.
func (o onePeer) setRole(wire.Role)               {}
func (o onePeer) leads(uint8) (leads, known bool) { return true, true }

// ownerName returns the address at which the peer is heard, or else where it is
// expected.
func (o onePeer) ownerName(uint8) string {
	addrs := o.e.PeerAddrs()
	if a, ok := addrs[o.d.channel.Active()]; ok {
		return a.String()
	}
	for _, a := range addrs {
		return a.String()
	}
	for _, l := range o.d.config().Links {
		for _, p := range l.Peers {
			return p.String()
		}
	}
	return "peer"
}

// add adds the peer to s, with what keeps us from being in step with it.
func (o onePeer) add(s *view, peer ctl.PeerStatus, problems []string) {
	peer.Name, peer.Address = o.ownerName(0), o.ownerName(0)
	peer.Flows = uint64(s.entries)
	peer.InSync = len(problems) == 0
	s.alone = peer.State == ctl.PeerUnheard || peer.State == ctl.PeerSilent
	s.problems = append(s.problems, problems...)
	s.peers = []ctl.PeerStatus{peer}
}

type ftfwMode struct {
	onePeer
	m *ftfw.Machine
}

func (o *ftfwMode) setDeadAfter(d time.Duration) { o.m.SetDeadAfter(d) }

// onePeerStatus describes the peer of conntrackd's dialect, and what keeps us from being
// in step with it. evicted counts the deletions that could not be delivered.
func onePeerStatus(p ftfw.Peer, name string, now monotime.Time, evicted uint64) (peer ctl.PeerStatus, problems []string) {
	peer = ctl.PeerStatus{
		Unacked: uint64(p.Unacked), Dirty: uint64(p.Dirty),
		Bulk: p.BulkRunning || p.ResyncOpen, Resync: p.ResyncWanted,
	}
	if p.Heard != 0 {
		peer.HeardAgeS = now.Sub(p.Heard).Seconds()
	}
	peer.State, problems = heardState(p.Heard, p.Silent, name, now)
	if peer.State == ctl.PeerUp && (p.Helloing || !p.HelloDone) {
		peer.State = ctl.PeerHelloing
		problems = append(problems, fmt.Sprintf("the greeting with peer %s is under way", name))
	}
	if p.BulkRunning {
		problems = append(problems, "a bulk update to the peer is under way")
	}
	if p.ResyncWanted {
		problems = append(problems, "the peer has not answered the request for its state yet")
	}
	if evicted > 0 {
		problems = append(problems, fmt.Sprintf("%d deletions could not be delivered for want of room; the peer may hold stale entries until it restarts", evicted))
	}
	return peer, problems
}

// heardState returns the state of a peer that was heard last at this time, 0 for
// never, and what is wrong with that.
func heardState(heard monotime.Time, silent bool, name string, now monotime.Time) (state string, problems []string) {
	switch {
	case heard == 0:
		return ctl.PeerUnheard, []string{fmt.Sprintf("peer %s has not been heard yet", name)}
	case silent:
		return ctl.PeerSilent, []string{fmt.Sprintf("peer %s has been silent for %v", name, now.Sub(heard).Round(time.Second))}
	}
	return ctl.PeerUp, nil
}

func (o *ftfwMode) look(s *view) {
	p, m := o.m.Peer(), &o.m.Stats
	peer, problems := onePeerStatus(p, o.ownerName(0), s.now, s.engine.Evicted)
	o.add(s, peer, problems)
	es := &s.engine
	s.sync = ctl.SyncStats{
		MessagesSent: map[string]uint64{
			"data": m.DataSent, "ack": m.AckSent, "nack": m.NackSent, "resync": m.ResyncSent, "alive": m.AliveSent,
		},
		MessagesReceived: map[string]uint64{
			"data": m.DataReceived, "ack": m.AckReceived, "nack": m.NackReceived,
			"resync": m.ResyncReceived, "alive": m.AliveReceived,
		},
		AcksSent: m.AckSent, AcksReceived: m.AckReceived, NacksSent: m.NackSent, NacksReceived: m.NackReceived,
		Lost: m.Missing, Before: m.Before, Resent: m.Resent + m.Retried,
		ResyncsAsked: m.ResyncSent, ResyncsServed: m.ResyncReceived, BulksSent: m.BulksSent, BulksReceived: m.BulksReceived,
		Malformed: malformed(es, m.BadHeader), Refused: map[string]uint64{"foreign": es.ForeignPeer},
	}
}

type notrackMode struct {
	onePeer
	m *notrack.Conntrackd
}

func (o *notrackMode) setDeadAfter(d time.Duration) { o.m.SetDeadAfter(d) }

func (o *notrackMode) look(s *view) {
	p, m := o.m.Peer(), &o.m.Stats
	state, problems := heardState(p.Heard, p.Silent, o.ownerName(0), s.now)
	peer := ctl.PeerStatus{State: state, Dirty: uint64(p.Dirty), Bulk: p.BulkRunning, Resync: p.ResyncWanted}
	if p.Heard != 0 {
		peer.HeardAgeS = s.now.Sub(p.Heard).Seconds()
	}
	if p.BulkRunning {
		problems = append(problems, "a bulk update to the peer is under way")
	}
	if p.ResyncWanted {
		problems = append(problems, "the peer has not answered the request for its state yet")
	}
	if p.Unsure {
		problems = append(problems, "messages of the peer were lost since its last bulk update")
	}
	o.add(s, peer, problems)
	s.sync = ctl.SyncStats{
		MessagesSent:     map[string]uint64{"data": m.DataSent, "resync": m.ResyncSent, "alive": m.AliveSent},
		MessagesReceived: map[string]uint64{"data": m.DataReceived, "resync": m.ResyncReceived, "alive": m.AliveReceived},
		Lost:             m.Lost, Before: m.Before,
		ResyncsAsked: m.ResyncSent, ResyncsServed: m.ResyncReceived, BulksSent: m.BulksSent,
		Malformed: malformed(&s.engine, m.BadHeader), Refused: map[string]uint64{"foreign": s.engine.ForeignPeer},
	}
}

type alarmMode struct {
	onePeer
	m *alarm.Conntrackd
}

// setDeadAfter has no meaning here: nothing but data comes.
func (o *alarmMode) setDeadAfter(time.Duration) {}

func (o *alarmMode) look(s *view) {
	m := &o.m.Stats
	heard := o.e.PeerHeard()
	// A peer without flows says nothing, so silence means nothing.
	state, problems := heardState(heard, false, o.ownerName(0), s.now)
	peer := ctl.PeerStatus{State: state}
	if heard != 0 {
		peer.HeardAgeS = s.now.Sub(heard).Seconds()
	}
	o.add(s, peer, problems)
	s.sync = ctl.SyncStats{
		MessagesSent:     map[string]uint64{"data": m.DataSent},
		MessagesReceived: map[string]uint64{"data": m.DataReceived},
		Malformed:        malformed(&s.engine, m.Swallowed+m.BadType), Refused: map[string]uint64{"foreign": s.engine.ForeignPeer},
	}
}

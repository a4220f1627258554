package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"syncd/internal/cache"
	"syncd/internal/channel"
	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/monotime"
	"syncd/internal/sync/ftfw"
	"syncd/internal/wire"
)

// snapshot is what one turn of the loop tells of itself.
type snapshot struct {
	now                monotime.Time
	peer               ftfw.Peer
	peerName           string
	ftfw               ftfw.Stats
	engine             engine.Stats
	problems           []string
	internal, external cache.Stats
	alive, dead        int // internal
	entries            int // external
	limit, extLimit    int
	active             int
	linkErr            error
}

// look takes a snapshot on the loop.
func (d *Daemon) look(ctx context.Context) (s snapshot, err error) {
	err = d.engine.Do(ctx, func() {
		e := d.engine
		in, x := e.Internal(), e.External()
		s = snapshot{
			now: e.Now(), peer: d.ftfw.Peer(), peerName: d.peerName(), ftfw: d.ftfw.Stats, engine: e.Stats,
			problems: e.Problems(), internal: in.Stats(), external: x.Stats(),
			alive: in.Len(), dead: in.DeadLen(), entries: x.Len(),
			limit: in.Limit(), extLimit: x.Limit(),
			active: d.channel.Active(), linkErr: d.channel.Err(),
		}
	})
	return s, err
}

// peerName returns the address at which the peer is heard, or else where it is
// expected. It runs on the loop.
func (d *Daemon) peerName() string {
	addrs := d.engine.PeerAddrs()
	if a, ok := addrs[d.channel.Active()]; ok {
		return a.String()
	}
	for _, a := range addrs {
		return a.String()
	}
	for _, l := range d.config().Links {
		for _, p := range l.Peers {
			return p.String()
		}
	}
	return "peer"
}

// state returns the peer's state in the words of ctl, and what is wrong with it.
func (s *snapshot) state() (state string, problems []string) {
	p := &s.peer
	switch {
	case p.Heard == 0:
		state = ctl.PeerUnheard
		problems = append(problems, fmt.Sprintf("peer %s has not been heard yet", s.peerName))
	case p.Silent:
		state = ctl.PeerSilent
		problems = append(problems, fmt.Sprintf("peer %s has been silent for %v", s.peerName, s.now.Sub(p.Heard).Round(time.Second)))
	case p.Helloing || !p.HelloDone:
		state = ctl.PeerHelloing
		problems = append(problems, fmt.Sprintf("the greeting with peer %s is under way", s.peerName))
	default:
		state = ctl.PeerUp
	}
	if p.BulkRunning {
		problems = append(problems, "a bulk update to the peer is under way")
	}
	if p.ResyncWanted {
		problems = append(problems, "the peer has not answered the request for its state yet")
	}
	if n := s.engine.Evicted; n > 0 {
		problems = append(problems, fmt.Sprintf("%d deletions could not be delivered for want of room; the peer may hold stale entries until it restarts", n))
	}
	return state, problems
}

// Status implements ctl.Node.
func (d *Daemon) Status(ctx context.Context) (*ctl.Status, error) {
	s, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	cfg := d.cfg
	st := &ctl.Status{
		Node: cfg.Node.Name, Version: d.opts.Version,
		Role: d.role, Since: d.roleSince, Started: d.started, UptimeS: monotime.Now().Sub(d.begun).Seconds(),
		Mode: string(cfg.Sync.Mode), Wire: string(cfg.Sync.Wire),
		LastCommit: d.lastCommit, Task: d.task,
	}
	d.mu.Unlock()

	state, problems := s.state()
	if s.linkErr != nil {
		problems = append([]string{s.linkErr.Error()}, problems...)
	}
	st.Problems = append(problems, s.problems...)
	if st.Problems == nil {
		st.Problems = []string{}
	}
	st.InSync = len(st.Problems) == 0
	st.Ready = st.InSync || state == ctl.PeerUnheard || state == ctl.PeerSilent
	peer := ctl.PeerStatus{
		Name: s.peerName, Address: s.peerName, State: state, Flows: uint64(s.entries),
		Unacked: uint64(s.peer.Unacked), Dirty: uint64(s.peer.Dirty),
		Bulk: s.peer.BulkRunning || s.peer.ResyncOpen, Resync: s.peer.ResyncWanted, InSync: st.InSync,
	}
	if s.peer.Heard != 0 {
		peer.HeardAgeS = s.now.Sub(s.peer.Heard).Seconds()
	}
	st.Peers = []ctl.PeerStatus{peer}
	for i, l := range d.links {
		ls := ctl.LinkStatus{
			Name: l.Name(), Type: string(cfg.Links[i].Type), Interface: l.Interface(),
			Active: i == s.active, Up: l.Up(), MaxPayloadBytes: l.MaxPayload(),
		}
		if !ls.Up {
			ls.Reason = "the interface is down, has no carrier, or is missing"
		}
		st.Links = append(st.Links, ls)
	}
	st.Internal = ctl.CacheStatus{
		Entries: uint64(s.alive), Dead: uint64(s.dead), Limit: uint64(s.limit),
		Refused: s.internal.Refused, Bytes: s.internal.SlabBytes + s.internal.IndexBytes + s.internal.SideBytes,
	}
	st.External = ctl.CacheStatus{
		Entries: uint64(s.entries), Limit: uint64(s.extLimit),
		Refused: s.external.Refused, Bytes: s.external.SlabBytes + s.external.IndexBytes + s.external.SideBytes,
	}
	st.Kernel.Events, st.Kernel.Warnings = -1, append([]string{}, hostWarnings()...)
	if v, err := ctnetlink.Events(); err == nil {
		st.Kernel.Events = v
	}
	if n, limit, err := ctnetlink.Count(0); err == nil {
		st.Kernel.Entries, st.Kernel.Max = uint64(n), uint64(limit)
	}
	return st, nil
}

// statusLine is the status that systemctl shows.
func (d *Daemon) statusLine(ctx context.Context) string {
	s, err := d.look(ctx)
	if err != nil {
		return "stopping"
	}
	d.mu.Lock()
	role, task := d.role, d.task
	d.mu.Unlock()
	state, problems := s.state()
	problems = append(problems, s.problems...)
	var b strings.Builder
	if role != ctl.RoleUnknown {
		fmt.Fprintf(&b, "%s; ", role)
	}
	fmt.Fprintf(&b, "%d flows of this node, %d of the peer (%s)", s.alive, s.entries, state)
	if task != "" {
		fmt.Fprintf(&b, "; %s", task)
	}
	if len(problems) > 0 {
		fmt.Fprintf(&b, "; %s", problems[0])
	} else {
		b.WriteString("; in sync")
	}
	return b.String()
}

// Stats implements ctl.Node.
func (d *Daemon) Stats(ctx context.Context) (*ctl.Stats, error) {
	s, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	ls := d.listener.Stats()
	es, m := &s.engine, &s.ftfw
	st := &ctl.Stats{
		Since: d.started,
		Events: ctl.EventStats{
			Received: es.EventsNew + es.EventsUpdate + es.EventsDestroy,
			New:      es.EventsNew, Updates: es.EventsUpdate, Destroys: es.EventsDestroy,
			Filtered: es.EventsFiltered + es.EventsUnfit, Own: es.EventsOwn, Malformed: ls.Bad, Overruns: es.Overruns,
			Dumps: es.Resyncs, Dumped: es.Dumped, Repaired: es.Found + es.Swept,
			ReceiveBufferBytes: uint64(d.listener.BufferSize()),
		},
		Internal: ctl.CacheStats{
			Created: s.internal.Created, Updated: s.internal.Updated, Deleted: s.internal.Destroyed,
			Swept: es.Swept, Refused: s.internal.Refused,
		},
		External: ctl.CacheStats{
			Created: s.external.Created, Updated: s.external.Updated, Deleted: es.ExternalDel,
			Swept: es.ExternalSwept, NotFound: es.ExternalNoDel, Refused: s.external.Refused,
		},
		Sync: ctl.SyncStats{
			MessagesSent: map[string]uint64{
				"data": m.DataSent, "ack": m.AckSent, "nack": m.NackSent, "resync": m.ResyncSent, "alive": m.AliveSent,
			},
			MessagesReceived: map[string]uint64{
				"data": m.DataReceived, "ack": m.AckReceived, "nack": m.NackReceived,
				"resync": m.ResyncReceived, "alive": m.AliveReceived,
			},
			AcksSent: m.AckSent, AcksReceived: m.AckReceived, NacksSent: m.NackSent, NacksReceived: m.NackReceived,
			Lost: m.Missing, Before: m.Before, Resent: m.Resent + m.Retried,
			ResyncsAsked: m.ResyncSent, ResyncsServed: m.ResyncReceived, BulksSent: m.BulksSent, BulksReceived: es.BulksReceived,
			Malformed: map[string]uint64{}, Refused: map[string]uint64{"foreign": es.ForeignPeer},
		},
	}
	for f := wire.FaultTruncated; f <= wire.FaultType; f++ {
		st.Sync.Malformed[f.String()] = es.Faults[f]
	}
	st.Sync.Malformed[wire.FaultHeader.String()] = m.BadHeader
	for _, l := range d.links {
		st.Links = append(st.Links, linkStats(l))
	}
	d.mu.Lock()
	st.Commit = d.commitSum
	d.mu.Unlock()
	return st, nil
}

func linkStats(l *channel.Link) ctl.LinkStats {
	s := l.Stats()
	return ctl.LinkStats{
		Name:          l.Name(),
		DatagramsSent: s.SentDatagrams, DatagramsReceived: s.ReceivedDatagrams,
		SentBytes: s.SentOctets, ReceivedBytes: s.ReceivedOctets,
		Drops: map[string]uint64{
			"receive buffer full": s.Drops.Kernel, "foreign sender": s.Drops.Foreign,
			"wrong interface": s.Drops.WrongInterface, "own": s.Drops.Own, "truncated": s.Drops.Truncated,
			"send buffer full": s.SendErrors.Full, "no buffer": s.SendErrors.NoBuffer,
			"unreachable": s.SendErrors.Unreachable, "link down": s.SendErrors.Down, "refused": s.SendErrors.Refused,
			"too long": s.SendErrors.TooLong, "denied": s.SendErrors.Denied, "other": s.SendErrors.Other,
		},
	}
}

// commitReport puts a report into the words of ctl.
func commitReport(r *commit.Report, started time.Time) *ctl.CommitReport {
	rep := &ctl.CommitReport{
		Started: started, DurationS: r.Duration.Seconds(), DryRun: r.DryRun,
		Flows: ctl.CommitCount{
			Entries: uint64(r.Entries), Created: uint64(r.Created + r.Replaced), Updated: uint64(r.Updated),
			AlreadyThere: uint64(r.AlreadyThere), Skipped: uint64(r.Skipped), Refused: uint64(r.Refused),
		},
	}
	for why, n := range r.ByReason {
		if rep.Flows.RefusedBy == nil {
			rep.Flows.RefusedBy = map[string]uint64{}
		}
		rep.Flows.RefusedBy[why] = uint64(n)
	}
	if r.Duration > 0 {
		rep.RatePerS = float64(r.Entries) / r.Duration.Seconds()
	}
	return rep
}

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
	"syncd/internal/wire"
)

// view is what one turn of the loop tells of itself.
type view struct {
	now             monotime.Time
	peers           []ctl.PeerStatus
	sync            ctl.SyncStats
	engine          engine.Stats
	problems        []string // the gravest first
	internal        cache.Stats
	external        cache.Stats // of all owners
	alive, dead     int         // internal
	expects         int         // of alive
	extExpects      int         // of entries
	entries         int         // external
	limit, extLimit int
	active          int
	proven          monotime.Time // when the oldest of the peers' digests agreed; 0: not all have
	alone           bool          // no peer lives
	parked, parking int           // entries of peers in the kernel, and changes to these that wait
}

// look takes a snapshot on the loop.
func (d *Daemon) look(ctx context.Context) (s view, err error) {
	err = d.engine.Do(ctx, func() {
		e := d.engine
		in := e.Internal()
		s = view{
			now: e.Now(), engine: e.Stats, internal: in.Stats(),
			alive: in.Len(), expects: in.ExpectLen(), dead: in.DeadLen(), entries: e.Replica().Len(),
			limit: in.Limit(), active: d.channel.Active(),
		}
		for _, o := range e.Replica().Owners() {
			c := e.Replica().Cache(o)
			addCacheStats(&s.external, c.Stats())
			s.extLimit = c.Limit()
			s.extExpects += c.ExpectLen()
		}
		s.parked, s.parking = e.Parked()
		if err := d.channel.Err(); err != nil {
			s.problems = append(s.problems, err.Error())
		}
		d.mode.look(&s)
		s.problems = append(s.problems, e.Problems()...)
	})
	return s, err
}

func addCacheStats(sum *cache.Stats, c cache.Stats) {
	sum.Created += c.Created
	sum.Updated += c.Updated
	sum.Destroyed += c.Destroyed
	sum.Refused += c.Refused
	sum.SideRows += c.SideRows
	sum.SlabBytes += c.SlabBytes
	sum.IndexBytes += c.IndexBytes
	sum.SideBytes += c.SideBytes
}

func malformed(es *engine.Stats, header uint64) map[string]uint64 {
	bad := map[string]uint64{}
	for f := wire.FaultTruncated; f <= wire.FaultType; f++ {
		bad[f.String()] = es.Faults[f]
	}
	bad[wire.FaultHeader.String()] = header
	return bad
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
		Role: d.role, Since: d.roleSince, RoleRestored: d.roleRestored, Started: d.started, UptimeS: monotime.Now().Sub(d.begun).Seconds(),
		Mode: string(cfg.Sync.Mode), Wire: string(cfg.Sync.Wire),
		LastCommit: d.lastCommit, Task: d.task,
	}
	d.mu.Unlock()

	st.Problems = append([]string{}, s.problems...)
	st.InSync = len(st.Problems) == 0
	d.mu.Lock()
	st.Ready = d.readiness.ready
	d.mu.Unlock()
	st.Peers = append([]ctl.PeerStatus{}, s.peers...)
	if s.proven != 0 {
		st.ProvenAgeS = s.now.Sub(s.proven).Seconds()
	}
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
		Entries: uint64(s.alive), Expects: uint64(s.expects), Dead: uint64(s.dead), Limit: uint64(s.limit),
		Refused: s.internal.Refused, Bytes: s.internal.SlabBytes + s.internal.IndexBytes + s.internal.SideBytes,
	}
	st.External = ctl.CacheStatus{
		Entries: uint64(s.entries), Expects: uint64(s.extExpects), Limit: uint64(s.extLimit),
		Refused: s.external.Refused, Bytes: s.external.SlabBytes + s.external.IndexBytes + s.external.SideBytes,
	}
	if d.engine.Parks() {
		st.Parked = &ctl.ParkStatus{Entries: uint64(s.parked), Waiting: uint64(s.parking)}
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
	var b strings.Builder
	if role != ctl.RoleUnknown {
		fmt.Fprintf(&b, "%s; ", role)
	}
	fmt.Fprintf(&b, "%d flows of this node, %d of peers", s.alive, s.entries)
	if task != "" {
		fmt.Fprintf(&b, "; %s", task)
	}
	if len(s.problems) > 0 {
		fmt.Fprintf(&b, "; %s", s.problems[0])
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
	es := &s.engine
	st := &ctl.Stats{
		Since: d.started,
		Events: ctl.EventStats{
			Received: es.EventsNew + es.EventsUpdate + es.EventsDestroy,
			New:      es.EventsNew, Updates: es.EventsUpdate, Destroys: es.EventsDestroy,
			Filtered: es.EventsFiltered + es.EventsUnfit, Own: es.EventsOwn, Malformed: ls.Bad, Overruns: es.Overruns,
			Expects: es.ExpectsNew + es.ExpectsDestroy, ExpectsLeftOut: es.ExpectsFiltered + es.ExpectsUnfit,
			Dumps: es.Resyncs, Dumped: es.Dumped, Repaired: es.Found + es.Swept,
			Fetched: es.Fetched, Learned: es.FetchedNews, FetchFailures: es.FetchesFailed,
			ReceiveBufferBytes: uint64(d.listener.BufferSize()),
		},
		Internal: ctl.CacheStats{
			Created: s.internal.Created, Updated: s.internal.Updated, Deleted: s.internal.Destroyed,
			Swept: es.Swept, Refused: s.internal.Refused, LeftBehind: es.LeftBehind, Purged: es.Purged,
		},
		External: ctl.CacheStats{
			Created: s.external.Created, Updated: s.external.Updated, Deleted: es.ExternalDel,
			Swept: es.ExternalSwept, NotFound: es.ExternalNoDel, Refused: s.external.Refused,
		},
		Sync: s.sync,
	}
	for _, l := range d.links {
		st.Links = append(st.Links, linkStats(l))
	}
	if d.engine.Parks() {
		st.Parked = parkStats(es)
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

// counted returns m as the control socket has it.
func counted(m map[string]int) (c map[string]uint64) {
	for why, n := range m {
		if c == nil {
			c = make(map[string]uint64, len(m))
		}
		c[why] = uint64(n)
	}
	return c
}

// commitReport puts reports into the words of ctl.
func commitReport(r *reports, started time.Time) *ctl.CommitReport {
	took := r.flows.Duration + r.expects.Duration
	rep := &ctl.CommitReport{
		Started: started, DurationS: took.Seconds(), DryRun: r.flows.DryRun,
		Flows: commitCount(&r.flows), Related: relatedCount(&r.flows), Expects: commitCount(&r.expects),
		Examples: append(r.flows.Examples, r.expects.Examples...),
	}
	if took > 0 {
		rep.RatePerS = float64(r.flows.Entries+r.expects.Entries) / took.Seconds()
	}
	return rep
}

// commitCount counts what a report says of entries without a master. The reasons are
// those of all.
func commitCount(r *commit.Report) ctl.CommitCount {
	o := &r.OfRelated
	return ctl.CommitCount{
		Entries: uint64(r.Entries - r.Related), Created: uint64(r.Created + r.Replaced - o.Created - o.Replaced),
		Updated: uint64(r.Updated - o.Updated), AlreadyThere: uint64(r.AlreadyThere - o.AlreadyThere),
		Skipped: uint64(r.Skipped - o.Skipped), Refused: uint64(r.Refused - o.Refused),
		SkippedBy: counted(r.SkippedBy), RefusedBy: counted(r.RefusedBy), IncompleteBy: counted(r.Incomplete()),
	}
}

func relatedCount(r *commit.Report) ctl.CommitCount {
	o := &r.OfRelated
	return ctl.CommitCount{
		Entries: uint64(r.Related), Created: uint64(o.Created + o.Replaced), Updated: uint64(o.Updated),
		AlreadyThere: uint64(o.AlreadyThere), Skipped: uint64(o.Skipped), Refused: uint64(o.Refused),
	}
}

package daemon

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"syncd/internal/config"
	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/sync/alarm"
	"syncd/internal/sync/ftfw"
	"syncd/internal/sync/meet"
	"syncd/internal/sync/notrack"
	"syncd/internal/sync/stream"
	"syncd/internal/wire"
)

// mode is the replication mode as the daemon sees it, beside what the engine does
// with it. All methods but addOwner run on the loop.
type mode interface {
	// look adds what the mode says of its peers, and its counters.
	look(s *view)
	// ownerName returns the name under which the entries of an owner are shown and
	// kept.
	ownerName(owner uint8) string
	// addOwner returns the owner number of a name, before the loop runs; 0 if
	// there can be none.
	addOwner(name string) uint8
	// gone returns the owners whose entries are not needed once they have been
	// committed: nobody will tell of their end.
	gone() []uint8
	setDeadAfter(time.Duration)
	// setRole changes the role that peers are told, where they are told one.
	setRole(wire.Role)
	// leads is engine.Config.Leads.
	leads(owner uint8) (leads, known bool)
}

// newMode builds the configured mode in the configured dialect.
func (d *Daemon) newMode(cfg *config.Config, e *engine.Engine) engine.Mode {
	r := e.Replica()
	if d.box == nil {
		first := wire.Seq(d.started.Unix()) // as conntrackd does
		one := onePeer{d, e}
		switch cfg.Sync.Mode {
		case config.ModeNotrack:
			m := notrack.NewConntrackd(notrack.ConntrackdConfig{
				FirstSeq: first, Resync: cfg.Sync.StartupResync,
				DeadAfter: cfg.Sync.PeerDeadAfter, BulkInterval: cfg.Sync.BulkInterval,
			}, e)
			d.mode = &notrackMode{one, m}
			return engine.OnePeer(m, r)
		case config.ModeAlarm:
			m := alarm.NewConntrackd(alarmConfig(cfg, first), e, r)
			d.mode = &alarmMode{one, m}
			return engine.OnePeer(m, r)
		}
		m := ftfw.New(ftfw.Config{
			FirstSeq:    first,
			AckWindow:   cfg.Sync.AckWindow,
			ResendQueue: cfg.Sync.ResendQueue,
			DeadAfter:   cfg.Sync.PeerDeadAfter,
			Resync:      cfg.Sync.StartupResync,
		}, e)
		d.mode = &ftfwMode{one, m}
		return engine.OnePeer(m, r)
	}

	var random [4]byte
	rand.Read(random[:]) // does not fail
	first := wire.Seq(binary.BigEndian.Uint32(random[:]))
	self := meet.Config{
		Name: cfg.Node.Name, Session: d.box.box.Session(),
		Random:    func(b []byte) { rand.Read(b) },
		DeadAfter: cfg.Sync.PeerDeadAfter,
		Meet:      d.box.meet, Drop: d.box.drop,
	}
	switch cfg.Sync.Mode {
	case config.ModeNotrack:
		m := notrack.NewSyncd(notrack.SyncdConfig{Config: self, FirstSeq: first, BulkInterval: cfg.Sync.BulkInterval}, e, r)
		d.mode = &sealedNotrackMode{d, e, m}
		return m
	case config.ModeAlarm:
		m := alarm.NewSyncd(alarm.SyncdConfig{Config: self, Alarm: alarmConfig(cfg, first)}, e, r)
		d.mode = &sealedAlarmMode{d, e, m}
		return m
	}
	d.stream = stream.New(stream.Config{
		Name: self.Name, Session: self.Session, FirstSeq: first, Random: self.Random,
		ResendQueue: cfg.Sync.ResendQueue,
		AckWindow:   cfg.Sync.AckWindow,
		DeadAfter:   self.DeadAfter,
		Meet:        self.Meet, Drop: self.Drop,
	}, e, r)
	d.mode = &streamMode{d, e, d.stream}
	return d.stream
}

// wireRole returns a role as peers are told it.
func wireRole(role string) wire.Role {
	switch role {
	case ctl.RolePrimary:
		return wire.RolePrimary
	case ctl.RoleBackup:
		return wire.RoleBackup
	case ctl.RoleFault:
		return wire.RoleFault
	}
	return wire.RoleUnsaid
}

// peerRole returns the role that a peer tells, empty if it tells none.
func peerRole(r wire.Role) string {
	if r == wire.RoleUnsaid {
		return ""
	}
	return r.String()
}

func alarmConfig(cfg *config.Config, first wire.Seq) alarm.Config {
	var seed [8]byte
	rand.Read(seed[:]) // does not fail
	return alarm.Config{
		FirstSeq: first, Seed: binary.BigEndian.Uint64(seed[:]),
		Refresh: cfg.Sync.Refresh, CacheTimeout: cfg.Sync.CacheTimeout,
	}
}

package engine

import (
	"net/netip"
	"time"

	"go.uber.org/zap"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// peerSync is what the loop knows of the sender of plain datagrams, of which there is
// one.
type peerSync struct {
	addr  map[int]netip.Addr // by link: the one sender that is listened to
	heard monotime.Time
	owner uint8 // of the last flow that was told of

	sessions map[uint64]netip.Addr // where a session was heard last
}

// maxSessions bounds peerSync.sessions; what is forgotten is learned again.
const maxSessions = 64

// forgetSender is the silence after which another sender may take the peer's place
// on a link that accepts any (a multicast group).
const forgetSender = 10 * time.Second

// takeMessages applies what a link reader has parsed.
func (e *Engine) takeMessages(in *inbox) {
	for f, n := range in.faults {
		e.Stats.Faults[f] += uint64(n)
	}
	p := &e.peer
	e.replica.warm(p.owner, in)
	heard := false
	for i := range in.n {
		from, session := in.from[i], in.session[i]
		known := session != 0 || p.addr[in.link] == from
		if session == 0 && !known && p.addr[in.link].IsValid() && e.now.Sub(p.heard) < forgetSender {
			e.Stats.ForeignPeer++
			continue
		}
		m := &in.msgs[i]
		e.Stats.Messages++
		if m.Fault != wire.FaultNone {
			e.Stats.Faults[m.Fault]++
		}
		v, d := e.mode.Receive(e.now, session, m)
		if v == wire.Bad {
			continue
		}
		if session == 0 && !known {
			p.addr[in.link] = from
			e.log.Info("hearing a peer", zap.Stringer("address", from))
		}
		if session != 0 && (i == 0 || session != in.session[i-1] || from != in.from[i-1]) {
			e.hearing(session, from)
		}
		heard = true
		p.heard = e.now
		if v == wire.Deliver {
			e.deliver(d, m, in.near[i])
		}
	}
	if heard {
		e.cfg.Sender.Heard(in.link)
	}
}

// hearing notes where a session is heard.
func (e *Engine) hearing(session uint64, from netip.Addr) {
	p := &e.peer
	if p.sessions[session] == from {
		return
	}
	if len(p.sessions) >= maxSessions || p.sessions == nil {
		p.sessions = map[uint64]netip.Addr{}
	}
	p.sessions[session] = from
}

// SessionAddr returns the address at which a session was heard last. For functions
// run by Do.
func (e *Engine) SessionAddr(session uint64) netip.Addr { return e.peer.sessions[session] }

// PeerHeard returns when a valid message came in last, 0 for never. For functions run
// by Do.
func (e *Engine) PeerHeard() monotime.Time { return e.peer.heard }

// PeerAddrs returns the address of the sender that is listened to, by link. For
// functions run by Do.
func (e *Engine) PeerAddrs() map[int]netip.Addr { return e.peer.addr }

// deliver applies a data message to the external cache of its owner, where it seems to
// be about the entry near.
func (e *Engine) deliver(d wire.Delivery, m *wire.Message, near flow.Handle) {
	e.peer.owner = d.Owner
	o := e.replica.owners[d.Owner]
	full := o != nil && o.full
	if m.Type == wire.CTEnd && (e.remnants || e.behind.some) {
		if h := o.named(m); h != 0 {
			m.Flow.Orig = o.cache.Key(h) // the entry will be gone
		}
	}
	out := e.replica.apply(d, m, near, e.now)
	ended := m.Type == wire.CTDel && out != ignored || m.Type == wire.CTEnd && out == applied
	if ended && (e.remnants || e.behind.some) {
		e.endedElsewhere(&m.Flow.Orig, d.Owner)
	}
	switch out {
	case refused:
		e.Stats.ExternalRefused++
		if !full {
			e.log.Error("the external cache is full: flows of a peer are not kept", zap.Int("limit", e.replica.limit))
		}
		return
	case ignored:
		e.Stats.ExternalOld++
		return
	case unknown:
		e.Stats.ExternalNoDel++
		return
	case appliedDoubtful:
		e.mode.Confirmed(e.now)
	}
	switch m.Type {
	case wire.CTNew:
		e.Stats.ExternalNew++
	case wire.CTUpd, wire.CTState:
		e.Stats.ExternalUpd++
	case wire.CTDel, wire.CTEnd:
		e.Stats.ExternalDel++
	case wire.ExpNew:
		e.Stats.ExternalNew++
		e.Stats.Expectations++
	case wire.ExpUpd:
		e.Stats.ExternalUpd++
		e.Stats.Expectations++
	case wire.ExpDel:
		e.Stats.ExternalDel++
		e.Stats.Expectations++
	}
}

// advancePeer asks for what was refused once there is room again.
func (e *Engine) advancePeer() {
	if e.replica.roomAgain() {
		e.mode.RequestResync()
	}
}

// FlushInternal empties the internal cache; nothing is sent. FlushExternal empties
// the external cache. For functions run by Do.
func (e *Engine) FlushInternal() {
	e.mode.ForgetAll()
	e.internal.Clear()
	clear(e.kernel.told)
	e.behind.limbo, e.behind.head, e.behind.some = nil, 0, false
}

// FlushExternal empties the external caches.
func (e *Engine) FlushExternal() { e.replica.Flush() }

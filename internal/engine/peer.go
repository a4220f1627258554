package engine

import (
	"net/netip"
	"time"

	"go.uber.org/zap"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// peerSync is what the loop knows of the peer, whose flows fill the external
// cache.
type peerSync struct {
	addr     map[int]netip.Addr // by link: the one sender that is listened to
	heard    monotime.Time
	requests uint64 // Mode.Requests when epoch was raised
	epoch    uint8  // mark of entries confirmed since the last request for the peer's state
	doubt    bool   // entries with another mark may exist
	sweeping bool
	pos      flow.Handle
}

// onlyPeer is the owner of every external entry: the dialect has one peer.
const onlyPeer = 1

// forgetSender is the silence after which another sender may take the peer's place
// on a link that accepts any (a multicast group).
const forgetSender = 10 * time.Second

// takeMessages applies what a link reader has parsed.
func (e *Engine) takeMessages(in *inbox) {
	for f, n := range in.faults {
		e.Stats.Faults[f] += uint64(n)
	}
	p := &e.peer
	for i := range in.n {
		from := in.from[i]
		known := p.addr[in.link] == from
		if !known && p.addr[in.link].IsValid() && e.now.Sub(p.heard) < forgetSender {
			e.Stats.ForeignPeer++
			continue
		}
		m := &in.msgs[i]
		e.Stats.Messages++
		if m.Fault != wire.FaultNone {
			e.Stats.Faults[m.Fault]++
		}
		v := e.mode.Receive(e.now, m)
		if v == wire.Bad {
			continue
		}
		if !known {
			p.addr[in.link] = from
			e.log.Info("hearing a peer", zap.Stringer("address", from))
		}
		p.heard = e.now
		e.cfg.Sender.Heard(in.link)
		e.advancePeer()
		if v == wire.Deliver {
			e.deliver(m)
		}
	}
}

// PeerAddrs returns the address of the sender that is listened to, by link. For
// functions run by Do.
func (e *Engine) PeerAddrs() map[int]netip.Addr { return e.peer.addr }

// deliver applies a data message to the external cache.
func (e *Engine) deliver(m *wire.Message) {
	if m.Type > wire.CTDel {
		e.Stats.Expectations++
		return
	}
	x := e.external
	h := x.Lookup(&m.Flow.Orig)
	if m.Type == wire.CTDel {
		if h == 0 || x.Owner(h) != onlyPeer {
			e.Stats.ExternalNoDel++
			return
		}
		e.Stats.ExternalDel++
		x.Remove(h)
		return
	}
	switch {
	case h == 0:
		var err error
		if h, err = x.Insert(&m.Flow, e.now); err != nil {
			e.Stats.ExternalRefused++
			if !e.refusing {
				e.refusing = true
				e.log.Error("the external cache is full: flows of the peer are not kept", zap.Int("limit", x.Limit()))
			}
			return
		}
	case m.Type == wire.CTNew:
		x.Replace(h, &m.Flow, e.now)
	default:
		// An update too tells all that the peer knows of the flow. What it does not
		// tell is gone: the entry may be of an earlier process of the peer, or of an
		// earlier flow.
		m.Flow.Has |= flow.HasReply
		x.MergeFull(h, &m.Flow, e.now)
	}
	if m.Type == wire.CTNew {
		e.Stats.ExternalNew++
	} else {
		e.Stats.ExternalUpd++
	}
	if e.peer.doubt && x.Mark(h) != e.peer.epoch {
		e.mode.Confirmed(e.now)
	}
	x.SetMark(h, e.peer.epoch)
	x.SetOwner(h, onlyPeer)
}

// advancePeer follows the mode's requests for the peer's state.
func (e *Engine) advancePeer() {
	p := &e.peer
	if e.refusing && hasRoom(e.external) {
		e.refusing = false
		e.mode.RequestResync() // get what was refused
	}
	if n := e.mode.Requests(); n != p.requests {
		p.requests = n
		p.epoch++
		p.doubt, p.sweeping = true, false
	}
	if p.doubt && e.mode.ResyncComplete(e.now) {
		p.doubt = false
		e.Stats.BulksReceived++
		p.sweeping, p.pos = true, 0
	}
}

// sweepExternal does a part of the removal of what the peer's bulk update did not
// confirm. It reports whether something is left to do.
func (e *Engine) sweepExternal() bool {
	p := &e.peer
	if !p.sweeping {
		return false
	}
	p.pos = e.external.Walk(p.pos, sweepSlots, func(h flow.Handle) bool {
		if e.external.Mark(h) != p.epoch {
			e.external.Remove(h)
			e.Stats.ExternalSwept++
		}
		return true
	})
	if p.pos != 0 {
		return true
	}
	p.sweeping = false
	return false
}

// due is when the doubt must be looked at again.
func (p *peerSync) due(now monotime.Time) monotime.Time {
	if p.doubt {
		return now.Add(time.Second)
	}
	return 0
}

// FlushInternal empties the internal cache; nothing is sent. FlushExternal empties
// the external cache. For functions run by Do.
func (e *Engine) FlushInternal() {
	e.mode.ForgetAll()
	e.internal.Clear()
	clear(e.kernel.told)
}

// FlushExternal empties the external cache.
func (e *Engine) FlushExternal() {
	e.external.Clear()
	e.refusing, e.peer.sweeping = false, false
}

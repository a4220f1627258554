package engine

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// OnePeerMode is a mode that knows one peer and cannot tell when a bulk update of it
// begins and ends: conntrackd's dialect. Package ftfw documents the methods.
type OnePeerMode interface {
	sendingMode
	Receive(now monotime.Time, m *wire.Message) wire.Verdict
	Advance(now monotime.Time)
	Requests() uint64
	ResyncComplete(now monotime.Time) bool
}

// OnePeer makes a Mode of m. Every request for the peer's state puts all its entries
// in doubt; when its bulk update seems to be over, what is still in doubt is
// removed.
func OnePeer(m OnePeerMode, r *Replica) Mode { return &onePeer{OnePeerMode: m, replica: r} }

// onlyPeer is the owner of every external entry.
const onlyPeer = 1

// doubtInterval is how often it is looked whether the bulk update is over.
const doubtInterval = time.Second

type onePeer struct {
	OnePeerMode
	replica  *Replica
	requests uint64
	doubt    bool
}

func (o *onePeer) Receive(now monotime.Time, _ uint64, m *wire.Message) (wire.Verdict, wire.Delivery) {
	v := o.OnePeerMode.Receive(now, m)
	o.follow(now)
	return v, wire.Delivery{Owner: onlyPeer, Confirms: true, Merge: true}
}

func (o *onePeer) Warm(flows []flow.Handle) {
	if w, ok := o.OnePeerMode.(warmer); ok {
		w.Warm(flows)
	}
}

func (o *onePeer) Advance(now monotime.Time) {
	o.OnePeerMode.Advance(now)
	o.follow(now)
}

func (o *onePeer) Next(now monotime.Time) monotime.Time {
	next := o.OnePeerMode.Next(now)
	if o.doubt {
		next = monotime.Earliest(next, now.Add(doubtInterval))
	}
	return next
}

// follow follows the requests for the peer's state.
func (o *onePeer) follow(now monotime.Time) {
	if n := o.Requests(); n != o.requests {
		o.requests, o.doubt = n, true
		o.replica.Doubt(onlyPeer, wire.AllBuckets)
	}
	if o.doubt && o.ResyncComplete(now) {
		o.doubt = false
		o.replica.Sweep(onlyPeer, wire.AllBuckets)
	}
}

package alarm

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// Config holds what an operator may set. The zero value of a field stands for its
// default.
type Config struct {
	FirstSeq     wire.Seq
	Seed         uint64        // of the random intervals
	Refresh      time.Duration // longest whole seconds between two messages of a flow (60 s, at most 1 h)
	CacheTimeout time.Duration // an entry that was not refreshed for so long is removed (180 s)
}

func (c *Config) fill() {
	if c.Refresh == 0 {
		c.Refresh = 60 * time.Second
	}
	c.Refresh = min(max(c.Refresh, time.Second), maxRefresh)
	if c.CacheTimeout == 0 {
		c.CacheTimeout = 180 * time.Second
	}
}

// adoptCost is what a step of the walk that looks for flows which nobody enqueued
// counts for if it finds none: four steps in a queue.PaceTick.
const adoptCost = queue.PaceBurst / 4

// refresher is what both dialects send with: live changes first, then flows that are
// due, then everything once, if that was asked for.
type refresher struct {
	send    queue.Sender
	wheel   wheel
	refresh time.Duration

	pace  queue.Pace // of what is not a live change
	bulk  queue.Walk // everything, once
	again bool       // once more after that

	adopt     queue.Walk // looks for flows that are in no list
	adoptPace queue.Pace
	adoptAt   monotime.Time // when the next such walk begins

	stats *SendStats
}

// SendStats counts flows sent since the start, and why.
type SendStats struct {
	DataSent  uint64 // all
	Refreshed uint64 // because their time had come
	BulkFlows uint64 // by bulk updates
	Adopted   uint64 // flows found that nobody had enqueued
}

func (r *refresher) init(cfg *Config, store queue.Store, stats *SendStats) {
	r.stats = stats
	r.wheel = newWheel(int(cfg.Refresh/time.Second), cfg.Seed)
	r.send = queue.NewSender(store, cfg.FirstSeq, firstSlot-1+int(r.wheel.size))
	r.wheel.lists = &r.send.Lists
	r.refresh = cfg.Refresh
	r.bulk.Init(store, nil)
	r.adopt.Init(store, func(h flow.Handle) bool { return r.send.In(h) == 0 })
	r.adopt.Begin()
}

// all sends everything once, at the pace.
func (r *refresher) all() {
	if r.bulk.Active() {
		r.again = true
		return
	}
	r.bulk.Begin()
}

// clear forgets every flow.
func (r *refresher) clear() {
	r.send.Clear()
	r.bulk.Stop()
	r.again = false
}

// advance lets the time pass, and takes in flows that nobody enqueued.
func (r *refresher) advance(now monotime.Time) {
	r.wheel.turn(now)
	if !r.adopt.Active() && now >= r.adoptAt {
		r.adopt.Begin()
	}
	for r.adopt.Active() && r.adoptPace.Left(now) {
		h := r.adopt.Step()
		if h == 0 {
			r.adoptPace.Spend(now, adoptCost)
			r.adoptAt = now.Add(r.refresh)
			continue
		}
		r.adoptPace.Spend(now, 1)
		r.stats.Adopted++
		r.wheel.rest(now, h)
	}
}

// next returns when there is something to do that is not waiting already. Without a
// listener nothing is sent.
func (r *refresher) next(now monotime.Time, listener bool) (next monotime.Time) {
	if listener {
		if next = r.wheel.next(now); next <= now || r.bulk.Active() {
			next = max(now, r.pace.Next())
		}
	}
	if r.adopt.Active() {
		return monotime.Earliest(next, r.adoptPace.Next())
	}
	return monotime.Earliest(next, r.adoptAt)
}

// changed reports whether a live change waits.
func (r *refresher) changed() bool { return r.send.First(queue.Dirty) != 0 }

// ready reports whether a flow is to be sent now.
func (r *refresher) ready(now monotime.Time) bool {
	return r.changed() || r.pace.Left(now) && (r.bulk.Active() || r.wheel.started && r.wheel.due(now) != 0)
}

// append fills a datagram with flows.
func (r *refresher) append(now monotime.Time, b []byte, start, limit int) []byte {
	r.wheel.turn(now)
	var ok bool
	for h := r.send.First(queue.Dirty); h != 0; h = r.send.First(queue.Dirty) {
		if b, ok = r.flow(now, b, start, limit, h); !ok {
			return b
		}
	}
	for r.pace.Left(now) {
		h := r.wheel.due(now)
		if h == 0 {
			break
		}
		if b, ok = r.flow(now, b, start, limit, h); !ok {
			return b
		}
		r.pace.Spend(now, 1)
		r.stats.Refreshed++
	}
	for r.bulk.Active() && r.pace.Left(now) {
		h := r.bulk.Step()
		if h == 0 {
			r.pace.Spend(now, queue.StepCost)
			if !r.bulk.Active() && r.again {
				r.again = false
				r.bulk.Begin()
			}
			continue
		}
		if b, ok = r.flow(now, b, start, limit, h); !ok {
			r.bulk.Back(h)
			return b
		}
		r.pace.Spend(now, 1)
		r.stats.BulkFlows++
	}
	return b
}

// flow appends the message of h, if it fits, and lets h rest.
func (r *refresher) flow(now monotime.Time, b []byte, start, limit int, h flow.Handle) ([]byte, bool) {
	b, ok, gone := r.send.Append(now, b, start, limit, h)
	if ok {
		r.stats.DataSent++
	}
	if ok && !gone {
		r.wheel.rest(now, h)
	}
	return b, ok
}

// drop lets the flows that changed rest when nobody listens: whoever comes gets
// everything.
func (r *refresher) drop(now monotime.Time) {
	r.wheel.turn(now)
	r.bulk.Stop()
	r.again = false
	for h := r.send.First(queue.Dirty); h != 0; h = r.send.First(queue.Dirty) {
		if !r.send.DropOne(h) {
			r.wheel.rest(now, h)
		}
	}
}

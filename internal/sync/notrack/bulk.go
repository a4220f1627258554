package notrack

import (
	"math/bits"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

const (
	parts     = 16
	allParts  = partSet(1<<parts - 1)
	partWidth = wire.Buckets / parts

	// partPause is the time between two parts, in which receivers remove what the
	// first did not confirm.
	partPause = 50 * time.Millisecond
	// askedTwice is the time after the beginning of a part in which a request for
	// it was made before that was heard.
	askedTwice = 500 * time.Millisecond
	bulkRoom   = 28 // octets of BULK_BEGIN and BULK_END
)

// partSet is a set of parts, one bit each.
type partSet uint16

// partMask returns the buckets of part k.
func partMask(k int) (m wire.Mask) {
	const words = parts / len(m)
	m[k/words] = (1<<partWidth - 1) << (k % words * partWidth)
	return m
}

// partOf returns the part that a bucket belongs to.
func partOf(bucket uint8) int { return int(bucket) / partWidth }

// partsOf returns the parts that have a bucket in m.
func partsOf(m wire.Mask) (s partSet) {
	for k := range parts {
		if !m.And(partMask(k)).Empty() {
			s |= 1 << k
		}
	}
	return s
}

// bulk is the bulk updates that we send, one for each part, one after the other.
// While walk is active, part is under way and its BULK_BEGIN has left; its BULK_END
// leaves when the walk is over.
type bulk struct {
	walk   queue.Walk
	pace   queue.Pace
	wanted partSet // to be sent without waiting
	part   int     // under way, or the last one
	ending bool    // all of its flows have left
	id     uint32  // of the part under way, or the last one
	asked  bool    // it was wanted, not merely its turn

	begun [parts]monotime.Time // when each part began last; 0 for never
	due   monotime.Time        // when the next part has its turn; 0 for never yet
	rest  monotime.Time        // no part begins before
}

func (b *bulk) init(store Store) {
	b.part = parts - 1
	b.walk.Init(store, func(h flow.Handle) bool { return partOf(store.Bucket(h)) == b.part })
}

// want asks for parts. One that is under way is sent again.
func (b *bulk) want(s partSet) { b.wanted |= s }

// running reports whether a part is under way.
func (b *bulk) running() bool { return b.walk.Active() || b.ending }

// cancel gives up the part under way, and what was wanted. Its id has no end.
func (b *bulk) cancel() {
	b.walk.Stop()
	b.wanted, b.ending, b.due = 0, false, 0
}

// rewind begins the walk of the part under way anew.
func (b *bulk) rewind() {
	if b.running() {
		b.walk.Begin()
		b.ending = false
	}
}

// ready reports whether there is something to send now.
func (b *bulk) ready(now monotime.Time, every time.Duration) bool {
	if b.running() {
		return b.pace.Left(now)
	}
	return b.begins(every) && now >= b.start(now)
}

// next returns when ready will be true, 0 for never.
func (b *bulk) next(now monotime.Time, every time.Duration) monotime.Time {
	switch {
	case b.running():
		return b.pace.Next()
	case b.begins(every):
		return b.start(now)
	}
	return 0
}

// begins reports whether there will be another part.
func (b *bulk) begins(every time.Duration) bool { return b.wanted != 0 || every > 0 }

// start returns when that may begin.
func (b *bulk) start(now monotime.Time) monotime.Time {
	at := now
	if b.wanted == 0 && b.due != 0 {
		at = b.due
	}
	if b.rest != 0 {
		at = max(at, b.rest)
	}
	return at
}

// begin chooses the part that follows the last one, of those that are wanted if any
// is.
func (b *bulk) begin(now monotime.Time, every time.Duration) {
	step := 1
	b.asked = b.wanted != 0
	if b.asked {
		ahead := bits.RotateLeft16(uint16(b.wanted), -(b.part + 1))
		step += bits.TrailingZeros16(ahead)
	}
	b.part = (b.part + step) % parts
	b.wanted &^= 1 << b.part
	b.id++
	b.begun[b.part] = now
	b.due = now.Add(every / parts)
	b.walk.Begin()
}

// appendBulk appends messages of the bulk updates.
func (m *Syncd) appendBulk(now monotime.Time, out []byte, start, limit int) []byte {
	b := &m.bulk
	fits := func() bool { return len(out)-start+bulkRoom <= limit || len(out) == start }
	if !b.running() {
		if !b.ready(now, m.cfg.BulkInterval) || !fits() {
			return out
		}
		b.begin(now, m.cfg.BulkInterval)
		out = wire.AppendBulk(out, wire.BulkBegin, m.send.Number(), b.id, partMask(b.part))
		m.Stats.BulkSent++
	}
	for b.walk.Active() && b.pace.Left(now) {
		h := b.walk.Step()
		if h == 0 {
			b.pace.Spend(now, queue.StepCost)
			b.ending = !b.walk.Active()
			continue
		}
		var ok bool
		if out, ok, _ = m.send.Append(now, out, start, limit, h); !ok {
			b.walk.Back(h)
			return out
		}
		b.pace.Spend(now, 1)
		m.Stats.DataSent++
		m.Stats.BulkFlows++
	}
	if b.ending && fits() {
		out = wire.AppendBulk(out, wire.BulkEnd, m.send.Number(), b.id, partMask(b.part))
		b.ending, b.rest = false, now.Add(partPause)
		m.Stats.BulkSent++
		if b.asked && b.wanted == 0 {
			m.Stats.BulksSent++
		}
	}
	return out
}

// askFor notes which buckets a peer wants of us. One that misses the beginning of a part
// goes on asking.
func (m *Syncd) askFor(now monotime.Time, mask wire.Mask) {
	b := &m.bulk
	s := partsOf(mask)
	for k := range parts {
		if b.begun[k] != 0 && now.Sub(b.begun[k]) < askedTwice {
			s &^= 1 << k
		}
	}
	b.want(s)
}

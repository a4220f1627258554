package engine

import (
	"syncd/internal/cache"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Replica is the external cache: what peers have sent, one cache for each owner,
// because two nodes can have the same flow. It belongs to the loop. Modes see it
// through their own interfaces.
type Replica struct {
	limit  int // entries of one owner
	owners [256]*owned
	work   []uint8 // owners with a sweep to do, first come first served
}

// owned is what is held of one owner.
//
// An entry is in doubt if its bucket is in doubt and its mark is not epoch.
type owned struct {
	cache *cache.Cache
	epoch uint8
	doubt wire.Mask
	sums  [wire.Buckets]uint64
	meta  []*[metaLen]meta // by handle

	// graves holds the numbers of deletions while something older may still come.
	graves map[flow.Tuple]wire.Seq

	sweeping bool
	sweep    wire.Mask // buckets being swept
	pos      flow.Handle
	swept    uint64
	full     bool // an entry was refused
}

// meta is what is kept beside an entry: the number and the hash of the message that
// made it what it is.
type meta struct {
	hash uint64
	seq  wire.Seq
}

const metaLen = 4096

// outcome of an application.
type outcome uint8

const (
	applied         outcome = iota
	appliedDoubtful         // it was in doubt and is no more
	ignored                 // something newer is known
	refused                 // no room
	unknown                 // deletion of what is not there
)

func newReplica(limit int) *Replica { return &Replica{limit: limit} }

func (r *Replica) of(owner uint8) *owned {
	o := r.owners[owner]
	if o == nil {
		o = &owned{cache: cache.New(r.limit), graves: map[flow.Tuple]wire.Seq{}}
		r.owners[owner] = o
	}
	return o
}

// Cache returns the cache of an owner, or nil if nothing was ever held of it.
func (r *Replica) Cache(owner uint8) *cache.Cache {
	if o := r.owners[owner]; o != nil {
		return o.cache
	}
	return nil
}

// Owners returns the owners of which something was ever held.
func (r *Replica) Owners() (owners []uint8) {
	for i, o := range r.owners {
		if o != nil {
			owners = append(owners, uint8(i))
		}
	}
	return owners
}

// Len returns the number of entries of all owners.
func (r *Replica) Len() (n int) {
	for _, o := range r.owners {
		if o != nil {
			n += o.cache.Len()
		}
	}
	return n
}

// Doubt puts the owner's entries in these buckets in doubt.
func (r *Replica) Doubt(owner uint8, m wire.Mask) {
	o := r.of(owner)
	for o.sweeping { // a new epoch would put what it has not reached in doubt too
		r.sweepSome(o)
	}
	o.epoch++
	o.doubt = o.doubt.Or(m)
}

// Sweep removes the entries of these buckets that are in doubt, in slices of the
// loop's turns (see work).
func (r *Replica) Sweep(owner uint8, m wire.Mask) {
	o := r.of(owner)
	o.sweeping, o.sweep, o.pos = true, m, 0
	r.work = append(r.work, owner)
}

// Doubtful returns the owner's buckets that have entries in doubt.
func (r *Replica) Doubtful(owner uint8) wire.Mask { return r.of(owner).doubt }

// Whole says that nothing older than what has come can come any more.
func (r *Replica) Whole(owner uint8) {
	if o := r.of(owner); len(o.graves) > 0 {
		clear(o.graves)
	}
}

// Sums returns the sums of the hashes of what is held of the owner.
func (r *Replica) Sums(owner uint8) *[wire.Buckets]uint64 { return &r.of(owner).sums }

// Flush empties the caches of all owners.
func (r *Replica) Flush() {
	for _, o := range r.owners {
		if o == nil {
			continue
		}
		o.cache.Clear()
		o.sums = [wire.Buckets]uint64{}
		o.doubt, o.sweeping, o.full = wire.Mask{}, false, false
		clear(o.graves)
	}
	r.work = r.work[:0]
}

// meta returns what is kept beside entry h. Chunks never move.
func (o *owned) at(h flow.Handle) *meta {
	c := int(h / metaLen)
	for c >= len(o.meta) {
		o.meta = append(o.meta, new([metaLen]meta))
	}
	return &o.meta[c][h%metaLen]
}

// account replaces the hash of the entry with key t.
func (o *owned) account(t *flow.Tuple, m *meta, hash uint64) {
	if m.hash != hash {
		o.sums[wire.Bucket(t)] += hash - m.hash
		m.hash = hash
	}
}

// apply applies a data message about a flow.
func (r *Replica) apply(d wire.Delivery, msg *wire.Message, now monotime.Time) outcome {
	o := r.of(d.Owner)
	key := &msg.Flow.Orig
	h := o.cache.Lookup(key)
	if d.Late {
		if h != 0 && msg.Seq.Before(o.at(h).seq) {
			return ignored
		}
		if grave, ok := o.graves[*key]; h == 0 && ok && msg.Seq.Before(grave) {
			return ignored
		}
	}
	if msg.Type == wire.CTDel {
		if d.Remember {
			o.graves[*key] = msg.Seq
		}
		if h == 0 {
			return unknown
		}
		r.remove(o, h, key)
		return applied
	}
	delete(o.graves, *key)
	fresh := h == 0
	switch {
	case fresh:
		var err error
		if h, err = o.cache.Insert(&msg.Flow, now); err != nil {
			o.full = true
			return refused
		}
		*o.at(h) = meta{}
		o.cache.SetMark(h, o.epoch-1)
	case d.Merge && msg.Type == wire.CTUpd:
		o.cache.Merge(h, &msg.Flow, now)
	default:
		o.cache.Replace(h, &msg.Flow, now)
	}
	m := o.at(h)
	m.seq = msg.Seq
	if msg.Hash != 0 || m.hash != 0 {
		o.account(key, m, msg.Hash)
	}
	if d.Confirms {
		was := o.cache.Mark(h) != o.epoch
		o.cache.SetMark(h, o.epoch)
		if was && !o.doubt.Empty() {
			return appliedDoubtful
		}
	}
	return applied
}

// remove removes entry h with key t.
func (r *Replica) remove(o *owned, h flow.Handle, t *flow.Tuple) {
	o.account(t, o.at(h), 0)
	o.cache.Remove(h)
}

// Work does a part of the sweeps that are due and reports whether something is left
// to do. It returns the number of entries removed.
func (r *Replica) Work() (removed uint64, more bool) {
	if len(r.work) == 0 {
		return 0, false
	}
	o := r.owners[r.work[0]]
	before := o.swept
	if o.sweeping {
		r.sweepSome(o)
	}
	if !o.sweeping {
		r.work = r.work[1:]
	}
	return o.swept - before, len(r.work) > 0
}

// sweepSome visits some slots of a sweep.
func (r *Replica) sweepSome(o *owned) {
	o.pos = o.cache.Walk(o.pos, sweepSlots, func(h flow.Handle) bool {
		if o.cache.Mark(h) == o.epoch {
			return true
		}
		key := o.cache.Key(h)
		if o.sweep.Has(wire.Bucket(&key)) {
			r.remove(o, h, &key)
			o.swept++
		}
		return true
	})
	if o.pos == 0 {
		o.sweeping = false
		o.doubt = o.doubt.Less(o.sweep)
	}
}

package engine

import (
	"slices"

	"syncd/internal/cache"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
	"syncd/internal/wire"
)

// Replica is the external cache: what peers have sent, one cache for each owner,
// because two nodes can have the same flow. It belongs to the loop. Modes see it
// through their own interfaces.
type Replica struct {
	limit  int    // entries of one owner
	warmed uint64 // of what warm has read, so that it is read
	owners [256]*owned
	list   []*owned // those that there are
	park   *parking // told of every change; nil where nothing is parked
	work   []uint8  // owners with removals to do, first come first served
}

// owned is what is held of one owner.
//
// An entry is in doubt if its bucket is in doubt and its mark is not epoch.
type owned struct {
	id    uint8
	cache *cache.Cache
	epoch uint8 // from 1 up; 0 is the mark of what no message has confirmed
	doubt wire.Mask
	sums  [wire.Buckets]uint64
	meta  []*[metaLen]meta // by handle
	names names            // of its flows

	// graves holds the numbers of deletions while something older may still come, limit
	// of them at most.
	graves map[flow.Tuple]wire.Seq

	sweeping bool
	sweep    wire.Mask // buckets being swept
	pos      flow.Handle
	swept    uint64
	full     bool // an entry was refused

	due    queue.Lists // entries whose kernel entry is not what it should be
	parked int         // entries with extParked

	expiring  bool
	expire    monotime.Time // entries not heard of since then are removed
	expirePos flow.Handle
	found     Found
}

// Found counts what repairs have found: differences between what was held of an
// owner and what it had, when everything had been thought to be equal.
type Found struct {
	Missing, Different, Stale, Corrupted uint64
	Samples                              []Difference // the first maxSamples since ResetSamples
}

// Difference is an entry that differed.
type Difference struct {
	What string     // missing, different, stale, corrupted
	Flow flow.Tuple // its key
}

const maxSamples = 64

func (f *Found) note(n *uint64, what string, t *flow.Tuple) {
	*n++
	if len(f.Samples) < maxSamples {
		f.Samples = append(f.Samples, Difference{what, *t})
	}
}

// Found returns what repairs of an owner have found, with the samples, which are
// forgotten then.
func (r *Replica) Found(owner uint8) Found {
	o := r.of(owner)
	f := o.found
	o.found.Samples = nil
	return f
}

// Audit compares entries of an owner with the messages that made them, from
// position from, some in each call, and returns where to go on, 0 at the end. What
// is not what it was said to be is made to count as different, so that the next
// digest finds it. seed is the session of the owner.
func (r *Replica) Audit(owner uint8, seed uint64, from flow.Handle) flow.Handle {
	o := r.of(owner)
	var f flow.Flow
	var x flow.Expect
	var buf [max(wire.MaxFlowLen, wire.MaxExpectLen)]byte
	return o.cache.Walk(from, sweepSlots/4, func(h flow.Handle) bool {
		m := o.at(h)
		if m.hash == 0 {
			return true // from a snapshot: in doubt anyhow
		}
		var msg []byte
		if o.cache.IsExpect(h) {
			o.cache.LoadExpect(h, &x)
			msg = wire.AppendExpect(buf[:0], wire.Syncd, wire.ExpNew, 0, 0, &x)
		} else {
			o.cache.Load(h, &f)
			msg = wire.AppendFlow(buf[:0], wire.Syncd, wire.CTNew, 0, 0, &f)
		}
		if hash := wire.FlowHash(seed, msg); hash != m.hash {
			o.account(m, hash)
			key := o.cache.Key(h)
			m.base = 0 // nothing is built on it
			o.found.note(&o.found.Corrupted, "corrupted", &key)
		}
		return true
	})
}

// Restore adds an entry of an owner from an earlier life of this process. It is in
// doubt. An entry that is there already stays.
func (r *Replica) Restore(owner uint8, f *flow.Flow, now monotime.Time) error {
	o := r.of(owner)
	if o.cache.Lookup(&f.Orig) != 0 {
		return nil
	}
	h, err := o.cache.Insert(f, now)
	return o.restored(h, &f.Orig, err)
}

// RestoreExpect is Restore for an expectation.
func (r *Replica) RestoreExpect(owner uint8, x *flow.Expect, now monotime.Time) error {
	o := r.of(owner)
	if o.cache.LookupExpect(x) != 0 {
		return nil
	}
	h, err := o.cache.InsertExpect(x, now)
	key := x.Key()
	return o.restored(h, &key, err)
}

func (o *owned) restored(h flow.Handle, t *flow.Tuple, err error) error {
	if err != nil {
		return err
	}
	*o.at(h) = meta{bucket: wire.Bucket(t)}
	o.cache.SetMark(h, 0)
	o.doubt = wire.AllBuckets
	return nil
}

// meta is what is kept beside an entry: the number and the hash of the message that
// made it what it is, or would have, if that had told all.
type meta struct {
	hash   uint64
	seq    wire.Seq
	base   wire.Seq // number of the last one that told all, if others may refer to it, else 0
	fixed  uint32   // of message base: the low half of wire.Message.Fixed
	bucket uint8    // wire.Bucket of its key
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
		o = &owned{id: owner, cache: cache.New(r.limit), epoch: 1, graves: map[flow.Tuple]wire.Seq{}, due: newDue(), names: newNames(r.limit)}
		r.owners[owner] = o
		r.list = append(r.list, o)
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

// holds reports whether some owner has the entry with key t.
func (r *Replica) holds(t *flow.Tuple) bool {
	for _, o := range r.list {
		if o.cache.Lookup(t) != 0 {
			return true
		}
	}
	return false
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
	if o.epoch++; o.epoch == 0 { // marks of 255 epochs ago would count again
		o.cache.Walk(0, 0, func(h flow.Handle) bool {
			o.cache.SetMark(h, 0)
			return true
		})
		o.epoch = 1
	}
	o.doubt = o.doubt.Or(m)
}

// Sweep removes the entries of these buckets that are in doubt, in slices of the
// loop's turns (see work).
func (r *Replica) Sweep(owner uint8, m wire.Mask) {
	o := r.of(owner)
	for o.sweeping { // its buckets would be forgotten
		r.sweepSome(o)
	}
	o.sweeping, o.sweep, o.pos = true, m, 0
	r.queue(owner)
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

// Flush empties the caches of all owners. What is parked leaves the kernel.
func (r *Replica) Flush() {
	for _, o := range r.list {
		r.flush(o, false)
	}
}

// FlushOwner empties the cache of one owner. What is parked stays in the kernel.
func (r *Replica) FlushOwner(owner uint8) {
	if o := r.owners[owner]; o != nil {
		r.flush(o, true)
	}
}

func (r *Replica) flush(o *owned, keepParked bool) {
	if r.park != nil {
		r.park.flushed(o, keepParked)
	}
	o.cache.Clear()
	o.names.forget()
	o.sums = [wire.Buckets]uint64{}
	o.doubt, o.sweeping, o.expiring, o.full = wire.Mask{}, false, false, false
	clear(o.graves)
}

// meta returns what is kept beside entry h. Chunks never move.
func (o *owned) at(h flow.Handle) *meta {
	c := int(h / metaLen)
	for c >= len(o.meta) {
		o.meta = append(o.meta, new([metaLen]meta))
	}
	return &o.meta[c][h%metaLen]
}

// warm reads the memory that applying the messages needs, if they are about flows of
// the owner, as those before them were, and notes in the inbox which entries these seem to
// be.
func (r *Replica) warm(owner uint8, in *inbox) {
	o := r.owners[owner]
	n, compact := 0, false
	var announced [len(in.msgs)]uint8
	for i := range in.n {
		in.near[i] = 0
		m := &in.msgs[i]
		switch {
		case o == nil || m.Fault != wire.FaultNone:
		case m.Type <= wire.CTDel:
			o.cache.Announce(&m.Flow.Orig)
			announced[n] = uint8(i)
			n++
		case m.IsCompact():
			if h := flow.Handle(o.names.get(m.Handle)); h&noRoom == 0 {
				in.near[i], compact = h, true
			}
		}
	}
	// What a step reads says what the next one has to: each is a pass of its own, so that
	// all wait together.
	if compact {
		for i := range in.n {
			if h := in.near[i]; h != 0 {
				r.warmed += o.cache.Touch(h) + o.at(h).hash
			}
		}
		for i := range in.n {
			if h := in.near[i]; h != 0 && in.msgs[i].Type == wire.CTEnd {
				o.cache.AnnounceRemove(h)
				announced[n] = uint8(i)
				n++
			}
		}
	}
	if n == 0 {
		return
	}
	for i, h := range o.cache.Warm() {
		in.near[announced[i]] = h
		r.warmed += o.at(h).hash
	}
}

// doubtful reports whether entries of any owner are in doubt.
func (r *Replica) doubtful() bool {
	for _, o := range r.owners {
		if o != nil && !o.doubt.Empty() && o.cache.Len() > 0 {
			return true
		}
	}
	return false
}

// refusing reports whether entries of any owner were refused for want of room.
func (r *Replica) refusing() bool {
	for _, o := range r.owners {
		if o != nil && o.full {
			return true
		}
	}
	return false
}

// roomAgain reports once that an owner of which entries were refused has room
// again.
func (r *Replica) roomAgain() (again bool) {
	for _, o := range r.owners {
		if o != nil && o.full && hasRoom(o.cache) {
			o.full, again = false, true
		}
	}
	return again
}

// inDoubt reports whether entry h is in doubt.
func (o *owned) inDoubt(h flow.Handle) bool {
	return !o.doubt.Empty() && o.cache.Mark(h) != o.epoch && o.doubt.Has(o.at(h).bucket)
}

// account replaces the hash of an entry.
func (o *owned) account(m *meta, hash uint64) {
	o.sums[m.bucket%wire.Buckets] += hash - m.hash
	m.hash = hash
}

// apply applies a data message, which is about the entry near if that has its key.
func (r *Replica) apply(d wire.Delivery, msg *wire.Message, near flow.Handle, now monotime.Time) outcome {
	o := r.of(d.Owner)
	if msg.IsCompact() {
		return r.applyCompact(o, d, msg, now)
	}
	key, typ, expect := &msg.Flow.Orig, msg.Type, msg.Type > wire.CTDel
	if expect {
		k := msg.Expect.Key()
		key, typ = &k, typ-wire.ExpNew
	}
	h := o.cache.LookupNear(key, near)
	if d.Late {
		// The number of an entry in doubt may be of an earlier session.
		if h != 0 && msg.Seq.Before(o.at(h).seq) && !(d.Confirms && o.inDoubt(h)) {
			return ignored
		}
		if grave, ok := o.graves[*key]; h == 0 && ok && msg.Seq.Before(grave) {
			return ignored
		}
	}
	if typ == wire.CTDel {
		if d.Remember {
			o.bury(r.limit, key, msg.Seq)
		}
		if h == 0 {
			return unknown
		}
		r.remove(o, h, key)
		return applied
	}
	delete(o.graves, *key)
	fresh := h == 0
	flags := uint8(0)
	if r.park != nil && !fresh {
		if flags = o.cache.Flags(h); flags&extParked != 0 {
			r.park.remember(o, h)
		}
	}
	switch {
	case fresh:
		var err error
		if expect {
			h, err = o.cache.InsertExpect(&msg.Expect, now)
		} else {
			h, err = o.cache.Insert(&msg.Flow, now)
		}
		if err != nil {
			o.full = true
			o.name(0, msg)
			return refused
		}
		*o.at(h) = meta{bucket: wire.Bucket(key)}
		o.cache.SetMark(h, 0)
	case expect:
		if d.Merge && typ == wire.CTUpd {
			o.cache.MergeExpect(h, &msg.Expect, now)
		} else {
			o.cache.ReplaceExpect(h, &msg.Expect, now)
		}
	case d.Merge && typ == wire.CTUpd:
		// An update too tells all that the peer knows of the flow. What it does not
		// tell is gone: the entry may be of an earlier process of the peer, or of an
		// earlier flow.
		msg.Flow.Has |= flow.HasReply
		o.cache.MergeFull(h, &msg.Flow, now)
	default:
		o.cache.Replace(h, &msg.Flow, now)
	}
	if r.park != nil {
		r.park.said(o, h, flags, fresh)
	}
	m := o.at(h)
	m.seq, m.base = msg.Seq, 0
	o.name(h, msg)
	if msg.Flags&wire.FlagRepeat != 0 {
		switch {
		case fresh:
			o.found.note(&o.found.Missing, "missing", key)
		case m.hash != msg.Hash && m.hash != 0:
			o.found.note(&o.found.Different, "different", key)
		}
	}
	o.account(m, msg.Hash)
	return o.confirm(h, d)
}

// bury remembers the number of a deletion.
func (o *owned) bury(limit int, key *flow.Tuple, n wire.Seq) {
	// Beyond the limit a digest finds what comes back.
	if _, died := o.graves[*key]; died || len(o.graves) < limit {
		o.graves[*key] = n
	}
}

// confirm takes entry h, which a message was about, out of doubt if that confirms it.
func (o *owned) confirm(h flow.Handle, d wire.Delivery) outcome {
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
	m := o.at(h)
	o.account(m, 0)
	m.base = 0
	if r.park != nil {
		r.park.removed(o, h, t)
	}
	o.cache.Remove(h)
}

// Expire removes the owner's entries of which nothing was heard since olderThan, in
// slices of the loop's turns (see Work). A call while an earlier one is under way
// replaces its limit.
func (r *Replica) Expire(owner uint8, olderThan monotime.Time) {
	o := r.of(owner)
	if o.expire = olderThan; !o.expiring {
		o.expiring, o.expirePos = true, 0
		r.queue(owner)
	}
}

func (r *Replica) queue(owner uint8) {
	if !slices.Contains(r.work, owner) {
		r.work = append(r.work, owner)
	}
}

// Work does a part of the removals that are due and reports whether something is left
// to do. It returns the number of entries removed.
func (r *Replica) Work() (removed uint64, more bool) {
	if len(r.work) == 0 {
		return 0, false
	}
	o := r.owners[r.work[0]]
	before := o.swept
	switch {
	case o.sweeping:
		r.sweepSome(o)
	case o.expiring:
		r.expireSome(o)
	}
	if !o.sweeping && !o.expiring {
		r.work = r.work[1:]
	}
	return o.swept - before, len(r.work) > 0
}

// expireSome visits some slots in search of entries to expire.
func (r *Replica) expireSome(o *owned) {
	o.expirePos = o.cache.Walk(o.expirePos, sweepSlots, func(h flow.Handle) bool {
		if o.cache.Updated(h).Before(o.expire) {
			key := o.cache.Key(h)
			r.remove(o, h, &key)
			o.swept++
		}
		return true
	})
	o.expiring = o.expirePos != 0
}

// sweepSome visits some slots of a sweep.
func (r *Replica) sweepSome(o *owned) {
	o.pos = o.cache.Walk(o.pos, sweepSlots, func(h flow.Handle) bool {
		if o.cache.Mark(h) == o.epoch {
			return true
		}
		if o.sweep.Has(o.at(h).bucket) {
			key := o.cache.Key(h)
			r.remove(o, h, &key)
			o.found.note(&o.found.Stale, "stale", &key)
			o.swept++
		}
		return true
	})
	if o.pos == 0 {
		o.sweeping = false
		o.doubt = o.doubt.Less(o.sweep)
	}
}

package engine

import (
	"context"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/queue"
)

// Parker puts what peers have into this kernel before anybody needs it. Run answers
// every batch of work on done, in order, until ctx ends.
type Parker interface {
	Run(ctx context.Context, work <-chan *flow.ParkBatch, done chan<- *flow.ParkBatch) error
}

// parking is what the loop knows of the entries that it has parked in this kernel. The
// comment of the package says who owns an entry when.
type parking struct {
	replica *Replica
	work    chan *flow.ParkBatch
	done    chan *flow.ParkBatch
	free    []*flow.ParkBatch
	flying  int           // batches with the parker
	at      monotime.Time // when what waits is handed over, 0 if nothing does
	waiting int           // entries in the lists of all owners
	n       int           // entries with extParked, of all owners

	deletes  ring[parkedKey] // before everything else: a tuple may be in use again
	releases ring[flow.Tuple]
	next     int // owner whose turn it is

	held    bool          // nothing is handed over
	sent    monotime.Time // when something was sent while it is held
	onHeld  func()        // called once nothing flies
	passive bool          // this node is not in charge: its own entries may be yielded
	charged monotime.Time // when it had taken over last, 0 for never

	yielding   bool // the internal cache is being walked
	yieldPos   flow.Handle
	marking    bool          // by the first walk, which says what may be yielded
	yielded    int           // since this node was last told that it is not in charge
	yieldAgain bool          // another walk is due, since another peer leads
	yieldAt    monotime.Time // not before

	orphans  OrphanPolicy  // for the dumps that begin from now on
	dumping  OrphanPolicy  // for the one that runs
	orphaned uint64        // parked entries of no peer that the last dump found, and that were kept
	refresh  monotime.Time // when the kernel's table is read in any case
	look     monotime.Time // when it is because packets have passed parked entries, 0 for never
	looked   monotime.Time
	walk     parkWalk
	full     bool // the table was
	again    monotime.Time

	gone   [256]bool
	goneAt monotime.Time

	was, is   flow.Flow // of a message
	wasX, isX flow.Expect
}

// parkedKey is an entry to be deleted.
type parkedKey struct {
	tuple   flow.Tuple
	owner   uint8
	yielded bool // a moment ago, and it is not parked yet
}

// Flags of external entries.
const (
	extParked     = 1 << iota // handed over, so in the kernel unless the answer says otherwise
	extRemake                 // changed in a way that no update can express
	extEnded                  // ended here: not parked again before its owner says something new
	extMasterless             // its master was not there: it is parked without
	extSeen                   // by the dump that runs
	extYielded                // was ours, and is to be parked
)

const (
	parkBatches = 8 // that circulate
	// parkGather is how long changes may wait for others of the same flow: a handshake
	// is three of them. It is nothing beside the time in which a death is noticed.
	parkGather = 10 * time.Millisecond
	parkSlots  = 4096 // entries looked at in one turn
	// parkRefresh is how often the kernel's table is read to find what nobody has
	// mentioned for long. What has lost parkSlack of its timeout gets a new one.
	parkRefresh = 24 * time.Hour
	parkSlack   = 3 * 86400 // s
	parkRetry   = 10 * time.Second
	// Where packets pass one parked entry with an event, they may pass many without, and
	// the kernel knows of the one what nobody has told.
	touchedLook  = 5 * time.Second
	touchedPause = time.Minute
	// While entries are adopted by the hundred thousand, telling of them waits but for a
	// burst now and then: peers should not think that this node is dead.
	heldSend   = 50 * time.Millisecond
	yieldPause = time.Second // between two walks in search of what can be yielded
	goneFor    = time.Second // how long an answer of Config.Gone is good for
)

// OrphanPolicy says what becomes of parked entries that no peer has.
type OrphanPolicy uint8

const (
	OrphansStay  OrphanPolicy = iota // their owner may not have spoken yet
	OrphansGo                        // all peers have told everything
	OrphansAdopt                     // nobody else has them
)

func newParking(r *Replica) *parking {
	p := &parking{
		replica: r,
		work:    make(chan *flow.ParkBatch, parkBatches),
		done:    make(chan *flow.ParkBatch, parkBatches),
	}
	for range parkBatches {
		p.free = append(p.free, new(flow.ParkBatch))
	}
	r.park = p
	return p
}

// remember notes what entry h was before a message.
func (p *parking) remember(o *owned, h flow.Handle) {
	if o.cache.IsExpect(h) {
		o.cache.LoadExpect(h, &p.wasX)
		return
	}
	o.cache.Load(h, &p.was)
}

// said notes that a message has made entry h what it is. flags are those that it had
// before, p.was what it was then if it is not fresh.
func (p *parking) said(o *owned, h flow.Handle, flags uint8, fresh bool) {
	switch {
	case fresh || flags&extParked == 0:
	case o.cache.IsExpect(h):
		o.cache.LoadExpect(h, &p.isX)
		if flow.SameExpect(&p.wasX, &p.isX) {
			o.cache.SetFlags(h, flags, ^flags)
			return
		}
		flags |= extRemake
	default:
		o.cache.Load(h, &p.is)
		// Timeouts do not matter, nor whether what is zero was said to be.
		p.was.Timeout, p.is.Timeout, p.was.Has, p.is.Has = 0, 0, 0, 0
		if p.was == p.is {
			o.cache.SetFlags(h, flags, ^flags)
			return
		}
		if p.was.Reply != p.is.Reply || p.was.Master != p.is.Master || p.was.Helper != p.is.Helper {
			flags |= extRemake
		}
	}
	if flags &^= extEnded; fresh || flags&extRemake != 0 {
		flags &^= extMasterless
	}
	o.cache.SetFlags(h, flags, ^flags)
	p.due(o, h)
}

// due makes entry h be parked.
func (p *parking) due(o *owned, h flow.Handle) {
	if o.due.In(h) == 0 {
		o.due.Put(1, h)
		p.waiting++
	}
}

// undue takes entry h from what waits.
func (p *parking) undue(o *owned, h flow.Handle) {
	if o.due.In(h) != 0 {
		o.due.Take(h)
		p.waiting--
	}
}

// mark sets whether entry h is thought to be in the kernel.
func (p *parking) mark(o *owned, h flow.Handle, parked bool) {
	if was := o.cache.Flags(h)&extParked != 0; was == parked {
		return
	}
	if parked {
		o.cache.SetFlags(h, extParked, 0)
		o.parked++
		p.n++
		return
	}
	o.cache.SetFlags(h, 0, extParked|extRemake|extYielded)
	o.parked--
	p.n--
}

// removed notes that entry h with key t is about to be removed.
func (p *parking) removed(o *owned, h flow.Handle, t *flow.Tuple) {
	p.undue(o, h)
	if flags := o.cache.Flags(h); flags&extParked != 0 {
		p.mark(o, h, false)
		p.deletes.push(parkedKey{*t, o.id, flags&extYielded != 0})
	}
}

// flushed notes that all entries of an owner are about to be removed. Their kernel
// entries go with them, unless keep is set.
func (p *parking) flushed(o *owned, keep bool) {
	p.waiting -= o.due.Len(1)
	if !keep {
		o.cache.Walk(0, 0, func(h flow.Handle) bool {
			if flags := o.cache.Flags(h); flags&extParked != 0 {
				p.deletes.push(parkedKey{o.cache.Key(h), o.id, flags&extYielded != 0})
			}
			return true
		})
	}
	p.n -= o.parked
	o.parked = 0
	o.due.Clear()
}

// holders calls fn for the entry of each owner that has the flow t.
func (r *Replica) holders(t *flow.Tuple, fn func(o *owned, h flow.Handle)) {
	for _, o := range r.list {
		if h := o.cache.Lookup(t); h != 0 {
			fn(o, h)
		}
	}
}

// latest returns the entry that was last heard of among those of the flow t that have
// not ended here; of those whose owner carries the flow, if carriers alone are asked for.
func (e *Engine) latest(t *flow.Tuple, carriers bool) (o *owned, h flow.Handle) {
	for _, x := range e.replica.list {
		eh := x.cache.Lookup(t)
		if eh == 0 || x.cache.Flags(eh)&extEnded != 0 || carriers && !e.carries(x, eh) {
			continue
		}
		if h == 0 || o.cache.Updated(h).Before(x.cache.Updated(eh)) {
			o, h = x, eh
		}
	}
	return o, h
}

// isGone reports whether nobody will tell of the end of an owner's flows.
func (e *Engine) isGone(owner uint8) bool {
	p := e.park
	if e.cfg.Gone == nil {
		return e.peer.heard == 0 || e.now.Sub(e.peer.heard) >= forgetSender
	}
	if p.goneAt == 0 || e.now.Sub(p.goneAt) >= goneFor {
		p.gone, p.goneAt = [256]bool{}, e.now
		for _, o := range e.cfg.Gone() {
			p.gone[o] = true
		}
	}
	return p.gone[owner]
}

// ours reports whether this node carries the flow t.
func (e *Engine) ours(t *flow.Tuple) bool {
	h := e.internal.Lookup(t)
	return h != 0 && !e.gone(h)
}

// parkSome does a part of what there is to do about the kernel's entries for the flows
// of peers, and reports whether some is left.
func (e *Engine) parkSome() (more bool) {
	if e.yieldDue() && e.yieldSome() {
		more = true
	}
	if e.walkParked() {
		more = true
	}
	return e.pumpPark() || more
}

// pumpPark hands over what waits for the parker, and reports whether there is more to
// do at once.
func (e *Engine) pumpPark() (more bool) {
	p := e.park
	n := p.waiting + p.deletes.len() + p.releases.len()
	if n == 0 {
		p.at = 0
		return false
	}
	if p.at == 0 {
		p.at = e.now.Add(parkGather)
	}
	// Before the first dump it is not known what is ours.
	if p.held || !e.kernel.first || n < flow.ParkBatchSize && e.now < p.at {
		return false
	}
	for looked := 0; ; {
		if len(p.free) == 0 {
			return false // an answer wakes the loop
		}
		b := p.free[len(p.free)-1]
		b.N = 0
		for b.N < len(b.Items) && looked < parkSlots && e.nextPark(&b.Items[b.N], &looked) {
			b.N++
		}
		if b.N > 0 {
			p.free = p.free[:len(p.free)-1]
			p.flying++
			p.work <- b // has room for every batch
		}
		switch n = p.waiting + p.deletes.len() + p.releases.len(); {
		case n == 0:
			p.at = 0
			return false
		case looked >= parkSlots:
			return true
		case n < flow.ParkBatchSize:
			p.at = e.now.Add(parkGather)
			return false
		}
	}
}

// dueAt is when pumpPark has something to do that waits for the time alone.
func (p *parking) dueAt(first bool) monotime.Time {
	if !first {
		return 0
	}
	due := monotime.Earliest(monotime.Earliest(p.refresh, p.look), p.again)
	if p.yieldAgain {
		due = monotime.Earliest(due, p.yieldAt)
	}
	if !p.held && len(p.free) > 0 {
		due = monotime.Earliest(due, p.at)
	}
	return due
}

// nextPark writes the next request to it, and reports whether there is one.
func (e *Engine) nextPark(it *flow.Park, looked *int) bool {
	p, r := e.park, e.replica
	for ; p.deletes.len() > 0 && *looked < parkSlots; *looked++ {
		k := p.deletes.pop()
		if e.ours(&k.tuple) {
			continue
		}
		other := false
		r.holders(&k.tuple, func(o *owned, h flow.Handle) {
			// What was yielded and is not parked yet cannot be parked for another one: it
			// looks as if packets passed it, and becomes ours again.
			if !k.yielded && o.id != k.owner && o.cache.Flags(h)&extEnded == 0 {
				p.mark(o, h, false) // what is there may be another mapping
				p.due(o, h)
				other = true
			}
		})
		if other {
			continue
		}
		*looked++
		if it.IsExpect = k.tuple.IsExpectKey(); it.IsExpect {
			it.Expect = flow.Expect{Tuple: k.tuple}
			it.Expect.Tuple.Family &^= flow.ExpectKey
		} else {
			it.Flow = flow.Flow{Orig: k.tuple}
		}
		it.Op, it.Owner = flow.ParkDelete, k.owner
		return true
	}
	for ; p.releases.len() > 0 && *looked < parkSlots; *looked++ {
		t := p.releases.pop()
		h := e.internal.Lookup(&t)
		if h == 0 || e.gone(h) {
			continue
		}
		*looked++
		f := &it.Flow
		e.internal.Load(h, f)
		it.IsExpect = false
		it.Op, it.Age, it.Owner = flow.ParkRelease, e.now.Sub(e.internal.Updated(h)), 0
		return true
	}
	for idle := 0; idle < len(r.list) && *looked < parkSlots; {
		o := r.list[p.next%len(r.list)]
		h := o.due.First(1)
		if h == 0 {
			p.next++
			idle++
			continue
		}
		*looked++
		p.undue(o, h)
		if e.parkRequest(o, h, it) {
			return true
		}
	}
	return false
}

// parkRequest writes the request to park entry h, and reports whether there is one.
func (e *Engine) parkRequest(o *owned, h flow.Handle, it *flow.Park) bool {
	p := e.park
	flags := o.cache.Flags(h)
	if flags&extEnded != 0 {
		return false
	}
	key := o.cache.Key(h)
	it.IsExpect = o.cache.IsExpect(h)
	switch ih := e.internal.Lookup(&key); {
	case it.IsExpect:
		if o.cache.LoadExpect(h, &it.Expect); e.ours(&key) || e.ours(&it.Expect.Master) {
			p.mark(o, h, false) // the helper works here
			return false
		}
	case ih == 0 || e.internal.Dead(ih):
	case e.gone(ih): // left behind here, and taken over there
		e.drop(ih)
	default:
		if !p.passive || e.internal.Flags(ih)&flagYields == 0 || !e.carries(o, h) || !e.yield(ih, o, h) {
			p.mark(o, h, false)
			return false
		}
		flags = o.cache.Flags(h)
	}
	if p.full && flags&extParked == 0 && !it.IsExpect {
		// A creation in a full table costs somebody else's flow, if anything. When some
		// time has passed a few are tried again, and all if these find room.
		return false
	}
	if !it.IsExpect {
		o.cache.Load(h, &it.Flow)
	}
	it.Age, it.Owner, it.Last = e.now.Sub(o.cache.Updated(h)), o.id, flags&extMasterless != 0
	switch {
	case flags&extParked == 0:
		it.Op = flow.ParkCreate
	case flags&extRemake != 0:
		it.Op = flow.ParkRemake
	default:
		it.Op = flow.ParkUpdate
	}
	o.cache.SetFlags(h, 0, extRemake|extYielded)
	p.mark(o, h, true)
	return true
}

// parkAnswered takes the answers to a batch.
func (e *Engine) parkAnswered(b *flow.ParkBatch) {
	p := e.park
	for i := range b.N {
		it := &b.Items[i]
		if it.Result == flow.ParkDone {
			e.Stats.Parks[it.Op]++
			if it.Op <= flow.ParkRemake && !it.IsExpect {
				e.parkedToo(&it.Flow.Orig)
			}
			continue
		}
		e.Stats.ParkResults[it.Result]++
		if it.Result == flow.ParkTouched {
			e.parkTouched(&it.Flow)
			continue
		}
		if it.Op == flow.ParkDelete || it.Op == flow.ParkRelease {
			continue
		}
		// The entry may be another one by now; it is then looked for in the kernel again.
		o := e.replica.owners[it.Owner]
		if o == nil {
			continue
		}
		key := it.Key()
		h := o.cache.Lookup(&key)
		if h == 0 {
			continue
		}
		p.mark(o, h, false)
		switch it.Result {
		case flow.ParkLocal:
			if !e.ours(&key) && e.filter.Match(&it.Flow) {
				e.lookSoon() // it is, and no event told that packets have passed it
			}
		case flow.ParkNoMaster:
			if it.IsExpect && it.Last {
				break
			}
			o.cache.SetFlags(h, extMasterless, 0)
			p.due(o, h) // after what waits: the master may be among it
		case flow.ParkFull:
			if p.again == 0 {
				p.again = e.now.Add(parkRetry)
			}
			p.full = true
		}
	}
	p.free = append(p.free, b)
	p.flying--
	p.checkHeld()
}

// parkedToo notes that the kernel's entry for the flow t has been parked or changed by
// the parker. What a dump told of it may be from before that; and if it became ours
// while the request was under way, only another one tells what it is now.
func (e *Engine) parkedToo(t *flow.Tuple) {
	if e.kernel.running {
		e.bury(*t)
	}
	if e.ours(t) {
		e.park.releases.push(*t)
		e.lookSoon()
	}
}

// parkTouched takes over a flow that its owner has ended although the kernel's entry was
// not parked any more, since packets pass it here, or not yet, since it was yielded a
// moment ago. A node that is not in charge cannot tell the two apart, and treats it as
// what has ended elsewhere: if nobody uses it, a purge ends it.
func (e *Engine) parkTouched(f *flow.Flow) {
	h := e.internal.Lookup(&f.Orig)
	if h != 0 && !e.gone(h) || !e.fit(f) {
		return
	}
	h, replace := e.own(h, f, f.Has)
	if h == 0 {
		return
	}
	e.touched()
	if e.standby {
		e.setStanding(h, standRemnant|standEnded, 0)
		if !e.cfg.Mirror {
			return // nobody would tell the end of it: see end
		}
	}
	e.mode.Enqueue(h, replace)
}

// own puts a flow of which the kernel's entry is ours now into the internal cache, in
// the place of the dead entry h if there is one, and returns its handle, 0 if there is
// no room. told is what is not to be overwritten by the dump that runs.
func (e *Engine) own(h flow.Handle, f *flow.Flow, told flow.Attrs) (_ flow.Handle, replace bool) {
	if replace = h != 0; replace {
		e.replaceFlow(h, f)
	} else if h = e.insert(f); h == 0 {
		return 0, false
	}
	e.internal.SetFlags(h, flagNewDue, 0)
	delete(e.kernel.told, h) // what was said of an earlier flow
	e.touch(h, told)
	e.unpark(&f.Orig)
	return h, replace
}

// HoldPark stops the parker, and calls fn on the loop when nothing is under way any
// more; nil for fn lets it go on. It does nothing where nothing is parked, but calls
// fn. For functions run by Do.
func (e *Engine) HoldPark(fn func()) {
	switch p := e.park; {
	case p == nil:
		if fn != nil {
			fn()
		}
	case fn == nil:
		if p.held, p.onHeld = false, nil; !p.passive {
			p.charged = e.now
		}
	default:
		p.held, p.onHeld = true, fn
		p.checkHeld()
	}
}

// busy reports whether sending has to wait for a takeover.
func (p *parking) busy(now monotime.Time) bool {
	if !p.held {
		return false
	}
	if now < p.sent.Add(heldSend) {
		return true
	}
	p.sent = now
	return false
}

func (p *parking) checkHeld() {
	if p.flying == 0 && p.onHeld != nil {
		fn := p.onHeld
		p.onHeld = nil
		fn()
	}
}

// Parks reports whether what peers have is parked in this kernel.
func (e *Engine) Parks() bool { return e.park != nil }

// Parked returns how many entries are parked, and how many changes wait for the
// parker. For functions run by Do.
func (e *Engine) Parked() (entries, waiting int) {
	if p := e.park; p != nil {
		return p.n, p.waiting + p.deletes.len() + p.releases.len()
	}
	return 0, 0
}

// Orphans returns how many parked entries the last dump found that no peer has. For
// functions run by Do.
func (e *Engine) Orphans() uint64 {
	if e.park == nil {
		return 0
	}
	return e.park.orphaned
}

// parks reports whether entries of the kernel may be parked.
func (e *Engine) parks() bool { return e.park != nil || e.cfg.ParkedBefore }

// ParkedBefore returns how many entries the last dump found that were parked by an
// earlier process with a Parker, while this one has none, and whether the kernel's
// table was read at all. For functions run by Do.
func (e *Engine) ParkedBefore() (entries uint64, read bool) {
	return e.kernel.parked, e.kernel.first && !e.kernel.running
}

// SetOrphans says what becomes of parked entries that no peer has, from the next dump
// on. For functions run by Do.
func (e *Engine) SetOrphans(o OrphanPolicy) {
	if e.park != nil {
		e.park.orphans = o
	}
}

// Adoptable says of an entry what a takeover needs to know.
type Adoptable struct {
	Age     time.Duration // since its owner said so
	Parked  bool          // it is in the kernel
	Current bool          // and is there as its owner told it last
	Ours    bool          // it is this node's own already; the kernel may have it as it was long ago
}

// Adopt makes entries of an owner this node's own: they enter the internal cache, and
// the caller gives them timeouts in the kernel. It visits some slots from position
// from on, and returns where to go on, 0 at the end. take says whether it wants an
// entry, and more. Those that are this node's own stay as they are. For functions run
// by Do, while the parker is held.
func (e *Engine) Adopt(owner uint8, from flow.Handle, slots int, take func(f *flow.Flow, a Adoptable) (want, more bool)) flow.Handle {
	o, f := e.replica.of(owner), &e.scratch
	return o.cache.Walk(from, slots, func(h flow.Handle) bool {
		flags := o.cache.Flags(h)
		if flags&extEnded != 0 || o.cache.IsExpect(h) {
			return true
		}
		key := o.cache.Key(h)
		ih := e.internal.Lookup(&key)
		a := Adoptable{
			Age: e.now.Sub(o.cache.Updated(h)), Ours: ih != 0 && !e.gone(ih),
			Parked: flags&extParked != 0, Current: o.due.In(h) == 0,
		}
		o.cache.Load(h, f)
		want, more := take(f, a)
		if !want || a.Ours {
			return more
		}
		e.unpark(&key)
		if !e.filter.Match(f) {
			return more
		}
		f.Has &^= flow.HasID
		if f.Has&flow.HasTimeout != 0 {
			f.Timeout = f.Remaining(a.Age)
		}
		if ih, replace := e.own(ih, f, 0); ih != 0 {
			e.Stats.Adopted++
			if e.cfg.Mirror {
				e.mode.Enqueue(ih, replace)
			}
		}
		return more
	})
}

// SetPassive says whether this node is in charge. One that is not yields what another
// node carries, its own entries from before first. For functions run by Do.
func (e *Engine) SetPassive(passive bool) {
	if p := e.park; p != nil {
		if passive && !p.passive {
			p.yielded = 0
		}
		p.passive, p.yielding, p.marking, p.yieldPos = passive, passive, passive, 0
		p.yieldAgain = false
	}
	e.forgetLeads()
}

// yieldDue reports whether there is something of a walk to do.
func (e *Engine) yieldDue() bool {
	p := e.park
	if !p.yielding && p.yieldAgain && e.now >= p.yieldAt {
		p.yielding, p.yieldPos = true, 0
		p.yieldAgain, p.yieldAt = false, e.now.Add(yieldPause)
	}
	return p.yielding && e.kernel.first
}

// yieldSome visits some entries of the internal cache: those that another node carries are
// yielded, the others when one tells of them or leads, unless traffic passes them until
// then.
func (e *Engine) yieldSome() bool {
	p := e.park
	p.yieldPos = e.internal.Walk(p.yieldPos, sweepSlots, func(h flow.Handle) bool {
		if e.gone(h) || e.internal.IsExpect(h) {
			return true // an expectation ends with its master
		}
		switch {
		case p.marking:
			e.internal.SetFlags(h, flagYields, 0)
		case e.internal.Flags(h)&flagYields == 0:
			return true
		}
		key := e.internal.Key(h)
		if o, eh := e.latest(&key, true); eh != 0 && e.yield(h, o, eh) {
			p.due(o, eh)
		}
		return true
	})
	if p.yieldPos == 0 {
		p.yielding, p.marking = false, false
	}
	return p.yielding
}

// yield gives entry h of the internal cache to the owner of the external entry eh: it
// is theirs, and parked, from now on. It does not if the two are different flows, or if
// the kernel would refuse the update: of a timeout that nobody can change, to a status that
// has not been answered or assured yet, or that is without its master; nor, in conntrackd's
// dialect, which tells no roles, if the owner has said nothing since this node took over:
// what it has is of before. What stays is yielded when its owner has come as far, or purged
// as any remnant.
func (e *Engine) yield(h flow.Handle, o *owned, eh flow.Handle) bool {
	p := e.park
	if !e.cfg.Mirror && p.charged != 0 && !p.charged.Before(o.cache.Updated(eh)) {
		return false
	}
	e.internal.Load(h, &p.was)
	o.cache.Load(eh, &p.is)
	if p.was.Reply != p.is.Reply || p.was.Status&flow.StatusFixedTimeout != 0 {
		return false
	}
	const growing = flow.StatusSeenReply | flow.StatusAssured
	expected := p.is.Has&flow.HasMaster != 0 && o.cache.Flags(eh)&extMasterless == 0
	if p.was.Status&growing&^p.is.Status != 0 || p.was.Status&flow.StatusExpected != 0 != expected {
		return false
	}
	p.mark(o, eh, true)
	o.cache.SetFlags(eh, extYielded, 0)
	e.Stats.Yielded++
	p.yielded++
	// The kernel's entry lives on: what is told of it later is not of the past.
	e.internal.Merge(h, &flow.Flow{Has: flow.HasID}, e.now)
	e.drop(h)
	return true
}

// whole returns what an event tells of an entry that was not ours. If packets have
// passed a parked one, all that its owner has told is added, because events carry only
// what changed; what the event does tell must be merged into it again.
func (e *Engine) whole(ev *flow.Event) *flow.Flow {
	if e.park == nil || ev.Kind != flow.EventUpdate {
		return &ev.Flow
	}
	if e.kernel.first {
		e.lookSoon() // the rest: its owner may have just ended it, or have told something else
	}
	o, h := e.latest(&ev.Flow.Orig, false)
	if h == 0 {
		return &ev.Flow
	}
	f := &e.park.is
	o.cache.Load(h, f)
	if f.Reply != ev.Flow.Reply {
		return &ev.Flow
	}
	f.Has &^= flow.HasID
	if f.Has&flow.HasTimeout != 0 {
		f.Timeout = f.Remaining(e.now.Sub(o.cache.Updated(h)))
	}
	e.touched()
	return f
}

// touched notes that packets have passed a parked entry.
func (e *Engine) touched() {
	e.Stats.Touched++
	e.lookSoon()
}

// lookSoon has the kernel's table read in a while.
func (e *Engine) lookSoon() {
	if p := e.park; p.look == 0 {
		p.look = e.now.Add(touchedLook)
		if p.looked != 0 {
			p.look = max(p.look, p.looked.Add(touchedPause))
		}
	}
}

// parkEvent applies an event of what the parker did. It matters only if the entry
// became ours while the request was under way.
func (e *Engine) parkEvent(ev *flow.Event) {
	f := &ev.Flow
	h := e.internal.Lookup(&f.Orig)
	if ev.Kind == flow.EventDestroy {
		e.Stats.EventsDestroy++
		e.destroy(h, ev, OriginPark)
		return
	}
	if h == 0 || e.gone(h) {
		if e.kernel.running {
			e.bury(f.Orig) // what the dump says of it may be from before it was parked
		}
		return
	}
	if !f.Parked() || !e.same(h, f) || !e.fit(f) {
		return
	}
	f.Has &^= flow.HasTimeout
	e.merge(h, ev, OriginOther)
	e.park.releases.push(f.Orig)
}

// unpark notes that the kernel's entry for t is ours now.
func (e *Engine) unpark(t *flow.Tuple) {
	e.replica.holders(t, func(o *owned, h flow.Handle) {
		e.park.undue(o, h)
		e.park.mark(o, h, false)
	})
}

// parkEnded notes that the kernel's entry for f was destroyed. It was this node's own
// if ours. What its owner carries on is parked again; what has ended here is not.
func (e *Engine) parkEnded(f *flow.Flow, ours bool) {
	p := e.park
	e.replica.holders(&f.Orig, func(o *owned, h flow.Handle) {
		p.mark(o, h, false)
		if ours && !p.passive || e.isGone(o.id) {
			p.undue(o, h)
			o.cache.SetFlags(h, extEnded, 0)
			return
		}
		p.due(o, h)
	})
}

// dumpedParked takes a parked entry that the dump found. h is the entry of the
// internal cache with its tuple, or 0.
func (e *Engine) dumpedParked(h flow.Handle, f *flow.Flow) {
	p := e.park
	if h != 0 && !e.gone(h) {
		// The parker came a moment too late, and what it changed is told by nobody else.
		e.internal.SetMark(h, e.kernel.epoch)
		p.releases.push(f.Orig)
		f.Has &^= flow.HasTimeout
		if e.same(h, f) && e.fit(f) && e.mergeDumped(h, f) {
			e.internal.SetFlags(h, flagUpdated, 0)
			if e.kernel.first || e.cfg.Mirror {
				e.mode.Enqueue(h, false)
			}
		}
		return
	}
	found := false
	e.replica.holders(&f.Orig, func(o *owned, eh flow.Handle) {
		if o.cache.Flags(eh)&extEnded != 0 {
			return
		}
		found = true
		p.mark(o, eh, true)
		o.cache.SetFlags(eh, extSeen, 0)
		o.cache.Load(eh, &p.is)
		switch {
		case p.is.Reply != f.Reply:
			o.cache.SetFlags(eh, extRemake, 0)
		case f.Timeout > flow.ParkTimeout-parkSlack && sameState(&p.is, f):
			return
		}
		p.due(o, eh)
	})
	if found {
		return
	}
	switch p.dumping {
	case OrphansGo:
		p.deletes.push(parkedKey{tuple: f.Orig})
	case OrphansAdopt:
		f.Timeout = f.StateTimeout()
		if !e.fit(f) {
			return
		}
		h, replace := e.own(h, f, 0)
		if h == 0 {
			return
		}
		e.mode.Enqueue(h, replace)
		e.Stats.Adopted++
		p.releases.push(f.Orig)
	default:
		p.orphaned++
	}
}

// sameState reports whether the kernel's entry has the state that the owner told.
func sameState(told, have *flow.Flow) bool {
	return told.TCPState == have.TCPState && told.SCTPState == have.SCTPState && told.Mark == have.Mark &&
		(told.Status^have.Status)&(flow.StatusSeenReply|flow.StatusAssured) == 0
}

// parkWalk is a walk through the external caches that finds what is not in the kernel.
type parkWalk struct {
	on     bool
	dumped bool // after a dump: what it has not seen is not there
	owner  int  // index in Replica.list
	pos    flow.Handle
}

// parkSynced notes that a resynchronisation with the kernel is complete.
func (e *Engine) parkSynced() {
	p := e.park
	p.walk = parkWalk{on: true, dumped: true}
	p.refresh = e.now.Add(parkRefresh)
}

// walkParked does a part of the walk, and reports whether something is left to do.
func (e *Engine) walkParked() bool {
	p := e.park
	w := &p.walk
	if p.refresh != 0 && e.now >= p.refresh {
		p.refresh = e.now.Add(parkRefresh)
		e.kernel.wanted = true
	}
	if p.look != 0 && e.now >= p.look {
		p.look, p.looked = 0, e.now
		e.kernel.wanted = true
	}
	if !w.on && p.again != 0 && e.now >= p.again {
		p.again, p.full = 0, false
		*w = parkWalk{on: true}
	}
	if !w.on {
		return false
	}
	if w.owner >= len(e.replica.list) {
		w.on = false
		return false
	}
	o := e.replica.list[w.owner]
	w.pos = o.cache.Walk(w.pos, sweepSlots, func(h flow.Handle) bool {
		if o.cache.IsExpect(h) {
			return true
		}
		flags := o.cache.Flags(h)
		there := flags&extParked != 0 && !w.dumped || flags&extSeen != 0
		o.cache.SetFlags(h, 0, extSeen)
		if flags&extEnded != 0 && p.passive && !e.isGone(o.id) {
			o.cache.SetFlags(h, 0, extEnded) // its owner was lost for a while
			flags &^= extEnded
		}
		if !there && flags&extEnded == 0 {
			p.due(o, h) // of what is ours nothing will come
		}
		return true
	})
	if w.pos == 0 {
		w.owner++
	}
	return true
}

// ring is a queue that grows.
type ring[T any] struct {
	items []T
	head  int
}

func (r *ring[T]) len() int { return len(r.items) - r.head }

func (r *ring[T]) push(x T) {
	if r.head > 1024 && r.head > len(r.items)/2 {
		r.items = r.items[:copy(r.items, r.items[r.head:])]
		r.head = 0
	}
	r.items = append(r.items, x)
}

func (r *ring[T]) pop() T {
	x := r.items[r.head]
	if r.head++; r.head == len(r.items) {
		r.items, r.head = r.items[:0], 0
		if cap(r.items) > 1<<16 {
			r.items = nil
		}
	}
	return x
}

// newDue returns the list of what waits of one owner.
func newDue() queue.Lists { return queue.NewLists(1) }

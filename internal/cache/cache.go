package cache

import (
	"errors"
	"math"

	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// Handle names an entry until it is removed, and may name another one
// afterwards. 0 names none. Handles are small numbers from 1 up, the lowest ones
// first, so that they can index arrays beside the cache (see HighHandle).
type Handle = flow.Handle

// Time is what the caller says the time is. It should not run backwards.
type Time = monotime.Time

// MaxLimit is the largest limit on entries.
const MaxLimit = 1 << 28

// ErrFull is what Insert returns at the limit on entries.
var ErrFull = errors.New("cache: limit on entries reached")

// Cache holds flows by their original tuple, and expectations by what they expect.
// Make one with New.
type Cache struct {
	hasher  hasher
	warm    warm
	index   index
	records slab[record]
	extras  slab[extra]
	expects slab[expectRow]

	freeRecord uint32 // first of the free slots, linked by record.extra; 0 for none
	freeExtra  uint32 // first of the free rows, linked by extra.next; 0 for none
	freeExpect uint32 // the same for expectRow
	rows       int    // rows of extras in use

	limit        int
	alive, dead  int   // alive+dead <= limit but after SetLimit
	expectsAlive int   // of alive
	latest       int64 // the latest coarse time ever seen

	// created-destroyed == alive
	created, updated, destroyed, refused uint64
}

// Stats are counters since New, and the memory held now.
type Stats struct {
	Created   uint64 // by Insert and Replace
	Updated   uint64 // by Merge and MergeFull
	Destroyed uint64 // by SetDead, and by Remove, Replace and Clear of what was alive
	Refused   uint64 // inserts refused at the limit

	SideRows   int    // flows with a row in the side table
	SlabBytes  uint64 // memory of the records, in use or not
	IndexBytes uint64
	SideBytes  uint64 // memory of the side tables
}

// New returns an empty cache for at most limit entries, alive and dead ones
// together. A limit below 1 or above MaxLimit means MaxLimit. Memory is taken as
// entries come.
func New(limit int) *Cache {
	c := &Cache{
		hasher: newHasher(),
		index:  newIndex(),
		latest: math.MinInt64,
	}
	c.SetLimit(limit)
	return c
}

// Lookup returns the flow with the original tuple k, or the expectation with the key
// k (see flow.ExpectKey), alive or dead, or 0. In an IPv4 tuple only the octets 0 to 3
// of an address count; those behind them are zero.
func (c *Cache) Lookup(k *flow.Tuple) Handle {
	packed := makeKey(k)
	return c.find(&packed, c.hasher.sum(&packed.addr, packed.word))
}

func (c *Cache) find(k *key, hash uint64) Handle {
	s, t := c.index.segment(hash), tag(hash)
	for i, n := home(hash), 0; n < segmentBuckets; i, n = next(i), n+1 {
		b := &s.buckets[i]
		lo, hi := b.matches(t)
		for ; lo != 0; lo &= lo - 1 {
			if h := b.slots[slot(lo)]; c.records.at(h).is(k) {
				return Handle(h)
			}
		}
		for ; hi != 0; hi &= hi - 1 {
			if h := b.slots[8+slot(hi)]; c.records.at(h).is(k) {
				return Handle(h)
			}
		}
		if b.passed == 0 {
			return 0
		}
	}
	return 0
}

// hashOf is the hash of an entry. In the second word of IPv4 a record has
// something else than a key, and sum does not look there.
func (c *Cache) hashOf(h uint32) uint64 {
	r := c.records.at(h)
	return c.hasher.sum(&r.addr, r.word)
}

// Insert adds a flow that Lookup does not find, as an entry that is alive, with
// owner, epoch and flags 0, and created and updated at now. It returns ErrFull at
// the limit, and panics if the key is present.
func (c *Cache) Insert(f *flow.Flow, now Time) (Handle, error) {
	k := makeKey(&f.Orig)
	h, r, err := c.add(&k)
	if err != nil {
		return 0, err
	}
	c.start(r, f, now)
	return h, nil
}

// add gives a new entry its slot, with nothing but its key in it.
func (c *Cache) add(k *key) (Handle, *record, error) {
	hash := c.hasher.sum(&k.addr, k.word)
	if c.find(k, hash) != 0 {
		panic("cache: insert of an entry that is present")
	}
	if c.alive+c.dead >= c.limit || !c.index.reserve(hash, c.hashOf) {
		c.refused++
		return 0, nil, ErrFull
	}

	h := c.freeRecord
	if h == 0 {
		h = c.records.grow()
	}
	r := c.records.at(h)
	c.freeRecord = r.extra
	*r = record{addr: k.addr, word: k.word}
	c.index.insert(hash, h)
	return Handle(h), r, nil
}

// Replace gives the entry h, whose key is f.Orig, all its attributes anew. It is
// alive then, created and updated at now, with flags 0; owner and epoch stay.
func (c *Cache) Replace(h Handle, f *flow.Flow, now Time) {
	r := c.flowAt(h)
	c.leave(r)
	c.dropRare(r)
	*r = record{addr: r.addr, word: r.word, owner: r.owner, epoch: r.epoch}
	c.start(r, f, now)
}

// start makes r, which has nothing but its key, an entry that is alive with the
// attributes of f.
func (c *Cache) start(r *record, f *flow.Flow, now Time) {
	r.state = stateInUse | stateAltered
	r.created = c.coarse(now)
	r.updated = r.created
	c.setReply(r, &f.Reply) // it is set even if f.Has does not say so
	c.take(r, f)
	c.created++
	c.alive++
}

// leave takes r out of the counts of what is alive or dead.
func (c *Cache) leave(r *record) {
	if r.state&stateDead != 0 {
		c.dead--
		return
	}
	c.alive--
	c.destroyed++
	if r.state&stateExpect != 0 {
		c.expectsAlive--
	}
}

// SetDead marks an entry as dead: Lookup still finds it, and only Replace brings
// it back. On a dead entry it does nothing.
func (c *Cache) SetDead(h Handle) {
	r := c.at(h)
	if r.state&stateDead != 0 {
		return
	}
	c.leave(r)
	r.state |= stateDead
	c.dead++
}

// Remove forgets an entry, alive or dead. The handle may name another entry
// after the next Insert.
func (c *Cache) Remove(h Handle) {
	r := c.at(h)
	if !c.index.remove(c.hashOf(uint32(h)), uint32(h)) {
		panic("cache: index without an entry of the slab")
	}
	c.leave(r)
	if r.state&stateExpect != 0 {
		c.dropExpect(r)
	} else {
		c.dropRare(r)
	}
	*r = record{extra: c.freeRecord}
	c.freeRecord = uint32(h)
}

// Clear forgets all entries and gives their memory back; handles start from 1
// again. The counters of Stats go on.
func (c *Cache) Clear() {
	c.destroyed += uint64(c.alive)
	c.alive, c.dead, c.rows, c.expectsAlive = 0, 0, 0, 0
	c.freeRecord, c.freeExtra, c.freeExpect = 0, 0, 0
	c.index = newIndex()
	c.records = slab[record]{}
	c.extras = slab[extra]{}
	c.expects = slab[expectRow]{}
}

// Walk calls fn for the entries, alive and dead, among the next max slots in the
// order of handles, beginning with from; 0 and 1 are the beginning, and max below
// 1 means no bound. It stops after an fn that returns false. It returns where to
// go on, or 0 at the end.
//
// Entries may be inserted and removed by fn and between calls: an entry that is
// there from the first call to the last is visited exactly once.
func (c *Cache) Walk(from Handle, max int, fn func(h Handle) bool) (next Handle) {
	h := uint32(from)
	if h == 0 {
		h = 1
	}
	for n := 0; h <= c.records.used; n++ {
		if max > 0 && n == max {
			return Handle(h)
		}
		visit := c.records.at(h).state != 0
		h++
		if visit && !fn(Handle(h-1)) {
			break
		}
	}
	if h > c.records.used {
		return 0
	}
	return Handle(h)
}

// at returns the record of an entry.
func (c *Cache) at(h Handle) *record {
	r := c.records.at(uint32(h))
	if r.state == 0 {
		panic("cache: handle of no entry")
	}
	return r
}

// flowAt returns the record of an entry that must be a flow.
func (c *Cache) flowAt(h Handle) *record {
	r := c.records.at(uint32(h))
	if r.state&(stateInUse|stateExpect) != stateInUse {
		panic("cache: handle of no flow")
	}
	return r
}

// Len is the number of entries that are alive.
func (c *Cache) Len() int { return c.alive }

// DeadLen is the number of entries that are dead.
func (c *Cache) DeadLen() int { return c.dead }

// HighHandle is the largest handle given out since New or Clear, in use or not:
// an array with one element more can be indexed by every handle.
func (c *Cache) HighHandle() Handle { return Handle(c.records.used) }

// Limit is the limit on entries.
func (c *Cache) Limit() int { return c.limit }

// SetLimit changes the limit on entries, with the same meaning as in New. Entries
// beyond a lower limit stay; nothing is inserted until there are fewer.
func (c *Cache) SetLimit(limit int) {
	if limit < 1 || limit > MaxLimit {
		limit = MaxLimit
	}
	c.limit = limit
}

// Stats returns the counters and the memory held.
func (c *Cache) Stats() Stats {
	return Stats{
		Created:    c.created,
		Updated:    c.updated,
		Destroyed:  c.destroyed,
		Refused:    c.refused,
		SideRows:   c.rows,
		SlabBytes:  c.records.bytes(),
		IndexBytes: c.index.bytes(),
		SideBytes:  c.extras.bytes() + c.expects.bytes(),
	}
}

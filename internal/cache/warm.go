package cache

import "syncd/internal/flow"

// WarmBatch is how many lookups can be announced at once.
const WarmBatch = flow.BatchSize

// warm is what is known of lookups that were announced.
type warm struct {
	n    int
	hash [WarmBatch]uint64
	h    [WarmBatch]Handle
	sum  uint64 // of what was read, so that it is read
}

// Announce says that the entry of t will be looked up soon. At most WarmBatch may be
// announced before Warm.
func (c *Cache) Announce(t *flow.Tuple) {
	k := makeKey(t)
	c.warm.hash[c.warm.n] = c.hasher.sum(&k.addr, k.word)
	c.warm.n++
}

// Warm reads the memory that the announced lookups need. A table of a million flows is
// in no processor's cache, so a lookup waits for memory two or three times; here all
// of them wait together. It changes nothing. It returns, in the order of announcement,
// the entries that will be found, or so it seems, and 0 where none will: guesses for
// LookupNear. Their owner may also want to read what it keeps beside them. They are valid
// until the next call.
func (c *Cache) Warm() []Handle {
	w := &c.warm
	var sum uint64
	for _, hash := range w.hash[:w.n] {
		sum += c.index.segment(hash).buckets[home(hash)].tagsLo
	}
	for i, hash := range w.hash[:w.n] {
		b := &c.index.segment(hash).buckets[home(hash)]
		lo, hi := b.matches(tag(hash))
		h := uint32(0)
		switch {
		case lo != 0:
			h = b.slots[slot(lo)]
		case hi != 0:
			h = b.slots[8+slot(hi)]
		}
		if h != 0 {
			r := c.records.at(h)
			sum += r.word + uint64(r.state) // the first line of the record and the last, wherever it lies
		}
		w.h[i] = Handle(h)
	}
	found := w.h[:w.n]
	w.n, w.sum = 0, w.sum+sum
	return found
}

// LookupNear is Lookup with a guess of what it will find, of any time; 0 is none.
func (c *Cache) LookupNear(t *flow.Tuple, guess Handle) Handle {
	k := makeKey(t)
	if guess != 0 && uint32(guess) <= c.records.used && c.records.at(uint32(guess)).is(&k) {
		return guess // no two entries have the same key, and a free slot has none
	}
	return c.find(&k, c.hasher.sum(&k.addr, k.word))
}

// Touch reads the memory of entry h, which need not be there: a lookup by handle of some of
// them then waits for all together.
func (c *Cache) Touch(h Handle) uint64 {
	if h == 0 || uint32(h) > c.records.used {
		return 0
	}
	r := c.records.at(uint32(h))
	return r.word + uint64(r.state)
}

// AnnounceRemove says that entry h, which need not be there, will be removed soon. It
// counts as a lookup that was announced.
func (c *Cache) AnnounceRemove(h Handle) {
	c.warm.hash[c.warm.n] = 0
	if h != 0 && uint32(h) <= c.records.used {
		c.warm.hash[c.warm.n] = c.hashOf(uint32(h))
	}
	c.warm.n++
}

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
// of them wait together. It changes nothing. It returns the entries that will be found,
// or so it seems, valid until the next call: their owner may want to read what it keeps
// beside them.
func (c *Cache) Warm() []Handle {
	w := &c.warm
	var sum uint64
	found := w.h[:0]
	for _, hash := range w.hash[:w.n] {
		sum += c.index.segment(hash).buckets[home(hash)].tagsLo
	}
	for _, hash := range w.hash[:w.n] {
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
			sum += r.word + uint64(r.status) // both lines of the record
			found = append(found, Handle(h))
		}
	}
	w.n, w.sum = 0, w.sum+sum
	return found
}

package cache

import "syncd/internal/flow"

// expectRow is a row of the table of expectations. A flow has none, and an
// expectation always one: record.extra names it.
type expectRow struct {
	x    flow.Expect
	next uint32 // links the free list, 0 while in use
}

// LookupExpect returns the expectation of what x expects, alive or dead, or 0. It
// does what Lookup does with the key of x.
func (c *Cache) LookupExpect(x *flow.Expect) Handle {
	key := x.Key()
	return c.Lookup(&key)
}

// InsertExpect adds an expectation that LookupExpect does not find, as Insert adds a
// flow.
func (c *Cache) InsertExpect(x *flow.Expect, now Time) (Handle, error) {
	t := x.Key()
	k := makeKey(&t)
	h, r, err := c.add(&k)
	if err != nil {
		return 0, err
	}
	r.extra = c.expectRow()
	c.startExpect(r, x, now)
	return h, nil
}

// ReplaceExpect gives the entry h, an expectation whose key is that of x, all its
// attributes anew. It is alive then, created and updated at now, with flags 0; owner
// and epoch stay.
func (c *Cache) ReplaceExpect(h Handle, x *flow.Expect, now Time) {
	r := c.expectAt(h)
	c.leave(r)
	*r = record{addr: r.addr, word: r.word, owner: r.owner, epoch: r.epoch, extra: r.extra}
	c.startExpect(r, x, now)
}

// MergeExpect takes over the whole of x, which the entry h has the key of, and
// reports whether it differs in more than timeout and id. The entry stays dead if it
// is.
func (c *Cache) MergeExpect(h Handle, x *flow.Expect, now Time) (changed bool) {
	r := c.expectAt(h)
	c.touch(r, now)
	changed = !flow.SameExpect(&c.expects.at(r.extra).x, x)
	c.takeExpect(r, x)
	return changed
}

// LoadExpect writes the expectation of entry h to x.
func (c *Cache) LoadExpect(h Handle, x *flow.Expect) { *x = c.expects.at(c.expectAt(h).extra).x }

// IsExpect reports whether entry h is an expectation.
func (c *Cache) IsExpect(h Handle) bool { return c.at(h).state&stateExpect != 0 }

// ExpectLen is the number of expectations that are alive; Len counts them too.
func (c *Cache) ExpectLen() int { return c.expectsAlive }

// expectAt returns the record of an entry that must be an expectation.
func (c *Cache) expectAt(h Handle) *record {
	r := c.records.at(uint32(h))
	if r.state&stateExpect == 0 {
		panic("cache: handle of no expectation")
	}
	return r
}

// startExpect makes r, which has its key and a row, an entry that is alive.
func (c *Cache) startExpect(r *record, x *flow.Expect, now Time) {
	r.state = stateInUse | stateExpect
	r.created = c.coarse(now)
	r.updated = r.created
	c.takeExpect(r, x)
	c.created++
	c.alive++
	c.expectsAlive++
}

func (c *Cache) takeExpect(r *record, x *flow.Expect) {
	c.expects.at(r.extra).x = *x
	r.timeout, r.id = x.Timeout, x.ID
}

// expectRow takes a row out of the free ones, or a new one.
func (c *Cache) expectRow() uint32 {
	i := c.freeExpect
	if i == 0 {
		return c.expects.grow()
	}
	c.freeExpect = c.expects.at(i).next
	return i
}

// dropExpect gives the row of r back.
func (c *Cache) dropExpect(r *record) {
	*c.expects.at(r.extra) = expectRow{next: c.freeExpect}
	c.freeExpect = r.extra
	r.extra = 0
}

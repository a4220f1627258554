package cache

import "syncd/internal/flow"

// Merge takes over every attribute that f.Has names; f.Orig is not looked at,
// and Reply counts only with HasReply. Nothing is ever removed. An attribute
// that the cache does not store does not count. The entry stays dead if it is.
//
// Updated becomes now if anything was taken, whether it differed or not; changed
// reports whether a replicated attribute has another value now or has become
// known.
func (c *Cache) Merge(h Handle, f *flow.Flow, now Time) (changed bool) {
	r := c.flowAt(h)
	if f.Has&storedAttrs == 0 {
		return false
	}
	c.touch(r, now)
	return c.take(r, f)
}

// MergeFull is Merge with an f that is the complete state of the flow, as a dump
// says it. What f lacks of master, helper, sequence adjustment, SYN proxy and
// security context is gone. Labels and mark that were known and not zero become
// known and zero, so that the clearing can be replicated: a kernel leaves both
// out when they are zero. Status, timeout, ID and protocol state are kept: an
// offloaded flow has no timeout and no protocol state in a dump.
func (c *Cache) MergeFull(h Handle, f *flow.Flow, now Time) (changed bool) {
	r := c.flowAt(h)
	c.touch(r, now)
	changed = c.forget(r, r.has&rareAttrs&^f.Has)
	if f.Has&flow.HasMark == 0 && r.mark != 0 {
		r.mark = 0
		changed = true
	}
	if changed {
		r.state |= stateAltered
	}
	return c.take(r, f) || changed
}

func (c *Cache) touch(r *record, now Time) {
	r.updated = c.coarse(now)
	c.updated++
}

// take moves what f.Has names from f to r and reports whether that changed a
// replicated attribute.
func (c *Cache) take(r *record, f *flow.Flow) (changed bool) {
	has := f.Has & storedAttrs
	fresh := has &^ r.has
	r.has |= has
	altered := fresh&^stateMatters&(replicatedAttrs|flow.HasReply) != 0
	changed = fresh&replicatedAttrs&^stateMatters != 0
	if has&flow.HasReply != 0 && c.setReply(r, &f.Reply) {
		changed, altered = true, true
	}
	if has&flow.HasMark != 0 && set(&r.mark, f.Mark) {
		changed, altered = true, true
	}
	if has&flow.HasSCTPVtags != 0 && set(&r.sctpVtag, f.SCTPVtag) {
		changed, altered = true, true
	}
	if has&rareAttrs != 0 && c.takeRare(r, f) {
		changed, altered = true, true
	}
	// What packets change comes last: it alone does not alter the flow.
	if fresh&replicatedAttrs&stateMatters != 0 {
		changed = true
	}
	if has&flow.HasStatus != 0 && r.status != f.Status {
		altered = altered || (r.status^f.Status)&natDone != 0
		r.status, changed = f.Status, true
	}
	if has&flow.HasTimeout != 0 {
		r.timeout = f.Timeout
	}
	if has&flow.HasID != 0 {
		r.id = f.ID
	}
	if has&protocolAttrs != 0 && r.takeProtocol(f) {
		changed = true
	}
	if altered {
		r.state |= stateAltered
	}
	return changed
}

func (r *record) takeProtocol(f *flow.Flow) (changed bool) {
	if f.Has&flow.HasTCP != 0 && set(&r.tcpState, f.TCPState) {
		changed = true
	}
	if f.Has&flow.HasTCPFlags != 0 && set(&r.tcpFlags, f.TCPFlags) {
		changed = true
	}
	if f.Has&flow.HasTCPWScale != 0 && set(&r.tcpWScale, f.TCPWScale) {
		changed = true
	}
	if f.Has&flow.HasSCTP != 0 && set(&r.sctpState, f.SCTPState) {
		changed = true
	}
	return changed
}

func (c *Cache) takeRare(r *record, f *flow.Flow) (changed bool) {
	e := c.rare(r)
	was := e
	if f.Has&flow.HasMaster != 0 {
		e.master = f.Master
	}
	if f.Has&flow.HasLabels != 0 {
		e.labels = f.Labels
	}
	if f.Has&flow.HasHelper != 0 {
		e.helper = f.Helper
	}
	if f.Has&flow.HasSeqAdjOrig != 0 {
		e.seqAdj[flow.DirOriginal] = f.SeqAdj[flow.DirOriginal]
	}
	if f.Has&flow.HasSeqAdjRepl != 0 {
		e.seqAdj[flow.DirReply] = f.SeqAdj[flow.DirReply]
	}
	if f.Has&flow.HasSynproxy != 0 {
		e.synproxy = f.Synproxy
	}
	if f.Has&flow.HasSecctx != 0 {
		e.secctx = f.Secctx
	}
	c.setRare(r, &e)
	was.secctx = e.secctx // not replicated
	return e != was
}

// forget removes the rare attributes named by gone and reports whether that
// changed a replicated one.
func (c *Cache) forget(r *record, gone flow.Attrs) (changed bool) {
	if gone == 0 {
		return false
	}
	e := c.rare(r)
	if gone&flow.HasMaster != 0 {
		e.master = flow.Tuple{}
	}
	if gone&flow.HasLabels != 0 {
		changed = set(&e.labels, [16]byte{})
		gone &^= flow.HasLabels // known, and zero
	}
	if gone&flow.HasHelper != 0 {
		e.helper = flow.Name{}
	}
	if gone&flow.HasSeqAdjOrig != 0 {
		e.seqAdj[flow.DirOriginal] = flow.SeqAdj{}
	}
	if gone&flow.HasSeqAdjRepl != 0 {
		e.seqAdj[flow.DirReply] = flow.SeqAdj{}
	}
	if gone&flow.HasSynproxy != 0 {
		e.synproxy = flow.Synproxy{}
	}
	if gone&flow.HasSecctx != 0 {
		e.secctx = [64]byte{}
	}
	c.setRare(r, &e)
	r.has &^= gone
	return changed || gone&replicatedAttrs != 0
}

// setReply stores the reply tuple and reports whether it is another one.
func (c *Cache) setReply(r *record, t *flow.Tuple) (changed bool) {
	w := keyWord(t)
	fits := r.fits(t, w)
	if !fits || r.state&stateWideReply != 0 {
		return c.setWideReply(r, t, fits)
	}
	if isIPv4(w) && set(&r.addr[1], addrsIPv4(t)) {
		changed = true
	}
	if set(&r.replyPorts, uint32(w)) {
		changed = true
	}
	if set(&r.replyZone, t.Zone) {
		changed = true
	}
	return changed
}

// setWideReply is setReply when the side table has to do with the old or the new
// reply tuple.
func (c *Cache) setWideReply(r *record, t *flow.Tuple, fits bool) (changed bool) {
	e := c.rare(r)
	// A tuple that fits never equals one that does not.
	changed = r.state&stateWideReply == 0 || e.reply != *t
	if fits {
		e.reply = flow.Tuple{}
		r.state &^= stateWideReply
		c.setReply(r, t)
	} else {
		e.reply = *t
		r.state |= stateWideReply
	}
	c.setRare(r, &e)
	return changed
}

// rare returns a copy of the row of r, zero if it has none.
func (c *Cache) rare(r *record) extra {
	if r.extra == 0 {
		return extra{}
	}
	return *c.extras.at(r.extra)
}

// setRare writes the row of r, which comes and goes with the first and the last
// value that is not zero.
func (c *Cache) setRare(r *record, e *extra) {
	if *e == (extra{}) {
		c.dropRare(r)
		return
	}
	if r.extra == 0 {
		if r.extra = c.freeExtra; r.extra != 0 {
			c.freeExtra = c.extras.at(r.extra).next
		} else {
			r.extra = c.extras.grow()
		}
		c.rows++
	}
	*c.extras.at(r.extra) = *e
}

// dropRare gives the row of r back, if it has one.
func (c *Cache) dropRare(r *record) {
	if r.extra == 0 {
		return
	}
	*c.extras.at(r.extra) = extra{next: c.freeExtra}
	c.freeExtra = r.extra
	r.extra = 0
	c.rows--
}

// set assigns and reports whether that changed anything.
func set[T comparable](p *T, v T) bool {
	if *p == v {
		return false
	}
	*p = v
	return true
}

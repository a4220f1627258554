package engine

import "syncd/internal/flow"

// Two nodes that both stand by may have the same flows from the times when each was in
// charge. Neither may give one up because the other has it: both would. So a node that
// is not in charge gives up flows in favour of those peers alone that lead, by their own
// word (Config.Leads), and comes back to what it has kept when one does that did not.

// lead is what the loop knows of who leads.
type lead struct {
	asked  bool   // the rest is valid, as of
	turn   uint64 // this one of the loop
	owners [256]bool
	known  [256]bool // the owner knows our role, and what is held of it is what it has
	any    bool      // one leads and is known
	since  bool      // one has led since this node was last told that it is not in charge
}

// lookLeads asks who leads, once in a turn.
func (e *Engine) lookLeads() {
	l := &e.lead
	if turn := e.turns.Load(); l.asked && l.turn == turn {
		return
	} else {
		l.asked, l.turn = true, turn
	}
	l.any = false
	rose := false
	for _, o := range e.replica.list {
		leads, known := e.cfg.Leads(o.id)
		carries := l.owners[o.id] && l.known[o.id]
		rose = rose || leads && known && !carries
		l.owners[o.id], l.known[o.id] = leads, known
		l.any = l.any || leads && known
	}
	l.since = l.since || l.any
	if !rose {
		return
	}
	if e.park != nil && e.park.passive {
		e.park.yieldAgain = true
	}
	if e.standby && e.cfg.Led != nil {
		e.cfg.Led()
	}
}

// forgetLeads makes every peer count that leads in spite of a change of this node's role.
func (e *Engine) forgetLeads() { e.lead = lead{since: e.lead.since} }

// leads reports whether an owner leads. Whether it knows our role does not matter for what
// it says of its own: it would know before it gave anything up in our favour.
func (e *Engine) leads(owner uint8) bool {
	if e.cfg.Leads == nil {
		return true
	}
	e.lookLeads()
	return e.lead.owners[owner]
}

// led reports whether any peer leads; ever: or has led since this node stands by.
func (e *Engine) led(ever bool) bool {
	if e.cfg.Leads == nil {
		return true
	}
	e.lookLeads()
	return e.lead.any || ever && e.lead.since
}

// carries reports whether the owner of entry h carries the flow, so that this
// node need not.
func (e *Engine) carries(o *owned, h flow.Handle) bool {
	return e.cfg.Leads == nil || e.leads(o.id) && e.lead.known[o.id] && !o.inDoubt(h)
}

// carried reports whether a peer carries the flow t.
func (e *Engine) carried(t *flow.Tuple) bool {
	for _, o := range e.replica.list {
		if h := o.cache.Lookup(t); h != 0 && e.carries(o, h) {
			return true
		}
	}
	return false
}

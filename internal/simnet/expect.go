package simnet

import (
	"context"

	"syncd/internal/flow"
)

// Expect adds an expectation of a flow that has a helper, in the zone of that, and
// reports whether it was added: there is such a flow, and nothing else expects the
// same.
func (k *Kernel) Expect(x flow.Expect, port uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	master := k.bucket(&x.Master)[x.Master]
	x.Tuple.Zone = x.Master.Zone
	if master == nil || master.Has&flow.HasHelper == 0 || k.expects[x.Key()] != nil {
		return false
	}
	k.lastID += 1 + k.rand.Uint32N(1000)
	x.ID, x.Helper = k.lastID, master.Helper
	x.Has |= flow.ExpectHasID | flow.ExpectHasHelper | flow.ExpectHasTimeout
	k.expects[x.Key()] = &x
	k.emitExpect(flow.EventNew, &x, port)
	return true
}

// Fulfil removes the expectation with this key, as does the flow that it expects, and
// reports whether there was one.
func (k *Kernel) Fulfil(key flow.Tuple, port uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	x := k.expects[key]
	if x == nil {
		return false
	}
	delete(k.expects, key)
	k.emitExpect(flow.EventDestroy, x, port)
	return true
}

// orphan removes the expectations of a flow that is gone, in no order. Whoever removed
// the flow did not remove them.
func (k *Kernel) orphan(master flow.Tuple) {
	for key, x := range k.expects {
		if x.Master == master {
			delete(k.expects, key)
			k.emitExpect(flow.EventDestroy, x, 0)
		}
	}
}

func (k *Kernel) emitExpect(kind flow.EventKind, x *flow.Expect, port uint32) {
	k.enqueue(queued{flow.Event{Kind: kind, PortID: port, Expect: 1}, hideZone(*x)})
}

// InjectExpect queues an event about an expectation as it is, without touching the
// table.
func (k *Kernel) InjectExpect(kind flow.EventKind, x flow.Expect) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.emitExpect(kind, &x, 0)
}

// hideZone returns x as a kernel tells of it.
func hideZone(x flow.Expect) flow.Expect {
	x.Tuple.Zone, x.Master.Zone = 0, 0
	return x
}

// Expects returns a copy of the table of expectations, with their zones.
func (k *Kernel) Expects() map[flow.Tuple]flow.Expect {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := make(map[flow.Tuple]flow.Expect, len(k.expects))
	for key, x := range k.expects {
		m[key] = *x
	}
	return m
}

// DumpExpects calls fn for the expectations of the table, as they are when it is
// called.
func (k *Kernel) DumpExpects(ctx context.Context, fn func(*flow.Expect) error) error {
	k.mu.Lock()
	var all []flow.Expect
	for _, x := range k.expects {
		all = append(all, hideZone(*x))
	}
	k.mu.Unlock()
	for i := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := fn(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

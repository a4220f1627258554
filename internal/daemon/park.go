package daemon

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// parker puts what peers have into the kernel as it comes. It implements
// engine.Parker.
type parker struct {
	d *Daemon
	w *ctnetlink.Writer
}

// Run implements engine.Parker.
func (p *parker) Run(ctx context.Context, work <-chan *flow.ParkBatch, done chan<- *flow.ParkBatch) error {
	var park *commit.Parker
	var labels bool
	var mask uint32
	for {
		select {
		case b := <-work:
			// A reload may have changed what is replicated.
			if f := &p.d.config().Filter; park == nil || f.Labels != labels || f.MarkMask != mask {
				labels, mask = f.Labels, f.MarkMask
				park = commit.NewParker(kernel{p.w, ctnetlink.CreateOptions{Liberal: true, Labels: labels, MarkMask: mask}},
					commit.Options{Labels: labels, MarkMask: mask})
			}
			if err := park.Park(b); err != nil {
				return err
			}
			done <- b // has room for every batch
		case <-ctx.Done():
			return nil
		}
	}
}

// openParker makes the parker of instant takeover.
func (d *Daemon) openParker() (err error) {
	// What has passed an entry shows in its timeout alone.
	long, err := ctnetlink.LongTimeouts(flow.ParkedAbove)
	if err != nil {
		return err
	}
	for name, v := range long {
		return fmt.Errorf(`takeover.mode = "instant": %s is %d s: with timeouts above %d s a connection in use cannot be told from one that only waits here`, name, v, flow.ParkedAbove)
	}
	d.parks, err = ctnetlink.NewWriter(ctnetlink.WriterConfig{})
	return err
}

// holdParker stops the parker. It goes on when release is called.
func (d *Daemon) holdParker(ctx context.Context) (release func(), err error) {
	held := make(chan struct{})
	if err := d.engine.Do(ctx, func() { d.engine.HoldPark(func() { close(held) }) }); err != nil {
		return nil, err
	}
	release = func() { _ = d.engine.Do(d.ctx, func() { d.engine.HoldPark(nil) }) }
	select {
	case <-held:
		return release, nil
	case <-ctx.Done():
		release()
		return nil, ctx.Err()
	}
}

// adopt hands out entries of one owner that become this node's own with that: in the
// first pass all that are in the kernel already, in the order in which they lie in the
// cache, since for them no order is needed; the others as a commit does. What is this
// node's own is compared with what the owner has told, as by a commit: it may be from
// an earlier time in charge. It runs on the loop.
func (s *externalSource) adopt(owner uint8, p commit.Pass, dst []commit.Entry) (n int) {
	s.pos = s.engine.Adopt(owner, s.pos, walkSlots, func(f *flow.Flow, a engine.Adoptable) (want, more bool) {
		class := commit.PassOf(f)
		switch {
		case a.Ours: // in later passes, what the first one has adopted is too
			if p != commit.PassEstablished {
				return false, true
			}
		case a.Parked, class == p:
		case class < p && a.Age <= s.engine.Now().Sub(s.since):
		default:
			return false, true
		}
		dst[n] = commit.Entry{Flow: *f, Age: a.Age, Parked: a.Parked && !a.Ours, Current: a.Current}
		n++
		return true, n < len(dst)
	})
	return n
}

// orphans says what is to become of parked entries that no peer has.
func orphans(s *view, up time.Duration) engine.OrphanPolicy {
	if len(s.problems) == 0 && !s.alone && up >= meetAfter {
		return engine.OrphansGo
	}
	return engine.OrphansStay
}

// watchParked lets parked entries that no peer has leave the kernel, once the peers
// have told everything: they ended while this daemon was not there to hear of it.
func (d *Daemon) watchParked(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s, err := d.look(ctx)
		if err != nil {
			return nil // the daemon stops
		}
		policy := orphans(&s, monotime.Now().Sub(d.begun))
		d.mu.Lock()
		if d.adopting {
			policy = engine.OrphansAdopt
		}
		d.mu.Unlock()
		if err := d.engine.Do(ctx, func() {
			d.engine.SetOrphans(policy)
			if n := d.engine.Orphans(); n > 0 && policy == engine.OrphansGo {
				d.log.Info("removing entries from the kernel that no peer has", zap.Uint64("entries", n))
				d.engine.RequestKernelSync()
			}
		}); err != nil {
			return nil
		}
	}
}

// takeOrphans decides what the dump of a takeover does with parked entries that no
// peer has: they are the only copy, unless all peers have told everything. done ends
// that.
func (d *Daemon) takeOrphans(ctx context.Context) (done func(), err error) {
	s, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	policy := orphans(&s, monotime.Now().Sub(d.begun))
	if policy == engine.OrphansStay {
		policy = engine.OrphansAdopt
	}
	set := func(adopting bool) {
		d.mu.Lock()
		d.adopting = adopting
		d.mu.Unlock()
	}
	set(policy == engine.OrphansAdopt)
	return func() { set(false) }, d.engine.Do(ctx, func() { d.engine.SetOrphans(policy) })
}

// parkStats puts the counters of the parker into the words of ctl.
func parkStats(es *engine.Stats) *ctl.ParkStats {
	st := &ctl.ParkStats{
		Created: es.Parks[flow.ParkCreate], Updated: es.Parks[flow.ParkUpdate], Remade: es.Parks[flow.ParkRemake],
		Deleted: es.Parks[flow.ParkDelete], Released: es.Parks[flow.ParkRelease],
		Adopted: es.Adopted, Touched: es.Touched, Yielded: es.Yielded,
		NotParked: map[string]uint64{},
	}
	for r := flow.ParkDone + 1; r < flow.ParkResults; r++ {
		st.NotParked[r.String()] = es.ParkResults[r]
	}
	return st
}

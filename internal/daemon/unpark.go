package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"syncd/internal/commit"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// unparkChunk is how many entries are removed between two chances for a command: some
// 10 ms.
const unparkChunk = 1024

// unpark removes from the kernel what an earlier process with instant takeover has
// parked there, while this one takes over by commits. It waits until peers have told
// everything: before, this may be the only copy, and the first packet makes any entry
// this node's own.
func (d *Daemon) unpark(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for said := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var left uint64
		var read bool
		if err := d.engine.Do(ctx, func() { left, read = d.engine.ParkedBefore() }); err != nil {
			return nil // the daemon stops
		}
		switch {
		case !read:
			continue
		case left == 0:
			<-ctx.Done() // nobody parks any more
			return nil
		case !said:
			said = true
			d.log.Warn("the kernel has entries that were parked for an instant takeover; they are removed once the peers have told everything", zap.Uint64("entries", left))
		}
		s, err := d.look(ctx)
		if err != nil {
			return nil
		}
		if orphans(&s, monotime.Now().Sub(d.begun)) != engine.OrphansGo {
			continue
		}
		n, err := d.unparkAll(ctx)
		if err == nil {
			err = d.kernelSync(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		d.log.Info("removed entries that were parked for an instant takeover", zap.Int("entries", n), zap.Error(err))
		tick.Reset(time.Minute) // the next try, if it comes to that
	}
}

// unparkAll removes all parked entries.
func (d *Daemon) unparkAll(ctx context.Context) (removed int, err error) {
	var parked []flow.Flow
	some := func() error {
		if err := d.acquire(ctx); err != nil { // no commit meanwhile
			return err
		}
		defer d.release()
		n, err := commit.Unpark(kernel{w: d.purges}, parked)
		removed, parked = removed+n, parked[:0]
		return err
	}
	err = ctnetlink.Dump(ctx, ctnetlink.DumpFilter{}, func(ev *flow.Event) error {
		if !ev.Flow.Parked() {
			return nil
		}
		if parked = append(parked, ev.Flow); len(parked) < unparkChunk {
			return nil
		}
		return some()
	})
	if serr := some(); err == nil {
		err = serr
	}
	return removed, err
}

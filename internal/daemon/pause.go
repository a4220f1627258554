package daemon

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"syncd/internal/ctnetlink"
)

// eventGroups is what the daemon needs of its event listener.
type eventGroups interface {
	Pause() error
	Resume() error
}

// pauseFrom is from how many changes of the kernel's table on it pays not to listen
// to their events: the kernel makes each of them two to three times as fast, but the
// table must be read again afterwards.
const pauseFrom = 30_000

// withoutEvents runs change, which makes about n changes in the kernel's table,
// while nobody listens to its events, if that pays. Afterwards the engine reads the
// table again; until then the node says that it is not in step, and an
// Engine.OnKernelSync asked for from now on ends after it. The error is change's. If
// the groups of events cannot be joined again, the daemon ends: it would miss what
// it lives of. The caller holds ops.
func (d *Daemon) withoutEvents(ctx context.Context, n int, change func() error) error {
	d.reread = nil
	if n < pauseFrom || !d.forAll() {
		return change()
	}
	pays := false
	if err := d.engine.Do(ctx, func() {
		// The whole table is read afterwards, not the changes alone.
		if pays = n >= d.engine.Internal().Len()/2; pays {
			d.engine.PauseEvents()
		}
	}); err != nil {
		return err
	}
	if !pays {
		return change()
	}
	defer func() {
		// Asked for while events are away, it is the first reading after the pause
		// that answers.
		done := make(chan error, 1)
		if d.engine.Do(context.WithoutCancel(ctx), func() {
			d.engine.OnKernelSync(func(err error) { done <- err })
		}) == nil {
			d.reread = done
		}
		if err := d.events.Resume(); err != nil {
			select {
			case d.broken <- fmt.Errorf("listen to the kernel again after a commit: %w", err):
			default: // one reason is enough
			}
		}
	}()
	if err := d.events.Pause(); err != nil {
		d.log.Warn("events go on during a commit, which slows it down", zap.Error(err))
	}
	return change()
}

// eventsForAll reports whether every entry tells events, whoever listens when it is
// made. With other settings one made in a pause would be mute for life.
func eventsForAll() bool {
	n, err := ctnetlink.Events()
	return err == nil && n == 1
}

package daemon

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"syncd/internal/ctl"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// acquire waits for the commands before this one to end.
func (d *Daemon) acquire(ctx context.Context) error {
	select {
	case <-d.ops:
		d.procs.begin()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Daemon) release() {
	d.procs.end()
	d.ops <- struct{}{}
}

// SetRole implements ctl.Node: the whole of what a change of role needs.
//
//	primary  commit, flush the external cache, read the kernel's table, bulk update;
//	         purge what ended elsewhere while this node was not primary
//	         (with instant takeover: commit gives what is parked the timeouts of its state)
//	backup   ask the peer for its state; purge the flows that another node has taken
//	         over after a while
//	fault    as backup
func (d *Daemon) SetRole(ctx context.Context, role string, progress ctl.ProgressFunc) (*ctl.RoleReport, error) {
	if !isRole(role) {
		return nil, fmt.Errorf("role %q: %w: primary, backup or fault", role, ctl.ErrInvalid)
	}
	if err := d.acquire(ctx); err != nil {
		return nil, err
	}
	defer d.release()
	d.mu.Lock()
	rep := &ctl.RoleReport{Role: role, Before: d.role}
	d.role, d.roleRestored = role, false
	if role != rep.Before {
		d.roleSince = time.Now()
	}
	since := d.roleSince
	d.mu.Unlock()
	d.log.Info("changing role", zap.String("to", role), zap.String("from", rep.Before))
	d.keepRole(func(s *savedRole) { s.Role, s.Since, s.Done = role, since, false })
	return rep, d.takeRole(ctx, rep, progress)
}

func isRole(role string) bool {
	return role == ctl.RolePrimary || role == ctl.RoleBackup || role == ctl.RoleFault
}

// takeRole does the steps of a change of role, and reports them. The caller holds ops.
func (d *Daemon) takeRole(ctx context.Context, rep *ctl.RoleReport, progress ctl.ProgressFunc) error {
	start := monotime.Now()
	pending, role := d.stopPurge(), rep.Role
	step := func(name string, run func() (string, error)) error {
		t := monotime.Now()
		msg, err := run()
		if err != nil {
			msg = err.Error()
			err = fmt.Errorf("%s: %w", name, err)
		}
		rep.Steps = append(rep.Steps, ctl.RoleStep{Name: name, Message: msg, DurationS: monotime.Now().Sub(t).Seconds()})
		return err
	}
	err := d.engine.Do(ctx, func() {
		if role != ctl.RolePrimary {
			d.mode.setRole(wireRole(role)) // before anything is given up
		}
		d.engine.SetPassive(role != ctl.RolePrimary)
	})
	if err != nil {
		return err
	}
	if role == ctl.RolePrimary {
		err = d.becomePrimary(ctx, rep, pending, progress, step)
	} else {
		err = step("resync", func() (string, error) { return "asked the peer for its state", d.requestResync(ctx) })
		if e := step("purge", func() (string, error) { return d.purgeBehind(ctx, pending) }); err == nil {
			err = e
		}
	}
	rep.DurationS = monotime.Now().Sub(start).Seconds()
	if err == nil {
		d.keepRole(func(s *savedRole) { s.Done = true })
	}
	return err
}

// becomePrimary does the steps of a takeover. Each is tried even if one before it
// failed: a connection saved is a connection saved. pending is the purge that was under
// way, or nil.
func (d *Daemon) becomePrimary(ctx context.Context, rep *ctl.RoleReport, pending *purge, progress ctl.ProgressFunc, step func(string, func() (string, error)) error) error {
	first := step("commit", func() (msg string, err error) {
		src, err := d.newSource(ctx, "")
		if err != nil {
			return "", err
		}
		rep.Commit, err = d.commitExternal(ctx, src, progress)
		t := rep.Commit.Total()
		return fmt.Sprintf("%d of %d entries are in the kernel", t.Created+t.Updated+t.AlreadyThere, t.Entries), err
	})
	restore, err := d.settleRemnants(ctx, pending) // before what tells of them is forgotten
	if err == nil && restore {
		err = step("restore", func() (string, error) { return d.restoreBehind(ctx) })
	}
	if first == nil {
		first = err
	}
	if first == nil { // what could not be committed may be wanted again
		first = step("flush", func() (string, error) {
			return d.flushCommitted(ctx)
		})
	}
	// Now that what peers have is here, they may give up what they have of ours.
	if err := d.engine.Do(context.WithoutCancel(ctx), func() { d.mode.setRole(wire.RolePrimary) }); first == nil {
		first = err
	}
	if err := step("resync", func() (string, error) {
		if !d.engine.Parks() && d.rereadAfterPause(ctx) {
			return "read the kernel's table", nil
		}
		done, err := d.takeOrphans(ctx)
		if err != nil {
			return "", err
		}
		defer done()
		return "read the kernel's table", d.kernelSync(ctx)
	}); first == nil {
		first = err
	}
	if err := step("bulk", func() (string, error) {
		return "sending the internal cache to the peer", d.engine.Do(ctx, d.engine.Mode().Bulk)
	}); first == nil {
		first = err
	}
	if pending != nil {
		if err := step("purge", func() (string, error) { return d.purgeZombies(ctx, pending) }); first == nil {
			first = err
		}
	}
	return first
}

// flushCommitted forgets the entries that have just been committed, so that a later
// commit does not bring back what has ended since: they are this node's now. What a
// living peer of the syncd dialect still has stays; it tells when it ends.
func (d *Daemon) flushCommitted(ctx context.Context) (msg string, err error) {
	err = d.engine.Do(ctx, func() {
		r, n := d.engine.Replica(), 0
		for _, o := range d.mode.gone() {
			n += r.Cache(o).Len()
			r.FlushOwner(o)
		}
		msg = fmt.Sprintf("forgot %d entries that are this node's now", n)
	})
	return msg, err
}

// kernelSyncTimeout bounds the wait for a resynchronisation with the kernel.
const kernelSyncTimeout = 2 * time.Minute

// rereadAfterPause waits for the reading of the kernel's table that follows the pause
// of a commit, and reports whether there was one that succeeded. The caller holds ops.
func (d *Daemon) rereadAfterPause(ctx context.Context) bool {
	done := d.reread
	d.reread = nil
	if done == nil {
		return false
	}
	limit := time.NewTimer(kernelSyncTimeout)
	defer limit.Stop()
	select {
	case err := <-done:
		return err == nil
	case <-limit.C:
	case <-ctx.Done():
	}
	return false
}

// kernelSync reads the kernel's table into the internal cache and returns when
// that is done.
func (d *Daemon) kernelSync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, kernelSyncTimeout)
	defer cancel()
	done := make(chan error, 1)
	if err := d.engine.Do(ctx, func() {
		d.engine.OnKernelSync(func(err error) { done <- err })
	}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// requestResync asks the peer for its state.
func (d *Daemon) requestResync(ctx context.Context) error {
	return d.engine.Do(ctx, d.engine.Mode().RequestResync)
}

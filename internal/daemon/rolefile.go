package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"syncd/internal/ctl"
)

// roleName is the file in node.state_dir.
const roleName = "role.json"

// savedRole is what the next life of this process is told of the role. keepalived tells
// it when it changes, not when this daemon has been started again.
type savedRole struct {
	Role  string    `json:"role"`
	Since time.Time `json:"since"`
	// BootID is that of the kernel whose table the role is about: another one has
	// nothing of it, and keepalived starts anew with it.
	BootID string `json:"boot_id"`
	// Done says that all steps of the change were done.
	Done bool `json:"done"`
	// Remnants says that flows of a time in charge may be in the kernel still, TakenOver
	// that a peer has taken over from this node: see purge.
	Remnants  bool `json:"remnants"`
	TakenOver bool `json:"taken_over"`
}

// keepRole writes the role for the next start. It is not synced: after a crash of the
// host it counts for nothing, and no takeover waits for a disk. The caller holds ops.
func (d *Daemon) keepRole(change func(*savedRole)) {
	change(&d.saved)
	dir := d.config().Node.StateDir
	if dir == "" {
		return
	}
	err := func() (err error) {
		if d.saved.BootID, err = bootID(); err != nil {
			return err
		}
		return replaceFile(filepath.Join(dir, roleName), 0o600, false, func(f *os.File) error {
			return json.NewEncoder(f).Encode(&d.saved)
		})
	}()
	if err != nil {
		d.log.Warn("the role could not be kept for the next start", zap.Error(err))
	}
}

// restoreRole takes over the role of an earlier life of this process. The loop does not
// run yet.
func (d *Daemon) restoreRole() error {
	dir := d.config().Node.StateDir
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, roleName)
	s, err := readRole(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	id, err := bootID()
	if err != nil {
		return err
	}
	if s.BootID != id {
		d.log.Info("the role of before the start of the host is not taken over", zap.String("role", s.Role), zap.Time("since", s.Since))
		return nil
	}
	d.saved = s
	d.role, d.roleSince, d.roleRestored = s.Role, s.Since, true
	if s.Role != ctl.RolePrimary || s.Done { // else peers have what is not here yet
		d.mode.setRole(wireRole(s.Role))
	}
	if s.Role != ctl.RolePrimary {
		d.engine.SetPassive(true)
		if s.Remnants {
			d.engine.MarkRemnants(0) // what the first dump finds
		}
	}
	d.log.Info("took over the role of before the restart", zap.String("role", s.Role), zap.Time("since", s.Since), zap.Bool("done", s.Done))
	return nil
}

// readRole reads a file that keepRole has written.
func readRole(path string) (s savedRole, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	const limit = 4096 // ten times what there is to say
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
	case len(text) > limit:
		err = fmt.Errorf("more than %d octets", limit)
	default:
		err = json.Unmarshal(text, &s)
	}
	switch {
	case err != nil:
	case !isRole(s.Role):
		err = fmt.Errorf("role %q", s.Role)
	case s.Since.IsZero():
		err = errors.New("since when is missing")
	case s.BootID == "":
		err = errors.New("boot_id is missing")
	}
	return s, err
}

// bootID tells this start of the kernel from all others.
func bootID() (string, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(text))
	if id == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return id, nil
}

// resumeRole goes on with what the role that was taken over needs, and returns what has
// to wait for the engine's loop, or nil.
func (d *Daemon) resumeRole() func(context.Context) error {
	s := &d.saved
	switch {
	case !d.roleRestored:
	case !s.Done:
		return d.finishRole
	case s.Role != ctl.RolePrimary && s.Remnants:
		if after := d.config().Purge.After; after > 0 {
			d.schedulePass(&purge{after: after, takenOver: s.TakenOver}, after/2)
		}
	}
	return nil
}

// finishRole does again the steps of a change of role that an earlier life of this
// process began and did not end, once the kernel's table is known.
func (d *Daemon) finishRole(ctx context.Context) error {
	for started := false; !started; {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.engine.Do(ctx, func() { started = d.engine.Started() }); err != nil {
			return err
		}
	}
	if err := d.acquire(ctx); err != nil {
		return err
	}
	defer d.release()
	d.mu.Lock()
	role, restored := d.role, d.roleRestored
	d.mu.Unlock()
	if !restored {
		return nil // somebody has said it meanwhile
	}
	d.log.Info("finishing the change of role that was under way before the restart", zap.String("to", role))
	rep := &ctl.RoleReport{Role: role, Before: role}
	if err := d.takeRole(ctx, rep, nil); err != nil && ctx.Err() == nil {
		d.log.Error("finishing the change of role failed", zap.String("to", role), zap.Error(err))
	}
	return nil
}

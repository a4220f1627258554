package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/snapshot"
)

// snapshotName is the file in node.state_dir.
const snapshotName = "peers.snapshot"

// snapshotLife is how old a snapshot may be: it is for a restart, not for a machine
// that comes back after days.
const snapshotLife = 10 * time.Minute

// saveSnapshot writes what is held of the peers. The loop has ended, so that its
// caches are ours.
func (d *Daemon) saveSnapshot() error {
	dir := d.config().Node.StateDir
	r := d.engine.Replica()
	path := filepath.Join(dir, snapshotName)
	if dir == "" || r.Len() == 0 {
		return nil
	}
	now := d.engine.Now()
	n := 0
	err := writeFile(path, 0o600, func(f *os.File) error {
		w := snapshot.NewWriter(f, time.Now())
		for _, o := range r.Owners() {
			name := onlyOwner
			if d.box != nil {
				name = d.mode.ownerName(o)
			}
			if err := w.Owner(name); err != nil {
				return err
			}
			var fl flow.Flow
			var x flow.Expect
			var err error
			c := r.Cache(o)
			c.Walk(0, 0, func(h flow.Handle) bool {
				n++
				if c.IsExpect(h) {
					c.LoadExpect(h, &x)
					err = w.Expect(&x, now.Sub(c.Updated(h)))
				} else {
					c.Load(h, &fl)
					err = w.Flow(&fl, now.Sub(c.Updated(h)))
				}
				return err == nil
			})
			if err != nil {
				return err
			}
		}
		return w.Close()
	})
	if err == nil {
		d.log.Info("kept what peers have sent, for the next start", zap.Int("entries", n), zap.String("file", path))
	}
	return err
}

// loadSnapshot takes over what an earlier life of this process held of the peers.
// The loop does not run yet. A snapshot is used once, and not at all if anything is
// wrong with it.
func (d *Daemon) loadSnapshot() error {
	dir := d.config().Node.StateDir
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, snapshotName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(path)
	written, err := snapshot.Read(f, func(string) error { return nil }, func(*snapshot.Entry) error { return nil })
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	down := time.Since(written)
	if down < 0 || down > snapshotLife {
		d.log.Info("the snapshot of the peers' state is too old to be used", zap.Time("written", written))
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var owner uint8
	n, now := 0, monotime.Now()
	_, err = snapshot.Read(f, func(name string) error {
		owner = 0 // of another dialect, or one name too many
		if (name == onlyOwner) == (d.box == nil) {
			owner = d.mode.addOwner(name)
		}
		return nil
	}, func(e *snapshot.Entry) error {
		if owner == 0 {
			return nil
		}
		n++
		r, then := d.engine.Replica(), now.Add(-e.Age-down)
		if e.IsExpect {
			return r.RestoreExpect(owner, &e.Expect, then)
		}
		return r.Restore(owner, &e.Flow, then)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	d.log.Info("loaded what peers had sent before the restart; it is in doubt until they confirm it", zap.Int("entries", n), zap.Duration("down", down))
	return nil
}

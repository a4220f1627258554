package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"syncd/internal/ctl"
	"syncd/internal/monotime"
)

// readiness decides when this node may become primary: when it has all state of its
// peers, proven, or when no peer lives, and in any case after a time limit. It
// never goes back: what is missing later is repaired, and a node in charge must
// not step down for it. Nor must it because its daemon has started again: a node that is
// primary is ready from the first moment, for as long as it is.
type readiness struct {
	ready bool
	why   string
}

// aloneAfter is how long after the start a node that hears nobody believes that it is
// alone: several times the interval in which every node says something.
const aloneAfter = 5 * time.Second

// meetAfter is how long after the start a node believes that it has heard all peers
// that live: each says something every second, and one word of it may be lost. Before,
// "in step with every peer" may leave one out.
const meetAfter = 3 * time.Second

// judge returns whether a node is ready that has run for up, and why.
func judge(up, limit time.Duration, inSync, alone bool) (ready bool, why string) {
	switch {
	case inSync && up >= meetAfter:
		return true, "in step with every peer"
	case alone && up >= aloneAfter:
		return true, "no peer lives"
	case up >= limit:
		return true, fmt.Sprintf("the time limit of %v is over", limit)
	}
	return false, ""
}

// watchReadiness keeps the track file, until the node is ready.
func (d *Daemon) watchReadiness(ctx context.Context) error {
	cfg := d.config()
	set := func(r readiness) error {
		if err := writeTrackFile(cfg.Ready.TrackFile, r.ready); err != nil {
			return err
		}
		d.mu.Lock()
		d.readiness = r
		d.mu.Unlock()
		if r.ready {
			d.log.Info("ready to become primary", zap.String("because", r.why))
		}
		return nil
	}
	now := d.inCharge()
	if err := set(now); err != nil {
		return err
	}
	tick := time.NewTicker(250 * time.Millisecond)
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
		next := d.inCharge()
		ready, why := judge(monotime.Now().Sub(d.begun), cfg.Ready.Timeout, len(s.problems) == 0, s.alone)
		if ready {
			next = readiness{true, why}
		}
		if next.ready != now.ready {
			if err := set(next); err != nil {
				return err
			}
			now = next
		}
		if ready {
			<-ctx.Done()
			return nil
		}
	}
}

// inCharge is the readiness of a node of which nothing is known but its role.
func (d *Daemon) inCharge() (r readiness) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.role == ctl.RolePrimary {
		r = readiness{true, "it is primary"}
	}
	return r
}

// writeTrackFile writes the file that keepalived's track_file reads: 0 when the node
// is ready, 1 before. Whoever reads sees either, never half of it.
func writeTrackFile(path string, ready bool) error {
	if path == "" {
		return nil
	}
	text := "1\n"
	if ready {
		text = "0\n"
	}
	return writeFile(path, 0o644, func(f *os.File) error {
		_, err := f.WriteString(text)
		return err
	})
}

// writeFile replaces a file as a whole: by write, sync and rename.
func writeFile(path string, mode os.FileMode, write func(*os.File) error) error {
	return replaceFile(path, mode, true, write)
}

// replaceFile is writeFile for what need not outlive a crash of the host too.
func replaceFile(path string, mode os.FileMode, sync bool, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	err = write(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

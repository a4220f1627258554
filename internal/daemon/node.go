package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"

	"syncd/internal/cache"
	"syncd/internal/config"
	"syncd/internal/ctl"
	"syncd/internal/flow"
)

// Commit implements ctl.Node.
func (d *Daemon) Commit(ctx context.Context, o ctl.CommitOptions) (*ctl.CommitReport, error) {
	src, err := d.newSource(ctx, o.Peer)
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if o.DryRun {
		d.procs.begin()
		defer d.procs.end()
		return d.dryRun(ctx, src, o.Progress)
	}
	select {
	case <-d.ops:
		d.procs.begin()
	default:
		return nil, fmt.Errorf("commit: %w", ctl.ErrBusy)
	}
	defer d.release()
	return d.commitExternal(ctx, src, o.Progress)
}

// Flush implements ctl.Node.
func (d *Daemon) Flush(ctx context.Context, which string) (*ctl.Done, error) {
	var n int
	var names []string
	err := d.engine.Do(ctx, func() {
		if which != ctl.External {
			n += d.engine.Internal().Len()
			d.engine.FlushInternal()
			names = append(names, "internal")
		}
		if which != ctl.Internal {
			n += d.engine.Replica().Len()
			d.engine.FlushExternal()
			names = append(names, "external")
		}
	})
	if err != nil {
		return nil, err
	}
	d.log.Info("caches flushed", zap.Strings("caches", names), zap.Int("entries", n))
	return &ctl.Done{Message: fmt.Sprintf("flushed %d entries of the %s cache", n, strings.Join(names, " and the "))}, nil
}

// Resync implements ctl.Node.
func (d *Daemon) Resync(ctx context.Context, kernel bool) (*ctl.Done, error) {
	if kernel {
		if err := d.kernelSync(ctx); err != nil {
			return nil, err
		}
		var n int
		if err := d.engine.Do(ctx, func() { n = d.engine.Internal().Len() }); err != nil {
			return nil, err
		}
		return &ctl.Done{Message: fmt.Sprintf("the internal cache is in step with the kernel: %d entries", n)}, nil
	}
	if err := d.requestResync(ctx); err != nil {
		return nil, err
	}
	return &ctl.Done{Message: "asked the peer for its state"}, nil
}

// Bulk implements ctl.Node.
func (d *Daemon) Bulk(ctx context.Context) (*ctl.Done, error) {
	var n int
	err := d.engine.Do(ctx, func() {
		n = d.engine.Internal().Len()
		d.engine.Mode().Bulk()
	})
	if err != nil {
		return nil, err
	}
	return &ctl.Done{Message: fmt.Sprintf("sending %d entries to the peer", n)}, nil
}

// dumpChunk is the number of entries copied in one turn of the loop.
const dumpChunk = 256

// Dump implements ctl.Node.
func (d *Daemon) Dump(ctx context.Context, which string, fn func(*ctl.DumpEntry) error) error {
	d.procs.begin()
	defer d.procs.end()
	entries := make([]ctl.DumpEntry, dumpChunk)
	if which == ctl.Internal {
		return d.dump(ctx, entries, func() (*cache.Cache, string) { return d.engine.Internal(), "" }, fn)
	}
	var owners []uint8
	if err := d.engine.Do(ctx, func() { owners = d.engine.Replica().Owners() }); err != nil {
		return err
	}
	for _, o := range owners {
		err := d.dump(ctx, entries, func() (*cache.Cache, string) {
			return d.engine.Replica().Cache(o), d.mode.ownerName(o)
		}, fn)
		if err != nil {
			return err
		}
	}
	return nil
}

// dump calls fn for every entry of one cache. of is called on the loop.
func (d *Daemon) dump(ctx context.Context, entries []ctl.DumpEntry, of func() (*cache.Cache, string), fn func(*ctl.DumpEntry) error) error {
	var pos flow.Handle
	var expects []flow.Expect // room for those of entries; few have any
	for {
		n := 0
		expects = expects[:0]
		err := d.engine.Do(ctx, func() {
			c, owner := of()
			now := d.engine.Now()
			pos = c.Walk(pos, walkSlots, func(h flow.Handle) bool {
				e := &entries[n]
				if e.Expect = nil; !c.IsExpect(h) {
					c.Load(h, &e.Flow)
				} else {
					e.Flow = flow.Flow{}
					if expects == nil {
						expects = make([]flow.Expect, 0, len(entries))
					}
					expects = expects[:len(expects)+1]
					e.Expect = &expects[len(expects)-1]
					c.LoadExpect(h, e.Expect)
				}
				e.Dead = c.Dead(h)
				e.AgeS = now.Sub(c.Created(h)).Seconds()
				e.Owner = owner
				n++
				return n < len(entries)
			})
		})
		if err != nil {
			return err
		}
		for i := range n {
			if err := fn(&entries[i]); err != nil {
				return err
			}
		}
		if pos == 0 {
			return nil
		}
	}
}

// Reload implements ctl.Node.
func (d *Daemon) Reload(ctx context.Context) (*ctl.Done, error) {
	cfg, err := config.Load(d.opts.ConfigPath)
	if err != nil {
		return nil, err
	}
	// Keys are files: they may have changed although their names have not.
	if d.box != nil && cfg.Sync.Wire == config.WireSyncd {
		keys, err := readKeys(cfg)
		if err != nil {
			return nil, err
		}
		if err := d.box.setKeys(keys); err != nil {
			return nil, fmt.Errorf("sync.keys: %w", err)
		}
	}
	d.mu.Lock()
	old := d.cfg
	if cfg.Node.Name == "" {
		cfg.Node.Name = old.Node.Name
	}
	reloadable, restart := old.Diff(cfg)
	// What needs a restart keeps its old value until then.
	next := *old
	next.Node.LogLevel, next.Filter, next.Commit, next.Purge = cfg.Node.LogLevel, cfg.Filter, cfg.Commit, cfg.Purge
	next.Sync.PeerDeadAfter = cfg.Sync.PeerDeadAfter
	if d.box != nil {
		next.Sync.Keys = cfg.Sync.Keys
	}
	d.cfg = &next
	f := compileFilter(d.cfg, d.addrs.Addrs)
	d.mu.Unlock()

	setLevel(d.opts.Level, &next)
	if err := d.engine.Do(ctx, func() {
		d.engine.SetFilter(f)
		if slices.Contains(reloadable, "filter.expectations") {
			d.engine.RequestKernelSync() // find those that were not wanted before
		}
		d.engine.SetReplicated(next.Filter.Labels, next.Filter.MarkMask)
		d.mode.setDeadAfter(next.Sync.PeerDeadAfter)
	}); err != nil {
		return nil, err
	}
	msg := "nothing has changed"
	switch {
	case len(reloadable) > 0 && len(restart) > 0:
		msg = fmt.Sprintf("in force now: %s; after a restart: %s", strings.Join(reloadable, ", "), strings.Join(restart, ", "))
	case len(reloadable) > 0:
		msg = "in force now: " + strings.Join(reloadable, ", ")
	case len(restart) > 0:
		msg = "needs a restart: " + strings.Join(restart, ", ")
	}
	level := zap.InfoLevel
	if len(restart) > 0 {
		level = zap.WarnLevel // whoever reloads by a signal learns it from the log alone
	}
	d.log.Log(level, "configuration read again", zap.Strings("in_force", reloadable), zap.Strings("need_restart", restart))
	return &ctl.Done{Message: msg}, nil
}

func (d *Daemon) setTask(name string) {
	d.mu.Lock()
	d.task = name
	d.mu.Unlock()
}

package daemon

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"syncd/internal/cache"
	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// externalSource hands the external cache to a commit, some entries in each turn
// of the loop.
type externalSource struct {
	ctx    context.Context
	engine *engine.Engine
	since  monotime.Time // start of the commit, less the resolution of the cache's times
	pass   commit.Pass
	owners []uint8 // whose entries remain to be handed out in this pass
	pos    flow.Handle
	ended  bool // this pass
}

// walkSlots bounds the slots visited in one turn of the loop.
const walkSlots = 4096

// Next implements commit.Source. An entry may change its class behind the walk of
// the pass that it belongs to from then on: so every pass hands out what changed
// since the start and belongs to an earlier one. Twice does no harm, and never would.
func (s *externalSource) Next(p commit.Pass, dst []commit.Entry) (n int, err error) {
	if p != s.pass {
		s.pass, s.pos, s.ended, s.owners = p, 0, false, nil
	}
	for n == 0 && !s.ended {
		err := s.engine.Do(s.ctx, func() {
			r, now := s.engine.Replica(), s.engine.Now()
			if s.owners == nil {
				s.owners = r.Owners()
			}
			if s.ended = len(s.owners) == 0; s.ended {
				return
			}
			x := r.Cache(s.owners[0])
			s.pos = x.Walk(s.pos, walkSlots, func(h flow.Handle) bool {
				e := &dst[n]
				x.Load(h, &e.Flow)
				class := commit.PassOf(&e.Flow)
				if class == p || class < p && !x.Updated(h).Before(s.since) {
					e.Age = now.Sub(x.Updated(h))
					n++
				}
				return n < len(dst)
			})
			if s.pos == 0 {
				s.owners = s.owners[1:]
				s.ended = len(s.owners) == 0
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if s.ended {
		return n, io.EOF
	}
	return n, nil
}

// kernel is a ctnetlink.Writer as a commit uses it.
type kernel struct {
	w *ctnetlink.Writer
	o ctnetlink.CreateOptions
}

func (k kernel) Add(op commit.Op, f *flow.Flow) (int, error) {
	o := k.o
	var cop ctnetlink.Op
	switch op {
	case commit.Create:
		cop = ctnetlink.OpCreate
	case commit.Update:
		cop = ctnetlink.OpUpdate
	case commit.Delete:
		cop = ctnetlink.OpDelete
		o.GuardID = f.Has&flow.HasID != 0
	}
	i, err := k.w.Add(cop, f, o)
	if errors.Is(err, ctnetlink.ErrBatchFull) {
		return 0, commit.ErrBatchFull
	}
	return i, err
}

func (k kernel) Flush(fail func(int, unix.Errno)) error {
	err := k.w.Flush(fail)
	if errors.Is(err, ctnetlink.ErrRepliesLost) {
		return unix.ENOBUFS
	}
	return err
}

func (k kernel) Get(t *flow.Tuple, f *flow.Flow) error { return k.w.Get(t, f) }

// commitExternal puts the external cache into the kernel. The caller holds ops.
func (d *Daemon) commitExternal(ctx context.Context) (*ctl.CommitReport, error) {
	d.setTask("commit")
	defer d.setTask("")
	cfg := d.config()
	started := time.Now()
	k := kernel{d.commits, ctnetlink.CreateOptions{Liberal: true, Labels: cfg.Filter.Labels}}
	src := &externalSource{ctx: ctx, engine: d.engine, since: monotime.Now().Add(-cache.Resolution)}
	r, err := commit.Run(ctx, src, k, commit.Options{
		Timeout:  uint32(cfg.Commit.Timeout / time.Second),
		MarkMask: cfg.Filter.MarkMask,
		Labels:   cfg.Filter.Labels,
	})
	rep := commitReport(&r, started)
	d.mu.Lock()
	d.lastCommit = rep
	sum := &d.commitSum
	sum.Commits++
	if err != nil {
		sum.Failed++
	}
	t := rep.Total()
	sum.Entries += t.Entries
	sum.Created += t.Created
	sum.Updated += t.Updated
	sum.Skipped += t.Skipped + t.AlreadyThere
	sum.Refused += t.Refused
	sum.DurationS += rep.DurationS
	d.mu.Unlock()
	if err != nil {
		d.log.Error("commit failed", zap.Error(err), zap.String("so_far", r.String()))
		return rep, err
	}
	d.log.Info(r.String(), zap.Strings("examples", r.Examples))
	return rep, nil
}

// purgeKernel removes from the kernel what this node replicates: flows that another
// node carries now. The flows of this host itself stay. The caller holds ops.
func (d *Daemon) purgeKernel(ctx context.Context) (int, error) {
	d.setTask("purge")
	defer d.setTask("")
	d.mu.Lock()
	f := compileFilter(d.cfg, d.addrs.Addrs)
	d.mu.Unlock()
	dump := func(fn func(*flow.Flow) error) error {
		return ctnetlink.Dump(ctx, ctnetlink.DumpFilter{}, func(ev *flow.Event) error { return fn(&ev.Flow) })
	}
	return commit.Purge(ctx, dump, func(fl *flow.Flow) bool { return !f.Match(fl) }, kernel{w: d.purges})
}

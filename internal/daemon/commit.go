package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
	total  uint64        // entries at the start
	only   bool          // those of owner alone
	owner  uint8
	pass   commit.Pass
	owners []uint8 // whose entries remain to be handed out in this pass
	pos    flow.Handle
	ended  bool // this pass

	expects expectWalk

	adopting bool // entries become this node's own as they are handed out

	used *usedFirst // puts flows first of which packets come; nil if nothing does
}

// walkSlots bounds the slots visited in one turn of the loop.
const walkSlots = 4096

// newSource returns a source of the entries of the peer with this name, or of all
// peers if it is "".
func (d *Daemon) newSource(ctx context.Context, peer string) (*externalSource, error) {
	s := &externalSource{
		ctx: ctx, engine: d.engine, since: monotime.Now().Add(-cache.Resolution),
		only: peer != "",
	}
	found := !s.only
	names := map[string]bool{} // of the peers
	err := d.engine.Do(ctx, func() {
		r := d.engine.Replica()
		for _, o := range r.Owners() {
			name := d.mode.ownerName(o)
			if names[name] = true; name == peer {
				s.owner, found = o, true
			}
		}
		for _, o := range s.choose(r) {
			s.total += uint64(r.Cache(o).Len() - r.Cache(o).ExpectLen())
		}
		if !found { // a peer that is known may have told nothing yet
			var v view
			d.mode.look(&v)
			for i := range v.peers {
				name := v.peers[i].Name
				names[name] = true
				found = found || name == peer
			}
		}
	})
	if err == nil && !found {
		known := "none is known yet"
		if len(names) > 0 {
			known = "known are " + strings.Join(slices.Sorted(maps.Keys(names)), ", ")
		}
		err = fmt.Errorf("%w: unknown peer %q, %s", ctl.ErrInvalid, peer, known)
	}
	return s, err
}

// choose returns the owners whose entries are to be handed out. It is never nil.
func (s *externalSource) choose(r *engine.Replica) []uint8 {
	owners := []uint8{}
	for _, o := range r.Owners() {
		if !s.only || o == s.owner {
			owners = append(owners, o)
		}
	}
	return owners
}

// Next implements commit.Source. An entry may change its class behind the walk of
// the pass that it belongs to from then on: so every pass hands out what changed
// since the start and belongs to an earlier one. Twice does no harm, and never would.
func (s *externalSource) Next(p commit.Pass, dst []commit.Entry) (n int, err error) {
	if p != s.pass {
		s.pass, s.pos, s.ended, s.owners = p, 0, false, nil
	}
	for n == 0 && !s.ended {
		s.used.look()
		err := s.engine.Do(s.ctx, func() {
			r, now := s.engine.Replica(), s.engine.Now()
			if s.owners == nil {
				s.owners = s.choose(r)
			}
			if s.ended = len(s.owners) == 0; s.ended {
				return
			}
			if s.used != nil {
				if n = s.used.take(r, s.choose(r), now, dst); n == len(dst) {
					return
				}
			}
			x := r.Cache(s.owners[0])
			if s.adopting {
				n = s.adopt(s.owners[0], p, dst)
			} else {
				s.pos = x.Walk(s.pos, walkSlots, func(h flow.Handle) bool {
					if x.IsExpect(h) {
						return true // after all flows, see NextExpects
					}
					class, changed := commit.Classify(x.Has(h), x.Status(h), x.TCPState(h)), !x.Updated(h).Before(s.since)
					if class == p && (changed || !s.used.done(s.owners[0], h)) || class < p && changed {
						n += load(x, h, now, &dst[n])
						s.used.mark(s.owners[0], h)
					}
					return n < len(dst)
				})
			}
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

// load copies an entry, and returns 1.
func load(x *cache.Cache, h flow.Handle, now monotime.Time, e *commit.Entry) int {
	x.Load(h, &e.Flow)
	e.Age = now.Sub(x.Updated(h))
	return 1
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

// reports is what the two parts of a commit did.
type reports struct{ flows, expects commit.Report }

func (r *reports) String() string {
	if r.expects.Entries == 0 {
		return r.flows.String()
	}
	return r.flows.String() + "; expectations: " + r.expects.String()
}

// runCommit commits what src hands out, with the options of the configuration.
func (d *Daemon) runCommit(ctx context.Context, src *externalSource, w *ctnetlink.Writer, dry bool, progress ctl.ProgressFunc) (r reports, err error) {
	cfg := d.config()
	o := commit.Options{
		Timeout:  uint32(cfg.Commit.Timeout / time.Second),
		MarkMask: cfg.Filter.MarkMask,
		Labels:   cfg.Filter.Labels,
		DryRun:   dry,
	}
	if progress != nil {
		o.Progress = func(r *commit.Report) {
			progress(ctl.Progress{Done: uint64(r.Entries), Total: src.total, ElapsedS: r.Duration.Seconds()})
		}
	}
	k := kernel{w, ctnetlink.CreateOptions{Liberal: true, Labels: cfg.Filter.Labels, MarkMask: cfg.Filter.MarkMask}}
	if r.flows, err = d.runFlows(ctx, src, k, o); err != nil {
		return r, err
	}
	// Now that all masters are there.
	r.expects, err = commit.RunExpects(ctx, src, k, o)
	if err == nil && progress != nil {
		o.Progress(&r.flows) // a role has more to do
	}
	return r, err
}

// runFlows commits the flows of src.
func (d *Daemon) runFlows(ctx context.Context, src *externalSource, k kernel, o commit.Options) (commit.Report, error) {
	ahead := newReadAhead(src)
	defer ahead.close()
	return commit.Run(ctx, ahead, k, o)
}

// dryRun reports what a commit would do. It has a socket of its own, so that no
// change of role waits for it.
func (d *Daemon) dryRun(ctx context.Context, src *externalSource, progress ctl.ProgressFunc) (*ctl.CommitReport, error) {
	w, err := ctnetlink.NewWriter(ctnetlink.WriterConfig{})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	started := time.Now()
	r, err := d.runCommit(ctx, src, w, true, progress)
	if err != nil {
		return nil, err
	}
	return commitReport(&r, started), nil
}

// commitExternal puts what src hands out into the kernel. The caller holds ops. The
// report is never nil.
func (d *Daemon) commitExternal(ctx context.Context, src *externalSource, progress ctl.ProgressFunc) (*ctl.CommitReport, error) {
	d.setTask("commit")
	defer d.setTask("")
	started := time.Now()
	var r reports
	if d.engine.Parks() {
		release, err := d.holdParker(ctx)
		if err != nil {
			return commitReport(&r, started), err
		}
		defer release()
		src.adopting = true
	} else {
		src.used = d.openUsed(int(src.total))
		defer src.used.close()
	}
	err := d.withoutEvents(ctx, int(src.total), func() (err error) {
		r, err = d.runCommit(ctx, src, d.commits, false, progress)
		return err
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
	fields := []zap.Field{zap.Strings("examples", rep.Examples)}
	if src.used != nil {
		fields = append(fields, zap.Int("used_first", src.used.early))
	}
	d.log.Info(r.String(), fields...)
	return rep, nil
}

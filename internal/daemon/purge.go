package daemon

import (
	"context"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"syncd/internal/commit"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// purge is the end of the entries that are left in the kernel from this node's time in
// charge (see engine.Remnants), in passes. A pass gives those whose end is due a short
// timeout; the next one finds which of them were in use all the same, and makes the
// kernel evict the others.
//
// While this node is not primary the first pass comes after half of purge.after, when a
// new primary has had the time to take over, and the second one when it is over. As
// long as peers do not have what this node has, nothing is purged: further passes look
// after it, less and less often.
//
// A node that is primary again owns what it could commit. What was here before and
// ended on the peer meanwhile gets one pass at once, and the last one after purge.after.
type purge struct {
	timer     *time.Timer
	due       monotime.Time // the next pass
	after     time.Duration // purge.after
	primary   bool          // this node is primary again
	zombies   int           // then: flows that have ended elsewhere, to be given a short timeout
	takenOver bool          // a peer has taken over: what it does not have is nobody's
	short     int           // given a short timeout by passes so far and not looked at since
	wait      time.Duration // until the next pass, after one that had nothing to do
	begun     uint64        // engine.Stats.Purged when it began, or after the last pass
}

// longestPurgeWait bounds the time between two looks for remnants that a peer may have
// taken over at last.
const longestPurgeWait = 10 * time.Minute

// limit is the timeout that a pass gives, in seconds.
func (p *purge) limit() uint32 {
	d := p.after
	if !p.primary {
		d /= 2
	}
	return uint32(max(1, d.Round(time.Second)/time.Second))
}

// outlived is how long after a pass its short timeouts are over: the kernel's clock and
// the rounding of seconds need some slack.
func (p *purge) outlived() time.Duration { return time.Duration(p.limit())*time.Second + time.Second/2 }

// slices calls fn on the loop, which does a part of its work and returns where to go
// on, until it returns 0.
func (d *Daemon) slices(ctx context.Context, fn func(from flow.Handle) flow.Handle) error {
	var pos flow.Handle
	for {
		if err := d.engine.Do(ctx, func() { pos = fn(pos) }); err != nil {
			return err
		}
		if pos == 0 {
			return nil
		}
	}
}

// purgeBehind begins the purge of a node that is not primary any more. The caller holds
// ops. pending is the purge that was under way, or nil: told of its role again, a node goes
// on with it.
func (d *Daemon) purgeBehind(ctx context.Context, pending *purge) (string, error) {
	const msg = "flows that another node takes over leave the kernel in %v"
	if pending != nil && !pending.primary {
		d.schedulePass(pending, max(0, pending.due.Sub(monotime.Now())))
		return fmt.Sprintf(msg, pending.after), nil
	}
	if err := d.slices(ctx, d.engine.MarkRemnants); err != nil {
		return "", err
	}
	d.keepRole(func(s *savedRole) { s.Remnants, s.TakenOver = true, false })
	after := d.config().Purge.After
	if after == 0 {
		return "the kernel's flows stay (purge.after is 0)", nil
	}
	p := &purge{after: after}
	if err := d.engine.Do(ctx, func() { p.begun = d.engine.Stats.Purged }); err != nil {
		return "", err
	}
	d.schedulePass(p, after/2)
	return fmt.Sprintf(msg, after), nil
}

// settleRemnants finds what a node that becomes primary has taken back: what its peers
// had is in the kernel now, by the commit before, and is ours. p is the purge that was
// under way, or nil. restore says that flows were left behind that nobody has taken
// over. The caller holds ops.
func (d *Daemon) settleRemnants(ctx context.Context, p *purge) (restore bool, err error) {
	n, err := d.countRemnants(ctx, true)
	if err != nil {
		return false, err
	}
	restore = n.Behind > n.BehindHeld && !n.TakenOver()
	if p == nil {
		return restore, d.slices(ctx, d.engine.ForgetRemnants)
	}
	p.takenOver = p.takenOver || n.TakenOver()
	if p.zombies = n.Ended; p.takenOver {
		p.zombies = n.All - n.Held
	}
	return restore && !p.takenOver, nil
}

// restoreBehind puts masqueraded flows back into the kernel that it has lost with their
// address, which has returned before any peer had taken them over. The caller holds
// ops.
func (d *Daemon) restoreBehind(ctx context.Context) (string, error) {
	cfg := d.config()
	r, err := commit.Run(ctx, &behindSource{ctx: ctx, engine: d.engine},
		kernel{d.commits, ctnetlink.CreateOptions{Liberal: true, Labels: cfg.Filter.Labels, MarkMask: cfg.Filter.MarkMask}},
		commit.Options{MarkMask: cfg.Filter.MarkMask, Labels: cfg.Filter.Labels})
	return fmt.Sprintf("%d of %d flows that were lost with an address are in the kernel again", r.Created+r.Updated+r.AlreadyThere, r.Entries), err
}

// behindSource hands out flows that were left behind.
type behindSource struct {
	ctx    context.Context
	engine *engine.Engine
	pass   commit.Pass
	pos    flow.Handle
	ended  bool // this pass
}

// Next implements commit.Source.
func (s *behindSource) Next(p commit.Pass, dst []commit.Entry) (n int, err error) {
	if p != s.pass {
		s.pass, s.pos, s.ended = p, 0, false
	}
	for n == 0 && !s.ended {
		if err := s.engine.Do(s.ctx, func() {
			s.pos = s.engine.WalkBehind(s.pos, func(f *flow.Flow, age time.Duration) bool {
				if commit.PassOf(f) == p {
					dst[n] = commit.Entry{Flow: *f, Age: age}
					n++
				}
				return n < len(dst)
			})
			s.ended = s.pos == 0
		}); err != nil {
			return 0, err
		}
	}
	if s.ended {
		return n, io.EOF
	}
	return n, nil
}

// purgeZombies begins the purge of what ended on peers while this node was not primary.
// p is the purge that was under way. The caller holds ops.
func (d *Daemon) purgeZombies(ctx context.Context, p *purge) (string, error) {
	p.primary = true
	if p.short == 0 && p.zombies == 0 {
		return "no flow has ended elsewhere", d.slices(ctx, d.engine.ForgetRemnants)
	}
	wait := p.outlived()
	if p.zombies > 0 {
		wait = 0 // but the connections are there: nobody needs to wait for this
	}
	d.schedulePass(p, wait)
	return fmt.Sprintf("%d flows that have ended elsewhere leave the kernel in %v unless they are used", p.zombies, p.after), nil
}

// schedulePass lets the next pass of p run after a while.
func (d *Daemon) schedulePass(p *purge, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.purge, p.due = p, monotime.Now().Add(wait)
	p.timer = time.AfterFunc(wait, func() {
		if d.acquire(d.ctx) != nil {
			return
		}
		defer d.release()
		d.mu.Lock()
		due := d.purge == p
		d.mu.Unlock()
		if !due {
			return
		}
		next, err := d.nextPass(d.ctx, p)
		if err != nil && d.ctx.Err() == nil {
			d.log.Error("purge failed", zap.Error(err))
		}
		if next > 0 && d.ctx.Err() == nil {
			d.schedulePass(p, next)
			return
		}
		d.mu.Lock()
		d.purge = nil
		d.mu.Unlock()
		if err == nil && !p.primary && d.ctx.Err() == nil {
			d.keepRole(func(s *savedRole) { s.Remnants = false })
		}
	})
}

// purgeSooner brings the next look for remnants forward, since another peer leads that
// may have them. Called on the loop.
func (d *Daemon) purgeSooner() {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.purge
	if p == nil || p.primary {
		return
	}
	now := monotime.Now()
	// Once the timer has been stopped no pass runs, and p is nobody else's.
	if wait := p.after / 2; p.due.Sub(now) > wait && p.timer.Stop() {
		if p.short > 0 { // the pass that ends what has begun
			wait = p.due.Sub(now)
		}
		p.due = now.Add(wait)
		p.timer.Reset(wait)
	}
}

// stopPurge cancels the purge that is under way and returns it, nil if there is none.
func (d *Daemon) stopPurge() *purge {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.purge
	if p != nil {
		p.timer.Stop()
		d.purge = nil
	}
	return p
}

// nextPass does the pass of p that is due, and returns when the next one is, 0 for
// never. The caller holds ops.
func (d *Daemon) nextPass(ctx context.Context, p *purge) (next time.Duration, err error) {
	if p.primary && p.zombies > 0 {
		p.zombies = 0
		if _, err := d.purgePass(ctx, p); err != nil || p.short > 0 {
			return p.outlived(), err
		}
	}
	var purged uint64
	var started bool
	if err := d.engine.Do(ctx, func() { purged, started = d.engine.Stats.Purged, d.engine.Started() }); err != nil {
		return 0, err
	}
	if !started {
		return time.Second, nil // what there is to purge is not known yet
	}
	if p.short > 0 || purged != p.begun {
		if err := d.endPass(ctx, p); err != nil {
			return p.outlived(), err
		}
	}
	if p.primary {
		return 0, d.slices(ctx, d.engine.ForgetRemnants)
	}
	n, err := d.countRemnants(ctx, false)
	if err != nil {
		return p.outlived(), err
	}
	if !p.takenOver && n.TakenOver() {
		p.takenOver = true
		d.keepRole(func(s *savedRole) { s.TakenOver = true })
	}
	if n.All == 0 {
		return 0, nil
	}
	if n.Held+n.Ended > 0 || p.takenOver {
		if _, err := d.purgePass(ctx, p); err != nil || p.short > 0 {
			return p.outlived(), err
		}
	}
	p.wait = min(max(p.after, 2*p.wait), longestPurgeWait)
	return p.wait, nil
}

func (d *Daemon) countRemnants(ctx context.Context, keep bool) (n engine.Remnants, err error) {
	err = d.slices(ctx, func(from flow.Handle) flow.Handle { return d.engine.CountRemnants(from, &n, keep) })
	return n, err
}

// purgePass gives the entries whose end is due a short timeout.
func (d *Daemon) purgePass(ctx context.Context, p *purge) (commit.PurgeReport, error) {
	r, _, err := d.judge(ctx, p, engine.RemnantRule{All: p.takenOver, Primary: p.primary})
	p.short += r.Chosen
	return r, err
}

// endPass looks which entries with a short timeout were in use, and brings the internal
// cache in step with a kernel from which the others are gone.
func (d *Daemon) endPass(ctx context.Context, p *purge) error {
	_, kept, err := d.judge(ctx, p, engine.RemnantRule{Outlived: true})
	if err != nil {
		return err
	}
	if err := d.kernelSync(ctx); err != nil {
		return err
	}
	p.short = 0
	before := p.begun
	if err := d.engine.Do(ctx, func() { p.begun = d.engine.Stats.Purged }); err != nil {
		return err
	}
	what := "purged the kernel's flows that another node carries"
	if p.primary {
		what = "purged the kernel's flows that have ended elsewhere"
	}
	d.log.Info(what, zap.Uint64("removed", p.begun-before), zap.Int("kept_in_use", kept))
	return nil
}

// judge reads the kernel's table, which evicts what has expired, and shortens what the
// rule says. kept counts what was in use.
func (d *Daemon) judge(ctx context.Context, p *purge, rule engine.RemnantRule) (r commit.PurgeReport, kept int, err error) {
	d.setTask("purge")
	defer d.setTask("")
	dump := func(fn func(*flow.Flow) error) error {
		return ctnetlink.Dump(ctx, ctnetlink.DumpFilter{}, func(ev *flow.Event) error { return fn(&ev.Flow) })
	}
	choose := func(flows []flow.Flow, chosen []bool) error {
		return d.engine.Do(ctx, func() {
			for i := range flows {
				switch d.engine.JudgeRemnant(&flows[i], rule) {
				case engine.RemnantEnds:
					chosen[i] = true
				case engine.RemnantInUse:
					kept++
				}
			}
		})
	}
	r, err = commit.Purge(ctx, dump, choose, kernel{w: d.purges}, p.limit())
	return r, kept, err
}

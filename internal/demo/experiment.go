package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

const (
	interval = 100 * time.Millisecond // between the messages of a connection

	// A connection counts as alive while nothing is overdue by more than this.
	grace = time.Second

	// Conntrack calls UDP a stream when it has lasted two seconds: until then
	// the state of the flows still changes.
	settle = 3 * time.Second
	watch  = 6 * time.Second // after the death; TCP may wait a second before it tries again

	// TCP that has lost several tries waits ever longer, on a busy machine. With
	// syncd a connection that is silent yet has so long to go on; how long it
	// took shows as its gap.
	watchLimit = 12 * time.Second

	inStepLimit = 20 * time.Second // for the daemons to start and to be in step
	redraw      = 200 * time.Millisecond
)

// tally is what became of the connections of one kind.
type tally struct {
	opened, alive int
	gap           time.Duration // longest of those alive, since the death of fw1
}

func (t *tally) add(o tally) {
	t.opened += o.opened
	t.alive += o.alive
	t.gap = max(t.gap, o.gap)
}

// result is what an experiment found.
type result struct {
	kinds map[kind]tally

	// With syncd only: what the change of role did, and how long it took as
	// its caller sees it.
	role     *ctl.RoleReport
	roleTook time.Duration
}

// kind returns what became of one kind. A nil result has no connections.
func (r *result) kind(k kind) tally {
	if r == nil {
		return tally{}
	}
	return r.kinds[k]
}

// total adds up all kinds.
func (r *result) total() (sum tally) {
	if r == nil {
		return sum
	}
	for _, t := range r.kinds {
		sum.add(t)
	}
	return sum
}

// experiment is one run: two firewalls, the first of which dies.
type experiment struct {
	screen *screen
	begin  time.Time
	drawn  time.Time
	view   view

	pair        *lab.Pair
	firewalls   [2]*lab.Node
	daemons     [2]*daemon // nil without syncd
	connections map[kind][]*lab.Connection
	carried     [2]sample
}

// sample is a reading of a packet counter.
type sample struct {
	at      time.Time
	packets uint64
}

// runExperiment runs an experiment and removes everything it made.
func runExperiment(ctx context.Context, s *screen, o Options, withSyncd bool) (_ *result, err error) {
	e := &experiment{screen: s, begin: time.Now(), connections: map[kind][]*lab.Connection{}}
	e.view.title = "part 1: two firewalls without syncd"
	if withSyncd {
		e.view.title = "part 2: the same with syncd"
	}
	if o.WithoutOnly {
		e.view.title = "two firewalls without syncd"
	}
	s.begin(e.view.title)
	defer s.end()

	l, err := lab.New(prefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	defer func() {
		for _, all := range e.connections {
			for _, c := range all {
				_ = c.Close()
			}
		}
	}()

	services, err := e.build(l)
	defer func() {
		for _, service := range services {
			_ = service.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	if withSyncd {
		if err := e.startDaemons(ctx, l, o.Executable); err != nil {
			return nil, err
		}
	}
	if err := e.open(ctx, o.Connections); err != nil {
		return nil, err
	}
	if err := e.wait(ctx, settle); err != nil {
		return nil, err
	}
	if withSyncd {
		if err := e.waitInStep(ctx, o.Connections); err != nil {
			return nil, err
		}
	}
	r := &result{kinds: map[kind]tally{}}
	if err := e.kill(ctx, r); err != nil {
		return nil, err
	}
	if err := e.wait(ctx, watch); err != nil {
		return nil, err
	}
	for end := time.Now().Add(watchLimit - watch); ; {
		e.count(r)
		if t := r.total(); t.alive == t.opened || !withSyncd || time.Now().After(end) {
			break
		}
		if err := e.wait(ctx, redraw); err != nil {
			return nil, err
		}
	}
	e.step("%d of %d connections are alive", r.total().alive, r.total().opened)
	return r, e.tick()
}

// build makes the network and the services at both sides. Services that were
// started are returned also with an error.
func (e *experiment) build(l *lab.Lab) (services []*lab.Service, err error) {
	if e.pair, err = lab.FirewallPair(l); err != nil {
		return nil, err
	}
	e.firewalls = [2]*lab.Node{e.pair.FW1, e.pair.FW2}
	e.view.firewalls[0].carries = true
	if err := e.pair.LoadRules(e.pair.Rules()); err != nil {
		return nil, err
	}
	for _, a := range [...]lab.Addresses{e.pair.V4, e.pair.V6} {
		for _, at := range [...]struct {
			node *lab.Node
			addr netip.AddrPort
		}{
			{e.pair.Server, netip.AddrPortFrom(a.Server, lab.PortService)},
			{e.pair.Client, netip.AddrPortFrom(a.Plain, lab.PortForward)},
		} {
			s, err := lab.Serve(at.node, at.addr)
			if err != nil {
				return services, err
			}
			services = append(services, s)
		}
	}
	e.step("network built; the firewalls drop whatever has no state")
	return services, nil
}

// open opens n connections of all kinds.
func (e *experiment) open(ctx context.Context, n int) error {
	perKind := share(n)
	for _, k := range kinds {
		spec := k.spec(e.pair)
		for range perKind[k] {
			c, err := lab.Open(ctx, spec)
			if err != nil {
				return fmt.Errorf("open %s %s %s: %w", k.protocol(), k.family(), k.path, err)
			}
			e.connections[k] = append(e.connections[k], c)
			if err := e.tick(); err != nil {
				return err
			}
		}
	}
	e.step("%d connections opened through fw1", n)
	return nil
}

func (e *experiment) startDaemons(ctx context.Context, l *lab.Lab, executable string) error {
	dir, err := l.Dir()
	if err != nil {
		return err
	}
	addrs := [2]netip.Addr{e.pair.V4.Sync1, e.pair.V4.Sync2}
	for i, fw := range e.firewalls {
		if e.daemons[i], err = startDaemon(fw, dir, executable, addrs[i], addrs[1-i]); err != nil {
			return err
		}
		e.view.firewalls[i].syncd = true
	}
	limit, cancel := context.WithTimeoutCause(ctx, inStepLimit, errors.New("the daemons do not answer"))
	defer cancel()
	for {
		_, up, err := e.statuses(limit)
		if err != nil {
			return err
		}
		if up {
			break
		}
		if err := e.wait(limit, 50*time.Millisecond); err != nil {
			return err
		}
	}
	for i, role := range [...]string{ctl.RolePrimary, ctl.RoleBackup} {
		if _, _, err := e.daemons[i].setRole(ctx, role); err != nil {
			return err
		}
	}
	e.step("syncd runs on both: fw1 primary, fw2 backup")
	return nil
}

// statuses asks both daemons; up is whether both answered.
func (e *experiment) statuses(ctx context.Context) (all [2]*ctl.Status, up bool, err error) {
	for i, d := range e.daemons {
		if all[i], err = d.status(ctx); err != nil {
			return all, false, err
		}
	}
	return all, all[0] != nil && all[1] != nil, nil
}

// waitInStep waits until fw2 knows all connections.
func (e *experiment) waitInStep(ctx context.Context, connections int) error {
	have := 0
	limit, cancel := context.WithTimeout(ctx, inStepLimit)
	defer cancel()
	for {
		s, up, err := e.statuses(limit)
		if err != nil {
			return err
		}
		if up {
			var ok bool
			have, ok = inStep(s[0], s[1], connections)
			e.view.firewalls[1].entries = have
			if ok {
				e.step("in step: fw2 knows all %d flows", have)
				return nil
			}
		}
		if err := e.wait(limit, 50*time.Millisecond); err != nil {
			if ctx.Err() == nil {
				err = fmt.Errorf("not in step after %v: fw2 knows %d flows of %d", inStepLimit, have, connections)
			}
			return err
		}
	}
}

// kill cuts fw1 off, lets fw2 take over, and with syncd tells it so.
func (e *experiment) kill(ctx context.Context, r *result) error {
	for _, all := range e.connections {
		for _, c := range all {
			c.ForgetGap()
		}
	}
	if d := e.daemons[0]; d != nil {
		d.process.Kill()
	}
	if err := e.pair.FW1.Unplug(); err != nil {
		return err
	}
	e.view.firewalls[0] = firewallView{dead: true}
	e.step("fw1 is dead: all cables pulled at once%s", map[bool]string{true: ", its daemon killed"}[e.daemons[0] != nil])
	if err := e.pair.Move(e.pair.FW1, e.pair.FW2); err != nil {
		return err
	}
	e.view.firewalls[1].carries = true
	e.step("fw2 has taken the addresses over")
	if d := e.daemons[1]; d != nil {
		var err error
		if r.role, r.roleTook, err = d.setRole(ctx, ctl.RolePrimary); err != nil {
			return err
		}
		e.step("syncd ctl primary: done in %s", milliseconds(r.roleTook))
	}
	return nil
}

// count fills in what has become of the connections.
func (e *experiment) count(r *result) {
	for k, all := range e.connections {
		t := tally{opened: len(all)}
		for _, c := range all {
			if record := c.Record(); record.Alive(grace) {
				t.alive++
				t.gap = max(t.gap, record.Gap)
			}
		}
		r.kinds[k] = t
	}
}

// wait shows what happens for d, or until ctx ends.
func (e *experiment) wait(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); ; {
		if err := e.tick(); err != nil {
			return err
		}
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(left, redraw/4)):
		}
	}
}

// step notes that something has happened.
func (e *experiment) step(format string, args ...any) {
	text := fmt.Sprintf("%5.1f s  %s", time.Since(e.begin).Seconds(), fmt.Sprintf(format, args...))
	e.view.steps = append(e.view.steps, text)
	e.screen.step(text)
	e.drawn = time.Time{} // show it at the next tick
}

// tick shows the state of things if it was not shown lately. It fails when a
// daemon has ended that should run.
func (e *experiment) tick() error {
	now := time.Now()
	if now.Sub(e.drawn) < redraw {
		return nil
	}
	e.drawn = now
	for i, d := range e.daemons {
		if d != nil && !e.view.firewalls[i].dead {
			if err := d.ended(); err != nil {
				return err
			}
		}
	}
	if err := e.measure(now); err != nil {
		return err
	}
	r := &result{kinds: map[kind]tally{}}
	e.count(r)
	e.view.elapsed, e.view.kinds = now.Sub(e.begin), r.kinds
	e.screen.draw(&e.view)
	return nil
}

// measure brings the packet rates up to date, about once a second.
func (e *experiment) measure(now time.Time) error {
	for i, fw := range e.firewalls {
		age := now.Sub(e.carried[i].at)
		if age < time.Second {
			continue
		}
		inside, _, err := fw.Received(lab.IfInside)
		if err != nil {
			return err
		}
		outside, _, err := fw.Received(lab.IfOutside)
		if err != nil {
			return err
		}
		sum := inside + outside
		if !e.carried[i].at.IsZero() {
			e.view.firewalls[i].rate = int(float64(sum-e.carried[i].packets) / age.Seconds())
		}
		e.carried[i] = sample{now, sum}
	}
	return nil
}

// milliseconds shows a short duration.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"syncd/internal/channel"
	"syncd/internal/config"
	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/gate"
	"syncd/internal/monotime"
	"syncd/internal/netwatch"
	"syncd/internal/sync/stream"
)

// Options says how to run a daemon.
type Options struct {
	ConfigPath string
	Version    string
	Log        *zap.Logger      // nil for none
	Level      *zap.AtomicLevel // of Log, set from the configuration; may be nil
	Reload     <-chan os.Signal // each value asks for a reload; may be nil
}

// Daemon is a running node. It implements ctl.Node.
type Daemon struct {
	opts    Options
	log     *zap.Logger
	started time.Time
	begun   monotime.Time
	ctx     context.Context // of the whole daemon

	engine   *engine.Engine
	mode     mode
	stream   *stream.Machine // the mode if it is the one that can prove, else nil; belongs to the engine's loop
	box      *box            // seals the syncd dialect; nil with conntrackd's
	listener *ctnetlink.Listener
	events   eventGroups      // the listener
	forAll   func() bool      // eventsForAll
	broken   chan error       // why the daemon cannot go on
	reread   chan error       // how the reading of the table after the last pause ended, nil if that was waited for; used by whoever holds ops
	channel  *channel.Channel // belongs to the engine's loop
	links    []*channel.Link
	commits  *ctnetlink.Writer // used by whoever holds ops
	purges   *ctnetlink.Writer // used by whoever holds ops
	fetches  *ctnetlink.Writer // used by the engine's fetch worker
	parks    *ctnetlink.Writer // of the parker; nil unless takeovers are instant
	notify   *notifier
	procs    processors
	alarm    *gate.Alarm // of the engine's loop

	parkedBefore bool // what looks parked is left of an earlier instant takeover

	ops   chan struct{} // one token: held while a command changes the kernel or the role
	saved savedRole     // as kept for the next start; used by whoever holds ops

	mu        sync.Mutex
	cfg       *config.Config
	addrs     netwatch.Snapshot // of this host
	role      string
	roleSince time.Time
	// roleRestored says that the role is from before the restart, and that nobody has
	// said it since.
	roleRestored bool
	task         string
	adopting     bool // a takeover wants parked entries that no peer has
	lastCommit   *ctl.CommitReport
	commitSum    ctl.CommitStats
	readiness    readiness
	purge        *purge // under way; nil if none is
}

// Run runs a daemon until ctx ends, and returns nil then.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		return err
	}
	if cfg.Node.Name == "" {
		if cfg.Node.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("node.name is not set and the host has no name: %w", err)
		}
	}
	setLevel(o.Level, cfg)

	// Everything that needs no privilege has been checked. From here on the
	// system is touched.
	server, err := ctl.Listen(cfg.Node.Socket, o.Log.Named("ctl"))
	if err != nil {
		return err
	}
	d := &Daemon{
		opts: o, log: o.Log, cfg: cfg,
		started: time.Now(), begun: monotime.Now(),
		role: ctl.RoleUnknown,
		ops:  make(chan struct{}, 1), broken: make(chan error, 1),
	}
	d.ops <- struct{}{}
	d.notify = newNotifier(d.log)
	d.procs.start()
	shortenSlices()
	niceSession()
	if err := d.open(cfg); err != nil {
		d.close()
		return errors.Join(err, server.Close())
	}
	return d.run(ctx, server)
}

// open opens the sockets and builds the engine.
func (d *Daemon) open(cfg *config.Config) (err error) {
	if err := d.openBox(cfg); err != nil {
		return err
	}
	if err := d.checkHost(); err != nil {
		return err
	}
	d.checkUsed(cfg)
	listen := ctnetlink.ListenConfig{BufferSize: cfg.Events.Buffer, BufferMax: cfg.Events.BufferMax}
	if cfg.Takeover.Mode == config.TakeoverInstant {
		if err := d.openParker(); err != nil {
			return err
		}
		listen.Quiet = d.parks.PortID() // its answers tell more
	}
	if d.listener, err = ctnetlink.Listen(listen); err != nil {
		return err
	}
	d.events, d.forAll = d.listener, eventsForAll
	if d.commits, err = ctnetlink.NewWriter(ctnetlink.WriterConfig{}); err != nil {
		return err
	}
	if d.purges, err = ctnetlink.NewWriter(ctnetlink.WriterConfig{}); err != nil {
		return err
	}
	if d.fetches, err = ctnetlink.NewWriter(ctnetlink.WriterConfig{}); err != nil {
		return err
	}
	for i := range cfg.Links {
		l, err := channel.Open(linkConfig(&cfg.Links[i]))
		if err != nil {
			return err
		}
		d.links = append(d.links, l)
		recv, send := l.Buffers()
		d.log.Info("link open", zap.String("link", l.Name()), zap.Stringer("local", l.Local()),
			zap.Int("recv_buffer_bytes", recv), zap.Int("send_buffer_bytes", send),
			zap.Int("max_payload_bytes", l.MaxPayload()), zap.Bool("up", l.Up()))
	}
	d.channel = channel.New(monotime.Now(), d.links)

	limit, external, err := cacheLimits(cfg)
	if err != nil {
		return err
	}
	var sealer engine.Sealer
	if d.box != nil {
		sealer = d.box
	}
	readers := make([]engine.LinkReader, len(d.links))
	for i, l := range d.links {
		readers[i] = newLinkReader(l)
	}
	if d.parks == nil {
		// Where a connection in use may have such a timeout, nothing tells what is parked.
		long, err := ctnetlink.LongTimeouts(flow.ParkedAbove)
		if err != nil {
			return err
		}
		d.parkedBefore = len(long) == 0
	}
	if d.alarm, err = gate.NewAlarm(); err != nil {
		return fmt.Errorf("open a timer: %w", err)
	}
	ecfg := engine.Config{
		Log:    d.log.Named("engine"),
		Events: d.listener,
		Dump: func(ctx context.Context, fn func(*flow.Event) error) error {
			d.procs.begin()
			defer d.procs.end()
			return ctnetlink.Dump(ctx, ctnetlink.DumpFilter{}, fn)
		},
		Fetch: func(_ context.Context, keys []flow.Tuple, fn func(*flow.Flow)) error {
			return d.fetches.Fetch(keys, func(_ int, f *flow.Flow) { fn(f) })
		},
		DumpExpects: func(ctx context.Context, fn func(*flow.Expect) error) error {
			return ctnetlink.DumpExpects(ctx, 0, fn)
		},
		Sender:        (*sender)(d),
		Alarm:         d.alarm,
		Links:         readers,
		NewMode:       func(e *engine.Engine) engine.Mode { return d.newMode(cfg, e) },
		Sealer:        sealer,
		Mirror:        d.box != nil,
		Filter:        compileFilter(cfg, nil),
		InternalLimit: limit,
		ExternalLimit: external,
		Labels:        cfg.Filter.Labels,
		MarkMask:      cfg.Filter.MarkMask,
		ParkedBefore:  d.parkedBefore,
	}
	if d.box != nil { // conntrackd's dialect has no roles
		ecfg.Leads = func(owner uint8) (leads, known bool) { return d.mode.leads(owner) }
		ecfg.Led = d.purgeSooner
	}
	if d.parks != nil {
		ecfg.Parker = &parker{d, d.parks}
		if d.box != nil {
			ecfg.Gone = func() []uint8 { return d.mode.gone() }
		}
	}
	d.engine = engine.New(ecfg)
	if err := d.loadSnapshot(); err != nil {
		d.log.Error("the snapshot of the peers' state is not used", zap.Error(err))
	}
	if err := d.restoreRole(); err != nil {
		d.log.Error("the role of before the restart is not taken over", zap.Error(err))
	}
	d.engine.SetOrigin(d.commits.PortID(), engine.OriginCommit)
	d.engine.SetOrigin(d.purges.PortID(), engine.OriginPurge)
	if d.parks != nil {
		d.engine.SetOrigin(d.parks.PortID(), engine.OriginPark)
	}
	d.log.Info("listening to the kernel", zap.Int("event_buffer_bytes", d.listener.BufferSize()),
		zap.Int("internal_limit", limit), zap.Int("external_limit", external))
	switch {
	case d.box != nil && len(cfg.Sync.Keys) == 0:
		d.log.Warn("sealing with a key that everybody knows (insecure = true): anyone on the link can read and forge")
	case d.box == nil:
		d.log.Warn("speaking conntrackd's dialect: two nodes, plain datagrams that anyone on the link can read and forge, no proof of being in step")
	}
	return nil
}

// close closes what open opened, when run does not come to it.
func (d *Daemon) close() {
	if d.listener != nil {
		d.listener.Close()
	}
	if d.commits != nil {
		d.commits.Close()
	}
	if d.purges != nil {
		d.purges.Close()
	}
	if d.fetches != nil {
		d.fetches.Close()
	}
	if d.parks != nil {
		d.parks.Close()
	}
	if d.alarm != nil {
		d.alarm.Close()
	}
	for _, l := range d.links {
		l.Close()
	}
}

// run runs the tasks until ctx ends or one of them fails.
func (d *Daemon) run(ctx context.Context, server *ctl.Server) error {
	group, ctx := errgroup.WithContext(ctx)
	d.ctx = ctx
	task := func(name string, run func(context.Context) error) {
		group.Go(func() error {
			err := run(ctx)
			if ctx.Err() != nil {
				return nil // a stop, or the consequence of another's failure
			}
			if err == nil {
				err = errors.New("ended by itself")
			}
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	if finish := d.resumeRole(); finish != nil {
		group.Go(func() error {
			if err := finish(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("role: %w", err)
			}
			return nil
		})
	}
	known := make(chan struct{}) // closed when the addresses of this host are
	task("engine", func(ctx context.Context) error {
		// The first dump would take flows of this host itself for others' before.
		select {
		case <-known:
			return d.engine.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	task("control socket", func(ctx context.Context) error { return server.Serve(ctx, d) })
	task("interfaces", func(ctx context.Context) error { return d.watchInterfaces(ctx, known) })
	task("service", d.serve)
	task("readiness", d.watchReadiness)
	if d.parks != nil {
		task("parked entries", d.watchParked)
	} else if d.parkedBefore {
		task("parked entries", d.unpark)
	}
	task("kernel events", func(ctx context.Context) error {
		select {
		case err := <-d.broken:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error { // said at once: the tasks may take a moment to end
		<-ctx.Done()
		d.notify.stopping()
		return nil
	})
	err := group.Wait()
	d.procs.stop()
	if serr := d.saveSnapshot(); serr != nil {
		d.log.Error("what peers have sent could not be kept for the next start", zap.Error(serr))
	}
	d.stopPurge()
	<-d.ops // a command that runs sees the end of ctx and gives the sockets back
	d.close()
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

// serve announces readiness, feeds the watchdog, keeps the service's status line
// and reloads on request.
func (d *Daemon) serve(ctx context.Context) error {
	for loaded := false; !loaded; {
		select {
		case err := <-d.engine.Loaded():
			// A dump that the kernel's own work has spoilt is repeated by the engine.
			loaded = err == nil
			if err != nil && !errors.Is(err, ctnetlink.ErrResized) && !errors.Is(err, ctnetlink.ErrInterrupted) {
				return fmt.Errorf("read the kernel's table: %w", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
	d.notify.ready(d.statusLine(ctx))
	d.log.Info("ready")
	beat := d.notify.watchdog()
	line := time.NewTicker(5 * time.Second)
	defer line.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat:
			// The loop itself must turn: a process that only breathes is dead.
			if err := d.engine.Do(ctx, func() {}); err == nil {
				d.notify.alive()
			}
		case <-line.C:
			d.notify.status(d.statusLine(ctx))
		case <-d.opts.Reload:
			d.notify.reloading()
			if _, err := d.Reload(ctx); err != nil {
				d.log.Error("reload failed; the old configuration stays in force", zap.Error(err))
			}
			d.notify.ready(d.statusLine(ctx))
		}
	}
}

// config returns the configuration in force.
func (d *Daemon) config() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg
}

// cacheLimits returns the limits of both caches, in entries.
func cacheLimits(cfg *config.Config) (internal, external int, err error) {
	internal, external = cfg.Cache.Limit, cfg.Cache.ExternalLimit
	if internal != 0 && external != 0 {
		return internal, external, nil
	}
	// Twice the table leaves room for as many deletions that a peer has not
	// acknowledged as there can be flows.
	auto := 4 << 20
	switch n, err := ctnetlink.MaxEntries(); {
	case err != nil:
		return 0, 0, err
	case n > 0:
		auto = 2 * n
	}
	if internal == 0 {
		internal = auto
	}
	if external == 0 {
		external = auto
	}
	return internal, external, nil
}

func setLevel(l *zap.AtomicLevel, cfg *config.Config) {
	if l == nil {
		return
	}
	// The names are zap's; config has checked them.
	_ = l.UnmarshalText([]byte(cfg.Node.LogLevel))
}

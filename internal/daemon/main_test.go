package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"

	"syncd/internal/cache"
	"syncd/internal/channel"
	"syncd/internal/config"
	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/simnet"
	"syncd/internal/sync/ftfw"
)

// TestMain runs the tests and then looks for goroutines that outlived them.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for deadline := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines were left behind:\n%s\n", runtime.NumGoroutine()-before, buf[:runtime.Stack(buf, true)])
			code = 1
		}
		time.Sleep(10 * time.Millisecond)
	}
	os.Exit(code)
}

// validConfig is a configuration that works on any host.
const validConfig = `
[node]
name = "fw1"
state_dir = ""
[sync]
wire = "conntrackd"
insecure = true
[filter]
local = true
[[link]]
type = "udp"
interface = "lo"
local = "127.0.0.1"
peers = ["127.0.0.2"]
`

// writeConfig writes a configuration file and returns its path.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir() + "/syncd.toml"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newDaemon returns a daemon around an engine that runs on a simulated kernel and
// network, with one real link that nothing is sent on. It needs no privilege.
func newDaemon(t *testing.T, text string) (*Daemon, *simnet.Kernel) {
	t.Helper()
	kernel := simnet.NewKernel(1)
	d, stop := startDaemon(t, zap.NewNop(), writeConfig(t, text), kernel)
	t.Cleanup(stop)
	if err := <-d.engine.Loaded(); err != nil {
		t.Fatal(err)
	}
	return d, kernel
}

// startDaemon is newDaemon for a process that stop ends.
func startDaemon(t *testing.T, log *zap.Logger, path string, kernel *simnet.Kernel) (d *Daemon, stop func()) {
	t.Helper()
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	d = &Daemon{
		opts: Options{ConfigPath: path, Version: "test"}, log: log, cfg: cfg,
		started: time.Now(), begun: monotime.Now(), role: ctl.RoleUnknown,
		ops: make(chan struct{}, 1), broken: make(chan error, 1), notify: newNotifier(zap.NewNop()),
	}
	d.ops <- struct{}{}
	lc := linkConfig(&cfg.Links[0])
	lc.Port = freePort(t)
	l, err := channel.Open(lc)
	if err != nil {
		t.Fatal(err)
	}
	d.links = []*channel.Link{l}
	d.channel = channel.New(monotime.Now(), d.links)

	d.events, d.forAll = kernel, func() bool { return true }
	port := simnet.New(1).Port(netip.MustParseAddr("192.0.2.1"))
	d.engine = engine.New(engine.Config{
		Events: kernel, Dump: kernel.Dump, Sender: port, Links: []engine.LinkReader{port},
		NewMode: func(e *engine.Engine) engine.Mode {
			m := ftfw.New(ftfw.Config{}, e)
			d.mode = &ftfwMode{onePeer{d, e}, m}
			return engine.OnePeer(m, e.Replica())
		},
		Filter: compileFilter(cfg, nil), InternalLimit: 1 << 16, ExternalLimit: 1 << 16,
		Labels: cfg.Filter.Labels, MarkMask: cfg.Filter.MarkMask,
	})
	if err := d.restoreRole(); err != nil {
		log.Error("role", zap.Error(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.ctx = ctx
	done, finished := make(chan error, 1), make(chan error, 1)
	if finish := d.resumeRole(); finish != nil {
		go func() { finished <- finish(ctx) }()
	} else {
		finished <- nil
	}
	go func() { done <- d.engine.Run(ctx) }()
	return d, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the engine ended with %v", err)
		}
		<-finished
		d.stopPurge()
		<-d.ops
		l.Close()
	}
}

func freePort(t *testing.T) uint16 {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// externalCache returns the cache of the only peer of conntrackd's dialect, making it
// first. It runs on the loop.
func externalCache(e *engine.Engine) *cache.Cache {
	const onlyPeer = 1
	e.Replica().Doubtful(onlyPeer)
	return e.Replica().Cache(onlyPeer)
}

// external runs fn on the loop with a function that puts a flow into the external
// cache.
func (d *Daemon) external(t *testing.T, fn func(put func(flow.Flow))) {
	t.Helper()
	if err := d.engine.Do(t.Context(), func() {
		x := externalCache(d.engine)
		fn(func(f flow.Flow) {
			if h := x.Lookup(&f.Orig); h != 0 {
				x.Merge(h, &f, d.engine.Now())
			} else if _, err := x.Insert(&f, d.engine.Now()); err != nil {
				t.Error(err)
			}
		})
	}); err != nil {
		t.Fatal(err)
	}
}

// testFlow returns a TCP flow in this state.
func testFlow(i int, state uint8) flow.Flow {
	f := flow.Flow{
		Orig: flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{198, 51, 100, 1}, Dst: [16]byte{203, 0, 113, byte(i >> 16)},
			SrcPort: uint16(i), DstPort: 80},
		Has: flow.HasTCP | flow.HasStatus | flow.HasTimeout, TCPState: state, Timeout: 100,
	}
	f.Reply, _ = f.Orig.Inverse()
	return f
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/ctnetlink"
	"syncd/internal/lab"
	"syncd/internal/lab/keepalived"
	"syncd/test/bench/rig"
)

// Takeover is one run of the death of the active node. Times are in seconds.
type Takeover struct {
	Kind  rig.Kind `json:"kind"`
	Run   int      `json:"run"`
	Flows int      `json:"flows"` // in the background
	TCP   int      `json:"tcp"`   // connections that were probed
	UDP   int      `json:"udp"`   // mappings that were probed

	DownS float64 `json:"down_s"` // from the death until new flows passed the other node
	LastS float64 `json:"last_s"` // from then to the last connection that came back

	LastTCPS   float64 `json:"last_tcp_s"`
	MedianTCPS float64 `json:"median_tcp_s"`
	LastUDPS   float64 `json:"last_udp_s"`
	MedianUDPS float64 `json:"median_udp_s"`

	TCPKept int `json:"tcp_kept"`
	UDPKept int `json:"udp_kept"` // spoke by their old mapping at the end
	// UDPUnmoved are those whose far side has never seen another address meanwhile.
	UDPUnmoved int `json:"udp_unmoved"`

	CommitS float64 `json:"commit_s"` // of the commit, as the daemon tells it
	RoundS  float64 `json:"round_s"`  // longest time between two probes of a connection
}

const (
	targetBackground = 1

	upLimit     = 20 * time.Second // for keepalived to say who is master
	downLimit   = 20 * time.Second // for it to notice the death
	backLimit   = 10 * time.Second // for a connection to come back
	commitLimit = 3 * time.Second  // after all that, for the daemon to say that it has committed
	settle      = time.Second      // after the last has come back, to see that they stay
	speakTime   = 3 * time.Second  // before the death: UDP counts as a stream after two
)

// pair is what is measured: two firewalls, with a daemon and a keepalived each.
type pair struct {
	o    *options
	kind rig.Kind
	*lab.Pair
	rig        *rig.Rig
	daemons    [2]*rig.Daemon
	keepalived [2]*keepalived.Daemon

	service netip.AddrPort
	tcp     []tcpConn
	prober  prober
}

// measureTakeover lets the active node of one kind of daemon die.
func measureTakeover(ctx context.Context, o *options, kind rig.Kind) (s *Takeover, err error) {
	l, err := lab.New(rig.Prefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	p := &pair{o: o, kind: kind}
	if err := p.lay(l); err != nil {
		return nil, err
	}
	if err := p.startDaemons(ctx); err != nil {
		return nil, err
	}
	load, err := rig.NewLoad(p.FW1)
	if err != nil {
		return nil, err
	}
	defer load.Close()

	far, err := serveEcho(p.Server, p.service)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, far.close()) }()
	listener, err := p.Server.Listen(p.service)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	go serveTCP(listener)
	defer p.close()
	if err := p.Client.Do(p.openRaw); err != nil {
		return nil, err
	}

	// Half of what is probed is older than the background, half is younger: whatever the
	// order in which a daemon commits, some are late.
	if err := p.open(ctx, (o.connections+1)/2); err != nil {
		return nil, err
	}
	if err := load.Range(ctx, ctnetlink.OpCreate, 0, o.flows, targetBackground, fillRate); err != nil {
		return nil, err
	}
	if err := p.open(ctx, o.connections/2); err != nil {
		return nil, err
	}
	// The prober must not wait for the rest of this process: for its collector of garbage,
	// nor for one of the runtime's processors.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	runtime.GC()
	p.prober.start(p.Client)
	s, err = p.die(ctx)
	if perr := p.prober.end(); err == nil {
		err = perr
	}
	if err != nil {
		return nil, p.explain(err)
	}
	if err := p.judge(s); err != nil {
		return s, p.explain(err)
	}
	// The lab is removed with empty tables and without listeners, which is quick.
	return s, errors.Join(p.keepalived[1].Stop(), p.daemons[1].Stop(), rig.FlushKernel(p.FW1), rig.FlushKernel(p.FW2))
}

// lay builds the network. The rules of both firewalls drop what has no state, and every
// flow gets a port of its own outside, at random.
func (p *pair) lay(l *lab.Lab) (err error) {
	if p.Pair, err = lab.FirewallPair(l); err != nil {
		return err
	}
	rules := p.Rules()
	rules.VRRP = true
	for i := range rules.SNAT {
		rules.SNAT[i].Random = true
	}
	p.service = netip.AddrPortFrom(p.V4.Server, lab.PortService)
	p.prober.every, p.prober.hidden, p.prober.plain, p.prober.to = p.o.every, p.V4.Hidden, p.V4.Plain, p.service
	if err := errors.Join(p.LoadRules(rules), keepalived.Release(p.Pair)); err != nil {
		return err
	}
	p.rig, err = rig.On(l, p.FW1, p.FW2, p.o.bin)
	return err
}

// startDaemons starts both nodes, one after the other: who is first is master.
func (p *pair) startDaemons(ctx context.Context) error {
	dir, err := p.rig.Lab.Dir()
	if err != nil {
		return err
	}
	example, err := os.ReadFile(p.o.keepalived)
	if err != nil {
		return err
	}
	// What keepalived runs must not be below a folder that others may write to.
	syncd := filepath.Join(dir, "syncd")
	program, err := os.ReadFile(p.o.bin)
	if err != nil {
		return err
	}
	if err := os.WriteFile(syncd, program, 0o700); err != nil {
		return err
	}
	for i, fw := range []*lab.Node{p.FW1, p.FW2} {
		d, err := p.rig.Start(p.kind, i, rig.Settings{Flows: p.o.flows + p.o.connections + 1000})
		if err != nil {
			return err
		}
		p.daemons[i] = d
		notify := syncd + " ctl --socket " + d.Socket()
		if p.kind == rig.Conntrackd {
			notify = filepath.Join(dir, fw.Name()+".notify")
			if err := os.WriteFile(notify, fmt.Appendf(nil, conntrackdScript, d.Config()), 0o700); err != nil {
				return err
			}
		}
		config, err := keepalived.Config(string(example), fw, i+1, notify)
		if err != nil {
			return err
		}
		if p.keepalived[i], err = keepalived.New(fw, dir, config); err != nil {
			return err
		}
		if err := p.keepalived[i].Start(); err != nil {
			return err
		}
		if i == 0 {
			if err := p.answering(ctx); err != nil {
				return p.explain(err)
			}
		}
	}
	return nil
}

// conntrackdScript is what keepalived calls beside conntrackd, with the steps that
// conntrack-tools recommends for each role. The file of its configuration is put in.
const conntrackdScript = `#!/bin/sh
# usage: notify primary | backup | fault
daemon() { /usr/sbin/conntrackd -C %[1]s "$@"; }
case "$1" in
primary)
	daemon -c # commit the external cache
	daemon -f # forget both caches
	daemon -R # read the kernel's table
	daemon -B # send everything to the other node
	;;
backup)
	daemon -t # let what is in the kernel end
	daemon -n # ask the other node for everything
	;;
fault)
	daemon -t
	;;
esac
`

// answering waits until a new flow passes the firewalls.
func (p *pair) answering(ctx context.Context) error {
	l, err := p.Server.Listen(p.service)
	if err != nil {
		return err
	}
	defer l.Close()
	return rig.Wait(upLimit, "a firewall lets a new connection pass", func() (bool, error) {
		brief, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		c, err := p.Client.Dial(brief, "tcp", p.V4.Plain, p.service)
		if err != nil {
			return false, ctx.Err()
		}
		return true, c.Close()
	})
}

// openRaw opens the prober's socket for TCP. It runs inside the client.
func (p *pair) openRaw() (err error) {
	p.prober.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	return unix.Bind(p.prober.raw, &unix.SockaddrInet4{Addr: p.V4.Hidden.As4()})
}

// open opens n connections of TCP and n mappings of UDP.
func (p *pair) open(ctx context.Context, n int) error {
	brief, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for range n {
		c, err := p.Client.Dial(brief, "tcp", p.V4.Hidden, p.service)
		if err != nil {
			return err
		}
		t := tcpConn{c}
		p.tcp = append(p.tcp, t)
		if !t.lives() {
			return errors.New("a new TCP connection does not answer")
		}
		k := &connection{tcp: true, port: c.LocalAddr().(*net.TCPAddr).AddrPort().Port()}
		if k.next, k.want, err = t.sequence(); err != nil {
			return err
		}
		p.prober.connections = append(p.prober.connections, k)
	}
	return p.Client.Do(func() error {
		for range n {
			fd, err := udpSocket(p.V4.Hidden, p.service)
			if err != nil {
				return err
			}
			at, err := unix.Getsockname(fd)
			if err != nil {
				return err
			}
			k := &connection{fd: fd, port: uint16(at.(*unix.SockaddrInet4).Port)}
			p.prober.connections = append(p.prober.connections, k)
			p.prober.probe(len(p.prober.connections)-1, k) // so that its flow begins now
		}
		return nil
	})
}

// close closes the sockets of the client.
func (p *pair) close() {
	for _, c := range p.tcp {
		_ = c.Close()
	}
	for _, c := range p.prober.connections {
		if !c.tcp {
			unix.Close(c.fd)
		}
	}
	unix.Close(p.prober.raw)
}

// die lets the first node die when the second knows everything, and waits until the
// connections have come back, or no longer.
func (p *pair) die(ctx context.Context) (*Takeover, error) {
	begin := time.Now()
	all := len(p.prober.connections)
	if err := inStep(ctx, p.daemons[0], p.daemons[1], p.o.flows+all); err != nil {
		return nil, err
	}
	if err := sleep(ctx, time.Until(begin.Add(speakTime))); err != nil {
		return nil, err
	}
	if err := p.FW1.Unplug(); err != nil {
		return nil, err
	}
	p.prober.cut.Store(int64(p.prober.now()))
	p.daemons[0].Kill()
	if err := p.keepalived[0].Kill(); err != nil {
		return nil, err
	}
	if err := rig.Wait(downLimit, "new flows pass the second node", func() (bool, error) {
		return p.prober.reached.Load() > 0, ctx.Err()
	}); err != nil {
		return nil, err
	}
	for end := time.Now().Add(p.o.back); time.Now().Before(end) && int(p.prober.restored.Load()) < all; {
		if err := sleep(ctx, asking); err != nil {
			return nil, err
		}
	}
	return &Takeover{Kind: p.kind, Flows: p.o.flows}, sleep(ctx, settle)
}

// judge reads off what the prober, which has ended, saw.
func (p *pair) judge(s *Takeover) error {
	end, cut, reached := p.prober.now(), time.Duration(p.prober.cut.Load()), time.Duration(p.prober.reached.Load())
	s.DownS, s.RoundS = (reached - cut).Seconds(), p.prober.rounds.Seconds()
	var tcp, udp []float64
	same := 0
	s.TCPKept = p.countLiving()
	for _, c := range p.prober.connections {
		if least := int(speakTime / p.o.every / 2); c.answered < least {
			return fmt.Errorf("before the death a connection (TCP: %v) was answered %d times, should be %d at least", c.tcp, c.answered, least)
		}
		back := max(0, (c.restored - reached).Seconds())
		if c.tcp {
			s.TCP++
			if c.restored > 0 {
				tcp = append(tcp, back)
			}
			continue
		}
		s.UDP++
		if c.port == c.seen.Port() {
			same++
		}
		if c.restored > 0 && end-c.last < settle/2 {
			s.UDPKept++
			udp = append(udp, back)
		}
		if !c.moved && c.restored > 0 {
			s.UDPUnmoved++
		}
	}
	if same > s.UDP/4 {
		return fmt.Errorf("%d of %d mappings have the port of the client: made anew they would be the same", same, s.UDP)
	}
	if len(tcp) > 0 {
		s.LastTCPS, s.MedianTCPS = slices.Max(tcp), rig.Median(tcp)
	}
	if len(udp) > 0 {
		s.LastUDPS, s.MedianUDPS = slices.Max(udp), rig.Median(udp)
	}
	s.LastS = max(s.LastTCPS, s.LastUDPS)
	took, err := p.daemons[1].LastCommit()
	for limit := time.Now().Add(commitLimit); err != nil; took, err = p.daemons[1].LastCommit() {
		if time.Now().After(limit) {
			return fmt.Errorf("%w: %w", errNoCommit, err)
		}
		time.Sleep(asking)
	}
	s.CommitS = took.Seconds()
	return nil
}

// countLiving is how many TCP connections carry data.
func (p *pair) countLiving() int {
	var n atomic.Int32
	var wg sync.WaitGroup
	for _, t := range p.tcp {
		wg.Go(func() {
			if t.lives() {
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return int(n.Load())
}

// errNoCommit: the second node has not put anything into its kernel.
var errNoCommit = errors.New("nothing was committed")

// explain adds to an error what the daemons have logged.
func (p *pair) explain(err error) error {
	for i, d := range p.daemons {
		if d != nil {
			err = fmt.Errorf("%w\n%s on %s logs:\n%s", err, d.Kind, d.Node.Name(), d.Log())
		}
		if k := p.keepalived[i]; k != nil {
			b, _ := os.ReadFile(k.Log)
			err = fmt.Errorf("%w\nkeepalived logs:\n%s", err, b[max(0, len(b)-2000):])
		}
	}
	return err
}

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/lab"
	"syncd/test/bench/rig"
)

// connection is a TCP connection or a UDP mapping through source NAT that is probed all
// the time, and what became of it. Times are since the prober's begin.
type connection struct {
	fd   int    // of UDP; TCP is probed over the prober's raw socket
	port uint16 // of the client
	seen netip.AddrPort

	tcp  bool
	next uint32 // octet of the stream that the client would send next
	want uint32 // octet that it expects next

	answered int           // before the cut
	restored time.Duration // first answer by the old mapping after the cut; 0 for none
	last     time.Duration // last answer by the old mapping
	moved    bool          // the far side saw another mapping after the cut
}

// prober probes connections, and after the cut whether new flows pass. All of it is one
// thread with real-time priority in the client's namespace, so that the daemons cannot
// keep it waiting: it takes a tenth of a processor.
type prober struct {
	connections []*connection
	raw         int // socket that sends and sees TCP
	every       time.Duration
	hidden      netip.Addr // source of the connections
	plain       netip.Addr // source of the new flows
	to          netip.AddrPort
	begin       time.Time

	cut      atomic.Int64 // when the path was cut, as durations since begin; 0 before
	reached  atomic.Int64 // when the first new flow was answered after that
	restored atomic.Int32 // how many connections
	stop     atomic.Bool  // asks for the end
	done     chan error   // of run
	fresh    []int        // sockets of new flows, the oldest first
	fds      []unix.PollFd
	in       [2048]byte
	rounds   time.Duration // longest time between two rounds of probes: too long, and nothing counts
}

// A probe of UDP and its answer, big-endian: 0 index of the connection, or freshFlow;
// 4 address of the sender as the far side sees it, 8 its port.
const (
	probeSize = 10
	freshFlow = 1<<32 - 1

	freshEvery = 5 * time.Millisecond // one new flow
	freshMost  = 100                  // sockets of new flows that are open at a time
)

// start begins to probe. The connections must be there.
func (p *prober) start(client *lab.Node) {
	p.begin, p.done = time.Now(), make(chan error, 1)
	go func() {
		p.done <- client.Do(func() error {
			if err := rig.RealTime(0); err != nil {
				return err
			}
			defer func() { // the thread is not ours
				_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
			}()
			return p.run()
		})
	}()
}

// end stops probing and returns what went wrong.
func (p *prober) end() error {
	p.stop.Store(true)
	return <-p.done
}

func (p *prober) now() time.Duration { return time.Since(p.begin) }

func (p *prober) run() error {
	defer func() {
		for _, fd := range p.fresh {
			unix.Close(fd)
		}
	}()
	var nextRound, nextFresh, last time.Duration
	for !p.stop.Load() {
		now := p.now()
		if now >= nextRound {
			if last > 0 {
				p.rounds = max(p.rounds, now-last)
			}
			last, nextRound = now, now+p.every
			for i, c := range p.connections {
				p.probe(i, c)
			}
		}
		if p.cut.Load() > 0 && p.reached.Load() == 0 && now >= nextFresh {
			nextFresh = now + freshEvery
			if err := p.knock(); err != nil {
				return err
			}
		}
		if err := p.listen(min(nextRound-p.now(), freshEvery)); err != nil {
			return err
		}
	}
	return nil
}

// probe sends one probe. What cannot be sent is as good as lost on the way.
func (p *prober) probe(i int, c *connection) {
	if c.tcp {
		b := keepalive(c, p.hidden, p.to)
		_ = unix.Sendto(p.raw, b[:], 0, &unix.SockaddrInet4{Addr: p.to.Addr().As4()})
		return
	}
	var b [probeSize]byte
	binary.BigEndian.PutUint32(b[:], uint32(i))
	_, _ = unix.Write(c.fd, b[:])
}

// knock begins a new flow, which needs no state of the firewall.
func (p *prober) knock() error {
	fd, err := udpSocket(p.plain, p.to)
	if err != nil {
		return err
	}
	if p.fresh = append(p.fresh, fd); len(p.fresh) > freshMost {
		unix.Close(p.fresh[0])
		p.fresh = p.fresh[1:]
	}
	var b [probeSize]byte
	binary.BigEndian.PutUint32(b[:], freshFlow)
	_, _ = unix.Write(fd, b[:])
	return nil
}

// listen takes what comes within a time.
func (p *prober) listen(d time.Duration) error {
	fds := append(p.fds[:0], unix.PollFd{Fd: int32(p.raw), Events: unix.POLLIN})
	for _, c := range p.connections {
		if !c.tcp {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
	}
	for _, fd := range p.fresh {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	p.fds = fds
	if _, err := unix.Poll(fds, int(max(d, 0).Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	b := p.in[:]
	for _, f := range fds {
		if f.Revents == 0 {
			continue
		}
		for {
			n, err := unix.Read(int(f.Fd), b)
			if err != nil || n <= 0 { // nothing more, or an ICMP error about one datagram
				break
			}
			if int(f.Fd) == p.raw {
				p.segment(b[:n])
			} else {
				p.answer(b[:n])
			}
		}
	}
	return nil
}

// segment takes a TCP segment with its IP header that has come to the client. Only
// what the far side sends of the connection itself can have the client's port.
func (p *prober) segment(b []byte) {
	if len(b) < 20 {
		return
	}
	header := int(b[0]&15) * 4
	if len(b) < header+20 || b[header+13]&tcpRST != 0 {
		return
	}
	port := binary.BigEndian.Uint16(b[header+2:])
	for _, c := range p.connections {
		if c.tcp && c.port == port {
			p.arrived(c, true)
		}
	}
}

// answer takes an answer by UDP.
func (p *prober) answer(b []byte) {
	if len(b) != probeSize {
		return
	}
	i := binary.BigEndian.Uint32(b)
	if i == freshFlow {
		p.reached.CompareAndSwap(0, int64(p.now()))
		return
	}
	if int(i) >= len(p.connections) {
		return
	}
	seen := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[8:]))
	c := p.connections[i]
	if !c.seen.IsValid() {
		c.seen = seen
	}
	p.arrived(c, seen == c.seen)
}

// inFlight is how long after the cut something may still come that passed before.
const inFlight = 20 * time.Millisecond

func (p *prober) arrived(c *connection, old bool) {
	now := p.now()
	cut := time.Duration(p.cut.Load())
	switch {
	case cut == 0:
		c.answered++
	case now < cut+inFlight:
	case !old:
		c.moved = true
	default:
		c.last = now
		if c.restored == 0 {
			c.restored = now
			p.restored.Add(1)
		}
	}
}

// udpSocket opens a socket inside the namespace of the calling thread.
func udpSocket(from netip.Addr, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("probe: %w", err)
	}
	return fd, nil
}

// echo answers probes of UDP on the server until its socket is closed.
type echo struct {
	fd   int
	stop atomic.Bool
	done chan struct{}
}

// serveEcho starts the answering side, a thread with real-time priority as the prober is.
func serveEcho(n *lab.Node, at netip.AddrPort) (*echo, error) {
	e := &echo{done: make(chan struct{})}
	if err := n.Do(func() (err error) {
		if e.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(e.fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}))
	}); err != nil {
		return nil, fmt.Errorf("answer probes: %w", err)
	}
	failed := make(chan error, 1)
	go func() {
		defer close(e.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := rig.RealTime(0)
		failed <- err
		if err != nil {
			return
		}
		b := make([]byte, 2048)
		for !e.stop.Load() {
			n, from, err := unix.Recvfrom(e.fd, b, 0)
			who, ok := from.(*unix.SockaddrInet4)
			if err != nil || !ok || n != probeSize {
				continue
			}
			copy(b[4:8], who.Addr[:])
			binary.BigEndian.PutUint16(b[8:], uint16(who.Port))
			_ = unix.Sendto(e.fd, b[:n], 0, who)
		}
	}()
	return e, <-failed
}

func (e *echo) close() error {
	e.stop.Store(true)
	<-e.done
	return unix.Close(e.fd)
}

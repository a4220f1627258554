package simnet

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Faults is how a direction of the network treats a datagram. The zero value
// delivers every one once and at once.
type Faults struct {
	Loss      float64       // probability that a copy is lost
	Duplicate float64       // probability that there are two copies
	Delay     time.Duration // of every copy
	Jitter    time.Duration // added to Delay, from 0 to this, so that copies overtake each other
	Cut       bool          // nothing arrives
}

// Network joins ports: what one sends is meant for all others, as on a multicast
// link.
type Network struct {
	seed uint64

	mu     sync.Mutex
	ports  []*Port
	faults Faults // of directions without faults of their own
	paths  map[direction]*path
}

type direction struct{ from, to *Port }

// path is one direction between two ports.
type path struct {
	rand   *rand.Rand
	faults *Faults // nil: those of the network
	stats  PathStats
}

// PathStats counts what became of the datagrams of one direction.
type PathStats struct {
	Sent       int // asked for, one for each receiver
	Lost       int // copies that a fault took
	Duplicated int
	Delivered  int // copies that reached the queue of the receiver
	Overflowed int // copies that found it full, or the receiver closed
}

// New returns a network without faults and without ports.
func New(seed uint64) *Network {
	return &Network{seed: seed, paths: map[direction]*path{}}
}

// SetFaults gives all directions the same faults, whatever they had.
func (n *Network) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
	for _, p := range n.paths {
		p.faults = nil
	}
}

// SetDirection gives one direction faults of its own, until the next SetFaults.
func (n *Network) SetDirection(from, to *Port, f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.path(from, to).faults = &f
}

// Stats returns the counters of one direction.
func (n *Network) Stats(from, to *Port) PathStats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(from, to).stats
}

// path returns a direction. Its generator depends on the seed and on the
// addresses of the two ends, not on what else is there.
func (n *Network) path(from, to *Port) *path {
	d := direction{from, to}
	p := n.paths[d]
	if p == nil {
		p = &path{rand: rand.New(rand.NewPCG(n.seed, hashAddr(from.addr)<<1^hashAddr(to.addr)))}
		n.paths[d] = p
	}
	return p
}

func hashAddr(a netip.Addr) (h uint64) {
	for _, c := range a.As16() {
		h = h*31 + uint64(c)
	}
	return h
}

const (
	// maxPayload is what a port says fits into a datagram: that of an Ethernet.
	maxPayload = 1472
	// maxQueue bounds what waits at a port for a Read, as a socket buffer does.
	maxQueue = 4096
	// maxRead is the number of datagrams of one Read.
	maxRead = 64
)

// Port is one node's end of a network. It is both sides of an engine's link: the
// sender and the reader.
type Port struct {
	network *Network
	addr    netip.Addr
	ready   chan struct{} // has a token when the queue may have become non-empty

	mu     sync.Mutex
	queue  []datagram
	read   []datagram // of the last Read
	heard  int
	closed bool
}

type datagram struct {
	b    []byte
	from netip.Addr
}

// Port attaches a node with this address. A node that starts again takes a new
// port: what is on its way to the old one is lost.
func (n *Network) Port(addr netip.Addr) *Port {
	p := &Port{network: n, addr: addr, ready: make(chan struct{}, 1)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = append(n.ports, p)
	return p
}

// Addr returns the address of the port.
func (p *Port) Addr() netip.Addr { return p.addr }

// Send sends every datagram to every other port.
func (p *Port) Send(datagrams [][]byte) {
	n := p.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range datagrams {
		for _, to := range n.ports {
			if to != p {
				n.carry(p, to, b)
			}
		}
	}
}

// carry does to one datagram what the faults of its direction say.
func (n *Network) carry(from, to *Port, b []byte) {
	path := n.path(from, to)
	f := n.faults
	if path.faults != nil {
		f = *path.faults
	}
	path.stats.Sent++
	copies := 1
	if path.rand.Float64() < f.Duplicate {
		copies++
		path.stats.Duplicated++
	}
	for range copies {
		// The same numbers are drawn whatever the faults are, so that changing
		// one of them leaves the others where they were.
		lost, delay := path.rand.Float64() < f.Loss, f.Delay+time.Duration(path.rand.Float64()*float64(f.Jitter))
		if lost || f.Cut {
			path.stats.Lost++
			continue
		}
		d := datagram{append([]byte(nil), b...), from.addr}
		if delay == 0 {
			path.arrived(to.deliver(d))
			continue
		}
		time.AfterFunc(delay, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			path.arrived(to.deliver(d))
		})
	}
}

func (p *path) arrived(ok bool) {
	if ok {
		p.stats.Delivered++
	} else {
		p.stats.Overflowed++
	}
}

func (p *Port) deliver(d datagram) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.queue) == maxQueue {
		return false
	}
	p.queue = append(p.queue, d)
	p.wake()
	return true
}

// wake lets a Read look again.
func (p *Port) wake() {
	select {
	case p.ready <- struct{}{}:
	default:
	}
}

// MaxPayload is the largest datagram, in octets.
func (p *Port) MaxPayload() int { return maxPayload }

// Heard counts what the engine calls a valid message.
func (p *Port) Heard(int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard++
}

// HeardCount returns how often Heard was called.
func (p *Port) HeardCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}

// Read waits for datagrams and returns how many have come. It returns
// net.ErrClosed when the port is closed.
func (p *Port) Read() (int, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return 0, net.ErrClosed
		}
		if n := min(len(p.queue), maxRead); n > 0 {
			p.read = append(p.read[:0], p.queue[:n]...)
			p.queue = append(p.queue[:0], p.queue[n:]...)
			if len(p.queue) > 0 {
				p.wake()
			}
			p.mu.Unlock()
			return n, nil
		}
		p.mu.Unlock()
		<-p.ready
	}
}

// Datagram returns datagram i of the last Read and the address of its sender.
func (p *Port) Datagram(i int) ([]byte, netip.Addr) { return p.read[i].b, p.read[i].from }

// Close ends a Read, and detaches the port from its network.
func (p *Port) Close() error {
	n := p.network
	n.mu.Lock()
	for i, other := range n.ports {
		if other == p {
			n.ports = append(n.ports[:i], n.ports[i+1:]...)
			break
		}
	}
	n.mu.Unlock()

	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.wake()
	return nil
}

package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Service is the far side of connections: it answers what it is asked, pushes to
// those who want that, and tells everybody which address it sees of them.
type Service struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	tcp    net.Listener
	udp    *net.UDPConn

	mu     sync.Mutex
	pushes map[uint32]bool // connections that a goroutine pushes UDP datagrams to
}

// Serve starts a service on a TCP and a UDP port of the node.
func Serve(n *Node, at netip.AddrPort) (*Service, error) {
	tcp, err := n.Listen(at)
	if err != nil {
		return nil, err
	}
	udp, err := n.ListenUDP(at)
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	s := &Service{tcp: tcp, udp: udp, pushes: map[uint32]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.serveTCP)
	s.wg.Go(s.serveUDP)
	return s, nil
}

// Close ends the service and all its connections, and waits for that.
func (s *Service) Close() error {
	s.cancel()
	err := errors.Join(s.tcp.Close(), s.udp.Close())
	s.wg.Wait()
	return err
}

func (s *Service) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(s.ctx, func() { _ = c.Close() })
			defer stop()
			serveConn(s.ctx, c)
		})
	}
}

// serveConn serves one TCP connection until it ends. The dialing side judges what
// became of it: an error here has nobody to go to.
func serveConn(ctx context.Context, c net.Conn) {
	seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	in, out := make([]byte, messageSize), make([]byte, 0, messageSize)
	for {
		if _, err := io.ReadFull(c, in); err != nil {
			return
		}
		m, err := parse(in)
		if err != nil {
			return
		}
		m.seen = seen
		wantsPush := m.kind == kindHello && m.pattern == Push
		m.kind = kindAnswer
		if _, err := c.Write(m.append(out)); err != nil {
			return
		}
		if wantsPush {
			push(ctx, m, func(b []byte) error { _, err := c.Write(b); return err })
			return
		}
	}
}

func (s *Service) serveUDP() {
	in, out := make([]byte, messageSize+1), make([]byte, 0, messageSize)
	for {
		n, seen, err := s.udp.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		m, bad := parse(in[:n])
		if err != nil || bad != nil {
			continue // an ICMP error of some earlier datagram, or not ours
		}
		m.seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
		wantsPush := m.kind == kindHello && m.pattern == Push
		m.kind = kindAnswer
		_, _ = s.udp.WriteToUDPAddrPort(m.append(out), seen) // as good as lost on the way
		if wantsPush && s.firstPush(m.id) {
			s.wg.Go(func() {
				push(s.ctx, m, func(b []byte) error {
					_, err := s.udp.WriteToUDPAddrPort(b, seen)
					if errors.Is(err, net.ErrClosed) {
						return err
					}
					return nil
				})
			})
		}
	}
}

// firstPush reports whether nobody pushes to this connection yet: a hello may
// come twice.
func (s *Service) firstPush(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pushes[id] {
		return false
	}
	s.pushes[id] = true
	return true
}

// push sends numbered messages at the interval that m asks for until ctx ends or
// a write fails.
func push(ctx context.Context, m message, write func([]byte) error) {
	m.kind = kindPush
	tick := time.NewTicker(max(m.interval, time.Millisecond))
	defer tick.Stop()
	b := make([]byte, 0, messageSize)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.number++
		if write(m.append(b)) != nil {
			return
		}
	}
}

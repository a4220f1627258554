package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// transit is how long a packet may take from end to end. Nothing is lost here for
// want of time: what has not come by then has been dropped.
const transit = 2 * time.Second

// conversation is one conversation of two ends through the firewalls. It is silent
// unless told to go on, so that kernels can be compared meanwhile.
type conversation struct {
	name string
	is   func(k tuple) bool // whether a flow of a kernel is this conversation's
	// lacks says what the flow in the first kernel lacks of what the conversation is
	// there for; without it, its copy would prove nothing. May be nil.
	lacks func(f *conntrack.Flow) string
	// goOn sends the next packets, the far side's first where the protocol lets it
	// speak: these pass a firewall only where that knows the flow.
	goOn func() error
	// wrong sends packets that no firewall may let through, and returns how many.
	// May be nil.
	wrong func() (uint64, error)
}

// way is a path of conversations through the firewalls.
type way struct {
	name string
	near *lab.Node // opens
	src  netip.Addr
	to   netip.AddrPort // as the near end sees it
	far  *lab.Node
	at   netip.AddrPort // where the far end is
	seen netip.Addr     // the near end, as the far end sees it

	srcPort, dstPort bool // whether the port is translated
}

// from reports whether a flow is the one that a socket with this address opened.
func from(proto uint8, local netip.AddrPort) func(k tuple) bool {
	return func(k tuple) bool { return k.proto == proto && k.src == local.Addr() && k.sport == local.Port() }
}

// untranslated says whether a flow lacks the translation of this way.
func (w way) untranslated(f *conntrack.Flow) string {
	o, r := &f.TupleOrig, &f.TupleReply
	var want conntrack.Status
	if w.seen != w.src {
		want |= conntrack.StatusSrcNAT
	}
	if w.at != w.to {
		want |= conntrack.StatusDstNAT
	}
	ports := o.Proto.SourcePort != 0 // of GRE there are none here
	switch {
	case f.Status&(conntrack.StatusSrcNAT|conntrack.StatusDstNAT) != want,
		r.IP.DestinationAddress != w.seen, r.IP.SourceAddress != w.at.Addr(),
		ports && w.srcPort != (r.Proto.DestinationPort != o.Proto.SourcePort),
		ports && w.dstPort != (r.Proto.SourcePort != o.Proto.DestinationPort):
		return fmt.Sprintf("the translation of %q: %+v, %+v, status %v", w.name, *o, *r, f.Status)
	}
	return ""
}

// stream is a TCP connection and both of its ends.
type stream struct {
	near, far net.Conn
	said      int
}

// place is where far ends are: many conversations may lead there.
type place struct {
	node  *lab.Node
	proto uint8
	at    netip.AddrPort
}

// places are the sockets of far ends.
type places struct {
	tcp map[place]net.Listener
	udp map[place]udpEndpoint
}

func newPlaces() *places {
	return &places{tcp: map[place]net.Listener{}, udp: map[place]udpEndpoint{}}
}

func (s *places) listen(t testing.TB, n *lab.Node, at netip.AddrPort) net.Listener {
	t.Helper()
	k := place{n, flow.TCP, at}
	if _, there := s.tcp[k]; !there {
		l, err := n.Listen(at)
		ok(t, err)
		t.Cleanup(func() { _ = l.Close() })
		s.tcp[k] = l
	}
	return s.tcp[k]
}

// openStream opens a connection and lets both ends speak.
func (s *places) openStream(t testing.TB, w way) *stream {
	t.Helper()
	at := s.listen(t, w.far, w.at)
	near, err := w.near.Dial(t.Context(), "tcp", w.src, w.to)
	ok(t, err)
	t.Cleanup(func() { _ = near.Close() })
	ok(t, at.(*net.TCPListener).SetDeadline(time.Now().Add(transit)))
	far, err := at.Accept()
	ok(t, err)
	t.Cleanup(func() { _ = far.Close() })
	c := &stream{near: near, far: far}
	ok(t, c.goOn())
	return c
}

func (s *stream) local() netip.AddrPort { return addrPort(s.near.LocalAddr()) }
func (s *stream) seen() netip.AddrPort  { return addrPort(s.far.RemoteAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		at = a.AddrPort()
	case *net.UDPAddr:
		at = a.AddrPort()
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// goOn lets both ends speak, the far one first.
func (s *stream) goOn() error {
	return errors.Join(s.say(s.far, s.near), s.say(s.near, s.far))
}

// say sends something from one end of the connection to the other.
func (s *stream) say(from, to net.Conn) error {
	s.said++
	return relay(from, to, fmt.Sprintf("%v says something for the time %d\r\n", from.LocalAddr(), s.said))
}

// relay writes a text into one end of a connection and expects it at the other.
func relay(from, to net.Conn, text string) error {
	if _, err := io.WriteString(from, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if err := to.SetReadDeadline(time.Now().Add(transit)); err != nil {
		return err
	}
	if n, err := io.ReadFull(to, b); err != nil || string(b) != text {
		return fmt.Errorf("%q sent, %q arrived: %w", text, b[:n], err)
	}
	return nil
}

// endpoint is one end of a conversation in datagrams.
type endpoint interface {
	local() netip.AddrPort
	send(to netip.AddrPort, payload []byte) error
	// receive waits for the payload, whatever else comes before, and returns the
	// source of the datagram.
	receive(payload []byte) (netip.AddrPort, error)
}

// datagrams is a conversation in datagrams.
type datagrams struct {
	near, far endpoint
	to        netip.AddrPort // the far end, as the near end must see it
	seen      netip.AddrPort // the near end, as the far end saw it at first
	said      int
}

// toFar sends a datagram from the near end. The far end must see it come from
// where the first one came from.
func (d *datagrams) toFar(payload []byte) error {
	if err := d.near.send(d.to, payload); err != nil {
		return err
	}
	seen, err := d.far.receive(payload)
	if err != nil {
		return fmt.Errorf("to the far end: %w", err)
	}
	if !d.seen.IsValid() {
		d.seen = seen
	}
	if seen != d.seen {
		return fmt.Errorf("the far end sees %v, at first %v", seen, d.seen)
	}
	return nil
}

// toNear sends a datagram from the far end to the address that it has seen. The
// near end must see the address that it speaks to.
func (d *datagrams) toNear(payload []byte) error {
	if err := d.far.send(d.seen, payload); err != nil {
		return err
	}
	seen, err := d.near.receive(payload)
	if err != nil {
		return fmt.Errorf("to the near end: %w", err)
	}
	if seen != d.to {
		return fmt.Errorf("the near end sees %v, it speaks to %v", seen, d.to)
	}
	return nil
}

// payload returns something that nobody has said before.
func (d *datagrams) payload() []byte {
	d.said++
	return fmt.Appendf(nil, "%v to %v, number %d", d.near.local(), d.to, d.said)
}

// ask sends from the near end and answers, goOn lets the far end speak first.
func (d *datagrams) ask() error  { return errors.Join(d.toFar(d.payload()), d.toNear(d.payload())) }
func (d *datagrams) goOn() error { return errors.Join(d.toNear(d.payload()), d.toFar(d.payload())) }

// udpEndpoint is a socket of UDP or UDP-Lite.
type udpEndpoint struct{ *net.UDPConn }

// openUDP opens a socket of UDP or UDP-Lite; port 0 leaves the port to the kernel.
func openUDP(t testing.TB, n *lab.Node, proto uint8, at netip.AddrPort) udpEndpoint {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() error {
		domain, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(at.Port())})
		if at.Addr().Is4() {
			addr.(*unix.SockaddrInet4).Addr = at.Addr().As4()
		} else {
			domain, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
		if err != nil {
			return fmt.Errorf("a socket of protocol %d: %w", proto, err)
		}
		file := os.NewFile(uintptr(fd), "")
		defer file.Close() // FilePacketConn duplicates it
		if err := unix.Bind(fd, addr); err != nil {
			return err
		}
		p, err := net.FilePacketConn(file)
		if err != nil {
			return err
		}
		c = p.(*net.UDPConn)
		return nil
	})
	ok(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return udpEndpoint{c}
}

func (u udpEndpoint) local() netip.AddrPort { return addrPort(u.LocalAddr()) }

func (u udpEndpoint) send(to netip.AddrPort, payload []byte) error {
	_, err := u.WriteToUDPAddrPort(payload, to)
	return err
}

func (u udpEndpoint) receive(payload []byte) (netip.AddrPort, error) {
	if err := u.SetReadDeadline(time.Now().Add(transit)); err != nil {
		return netip.AddrPort{}, err
	}
	b := make([]byte, 2048)
	for {
		n, seen, err := u.ReadFromUDPAddrPort(b)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if string(b[:n]) == string(payload) {
			return netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()), nil
		}
	}
}

// openDatagrams opens a conversation in UDP or UDP-Lite.
func (s *places) openDatagrams(t testing.TB, w way, proto uint8) *datagrams {
	t.Helper()
	k := place{w.far, proto, w.at}
	if _, there := s.udp[k]; !there {
		s.udp[k] = openUDP(t, w.far, proto, w.at)
	}
	d := &datagrams{near: openUDP(t, w.near, proto, netip.AddrPortFrom(w.src, 0)), far: s.udp[k], to: w.to}
	ok(t, d.ask(), d.goOn())
	return d
}

// protocolNames are for messages.
var protocolNames = map[uint8]string{flow.TCP: "TCP", flow.UDP: "UDP", flow.UDPLite: "UDP-Lite", flow.SCTP: "SCTP"}

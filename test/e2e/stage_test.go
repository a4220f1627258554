package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// Ports of the server for connections that stand still in a stage.
const (
	portLastAck = 7001 // the last ACK does not arrive
	portSyn     = 7002 // no SYN arrives
	portSynAck  = 7003 // no SYN+ACK arrives
	portHalf    = 7004 // one side has closed
	portCookie  = 7005 // no COOKIE ACK was sent
)

// hold makes a host drop what matches, before its own tracking. release lets it
// through again.
func hold(t testing.TB, n *lab.Node, match string) (release func()) {
	t.Helper()
	name := fmt.Sprintf("hold_%d", firewalls.Add(1))
	nft(t, n, fmt.Sprintf("table inet %s { chain c { type filter hook prerouting priority raw; %s counter drop; }; }\n", name, match))
	return func() { t.Helper(); nft(t, n, "delete table inet "+name+"\n") }
}

// inState is for conversations whose originals must be in a state of TCP.
func inState(w way, state uint8) func(f *conntrack.Flow) string {
	return func(f *conntrack.Flow) string {
		if tcp := f.ProtoInfo.TCP; tcp == nil || tcp.State != state {
			return fmt.Sprintf("the state %s: %+v", tcpStates[state], tcp)
		}
		return w.untranslated(f)
	}
}

// stages are connections that are not simply established: opening, half closed,
// closed but for a last packet.
func stages(t testing.TB, p *lab.Pair, far *places, d *duo) []conversation {
	t.Helper()
	var all []conversation
	add := func(name string, w way, state uint8, goOn func() error) {
		all = append(all, conversation{name: name, lacks: inState(w, state), goOn: goOn, is: func(k tuple) bool {
			return k.proto == flow.TCP && k.src == w.src && k.dport == w.to.Port()
		}})
	}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, w := range ways(p, a)[:2] {
			to := func(port uint16) way {
				w := w
				w.to = netip.AddrPortFrom(a.Server, port)
				w.at = w.to
				return w
			}
			name := family(a) + ", " + w.name

			half := far.openStream(t, to(portHalf))
			ok(t, half.near.(*net.TCPConn).CloseWrite(), ended(half.far))
			add("half closed, "+name, to(portHalf), flow.TCPCloseWait, func() error {
				if err := half.say(half.far, half.near); err != nil {
					return err
				}
				if err := half.far.Close(); err != nil {
					return err
				}
				return ended(half.near)
			})

			last := far.openStream(t, to(portLastAck))
			ok(t, last.near.(*net.TCPConn).CloseWrite(), ended(last.far))
			release := hold(t, p.Server, fmt.Sprintf("tcp sport %d", last.seen().Port()))
			ok(t, last.far.(*net.TCPConn).CloseWrite(), ended(last.near))
			add("the last ACK is missing, "+name, to(portLastAck), flow.TCPTimeWait, func() error {
				if state := socketState(t, last.far); state != unix.BPF_TCP_LAST_ACK {
					return fmt.Errorf("the far end is in state %d of %d", state, unix.BPF_TCP_LAST_ACK)
				}
				release()
				waitFor(t, 3*time.Second, "the far end has closed", func() bool { return socketState(t, last.far) == unix.BPF_TCP_CLOSE })
				return nil
			})

			for _, o := range []struct {
				name  string
				port  uint16
				state uint8
				at    *lab.Node
				drop  string
			}{
				{"SYN", portSyn, flow.TCPSynSent, p.Server, fmt.Sprintf("saddr %s tcp dport", w.seen)},
				{"SYN+ACK", portSynAck, flow.TCPSynRecv, p.Client, fmt.Sprintf("daddr %s tcp sport", w.src)},
			} {
				w := to(o.port)
				l := far.listen(t, w.far, w.at)
				ip := map[bool]string{false: "ip", true: "ip6"}[a.Server.Is6()]
				release := hold(t, o.at, fmt.Sprintf("%s %s %d", ip, o.drop, o.port))
				dialed := dial(t, w)
				add("no "+o.name+" arrives, "+name, w, o.state, func() error {
					release()
					return openedThrough(d, w, l, dialed)
				})
			}
		}
	}
	// The kernel gives an unfinished association three seconds: these come last.
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for i, w := range ways(p, a)[:2] {
			w.to = netip.AddrPortFrom(a.Server, portCookie)
			w.at = w.to
			sc := associate(t, w, 40100, 0x01020300+uint32(i), 0x0a0b0c00+uint32(i))
			all = append(all, conversation{name: "no COOKIE ACK yet, " + family(a) + ", " + w.name,
				is: func(k tuple) bool { return k.proto == flow.SCTP && k.src == w.src && k.dport == portCookie },
				lacks: func(f *conntrack.Flow) string {
					if i := f.ProtoInfo.SCTP; i == nil || i.State != flow.SCTPCookieEchoed {
						return fmt.Sprintf("the state COOKIE_ECHOED: %+v", i)
					}
					return ""
				},
				goOn: func() error {
					if err := sc.establish(); err != nil {
						return err
					}
					return sc.goOn()
				},
				wrong: sc.wrong,
			})
		}
	}
	for _, c := range all {
		waitFor(t, transit, c.name+": the flow is there", func() bool {
			for k, f := range kernelFlows(t, d.kA, d.accept) {
				if c.is(k) {
					return c.lacks(&f) == ""
				}
			}
			return false
		})
	}
	return all
}

// ended waits for the end of what the other side sends.
func ended(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(transit)); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d octets instead of the end: %w", n, err)
	}
	return nil
}

// socketState returns the state of a TCP socket, as the socket sees it.
func socketState(t testing.TB, c net.Conn) uint8 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	ok(t, err)
	var state uint8
	ok(t, raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		ok(t, err)
		state = info.State
	}))
	return state
}

type dialResult struct {
	conn net.Conn
	err  error
}

// dial opens a connection that will take a while.
func dial(t testing.TB, w way) <-chan dialResult {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan dialResult, 1)
	go func() {
		c, err := w.near.Dial(ctx, "tcp", w.src, w.to)
		done <- dialResult{c, err}
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		if r := <-done; r.conn != nil {
			_ = r.conn.Close()
		}
	})
	return done
}

// openedThrough waits for the end of a dial, which must come through the
// translation that the second firewall has been told of, and lets both ends speak.
func openedThrough(d *duo, w way, at net.Listener, dialed <-chan dialResult) error {
	const retransmission = 5 * time.Second
	if err := at.(*net.TCPListener).SetDeadline(time.Now().Add(retransmission)); err != nil {
		return err
	}
	far, err := at.Accept()
	if err != nil {
		return err
	}
	defer far.Close()
	r := <-dialed
	if r.err != nil {
		return r.err
	}
	s := &stream{near: r.conn, far: far}
	defer s.near.Close()
	for k, f := range kernelFlows(d.t, d.kA, d.accept) {
		if k.proto == flow.TCP && k.src == w.src && k.dport == w.to.Port() {
			if reply := f.TupleReply; s.seen() != netip.AddrPortFrom(reply.IP.DestinationAddress, reply.Proto.DestinationPort) {
				return fmt.Errorf("the far end sees %v, the first kernel says %+v", s.seen(), reply)
			}
		}
	}
	return s.goOn()
}

package ctnetlink

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

var record = flag.Bool("record", false, "write the messages of TestTraffic to testdata/events.txt")

// firewallRules translates, marks, labels, puts into zones, attaches a helper and
// proxies SYNs, by port.
const firewallRules = `
table inet t {
	ct helper ftp { type "ftp" protocol tcp; }
	chain raw {
		type filter hook prerouting priority raw;
		udp dport 9001 ct zone set 5
		udp sport 9001 ct zone set 5
		udp dport 9002 ct original zone set 6
		udp dport 9003 ct reply zone set 7
		udp sport 9003 ct reply zone set 7
		tcp dport 8002 tcp flags syn notrack
	}
	chain pre {
		type filter hook prerouting priority filter;
		tcp dport 21 ct helper set "ftp"
		udp dport 9004 ct label set 37
		udp dport 9005 ct mark set 0x12345678
	}
	chain translate_dst {
		type nat hook prerouting priority dstnat;
		ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 198.51.100.2:8001
		ip6 daddr 2001:db8:1::1 udp dport 9000 dnat ip6 to [2001:db8:2::2]:9006
	}
	chain translate_src {
		type nat hook postrouting priority srcnat;
		ip daddr 198.51.100.2 tcp dport 8001 snat ip to 198.51.100.1:20000-20099
		ip daddr 198.51.100.2 ip protocol icmp snat ip to 198.51.100.1
	}
	chain forward {
		type filter hook forward priority filter;
		tcp dport 8002 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
		ct state invalid drop
	}
}
`

// firewall is a client, a firewall with firewallRules, and a server that echoes.
type firewall struct{ client, fw, server *testNS }

func newFirewall(t *testing.T) *firewall {
	needRoot(t)
	needCommand(t, "nft")
	n := &firewall{newNS(t, "client"), newNS(t, "fw"), newNS(t, "server")}
	connect(t, n.client, n.fw, "inside", []string{"192.0.2.2/24", "2001:db8:1::2/64"}, []string{"192.0.2.1/24", "2001:db8:1::1/64"})
	connect(t, n.server, n.fw, "outside", []string{"198.51.100.2/24", "2001:db8:2::2/64"}, []string{"198.51.100.1/24", "2001:db8:2::1/64"})
	n.client.defaultRoute("192.0.2.1", "2001:db8:1::1")
	n.server.defaultRoute("198.51.100.1", "2001:db8:2::1")
	for _, s := range []string{
		"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/netfilter/nf_conntrack_acct=1",
		"net/netfilter/nf_conntrack_timestamp=1", "net/netfilter/nf_conntrack_tcp_loose=0",
	} {
		name, value, _ := strings.Cut(s, "=")
		n.fw.sysctl(name, value)
	}
	n.fw.run(firewallRules, "nft", "-f", "-")
	for _, port := range []int{21, 8001, 8002} {
		n.echoTCP(t, port)
	}
	for port := 9000; port <= 9006; port++ {
		n.echoUDP(t, port)
	}
	return n
}

func (n *firewall) echoTCP(t *testing.T, port int) {
	var ln net.Listener
	n.server.do(func() (err error) { ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err })
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
}

func (n *firewall) echoUDP(t *testing.T, port int) {
	var pc net.PacketConn
	n.server.do(func() (err error) { pc, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); return err })
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			m, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:m], from)
		}
	}()
}

// exchange sends data to addr from the client, waits for the echo and closes.
func (n *firewall) exchange(t *testing.T, network, addr, data string) {
	t.Helper()
	var c net.Conn
	n.client.do(func() (err error) { c, err = net.DialTimeout(network, addr, 5*time.Second); return err })
	defer c.Close()
	echo(t, c, data)
}

func echo(t *testing.T, c net.Conn, data string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, data); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(data))); err != nil {
		t.Fatalf("%s %s: %v", c.RemoteAddr().Network(), c.RemoteAddr(), err)
	}
}

func (n *firewall) ping(t *testing.T, network, addr string, typ icmp.Type) {
	t.Helper()
	var c *icmp.PacketConn
	n.client.do(func() (err error) { c, err = icmp.ListenPacket(network, ""); return err })
	defer c.Close()
	m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: 0x1234, Seq: 1, Data: []byte("ping")}}
	b, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(addr)}); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, _, err := c.ReadFrom(make([]byte, 1500)); err != nil {
		t.Fatalf("ping %s: %v", addr, err)
	}
}

// ftpData opens a control connection, announces a port with the PORT command and
// lets the server connect to it, which is the flow that the helper expects.
func (n *firewall) ftpData(t *testing.T) {
	t.Helper()
	var control net.Conn
	var ln net.Listener
	n.client.do(func() (err error) {
		if control, err = net.DialTimeout("tcp", "198.51.100.2:21", 5*time.Second); err != nil {
			return err
		}
		ln, err = net.Listen("tcp", "192.0.2.2:51210")
		return err
	})
	defer control.Close()
	defer ln.Close()
	echo(t, control, "PORT 192,0,2,2,200,10\r\n")
	n.server.do(func() error {
		data, err := net.DialTimeout("tcp", "192.0.2.2:51210", 5*time.Second)
		if err == nil {
			data.Close()
		}
		return err
	})
}

// capture reads messages with mdlayher/netlink, beside the Listener under test.
type capture struct {
	conn *netlink.Conn
	done chan [][]byte
}

func newCapture(t *testing.T, ns *testNS) *capture {
	c := &capture{done: make(chan [][]byte)}
	var err error
	if c.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.fd(), Groups: 7}); err != nil {
		t.Fatal(err)
	}
	if err := c.conn.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	go func() {
		var msgs [][]byte
		for {
			ms, err := c.conn.Receive()
			if err != nil {
				c.done <- msgs
				return
			}
			for _, m := range ms {
				b, err := m.MarshalBinary()
				if err != nil {
					panic(err)
				}
				msgs = append(msgs, b)
			}
		}
	}()
	return c
}

// stop returns the messages that came until now.
func (c *capture) stop() [][]byte {
	c.conn.SetReadDeadline(time.Unix(0, 1))
	msgs := <-c.done
	c.conn.Close()
	return msgs
}

// crafted are flows that need a peer or protocol stack that is not there, so ctnetlink
// makes them.
func crafted() []flow.Flow {
	v4 := func(proto uint8, sport, dport uint16) flow.Tuple {
		return tuple(proto, "192.0.2.77", "198.51.100.77", sport, dport)
	}
	v6 := func(proto uint8, sport, dport uint16) flow.Tuple {
		return tuple(proto, "2001:db8:1::77", "2001:db8:2::77", sport, dport)
	}
	state := func(orig flow.Tuple, has flow.Attrs) flow.Flow {
		f := flow.Flow{Orig: orig, Has: has | flow.HasReply | flow.HasStatus | flow.HasTimeout,
			Status: flow.StatusConfirmed | flow.StatusSeenReply, Timeout: 600}
		f.Reply, _ = orig.Inverse()
		return f
	}
	sctp := state(v4(flow.SCTP, 7001, 7002), flow.HasSCTP|flow.HasSCTPVtags)
	sctp.SCTPState, sctp.SCTPVtag = flow.SCTPEstablished, [2]uint32{0x01020304, 0xfffefdfc}
	gre := state(v4(flow.GRE, 0x55, 0x66), 0)
	udplite := state(v6(flow.UDPLite, 7003, 7004), flow.HasMark)
	udplite.Mark = 0xdeadbeef
	esp := state(v6(50, 0, 0), 0)
	proxied := state(v4(flow.TCP, 7005, 7006), flow.HasTCP|flow.HasTCPFlags|flow.HasTCPWScale|
		flow.HasSeqAdjOrig|flow.HasSeqAdjRepl|flow.HasSynproxy|flow.HasHelper)
	proxied.TCPState = flow.TCPEstablished
	proxied.TCPFlags, proxied.TCPWScale = [2]uint8{3, 3}, [2]uint8{7, 9}
	proxied.SeqAdj = [2]flow.SeqAdj{{Pos: 0x80000001, Before: -5, After: -7}, {Pos: 3, Before: 1, After: 12}}
	proxied.Synproxy = flow.Synproxy{ISN: 0xf0000001, ITS: 2, TSOff: 3}
	proxied.Helper, _ = flow.MakeName("ftp")
	child := state(v4(flow.TCP, 7007, 7008), flow.HasMaster|flow.HasTCP)
	child.TCPState, child.Master = flow.TCPSynSent, proxied.Orig
	child.Status |= flow.StatusExpected
	zoned := state(v6(flow.TCP, 7009, 7010), flow.HasTCP)
	zoned.TCPState = flow.TCPTimeWait
	zoned.Orig.Zone, zoned.Reply.Zone = 65535, 65535
	return []flow.Flow{sctp, gre, udplite, esp, proxied, child, zoned}
}

func tuple(proto uint8, src, dst string, sport, dport uint16) flow.Tuple {
	t := flow.Tuple{Family: flow.IPv4, Proto: proto, SrcPort: sport, DstPort: dport}
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is6() {
		t.Family = flow.IPv6
	}
	copy(t.Src[:], s.AsSlice())
	copy(t.Dst[:], d.AsSlice())
	return t
}

// TestTraffic sends traffic of many kinds through a firewall. Every event must
// decode as ti-mo/conntrack decodes it, and the Listener must deliver exactly what
// another reader sees.
func TestTraffic(t *testing.T) {
	n := newFirewall(t)
	c := newCapture(t, n.fw)
	l := listen(t, n.fw, ListenConfig{BufferSize: 8 << 20})
	w := n.fw.writer()

	n.exchange(t, "tcp", "198.51.100.2:8001", "snat")
	n.exchange(t, "tcp", "192.0.2.1:8080", "dnat and snat")
	n.exchange(t, "tcp", "[2001:db8:2::2]:8001", "plain")
	n.exchange(t, "tcp", "198.51.100.2:8002", "synproxy")
	for port := 9000; port <= 9005; port++ {
		n.exchange(t, "udp", fmt.Sprintf("198.51.100.2:%d", port), "udp")
	}
	n.exchange(t, "udp", "[2001:db8:1::1]:9000", "dnat")
	n.ping(t, "ip4:icmp", "198.51.100.2", ipv4.ICMPTypeEcho)
	n.ping(t, "ip6:ipv6-icmp", "2001:db8:2::2", ipv6.ICMPTypeEchoRequest)
	n.ftpData(t)
	for _, f := range crafted() {
		mustDo(t, w, OpCreate, &f, CreateOptions{Labels: true})
		f.Has |= flow.HasLabels | flow.HasMark
		f.Labels, f.Mark = [16]byte{0: 0x81, 9: 0x10, 15: 0x80}, 0
		mustDo(t, w, OpUpdate, &f, CreateOptions{Labels: true})
	}
	// The rest of the TCP connections' closing, then the end of everything.
	time.Sleep(200 * time.Millisecond)
	dumped := rawDump(t, n.fw)
	for _, msg := range dumped {
		f := compareWithOracle(t, msg).Flow
		mustDo(t, w, OpDelete, &f, CreateOptions{GuardID: true})
	}
	time.Sleep(200 * time.Millisecond)
	events, overruns := l.stop()
	captured := c.stop()

	left := make(map[flow.Event]int)
	var seen flow.Attrs
	kinds := make(map[string]int)
	for _, msg := range captured {
		ev := compareWithOracle(t, msg)
		left[ev]++
		seen |= ev.Flow.Has
		kinds[fmt.Sprintf("%v/%d/%d", ev.Kind, ev.Flow.Orig.Family, ev.Flow.Orig.Proto)]++
		if ev.Kind == flow.EventDestroy && ev.Flow.Status&flow.StatusDying == 0 {
			t.Errorf("DESTROY without the dying bit: %+v", ev)
		}
		if age := time.Since(time.Unix(0, int64(ev.Flow.EventTime))); ev.Flow.Has&flow.HasEventTime != 0 && (age < 0 || age > time.Minute) {
			t.Errorf("event time is %v ago", age)
		}
	}
	for _, ev := range events {
		left[ev]--
	}
	for ev, d := range left {
		if d != 0 {
			t.Errorf("%+d of %+v missing in the listener", d, ev)
		}
	}
	if overruns != 0 {
		t.Errorf("%d overruns", overruns)
	}
	own := 0
	for _, ev := range events {
		if ev.PortID == w.PortID() {
			own++
		}
	}
	if want := 2*len(crafted()) + len(dumped); own != want {
		t.Errorf("%d events carry the writer's port id, want %d", own, want)
	}
	// Counters and use appear in dumps only, secctx needs an LSM.
	all := flow.HasEventTime<<1 - 1
	if missing := all &^ seen &^ (flow.HasSecctx | flow.HasUse); missing != 0 {
		t.Errorf("no event had attributes %b", missing)
	}
	var names []string
	for k, v := range kinds {
		names = append(names, fmt.Sprintf("%s:%d", k, v))
	}
	sort.Strings(names)
	t.Logf("%d events, %d dumped: %v", len(captured), len(dumped), names)
	if *record {
		recordMessages(t, append(captured, dumped...))
	}
}

func recordMessages(t *testing.T, msgs [][]byte) {
	var b strings.Builder
	b.WriteString("# Messages of a Linux 6.18 little-endian kernel, as TestTraffic -record saw them.\n")
	for _, msg := range msgs {
		var ev flow.Event
		if err := DecodeEvent(msg, &ev); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "# %v family %d proto %d attributes %x\n%s\n", ev.Kind, ev.Flow.Orig.Family, ev.Flow.Orig.Proto, ev.Flow.Has, hex.EncodeToString(msg))
	}
	if err := os.WriteFile("testdata/events.txt", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rawDump returns the messages of a dump.
func rawDump(t *testing.T, ns *testNS) (msgs [][]byte) {
	t.Helper()
	b := finish(appendHeader(nil, msgGet, unix.NLM_F_DUMP, dumpSeq, unix.AF_UNSPEC), 0)
	if err := query(t.Context(), ns.fd(), b, func(msg []byte) error {
		if native.Uint16(msg[4:]) == msgNew {
			msgs = append(msgs, append([]byte(nil), msg...))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return msgs
}

// mustDo carries out one request.
func mustDo(t testing.TB, w *Writer, op Op, f *flow.Flow, o CreateOptions) {
	t.Helper()
	if errno := do(t, w, op, f, o); errno != 0 {
		t.Fatalf("%v %+v: %v", op, f.Orig, errno)
	}
}

func do(t testing.TB, w *Writer, op Op, f *flow.Flow, o CreateOptions) (errno unix.Errno) {
	t.Helper()
	if _, err := w.Add(op, f, o); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(func(_ int, err unix.Errno) { errno = err }); err != nil {
		t.Fatal(err)
	}
	return errno
}

// listening is a Listener with a consumer that keeps everything.
type listening struct {
	*Listener
	cancel   context.CancelFunc
	done     chan error
	finished chan struct{}
	discard  bool // keep no events, in benchmarks
	events   []flow.Event
	expects  map[int]flow.Expect // by index of the event
	overruns int
	t        testing.TB
}

func listen(t testing.TB, ns *testNS, cfg ListenConfig) *listening {
	t.Helper()
	cfg.NetNS = ns.fd()
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := &listening{Listener: l, cancel: cancel, done: make(chan error, 1), finished: make(chan struct{}), t: t, expects: map[int]flow.Expect{}}
	_, s.discard = t.(*testing.B)
	free, full := make(chan *flow.Batch, 8), make(chan *flow.Batch, 8)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	go func() {
		s.done <- l.Run(ctx, free, full)
		close(full)
	}()
	go func() {
		defer close(s.finished)
		for b := range full {
			if !s.discard {
				for i := range b.N {
					if k := b.Events[i].Expect; k != 0 {
						s.expects[len(s.events)] = b.Expects[k-1]
					}
					s.events = append(s.events, b.Events[i])
				}
			}
			if b.Overrun {
				s.overruns++
			}
			free <- b
		}
	}()
	t.Cleanup(func() { s.cancel(); l.Close() })
	return s
}

// stop ends Run and returns what was received.
func (s *listening) stop() ([]flow.Event, int) {
	s.t.Helper()
	s.cancel()
	if err := <-s.done; err != nil {
		s.t.Errorf("run: %v", err)
	}
	<-s.finished
	return s.events, s.overruns
}

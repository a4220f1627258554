package channel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A packet is a datagram that a link has delivered.
type packet struct {
	data string
	from netip.AddrPort
}

// open opens a link in ns, and closes it at the end of the test.
func (ns *namespace) open(t testing.TB, cfg Config) *Link {
	t.Helper()
	var l *Link
	ns.do(t, func() (err error) {
		l, err = Open(cfg)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// openError returns the error of opening a link in ns.
func (ns *namespace) openError(t testing.TB, cfg Config) error {
	t.Helper()
	var openErr error
	ns.do(t, func() error {
		var l *Link
		if l, openErr = Open(cfg); openErr == nil {
			l.Close()
		}
		return nil
	})
	return openErr
}

// listen receives on l until it is closed.
func listen(t testing.TB, l *Link) <-chan packet {
	packets := make(chan packet, 4096)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := NewBatch(32, 2048)
		for {
			err := l.Receive(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			for i := range b.N {
				packets <- packet{string(b.Datagram(i)), b.From(i)}
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return packets
}

func next(t testing.TB, packets <-chan packet) packet {
	t.Helper()
	select {
	case p := <-packets:
		return p
	case <-time.After(5 * time.Second):
		t.Fatal("nothing received")
		return packet{}
	}
}

// eventually waits for a condition that another goroutine or the kernel brings.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not so: %s", what)
}

func datagrams(texts ...string) [][]byte {
	var ds [][]byte
	for _, text := range texts {
		ds = append(ds, []byte(text))
	}
	return ds
}

func send(t testing.TB, l *Link, texts ...string) {
	t.Helper()
	if n, err := l.Send(datagrams(texts...)); err != nil || n != len(texts) {
		t.Fatalf("sent %d of %d: %v; %+v", n, len(texts), err, l.Stats())
	}
}

// deliver sends text until it arrives. Around a change of an interface the kernel
// loses what waits for a neighbour's answer.
func deliver(t testing.TB, l *Link, packets <-chan packet, text string) {
	t.Helper()
	eventually(t, text+" is delivered", func() bool {
		if _, err := l.Send(datagrams(text)); err != nil {
			t.Fatal(err)
		}
		select {
		case p := <-packets:
			return p.data == text
		case <-time.After(10 * time.Millisecond):
			return false
		}
	})
}

// pairs are all kinds of links, for nodes 1 and 2 on the veth "sync".
var pairs = []struct {
	name   string
	config func(self, other int) Config
	from   string // where datagrams of node 1 come from
}{
	{"udp4", func(self, other int) Config {
		return Config{Type: UDP, Local: nodeAddr("192.0.2.%d", self), Peers: []netip.Addr{nodeAddr("192.0.2.%d", other)}}
	}, "192.0.2.1"},
	{"udp6", func(self, other int) Config {
		return Config{Type: UDP, Local: nodeAddr("2001:db8::%d", self), Peers: []netip.Addr{nodeAddr("2001:db8::%d", other)}}
	}, "2001:db8::1"},
	{"udp6-link-local", func(self, other int) Config {
		return Config{Type: UDP, Local: nodeAddr("fe80::%d", self), Peers: []netip.Addr{nodeAddr("fe80::%d", other)}}
	}, "fe80::1%sync"},
	{"multicast4", func(self, other int) Config {
		return Config{Type: Multicast, Local: nodeAddr("192.0.2.%d", self), Group: addr("239.255.0.50")}
	}, "192.0.2.1"},
	{"multicast6-link-scope", func(self, other int) Config {
		return Config{Type: Multicast, Local: nodeAddr("fe80::%d", self), Group: addr("ff12::50")}
	}, "fe80::1%sync"},
	{"multicast6-site-scope", func(self, other int) Config {
		return Config{Type: Multicast, Local: nodeAddr("2001:db8::%d", self), Group: addr("ff05::50"),
			Peers: []netip.Addr{nodeAddr("2001:db8::%d", other)}}
	}, "2001:db8::1"},
}

func nodeAddr(format string, n int) netip.Addr { return addr(fmt.Sprintf(format, n)) }

func onSync(cfg Config) Config {
	cfg.Interface, cfg.Port = "sync", 3780
	return cfg
}

func twoNodes(t testing.TB) (one, two *namespace) {
	t.Helper()
	one, two = newNamespace(t), newNamespace(t)
	addVeth(t, "sync", one, two)
	return one, two
}

func TestBothWays(t *testing.T) {
	one, two := twoNodes(t)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			l1, l2 := one.open(t, onSync(p.config(1, 2))), two.open(t, onSync(p.config(2, 1)))
			got1, got2 := listen(t, l1), listen(t, l2)
			if !l1.Up() || !l2.Up() {
				t.Error("a link is not up")
			}

			full := strings.Repeat("x", l1.MaxPayload())
			send(t, l1, "one", "", full)
			for _, want := range []string{"one", "", full} {
				got := next(t, got2)
				if got.data != want || got.from.Addr() != addr(p.from) {
					t.Fatalf("received %.20q from %v, want %.20q from %s", got.data, got.from, want, p.from)
				}
				if l1.cfg.Type == UDP && got.from.Port() != 3780 {
					t.Errorf("sent from port %d", got.from.Port())
				}
			}
			send(t, l2, "back")
			if got := next(t, got1); got.data != "back" {
				t.Fatalf("received %q", got.data)
			}

			s1, s2 := l1.Stats(), l2.Stats()
			if want := uint64(3 + len(full)); s1.SentDatagrams != 3 || s1.SentOctets != want ||
				s2.ReceivedDatagrams != 3 || s2.ReceivedOctets != want {
				t.Errorf("sent %+v, received %+v, want 3 datagrams of %d octets", s1, s2, want)
			}
			if s1.SendErrors != (SendErrors{}) || s1.Drops != (Drops{}) || s2.Drops != (Drops{}) {
				t.Errorf("errors: %+v, %+v", s1, s2)
			}

			t.Log("one octet more does not fit, and is not fragmented")
			n, err := l1.Send(datagrams(full+"x", "fits"))
			if n != 1 || !errors.Is(err, ErrTooLong) || l1.Stats().SendErrors.TooLong != 1 {
				t.Errorf("sent %d, %v, %+v", n, err, l1.Stats().SendErrors)
			}
			if got := next(t, got2); got.data != "fits" {
				t.Errorf("received %d octets", len(got.data))
			}
		})
	}
}

func TestMaxPayloadFollowsTheMTU(t *testing.T) {
	one, two := twoNodes(t)
	for _, p := range pairs {
		l1, l2 := one.open(t, onSync(p.config(1, 2))), two.open(t, onSync(p.config(2, 1)))
		got2 := listen(t, l2)
		headers := 28
		if addr(p.from).Is6() {
			headers = 48
		}
		if got := l1.MaxPayload(); got != 1500-headers {
			t.Errorf("%s: %d fit in 1500", p.name, got)
		}

		// Nobody has told the link: it finds out by the first datagram that is
		// refused.
		must(t, one.LinkSetMTU(one.link(t, "sync"), 1300))
		n, err := l1.Send(datagrams(strings.Repeat("x", 1500-headers)))
		if n != 0 || !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: sent %d, %v", p.name, n, err)
		}
		if got := l1.MaxPayload(); got != 1300-headers {
			t.Errorf("%s: %d fit in 1300", p.name, got)
		}
		send(t, l1, strings.Repeat("y", l1.MaxPayload()))
		if got := next(t, got2); len(got.data) != 1300-headers {
			t.Errorf("%s: received %d octets", p.name, len(got.data))
		}
		must(t, one.LinkSetMTU(one.link(t, "sync"), 1500))
		l1.SetUp(true, 1500)
		if got := l1.MaxPayload(); got != 1500-headers {
			t.Errorf("%s: %d fit in 1500 again", p.name, got)
		}
		l1.Close()
		l2.Close()
	}
}

// Between the nodes is a router whose other side takes less.
func TestMaxPayloadFollowsThePath(t *testing.T) {
	one, router, two := newNamespace(t), newNamespace(t), newNamespace(t)
	addVeth(t, "sync", one, router)
	addVeth(t, "far", router, two)
	far := router.link(t, "far")
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		a, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, router.AddrDel(far, a))
	}
	router.address(t, "far", "198.51.100.1/24")
	router.address(t, "far", "2001:db8:1::1/64")
	two.address(t, "far", "198.51.100.2/24")
	two.address(t, "far", "2001:db8:1::2/64")
	must(t, router.LinkSetMTU(far, 1300))
	router.do(t, func() error {
		for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
			if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	for _, tt := range []struct {
		local, gateway, peer string
		want                 int
	}{
		{"192.0.2.1", "192.0.2.2", "198.51.100.2", 1300 - 28},
		{"2001:db8::1", "2001:db8::2", "2001:db8:1::2", 1300 - 48},
	} {
		must(t, one.RouteAdd(&netlink.Route{
			Dst: netlink.NewIPNet(net.ParseIP(tt.peer)),
			Gw:  net.ParseIP(tt.gateway),
		}))
		one.do(t, func() error {
			l, err := Open(Config{Type: UDP, Interface: "sync", Port: 3780,
				Local: addr(tt.local), Peers: []netip.Addr{addr(tt.peer)}})
			if err != nil {
				return err
			}
			defer l.Close()
			// The first is lost on the way and brings the router's answer; a
			// later one is refused here.
			long := datagrams(strings.Repeat("x", l.MaxPayload()))
			eventually(t, "the path is known", func() bool {
				_, err := l.Send(long)
				return errors.Is(err, ErrTooLong)
			})
			l.SetUp(true, 1500) // no news
			if got := l.MaxPayload(); got != tt.want {
				t.Errorf("%s: %d fit, want %d", tt.peer, got, tt.want)
			}
			send(t, l, strings.Repeat("y", l.MaxPayload()))
			l.SetUp(false, 1500)
			if got := l.MaxPayload(); got <= tt.want {
				t.Errorf("%s: after a change of the link still only %d fit", tt.peer, got)
			}
			return nil
		})
	}
}

func TestSeveralPeers(t *testing.T) {
	one, two := twoNodes(t)
	two.address(t, "sync", "192.0.2.3/24")
	cfg := onSync(pairs[0].config(1, 2))
	cfg.Peers = append(cfg.Peers, addr("192.0.2.3"))
	l1 := one.open(t, cfg)
	l2, l3 := two.open(t, onSync(pairs[0].config(2, 1))), two.open(t, onSync(pairs[0].config(3, 1)))
	got2, got3 := listen(t, l2), listen(t, l3)
	var texts []string
	for i := range 3*sendBatch/2 + 1 { // more than two system calls, an odd number of copies in one
		texts = append(texts, fmt.Sprint(i))
	}
	send(t, l1, texts...)
	for _, want := range texts {
		if a, b := next(t, got2), next(t, got3); a.data != want || b.data != want {
			t.Fatalf("received %q and %q, want %q", a.data, b.data, want)
		}
	}
	if got := l1.Stats().SentDatagrams; got != uint64(2*len(texts)) {
		t.Errorf("sent %d copies", got)
	}
}

// sendFrom sends like another program: from an ephemeral port.
func (ns *namespace) sendFrom(t testing.TB, local string, to string, texts ...string) (from netip.AddrPort) {
	t.Helper()
	ns.do(t, func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(local), 0)),
			net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		if err != nil {
			return err
		}
		defer conn.Close()
		from = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, text := range texts {
			if _, err := conn.Write([]byte(text)); err != nil {
				return err
			}
		}
		return nil
	})
	return from
}

func TestSenders(t *testing.T) {
	one, two := twoNodes(t)
	two.address(t, "sync", "192.0.2.66/24")
	two.address(t, "sync", "2001:db8::66/64")
	for _, tt := range []struct {
		name, to      string
		config        Config
		peer, foreign string
	}{
		{"udp4", "192.0.2.1:3780", pairs[0].config(1, 2), "192.0.2.2", "192.0.2.66"},
		{"udp6", "[2001:db8::1]:3780", pairs[1].config(1, 2), "2001:db8::2", "2001:db8::66"},
		{"multicast6", "[ff05::50%sync]:3780", pairs[5].config(1, 2), "2001:db8::2", "2001:db8::66"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := one.open(t, onSync(tt.config))
			got := listen(t, l)
			two.sendFrom(t, tt.foreign, tt.to, "foreign", "foreign")
			from := two.sendFrom(t, tt.peer, tt.to, "hello")
			p := next(t, got)
			if p.data != "hello" || p.from.Port() != from.Port() || p.from.Addr() != addr(tt.peer) {
				t.Errorf("received %q from %v, want it from %v", p.data, p.from, from)
			}
			if s := l.Stats(); s.Drops != (Drops{Foreign: 2}) || s.ReceivedDatagrams != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("anyone in the group", func(t *testing.T) {
		l := one.open(t, onSync(pairs[4].config(1, 2)))
		got := listen(t, l)
		two.sendFrom(t, "fe80::2%sync", "[ff12::50%sync]:3780", "hello")
		if p := next(t, got); p.from.Addr() != addr("fe80::2%sync") {
			t.Errorf("received from %v", p.from)
		}
	})
	t.Run("too long for the batch", func(t *testing.T) {
		l := one.open(t, onSync(pairs[0].config(1, 2)))
		two.sendFrom(t, "192.0.2.2", "192.0.2.1:3780", strings.Repeat("x", 101), strings.Repeat("y", 100))
		b := NewBatch(4, 100)
		if err := l.Receive(b); err != nil {
			t.Fatal(err)
		}
		if b.N != 1 || !bytes.Equal(b.Datagram(0), bytes.Repeat([]byte("y"), 100)) || l.Stats().Drops.Truncated != 1 {
			t.Errorf("%d datagrams, %+v", b.N, l.Stats())
		}
	})
}

// What is sent to the port but not to the group must not get through, nor what is
// sent to another group that someone on this host has joined.
func TestMulticastHearsItsGroupOnly(t *testing.T) {
	one, two := twoNodes(t)
	for _, tt := range []struct {
		cfg                           Config
		network, unicast, other, peer string
		group                         string
	}{
		{pairs[3].config(1, 2), "udp4", "192.0.2.1:3780", "239.255.0.51:3780", "192.0.2.2", "239.255.0.50:3780"},
		{pairs[4].config(1, 2), "udp6", "[fe80::1%sync]:3780", "[ff12::51%sync]:3780", "fe80::2%sync", "[ff12::50%sync]:3780"},
	} {
		l := one.open(t, onSync(tt.cfg))
		got := listen(t, l)
		one.do(t, func() error {
			ifi, err := net.InterfaceByName("sync")
			if err != nil {
				return err
			}
			conn, err := net.ListenMulticastUDP(tt.network, ifi, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tt.other)))
			if err == nil {
				t.Cleanup(func() { conn.Close() })
			}
			return err
		})
		two.sendFrom(t, tt.peer, tt.unicast, "unicast")
		two.sendFrom(t, tt.peer, tt.other, "other group")
		two.sendFrom(t, tt.peer, tt.group, "group")
		if p := next(t, got); p.data != "group" {
			t.Errorf("received %q", p.data)
		}
		if s := l.Stats(); s.ReceivedDatagrams != 1 || s.Drops != (Drops{}) {
			t.Errorf("%+v", s)
		}
	}
}

// An address of the host is reachable by all of its interfaces, the link by one.
func TestOtherInterfaceIsNotHeard(t *testing.T) {
	one, two := twoNodes(t)
	addVeth(t, "other", one, two)
	cfg := onSync(pairs[0].config(1, 2))
	l := one.open(t, cfg)
	got := listen(t, l)
	two.do(t, func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2)}, Control: controlDevice("other")}
		conn, err := d.Dial("udp", "192.0.2.1:3780")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("wrong door"))
		return err
	})
	two.sendFrom(t, "192.0.2.2", "192.0.2.1:3780", "right door")
	if p := next(t, got); p.data != "right door" {
		t.Errorf("received %q", p.data)
	}
}

// The sending socket does not loop; a program that does is told by its address.
func TestOwnDatagrams(t *testing.T) {
	one, two := twoNodes(t)
	l1, l2 := one.open(t, onSync(pairs[3].config(1, 2))), two.open(t, onSync(pairs[3].config(2, 1)))
	got1, got2 := listen(t, l1), listen(t, l2)
	send(t, l1, "mine")
	if p := next(t, got2); p.data != "mine" {
		t.Errorf("received %q", p.data)
	}
	one.do(t, func() error {
		// Looping is the default for other programs.
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}, Control: controlDevice("sync")}
		conn, err := d.Dial("udp", "239.255.0.50:3780")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("mine, looped"))
		return err
	})
	send(t, l2, "yours")
	if p := next(t, got1); p.data != "yours" {
		t.Errorf("received %q", p.data)
	}
	if s := l1.Stats(); s.Drops != (Drops{Own: 1}) {
		t.Errorf("%+v", s.Drops)
	}
}

func TestKernelDropsAreCounted(t *testing.T) {
	one, two := twoNodes(t)
	cfg := onSync(pairs[0].config(1, 2))
	cfg.RecvBuffer = 1
	l1, l2 := one.open(t, cfg), two.open(t, onSync(pairs[0].config(2, 1)))
	if recv, _ := l1.Buffers(); recv <= 0 || recv > 16384 {
		t.Errorf("a buffer of %d octets for 1", recv)
	}
	const flood = 500
	for range flood {
		send(t, l2, strings.Repeat("x", 1000))
	}
	// Without a reader every datagram is in the buffer or dropped.
	eventually(t, "drops", func() bool { return l1.Stats().Drops.Kernel > flood/2 })
	listen(t, l1)
	eventually(t, "every datagram is accounted for", func() bool {
		s := l1.Stats()
		return s.ReceivedDatagrams+s.Drops.Kernel == flood
	})
	dropped := l1.Stats().Drops.Kernel
	one.do(t, l1.Reopen)
	if got := l1.Stats().Drops.Kernel; got != dropped {
		t.Errorf("%d drops after reopening, %d before", got, dropped)
	}
}

func TestTTL(t *testing.T) {
	one, _ := twoNodes(t)
	for _, tt := range []struct{ pair, level, option int }{
		{3, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL},
		{4, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS},
	} {
		for asked, want := range map[int]int{0: 1, 3: 3} {
			cfg := onSync(pairs[tt.pair].config(1, 2))
			cfg.TTL = asked
			l := one.open(t, cfg)
			must(t, l.current.Load().send.control(func(fd int) error {
				got, err := unix.GetsockoptInt(fd, tt.level, tt.option)
				if got != want {
					t.Errorf("%s: TTL %d for %d", pairs[tt.pair].name, got, asked)
				}
				return err
			}))
		}
	}
}

// Datagrams that wait for a neighbour who does not answer fill the send buffer.
func TestFullBufferDoesNotBlock(t *testing.T) {
	one, _ := twoNodes(t)
	cfg := onSync(pairs[0].config(1, 99))
	cfg.SendBuffer = 1
	l := one.open(t, cfg)
	ds := make([][]byte, 1000)
	for i := range ds {
		ds[i] = make([]byte, 1000)
	}
	start := time.Now()
	sent, err := l.Send(ds)
	if took := time.Since(start); took > time.Second {
		t.Errorf("a full buffer has held the caller for %v", took)
	}
	if full := l.Stats().SendErrors.Full; err != nil || full == 0 || uint64(sent)+full != 1000 {
		t.Errorf("sent %d, %v, %d found the buffer full", sent, err, full)
	}
}

// Every method but Receive and Send may be called from anywhere at any time.
func TestConcurrentUse(t *testing.T) {
	l, other := loopback(t, 1), loopback(t, 2)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	loop := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Microsecond): // others want the processor too
					f()
				}
			}
		})
	}
	loop(func() { l.Send(datagrams("a", "b")) })
	loop(func() { other.Send(datagrams("c", "d")) })
	loop(func() {
		l.SetUp(true, 1400)
		l.Stats()
		l.Buffers()
		l.Index()
		l.Up()
	})
	b := NewBatch(8, 100)
	for range 50 {
		must(t, l.Receive(b))
		must(t, l.Reopen())
	}
	wg.Go(func() {
		for l.Receive(b) == nil {
		}
	})
	must(t, l.Close())
	close(stop)
	wg.Wait()
}

func TestBuffers(t *testing.T) {
	one, _ := twoNodes(t)
	for _, p := range []int{0, 3} {
		l := one.open(t, onSync(pairs[p].config(1, 2)))
		// The kernel doubles; beyond rmem_max only the FORCE options go.
		if recv, send := l.Buffers(); recv != 8<<20 || send != 8<<20 {
			t.Errorf("%s: buffers %d and %d", pairs[p].name, recv, send)
		}
		l.Close()
		if recv, send := l.Buffers(); recv != 0 || send != 0 {
			t.Errorf("%s: buffers %d and %d after Close", pairs[p].name, recv, send)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	one, two := twoNodes(t)
	udp := func() Config { return onSync(pairs[0].config(1, 2)) }
	one.open(t, udp())
	for _, tt := range []struct {
		want string
		is   error
		edit func(*Config)
	}{
		{"link sync: bind to 192.0.2.1:3780: address already in use", unix.EADDRINUSE, func(*Config) {}},
		{"link eth9: interface eth9: no such interface", ErrNoInterface, func(c *Config) { c.Interface = "eth9" }},
		{"link backup: interface eth9: no such", ErrNoInterface, func(c *Config) { c.Name, c.Interface = "backup", "eth9" }},
		{"link sync: local address 192.0.2.9: address is not on", ErrNoAddress, func(c *Config) { c.Local = addr("192.0.2.9") }},
		{"link sync: peer 2001:db8::2 is not of the family", nil, func(c *Config) { c.Peers[0] = addr("2001:db8::2") }},
		{"link lo: no local address given and lo has no", ErrNoAddress, func(c *Config) {
			*c = Config{Type: Multicast, Interface: "lo", Group: addr("ff12::50"), Port: 3780}
		}},
	} {
		cfg := udp()
		tt.edit(&cfg)
		err := one.openError(t, cfg)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("error %q, want %q", err, tt.want)
		}
	}
	t.Log("another program that would share the port, as conntrackd does")
	two.do(t, func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
		}}
		conn, err := lc.ListenPacket(t.Context(), "udp4", "192.0.2.2:3780")
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err
	})
	if err := two.openError(t, onSync(pairs[0].config(2, 1))); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
}

// For a second or two after the interface has come up its IPv6 addresses are only
// tentative. A daemon that starts then must not fail.
func TestTentativeAddress(t *testing.T) {
	one, _ := twoNodes(t)
	one.do(t, func() error {
		// Ten probes, one a second.
		for name, value := range map[string]string{"accept_dad": "1", "dad_transmits": "10"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/sync/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	a, err := netlink.ParseAddr("2001:db8::77/64")
	must(t, err)
	must(t, one.AddrAdd(one.link(t, "sync"), a))
	l := one.open(t, onSync(pairs[1].config(77, 2)))
	if l.Local() != addr("2001:db8::77") {
		t.Errorf("local address %v", l.Local())
	}
	addrs, err := one.AddrList(one.link(t, "sync"), netlink.FAMILY_V6)
	must(t, err)
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.Equal(l.Local().AsSlice()) && a.Flags&unix.IFA_F_TENTATIVE != 0
	}) {
		t.Error("the address was not tentative: the test has tested nothing")
	}
}

func TestChosenLinkLocalAddress(t *testing.T) {
	one, _ := twoNodes(t)
	l := one.open(t, onSync(Config{Type: Multicast, Group: addr("ff12::50")}))
	if got := l.Local(); !got.IsLinkLocalUnicast() || got.Zone() != "sync" {
		t.Errorf("local address %v", got)
	}
}

func TestSwitchWhenTheLinkGoesDown(t *testing.T) {
	one, two := twoNodes(t)
	addVeth(t, "sync2", one, two)
	open := func(ns *namespace, self, other int) []*Link {
		first := onSync(Config{Type: UDP, Local: nodeAddr("fe80::%d", self), Peers: []netip.Addr{nodeAddr("fe80::%d", other)}})
		second := first
		second.Interface = "sync2"
		return []*Link{ns.open(t, first), ns.open(t, second)}
	}
	here, there := open(one, 1, 2), open(two, 2, 1)
	got1, got2 := listen(t, there[0]), listen(t, there[1])

	c := New(1, here)
	mustSend := func(text string) {
		t.Helper()
		if n, err := c.Send(datagrams(text)); n != 1 || err != nil {
			t.Fatalf("sent %d, %v; %+v", n, err, here[c.Active()].Stats())
		}
	}
	mustSend("by the first")
	if p := next(t, got1); p.data != "by the first" {
		t.Errorf("received %q", p.data)
	}

	// The far end is unplugged: this end is still up, without a carrier.
	must(t, two.LinkSetDown(two.link(t, "sync")))
	eventually(t, "no carrier", func() bool { return one.link(t, "sync").Attrs().RawFlags&unix.IFF_RUNNING == 0 })
	here[0].SetUp(false, 1500)
	sw, ok := c.Update(2)
	if !ok || sw != (Switch{From: 0, To: 1, Reason: LinkDown}) || c.Active() != 1 {
		t.Fatalf("switch %+v, %v", sw, ok)
	}
	mustSend("by the second")
	if p := next(t, got2); p.data != "by the second" {
		t.Errorf("received %q", p.data)
	}
}

// An interface that goes down and up again keeps its index: the sockets last.
func TestDownAndUp(t *testing.T) {
	one, two := twoNodes(t)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			l1, l2 := one.open(t, onSync(p.config(1, 2))), two.open(t, onSync(p.config(2, 1)))
			got1, got2 := listen(t, l1), listen(t, l2)
			must(t, one.LinkSetDown(one.link(t, "sync")))
			if n, err := l1.Send(datagrams("into the void")); n != 0 || err != nil {
				t.Errorf("sent %d, %v", n, err)
			}
			// IPv6 addresses do not survive it.
			for _, a := range []string{"2001:db8::1/64", "fe80::1/64"} {
				one.address(t, "sync", a)
			}
			must(t, one.LinkSetUp(one.link(t, "sync")))
			one.ready(t, "sync", 1)
			two.ready(t, "sync", 2)
			deliver(t, l1, got2, "after")
			deliver(t, l2, got1, "after")
		})
	}
}

func TestReopen(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			one, two := twoNodes(t)
			l1, l2 := one.open(t, onSync(p.config(1, 2))), two.open(t, onSync(p.config(2, 1)))
			got1, got2 := listen(t, l1), listen(t, l2)
			send(t, l1, "before")
			next(t, got2)
			index := l1.Index()

			must(t, one.LinkDel(one.link(t, "sync")))
			if n, err := l1.Send(datagrams("into the void")); n != 0 || err != nil || l1.Stats().SendErrors.Unreachable != 1 {
				t.Errorf("sent %d, %v, %+v", n, err, l1.Stats().SendErrors)
			}
			for _, l := range []*Link{l1, l2} {
				ns := one
				if l == l2 {
					ns = two
				}
				var err error
				ns.do(t, func() error { err = l.Reopen(); return nil })
				if !errors.Is(err, ErrNoInterface) || l.Up() || l.Index() != 0 {
					t.Errorf("reopened without an interface: %v, up %v, index %d", err, l.Up(), l.Index())
				}
			}
			if l1.SetUp(true, 1500); l1.Up() {
				t.Error("a link without sockets is up")
			}
			down := l1.Stats().SendErrors.Down
			if n, err := l1.Send(datagrams("nowhere")); n != 0 || err != nil {
				t.Errorf("sent %d without sockets, %v", n, err)
			}
			if got := l1.Stats().SendErrors.Down; got != down+1 {
				t.Errorf("%d more counted as down", got-down)
			}

			addVeth(t, "sync", one, two)
			one.do(t, l1.Reopen)
			two.do(t, l2.Reopen)
			if !l1.Up() || l1.Index() == index || l1.Index() == 0 {
				t.Errorf("up %v, index %d, %d before", l1.Up(), l1.Index(), index)
			}
			deliver(t, l1, got2, "after")
			deliver(t, l2, got1, "after")
			if s := l1.Stats(); s.SentDatagrams < 2 {
				t.Errorf("the counters began anew: %+v", s)
			}
		})
	}
}

func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 10 {
		l := loopback(t, 1)
		done := make(chan error)
		go func() { done <- l.Receive(NewBatch(1, 100)) }()
		runtime.Gosched()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive ended with %v", err)
		}
		if _, err := l.Send(datagrams("late")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
		if err := l.Receive(NewBatch(1, 100)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive after Close: %v", err)
		}
		if err := l.Reopen(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Reopen after Close: %v", err)
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close after Close: %v", err)
		}
	}
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

package e2e

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"syncd/internal/seal"
)

// record is a datagram that was seen on the link.
type record struct {
	src     netip.Addr
	payload []byte
}

// recorder keeps the sealed datagrams that pass the port of one node.
type recorder struct {
	mu  sync.Mutex
	all []record
}

// of returns what one node has sent so far.
func (r *recorder) of(src netip.Addr) (payloads [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.all {
		if rec.src == src {
			payloads = append(payloads, rec.payload)
		}
	}
	return payloads
}

// tap records what passes the switch's port of node n1, of IPv4, both ways.
func (c *cluster) tap() *recorder {
	c.t.Helper()
	fd := -1
	ok(c.t, c.bridge.Node().Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // network byte order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		first, err := net.InterfaceByName("port0")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: first.Index})
	}))
	ok(c.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	r := &recorder{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			const headers = 20 + 8
			if err != nil || n <= headers || b[0] != 0x45 || b[9] != unix.IPPROTO_UDP ||
				binary.BigEndian.Uint16(b[22:]) != port || string(b[headers:headers+4]) != "SYNC" {
				continue
			}
			r.mu.Lock()
			r.all = append(r.all, record{netip.AddrFrom4([4]byte(b[12:16])), slices.Clone(b[headers:n])})
			r.mu.Unlock()
		}
	})
	c.t.Cleanup(func() {
		close(stop)
		wg.Wait()
		unix.Close(fd)
	})
	return r
}

// forger sends datagrams with the source address of somebody else.
type forger struct {
	t    testing.TB
	conn *ipv4.RawConn
}

func (c *cluster) forger(host string, number int) *forger {
	c.t.Helper()
	n := c.host(host, number)
	var f *forger
	ok(c.t, n.Do(func() error {
		p, err := net.ListenPacket("ip4:udp", "0.0.0.0")
		if err != nil {
			return err
		}
		r, err := ipv4.NewRawConn(p)
		f = &forger{c.t, r}
		return err
	}))
	c.t.Cleanup(func() { f.conn.Close() })
	return f
}

// send sends one datagram from src's port of the dialect to dst's.
func (f *forger) send(src, dst netip.Addr, payload []byte) {
	udp := make([]byte, 8, 8+len(payload)) // no checksum: IPv4 allows that
	binary.BigEndian.PutUint16(udp[0:], port)
	binary.BigEndian.PutUint16(udp[2:], port)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	h := &ipv4.Header{Version: 4, Len: 20, TotalLen: 20 + len(udp), TTL: 64, Protocol: unix.IPPROTO_UDP,
		Src: src.AsSlice(), Dst: dst.AsSlice()}
	if err := f.conn.WriteTo(h, udp, nil); err != nil {
		f.t.Errorf("forge: %v", err)
	}
}

// latency changes flows of n1, one after the other, until stop is closed, and
// measures how long each takes to get to n2.
func (c *cluster) latency(first int, stop <-chan struct{}) (took []time.Duration, err error) {
	for n := first; ; n++ {
		select {
		case <-stop:
			return took, nil
		case <-time.After(20 * time.Millisecond):
		}
		f := numbered(n)
		k := kernelTuple(&f)
		begin := time.Now()
		if err := c.kernels[0].Create(f); err != nil {
			return took, err
		}
		for !has(c.fws[1], k) {
			if time.Since(begin) > 5*time.Second {
				return took, fmt.Errorf("flow %d has not arrived after 5 s", n)
			}
			time.Sleep(time.Millisecond)
		}
		took = append(took, time.Since(begin))
		if err := c.kernels[0].Delete(f); err != nil {
			return took, err
		}
	}
}

// under runs an attack while changes go on, and checks that they do, that the
// nodes stay in step, and that neither talks much about it.
func (c *cluster) under(name string, attack func()) {
	c.t.Helper()
	t := c.t
	lines := make([]int, len(c.fws))
	for i, f := range c.fws {
		lines[i] = strings.Count(f.Log(), "\n")
	}
	differed := c.fws[0].Stats().Sync.DigestsDiffered + c.fws[1].Stats().Sync.DigestsDiffered
	stop := make(chan struct{})
	var took []time.Duration
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { took, err = c.latency(50000, stop) })
	begin := time.Now()
	attack()
	lasted := time.Since(begin)
	time.Sleep(max(0, time.Second-lasted)) // some changes after it, too
	close(stop)
	wg.Wait()
	if err != nil || len(took) == 0 {
		t.Fatalf("%s: %d changes arrived: %v", name, len(took), err)
	}
	slices.Sort(took)
	median, longest := took[len(took)/2], took[len(took)-1]
	t.Logf("%s, for %v: a change takes median %v, longest %v, asking included", name, lasted.Round(time.Millisecond), median.Round(10*time.Microsecond), longest.Round(10*time.Microsecond))
	if median > 200*time.Millisecond && !raceEnabled {
		t.Errorf("%s: half of the changes took longer than %v", name, median)
	}
	for i, f := range c.fws {
		if n := strings.Count(f.Log(), "\n") - lines[i]; n > 20 {
			t.Errorf("%s: %d lines of log on %s:\n%s", name, n, f.node.Name(), tail(f.Log(), 5))
		}
		if s := f.Status(); !s.InSync || len(s.Peers) != 1 {
			t.Errorf("%s: right afterwards %s says: %v, peers %+v", name, f.node.Name(), s.Problems, s.Peers)
		}
	}
	if n := c.fws[0].Stats().Sync.DigestsDiffered + c.fws[1].Stats().Sync.DigestsDiffered - differed; n != 0 {
		t.Errorf("%s: %d digests differed", name, n)
	}
	c.equal(3*time.Second, name)
}

// grew fails the test if a counter of refused datagrams has not grown by that much.
func (c *cluster) grew(before map[string]uint64, i int, least uint64, reasons ...string) {
	c.t.Helper()
	now := c.fws[i].Stats().Sync.Refused
	grown := map[string]uint64{}
	var sum uint64
	for why, n := range now {
		if n > before[why] {
			grown[why] = n - before[why]
		}
		if slices.Contains(reasons, why) {
			sum += n - before[why]
		}
	}
	c.t.Logf("refused by %s: %v", c.fws[i].node.Name(), grown)
	if sum < least {
		c.t.Errorf("%s refused %v, want at least %d as one of %v", c.fws[i].node.Name(), grown, least, reasons)
	}
}

// Somebody on the link who can record, invent, change and repeat datagrams, with
// the address of whom he likes, but has no key, changes nothing.
func TestAttack(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, udp4, "peer_dead_after = \"4s\"")
	tape := c.tap()
	f := c.forger("evil", 9)
	c.start(0)
	c.start(1)
	a, b := linkAddr(udp4, 0, 1), linkAddr(udp4, 0, 2)
	create(t, c.kernels[0], 0, 1000)
	create(t, c.kernels[1], 20000, 20500)
	c.equal(5*time.Second, "before")
	c.inStep(5 * time.Second)
	destroy(t, c.kernels[0], 0, 300) // what was recorded of these must not come back
	for n := 300; n < 400; n++ {
		u := numbered(n)
		u.Mark = 77
		ok(t, c.kernels[0].Update(u))
	}
	c.equal(5*time.Second, "before")
	refused := func(i int) map[string]uint64 { return c.fws[i].Stats().Sync.Refused }

	before := refused(1)
	c.under("a flood of garbage", func() {
		p := make([]byte, 1400)
		for n := range 60_000 {
			rand.Read(p[:64])
			f.send(a, b, p[:n%len(p)])
		}
	})
	c.grew(before, 1, 30_000, "short", "magic")

	// With a header that looks right: sessions that nobody has, as many as there
	// are, with the key id of the real ones.
	one := tape.of(a)[0]
	before = refused(1)
	c.under("a flood of invented sessions", func() {
		p := append(slices.Clone(one[:24]), make([]byte, 200)...)
		for range 60_000 {
			rand.Read(p[8:40])
			f.send(a, b, p)
		}
	})
	c.grew(before, 1, 10_000, "flood", "forged")

	recorded := tape.of(a)
	before = refused(1)
	c.under("recorded ones, changed", func() {
		for n := range 20_000 {
			p := slices.Clone(recorded[n%len(recorded)])
			switch n % 4 {
			case 0: // a bit of the content, with a counter to come
				p[len(p)-1-n%20] ^= 1 << (n % 8)
				binary.BigEndian.PutUint64(p[16:], uint64(1_000_000+n))
			case 1: // cut short
				p = p[:len(p)*(n%97)/97]
				if len(p) > 24 {
					binary.BigEndian.PutUint64(p[16:], uint64(1_000_000+n))
				}
			case 2: // a counter far ahead, which must not move the window
				binary.BigEndian.PutUint64(p[16:], 1<<63+uint64(n))
			case 3: // another version
				p[4+n/4%2] = 9
			}
			f.send(a, b, p)
		}
	})
	c.grew(before, 1, 5_000, "forged")
	c.grew(before, 1, 500, "version")
	c.grew(before, 1, 500, "suite")

	before = refused(1)
	c.under("recorded ones, again", func() {
		for range max(1, 20_000/len(recorded)) {
			for _, p := range recorded {
				f.send(a, b, p)
			}
		}
	})
	c.grew(before, 1, uint64(len(recorded)/2), "replayed", "old")

	before = refused(0)
	c.under("one's own, reflected", func() {
		for n := range 20_000 {
			f.send(b, a, recorded[n%len(recorded)])
		}
	})
	c.grew(before, 0, 5_000, "reflected")

	other, err := seal.New(seal.NewSession(), []seal.Key{seal.NewKey()})
	ok(t, err)
	before = refused(1)
	c.under("sealed with another key", func() {
		for range 20_000 {
			f.send(a, b, other.Seal(nil, []byte{0x1b, 1, 0, 8, 0, 0, 0, 1}))
		}
	})
	c.grew(before, 1, 5_000, "key")

	before = refused(1)
	c.under("plain messages of conntrackd", func() {
		for n := range 20_000 {
			// A deletion, a request for everything, and a greeting.
			p := [][]byte{{0x12, 0, 0, 16, 0, 0, 0, byte(n), 2, 0, 0, 0, 0, 0, 0, 0}, {0x16, 1, 0, 8, 0, 0, 0, byte(n)}, {0x16, 0x21, 0, 8, 0, 0, 0, byte(n)}}[n%3]
			f.send(a, b, p)
		}
	})
	c.grew(before, 1, 5_000, "short", "magic")

	// With his own address nothing of it is even looked at.
	drops := c.fws[1].Stats().Links[0].Drops["foreign sender"]
	c.under("with his own address", func() {
		for n := range 20_000 {
			f.send(linkAddr(udp4, 0, 9), b, recorded[n%len(recorded)])
		}
	})
	if n := c.fws[1].Stats().Links[0].Drops["foreign sender"] - drops; n < 5_000 {
		t.Errorf("%d datagrams of a foreign sender were dropped", n)
	}
	c.inStep(5 * time.Second)
	c.verified()
	for _, f := range c.fws {
		calm(t, f.Log())
	}
}

// What was recorded of an earlier life of a node does nothing after its restart,
// nor after the restart of the other one, nor of both.
func TestReplayOfEarlierLife(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, udp4, "")
	tape := c.tap()
	f := c.forger("evil", 9)
	c.start(0)
	c.start(1)
	a, b := linkAddr(udp4, 0, 1), linkAddr(udp4, 0, 2)
	create(t, c.kernels[0], 0, 1000)
	create(t, c.kernels[1], 20000, 20500)
	c.equal(5*time.Second, "before")
	c.inStep(5 * time.Second)
	destroy(t, c.kernels[0], 0, 500)
	destroy(t, c.kernels[1], 20000, 20300)
	c.equal(5*time.Second, "before")

	play := func(what string) {
		t.Helper()
		toB, toA := tape.of(a), tape.of(b)
		if len(toA) == 0 || len(toB) == 0 {
			t.Fatal("nothing was recorded")
		}
		old := []map[string]uint64{c.fws[0].Stats().Sync.Refused, c.fws[1].Stats().Sync.Refused}
		c.under(what, func() {
			for range 3 {
				for _, p := range toB {
					f.send(a, b, p)
				}
				for _, p := range toA {
					f.send(b, a, p)
				}
				time.Sleep(300 * time.Millisecond)
			}
		})
		for i := range c.fws {
			c.grew(old[i], i, 1, "replayed", "old", "reflected", "flood")
		}
		begin := time.Now()
		c.verified()
		// Nobody waits for the proof of a life that is over.
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("%s: verify on both nodes took %v", what, took)
		}
	}
	c.fws[1].Kill()
	c.start(1)
	c.equal(5*time.Second, "after a restart of n2")
	c.inStep(5 * time.Second)
	play("records of n2's earlier life")
	c.fws[0].Stop()
	c.start(0)
	says(t, c.fws[0].Log(), "loaded what peers had sent")
	c.equal(5*time.Second, "after a restart of n1")
	c.inStep(5 * time.Second)
	play("records of earlier lives of both")

	// To a node that has just started and has no peer: nothing is believed.
	toA := tape.of(b)
	c.fws[1].Stop()
	c.fws[0].Kill()
	c.start(0)
	for range 3 {
		for _, p := range toA {
			f.send(b, a, p)
		}
		time.Sleep(200 * time.Millisecond)
	}
	s := c.fws[0].Status()
	t.Logf("alone with records of n2: peers %+v, %v", s.Peers, s.Problems)
	if s.External.Entries != 0 || s.InSync {
		t.Errorf("alone with records of n2: %d entries, in sync %v", s.External.Entries, s.InSync)
	}
	c.start(1)
	c.equal(5*time.Second, "the real n2 is back")
	c.inStep(10 * time.Second)
	c.verified()
}

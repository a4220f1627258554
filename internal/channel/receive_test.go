package channel

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"syncd/internal/monotime"
)

// nameOf and textOf look into a message header as the kernel does.
func nameOf(h *unix.Msghdr) unsafe.Pointer { return unsafe.Pointer(h.Name) }

func textOf(h *unix.Msghdr) string { return unsafe.String(h.Iov.Base, h.Iov.Len) }

// arrive puts a datagram in the next slot of b, as the kernel would.
func arrive(b *Batch, from string, index uint32, flags int32) {
	slot := b.used
	b.used++
	h := &b.hdrs[slot]
	h.Len = uint32(copy(b.buf[slot*b.size:][:b.size], from))
	h.Hdr.Flags = flags
	ctrl := b.ctrl[slot*controlSize:][:controlSize]
	clear(ctrl)
	cmsg := (*unix.Cmsghdr)(unsafe.Pointer(&ctrl[0]))
	data := ctrl[unix.CmsgLen(0):]
	a := addr(from)
	b.names[slot].set(a, int(index), 1234)
	if a.Is4() {
		cmsg.Level, cmsg.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		cmsg.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		binary.NativeEndian.PutUint32(data, index)
		h.Hdr.SetControllen(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		return
	}
	cmsg.Level, cmsg.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	cmsg.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	binary.NativeEndian.PutUint32(data[16:], index)
	h.Hdr.SetControllen(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
}

func testReceiver(own string, peers ...string) (*receiver, *counters) {
	l := &Link{cfg: Config{Interface: "eth2"}}
	for _, p := range peers {
		l.cfg.Peers = append(l.cfg.Peers, addr(p))
	}
	r := new(receiver)
	r.init(l, &sockets{index: 7, local: addr(own)})
	return r, &l.counters
}

func TestFilter(t *testing.T) {
	b := NewBatch(8, 100)
	r, c := testReceiver("fe80::1%eth2", "fe80::2%eth2", "2001:db8::2")
	b.reset()
	arrive(b, "2001:db8::9", 7, 0)              // foreign
	arrive(b, "fe80::2", 7, 0)                  // kept
	arrive(b, "fe80::2", 8, 0)                  // wrong interface
	arrive(b, "fe80::1", 7, 0)                  // own
	arrive(b, "2001:db8::2", 7, 0)              // kept
	arrive(b, "2001:db8::2", 7, unix.MSG_TRUNC) // truncated
	arrive(b, "fe80::2", 0, 0)                  // unknown interface
	arrive(b, "192.0.2.2", 7, 0)                // foreign: cannot happen on this socket
	r.filter(b)
	if b.N != 2 ||
		string(b.Datagram(0)) != "fe80::2" || b.From(0) != netip.MustParseAddrPort("[fe80::2%eth2]:1234") ||
		string(b.Datagram(1)) != "2001:db8::2" || b.From(1) != netip.MustParseAddrPort("[2001:db8::2]:1234") {
		t.Errorf("%d datagrams from %v", b.N, b.origin[:b.N])
	}
	if f, w, o, tr := c.foreign.Load(), c.wrongInterface.Load(), c.own.Load(), c.truncated.Load(); f != 2 || w != 2 || o != 1 || tr != 1 {
		t.Errorf("foreign %d, wrong interface %d, own %d, truncated %d", f, w, o, tr)
	}
	if got := c.receivedOctets.Load(); got != uint64(len("fe80::2")+len("2001:db8::2")) {
		t.Errorf("%d octets", got)
	}

	t.Log("a family that is none, to a group where anyone may speak")
	r, c = testReceiver("192.0.2.1")
	b.reset()
	arrive(b, "192.0.2.2", 7, 0)
	b.names[0].Family = unix.AF_UNIX
	arrive(b, "192.0.2.3", 7, 0)
	r.filter(b)
	if b.N != 1 || b.From(0) != netip.MustParseAddrPort("192.0.2.3:1234") || c.foreign.Load() != 1 {
		t.Errorf("%d datagrams, %d foreign", b.N, c.foreign.Load())
	}
}

func FuzzArrivalIndex(f *testing.F) {
	b := NewBatch(2, 100)
	b.reset()
	arrive(b, "192.0.2.1", 7, 0)
	arrive(b, "2001:db8::1", 7, 0)
	for slot := range 2 {
		f.Add(b.ctrl[slot*controlSize:][:b.hdrs[slot].Hdr.Controllen])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, ctrl []byte) { arrivalIndex(ctrl) })
}

// exchange sends ds from one link to the other and receives them all.
func exchange(t testing.TB, from, to *Link, ds [][]byte, b *Batch) {
	if n, err := from.Send(ds); n != len(ds) || err != nil {
		t.Fatalf("sent %d: %v", n, err)
	}
	for received := 0; received < len(ds); received += b.N {
		if err := to.Receive(b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	l1, l2 := loopback(t, 1), loopback(t, 2)
	ds := make([][]byte, 32)
	for i := range ds {
		ds[i] = make([]byte, 1400)
	}
	b := NewBatch(32, 2048)
	if n := testing.AllocsPerRun(100, func() { exchange(t, l1, l2, ds, b) }); n != 0 {
		t.Errorf("%v allocations for 32 datagrams out and in", n)
	}

	t.Log("link-local senders that are not known beforehand")
	r, _ := testReceiver("fe80::1%eth2")
	if n := testing.AllocsPerRun(100, func() {
		b.reset()
		arriveLinkLocal(b)
		r.filter(b)
	}); n != 0 || b.N != 1 || b.From(0).Addr() != addr("fe80::2%eth2") {
		t.Errorf("%v allocations, %d datagrams", n, b.N)
	}
}

var linkLocal = NewBatch(1, 100)

func init() {
	linkLocal.reset()
	arrive(linkLocal, "fe80::2", 7, 0)
}

// arriveLinkLocal is arrive without its allocations.
func arriveLinkLocal(b *Batch) {
	copy(b.ctrl, linkLocal.ctrl)
	b.names[0], b.used = linkLocal.names[0], 1
	b.hdrs[0].Len, b.hdrs[0].Hdr.Controllen = linkLocal.hdrs[0].Len, linkLocal.hdrs[0].Hdr.Controllen
}

func BenchmarkLoopback32(b *testing.B) {
	l1, l2 := loopback(b, 1), loopback(b, 2)
	ds := make([][]byte, 32)
	for i := range ds {
		ds[i] = make([]byte, 1400)
	}
	batch := NewBatch(32, 2048)
	b.SetBytes(32 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		exchange(b, l1, l2, ds, batch)
	}
}

// Datagrams that follow each other closely are received together, so that there are
// far fewer wake-ups than datagrams.
func TestReceiveGathers(t *testing.T) {
	l1, l2 := loopback(t, 1), loopback(t, 2)
	const datagrams = 3000
	go func() {
		one := [][]byte{make([]byte, 100)}
		for range datagrams {
			l1.Send(one)
			for begin := monotime.Now(); monotime.Now().Sub(begin) < 50*time.Microsecond; {
			}
		}
	}()
	b := NewBatch(64, 2048)
	receives := 0
	for received := 0; received < datagrams; received += b.N {
		if err := l2.Receive(b); err != nil {
			t.Fatal(err)
		}
		receives++
	}
	t.Logf("%d datagrams in %d receives", datagrams, receives)
	if receives > datagrams/3 {
		t.Errorf("%d datagrams came in %d receives", datagrams, receives)
	}
}

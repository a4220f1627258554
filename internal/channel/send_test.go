package channel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// loopbackPort differs between test processes that run at the same time, and is
// below the ephemeral ports.
var loopbackPort = uint16(20000 + os.Getpid()%10000)

// loopback opens node 1, 2 ... on the loopback interface, with the other one of 1
// and 2 as its peer. It needs no privilege.
func loopback(t testing.TB, node int) *Link {
	t.Helper()
	return loopbackTo(t, node, 3-node)
}

func loopbackTo(t testing.TB, node int, others ...int) *Link {
	t.Helper()
	var peers []netip.Addr
	for _, other := range others {
		peers = append(peers, nodeAddr("127.0.0.%d", other))
	}
	l, err := Open(Config{Type: UDP, Interface: "lo", Local: nodeAddr("127.0.0.%d", node), Peers: peers, Port: loopbackPort})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// A step is what the faked kernel does with one sendmmsg.
type step struct {
	take  int // datagrams, unless errno
	errno unix.Errno
}

const all = 1 << 20 // take whatever is there

// fake replaces the system call: it follows the steps, then takes everything.
// taken gets the text of each copy that was taken.
func fake(l *Link, taken *[]string, steps ...step) (calls *int) {
	calls = new(int)
	l.sendmmsg = func(_ int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
		s := step{take: all}
		if *calls < len(steps) {
			s = steps[*calls]
		}
		*calls++
		if s.errno != 0 {
			return 0, s.errno
		}
		n := min(s.take, len(hdrs))
		for i := range hdrs[:n] {
			hdrs[i].Len = uint32(hdrs[i].Hdr.Iov.Len)
			peer, port := (*rawAddr)(nameOf(&hdrs[i].Hdr)).get()
			if port != loopbackPort {
				panic(fmt.Sprint("port ", port))
			}
			*taken = append(*taken, fmt.Sprintf("%s>%d", textOf(&hdrs[i].Hdr), peer.As4()[3]))
		}
		return n, 0
	}
	return calls
}

func TestPartialSends(t *testing.T) {
	again := step{errno: unix.EAGAIN}
	for _, tt := range []struct {
		name  string
		steps []step
		sent  int
		taken string
		waits int
		errs  SendErrors
	}{
		{"at once", nil, 3, "[a>2 a>3 b>2 b>3 c>2 c>3]", 0, SendErrors{}},
		{"one by one", []step{{1, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}}, 3, "[a>2 a>3 b>2 b>3 c>2 c>3]", 0, SendErrors{}},
		{"interrupted", []step{{2, 0}, {0, unix.EINTR}}, 3, "[a>2 a>3 b>2 b>3 c>2 c>3]", 0, SendErrors{}},
		{"waited for room", []step{{3, 0}, again, again}, 3, "[a>2 a>3 b>2 b>3 c>2 c>3]", 2, SendErrors{}},
		{"no room for long", []step{{3, 0}, again, again, again, again, again}, 1, "[a>2 a>3 b>2]", maxWaits, SendErrors{Full: 3}},
		{"first refused", []step{{0, unix.ENOBUFS}}, 2, "[a>3 b>2 b>3 c>2 c>3]", 0, SendErrors{NoBuffer: 1}},
		{"middle refused", []step{{3, 0}, {0, unix.ENETUNREACH}}, 2, "[a>2 a>3 b>2 c>2 c>3]", 0, SendErrors{Unreachable: 1}},
		{"last refused", []step{{5, 0}, {0, unix.ECONNREFUSED}}, 2, "[a>2 a>3 b>2 b>3 c>2]", 0, SendErrors{Refused: 1}},
		{"a kernel that does nothing", []step{{0, 0}}, 2, "[a>3 b>2 b>3 c>2 c>3]", 0, SendErrors{Other: 1}},
	} {
		l := loopbackTo(t, 1, 2, 3)
		var taken []string
		fake(l, &taken, tt.steps...)
		waits := 0
		l.writable = func(int) { waits++ }
		sent, _ := l.Send(datagrams("a", "b", "c"))
		if got := fmt.Sprint(taken); sent != tt.sent || got != tt.taken || waits != tt.waits {
			t.Errorf("%s: sent %d %s with %d waits, want %d %s with %d", tt.name, sent, got, waits, tt.sent, tt.taken, tt.waits)
		}
		s := l.Stats()
		if s.SendErrors != tt.errs || s.SentDatagrams != uint64(len(taken)) || s.SentOctets != uint64(len(taken)) {
			t.Errorf("%s: %+v", tt.name, s)
		}
		l.Close()
	}
}

func TestSendErrnos(t *testing.T) {
	for _, tt := range []struct {
		errno    unix.Errno
		want     SendErrors
		reported bool
	}{
		{unix.ENOBUFS, SendErrors{NoBuffer: 1}, false},
		{unix.ENOMEM, SendErrors{NoBuffer: 1}, false},
		{unix.ENETUNREACH, SendErrors{Unreachable: 1}, false},
		{unix.EHOSTUNREACH, SendErrors{Unreachable: 1}, false},
		{unix.ENETDOWN, SendErrors{Down: 1}, false},
		{unix.ENODEV, SendErrors{Down: 1}, false},
		{unix.ENXIO, SendErrors{Down: 1}, false},
		{unix.ECONNREFUSED, SendErrors{Refused: 1}, false},
		{unix.EMSGSIZE, SendErrors{TooLong: 1}, true},
		{unix.EPERM, SendErrors{Denied: 1}, true},
		{unix.EACCES, SendErrors{Denied: 1}, true},
		{unix.EINVAL, SendErrors{Other: 1}, true},
	} {
		l := loopback(t, 1)
		var taken []string
		fake(l, &taken, step{errno: tt.errno})
		sent, err := l.Send(datagrams("a", "b"))
		if sent != 1 || len(taken) != 1 || (err != nil) != tt.reported {
			t.Errorf("%v: sent %d, %v", tt.errno, sent, err)
		}
		if tt.reported && tt.errno != unix.EMSGSIZE && !errors.Is(err, tt.errno) {
			t.Errorf("%v: error %v", tt.errno, err)
		}
		if got := l.Stats().SendErrors; got != tt.want {
			t.Errorf("%v: %+v", tt.errno, got)
		}
		l.Close()
	}
}

// The first error is the one that is reported; all are counted.
func TestFirstErrorIsReported(t *testing.T) {
	l := loopback(t, 1)
	var taken []string
	fake(l, &taken, step{errno: unix.ENOBUFS}, step{errno: unix.EPERM}, step{errno: unix.EINVAL})
	sent, err := l.Send(datagrams("a", "b", "c", "d"))
	if sent != 1 || !errors.Is(err, unix.EPERM) {
		t.Errorf("sent %d, %v", sent, err)
	}
	if got := l.Stats().SendErrors; got != (SendErrors{NoBuffer: 1, Denied: 1, Other: 1}) {
		t.Errorf("%+v", got)
	}
}

func TestSystemCallsCarryMany(t *testing.T) {
	l := loopback(t, 1)
	var taken []string
	calls := fake(l, &taken)
	if sent, err := l.Send(make([][]byte, 2*sendBatch+1)); sent != 2*sendBatch+1 || err != nil {
		t.Errorf("sent %d, %v", sent, err)
	}
	if *calls != 3 {
		t.Errorf("%d system calls for %d datagrams", *calls, 2*sendBatch+1)
	}
	if sent, err := l.Send(nil); sent != 0 || err != nil || *calls != 3 {
		t.Errorf("nothing: sent %d, %v, %d calls", sent, err, *calls)
	}
}

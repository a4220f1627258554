package tap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// Tap sees the packets that come to the network namespace in which it was opened.
type Tap struct {
	fds [2]int // of IPv4 and IPv6
	at  int    // whose turn it is
	in  [snap]byte
}

// snap is how much of a packet is looked at, in octets: the longest IPv4 header and the
// ports behind it.
const snap = 64

// ErrNoCapability says that CAP_NET_RAW is missing.
var ErrNoCapability = errors.New("CAP_NET_RAW is missing")

// Open opens a tap on all interfaces. It sees what comes, not what this host sends.
func Open() (*Tap, error) {
	t := &Tap{fds: [2]int{-1, -1}}
	for i, proto := range [...]uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		// A socket for one protocol gets what comes; ETH_P_ALL would get what leaves, too.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(bigEndian(proto)))
		if errors.Is(err, unix.EPERM) {
			err = ErrNoCapability
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("packet socket: %w", err), t.Close())
		}
		t.fds[i] = fd
	}
	return t, nil
}

// bigEndian is htons(3).
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Read stores the tuples of packets that have come since the last call and returns how
// many. It looks at as many packets as dst has room for, whatever they are. It does not
// wait, and allocates nothing. Many packets of one flow are many tuples.
func (t *Tap) Read(dst []flow.Tuple) (n int, err error) {
	t.at = 1 - t.at // neither family keeps the other waiting
	for looks, idle := 0, 0; looks < len(dst) && idle < len(t.fds); {
		m, err := unix.Read(t.fds[t.at], t.in[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			t.at = 1 - t.at
			idle++
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // an interface has gone down, the others go on
		case err != nil:
			return n, fmt.Errorf("packet socket: %w", err)
		case decode(t.in[:m], &dst[n]):
			n++
		}
		looks++
		idle = 0
	}
	return n, nil
}

// Close closes the sockets.
func (t *Tap) Close() error {
	var errs []error
	for i, fd := range t.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
		t.fds[i] = -1
	}
	return errors.Join(errs...)
}

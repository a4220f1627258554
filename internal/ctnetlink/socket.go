package ctnetlink

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoCapability is returned when the kernel refuses conntrack access.
var ErrNoCapability = errors.New("CAP_NET_ADMIN is missing: conntrack can only be reached with it in the user namespace of the network namespace")

// dial opens a netfilter socket in the network namespace of descriptor netNS, or
// in that of the calling thread if netNS is 0.
func dial(netNS int) (*netlink.Conn, syscall.RawConn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netNS})
	if err != nil {
		return nil, nil, fmt.Errorf("open netfilter socket: %w", capability(err))
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return conn, raw, nil
}

// capability adds ErrNoCapability to an error that comes from a lack of it.
func capability(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (%w)", ErrNoCapability, err)
	}
	return err
}

// setReadBuffer asks for size octets and returns what the kernel made of it:
// without CAP_NET_ADMIN in the initial user namespace net.core.rmem_max is the limit.
func setReadBuffer(conn *netlink.Conn, size int) (int, error) {
	if size > 0 {
		// The kernel doubles what it is given.
		if err := conn.SetReadBuffer(size / 2); err != nil {
			return 0, fmt.Errorf("set receive buffer: %w", err)
		}
	}
	n, err := conn.ReadBuffer()
	if err != nil {
		return 0, fmt.Errorf("read receive buffer size: %w", err)
	}
	return n, nil
}

// rxVector is a set of receive slots for recvmmsg, one datagram each. It must not
// be copied: the headers point into it.
type rxVector struct {
	slots   int
	slotLen int
	buf     []byte
	iovs    []unix.Iovec
	hdrs    []unix.Mmsghdr
}

func newRxVector(slots, slotLen int) *rxVector {
	v := &rxVector{
		slots: slots, slotLen: slotLen,
		buf:  make([]byte, slots*slotLen),
		iovs: make([]unix.Iovec, slots),
		hdrs: make([]unix.Mmsghdr, slots),
	}
	for i := range v.iovs {
		v.iovs[i].Base = &v.buf[i*slotLen]
		v.iovs[i].SetLen(slotLen)
		v.hdrs[i].Hdr.Iov = &v.iovs[i]
		v.hdrs[i].Hdr.SetIovlen(1)
	}
	return v
}

// recv fills as many slots as there are datagrams, without waiting. It returns
// EAGAIN when there are none.
//
// It is a raw system call, of which the runtime is not told: it ends in some
// microseconds, and telling would wake the runtime's monitor, whose looking around
// costs more.
func (v *rxVector) recv(fd uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd,
			uintptr(unsafe.Pointer(&v.hdrs[0])), uintptr(v.slots), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

// datagram returns slot i as the last recv left it, valid until the next recv. A
// datagram that was longer than the slot comes cut and fails to decode.
func (v *rxVector) datagram(i int) []byte {
	n := min(int(v.hdrs[i].Len), v.slotLen)
	return v.buf[i*v.slotLen:][:n:n]
}

// message splits the first netlink message off a datagram; ok is false when
// there is none or its length is wrong.
func message(b []byte) (msg, rest []byte, ok bool) {
	if len(b) < nlHeaderLen {
		return nil, nil, false
	}
	n := native.Uint32(b)
	if n < nlHeaderLen || uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	if end := (int(n) + 3) &^ 3; end < len(b) {
		rest = b[end:]
	}
	return b[:n], rest, true
}

// messageErrno reads the error number that NLMSG_ERROR and NLMSG_DONE start
// with; 0 means success.
func messageErrno(msg []byte) (syscall.Errno, bool) {
	if len(msg) < nlHeaderLen+4 {
		return 0, false
	}
	return syscall.Errno(-int32(native.Uint32(msg[nlHeaderLen:]))), true
}

// inNetNS runs fn on a thread in the network namespace of descriptor netNS, or on the
// calling thread if netNS is 0.
func inNetNS(netNS int, fn func() error) error {
	if netNS == 0 {
		return fn()
	}
	errc := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so that no other
		// goroutine ever runs in the foreign namespace.
		runtime.LockOSThread()
		if err := unix.Setns(netNS, unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		errc <- fn()
	}()
	return <-errc
}

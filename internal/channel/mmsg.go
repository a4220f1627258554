package channel

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A rawAddr holds a socket address of either family as the kernel writes and
// reads it. The IPv6 form is the larger one.
type rawAddr unix.RawSockaddrInet6

// set makes a the address and port, with the interface as the scope. The kernel
// looks at the scope of link-local addresses only. It returns the length.
func (a *rawAddr) set(addr netip.Addr, index int, port uint16) uint32 {
	if addr.Is4() {
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		*a4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(port), Addr: addr.As4()}
		return unix.SizeofSockaddrInet4
	}
	*a = rawAddr{Family: unix.AF_INET6, Port: networkOrder(port), Addr: addr.As16(), Scope_id: uint32(index)}
	return unix.SizeofSockaddrInet6
}

// get returns the address, without a zone, and the port. The address is the zero
// Addr if the family is neither IPv4 nor IPv6.
func (a *rawAddr) get() (netip.Addr, uint16) {
	switch a.Family {
	case unix.AF_INET:
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrFrom4(a4.Addr), networkOrder(a4.Port)
	case unix.AF_INET6:
		return netip.AddrFrom16(a.Addr), networkOrder(a.Port)
	}
	return netip.Addr{}, 0
}

// octets returns a as message headers want it.
func (a *rawAddr) octets() *byte { return (*byte)(unsafe.Pointer(a)) }

// networkOrder converts a port between the host's and the network's octet order.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// sockaddr is the same address in the form that the unix package wants.
func sockaddr(addr netip.Addr, index int, port uint16) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), ZoneId: uint32(index), Addr: addr.As16()}
}

// Both calls below do not wait and end in some microseconds, so they are raw: the
// runtime is not told, since telling it would wake its monitor, whose looking around
// costs more.

// sendmmsg sends hdrs, which must not be empty, and returns how many the kernel
// took. An error stands for the first one; if a later one fails the kernel just
// stops before it.
func sendmmsg(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// recvmmsg receives into hdrs, which must not be empty, what is there.
func recvmmsg(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

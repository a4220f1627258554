package channel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"syncd/internal/gate"
)

// sockets are the open sockets of a link on one interface, with the state of
// reading and writing them. They are replaced as a whole by Reopen.
type sockets struct {
	index int        // of the interface
	local netip.Addr // source of what is sent; with a zone if link-local

	// What the kernel said when they were opened.
	up                     bool
	mtu                    int
	recvBuffer, sendBuffer int

	// recv receives and send sends. A UDP link has one socket for both, so that
	// its datagrams come from the port that peers send to.
	recv, send *socket

	receiver receiver
	sender   sender
}

// A socket is a non-blocking datagram socket. It is not in the runtime's poller,
// which would wake a thread for each datagram; who receives waits at its gate.
type socket struct {
	fd   int
	gate *gate.Gate

	mu     sync.RWMutex // held for reading while the descriptor is in use
	closed bool
}

// openSockets opens the sockets of l, on the interface that has the configured
// name now.
func (l *Link) openSockets() (*sockets, error) {
	s := new(sockets)
	if err := s.open(&l.cfg); err != nil {
		s.close()
		return nil, err
	}
	s.receiver.init(l, s)
	s.sender.init(l, s)
	return s, nil
}

func (s *sockets) open(cfg *Config) error {
	fd, err := newSocket(cfg)
	if err != nil {
		return err
	}
	if s.recv, err = newGated(fd); err != nil {
		return err
	}
	if err := s.readInterface(fd, cfg.Interface); err != nil {
		return err
	}
	if err := s.findLocal(cfg); err != nil {
		return err
	}

	// The device comes before the address: a port is in use or not for each
	// device.
	if err := bindToDevice(fd, cfg.Interface); err != nil {
		return err
	}
	if cfg.Type == UDP {
		err = s.openUDP(fd, cfg)
	} else {
		err = s.openMulticast(fd, cfg)
	}
	if err != nil {
		return err
	}
	if s.recvBuffer, err = setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, cfg.RecvBuffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	return s.send.control(func(fd int) error {
		if s.sendBuffer, err = setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, cfg.SendBuffer); err != nil {
			return fmt.Errorf("set send buffer: %w", err)
		}
		return nil
	})
}

// openUDP makes fd the only socket of a unicast link.
func (s *sockets) openUDP(fd int, cfg *Config) error {
	if err := set(fd, append(receiveOptions(cfg), sendOptions(cfg)...)); err != nil {
		return err
	}
	if err := bind(fd, s.local, s.index, cfg.Port); err != nil {
		return err
	}
	s.send = s.recv
	return nil
}

// openMulticast makes fd the receiving socket of a multicast link, and opens the
// sending one.
func (s *sockets) openMulticast(fd int, cfg *Config) error {
	// Others on this host may listen to the group too.
	reuse := option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"}
	if err := set(fd, append(receiveOptions(cfg), reuse)); err != nil {
		return err
	}
	// Bound to the group itself, the socket hears neither unicast nor any other
	// group that someone on this host has joined.
	if err := bind(fd, cfg.Group, s.index, cfg.Port); err != nil {
		return err
	}
	if err := s.join(fd, cfg.Group); err != nil {
		return fmt.Errorf("join group %v on %s: %w", cfg.Group, cfg.Interface, err)
	}

	out, err := newSocket(cfg)
	if err != nil {
		return err
	}
	s.send = &socket{fd: out}
	if err := bindToDevice(out, cfg.Interface); err != nil {
		return err
	}
	// Nobody reads this socket: let what is sent to its port cost little memory.
	mute := option{unix.SOL_SOCKET, unix.SO_RCVBUF, 0, "SO_RCVBUF"}
	if err := set(out, append(sendOptions(cfg), mute)); err != nil {
		return err
	}
	if cfg.is4() {
		err = unix.SetsockoptIPMreqn(out, unix.IPPROTO_IP, unix.IP_MULTICAST_IF,
			&unix.IPMreqn{Address: s.local.As4(), Ifindex: int32(s.index)})
	} else {
		err = unix.SetsockoptInt(out, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, s.index)
	}
	if err != nil {
		return fmt.Errorf("send multicast by %s: %w", cfg.Interface, err)
	}
	return bind(out, s.local, s.index, 0)
}

// join joins the group on the interface, by index for both families: by address
// the kernel might choose another interface.
func (s *sockets) join(fd int, group netip.Addr) error {
	if group.Is4() {
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(s.index)})
	}
	return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
		&unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(s.index)})
}

// readInterface reads index, state and MTU through fd, that is in the namespace
// of the socket.
func (s *sockets) readInterface(fd int, name string) error {
	ifr, err := ioctl(fd, unix.SIOCGIFINDEX, name)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("interface %s: %w", name, ErrNoInterface)
	}
	if err != nil {
		return fmt.Errorf("read index of %s: %w", name, err)
	}
	s.index = int(ifr.Uint32())
	if ifr, err = ioctl(fd, unix.SIOCGIFFLAGS, name); err != nil {
		return fmt.Errorf("read state of %s: %w", name, err)
	}
	const carrier = unix.IFF_UP | unix.IFF_RUNNING
	s.up = ifr.Uint16()&carrier == carrier
	if s.mtu, err = readMTU(fd, name); err != nil {
		return fmt.Errorf("read MTU of %s: %w", name, err)
	}
	return nil
}

// readMTU returns the MTU of the interface in octets.
func readMTU(fd int, name string) (int, error) {
	ifr, err := ioctl(fd, unix.SIOCGIFMTU, name)
	if err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

func ioctl(fd int, request uint, name string) (*unix.Ifreq, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	return ifr, unix.IoctlIfreq(fd, request, ifr)
}

// findLocal checks that the local address is one of this host, or chooses the
// link-local one of the interface.
func (s *sockets) findLocal(cfg *Config) error {
	ifi, err := net.InterfaceByIndex(s.index)
	if err != nil {
		return fmt.Errorf("interface %s: %w", cfg.Interface, ErrNoInterface)
	}
	here, err := ifi.Addrs()
	if err != nil {
		return fmt.Errorf("read addresses of %s: %w", cfg.Interface, err)
	}
	if !cfg.Local.IsValid() {
		for _, a := range here {
			if addr := addrOf(a); addr.Is6() && addr.IsLinkLocalUnicast() {
				s.local = addr.WithZone(cfg.Interface)
				return nil
			}
		}
		return fmt.Errorf("no local address given and %s has no IPv6 link-local address: %w", cfg.Interface, ErrNoAddress)
	}

	s.local = cfg.Local
	if cfg.Local.Zone() == "" {
		// An address of another interface does: hosts answer for all of theirs.
		if here, err = net.InterfaceAddrs(); err != nil {
			return fmt.Errorf("read addresses: %w", err)
		}
	}
	for _, a := range here {
		if ipnet, ok := a.(*net.IPNet); ok && ipnet.IP.IsLoopback() && ipnet.Contains(cfg.Local.AsSlice()) {
			return nil // all of 127.0.0.0/8 is local
		}
		if addrOf(a) == cfg.Local.WithZone("") {
			return nil
		}
	}
	return fmt.Errorf("local address %v: %w", cfg.Local, ErrNoAddress)
}

func addrOf(a net.Addr) netip.Addr {
	if ipnet, ok := a.(*net.IPNet); ok {
		addr, _ := netip.AddrFromSlice(ipnet.IP)
		return addr.Unmap()
	}
	return netip.Addr{}
}

// pathMTU returns the smallest path MTU that the kernel knows to one of the peers
// of a unicast link, or 0. Groups have no path MTU. It asks through sockets of its own, since only a
// connected one can tell.
func (s *sockets) pathMTU(cfg *Config) int {
	if cfg.Type != UDP {
		return 0
	}
	smallest := 0
	for _, peer := range cfg.Peers {
		mtu, err := s.peerMTU(cfg, peer)
		if err == nil && (smallest == 0 || mtu < smallest) {
			smallest = mtu
		}
	}
	return smallest
}

func (s *sockets) peerMTU(cfg *Config, peer netip.Addr) (int, error) {
	fd, err := newSocket(cfg)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := bindToDevice(fd, cfg.Interface); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(peer, s.index, cfg.Port)); err != nil {
		return 0, err
	}
	if cfg.is4() {
		return unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	}
	return unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
}

// kernelDrops returns how many datagrams the kernel has dropped on the receiving
// socket. SO_MEMINFO is exact at any time; SO_RXQ_OVFL tells the same number, but
// only along with the next datagram that is not dropped.
func (s *sockets) kernelDrops() uint64 {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	err := s.recv.control(func(fd int) error {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

func (s *sockets) close() {
	if s.recv != nil {
		s.recv.close()
	}
	if s.send != nil && s.send != s.recv {
		s.send.close()
	}
}

func newSocket(cfg *Config) (int, error) {
	family := unix.AF_INET6
	if cfg.is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	return fd, nil
}

// newGated makes a socket to receive from, and closes fd on an error.
func newGated(fd int) (*socket, error) {
	g, err := gate.New(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return &socket{fd: fd, gate: g}, nil
}

// close closes the socket once nobody uses its descriptor any more, and ends waiting
// at its gate.
func (s *socket) close() {
	if s.gate != nil {
		s.gate.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	unix.Close(s.fd)
}

// use calls f with the descriptor. It reports false, without a call, once the socket
// is closed. f must not wait for long.
func (s *socket) use(f func(fd int)) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	f(s.fd)
	return true
}

// control calls f with the descriptor, unless the socket is closed.
func (s *socket) control(f func(fd int) error) (err error) {
	if !s.use(func(fd int) { err = f(fd) }) {
		return net.ErrClosed
	}
	return err
}

// An option is an integer socket option.
type option struct {
	level, name, value int
	text               string
}

func set(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	return nil
}

func receiveOptions(cfg *Config) []option {
	if cfg.is4() {
		return []option{
			{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
			{unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0, "IP_MULTICAST_ALL"},
		}
	}
	return []option{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0, "IPV6_MULTICAST_ALL"},
	}
}

func sendOptions(cfg *Config) []option {
	if cfg.is4() {
		return []option{
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, "IP_MTU_DISCOVER"},
			{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0, "IP_MULTICAST_LOOP"},
			{unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, cfg.TTL, "IP_MULTICAST_TTL"},
		}
	}
	return []option{
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, "IPV6_MTU_DISCOVER"},
		{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1, "IPV6_DONTFRAG"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0, "IPV6_MULTICAST_LOOP"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, cfg.TTL, "IPV6_MULTICAST_HOPS"},
		// An address that is still being checked for duplicates, just after the
		// interface came up, can be bound only this way. findLocal has made sure
		// that it is ours.
		{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1, "IPV6_FREEBIND"},
	}
}

func bindToDevice(fd int, name string) error {
	err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("interface %s: %w", name, ErrNoInterface)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("bind to interface %s: %w (CAP_NET_RAW is missing)", name, err)
	case err != nil:
		return fmt.Errorf("bind to interface %s: %w", name, err)
	}
	return nil
}

func bind(fd int, addr netip.Addr, index int, port uint16) error {
	err := unix.Bind(fd, sockaddr(addr, index, port))
	where := netip.AddrPortFrom(addr, port)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("bind to %v: %w: another program has this port", where, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("bind to %v: %w", where, ErrNoAddress)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("bind to %v: %w (CAP_NET_BIND_SERVICE is missing)", where, err)
	case err != nil:
		return fmt.Errorf("bind to %v: %w", where, err)
	}
	return nil
}

// setBuffer asks for a socket buffer of size octets, beyond the limit of the
// system if the capability is there, and returns what it got.
func setBuffer(fd, force, plain, size int) (int, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size); err != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size); err != nil {
			return 0, err
		}
	}
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
}

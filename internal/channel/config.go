package channel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Type is the kind of transport of a link.
type Type uint8

const (
	UDP       Type = iota + 1 // unicast datagrams to a list of peers
	Multicast                 // datagrams to one group
)

// typeNames holds the spelling of each Type in configuration files.
var typeNames = [...]string{UDP: "udp", Multicast: "multicast"}

// String returns the configuration's word for t.
func (t Type) String() string {
	if t == 0 || int(t) >= len(typeNames) {
		return fmt.Sprintf("type(%d)", uint8(t))
	}
	return typeNames[t]
}

// MarshalText implements encoding.TextMarshaler.
func (t Type) MarshalText() ([]byte, error) {
	if t == 0 || int(t) >= len(typeNames) {
		return nil, fmt.Errorf("unknown link type %d", uint8(t))
	}
	return []byte(typeNames[t]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Type) UnmarshalText(text []byte) error {
	for i, name := range typeNames {
		if name != "" && name == string(text) {
			*t = Type(i)
			return nil
		}
	}
	return fmt.Errorf("unknown link type %q (udp, multicast)", text)
}

// defaultBuffer is the socket buffer asked for when the configuration is silent:
// some 100 ms of a saturated 1 Gbit/s link, with the kernel's overhead.
const defaultBuffer = 4 << 20

// Config describes one link.
type Config struct {
	Name      string // for messages; default: Interface
	Type      Type
	Interface string // must exist; the link uses no other

	// Local is the address of this node on the link. UDP: the address to bind.
	// Multicast: the source of what is sent; it may be left out with IPv6, then
	// the link-local address of the interface is taken.
	Local netip.Addr

	Group netip.Addr // Multicast: the group

	// Peers are the addresses of the other nodes. UDP: the destinations, and the
	// only senders that are heard. Multicast: the only senders that are heard;
	// empty means whoever is on the link.
	Peers []netip.Addr

	Port uint16 // local and remote UDP port; a sender's own port is never looked at

	// RecvBuffer and SendBuffer are the socket buffers to ask for, in octets; 0
	// means 4 MiB. What the kernel granted is what Link.Buffers tells.
	RecvBuffer, SendBuffer int

	TTL int // Multicast: time to live or hop limit; 0 means 1
}

// normal returns cfg with defaults filled in and link-local addresses zoned to
// the interface, or says what is wrong with it. It looks at nothing but cfg.
func (cfg Config) normal() (Config, error) {
	if cfg.Interface == "" {
		return cfg, errors.New("no interface given")
	}
	if len(cfg.Interface) >= unix.IFNAMSIZ {
		return cfg, fmt.Errorf("interface name %q is longer than %d octets", cfg.Interface, unix.IFNAMSIZ-1)
	}
	if cfg.Port == 0 {
		return cfg, errors.New("no port given")
	}
	if cfg.RecvBuffer < 0 || cfg.SendBuffer < 0 {
		return cfg, errors.New("negative socket buffer")
	}
	if cfg.RecvBuffer == 0 {
		cfg.RecvBuffer = defaultBuffer
	}
	if cfg.SendBuffer == 0 {
		cfg.SendBuffer = defaultBuffer
	}
	if cfg.TTL < 0 || cfg.TTL > 255 {
		return cfg, fmt.Errorf("TTL %d is not within 1 to 255", cfg.TTL)
	}
	if cfg.TTL == 0 {
		cfg.TTL = 1
	}

	var err error
	switch cfg.Type {
	case UDP:
		if cfg.Group.IsValid() {
			return cfg, fmt.Errorf("a udp link has no group (%v)", cfg.Group)
		}
		if !cfg.Local.IsValid() {
			return cfg, errors.New("no local address given")
		}
		if len(cfg.Peers) == 0 {
			return cfg, errors.New("no peers given")
		}
	case Multicast:
		if cfg.Group, err = cfg.group(); err != nil {
			return cfg, err
		}
		if !cfg.Local.IsValid() && cfg.Group.Is4() {
			return cfg, errors.New("no local address given: an IPv4 group needs one")
		}
	default:
		return cfg, fmt.Errorf("unknown link type %d", uint8(cfg.Type))
	}

	if cfg.Local.IsValid() {
		if cfg.Local, err = cfg.unicast("local address", cfg.Local); err != nil {
			return cfg, err
		}
		if cfg.Group.IsValid() && cfg.Group.Is4() != cfg.Local.Is4() {
			return cfg, fmt.Errorf("group %v and local address %v are of different families", cfg.Group, cfg.Local)
		}
	}
	peers := make([]netip.Addr, 0, len(cfg.Peers))
	for _, peer := range cfg.Peers {
		if peer, err = cfg.unicast("peer", peer); err != nil {
			return cfg, err
		}
		if peer.Is4() != cfg.is4() {
			return cfg, fmt.Errorf("peer %v is not of the family of the link (%v)", peer, cfg.familyOf())
		}
		if peer == cfg.Local {
			return cfg, fmt.Errorf("peer %v is the local address", peer)
		}
		for _, other := range peers {
			if peer == other {
				return cfg, fmt.Errorf("peer %v is given twice", peer)
			}
		}
		peers = append(peers, peer)
	}
	cfg.Peers = peers
	return cfg, nil
}

// group returns the checked group, without a zone: the interface is the zone.
func (cfg *Config) group() (netip.Addr, error) {
	group := cfg.Group.Unmap().WithZone("")
	switch {
	case !group.IsValid():
		return group, errors.New("no group given")
	case !group.IsMulticast():
		return group, fmt.Errorf("group %v is not a multicast address", group)
	case group.Is6() && group.As16()[1]&0xf <= 1:
		// RFC 4291 2.7: scope 1 never leaves the node, scope 0 is reserved.
		return group, fmt.Errorf("group %v never leaves this node by its scope", group)
	}
	return group, nil
}

// unicast returns the checked address of a node. A link-local address gets the
// interface as its zone, so that it equals what Batch.From tells.
func (cfg *Config) unicast(what string, addr netip.Addr) (netip.Addr, error) {
	zone := addr.Zone()
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() ||
		addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return addr, fmt.Errorf("%s %v is not the address of a node", what, addr)
	}
	if zone != "" && zone != cfg.Interface {
		return addr, fmt.Errorf("%s %v is on %s, not on %s", what, addr, zone, cfg.Interface)
	}
	if addr.Is6() && addr.IsLinkLocalUnicast() {
		addr = addr.WithZone(cfg.Interface)
	}
	return addr, nil
}

// is4 reports whether the link is an IPv4 one.
func (cfg *Config) is4() bool {
	if cfg.Type == Multicast {
		return cfg.Group.Is4()
	}
	return cfg.Local.Is4()
}

// familyOf returns the address that decides the family, for messages.
func (cfg *Config) familyOf() netip.Addr {
	if cfg.Type == Multicast {
		return cfg.Group
	}
	return cfg.Local
}

// overhead is what IP and UDP headers take of the MTU.
func (cfg *Config) overhead() int {
	if cfg.is4() {
		return 20 + 8
	}
	return 40 + 8
}

// destinations returns the addresses that each datagram is sent to.
func (cfg *Config) destinations() []netip.Addr {
	if cfg.Type == Multicast {
		return []netip.Addr{cfg.Group}
	}
	return cfg.Peers
}

package netwatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// changeKind is what a message says.
type changeKind uint8

const (
	nothing changeKind = iota // of no concern here
	linkSet
	linkGone
	addrSet
	addrGone
)

// A change is one rtnetlink message. link is set for links, addr for addresses;
// of a link that is gone only the index counts.
type change struct {
	kind changeKind
	link namedLink
	addr ifaddr
}

var errShort = errors.New("message too short")

// decode reads one message of a dump or of a subscription.
func decode(m netlink.Message) (change, error) {
	var (
		c   change
		err error
	)
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		c, err = decodeLink(m.Data, linkSet)
	case unix.RTM_DELLINK:
		c, err = decodeLink(m.Data, linkGone)
	case unix.RTM_NEWADDR:
		c, err = decodeAddr(m.Data, addrSet)
	case unix.RTM_DELADDR:
		c, err = decodeAddr(m.Data, addrGone)
	}
	if err != nil {
		return change{}, fmt.Errorf("decode rtnetlink message of type %d: %w", m.Header.Type, err)
	}
	return c, nil
}

// decodeLink reads a struct ifinfomsg and its attributes.
func decodeLink(b []byte, kind changeKind) (change, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return change{}, errShort
	}
	// With another family a message is about one aspect of the interface. A
	// "deleted" of family AF_BRIDGE says that a port has left its bridge.
	if b[0] != unix.AF_UNSPEC {
		return change{}, nil
	}
	c := change{kind: kind}
	c.link.Index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	flags := binary.NativeEndian.Uint32(b[8:])
	c.link.Up = flags&unix.IFF_UP != 0
	c.link.Running = flags&unix.IFF_RUNNING != 0

	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return change{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			c.link.name = ad.String()
		case unix.IFLA_MTU:
			c.link.MTU = int(ad.Uint32())
		}
	}
	if err := ad.Err(); err != nil {
		return change{}, err
	}
	if kind == linkSet && c.link.name == "" {
		return change{}, errors.New("interface without a name")
	}
	return c, nil
}

// decodeAddr reads a struct ifaddrmsg and its attributes.
func decodeAddr(b []byte, kind changeKind) (change, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return change{}, errShort
	}
	bits := int(b[1])
	c := change{kind: kind}
	c.addr.index = int(binary.NativeEndian.Uint32(b[4:]))

	// On a point-to-point interface IFA_ADDRESS is the other end and IFA_LOCAL is
	// ours. IPv6 leaves IFA_LOCAL out where there is no other end.
	var address, local []byte
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return change{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFA_ADDRESS:
			address = ad.Bytes()
		case unix.IFA_LOCAL:
			local = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return change{}, err
	}
	if local == nil {
		local = address
	}
	addr, ok := netip.AddrFromSlice(local)
	if !ok {
		return change{}, fmt.Errorf("address of %d octets", len(local))
	}
	c.addr.prefix = netip.PrefixFrom(addr, bits)
	if !c.addr.prefix.IsValid() {
		return change{}, fmt.Errorf("address %v with a prefix of %d bits", addr, bits)
	}
	return c, nil
}

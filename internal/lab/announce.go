package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Announce tells the neighbours on an interface that the addresses are here now:
// by gratuitous ARP for IPv4 (RFC 5227, section 3) and by an unsolicited neighbour
// advertisement for IPv6 (RFC 4861, section 7.2.6), as keepalived does.
func (n *Node) Announce(ifname string, addrs ...netip.Addr) error {
	return n.onLink("announce on", ifname, func(link netlink.Link) error {
		mac := link.Attrs().HardwareAddr
		if len(mac) != 6 {
			return fmt.Errorf("no Ethernet address: %q", mac)
		}
		return n.Do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for _, addr := range addrs {
				frame := gratuitousARP(mac, addr)
				if addr.Is6() {
					frame = neighbourAdvertisement(mac, addr)
				}
				to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
				if err := unix.Sendto(fd, frame, 0, to); err != nil {
					return fmt.Errorf("%s: %w", addr, err)
				}
			}
			return nil
		})
	})
}

// gratuitousARP returns an Ethernet frame with an ARP request of addr for itself.
func gratuitousARP(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, unix.ETH_P_ARP)
	b = binary.BigEndian.AppendUint16(b, 1) // hardware: Ethernet
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4) // octets of a hardware and of a protocol address
	b = binary.BigEndian.AppendUint16(b, 1)
	b = append(append(b, mac...), addr.AsSlice()...)
	return append(append(b, make([]byte, 6)...), addr.AsSlice()...)
}

// neighbourAdvertisement returns an Ethernet frame that tells all nodes of the
// link where addr is.
func neighbourAdvertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	const router, override = 0x80, 0x20
	dst := netip.IPv6LinkLocalAllNodes()
	body := []byte{136, 0, 0, 0, router | override, 0, 0, 0} // RFC 4861, section 4.4
	body = append(body, addr.AsSlice()...)
	body = append(append(body, 2, 1), mac...) // option: target link-layer address

	pseudo := append(addr.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(body[2:], internetChecksum(append(pseudo, body...)))

	b := ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, unix.IPPROTO_ICMPV6, 255) // RFC 4861: any other hop limit is refused
	b = append(append(b, addr.AsSlice()...), dst.AsSlice()...)
	return append(b, body...)
}

func ethernet(dst, src net.HardwareAddr, proto uint16) []byte {
	b := append(append(make([]byte, 0, 128), dst...), src...)
	return binary.BigEndian.AppendUint16(b, proto)
}

// internetChecksum is the checksum of RFC 1071 over an even number of octets.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

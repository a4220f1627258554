package labtest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// Attributes of enum ctattr_type and its nests (nfnetlink_conntrack.h).
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaNATSrc     = 6
	ctaTimeout    = 7
	ctaNATDst     = 13

	statusConfirmed = 0x8
	statusNAT       = 0x10 | 0x20 | 0x80 | 0x100 // made by the kernel from the NAT attributes
)

// CopyFlows creates the TCP and UDP flows of one namespace in another, of which
// it takes file descriptors, and returns their number. It is a replication by
// hand that shares no code with the daemon's. Flows that exist already count.
func CopyFlows(from, to int) (int, error) {
	src, err := conntrack.Dial(&netlink.Config{NetNS: from})
	if err != nil {
		return 0, fmt.Errorf("copy flows: %w", err)
	}
	defer src.Close()
	flows, err := src.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("copy flows: %w", err)
	}
	dst, err := netfilter.Dial(&netlink.Config{NetNS: to})
	if err != nil {
		return 0, fmt.Errorf("copy flows: %w", err)
	}
	defer dst.Close()
	n := 0
	for i := range flows {
		f := &flows[i]
		if !replicated(f) {
			continue
		}
		if err := create(dst, f); err != nil && !errors.Is(err, unix.EEXIST) {
			return n, fmt.Errorf("copy flow %v: %w", f.TupleOrig, err)
		}
		n++
	}
	return n, nil
}

// create makes the flow as the packet path would have made it: the reply tuple is
// the plain inverse, and the difference from the real one goes into the two NAT
// attributes, exact to the port.
func create(c *netfilter.Conn, f *conntrack.Flow) error {
	o, r := f.TupleOrig, f.TupleReply
	family := netfilter.ProtoIPv4
	if o.IP.SourceAddress.Is6() {
		family = netfilter.ProtoIPv6
	}
	attrs := []netfilter.Attribute{
		tuple(ctaTupleOrig, o.IP.SourceAddress, o.IP.DestinationAddress, o.Proto.Protocol, o.Proto.SourcePort, o.Proto.DestinationPort),
		tuple(ctaTupleReply, o.IP.DestinationAddress, o.IP.SourceAddress, o.Proto.Protocol, o.Proto.DestinationPort, o.Proto.SourcePort),
		u32(ctaStatus, uint32(f.Status)&^statusNAT|statusConfirmed),
		u32(ctaTimeout, f.Timeout),
	}
	if r.IP.DestinationAddress != o.IP.SourceAddress || r.Proto.DestinationPort != o.Proto.SourcePort ||
		r.IP.SourceAddress != o.IP.DestinationAddress || r.Proto.SourcePort != o.Proto.DestinationPort {
		attrs = append(attrs,
			nat(ctaNATSrc, r.IP.DestinationAddress, r.Proto.DestinationPort),
			nat(ctaNATDst, r.IP.SourceAddress, r.Proto.SourcePort))
	}
	if tcp := f.ProtoInfo.TCP; tcp != nil {
		// Window scale and selective acknowledgement as they are, and liberal
		// windows: the kernel cannot be told where the windows are.
		const wscale, sack, closeInit, liberal = 0x01, 0x02, 0x04, 0x08
		// Two octets, flags and mask. Dumps leave the mask zero, which sets nothing.
		flags := func(typ, dumped uint16) netfilter.Attribute {
			const mask = wscale | sack | closeInit | liberal
			return netfilter.Attribute{Type: typ, Data: []byte{byte(dumped>>8)&mask | liberal, mask}}
		}
		attrs = append(attrs, nest(ctaProtoInfo, nest(1,
			netfilter.Attribute{Type: 1, Data: []byte{tcp.State}},
			netfilter.Attribute{Type: 2, Data: []byte{tcp.OriginalWindowScale}},
			netfilter.Attribute{Type: 3, Data: []byte{tcp.ReplyWindowScale}},
			flags(4, tcp.OriginalFlags),
			flags(5, tcp.ReplyFlags))))
	}
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink,
		MessageType: 0, // IPCTNL_MSG_CT_NEW
		Family:      family,
		Flags:       netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
	}, attrs)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	_, err = c.Query(req)
	return err
}

func nest(typ uint16, children ...netfilter.Attribute) netfilter.Attribute {
	return netfilter.Attribute{Type: typ, Nested: true, Children: children}
}

func u32(typ uint16, v uint32) netfilter.Attribute {
	return netfilter.Attribute{Type: typ, Data: netfilter.Uint32Bytes(v)}
}

func port(typ uint16, v uint16) netfilter.Attribute {
	return netfilter.Attribute{Type: typ, Data: netfilter.Uint16Bytes(v)}
}

func tuple(typ uint16, src, dst netip.Addr, proto uint8, sport, dport uint16) netfilter.Attribute {
	first := uint16(1) // CTA_IP_V4_SRC; CTA_IP_V6_SRC is 3
	if src.Is6() {
		first = 3
	}
	return nest(typ,
		nest(1, netfilter.Attribute{Type: first, Data: src.AsSlice()}, netfilter.Attribute{Type: first + 1, Data: dst.AsSlice()}),
		nest(2, netfilter.Attribute{Type: 1, Data: []byte{proto}}, port(2, sport), port(3, dport)))
}

func nat(typ uint16, addr netip.Addr, p uint16) netfilter.Attribute {
	first := uint16(1) // CTA_NAT_V4_MINIP; CTA_NAT_V6_MINIP is 4
	if addr.Is6() {
		first = 4
	}
	return nest(typ,
		netfilter.Attribute{Type: first, Data: addr.AsSlice()}, netfilter.Attribute{Type: first + 1, Data: addr.AsSlice()},
		nest(3, port(1, p), port(2, p)))
}

// CountFlows returns the number of TCP and UDP flows in a namespace.
func CountFlows(ns int) (int, error) {
	c, err := conntrack.Dial(&netlink.Config{NetNS: ns})
	if err != nil {
		return 0, fmt.Errorf("count flows: %w", err)
	}
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("count flows: %w", err)
	}
	return len(slices.DeleteFunc(flows, func(f conntrack.Flow) bool { return !replicated(&f) })), nil
}

// replicated reports whether a flow is one that CopyFlows copies.
func replicated(f *conntrack.Flow) bool {
	p := f.TupleOrig.Proto.Protocol
	return p == unix.IPPROTO_TCP || p == unix.IPPROTO_UDP
}

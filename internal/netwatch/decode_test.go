package netwatch

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// message makes a message of the family header and attributes.
func message(t testing.TB, kind netlink.HeaderType, header []byte, attrs ...netlink.Attribute) netlink.Message {
	t.Helper()
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Message{Header: netlink.Header{Type: kind}, Data: append(header, b...)}
}

func ifinfo(family byte, index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	return b
}

func ifa(family, bits byte, index uint32) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family, bits
	binary.NativeEndian.PutUint32(b[4:], index)
	return b
}

func TestDecode(t *testing.T) {
	name := netlink.Attribute{Type: unix.IFLA_IFNAME, Data: []byte("eth2\x00")}
	mtu := netlink.Attribute{Type: unix.IFLA_MTU, Data: binary.NativeEndian.AppendUint32(nil, 1400)}
	here := netlink.Attribute{Type: unix.IFA_LOCAL, Data: []byte{192, 0, 2, 1}}
	there := netlink.Attribute{Type: unix.IFA_ADDRESS, Data: []byte{192, 0, 2, 2}}
	prefix := netip.MustParsePrefix("192.0.2.1/24")
	for _, tt := range []struct {
		name string
		m    netlink.Message
		want change
		ok   bool
	}{
		{"link", message(t, unix.RTM_NEWLINK, ifinfo(0, 7, unix.IFF_UP|unix.IFF_RUNNING), name, mtu),
			change{kind: linkSet, link: namedLink{"eth2", LinkState{7, true, true, 1400}}}, true},
		{"no carrier", message(t, unix.RTM_NEWLINK, ifinfo(0, 7, unix.IFF_UP), name, mtu),
			change{kind: linkSet, link: namedLink{"eth2", LinkState{7, true, false, 1400}}}, true},
		{"deleted", message(t, unix.RTM_DELLINK, ifinfo(0, 7, 0)),
			change{kind: linkGone, link: namedLink{"", LinkState{Index: 7}}}, true},
		{"left a bridge", message(t, unix.RTM_DELLINK, ifinfo(unix.AF_BRIDGE, 7, 0), name), change{}, true},
		{"no name", message(t, unix.RTM_NEWLINK, ifinfo(0, 7, 0)), change{}, false},
		{"short MTU", message(t, unix.RTM_NEWLINK, ifinfo(0, 7, 0), name,
			netlink.Attribute{Type: unix.IFLA_MTU, Data: []byte{1}}), change{}, false},
		{"short link", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK}, Data: make([]byte, 15)}, change{}, false},
		{"far end", message(t, unix.RTM_NEWADDR, ifa(unix.AF_INET, 24, 7), there, here),
			change{kind: addrSet, addr: ifaddr{7, prefix}}, true},
		{"address only", message(t, unix.RTM_DELADDR, ifa(unix.AF_INET, 24, 7),
			netlink.Attribute{Type: unix.IFA_ADDRESS, Data: here.Data}), change{kind: addrGone, addr: ifaddr{7, prefix}}, true},
		{"no address", message(t, unix.RTM_NEWADDR, ifa(unix.AF_INET, 24, 7)), change{}, false},
		{"odd address", message(t, unix.RTM_NEWADDR, ifa(unix.AF_INET, 24, 7),
			netlink.Attribute{Type: unix.IFA_LOCAL, Data: []byte{1, 2, 3}}), change{}, false},
		{"long prefix", message(t, unix.RTM_NEWADDR, ifa(unix.AF_INET, 33, 7), here), change{}, false},
		{"short address", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWADDR}, Data: make([]byte, 7)}, change{}, false},
		{"neighbour", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWNEIGH}}, change{}, true},
	} {
		got, err := decode(tt.m)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("%s: decode = %+v, %v; want %+v, ok %v", tt.name, got, err, tt.want, tt.ok)
		}
	}
}

func TestApplyTellsWhetherSomethingChanged(t *testing.T) {
	eth2 := change{kind: linkSet, link: namedLink{"eth2", LinkState{7, true, true, 1500}}}
	renamed := change{kind: linkSet, link: namedLink{"sync0", LinkState{7, true, true, 1500}}}
	addr := change{kind: addrSet, addr: ifaddr{7, netip.MustParsePrefix("192.0.2.1/24")}}
	again := change{kind: addrSet, addr: ifaddr{8, netip.MustParsePrefix("192.0.2.1/24")}}
	goneAddr := change{kind: addrGone, addr: addr.addr}
	goneLink := change{kind: linkGone, link: namedLink{"", LinkState{Index: 7}}}
	s := newState()
	for i, step := range []struct {
		c       change
		changed bool
		names   string
		addrs   int
	}{
		{eth2, true, "eth2", 0},
		{eth2, false, "eth2", 0},
		{renamed, true, "sync0", 0},
		{addr, true, "sync0", 1},
		{addr, false, "sync0", 1},
		{again, true, "sync0", 1}, // the same address on another interface
		{goneAddr, true, "sync0", 1},
		{goneAddr, false, "sync0", 1},
		{addr, true, "sync0", 1},
		{change{kind: addrGone, addr: again.addr}, true, "sync0", 1},
		{goneLink, true, "", 0}, // and its address with it
		{goneLink, false, "", 0},
		{change{}, false, "", 0},
	} {
		if got := s.apply(step.c); got != step.changed {
			t.Errorf("step %d: changed = %v, want %v", i, got, step.changed)
		}
		snap := s.snapshot()
		name := ""
		for n := range snap.Links {
			name += n
		}
		if name != step.names || len(snap.Addrs) != step.addrs {
			t.Errorf("step %d: snapshot %+v, want links %q and %d addresses", i, snap, step.names, step.addrs)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), message(f, unix.RTM_NEWLINK, ifinfo(0, 7, unix.IFF_UP),
		netlink.Attribute{Type: unix.IFLA_IFNAME, Data: []byte("eth2\x00")}).Data)
	f.Add(uint16(unix.RTM_NEWADDR), message(f, unix.RTM_NEWADDR, ifa(unix.AF_INET, 24, 7),
		netlink.Attribute{Type: unix.IFA_LOCAL, Data: []byte{192, 0, 2, 1}}).Data)
	f.Add(uint16(unix.RTM_DELADDR), []byte{})
	f.Fuzz(func(t *testing.T, kind uint16, b []byte) {
		c, err := decode(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: b})
		if err != nil && c != (change{}) {
			t.Errorf("%s: an error and %+v", hex.EncodeToString(b), c)
		}
		s := newState()
		s.apply(c)
		s.snapshot()
	})
}

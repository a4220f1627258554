package lab

import (
	"errors"
	"fmt"
	"net/netip"
)

// Interfaces of the firewalls of a pair.
const (
	IfInside  = "lan0"
	IfOutside = "wan0"
	IfSync    = "sync0"
)

// Ports of a pair.
const (
	PortService = 7000 // of the server; the only one open to the inside
	PortForward = 8000 // of the outer virtual address; leads to the client
)

// Pair is a client, two firewalls and a server on three bridges:
//
//	             .--- fw1 ---.
//	client --- lan   sync   wan --- server
//	             '--- fw2 ---'
//
// The gateways of client and server are virtual addresses of the firewalls; fw1
// has them at first.
type Pair struct {
	Client, Server *Node
	FW1, FW2       *Node
	LAN, WAN, Sync *Bridge

	V4, V6 Addresses

	onlyVIP bool // outside the firewalls have no address of their own
}

// Addresses are the addresses of one family in a pair.
type Addresses struct {
	Plain  netip.Addr // of the client; routed as it is
	Hidden netip.Addr // of the client; leaves with OutsideVIP as its source
	Server netip.Addr

	InsideVIP, OutsideVIP netip.Addr // of the firewall in charge

	Sync1, Sync2 netip.Addr // of fw1 and fw2 on the sync link
}

// The addresses of all pairs: namespaces keep labs apart.
var (
	pairV4 = Addresses{
		Plain:      netip.MustParseAddr("198.51.100.10"),
		Hidden:     netip.MustParseAddr("198.51.100.20"),
		Server:     netip.MustParseAddr("203.0.113.10"),
		InsideVIP:  netip.MustParseAddr("198.51.100.1"),
		OutsideVIP: netip.MustParseAddr("203.0.113.1"),
		Sync1:      netip.MustParseAddr("192.0.2.1"),
		Sync2:      netip.MustParseAddr("192.0.2.2"),
	}
	pairV6 = Addresses{
		Plain:      netip.MustParseAddr("2001:db8:1::10"),
		Hidden:     netip.MustParseAddr("2001:db8:1::20"),
		Server:     netip.MustParseAddr("2001:db8:2::10"),
		InsideVIP:  netip.MustParseAddr("2001:db8:1::1"),
		OutsideVIP: netip.MustParseAddr("2001:db8:2::1"),
		Sync1:      netip.MustParseAddr("2001:db8:3::1"),
		Sync2:      netip.MustParseAddr("2001:db8:3::2"),
	}
)

// Addresses of the firewalls themselves: neighbours must reach the backup too.
var firewallAddrs = [2]struct{ inside, outside, sync []string }{
	{
		inside:  []string{"198.51.100.2/24", "2001:db8:1::2/64"},
		outside: []string{"203.0.113.2/24", "2001:db8:2::2/64"},
		sync:    []string{"192.0.2.1/24", "2001:db8:3::1/64"},
	},
	{
		inside:  []string{"198.51.100.3/24", "2001:db8:1::3/64"},
		outside: []string{"203.0.113.3/24", "2001:db8:2::3/64"},
		sync:    []string{"192.0.2.2/24", "2001:db8:3::2/64"},
	},
}

// FirewallPair builds a pair without any filter rules.
func FirewallPair(l *Lab) (*Pair, error) {
	p := &Pair{V4: pairV4, V6: pairV6}
	var errs []error
	node := func(name string) *Node {
		n, err := l.Node(name)
		errs = append(errs, err)
		return n
	}
	bridge := func(name string) *Bridge {
		b, err := l.Bridge(name)
		errs = append(errs, err)
		return b
	}
	p.Client, p.Server, p.FW1, p.FW2 = node("client"), node("server"), node("fw1"), node("fw2")
	p.LAN, p.WAN, p.Sync = bridge("lan"), bridge("wan"), bridge("sync")
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	plug := func(b *Bridge, n *Node, ifname string, addrs ...string) {
		end := End{Node: n, If: ifname}
		for _, a := range addrs {
			end.Addrs = append(end.Addrs, netip.MustParsePrefix(a))
		}
		errs = append(errs, b.Plug(end))
	}
	for i, fw := range [...]*Node{p.FW1, p.FW2} {
		plug(p.LAN, fw, IfInside, firewallAddrs[i].inside...)
		plug(p.WAN, fw, IfOutside, firewallAddrs[i].outside...)
		plug(p.Sync, fw, IfSync, firewallAddrs[i].sync...)
		errs = append(errs, fw.EnableForwarding())
	}
	plug(p.LAN, p.Client, "eth0", "198.51.100.10/24", "198.51.100.20/24", "2001:db8:1::10/64", "2001:db8:1::20/64")
	plug(p.WAN, p.Server, "eth0", "203.0.113.10/24", "2001:db8:2::10/64")
	for _, n := range [...]*Node{p.Client, p.Server, p.FW1, p.FW2} {
		errs = append(errs, n.Settle())
	}
	for _, a := range p.families() {
		errs = append(errs,
			p.Client.AddRoute(defaultRoute(a), a.InsideVIP),
			p.Server.AddRoute(defaultRoute(a), a.OutsideVIP))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, p.giveAddresses(p.FW1)
}

func (p *Pair) families() [2]Addresses { return [2]Addresses{p.V4, p.V6} }

func defaultRoute(a Addresses) netip.Prefix {
	if a.Server.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Rules returns the usual rules of both firewalls: what has no state is dropped,
// the inside may reach the service, hidden clients get the outer virtual address,
// and one port of it leads to the client.
func (p *Pair) Rules() Ruleset {
	r := Ruleset{
		Inside: IfInside, Outside: IfOutside,
		Allow:     []uint16{PortService},
		Untracked: []string{IfSync},
	}
	for _, a := range p.families() {
		r.SNAT = append(r.SNAT, SNAT{From: netip.PrefixFrom(a.Hidden, a.Hidden.BitLen()), To: a.OutsideVIP})
		r.Forwards = append(r.Forwards, Forward{
			From: netip.AddrPortFrom(a.OutsideVIP, PortForward),
			To:   netip.AddrPortFrom(a.Plain, PortForward),
		})
	}
	return r
}

// Masquerade takes from the firewalls their own outer addresses, as where there is only
// one for all, and returns the rules with which hidden clients are masqueraded: they
// get the outer virtual address, and their flows end on a firewall that loses it.
func (p *Pair) Masquerade() (Ruleset, error) {
	p.onlyVIP = true
	var errs []error
	for i, fw := range [...]*Node{p.FW1, p.FW2} {
		for _, a := range firewallAddrs[i].outside {
			errs = append(errs, fw.DelAddr(IfOutside, netip.MustParsePrefix(a)))
		}
	}
	// What is on the first firewall has no network yet.
	for _, v := range p.virtual() {
		if v.ifname == IfOutside {
			errs = append(errs, p.FW1.DelAddr(v.ifname, netip.PrefixFrom(v.addr.Addr(), v.addr.Addr().BitLen())), p.FW1.AddAddr(v.ifname, v.addr))
		}
	}
	r := p.Rules()
	for i := range r.SNAT {
		r.SNAT[i].To = netip.Addr{}
	}
	return r, errors.Join(errs...)
}

// LoadRules loads the same rules into both firewalls.
func (p *Pair) LoadRules(r Ruleset) error {
	return errors.Join(p.FW1.LoadRules(r), p.FW2.LoadRules(r))
}

// TakeOver is the sudden death of a firewall, as its neighbours see it: all its
// cables are pulled at once, and the other one takes the virtual addresses.
func (p *Pair) TakeOver(from, to *Node) error {
	if err := from.Unplug(); err != nil {
		return fmt.Errorf("lab: take over: %w", err)
	}
	return p.Move(from, to)
}

// Move moves the virtual addresses to another firewall and tells the neighbours.
func (p *Pair) Move(from, to *Node) error {
	for _, v := range p.virtual() {
		if err := from.DelAddr(v.ifname, v.addr); err != nil {
			return err
		}
	}
	return p.giveAddresses(to)
}

func (p *Pair) giveAddresses(to *Node) error {
	// Take all before telling of any: a neighbour's packet may need the other side.
	for _, v := range p.virtual() {
		if err := to.AddAddr(v.ifname, v.addr); err != nil {
			return err
		}
	}
	for _, v := range p.virtual() {
		if err := to.Announce(v.ifname, v.addr.Addr()); err != nil {
			return err
		}
	}
	return nil
}

type virtualAddr struct {
	ifname string
	addr   netip.Prefix
}

func (p *Pair) virtual() []virtualAddr {
	var all []virtualAddr
	for _, a := range p.families() {
		outside := a.OutsideVIP.BitLen()
		if p.onlyVIP { // then their network is reached by these addresses alone
			outside = 24
			if a.OutsideVIP.Is6() {
				outside = 64
			}
		}
		all = append(all,
			virtualAddr{IfInside, netip.PrefixFrom(a.InsideVIP, a.InsideVIP.BitLen())},
			virtualAddr{IfOutside, netip.PrefixFrom(a.OutsideVIP, outside)})
	}
	return all
}

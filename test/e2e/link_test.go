package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"syncd/internal/lab"
)

// transport is how datagrams travel on a link.
type transport struct {
	name      string
	multicast bool
	v6        bool
	group     string
}

var (
	udp4       = transport{name: "udp4"}
	udp6       = transport{name: "udp6", v6: true}
	multicast4 = transport{name: "multicast4", multicast: true, group: "225.0.0.50"}
	// A group of link-local and one of site-local scope.
	multicast6     = transport{name: "multicast6", multicast: true, v6: true, group: "ff12::50"}
	multicast6Site = transport{name: "multicast6-site", multicast: true, v6: true, group: "ff05::50"}

	transports = []transport{udp4, udp6, multicast4, multicast6}
)

// port is the UDP port of the first link.
const port = 3780

// link is one dedicated link as one node sees it.
type link struct {
	transport
	ifname      string
	port        uint16
	local, peer netip.Addr
}

// newLink returns a dedicated link of node 1 or 2.
func newLink(tr transport, which, node int) link {
	// A port for each link: a conntrackd hears all groups of a port on all links.
	return link{
		transport: tr, ifname: fmt.Sprintf("sync%d", which), port: uint16(port + which),
		local: linkAddr(tr, which, node), peer: linkAddr(tr, which, 3-node),
	}
}

// linkAddr is the address of a node on a dedicated link. Link 0 is that of a
// lab.Pair: 192.0.2.N and 2001:db8:3::N; the next one has 192.0.2.64+N and
// 2001:db8:4::N.
func linkAddr(tr transport, which, node int) netip.Addr {
	if tr.v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", 3+which, node))
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(64*which + node)})
}

// toml is the link in syncd's configuration.
func (l link) toml() string {
	s := fmt.Sprintf("[[link]]\ntype = %q\ninterface = %q\nlocal = %q\nport = %d\n",
		map[bool]string{false: "udp", true: "multicast"}[l.multicast], l.ifname, l.local, l.port)
	if l.multicast {
		return s + fmt.Sprintf("group = %q\n", l.group)
	}
	return s + fmt.Sprintf("peers = [%q]\n", l.peer)
}

// conntrackd is the link in conntrackd's configuration.
func (l link) conntrackd() string {
	version := map[bool]string{false: "IPv4", true: "IPv6"}[l.v6]
	buffers := "SndSocketBuffer 4194304 RcvSocketBuffer 4194304"
	switch {
	case !l.multicast:
		return fmt.Sprintf("UDP {\n%s_address %s\n%s_Destination_Address %s\nPort %d\nInterface %s\n%s\n}\n",
			version, l.local, version, l.peer, l.port, l.ifname, buffers)
	case l.v6:
		// The address must come before the interface.
		return fmt.Sprintf("Multicast {\nIPv6_address %s\nGroup %d\nInterface %s\n%s\n}\n", l.group, l.port, l.ifname, buffers)
	default:
		return fmt.Sprintf("Multicast {\nIPv4_address %s\nGroup %d\nIPv4_interface %s\nInterface %s\n%s\n}\n",
			l.group, l.port, l.local, l.ifname, buffers)
	}
}

// syncdConfig is a configuration of syncd, from after its [node] table on. extra
// goes before the links.
func syncdConfig(extra string, links ...link) string {
	var b strings.Builder
	b.WriteString("[sync]\nwire = \"conntrackd\"\ninsecure = true\n")
	b.WriteString(extra + "\n")
	for _, l := range links {
		b.WriteString(l.toml())
	}
	return b.String()
}

// conntrackdConfig is the inside of the Sync block of conntrackd's configuration.
func conntrackdConfig(options string, links ...link) string {
	return conntrackdConfigMode("StartupResync on", options, links...)
}

// conntrackdConfigMode is conntrackdConfig with the inside of the Mode block.
func conntrackdConfigMode(mode, options string, links ...link) string {
	var b strings.Builder
	b.WriteString("Mode FTFW {\n" + mode + "\n}\n")
	for _, l := range links {
		b.WriteString(l.conntrackd())
	}
	if options != "" {
		b.WriteString("Options {\n" + options + "\n}\n")
	}
	return b.String()
}

// cabled returns two nodes, "a" and "b", joined by n dedicated links sync0, sync1
// ... and nothing else: what their tables contain is what a test puts there.
func cabled(t testing.TB, l *lab.Lab, n int) (a, b *lab.Node) {
	t.Helper()
	a, err := l.Node("a")
	ok(t, err)
	b, err = l.Node("b")
	ok(t, err)
	for which := range n {
		end := func(node *lab.Node, i int) lab.End {
			return lab.End{Node: node, If: fmt.Sprintf("sync%d", which), LinkOptions: lab.LinkOptions{Addrs: []netip.Prefix{
				netip.PrefixFrom(newLink(udp4, which, i).local, 26),
				netip.PrefixFrom(newLink(udp6, which, i).local, 64),
			}}}
		}
		ok(t, l.Connect(end(a, 1), end(b, 2)))
	}
	ok(t, a.Settle(), b.Settle())
	return a, b
}

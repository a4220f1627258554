package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is one network namespace: a host, a firewall, or a bridge.
type Node struct {
	lab  *Lab
	name string
	ns   netns.NsHandle
	nl   *netlink.Handle

	mu     sync.Mutex
	cables []cable
}

// Node makes a network namespace that ip-netns(8) shows too, with its loopback
// device up, conntrack events on from the first flow, reverse path filters off,
// and no duplicate address detection, so that addresses work at once.
func (l *Lab) Node(name string) (*Node, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("lab: %q is no name for a node", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("lab: node %s: %w", name, os.ErrClosed)
	}
	ns, err := onThread(func() (netns.NsHandle, error) { return netns.NewNamed(l.name + name) })
	if err != nil {
		// Half a name may be left: an empty file without a namespace.
		if !errors.Is(err, os.ErrExist) {
			err = errors.Join(err, removeName(l.name+name))
		}
		return nil, fmt.Errorf("lab: node %s: %w", name, err)
	}
	n := &Node{lab: l, name: name, ns: ns}
	l.nodes = append(l.nodes, n)
	if err := n.prepare(); err != nil {
		return nil, fmt.Errorf("lab: node %s: %w", name, err)
	}
	return n, nil
}

func (n *Node) prepare() error {
	nl, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	n.nl = nl
	if err := n.SetLink("lo", true); err != nil {
		return err
	}
	// IPv4 settings of a new namespace are copied from the first one, whatever
	// the machine's owner has set there: say everything that matters.
	for _, s := range [...]struct{ name, value string }{
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.all.send_redirects", "0"},
		{"net.ipv4.conf.default.send_redirects", "0"},
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"},
		{"net.ipv6.conf.all.keep_addr_on_down", "1"}, // a pulled cable may be put back
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.dad_transmits", "0"},
	} {
		if err := n.Sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return n.eventsOn()
}

// eventsOn makes the kernel send an event for every flow of the node. Its
// default (2, automatic) leaves flows silent for life that were born while
// nobody listened.
func (n *Node) eventsOn() error {
	const events = "net.netfilter.nf_conntrack_events"
	err := n.Sysctl(events, "1")
	if errors.Is(err, os.ErrNotExist) {
		// Conntrack is a module that nobody has needed yet: any request loads it.
		if _, err := n.nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil {
			return fmt.Errorf("load conntrack: %w", err)
		}
		err = n.Sysctl(events, "1")
	}
	return err
}

func (n *Node) close() error {
	if n.nl != nil {
		n.nl.Close()
	}
	return errors.Join(n.ns.Close(), removeName(n.lab.name+n.name))
}

// Name returns the name that the node was made with.
func (n *Node) Name() string { return n.name }

// Namespace returns the name of the namespace, as ip-netns(8) shows it.
func (n *Node) Namespace() string { return n.lab.name + n.name }

// FD returns a file descriptor of the namespace, for libraries that open sockets
// in a namespace themselves. It is the node's: do not close it.
func (n *Node) FD() int { return int(n.ns) }

// Do runs f on an OS thread inside the namespace and returns its error.
// Goroutines that f starts are not inside. A panic of f reaches the caller.
func (n *Node) Do(f func() error) error {
	_, err := onThread(func() (struct{}, error) {
		if err := enter(n.ns); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, f()
	})
	return err
}

// Sysctl writes a kernel parameter of the namespace, named as in sysctl.conf(5);
// where an interface name holds a dot use slashes throughout.
func (n *Node) Sysctl(name, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
			return fmt.Errorf("lab: %s: set %s to %s: %w", n.name, name, value, err)
		}
		return nil
	})
}

// ReadSysctl returns a kernel parameter of the namespace without the line end.
func (n *Node) ReadSysctl(name string) (string, error) {
	var value string
	err := n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(name))
		if err != nil {
			return fmt.Errorf("lab: %s: %w", n.name, err)
		}
		value = strings.TrimSpace(string(b))
		return nil
	})
	return value, err
}

func sysctlPath(name string) string {
	if !strings.ContainsRune(name, '/') {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return filepath.Join("/proc/sys", name)
}

// EnableForwarding turns routing between interfaces on for IPv4 and IPv6.
func (n *Node) EnableForwarding() error {
	if err := n.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	return n.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// FlowCount returns the number of entries in the node's conntrack table.
func (n *Node) FlowCount() (int, error) {
	s, err := n.ReadSysctl("net.netfilter.nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}

// SetLink sets an interface up or down.
func (n *Node) SetLink(ifname string, up bool) error {
	return n.onLink("set", ifname, func(link netlink.Link) error {
		if up {
			return n.nl.LinkSetUp(link)
		}
		return n.nl.LinkSetDown(link)
	})
}

// AddAddr adds an address with the length of its network to an interface. It is
// usable at once.
func (n *Node) AddAddr(ifname string, addr netip.Prefix) error {
	return n.onLink("add address to", ifname, func(link netlink.Link) error {
		return n.nl.AddrAdd(link, kernelAddr(addr))
	})
}

// DelAddr removes an address from an interface.
func (n *Node) DelAddr(ifname string, addr netip.Prefix) error {
	return n.onLink("delete address from", ifname, func(link netlink.Link) error {
		return n.nl.AddrDel(link, kernelAddr(addr))
	})
}

func kernelAddr(addr netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: kernelNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// AddRoute adds a route to a network by way of a gateway that is reachable on
// one of the node's interfaces.
func (n *Node) AddRoute(to netip.Prefix, via netip.Addr) error {
	err := n.nl.RouteAdd(&netlink.Route{Dst: kernelNet(to), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("lab: %s: add route to %s via %s: %w", n.name, to, via, err)
	}
	return nil
}

// Received returns the packets and octets that came in on an interface so far.
func (n *Node) Received(ifname string) (packets, octets uint64, err error) {
	err = n.onLink("read", ifname, func(link netlink.Link) error {
		if s := link.Attrs().Statistics; s != nil {
			packets, octets = s.RxPackets, s.RxBytes
		}
		return nil
	})
	return packets, octets, err
}

// onLink looks an interface up and runs f on it.
func (n *Node) onLink(what, ifname string, f func(netlink.Link) error) error {
	link, err := n.nl.LinkByName(ifname)
	if err == nil {
		err = f(link)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: %s %s: %w", n.name, what, ifname, err)
	}
	return nil
}

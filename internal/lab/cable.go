package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// cable is a veth pair as one of its nodes sees it.
type cable struct {
	own plug // the end at this node
	cut plug // the end that goes down: of the bridge, or own
}

// plug is one end of a cable.
type plug struct {
	node   *Node
	ifname string
}

// LinkOptions are settings of one end of a cable.
type LinkOptions struct {
	MTU   int            // octets; 0 for the kernel's default
	MAC   string         // empty for a random one
	Addrs []netip.Prefix // addresses of this end
}

// End is one end of a cable: a new interface of a node.
type End struct {
	Node *Node
	If   string
	LinkOptions
}

func (e End) plug() plug { return plug{e.Node, e.If} }

// Connect lays a cable between two nodes and sets both ends up.
func (l *Lab) Connect(a, b End) error {
	if err := l.lay(a, b); err != nil {
		return err
	}
	a.Node.addCable(a.plug(), a.plug())
	b.Node.addCable(b.plug(), b.plug())
	return nil
}

// Bridge is a switch: nodes plugged into it share one Ethernet.
type Bridge struct {
	lab   *Lab
	node  *Node
	ports int
}

// bridgeName is the interface of the bridge inside its own namespace.
const bridgeName = "br0"

// Bridge makes a switch, in a namespace of its own with that name.
func (l *Lab) Bridge(name string) (*Bridge, error) {
	node, err := l.Node(name)
	if err != nil {
		return nil, err
	}
	// A switch looks at no rules, whatever the kernel's default is.
	for _, call := range [...]string{"iptables", "ip6tables", "arptables"} {
		err := node.Sysctl("net.bridge.bridge-nf-call-"+call, "0")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	// Without an IGMP/MLD querier, snooping would hold back multicast that
	// nobody has reported lately; neighbour discovery is multicast.
	snooping := false
	link := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	link.Name = bridgeName
	if err := node.nl.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("lab: bridge %s: %w", name, err)
	}
	if err := node.SetLink(bridgeName, true); err != nil {
		return nil, err
	}
	return &Bridge{lab: l, node: node}, nil
}

// Node returns the namespace of the bridge, for counting or dropping what passes.
func (b *Bridge) Node() *Node { return b.node }

// Plug connects a new interface of a node to the bridge and sets it up.
func (b *Bridge) Plug(end End) error {
	port := fmt.Sprintf("port%d", b.ports)
	b.ports++
	if err := b.lab.lay(end, End{Node: b.node, If: port, LinkOptions: LinkOptions{MTU: end.MTU}}); err != nil {
		return err
	}
	err := b.node.onLink("plug", port, func(link netlink.Link) error {
		bridge, err := b.node.nl.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		return b.node.nl.LinkSetMaster(link, bridge)
	})
	if err != nil {
		return err
	}
	end.Node.addCable(end.plug(), plug{b.node, port})
	return nil
}

// lay makes a veth pair with one end in each node.
func (l *Lab) lay(a, b End) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.NewLinkAttrs(),
		PeerName:      b.If,
		PeerNamespace: netlink.NsFd(b.Node.ns),
		PeerMTU:       uint32(b.MTU),
	}
	veth.Name, veth.MTU = a.If, a.MTU
	var err error
	if veth.HardwareAddr, err = hardwareAddr(a.MAC); err == nil {
		veth.PeerHardwareAddr, err = hardwareAddr(b.MAC)
	}
	if err == nil {
		err = a.Node.nl.LinkAdd(veth)
	}
	if err != nil {
		return fmt.Errorf("lab: cable %s/%s to %s/%s: %w", a.Node.name, a.If, b.Node.name, b.If, err)
	}
	for _, end := range [...]End{a, b} {
		for _, addr := range end.Addrs {
			if err := end.Node.AddAddr(end.If, addr); err != nil {
				return err
			}
		}
		if err := end.Node.SetLink(end.If, true); err != nil {
			return err
		}
	}
	return nil
}

func hardwareAddr(mac string) (net.HardwareAddr, error) {
	if mac == "" {
		return nil, nil
	}
	return net.ParseMAC(mac)
}

func (n *Node) addCable(own, cut plug) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cables = append(n.cables, cable{own: own, cut: cut})
}

func (n *Node) allCables() []cable {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.cables)
}

// Unplug pulls all cables of the node at once. Where a cable leads to a bridge it
// is the bridge's port that goes down, so that the node keeps its addresses and
// routes, as a machine does whose cable is pulled, and its neighbours on the
// bridge notice nothing but silence. A cable laid by Connect goes down at this
// node's own end.
func (n *Node) Unplug() error {
	var errs []error
	for _, c := range n.allCables() {
		errs = append(errs, c.cut.node.SetLink(c.cut.ifname, false))
	}
	return errors.Join(errs...)
}

// Replug puts all cables back, and returns when packets pass again.
func (n *Node) Replug() error {
	var errs []error
	for _, c := range n.allCables() {
		errs = append(errs, c.cut.node.SetLink(c.cut.ifname, true))
	}
	return errors.Join(append(errs, n.Settle())...)
}

// Settle waits until all cables of the node work at both ends. The kernel brings
// a device into service some time after its carrier is there, and drops what is
// sent before that.
func (n *Node) Settle() error {
	deadline := time.Now().Add(5 * time.Second)
	for _, c := range n.allCables() {
		for _, end := range [...]plug{c.own, c.cut} {
			for {
				up := false
				err := end.node.onLink("read", end.ifname, func(link netlink.Link) error {
					up = link.Attrs().OperState == netlink.OperUp
					return nil
				})
				if err != nil {
					return err
				}
				if up {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("lab: %s: %s does not come up", end.node.name, end.ifname)
				}
				time.Sleep(2 * time.Millisecond)
			}
		}
	}
	return nil
}

func kernelNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

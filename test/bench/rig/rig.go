package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"syncd/internal/lab"
	"syncd/internal/seal"
)

// Prefix begins the names of all namespaces of benchmarks.
const Prefix = "syncd-bench-"

// Interfaces and addresses of a rig. Flows are from FlowSource to FlowTarget, all of
// them beyond the firewalls.
const (
	IfInside  = "lan0"
	IfOutside = "wan0"
	IfSync    = "sync0"
	IfHost    = "eth0" // of client and server

	syncPort = 3780
)

var (
	FlowSource = netip.MustParsePrefix("198.18.0.0/16")
	FlowTarget = netip.MustParsePrefix("198.19.0.0/16")

	syncAddrs = [2]netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24")}
)

// Hardware addresses: with them packets can be made by hand.
const (
	macClient = "02:00:00:00:01:01"
	macInside = "02:00:00:00:01:02"
	macServer = "02:00:00:00:02:01"
	macOutsid = "02:00:00:00:02:02"
)

// Rig is a client, the active firewall A, a server, and the backup B:
//
//	client --- A --- server
//	           |
//	           B
//
// Client and server have no addresses: they send and swallow what the load makes.
type Rig struct {
	Lab            *lab.Lab
	A, B           *lab.Node
	Client, Server *lab.Node

	bin  string // syncd
	dir  string
	key  string // file
	next int    // number of the next daemon, for names of files
}

// Prepare makes this machine ready for runs with so many flows in a table: it looks whether
// a rig can be built and whether bin, the syncd to be measured, is there, removes what
// earlier runs have left behind, and makes room. It returns the absolute path of bin, and a
// function that puts the machine's settings back, which must be called even after an error.
func Prepare(bin string, flows int) (abs string, restore func() error, err error) {
	restore = func() error { return nil }
	if err := lab.Usable(); err != nil {
		return "", restore, err
	}
	if abs, err = filepath.Abs(bin); err != nil {
		return "", restore, err
	}
	if _, err := exec.LookPath(abs); err != nil {
		return "", restore, fmt.Errorf("the program to measure: %w (make build)", err)
	}
	if _, err := lab.Sweep(Prefix); err != nil {
		return "", restore, err
	}
	restore, err = RaiseTable(flows)
	return abs, restore, err
}

// Turn returns the kinds in the order in which run n (0, 1 ...) measures them: whoever
// comes first in one run comes last in the next.
func Turn(kinds []Kind, n int) []Kind {
	turn := n % len(kinds)
	return append(slices.Clone(kinds[turn:]), kinds[:turn]...)
}

// New lays out a rig. bin is the syncd to be measured.
func New(bin string) (*Rig, error) {
	if err := lab.Usable(); err != nil {
		return nil, err
	}
	l, err := lab.New(Prefix)
	if err != nil {
		return nil, err
	}
	r := &Rig{Lab: l, bin: bin}
	if err := r.lay(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return r, nil
}

// On returns a rig of two nodes that exist already, with IfSync and its addresses as
// those of a lab.Pair are. It has no client and no server, and goes with the lab.
func On(l *lab.Lab, a, b *lab.Node, bin string) (*Rig, error) {
	r := &Rig{Lab: l, A: a, B: b, bin: bin}
	return r, r.files()
}

// files makes the directory of the daemons' files, and their key.
func (r *Rig) files() (err error) {
	if r.dir, err = r.Lab.Dir(); err != nil {
		return err
	}
	r.key = filepath.Join(r.dir, "key")
	return os.WriteFile(r.key, seal.NewKey().Text(), 0o600)
}

func (r *Rig) lay() (err error) {
	if err := r.files(); err != nil {
		return err
	}
	for _, n := range []struct {
		name string
		node **lab.Node
	}{{"a", &r.A}, {"b", &r.B}, {"client", &r.Client}, {"server", &r.Server}} {
		if *n.node, err = r.Lab.Node(n.name); err != nil {
			return err
		}
		// Its chatter would be flows too.
		if err := (*n.node).Sysctl("net.ipv6.conf.all.disable_ipv6", "1"); err != nil {
			return err
		}
		if err := (*n.node).Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
			return err
		}
	}
	end := func(n *lab.Node, ifname, mac string, addrs ...netip.Prefix) lab.End {
		return lab.End{Node: n, If: ifname, LinkOptions: lab.LinkOptions{MAC: mac, Addrs: addrs}}
	}
	if err := errors.Join(
		r.Lab.Connect(end(r.A, IfSync, "", syncAddrs[0]), end(r.B, IfSync, "", syncAddrs[1])),
		r.Lab.Connect(end(r.Client, IfHost, macClient), end(r.A, IfInside, macInside)),
		r.Lab.Connect(end(r.Server, IfHost, macServer), end(r.A, IfOutside, macOutsid)),
		r.A.EnableForwarding(),
	); err != nil {
		return err
	}
	if err := r.A.Do(func() error {
		return errors.Join(route(IfInside, FlowSource, macClient), route(IfOutside, FlowTarget, macServer))
	}); err != nil {
		return err
	}
	// The first rule that looks at states turns the kernel's connection tracking on,
	// and the link is not tracked, as everybody is told to set it up.
	rules := lab.Ruleset{Inside: IfInside, Outside: IfOutside, Untracked: []string{IfSync}}
	if err := errors.Join(r.A.LoadRules(rules), r.B.LoadRules(rules)); err != nil {
		return err
	}
	return errors.Join(r.A.Settle(), r.B.Settle())
}

// route sends packets to a network out of an interface, to one neighbour that need
// not answer for itself. It runs inside the node.
func route(ifname string, to netip.Prefix, mac string) error {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return err
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	via := netip.MustParseAddr("198.51.100.1").AsSlice() // nobody's: only the neighbour's key
	index := link.Attrs().Index
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: via, HardwareAddr: hw, State: netlink.NUD_PERMANENT}); err != nil {
		return fmt.Errorf("neighbour on %s: %w", ifname, err)
	}
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	r := &netlink.Route{LinkIndex: index, Dst: dst, Gw: via, Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %v: %w", to, err)
	}
	return nil
}

// Close ends the daemons and removes everything.
func (r *Rig) Close() error { return r.Lab.Close() }

// CutSync pulls the cable between the nodes (true), or puts it back: whatever comes over
// the sync link is lost, on both sides, as when a switch in between has died. The
// interfaces stay as they are.
func (r *Rig) CutSync(cut bool) error {
	var losses []lab.Loss
	if cut {
		losses = []lab.Loss{{Interface: IfSync, Percent: 100}}
	}
	return errors.Join(r.A.SetLoss(losses...), r.B.SetLoss(losses...))
}

// WireBytes returns the octets that came over the sync link so far, at B and at A.
func (r *Rig) WireBytes() (atB, atA uint64, err error) {
	_, atB, err = r.B.Received(IfSync)
	if err == nil {
		_, atA, err = r.A.Received(IfSync)
	}
	return atB, atA, err
}

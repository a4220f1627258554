package lab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of our nftables tables, both of family inet.
const (
	rulesTable = "lab"
	lossTable  = "lab_loss"
)

// Ruleset is what a firewall filters and translates. Forwarding and its own input
// are closed to all that has no state: established and related packets pass,
// invalid ones are dropped, and new flows need what the fields say. TCP needs a
// SYN for a new flow.
type Ruleset struct {
	Inside, Outside string // interface names

	// Allow lists the destination ports that new flows from the inside may
	// have. Empty allows all.
	Allow []uint16

	SNAT     []SNAT
	Forwards []Forward

	// Untracked are interfaces whose traffic conntrack does not see: the
	// dedicated links.
	Untracked []string

	VRRP bool // lets the firewalls hear one another's VRRP
}

// SNAT gives flows from a network to the outside one source address. It is plain
// source NAT: mappings outlive the address on the interface. Without an address it is
// masquerading, and they end with the address.
type SNAT struct {
	From netip.Prefix
	To   netip.Addr

	// Random gives every flow another port, as "snat to ADDRESS fully-random". Without it
	// a flow keeps its port where that is free, so that a mapping which is made anew by
	// another firewall may be the same by chance.
	Random bool
}

// Forward sends flows from the outside to an address and port (of TCP and of
// UDP) to a host inside. It lets them in, too.
type Forward struct {
	From, To netip.AddrPort
}

// LoadRules replaces the ruleset of the node and makes its connection tracking
// strict: TCP without a SYN never makes a flow (nf_conntrack_tcp_loose=0).
func (n *Node) LoadRules(r Ruleset) error {
	if err := n.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"); err != nil {
		return err
	}
	return n.replaceTable(rulesTable, r.compile)
}

// ClearRules removes the ruleset.
func (n *Node) ClearRules() error { return n.replaceTable(rulesTable, nil) }

// Loss drops a share of the packets that come in on an interface, before
// connection tracking; 100 % without a port closes the interface.
type Loss struct {
	Interface string
	UDPPort   uint16 // destination port; 0 for every packet, of any protocol
	Percent   int    // 0 to 100
}

// SetLoss replaces all losses of the node; without arguments nothing is lost.
func (n *Node) SetLoss(losses ...Loss) error {
	for _, l := range losses {
		if l.Percent < 0 || l.Percent > 100 {
			return fmt.Errorf("lab: %s: loss of %d %%", n.name, l.Percent)
		}
	}
	return n.replaceTable(lossTable, func(t *table) {
		// Before conntrack and its defragmentation: what is lost was never here.
		t.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityFirst+10, nftables.ChainPolicyAccept)
		for _, l := range losses {
			match := inOn(l.Interface)
			if l.UDPPort != 0 {
				match = cat(match, protocol(unix.IPPROTO_UDP), destinationPort(l.UDPPort))
			}
			t.rule(match, []expr.Any{
				&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
				// Ordered comparison in registers is of octets: big-endian.
				&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(l.Percent))},
			}, drop())
		}
	})
}

func (r Ruleset) compile(t *table) {
	if len(r.Untracked) > 0 {
		t.chain("raw_in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
		for _, ifname := range r.Untracked {
			t.rule(inOn(ifname), []expr.Any{&expr.Notrack{}})
		}
		t.chain("raw_out", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
		for _, ifname := range r.Untracked {
			t.rule(outOn(ifname), []expr.Any{&expr.Notrack{}})
		}
	}

	t.chain("dnat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	for _, f := range r.Forwards {
		for _, proto := range [...]byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			t.rule(inOn(r.Outside), addressIn(fieldDst, netip.PrefixFrom(f.From.Addr(), f.From.Addr().BitLen())),
				protocol(proto), destinationPort(f.From.Port()), translate(expr.NATTypeDestNAT, f.To.Addr(), f.To.Port()))
		}
	}
	t.chain("snat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	for _, s := range r.SNAT {
		action := []expr.Any{&expr.Masq{FullyRandom: s.Random}}
		if s.To.IsValid() {
			action = translate(expr.NATTypeSourceNAT, s.To, 0)
			action[len(action)-1].(*expr.NAT).FullyRandom = s.Random
		}
		t.rule(outOn(r.Outside), addressIn(fieldSrc, s.From), action)
	}

	const known = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(state(expr.CtStateBitINVALID), drop())
	t.rule(state(known), accept())
	newFlow := func(match ...[]expr.Any) {
		match = append(match, state(expr.CtStateBitNEW))
		t.rule(append(match, protocol(unix.IPPROTO_TCP), synOnly(), accept())...)
		t.rule(append(match, protocol(unix.IPPROTO_UDP), accept())...)
	}
	if len(r.Allow) == 0 {
		newFlow(inOn(r.Inside))
		t.rule(inOn(r.Inside), protocol(unix.IPPROTO_ICMP), accept())
		t.rule(inOn(r.Inside), protocol(unix.IPPROTO_ICMPV6), accept())
	}
	for _, port := range r.Allow {
		newFlow(inOn(r.Inside), transport(), destinationPort(port))
	}
	if len(r.Forwards) > 0 {
		newFlow(inOn(r.Outside), translated())
	}

	// Without state, a reply to a source-NATed flow is addressed to the firewall
	// itself. Were it let in, the firewall would answer with a reset or an ICMP
	// error, and UDP would make a flow that is in the way of the right one.
	t.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(inOn("lo"), accept())
	for _, ifname := range r.Untracked {
		t.rule(inOn(ifname), accept())
	}
	t.rule(protocol(unix.IPPROTO_ICMPV6), accept()) // neighbour discovery
	t.rule(protocol(unix.IPPROTO_ICMP), accept())
	if r.VRRP {
		const vrrp = 112 // RFC 9568, section 5.1.1.4
		t.rule(protocol(vrrp), accept())
	}
	t.rule(state(known), accept())
}

// replaceTable replaces a table in one transaction; a nil fill only removes it.
func (n *Node) replaceTable(name string, fill func(*table)) error {
	conn, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	if err != nil {
		return fmt.Errorf("lab: %s: nftables: %w", n.name, err)
	}
	t := &table{conn: conn, table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	conn.AddTable(t.table) // deleting needs one
	conn.DelTable(t.table)
	if fill != nil {
		conn.AddTable(t.table)
		fill(t)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("lab: %s: load table %s: %w", n.name, name, err)
	}
	return nil
}

// table is a table that is being filled; rules go to its latest chain.
type table struct {
	conn  *nftables.Conn
	table *nftables.Table
	last  *nftables.Chain
}

func (t *table) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, policy nftables.ChainPolicy) {
	t.last = t.conn.AddChain(&nftables.Chain{
		Name: name, Table: t.table, Type: typ, Hooknum: hook, Priority: &priority, Policy: &policy,
	})
}

func (t *table) rule(parts ...[]expr.Any) {
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: t.last, Exprs: cat(parts...)})
}

func cat(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

// Every expression below loads into register 1 and compares there.

func equal(key expr.Any, value []byte) []expr.Any {
	return []expr.Any{key, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func inOn(ifname string) []expr.Any {
	return equal(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, interfaceName(ifname))
}

func outOn(ifname string) []expr.Any {
	return equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, interfaceName(ifname))
}

// interfaceName pads a name to IFNAMSIZ: the kernel compares all of it.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func protocol(proto byte) []expr.Any {
	return equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{proto})
}

// transport matches protocols that begin with a source and a destination port,
// among those that the rules care for: whatever is not ICMP.
func transport() []expr.Any {
	var match []expr.Any
	for _, proto := range [...]byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		match = append(match, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{proto}})
	}
	return match
}

func destinationPort(port uint16) []expr.Any {
	return equal(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		binaryutil.BigEndian.PutUint16(port))
}

// synOnly matches TCP packets that begin a connection: of SYN, ACK, RST and FIN
// only SYN is set.
func synOnly() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
	}
}

// state matches packets whose conntrack state is one of the bits.
func state(bits uint32) []expr.Any { return anyBit(expr.CtKeySTATE, bits) }

// translated matches packets of flows with a destination that was translated.
func translated() []expr.Any {
	const dstNAT = 0x20 // IPS_DST_NAT, nf_conntrack_common.h
	return anyBit(expr.CtKeySTATUS, dstNAT)
}

func anyBit(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// field is an address of the IP header.
type field int

const (
	fieldSrc field = iota
	fieldDst
)

// addressIn matches packets of the network's family whose address is in it.
func addressIn(f field, network netip.Prefix) []expr.Any {
	size := uint32(network.Addr().BitLen() / 8)
	offset := uint32(12) // RFC 791
	if network.Addr().Is6() {
		offset = 8 // RFC 8200
	}
	offset += uint32(f) * size
	match := equal(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{byte(natFamily(network.Addr()))})
	return append(match,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: kernelNet(network).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network.Masked().Addr().AsSlice()},
	)
}

// translate is NAT to an address and, if it is not zero, to a port.
func translate(typ expr.NATType, addr netip.Addr, port uint16) []expr.Any {
	nat := &expr.NAT{Type: typ, Family: natFamily(addr), RegAddrMin: 1}
	exprs := []expr.Any{&expr.Immediate{Register: 1, Data: addr.AsSlice()}}
	if port != 0 {
		exprs = append(exprs, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)})
		nat.RegProtoMin, nat.Specified = 2, true
	}
	return append(exprs, nat)
}

func natFamily(a netip.Addr) uint32 {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/ti-mo/conntrack"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

// Ports of the servers: what the rules give to flows to them.
const (
	portPlain     = 7000
	portZone      = 7010 // zone 10 for both directions
	portOrigZone  = 7011 // zone 11 for the original direction
	portReplyZone = 7012 // zone 12 for the reply direction
	portMark      = 7020 // ruleMark
	portLabels    = 7021 // label 5
	portHelper    = 7022 // the helper of FTP
	portTurned    = 7100 // translated to portPlain, with the same address

	portForward = 8000 // of the outer virtual address: to the client's port 9000
	portBoth    = 8001 // the same to port 9001, with source NAT too
	portInside  = 9000
)

const ruleMark = 0xdeadbeef

// fidelityRules are the rules of both firewalls, for nft(8): every attribute that a
// rule can give to a flow, and nothing passes without a flow.
func fidelityRules(p *lab.Pair) string {
	var nat [2]strings.Builder // destination, source
	const ported = "meta l4proto { tcp, udp, udplite, sctp }"
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		ip, host := "ip", func(a netip.Addr) string { return a.String() }
		if a.Server.Is6() {
			ip, host = "ip6", func(a netip.Addr) string { return "[" + a.String() + "]" }
		}
		fmt.Fprintf(&nat[0], `
		iifname %q %s daddr %s %s th dport %d dnat %s to %s:%d
		iifname %q %s daddr %s %s th dport %d dnat %s to %s:%d
		iifname %q %s daddr %s %s th dport %d dnat %s to %s:%d`,
			lab.IfOutside, ip, a.OutsideVIP, ported, portForward, ip, host(a.Plain), portInside,
			lab.IfOutside, ip, a.OutsideVIP, ported, portBoth, ip, host(a.Plain), portInside+1,
			lab.IfInside, ip, a.Server, ported, portTurned, ip, host(a.Server), portPlain)
		// Ports by chance: an entry that is made anew has another one.
		fmt.Fprintf(&nat[1], `
		oifname %q %s saddr %s %s snat %s to %s:20000-29999 fully-random
		oifname %q %s saddr { %s, %s } snat %s to %s
		oifname %q ct status dnat %s daddr %s %s th dport %d snat %s to %s:30000-39999 fully-random`,
			lab.IfOutside, ip, a.Hidden, ported, ip, host(a.OutsideVIP),
			lab.IfOutside, ip, a.Hidden, a.Hidden.Next(), ip, a.OutsideVIP,
			lab.IfInside, ip, a.Plain, ported, portInside+1, ip, host(a.InsideVIP))
	}
	return fmt.Sprintf(`
table inet fidelity {
	ct helper ftp { type "ftp" protocol tcp; }
	counter invalid_tcp { }
	counter invalid_udp { }
	counter invalid_udplite { }
	counter invalid_sctp { }
	counter invalid_others { }
	chain raw_in {
		type filter hook prerouting priority raw; policy accept;
		iifname %[1]q notrack
		meta l4proto { tcp, udp } th dport %[5]d ct zone set 10
		meta l4proto { tcp, udp } th sport %[5]d ct zone set 10
		meta l4proto { tcp, udp } th dport %[6]d ct original zone set 11
		meta l4proto { tcp, udp } th dport %[7]d ct reply zone set 12
		meta l4proto { tcp, udp } th sport %[7]d ct reply zone set 12
	}
	chain raw_out {
		type filter hook output priority raw; policy accept;
		oifname %[1]q notrack
	}
	chain attributes {
		type filter hook prerouting priority mangle; policy accept;
		meta l4proto { tcp, udp } th dport %[8]d ct state new ct mark set %[10]d
		meta l4proto { tcp, udp } th dport %[9]d ct state new ct label set 5
		tcp dport %[12]d ct state new ct helper set "ftp"
	}
	chain nat_in {
		type nat hook prerouting priority dstnat; policy accept;%[3]s
	}
	chain nat_out {
		type nat hook postrouting priority srcnat; policy accept;%[4]s
	}
	chain refuse {
		type filter hook prerouting priority 1; policy accept;
		tcp dport %[11]d accept # where there is a SYN proxy it wants to see them
		ct state invalid counter name meta l4proto map { tcp : "invalid_tcp", udp : "invalid_udp", udplite : "invalid_udplite", sctp : "invalid_sctp" } drop
		ct state invalid counter name "invalid_others" drop
	}
	chain through {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn drop
		ct state new iifname %[2]q accept
		ct state new ct status dnat accept
	}
	chain own {
		type filter hook input priority filter; policy drop;
		iifname { "lo", %[1]q } accept
		meta l4proto { icmp, ipv6-icmp } accept
		ct state established,related accept
	}
}
`, lab.IfSync, lab.IfInside, nat[0].String(), nat[1].String(),
		portZone, portOrigZone, portReplyZone, portMark, portLabels, ruleMark, portSYNProxy, portHelper)
}

// nft loads a ruleset into a node.
func nft(t testing.TB, n *lab.Node, rules string) string {
	t.Helper()
	need(t, "nft")
	cmd := n.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := n.Output(cmd)
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

// invalid returns how many packets of a protocol a firewall has judged invalid so far.
func invalid(t testing.TB, n *lab.Node, proto uint8) uint64 {
	t.Helper()
	name, there := map[uint8]string{flow.TCP: "tcp", flow.UDP: "udp", flow.UDPLite: "udplite", flow.SCTP: "sctp"}[proto]
	if !there {
		name = "others"
	}
	c, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	ok(t, err)
	o, err := c.GetObject(&nftables.CounterObj{Name: "invalid_" + name, Table: &nftables.Table{Name: "fidelity", Family: nftables.TableFamilyINet}})
	ok(t, err)
	return o.(*nftables.CounterObj).Packets
}

// fidelityPair builds a pair with those rules, and daemons on its firewalls.
func fidelityPair(t testing.TB, r roles, opts duoOptions) (*lab.Pair, *duo) {
	t.Helper()
	p, err := lab.FirewallPair(newLab(t))
	ok(t, err)
	for _, fw := range []*lab.Node{p.FW1, p.FW2} {
		// The kernel takes checksums of UDP-Lite for those of UDP, and all of its
		// packets for invalid, unless it does not look.
		ok(t, fw.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"), fw.Sysctl("net.netfilter.nf_conntrack_checksum", "0"))
		nft(t, fw, fidelityRules(p))
	}
	for _, n := range []*lab.Node{p.Client, p.Server} {
		// Echoes are answered by hand; retransmissions come each second at least.
		ok(t, n.Sysctl("net.ipv4.icmp_echo_ignore_all", "1"), n.Sysctl("net.ipv6.icmp.echo_ignore_all", "1"))
		for _, name := range []string{"tcp_syn_retries", "tcp_synack_retries"} {
			ok(t, n.Sysctl("net.ipv4."+name, "60"))
		}
		ok(t, n.Sysctl("net.ipv4.tcp_rto_max_ms", "1000"))
	}
	d := duoOn(t, r, udp4, opts, p.FW1, p.FW2)
	d.accept = passes(p)
	d.startA()
	d.startB()
	d.a.Primary()
	d.b.Backup()
	return p, d
}

// fidelitySetups are the daemons and dialects in which all of this must hold.
var fidelitySetups = []struct {
	name  string
	roles roles
	opts  duoOptions
}{
	{"sealed", roles{ours, ours}, duoOptions{sealed: true, syncd: "[filter]\nlabels = true"}},
	{"plain", roles{ours, ours}, duoOptions{tracking: true, syncd: "[filter]\nlabels = true"}},
	{"to conntrackd", roles{ours, theirs}, duoOptions{tracking: true, syncd: "[filter]\nlabels = true"}},
	{"from conntrackd", roles{theirs, ours}, duoOptions{tracking: true, syncd: "[filter]\nlabels = true"}},
}

// ways are all ways through the firewalls in one family.
func ways(p *lab.Pair, a lab.Addresses) []way {
	server, client := netip.AddrPortFrom(a.Server, portPlain), netip.AddrPortFrom(a.Plain, portInside)
	out := func(name string, src netip.Addr, to netip.AddrPort, seen netip.Addr) way {
		return way{name: name, near: p.Client, src: src, to: to, far: p.Server, at: server, seen: seen}
	}
	in := func(name string, to uint16, at netip.AddrPort, seen netip.Addr) way {
		return way{name: name, near: p.Server, src: a.Server, to: netip.AddrPortFrom(a.OutsideVIP, to), far: p.Client, at: at, seen: seen}
	}
	all := []way{
		out("routed", a.Plain, server, a.Plain),
		out("source NAT", a.Hidden, server, a.OutsideVIP),
		in("destination NAT", portForward, client, a.Server),
		in("both NATs", portBoth, netip.AddrPortFrom(a.Plain, portInside+1), a.InsideVIP),
		out("port alone", a.Plain, netip.AddrPortFrom(a.Server, portTurned), a.Plain),
	}
	all[1].srcPort, all[2].dstPort, all[3].srcPort, all[3].dstPort, all[4].dstPort = true, true, true, true, true
	return all
}

// translations are conversations on every way, in every protocol with ports.
func translations(t testing.TB, p *lab.Pair, far *places) []conversation {
	t.Helper()
	var all []conversation
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for i, w := range ways(p, a) {
			add := func(proto uint8, local netip.AddrPort, goOn func() error) {
				all = append(all, conversation{
					name: fmt.Sprintf("%s %s, %s", protocolNames[proto], family(a), w.name),
					is:   from(proto, local), lacks: w.untranslated, goOn: goOn,
				})
			}
			s := far.openStream(t, w)
			add(flow.TCP, s.local(), s.goOn)
			for _, proto := range []uint8{flow.UDP, flow.UDPLite} {
				d := far.openDatagrams(t, w, proto)
				add(proto, d.near.local(), d.goOn)
			}
			sc := associate(t, w, uint16(40000+i), 0x11223300+uint32(i), 0xa1b2c300+uint32(i))
			ok(t, sc.establish(), sc.goOn())
			add(flow.SCTP, sc.near.local(), sc.goOn)
			all[len(all)-1].wrong = sc.wrong
		}
	}
	return all
}

// ruled are conversations to which rules give something.
func ruled(t testing.TB, p *lab.Pair, far *places, d *duo) []conversation {
	t.Helper()
	var all []conversation
	zones := func(zone, orig, reply uint16) func(f *conntrack.Flow) bool {
		return func(f *conntrack.Flow) bool {
			return f.Zone == zone && f.TupleOrig.Zone == orig && f.TupleReply.Zone == reply
		}
	}
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, r := range []struct {
			port     uint16
			what     string
			has      func(f *conntrack.Flow) bool
			ownWords bool // only our own dialect has words for it
		}{
			{portMark, "mark", func(f *conntrack.Flow) bool { return f.Mark == ruleMark }, false},
			{portLabels, "label", func(f *conntrack.Flow) bool { return len(f.Labels) > 0 && f.Labels[0] == 1<<5 }, false},
			{portZone, "zone", zones(10, 0, 0), false},
			{portHelper, "helper", func(f *conntrack.Flow) bool { return f.Helper.Name == "ftp" }, false},
			{portOrigZone, "zone of the original direction", zones(0, 11, 0), true},
			{portReplyZone, "zone of the reply direction", zones(0, 0, 12), true},
		} {
			if r.ownWords && !d.opts.sealed {
				continue
			}
			for i, w := range ways(p, a)[:2] { // routed, source NAT
				w.to = netip.AddrPortFrom(a.Server, r.port)
				w.at = w.to
				add := func(proto uint8, local netip.AddrPort, goOn func() error) {
					all = append(all, conversation{
						name: fmt.Sprintf("%s of %s %s, %s", r.what, protocolNames[proto], family(a), w.name),
						is:   from(proto, local), goOn: goOn,
						lacks: func(f *conntrack.Flow) string {
							if !r.has(f) {
								return fmt.Sprintf("the %s: %+v", r.what, *f)
							}
							return w.untranslated(f)
						},
					})
				}
				if i == 0 || r.port == portHelper {
					s := far.openStream(t, w)
					add(flow.TCP, s.local(), s.goOn)
					continue
				}
				u := far.openDatagrams(t, w, flow.UDP)
				add(flow.UDP, u.near.local(), u.goOn)
			}
		}
	}
	return all
}

// udpStreams are conversations in UDP that have gone on for a while, so that the
// kernel takes them for streams.
func udpStreams(t testing.TB, p *lab.Pair, far *places) []conversation {
	t.Helper()
	var all []conversation
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, w := range ways(p, a)[1:4] { // with source NAT, destination NAT, and both
			u := far.openDatagrams(t, w, flow.UDP)
			all = append(all, conversation{
				name: fmt.Sprintf("stream of UDP %s, %s", family(a), w.name),
				is:   from(flow.UDP, u.near.local()), goOn: u.goOn,
				lacks: func(f *conntrack.Flow) string {
					if !f.Status.Assured() {
						return fmt.Sprintf("assurance: %v", f.Status)
					}
					return w.untranslated(f)
				},
			})
		}
	}
	const young = 2 * time.Second // of a stream: nf_conntrack_proto_udp.c
	time.Sleep(young + 200*time.Millisecond)
	for _, c := range all {
		ok(t, c.goOn())
	}
	return all
}

// portless are conversations in protocols without ports: echoes, with an
// identifier that is translated, and tunnels.
func portless(t testing.TB, p *lab.Pair, sealed bool) []conversation {
	t.Helper()
	var all []conversation
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		proto, request := uint8(flow.ICMP), uint16(8<<8)
		if a.Server.Is6() {
			proto, request = flow.ICMPv6, 128<<8
		}
		ok(t, p.Client.AddAddr("eth0", netip.PrefixFrom(a.Hidden.Next(), a.Hidden.BitLen())))
		echoes := ways(p, a)[:2] // routed, source NAT
		echoes[1].srcPort = false
		if sealed {
			// A second one with the same identifier: it must be translated.
			w := echoes[1]
			w.name, w.src, w.srcPort = "source NAT with identifier", a.Hidden.Next(), true
			echoes = append(echoes, w)
		}
		for _, w := range echoes {
			d := &datagrams{to: netip.AddrPortFrom(a.Server, 0),
				near: openEcho(t, w.near, netip.AddrPortFrom(w.src, 0x4d2), false),
				far:  openEcho(t, w.far, netip.AddrPortFrom(a.Server, 0), true)}
			ok(t, d.ask())
			w.at, w.to = netip.AddrPortFrom(a.Server, 0), netip.AddrPortFrom(a.Server, 0)
			all = append(all, conversation{
				name: fmt.Sprintf("echo %s, %s", family(a), w.name),
				is:   func(k tuple) bool { return k.proto == proto && k.src == w.src && k.dport == request },
				lacks: func(f *conntrack.Flow) string {
					if w.srcPort != (f.TupleReply.Proto.ICMPID != f.TupleOrig.Proto.ICMPID) {
						return fmt.Sprintf("the identifier of %q: %+v", w.name, f.TupleReply.Proto)
					}
					return w.untranslated(f)
				},
				goOn: d.goOn,
			})
		}
		for _, w := range ways(p, a)[:2] {
			w.at, w.to = netip.AddrPortFrom(a.Server, 0), netip.AddrPortFrom(a.Server, 0)
			g := &datagrams{to: w.to, near: openGRE(t, w.near, w.src), far: openGRE(t, w.far, a.Server)}
			tunnel := func() error {
				return errors.Join(g.toNear(greKeyed(0xcafe, g.payload())), g.toFar(greKeyed(0xcafe, g.payload())))
			}
			ok(t, g.toFar(greKeyed(0xcafe, g.payload())), tunnel())
			all = append(all, conversation{
				name:  fmt.Sprintf("GRE tunnel %s, %s", family(a), w.name),
				is:    func(k tuple) bool { return k.proto == flow.GRE && k.src == w.src && k.dport == 0 },
				lacks: w.untranslated,
				goOn:  tunnel,
			})
		}
		// Without the helper of PPTP the kernel knows a call in one direction.
		src := a.Hidden.Next() // a conntrackd takes calls and tunnels of the same ends for one
		g := &datagrams{to: netip.AddrPortFrom(a.Server, 0), near: openGRE(t, p.Client, src), far: openGRE(t, p.Server, a.Server)}
		call := func() error { return g.toFar(greCall(0x1234, g.payload())) }
		ok(t, call())
		all = append(all, conversation{
			name: "GRE call " + family(a),
			is:   func(k tuple) bool { return k.proto == flow.GRE && k.src == src && k.dport == 0x1234 },
			goOn: call,
		})
	}
	return all
}

func family(a lab.Addresses) string {
	if a.Server.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// Whatever a kernel knows of a connection, the kernel of the firewall that takes
// over knows as well, and the connection goes on.
func TestFidelity(t *testing.T) {
	for _, setup := range fidelitySetups {
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			p, d := fidelityPair(t, setup.roles, setup.opts)
			far := newPlaces()
			all := translations(t, p, far)
			all = append(all, ruled(t, p, far, d)...)
			all = append(all, portless(t, p, d.opts.sealed)...)
			all = append(all, udpStreams(t, p, far)...)
			all = append(all, stages(t, p, far, d)...)
			slices.Reverse(all) // what has little time comes first
			d.proveAll(t, p, all)
		})
	}
}

// peerLimits are the flows that a real conntrackd does not carry over such that they
// could go on. Nothing can be asked of these.
var peerLimits = []struct {
	why string
	of  func(r roles, f *conntrack.Flow) bool
}{
	{"a conntrackd commits translated ports of TCP and UDP alone", func(r roles, f *conntrack.Flow) bool {
		o, p := f.TupleOrig.Proto, f.TupleReply.Proto
		return r.receiver == theirs && (o.Protocol == flow.SCTP || o.Protocol == flow.UDPLite) &&
			(o.SourcePort != p.DestinationPort || o.DestinationPort != p.SourcePort)
	}},
	{"a conntrackd commits GRE such that the first packet ends it", func(r roles, f *conntrack.Flow) bool {
		return r.receiver == theirs && f.TupleOrig.Proto.Protocol == flow.GRE
	}},
	{"a conntrackd sends neither ports of UDP-Lite nor keys of GRE", func(r roles, f *conntrack.Flow) bool {
		o := f.TupleOrig.Proto
		return r.sender == theirs && (o.Protocol == flow.UDPLite || o.Protocol == flow.GRE && o.DestinationPort != 0)
	}},
}

// proveAll cuts the first firewall off, lets the second one take over, and compares
// the kernels conversation by conversation; each must go on.
func (d *duo) proveAll(t *testing.T, p *lab.Pair, all []conversation) {
	t.Helper()
	d.waitReplicated(10*time.Second, "the conversations")
	ok(t, p.TakeOver(d.nA, d.nB))
	if r := d.primary(t); r != nil && (r.Refused != 0 || r.Created == 0 || len(r.IncompleteBy) != 0) {
		t.Errorf("the commit: %+v", *r)
	}
	d.proveEach(t, all)
}

// primary lets the second firewall take over, and returns what its commit did; nil if
// it is a conntrackd, which does not say.
func (d *duo) primary(t testing.TB) *ctl.CommitCount {
	t.Helper()
	if d.b.real {
		d.b.Primary()
		return nil
	}
	r, err := d.b.ctl.SetRole(t.Context(), ctl.RolePrimary, nil)
	ok(t, err)
	total := r.Commit.Total()
	return &total
}

// proveEach compares the kernels conversation by conversation, and lets each go on.
func (d *duo) proveEach(t *testing.T, all []conversation) {
	t.Helper()
	originals, committed := kernelFlows(t, d.kA, d.accept), kernelFlows(t, d.kB, d.accept)
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			k, a := find(t, originals, c)
			if c.lacks != nil {
				if what := c.lacks(&a); what != "" {
					t.Fatalf("the first kernel's flow lacks %s", what)
				}
			}
			for _, l := range peerLimits {
				if l.of(d.roles, &a) {
					return
				}
			}
			_, b := find(t, committed, c)
			if bad := compareCommitted(d.roles, d.opts, a, b); bad != "" {
				t.Errorf("%v was not committed as it is:\n%s", k, bad)
			}
			before := invalid(t, d.nB, k.proto)
			if err := c.goOn(); err != nil {
				t.Errorf("it does not go on: %v", err)
			}
			if n := invalid(t, d.nB, k.proto) - before; n != 0 {
				t.Errorf("%d packets are invalid", n)
			}
			if c.wrong != nil {
				n, err := c.wrong()
				ok(t, err)
				waitFor(t, transit, fmt.Sprintf("%d wrong packets are invalid", n), func() bool { return invalid(t, d.nB, k.proto) == before+n })
			}
			_, after := find(t, kernelFlows(t, d.kB, d.accept), c)
			if after.ID != b.ID {
				t.Errorf("another entry carries it than the one that was committed: %+v, before %+v", after, b)
			}
		})
	}
}

// find returns the flow of a conversation.
func find(t testing.TB, flows map[tuple]conntrack.Flow, c conversation) (tuple, conntrack.Flow) {
	t.Helper()
	for k, f := range flows {
		if c.is(k) {
			return k, f
		}
	}
	t.Fatalf("there is no flow among %d", len(flows))
	return tuple{}, conntrack.Flow{}
}

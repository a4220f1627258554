package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// Status of flows that have seen both directions, enough of them, or only one.
const (
	established = conntrack.StatusConfirmed | conntrack.StatusSeenReply | conntrack.StatusAssured
	replied     = conntrack.StatusConfirmed | conntrack.StatusSeenReply
	unanswered  = conntrack.StatusConfirmed
)

// specimen is a kind of flow, and how to make one.
type specimen struct {
	name string
	flow conntrack.Flow
	// args are of conntrack(8), which makes those with translated addresses.
	args string
}

// client4 and client6 are the sources of the specimen with this number, and server4
// and server6 the destinations of all.
func client4(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 1, byte(n)}) }
func client6(n int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%x", n))
}

var (
	server4 = netip.MustParseAddr("198.19.0.1")
	server6 = netip.MustParseAddr("2001:db8:200::1")
)

// specimens are flows of all kinds.
func specimens() []specimen {
	var all []specimen
	number := 0
	source := func(v6 bool) (src, dst netip.Addr) {
		number++
		if v6 {
			return client6(number), server6
		}
		return client4(number), server4
	}
	add := func(name string, proto uint8, v6 bool, status conntrack.Status, sport, dport uint16, mark uint32, change func(f *conntrack.Flow)) *specimen {
		src, dst := source(v6)
		f := conntrack.NewFlow(proto, status, src, dst, sport, dport, 400, mark)
		if change != nil {
			change(&f)
		}
		all = append(all, specimen{name: name, flow: f})
		return &all[len(all)-1]
	}
	tcp := func(state uint8) func(f *conntrack.Flow) {
		return func(f *conntrack.Flow) {
			f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: state}
		}
	}

	for state := uint8(flow.TCPSynSent); state <= flow.TCPSynSent2; state++ {
		status := conntrack.Status(established)
		switch state {
		case flow.TCPSynSent, flow.TCPSynSent2:
			status = unanswered
		case flow.TCPSynRecv:
			status = replied
		}
		for _, v6 := range []bool{false, true} {
			add(fmt.Sprintf("TCP %s, IPv6 %v", tcpStates[state], v6), flow.TCP, v6, status, 40000, 443, 0, tcp(state))
		}
	}
	add("TCP with window scales", flow.TCP, false, established, 40001, 443, 0, func(f *conntrack.Flow) {
		// The upper octet of each pair is the flags, the lower one their mask.
		f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: flow.TCPEstablished,
			OriginalWindowScale: 7, ReplyWindowScale: 9, OriginalFlags: 0x0303, ReplyFlags: 0x0303}
	})
	add("TCP with window scales, IPv6", flow.TCP, true, established, 40001, 443, 0, func(f *conntrack.Flow) {
		f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: flow.TCPEstablished,
			OriginalWindowScale: 14, ReplyWindowScale: 1, OriginalFlags: 0x0303, ReplyFlags: 0x0303}
	})
	for _, v6 := range []bool{false, true} {
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		add("UDP unanswered, "+family, flow.UDP, v6, unanswered, 5353, 53, 0, nil)
		add("UDP answered, "+family, flow.UDP, v6, replied, 5354, 53, 0, nil)
		add("UDP stream, "+family, flow.UDP, v6, established, 5355, 53, 0, nil)
		add("UDP-Lite, "+family, flow.UDPLite, v6, established, 6000, 6001, 0, nil)
		add("another protocol, "+family, 89, v6, replied, 0, 0, 0, nil)
		add("mark and timeout, "+family, flow.UDP, v6, replied, 7000, 7001, 0xdeadbeef, func(f *conntrack.Flow) { f.Timeout = 86400 })
		add("zone, "+family, flow.TCP, v6, established, 7002, 7003, 1, func(f *conntrack.Flow) {
			tcp(flow.TCPEstablished)(f)
			f.Zone = 7
		})
		for _, state := range []uint8{flow.SCTPCookieWait, flow.SCTPEstablished, flow.SCTPShutdownSent} {
			add(fmt.Sprintf("SCTP %s, %s", sctpStates[state], family), flow.SCTP, v6, established, 2905, 2906, 0, func(f *conntrack.Flow) {
				f.ProtoInfo.SCTP = &conntrack.ProtoInfoSCTP{State: state, VTagOriginal: 0x11223344, VTagReply: 0xa1b2c3d4}
			})
		}
		add("labels, "+family, flow.TCP, v6, established, 7004, 7005, 0, func(f *conntrack.Flow) {
			tcp(flow.TCPEstablished)(f)
			f.Labels = []byte{0x02, 0, 0, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40}
		})
		master := add("helper, "+family, flow.TCP, v6, established, 7006, 21, 0, func(f *conntrack.Flow) {
			tcp(flow.TCPEstablished)(f)
			f.Helper.Name = "ftp\x00" // the kernel wants a C string
		}).flow.TupleOrig
		add("related, "+family, flow.TCP, v6, established, 20, 7007, 0, func(f *conntrack.Flow) {
			tcp(flow.TCPEstablished)(f)
			f.TupleMaster = master
		})
	}
	add("GRE", flow.GRE, false, replied, 0x1234, 0x5678, 0, nil)
	ping := func(proto, request, reply uint8) func(f *conntrack.Flow) {
		return func(f *conntrack.Flow) {
			f.TupleOrig.Proto = conntrack.ProtoTuple{Protocol: proto, ICMPv4: proto == flow.ICMP, ICMPv6: proto == flow.ICMPv6, ICMPType: request, ICMPID: 0x1234}
			f.TupleReply.Proto = f.TupleOrig.Proto
			f.TupleReply.Proto.ICMPType = reply
		}
	}
	add("ICMP", flow.ICMP, false, replied, 0, 0, 0, ping(flow.ICMP, 8, 0))
	add("ICMP timestamp", flow.ICMP, false, replied, 0, 0, 0, ping(flow.ICMP, 13, 14))
	add("ICMPv6", flow.ICMPv6, true, replied, 0, 0, 0, ping(flow.ICMPv6, 128, 129))

	// What ti-mo/conntrack cannot make.
	for _, v6 := range []bool{false, true} {
		outside, outsidePort, inside, insidePort := "203.0.113.9", "203.0.113.9:1024", "203.0.113.10", "203.0.113.10:8080"
		family := "IPv4"
		if v6 {
			outside, outsidePort, inside, insidePort = "2001:db8:2::9", "[2001:db8:2::9]:1024", "2001:db8:2::10", "[2001:db8:2::10]:8080"
			family = "IPv6"
		}
		for i, nat := range []struct{ name, args string }{
			{"source NAT", "--src-nat " + outside},
			{"source NAT with port", "--src-nat " + outsidePort},
			{"destination NAT", "--dst-nat " + inside},
			{"destination NAT with port", "--dst-nat " + insidePort},
			{"both NATs", "--src-nat " + outsidePort + " --dst-nat " + insidePort},
			{"port alone", "--dst-nat SERVER:8443"},
		} {
			for j, proto := range []string{"tcp --state ESTABLISHED", "udp"} {
				src, dst := source(v6)
				server := dst.String()
				if v6 {
					server = "[" + server + "]"
				}
				all = append(all, specimen{
					name: fmt.Sprintf("%s, %s, %s", nat.name, proto[:3], family),
					args: fmt.Sprintf("-I -p %s -s %s -d %s --sport %d --dport %d -u SEEN_REPLY,ASSURED -t 400 -m %d %s",
						proto, src, dst, 50000+i*2+j, 443, i, strings.ReplaceAll(nat.args, "SERVER", server)),
				})
			}
		}
	}
	return all
}

// makeAll makes flows in a kernel.
func makeAll(t testing.TB, n *lab.Node, k *conntrack.Conn, all []specimen) {
	t.Helper()
	var lines strings.Builder
	for _, s := range all {
		if s.args != "" {
			lines.WriteString(s.args + "\n")
		} else if err := k.Create(s.flow); err != nil {
			t.Fatalf("create %s: %v", s.name, err)
		}
	}
	cmd := n.Command("conntrack", "--load-file", "-")
	cmd.Stdin = strings.NewReader(lines.String())
	if out, err := n.Output(cmd); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// liberties are all the ways in which a flow that was committed may differ from
// the original. Everything else must be equal.
var liberties = []struct {
	why    string
	of     func(r roles, o duoOptions, a *conntrack.Flow) bool // a is the original
	forget func(f *conntrack.Flow)
}{
	{"each kernel has its own ids and its own users of an entry", always,
		func(f *conntrack.Flow) { f.ID, f.Use = 0, 0 }},
	{"timeouts run; their bounds are checked apart", always,
		func(f *conntrack.Flow) { f.Timeout = 0 }},
	{"of GRE, packets would not refresh the timeout: it is fixed, and long", func(r roles, _ duoOptions, f *conntrack.Flow) bool {
		return f.TupleOrig.Proto.Protocol == flow.GRE && r.receiver == ours
	}, func(f *conntrack.Flow) { f.Status &^= flow.StatusFixedTimeout }},
	{"the done bits of a flow that is not translated say only that rules of nat were looked at", always,
		func(f *conntrack.Flow) {
			const done = conntrack.StatusSrcNATDone | conntrack.StatusDstNATDone
			if f.Status&(conntrack.StatusSrcNAT|conntrack.StatusDstNAT) == 0 {
				f.Status &^= done
			}
		}},
	{"be-liberal is the receiver's choice: it has not seen the windows, so nor what was acknowledged", always,
		keepTCPFlags(flow.TCPFlagsReplicated)},
	{"conntrackd's format has no flags of TCP", func(_ roles, o duoOptions, _ *conntrack.Flow) bool { return !o.sealed },
		keepTCPFlags(flow.TCPFlagWindowScale)},
	{"the kernel takes window scales of both directions or none, and a SYN alone has one: the flag of the other is set too", func(_ roles, _ duoOptions, f *conntrack.Flow) bool {
		return f.ProtoInfo.TCP != nil && f.ProtoInfo.TCP.State == flow.TCPSynSent
	}, func(f *conntrack.Flow) { f.ProtoInfo.TCP.ReplyFlags &^= flow.TCPFlagWindowScale << 8 }},
	{"a conntrackd that does not track windows sends no scales", func(r roles, o duoOptions, _ *conntrack.Flow) bool {
		return r.sender == theirs && !o.tracking
	}, forgetScales},
	{"a conntrackd commits scales without the flag that makes them count", func(r roles, _ duoOptions, _ *conntrack.Flow) bool {
		return r.receiver == theirs
	}, forgetScales},
	{"a conntrackd sends neither ports of UDP-Lite nor keys of GRE", func(r roles, _ duoOptions, f *conntrack.Flow) bool {
		p := f.TupleOrig.Proto.Protocol
		return r.sender == theirs && (p == flow.UDPLite || p == flow.GRE)
	}, func(f *conntrack.Flow) {
		for _, t := range []*conntrack.Tuple{&f.TupleOrig, &f.TupleReply} {
			t.Proto.SourcePort, t.Proto.DestinationPort = 0, 0
		}
	}},
	{"a conntrackd without window tracking writes over a verification tag", func(r roles, o duoOptions, _ *conntrack.Flow) bool {
		return r.receiver == theirs && !o.tracking
	}, func(f *conntrack.Flow) {
		if f.ProtoInfo.SCTP != nil {
			f.ProtoInfo.SCTP.VTagOriginal = 0
		}
	}},
}

func always(roles, duoOptions, *conntrack.Flow) bool { return true }

// keepTCPFlags forgets all flags but these, of both directions.
func keepTCPFlags(keep uint16) func(f *conntrack.Flow) {
	return func(f *conntrack.Flow) {
		if tcp := f.ProtoInfo.TCP; tcp != nil {
			tcp.OriginalFlags &= keep << 8
			tcp.ReplyFlags &= keep << 8
		}
	}
}

func forgetScales(f *conntrack.Flow) {
	if tcp := f.ProtoInfo.TCP; tcp != nil {
		tcp.OriginalWindowScale, tcp.ReplyWindowScale = 0, 0
		tcp.OriginalFlags &^= flow.TCPFlagWindowScale << 8
		tcp.ReplyFlags &^= flow.TCPFlagWindowScale << 8
	}
}

// compareCommitted compares a flow of the sender's kernel with what the receiver
// committed, and returns the differences.
func compareCommitted(r roles, o duoOptions, a, b conntrack.Flow) string {
	// A flow with less than a minute left gets up to a minute: nobody tells when
	// packets refresh it. What a conntrackd sends again, it sends with the timeout
	// of the last event.
	slack := int64(8)
	if r.sender == theirs {
		slack = 40
	}
	var bad string
	if r.receiver == ours && a.TupleOrig.Proto.Protocol == flow.GRE {
		if uint32(b.Status)&flow.StatusFixedTimeout == 0 || b.Timeout < 80000 {
			bad = fmt.Sprintf("timeout %d, status %v: it dies with its first packet\n", b.Timeout, b.Status)
		}
	} else if low, high := int64(a.Timeout)-8, max(int64(a.Timeout)+slack, 60); int64(b.Timeout) < low || int64(b.Timeout) > high {
		bad = fmt.Sprintf("timeout %d, the original has %d\n", b.Timeout, a.Timeout)
	}
	if tcp := b.ProtoInfo.TCP; tcp != nil && r.receiver == ours && tcp.OriginalFlags&tcp.ReplyFlags&0x0800 == 0 {
		bad += "not liberal in both directions: without the windows its packets would be dropped\n"
	}
	for _, l := range liberties {
		if l.of(r, o, &a) {
			for _, f := range []*conntrack.Flow{&a, &b} {
				f.ProtoInfo = copyProtoInfo(f.ProtoInfo)
				l.forget(f)
			}
		}
	}
	if !reflect.DeepEqual(a, b) {
		bad += cmp.Diff(a, b, cmpopts.EquateComparable(netip.Addr{}))
	}
	return bad
}

func copyProtoInfo(p conntrack.ProtoInfo) conntrack.ProtoInfo {
	if p.TCP != nil {
		c := *p.TCP
		p.TCP = &c
	}
	if p.SCTP != nil {
		c := *p.SCTP
		p.SCTP = &c
	}
	return p
}

// checkCommitted compares both kernels, flow by flow and field by field.
func (d *duo) checkCommitted() {
	d.t.Helper()
	in := d.form()
	begin := time.Now()
	originals, committed := map[tuple]conntrack.Flow{}, map[tuple]conntrack.Flow{}
	for k, f := range kernelFlows(d.t, d.kA, d.accept) {
		originals[in.tuple(k)] = f
	}
	for k, f := range kernelFlows(d.t, d.kB, d.accept) {
		committed[in.tuple(k)] = f
	}
	between := uint32(time.Since(begin).Seconds()) // the two dumps; timeouts run on
	for k, a := range originals {
		b, there := committed[k]
		if !there {
			d.t.Errorf("%v was not committed", k)
			continue
		}
		b.Timeout += between
		if bad := compareCommitted(d.roles, d.opts, a, b); bad != "" {
			d.t.Errorf("%v was not committed as it is:\n%s", k, bad)
		}
	}
	for k := range committed {
		if _, there := originals[k]; !there {
			d.t.Errorf("%v was committed, and does not exist", k)
		}
	}
}

// allowLabels lets a kernel keep labels: it has room for them only where a rule
// uses them.
func allowLabels(t testing.TB, nodes ...*lab.Node) {
	t.Helper()
	need(t, "nft")
	for _, n := range nodes {
		cmd := n.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table inet labels { chain c { type filter hook prerouting priority 0; ct label 127 counter; }; }\n")
		if out, err := n.Output(cmd); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
}

// Every kind of flow arrives, changes and ends with its original, and is committed
// with equal attributes.
func TestAttributes(t *testing.T) {
	need(t, "conntrack")
	for _, tr := range append(transports, multicast6Site) {
		for _, r := range allRoles {
			for _, tracking := range []bool{false, true} {
				if tracking && (r.sender == ours && r.receiver == ours || tr != udp4 && tr != multicast6) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/tracking %v", tr.name, r, tracking), func(t *testing.T) {
					t.Parallel()
					testAttributes(t, r, tr, duoOptions{tracking: tracking, syncd: "[filter]\nlabels = true"})
				})
			}
		}
	}
}

func testAttributes(t *testing.T, r roles, tr transport, opts duoOptions) {
	d := layDuo(t, r, tr, opts)
	allowLabels(t, d.nA, d.nB)
	// One half exists before the daemons, the other half comes by events.
	all := specimens()
	var early, late []specimen
	for i, f := range all {
		// Masters are of the first half, for their children follow.
		if i%2 == 0 && f.flow.TupleMaster == (conntrack.Tuple{}) || f.flow.Helper.Name != "" {
			early = append(early, f)
		} else {
			late = append(late, f)
		}
	}
	makeAll(t, d.nA, d.kA, early)
	d.startB()
	d.startA()
	makeAll(t, d.nA, d.kA, late)
	originals := kernelFlows(t, d.kA, isTestFlow)
	if n := len(originals); n != len(all) {
		t.Fatalf("%d flows were made, the kernel has %d", len(all), n)
	}
	for _, s := range all {
		o := originals[kernelTuple(&s.flow)]
		if s.args == "" && (!bytes.Equal(o.Labels, s.flow.Labels) && s.flow.Labels != nil || o.Mark != s.flow.Mark ||
			o.TupleMaster != s.flow.TupleMaster || o.Helper.Name != strings.TrimSuffix(s.flow.Helper.Name, "\x00")) {
			t.Fatalf("the kernel did not take %s as it should be: %+v", s.name, o)
		}
	}
	if r.sender == theirs {
		d.a.Bulk() // it sends what it finds at its start only when asked
	}
	d.waitReplicated(15*time.Second, "all kinds of flows")
	d.b.Commit()
	d.checkCommitted()

	// Changes: the mark of every second flow, the state of TCP, the end of others.
	for i, f := range all {
		if f.args != "" {
			continue
		}
		u := conntrack.Flow{TupleOrig: f.flow.TupleOrig, TupleReply: f.flow.TupleReply, Zone: f.flow.Zone, Timeout: 300, Mark: uint32(1000 + i)}
		switch {
		case i%5 == 4 && f.flow.Helper.Name == "":
			ok(t, d.kA.Delete(u))
		case f.flow.ProtoInfo.TCP != nil:
			tcp := *f.flow.ProtoInfo.TCP
			tcp.State = flow.TCPTimeWait
			u.ProtoInfo.TCP = &tcp
			fallthrough
		default:
			if err := d.kA.Update(u); err != nil {
				t.Fatalf("update %s: %v", f.name, err)
			}
		}
	}
	for _, s := range all {
		if s.name == "UDP answered, IPv4" { // a mark is set and taken away again
			o := s.flow.TupleOrig
			cmd := d.nA.Command("conntrack", "-U", "-p", "udp", "-s", o.IP.SourceAddress.String(), "-d", o.IP.DestinationAddress.String(), "--mark", "0")
			if out, err := d.nA.Output(cmd); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	d.waitReplicated(15*time.Second, "changes")
	ok(t, d.kB.Flush())
	d.b.Commit()
	d.checkCommitted()
}

// A flow whose directions are in different zones cannot be said in this dialect: it
// is not replicated, rather than as another flow, and it is counted.
func TestSplitZones(t *testing.T) {
	t.Parallel()
	need(t, "conntrack")
	d := newDuo(t, roles{ours, ours}, udp4, duoOptions{})
	out, err := d.nA.Output(d.nA.Command("conntrack", strings.Fields(
		"-I -p udp -s 198.18.1.1 -d 198.19.0.1 --sport 1000 --dport 53 -t 400 --orig-zone 3")...))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	create(t, d.kA, 300, 301)
	want := d.kernelA()
	if len(want) != 2 {
		t.Fatalf("the kernel has %v", want)
	}
	want = want.only(func(k tuple) bool { return k.dport != 53 })
	waitEqual(t, 5*time.Second, "the other flow", d.external, func() table { return want }, form{})
	if n := d.a.Stats().Events.Filtered; n == 0 {
		t.Error("the flow is not counted")
	}
}

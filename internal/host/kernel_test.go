package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"syncd/internal/lab"
	"syncd/internal/lab/labtest"
)

// need skips the test where a program is not installed; on CI that is a failure.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed", p)
			}
			t.Skipf("%s is not installed (make peers installs it)", p)
		}
	}
}

func ok(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a program in a node.
func run(t *testing.T, n *lab.Node, stdin, name string, args ...string) {
	t.Helper()
	ok(t, n.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s\n%s", name, strings.Join(args, " "), err, out, stdin)
		}
		return nil
	}))
}

// load replaces the ruleset of a node. nft 1.0 wants a line end after each block.
func load(t *testing.T, n *lab.Node, rules string) {
	t.Helper()
	run(t, n, strings.NewReplacer("; }", ";\n}\n", "} }", "}\n}\n").Replace("flush ruleset\n"+rules+"\n"), "nft", "-f", "-")
}

// rulesOf reads the ruleset of a node.
func rulesOf(t *testing.T, n *lab.Node) (r Ruleset) {
	t.Helper()
	ok(t, n.Do(func() error {
		r = readRuleset(t.Context())
		ifs, _ := readInterfaces()
		r.Index = make(map[string]int)
		for name, i := range ifs {
			r.Index[name] = i.Index
		}
		return nil
	}))
	return r
}

var (
	addrA, addrB = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	sixA, sixB   = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
)

// linked returns two nodes on a sync link.
func linked(t *testing.T) (a, b *lab.Node) {
	t.Helper()
	need(t, "nft", "conntrack")
	l := labtest.New(t)
	a, err := l.Node("a")
	ok(t, err)
	b, err = l.Node("b")
	ok(t, err)
	end := func(n *lab.Node, four, six netip.Addr) lab.End {
		return lab.End{Node: n, If: "sync0", LinkOptions: lab.LinkOptions{Addrs: []netip.Prefix{netip.PrefixFrom(four, 26), netip.PrefixFrom(six, 64)}}}
	}
	ok(t, l.Connect(end(a, addrA, sixA), end(b, addrB, sixB)), a.Settle(), b.Settle())
	return a, b
}

func syncLink(six bool) Link {
	l := Link{Interface: "sync0", Local: addrA, Peers: []netip.Addr{addrB}, Port: 3780}
	if six {
		l.Local, l.Peers = sixA, []netip.Addr{sixB}
	}
	return l
}

// linkRules are rulesets with what they do to datagrams of the link, in and out.
var linkRules = []struct {
	name, rules     string
	six             bool
	trackIn, trkOut certainty // how certainly they are not tracked
	dropIn, dropOut certainty
}{
	{"none", ``, false, never, never, never, never},
	{"as shipped", `
		table inet syncd_link {
			chain prerouting { type filter hook prerouting priority raw; policy accept; iifname "sync0" udp dport 3780 notrack; }
			chain output { type filter hook output priority raw; policy accept; oifname "sync0" udp dport 3780 notrack; }
			chain input { type filter hook input priority filter - 10; policy accept
				iifname "sync0" ip saddr 192.0.2.2 udp dport 3780 ct state untracked accept
				udp dport 3780 drop
			}
		}`, false, sure, sure, never, never},
	{"as shipped, another peer", `
		table inet syncd_link {
			chain prerouting { type filter hook prerouting priority raw; policy accept; iifname "sync0" udp dport 3780 notrack; }
			chain input { type filter hook input priority filter - 10; policy accept
				iifname "sync0" ip saddr 192.0.2.3 udp dport 3780 ct state untracked accept
				udp dport 3780 drop
			}
		}`, false, sure, never, sure, never},
	{"IPv6", `
		table ip6 t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" udp dport 3780 notrack; }
			chain out { type filter hook output priority raw; oifname "sync0" udp sport 3780 notrack; }
			chain in { type filter hook input priority 0; policy drop; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ip6 saddr 2001:db8::/64 udp dport 3780 accept; }
		}`, true, sure, sure, never, never},
	{"IPv6 by rules of IPv4", `
		table ip t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" udp dport 3780 notrack; }
			chain in { type filter hook input priority 0; policy drop; }
		}`, true, never, never, never, never},
	{"another port", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" udp dport 3781 notrack; }
			chain out { type filter hook output priority raw; oifname "sync1" udp dport 3780 notrack; }
		}`, false, never, never, never, never},
	{"after conntrack", `
		table inet t {
			chain pre { type filter hook prerouting priority filter; iifname "sync0" udp dport 3780 notrack; }
			chain out { type filter hook output priority filter; oifname "sync0" udp dport 3780 notrack; }
		}`, false, never, never, never, never},
	{"sets and ranges", `
		table inet t {
			set links { type ifname; elements = { "sync0", "sync1" }; }
			set ports { type inet_service; flags interval; elements = { 1000-2000, 3700-3799, 65000-65535 }; }
			chain pre { type filter hook prerouting priority raw; iifname @links udp dport @ports notrack; }
			chain out { type filter hook output priority raw; oifname { "sync0" } udp dport 3700-3800 notrack; }
		}`, false, sure, sure, never, never},
	{"in none of the sets", `
		table inet t {
			set ports { type inet_service; flags interval; elements = { 1000-2000, 3790-3799 }; }
			chain pre { type filter hook prerouting priority raw; udp dport @ports notrack; }
			chain out { type filter hook output priority raw; udp dport != 3780 notrack; udp dport != @ports notrack; }
		}`, false, never, sure, never, never},
	{"concatenated", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iifname . udp dport { "eth0" . 3780, "sync0" . 3780 } notrack; }
			chain out { type filter hook output priority raw; ip daddr . udp dport { 192.0.2.0/24 . 3000-4000 } notrack; }
		}`, false, sure, sure, never, never},
	{"by index", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iif "sync0" notrack; }
			chain out { type filter hook output priority raw; oif "lo" notrack; }
		}`, false, sure, never, never, never},
	{"jumps", `
		table inet t {
			chain link { ip protocol udp udp dport vmap { 3780 : goto untrack, 53 : drop }; }
			chain untrack { notrack; }
			chain pre { type filter hook prerouting priority raw; iifname vmap { "sync0" : jump link }; }
			chain out { type filter hook output priority raw; oifname "eth9" return; meta l4proto { tcp, udp } jump untrack; }
		}`, false, sure, sure, never, never},
	{"a return before", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" return; notrack; }
			chain out { type filter hook output priority raw; udp length > 0 accept; notrack; }
		}`, false, never, possible, never, never},
	{"established only", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" notrack; }
			chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iifname "lo" accept; }
		}`, false, sure, never, sure, never},
	{"dropped by a map", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; iifname "sync0" notrack; }
			chain in { type filter hook input priority 0; ct state vmap { established : accept, related : accept, untracked : drop }; }
			chain out { type filter hook output priority 0; policy drop; udp dport 53 accept; }
		}`, false, sure, never, sure, sure},
	{"the later chain counts too", `
		table inet a { chain in { type filter hook input priority -10; iifname "sync0" accept; } }
		table ip b { chain in { type filter hook input priority 0; policy drop; } }`, false, never, never, sure, never},
	{"some senders", `
		table inet t {
			chain in { type filter hook input priority 0; udp length 60 drop; limit rate over 1/second drop; }
			chain pre { type filter hook prerouting priority raw; ip ttl 1 notrack; }
		}`, false, possible, never, possible, never},
	{"a bit mask", `
		table inet t {
			chain pre { type filter hook prerouting priority raw; ip saddr & 255.255.255.3 == 192.0.2.2 notrack; }
			chain out { type filter hook output priority raw; ip daddr & 0.0.0.1 == 0.0.0.1 notrack; }
		}`, false, sure, never, never, never},
	{"reject", `
		table inet t { chain in { type filter hook input priority 0; meta nfproto ipv4 udp dport 3780 reject; } }`, false, never, never, sure, never},
}

// What is found out about the rules is what the kernel does with real datagrams.
func TestLinkRulesAreTheKernels(t *testing.T) {
	a, b := linked(t)
	for _, tt := range linkRules {
		t.Run(tt.name, func(t *testing.T) {
			// Conntrack works only in a namespace with a rule that asks it.
			load(t, a, "table inet tracking { chain c { ct state new counter; } }\n"+tt.rules)
			r := rulesOf(t, a)
			if r.Err != "" {
				t.Fatal(r.Err)
			}
			l := syncLink(tt.six)
			for _, in := range []bool{true, false} {
				wantTrack, wantDrop := tt.trackIn, tt.dropIn
				if !in {
					wantTrack, wantDrop = tt.trkOut, tt.dropOut
				}
				p := l.datagrams(in)
				if len(p) != 1 {
					t.Fatalf("%d datagrams", len(p))
				}
				track, f := r.followDatagram(p[0], in)
				if track != wantTrack || f.drops != wantDrop {
					t.Errorf("in=%v: not tracked %d, want %d; dropped %d (%s), want %d", in, track, wantTrack, f.drops, f.dropAt, wantDrop)
				}
				if (f.drops == sure) != (f.passes == never) {
					t.Errorf("in=%v: drops %d and passes %d", in, f.drops, f.passes)
				}
				arrived, tracked := datagram(t, a, b, l, in)
				if wantDrop != possible && arrived != (wantDrop == never) {
					t.Errorf("in=%v: the kernel says arrived=%v", in, arrived)
				}
				if wantTrack != possible && wantDrop == never && tracked != (wantTrack == never) {
					t.Errorf("in=%v: the kernel says tracked=%v", in, tracked)
				}
			}
		})
	}
}

// datagram sends one to a, or from it, and says whether it arrived and whether a's
// conntrack has made an entry.
func datagram(t *testing.T, a, b *lab.Node, l Link, in bool) (arrived, tracked bool) {
	t.Helper()
	run(t, a, "", "conntrack", "-F")
	own, err := a.ListenUDP(netip.AddrPortFrom(l.Local, l.Port))
	ok(t, err)
	defer own.Close()
	peer, err := b.ListenUDP(netip.AddrPortFrom(l.Peers[0], l.Port))
	ok(t, err)
	defer peer.Close()
	from, to := own, peer
	if in {
		from, to = peer, own
	}
	if _, err := from.WriteToUDPAddrPort([]byte("hello"), to.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil && !errors.Is(err, os.ErrPermission) {
		t.Fatal(err)
	}
	ok(t, to.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	n, _, err := to.ReadFromUDPAddrPort(make([]byte, 16))
	arrived = err == nil && n == 5
	count, err := a.FlowCount()
	ok(t, err)
	return arrived, count > 0
}

// iptables puts extensions into nftables; what they do is understood as well.
func TestIptables(t *testing.T) {
	need(t, "iptables-nft")
	a, b := linked(t)
	l := syncLink(false)
	for _, tt := range []struct {
		name            string
		commands        []string
		notrack, drop   certainty
		realTrack, real bool
	}{
		{"good", []string{
			"-t raw -A PREROUTING -i sync0 -p udp --dport 3780 -j CT --notrack",
			"-A INPUT -i sync0 -p udp -m udp --dport 3780 -m conntrack --ctstate UNTRACKED -j ACCEPT",
			"-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-P INPUT DROP",
		}, sure, never, false, true},
		{"another state", []string{
			"-t raw -A PREROUTING -i sync0 -p udp -m comment --comment link -m multiport --dports 22,3700:3800 -j NOTRACK",
			"-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-P INPUT DROP",
		}, sure, sure, false, false},
		{"not that state", []string{
			"-t raw -A PREROUTING -p udp --sport 3781 -j CT --notrack",
			"-A INPUT -m state ! --state NEW -j DROP",
			"-A INPUT -m conntrack --ctstate NEW -j ACCEPT",
			"-P INPUT DROP",
		}, never, never, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			load(t, a, "")
			for _, c := range tt.commands {
				run(t, a, "", "iptables-nft", strings.Fields(c)...)
			}
			r := rulesOf(t, a)
			if r.Err != "" {
				t.Fatal(r.Err)
			}
			track, f := r.followDatagram(l.datagrams(true)[0], true)
			if track != tt.notrack || f.drops != tt.drop {
				t.Errorf("not tracked %d, want %d; dropped %d (%s), want %d", track, tt.notrack, f.drops, f.dropAt, tt.drop)
			}
			arrived, tracked := datagram(t, a, b, l, true)
			if arrived != tt.real || tracked != tt.realTrack {
				t.Errorf("the kernel says arrived=%v tracked=%v", arrived, tracked)
			}
		})
	}
	t.Run("uses", func(t *testing.T) {
		load(t, a, "")
		for _, c := range []string{
			"-t nat -A POSTROUTING -o sync0 -j MASQUERADE",
			"-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
			"-t raw -A PREROUTING -i sync1 -j CT --zone 7",
			"-t raw -A OUTPUT -j CT --ctevents new,destroy",
			"-A INPUT -p udplite -j ACCEPT",
			"-A FORWARD -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --mss 1460",
		} {
			run(t, a, "", "iptables-nft", strings.Fields(c)...)
		}
		r := rulesOf(t, a)
		var got []string
		for _, u := range r.uses() {
			chain := strings.Split(u.place, ", ")[1]
			got = append(got, fmt.Sprint(u.what, u.name, " ", chain))
		}
		want := fmt.Sprint([]string{
			fmt.Sprint(usesHelper, "ftp chain PREROUTING"), fmt.Sprint(usesZone, " chain PREROUTING"),
			fmt.Sprint(usesEvents, " chain OUTPUT"), fmt.Sprint(usesUDPLite, " chain INPUT"), fmt.Sprint(usesSynproxy, " chain FORWARD"), fmt.Sprint(usesMasquerade, " chain POSTROUTING"),
		})
		if fmt.Sprint(got) != want {
			t.Errorf("uses %v, want %v", got, want)
		}
	})
	t.Run("legacy", func(t *testing.T) {
		need(t, "iptables-legacy")
		load(t, a, "")
		run(t, a, "", "iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-i", "sync0", "-j", "NOTRACK")
		r := rulesOf(t, a)
		if fmt.Sprint(r.Legacy) != "[iptables raw]" {
			t.Fatalf("legacy tables %v", r.Legacy)
		}
		for _, f := range judgeRules(&Facts{Rules: r}, &Setup{Links: []Link{l}}) {
			if (f.ID == "rules.legacy" || f.ID == "rules.link_notrack_in") && f.Verdict != Unknown {
				t.Errorf("%+v", f)
			}
		}
	})
}

// findings of a ruleset that is not about the link.
func TestOtherRules(t *testing.T) {
	a, _ := linked(t)
	for _, tt := range []struct {
		name, rules string
		setup       Setup
		id          string
		verdict     Verdict
		found       string // part of it; "-" for no such finding
	}{
		{"nothing drops invalid", `table inet t { chain f { type filter hook forward priority 0; ct state established accept; } }`, Setup{}, "rules.invalid", Warning, "forwarded"},
		{"no rules", ``, Setup{}, "rules.invalid", Warning, "forwarded"},
		{"dropped first", `table inet t { chain f { type filter hook forward priority 0; ct state invalid drop; iifname "eth0" accept; } }`, Setup{}, "rules.invalid", OK, "dropped"},
		{"dropped by policy", `table inet t { chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname "eth0" ct state new accept; } }`, Setup{}, "rules.invalid", OK, "dropped"},
		{"dropped before", `table inet t { chain m { type filter hook prerouting priority mangle; ct state invalid drop; } }`, Setup{}, "rules.invalid", OK, "dropped"},
		{"too early to know", `table inet t { chain m { type filter hook prerouting priority raw; ct state invalid drop; } }`, Setup{}, "rules.invalid", Warning, "forwarded"},
		{"some accepted before", `table inet t { chain f { type filter hook forward priority 0; iifname "eth0" accept; ct state invalid drop; } }`, Setup{}, "rules.invalid", Warning, "some may be forwarded: table inet t, chain f, handle"},
		{"new needs a SYN", `table inet t { chain f { type filter hook forward priority 0; policy drop; iifname "eth0" tcp flags & (syn|ack|rst|fin) == syn accept; } }`, Setup{}, "rules.invalid", OK, "dropped"},
		{"IPv4 alone", `table ip t { chain f { type filter hook forward priority 0; ct state invalid drop; } }`, Setup{}, "rules.invalid", Warning, "forwarded"},
		{"by mark", `table inet t { chain f { type filter hook forward priority 0; policy drop; ct mark 1 accept; } }`, Setup{}, "rules.invalid", OK, "dropped"},
		{"masquerade", `table ip nat { chain out { type nat hook postrouting priority srcnat; jump more; }
			chain more { ip saddr 198.51.100.0/24 oifname "eth1" masquerade; } }`, Setup{}, "rules.masquerade", Warning, "table ip nat, chain more, handle"},
		{"snat", `table ip nat { chain out { type nat hook postrouting priority srcnat; oifname "eth1" snat to 203.0.113.7; } }`, Setup{}, "rules.masquerade", OK, "not used"},
		{"labels set", `table inet t { chain f { type filter hook forward priority 0; ct label set 3; } }`, Setup{}, "rules.labels", Warning, "used: table inet t"},
		{"labels set and replicated", `table inet t { chain f { type filter hook forward priority 0; ct label 3 accept; } }`, Setup{Labels: true}, "rules.labels", OK, "used"},
		{"labels without rules", ``, Setup{Labels: true}, "rules.labels", Warning, "no rule uses labels"},
		{"no labels", ``, Setup{}, "rules.labels", OK, "-"},
		{"helper", `table inet t { ct helper f { type "ftp" protocol tcp; }
			chain p { type filter hook prerouting priority 0; tcp dport 21 ct helper set "f"; } }`, Setup{}, "rules.helper", Warning, "assigned: table inet t, chain p"},
		{"helper by map", `table inet t { ct helper f { type "ftp" protocol tcp; }
			chain p { type filter hook prerouting priority 0; ct helper set tcp dport map { 21 : "f" }; } }`, Setup{Expectations: Helpers{Names: []string{"ftp"}}}, "rules.helper", OK, "assigned"},
		{"helper and all expectations", `table inet t { ct helper s { type "sip" protocol udp; }
			chain p { type filter hook prerouting priority 0; udp dport 5060 ct helper set "s"; } }`, Setup{Expectations: Helpers{All: true}}, "rules.helper", OK, "assigned"},
		{"zone", `table inet t { chain p { type filter hook prerouting priority raw; iifname "eth0" ct zone set 5; } }`, Setup{}, "rules.zones", Note, "set: table inet t, chain p"},
		{"events", `table inet t { chain p { type filter hook prerouting priority 0; ct event set new,destroy; } }`, Setup{}, "rules.events", Warning, "limited"},
		{"timeout policy", `table inet t { ct timeout p { protocol tcp; policy = { established : 100 }; }
			chain p { type filter hook prerouting priority 0; ct timeout set "p"; } }`, Setup{}, "rules.timeouts", Note, "policies"},
		{"synproxy", `table inet t { chain f { type filter hook forward priority 0; tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7; } }`,
			Setup{}, "rules.synproxy", Note, "used: table inet t, chain f"},
		{"named synproxy", `table inet t { synproxy s { mss 1460; wscale 7; }
			chain f { type filter hook forward priority 0; tcp dport 80 synproxy name "s"; } }`, Setup{}, "rules.synproxy", Note, "used: table inet t, chain f"},
		{"no synproxy", ``, Setup{}, "rules.synproxy", OK, "-"},
		{"UDP-Lite", `table inet t { chain f { type filter hook forward priority 0; udplite dport 80 accept; } }`, Setup{}, "rules.udplite", Unknown, "used: table inet t, chain f"},
		{"UDP-Lite of IPv4", `table ip t { chain f { type filter hook forward priority 0; ip protocol udplite accept; } }`, Setup{}, "rules.udplite", Unknown, "used: table ip t, chain f"},
		{"UDP-Lite of IPv6", `table ip6 t { chain f { type filter hook forward priority 0; ip6 nexthdr udplite accept; } }`, Setup{}, "rules.udplite", Unknown, "used: table ip6 t, chain f"},
		{"UDP-Lite in a set", `table inet t { chain f { type filter hook forward priority 0; meta l4proto { tcp, udp, udplite } accept; } }`, Setup{}, "rules.udplite", Unknown, "used"},
		{"UDP-Lite with ports", `table inet t { chain f { type filter hook forward priority 0; meta l4proto . th dport { tcp . 80, udplite . 90 } accept; } }`, Setup{}, "rules.udplite", Unknown, "used"},
		{"not UDP-Lite", `table inet t { chain f { type filter hook forward priority 0; meta l4proto { tcp, udp } th dport 136 ip ttl 136 accept; } }`, Setup{}, "rules.udplite", OK, "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			load(t, a, tt.rules)
			r := rulesOf(t, a)
			if r.Err != "" {
				t.Fatal(r.Err)
			}
			for _, f := range judgeRules(&Facts{Rules: r}, &tt.setup) {
				if f.ID != tt.id {
					continue
				}
				if tt.found == "-" || f.Verdict != tt.verdict || !strings.Contains(f.Found, tt.found) {
					t.Errorf("%v %s, want %v %s", f.Verdict, f.Found, tt.verdict, tt.found)
				}
				return
			}
			if tt.found != "-" {
				t.Errorf("no finding %s", tt.id)
			}
		})
	}
}

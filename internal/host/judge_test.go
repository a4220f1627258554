package host

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goodFacts are those of a host with which nothing is wrong.
func goodFacts() *Facts {
	f := &Facts{
		Kernel: "6.18.44", Sysctls: map[string]Reading{},
		Count: Reading{Value: "1000"}, Expects: Reading{Value: "0"}, Admin: Reading{Value: "present"}, Raw: Reading{Value: "present"},
		Modules:    map[string]Support{"nf_nat": SupportLoaded},
		Interfaces: map[string]Interface{"sync0": {Up: true, Running: true, MTU: 1500, Index: 2, Addresses: []netip.Addr{addrA}}},
		Addresses:  []string{addrA.String()},
		Daemon:     Daemon{Peers: []Peer{{"fw2", 500}}},
		LinkErrs:   []string{""},
	}
	for name, v := range map[string]string{
		"nf_conntrack_events": "1", "nf_conntrack_max": "262144", "nf_conntrack_buckets": "262144", "nf_conntrack_expect_max": "4096",
		"nf_conntrack_tcp_loose": "0", "nf_conntrack_tcp_be_liberal": "0", "nf_conntrack_tcp_ignore_invalid_rst": "0",
		"nf_conntrack_acct": "0", "nf_conntrack_timestamp": "0", "nf_conntrack_checksum": "1", "nf_conntrack_tcp_max_retrans": "3",
		"nf_conntrack_tcp_timeout_established": "432000", "nf_conntrack_udp_timeout": "30",
	} {
		f.Sysctls[netfilter+name] = Reading{Value: v}
	}
	for name, v := range map[string]string{
		"net.core.rmem_max": "212992", "net.core.wmem_max": "212992", "net.core.netdev_max_backlog": "1000",
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.ip_nonlocal_bind": "0",
		"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.eth0.rp_filter": "0",
	} {
		f.Sysctls[name] = Reading{Value: v}
	}
	grant := Grant{Asked: 4 << 20, Got: 4 << 20}
	f.Buffers = Buffers{Events: Grant{Asked: 64 << 20, Got: 64 << 20}, Grown: Grant{Asked: 512 << 20, Got: 512 << 20}, Links: []LinkBuffers{{grant, grant}}}
	f.Rules.Chains = []*Chain{{Family: unix.NFPROTO_INET, Table: "fw", Name: "forward", Base: true, Type: "filter", Hook: unix.NF_INET_FORWARD, Drop: true}}
	return f
}

func goodSetup() *Setup {
	return &Setup{Node: "fw1", Mode: "ftfw", Wire: "syncd", Links: []Link{syncLink(false)}, MarkMask: 0xffffffff, Expectations: Helpers{All: true}}
}

// judged returns the findings with this name.
func judged(all []Finding, name string) []Finding {
	var found []Finding
	for _, f := range all {
		if f.Name() == name {
			found = append(found, f)
		}
	}
	return found
}

// Each thing that can be found is made so from a host that is otherwise good.
func TestJudge(t *testing.T) {
	set := func(name, value string) func(*Facts, *Setup) {
		return func(f *Facts, _ *Setup) { f.Sysctls[name] = Reading{Value: value} }
	}
	nf := func(name, value string) func(*Facts, *Setup) { return set(netfilter+name, value) }
	without := func(name string) func(*Facts, *Setup) {
		return func(f *Facts, _ *Setup) { delete(f.Sysctls, name) }
	}
	udplite := func(f *Facts, _ *Setup) {
		f.Rules.Chains[0].Rules = []Rule{{Handle: 3, Exprs: []any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{136}},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}}}
	}
	for _, tt := range []struct {
		name    string
		verdict Verdict
		words   string // of what was found, why, or how to change it
		change  func(*Facts, *Setup)
	}{
		{"sysctl.nf_conntrack_events", OK, "", nil},
		{"sysctl.nf_conntrack_events", Error, "sysctl -w net.netfilter.nf_conntrack_events=1", nf("nf_conntrack_events", "0")},
		{"sysctl.nf_conntrack_events", Warning, "as long as they live", nf("nf_conntrack_events", "2")},
		{"sysctl.nf_conntrack_events", Unknown, "not one that this version knows", nf("nf_conntrack_events", "maybe")},
		{"sysctl.nf_conntrack_events", Unknown, "denied", func(f *Facts, _ *Setup) { f.Sysctls[netfilter+"nf_conntrack_events"] = Reading{Err: "denied"} }},
		{"kernel.conntrack", Error, "without conntrack events", without(netfilter + "nf_conntrack_events")},
		{"kernel.conntrack", Error, "modprobe nf_conntrack", func(f *Facts, _ *Setup) { f.Sysctls = map[string]Reading{} }},
		{"kernel.conntrack", OK, "", nil},
		{"kernel.cap_net_admin", OK, "", nil},
		{"kernel.cap_net_admin", Error, "run as root", func(f *Facts, _ *Setup) { f.Admin.Value = "missing" }},
		{"kernel.cap_net_raw", OK, "", func(_ *Facts, s *Setup) { s.UsedFirst = true }},
		{"kernel.cap_net_raw", Warning, "commit.used_first = false", func(f *Facts, s *Setup) { s.UsedFirst, f.Raw.Value = true, "missing" }},
		{"kernel.cap_net_admin", Unknown, "no", func(f *Facts, _ *Setup) { f.Admin = Reading{Err: "no"} }},
		{"kernel.ctnetlink", OK, "", nil},
		{"kernel.ctnetlink", Error, "modprobe nf_conntrack_netlink", func(f *Facts, _ *Setup) { f.Ctnetlink = unix.EINVAL }},
		{"kernel.ctnetlink", Unknown, "", func(f *Facts, _ *Setup) { f.Ctnetlink = fmt.Errorf("x: %w", fs.ErrPermission) }},
		{"kernel.nat", OK, "", nil},
		{"kernel.nat", Note, "modprobe nf_nat", func(f *Facts, _ *Setup) { f.Modules["nf_nat"] = SupportLoadable }},
		{"kernel.nat", Warning, "cannot be restored", func(f *Facts, _ *Setup) { f.Modules["nf_nat"] = SupportAbsent }},
		{"kernel.nat", Unknown, "", func(f *Facts, _ *Setup) { f.Modules["nf_nat"] = SupportUnknown }},
		{"kernel.helper[ftp]", Warning, "nf_conntrack_ftp: absent", func(f *Facts, s *Setup) {
			s.Expectations = Helpers{Names: []string{"ftp"}}
			f.Modules["nf_conntrack_ftp"] = SupportAbsent
		}},
		{"kernel.nat_helper[ftp]", OK, "", func(f *Facts, s *Setup) {
			s.Expectations = Helpers{Names: []string{"ftp"}}
			f.Modules["nf_nat_ftp"] = SupportBuiltIn
		}},
		{"kernel.helper[rpc]", Unknown, "in user space", func(_ *Facts, s *Setup) { s.Expectations = Helpers{Names: []string{"rpc"}} }},
		{"sysctl.nf_conntrack_tcp_loose", OK, "", nil},
		{"sysctl.nf_conntrack_tcp_loose", Warning, "in the way of the restored one", nf("nf_conntrack_tcp_loose", "1")},
		{"sysctl.nf_conntrack_tcp_be_liberal", Note, "=0", nf("nf_conntrack_tcp_be_liberal", "1")},
		{"sysctl.nf_conntrack_tcp_ignore_invalid_rst", Note, "stopgap", nf("nf_conntrack_tcp_ignore_invalid_rst", "1")},
		{"sysctl.nf_conntrack_checksum", Note, "", nf("nf_conntrack_checksum", "0")},
		{"sysctl.nf_conntrack_acct", OK, "", nf("nf_conntrack_acct", "1")},
		{"sysctl.nf_conntrack_timestamp", OK, "", nf("nf_conntrack_timestamp", "1")},
		{"sysctl.nf_conntrack_udp_timeout", OK, "", nil},
		{"sysctl.nf_conntrack_udp_timeout", Warning, "gone as soon", nf("nf_conntrack_udp_timeout", "0")},
		{"sysctl.nf_conntrack_udp_timeout", OK, "", nf("nf_conntrack_udp_timeout", "1000000")},
		{"sysctl.nf_conntrack_udp_timeout", Note, "", nf("nf_conntrack_udp_timeout", "1000001")},
		{"sysctl.nf_conntrack_udp_timeout", Warning, "instant", func(f *Facts, s *Setup) {
			f.Sysctls[netfilter+"nf_conntrack_udp_timeout"] = Reading{Value: "1000001"}
			s.Instant = true
		}},
		{"sysctl.netdev_max_backlog", Note, "=1000", set("net.core.netdev_max_backlog", "300")},
		{"sysctl.ip_forward", OK, "", nil},
		{"sysctl.ip_forward", OK, "", set("net.ipv4.ip_forward", "0")}, // IPv6 is
		{"sysctl.ip_forward", Warning, "forwards none", func(f *Facts, s *Setup) {
			set("net.ipv4.ip_forward", "0")(f, s)
			set("net.ipv6.conf.all.forwarding", "0")(f, s)
		}},
		{"sysctl.ip_forward", Note, "bridge", func(f *Facts, s *Setup) {
			set("net.ipv4.ip_forward", "0")(f, s)
			set("net.ipv6.conf.all.forwarding", "0")(f, s)
			f.Rules.Chains = nil
		}},
		{"sysctl.rp_filter", OK, "", nil},
		{"sysctl.rp_filter", OK, "", set("net.ipv4.conf.eth0.rp_filter", "2")},
		{"sysctl.rp_filter", Note, "strict) on eth0", set("net.ipv4.conf.eth0.rp_filter", "1")},
		{"sysctl.rp_filter", Note, "strict) on eth0", set("net.ipv4.conf.all.rp_filter", "1")},
		{"sysctl.rp_filter", Note, "on eth0.7", set("net/ipv4/conf/eth0.7/rp_filter", "1")},
		{"sysctl.rp_filter", OK, "", func(f *Facts, s *Setup) {
			set("net.ipv4.conf.all.rp_filter", "2")(f, s)
			set("net.ipv4.conf.eth0.rp_filter", "1")(f, s)
		}},
		{"sysctl.rp_filter", Unknown, "", without("net.ipv4.conf.all.rp_filter")},
		{"table.max", OK, "262144", nil},
		{"table.max", OK, "no limit", nf("nf_conntrack_max", "0")},
		{"table.buckets", OK, "", nil},
		{"table.buckets", Note, "2.0 entries", nf("nf_conntrack_buckets", "131072")},
		{"table.buckets", Warning, "4.0 entries", nf("nf_conntrack_buckets", "65536")},
		{"table.buckets", Unknown, "", nf("nf_conntrack_buckets", "many")},
		{"table.expect_max", OK, "", nil},
		{"table.expect_max", Note, "", nf("nf_conntrack_expect_max", "16")},
		{"table.expect_max", Warning, "4096, of which 4000", func(f *Facts, _ *Setup) { f.Expects.Value = "4000" }},
		{"table.entries", OK, "1000 of 262144", nil},
		{"table.entries", OK, "", func(f *Facts, _ *Setup) { f.Count.Value = "201649" }},
		{"table.entries", Warning, "sysctl -w net.netfilter.nf_conntrack_max=524288", func(f *Facts, _ *Setup) { f.Count.Value = "201650" }},
		{"table.entries", Unknown, "", func(f *Facts, _ *Setup) { f.Count = Reading{Err: "no"} }},
		{"peer.flows[fw2]", OK, "500 flows, room for 262144", nil},
		{"peer.flows[fw2]", Warning, "too little room", func(f *Facts, _ *Setup) { f.Daemon.Peers[0].Flows = 250000 }},
		{"peer.flows[fw2]", Error, "nf_conntrack_max=524288", func(f *Facts, _ *Setup) { f.Daemon.Peers[0].Flows = 300000 }},
		{"peer.flows[fw2]", OK, "without limit", func(f *Facts, s *Setup) {
			nf("nf_conntrack_max", "0")(f, s)
			f.Daemon.Peers[0].Flows = 1 << 40
		}},
		{"peer.flows", Unknown, "no daemon runs", func(f *Facts, _ *Setup) { f.Daemon = Daemon{None: "no daemon runs"} }},
		{"peer.flows", Unknown, "no peer heard", func(f *Facts, _ *Setup) { f.Daemon = Daemon{} }},
		{"buffer.events", OK, "room for 104857 events", nil},
		{"buffer.events", Warning, "sysctl -w net.core.rmem_max=67108864", func(f *Facts, _ *Setup) { f.Buffers.Events.Got = 212992 }},
		{"buffer.events_max", Warning, "", func(f *Facts, _ *Setup) { f.Buffers.Grown.Got = 1 << 20 }},
		{"buffer.events", Unknown, "no socket", func(f *Facts, _ *Setup) { f.Buffers.Events = Grant{Err: "no socket"} }},
		{"buffer.link_recv[sync0]", OK, "4MiB", nil},
		{"buffer.link_recv[sync0]", Warning, "208KiB", func(f *Facts, _ *Setup) { f.Buffers.Links[0].Recv.Got = 212992 }},
		{"buffer.link_send[sync0]", Warning, "net.core.wmem_max", func(f *Facts, _ *Setup) { f.Buffers.Links[0].Send.Got = 212992 }},
		{"link.interface[sync0]", OK, "up, 192.0.2.1", nil},
		{"link.interface[sync0]", Error, "no such interface", func(f *Facts, _ *Setup) { f.Interfaces = map[string]Interface{} }},
		{"link.interface[sync0]", Unknown, "", func(f *Facts, _ *Setup) { f.Interfaces = nil }},
		{"link.interface[sync0]", Warning, "ip link set sync0 up", func(f *Facts, _ *Setup) { f.Interfaces["sync0"] = Interface{MTU: 1500, Addresses: []netip.Addr{addrA}} }},
		{"link.interface[sync0]", Warning, "no carrier", func(f *Facts, _ *Setup) {
			f.Interfaces["sync0"] = Interface{Up: true, MTU: 1500, Addresses: []netip.Addr{addrA}}
		}},
		{"link.interface[sync0]", Error, "without 192.0.2.1", func(f *Facts, _ *Setup) {
			f.Interfaces["sync0"] = Interface{Up: true, Running: true, MTU: 1500}
			f.Addresses = nil
		}},
		{"link.interface[sync0]", Note, "another interface", func(f *Facts, _ *Setup) { f.Interfaces["sync0"] = Interface{Up: true, Running: true, MTU: 1500} }},
		{"link.mtu[sync0]", OK, "1500", nil},
		{"link.mtu[sync0]", Note, "", func(f *Facts, _ *Setup) {
			f.Interfaces["sync0"] = Interface{Up: true, Running: true, MTU: 1280, Addresses: []netip.Addr{addrA}}
		}},
		{"link.open[sync0]", OK, "", nil},
		{"link.open[sync0]", Error, "address already in use", func(f *Facts, _ *Setup) { f.LinkErrs[0] = "address already in use" }},
		{"rules.nftables", OK, "1 chains", nil},
		{"rules.nftables", Unknown, "not permitted", func(f *Facts, _ *Setup) { f.Rules = Ruleset{Err: "not permitted"} }},
		{"rules.legacy", OK, "", nil},
		{"rules.legacy", Unknown, "iptables filter", func(f *Facts, _ *Setup) { f.Rules.Legacy = []string{"iptables filter"} }},
		{"rules.invalid", OK, "", nil},
		{"rules.invalid", Warning, "", func(f *Facts, _ *Setup) { f.Rules.Chains = nil }},
		{"rules.invalid", Unknown, "older iptables", func(f *Facts, _ *Setup) {
			f.Rules.Chains, f.Rules.Legacy = nil, []string{"iptables filter"}
		}},
		{"rules.invalid", Unknown, "does not know", func(f *Facts, _ *Setup) {
			f.Rules.Chains[0].Rules = []Rule{{Handle: 3, Exprs: []any{opaque{"novelty"}, &expr.Verdict{Kind: expr.VerdictAccept}}}}
		}},
		{"rules.link_notrack_in[sync0]", Warning, "tracked", nil},
		{"rules.link_notrack_out[sync0]", Warning, `in the output chain of priority raw: oifname "sync0" udp dport 3780 notrack`, nil},
		{"rules.link_accept_in[sync0]", Error, "table ip in, chain in, policy drop", func(f *Facts, _ *Setup) {
			f.Rules.Chains = append(f.Rules.Chains, &Chain{Family: unix.NFPROTO_IPV4, Table: "in", Name: "in", Base: true, Hook: unix.NF_INET_LOCAL_IN, Drop: true})
		}},
		{"rules.udplite", Warning, "sysctl -w net.netfilter.nf_conntrack_checksum=0", udplite},
		{"rules.udplite", OK, "are tracked", func(f *Facts, s *Setup) {
			udplite(f, s)
			nf("nf_conntrack_checksum", "0")(f, s)
		}},
		{"rules.udplite", Unknown, "could not be read", func(f *Facts, s *Setup) {
			udplite(f, s)
			without(netfilter+"nf_conntrack_checksum")(f, s)
		}},
		{"rules.flowtables", Note, "table inet fw: ft", func(f *Facts, _ *Setup) { f.Rules.Flowtables = []string{"table inet fw: ft"} }},
	} {
		f, s := goodFacts(), goodSetup()
		if tt.change != nil {
			tt.change(f, s)
		}
		found := judged(Judge(f, s), tt.name)
		if len(found) != 1 {
			t.Errorf("%s: %d findings", tt.name, len(found))
			continue
		}
		g := found[0]
		if all := g.Found + "\n" + g.Why + "\n" + g.Fix; g.Verdict != tt.verdict || !strings.Contains(all, tt.words) {
			t.Errorf("%s: %v, want %v with %q:\n%s", tt.name, g.Verdict, tt.verdict, tt.words, all)
		}
	}
}

// A good host has no findings but those of its link, which the facts say nothing of,
// and every finding says all that it should.
func TestFindingsAreComplete(t *testing.T) {
	for _, f := range Judge(goodFacts(), goodSetup()) {
		if f.Verdict != OK && !strings.HasPrefix(f.ID, "rules.link_notrack") {
			t.Errorf("%s: %v: %s", f.Name(), f.Verdict, f.Found)
		}
	}
	bad := &Facts{Sysctls: map[string]Reading{netfilter + "nf_conntrack_max": {Err: "x"}}, Modules: map[string]Support{}}
	all := append(Judge(goodFacts(), goodSetup()), Judge(bad, goodSetup())...)
	for _, f := range all {
		if f.Found == "" || f.Want == "" || f.Why == "" || groupRank(f.Group()) == len(groups) {
			t.Errorf("a finding says too little: %+v", f)
		}
	}
}

func mineAndPeer() (mine, peer *Profile) {
	f, s := goodFacts(), goodSetup()
	mine = NewProfile(f, s)
	s.Node = "fw2"
	s.Links[0].Local = addrB
	return mine, NewProfile(f, s)
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verdict Verdict
		words   string
		change  func(mine, peer *Profile)
	}{
		{"peer.sysctl", OK, "13 values are the same", nil},
		{"peer.node", Warning, "this node itself", func(_, p *Profile) { p.Node = "fw1" }},
		{"peer.sysctl[nf_conntrack_udp_timeout]", Warning, "30 here, 300 on fw2", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_udp_timeout"] = "300" }},
		{"peer.sysctl[nf_conntrack_acct]", Warning, "=1", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_acct"] = "1" }},
		{"peer.sysctl[nf_conntrack_udp_timeout]", Note, "missing on fw2", func(_, p *Profile) { delete(p.Sysctls, netfilter+"nf_conntrack_udp_timeout") }},
		{"peer.sysctl[nf_conntrack_udp_timeout]", Note, "missing on this node", func(m, _ *Profile) { delete(m.Sysctls, netfilter+"nf_conntrack_udp_timeout") }},
		{"peer.sysctl[nf_conntrack_buckets]", Note, "", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_buckets"] = "7" }},
		{"peer.table[fw2]", OK, "", nil},
		{"peer.table[fw2]", Warning, "sysctl -w net.netfilter.nf_conntrack_max=1000000", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_max"] = "1000000" }},
		{"peer.table[fw2]", Warning, "on fw2: sysctl", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_max"] = "1000" }},
		{"peer.table[fw2]", Warning, "more connections than this node", func(_, p *Profile) { p.Sysctls[netfilter+"nf_conntrack_max"] = "0" }},
		{"peer.table[fw2]", Error, "300000 entries there", func(_, p *Profile) {
			p.Sysctls[netfilter+"nf_conntrack_max"], p.Entries = "1000000", "300000"
		}},
		{"peer.table[fw2]", Unknown, "", func(m, _ *Profile) { m.Sysctls = nil }},
		{"peer.wire", Error, "conntrackd on fw2", func(_, p *Profile) { p.Wire = "conntrackd" }},
		{"peer.mode", Error, "", func(_, p *Profile) { p.Mode = "alarm" }},
		{"peer.labels", Warning, "", func(_, p *Profile) { p.Labels = true }},
		{"peer.mark_mask", Warning, "0xff on fw2", func(_, p *Profile) { p.Mark = 0xff }},
		{"peer.links", Warning, "", func(_, p *Profile) { p.Links = nil }},
		{"peer.link[sync0]", OK, "", nil},
		{"peer.link[sync0]", Error, "port 3780 here, 3781", func(_, p *Profile) { p.Links[0].Port = 3781 }},
		{"peer.link[sync0]", Error, "group none here, 225.0.0.50", func(_, p *Profile) { p.Links[0].Group = "225.0.0.50" }},
		{"peer.link[sync0]", Error, "both have", func(m, p *Profile) { p.Links[0].Local = m.Links[0].Local }},
		{"peer.link[sync0]", Warning, "mtu 1500", func(_, p *Profile) { p.Links[0].MTU = 9000 }},
		{"peer.link[sync0]", Unknown, "", func(_, p *Profile) { p.Links[0].MTU = 0 }},
		{"peer.rules", OK, "", nil},
		{"peer.rules", Unknown, "", func(_, p *Profile) { p.Rules.Unreadable = true }},
		{"peer.rules[helpers]", Warning, "ftp sip on fw2", func(_, p *Profile) { p.Rules.Helpers = []string{"ftp", "sip"} }},
		{"peer.rules[zones]", Warning, "yes here, no on fw2", func(m, _ *Profile) { m.Rules.Zones = true }},
		{"peer.rules[masquerade]", Warning, "", func(_, p *Profile) { p.Rules.Masquerade = true }},
	} {
		mine, peer := mineAndPeer()
		if tt.change != nil {
			tt.change(mine, peer)
		}
		found := judged(Compare(mine, peer), tt.name)
		if len(found) != 1 {
			t.Errorf("%s: %d findings", tt.name, len(found))
			continue
		}
		g := found[0]
		if all := g.Found + "\n" + g.Why + "\n" + g.Fix; g.Verdict != tt.verdict || !strings.Contains(all, tt.words) {
			t.Errorf("%s: %v, want %v with %q:\n%s", tt.name, g.Verdict, tt.verdict, tt.words, all)
		}
	}
}

func TestProfile(t *testing.T) {
	mine, _ := mineAndPeer()
	var b bytes.Buffer
	ok(t, mine.Write(&b))
	back, err := ReadProfile(&b)
	ok(t, err)
	if fmt.Sprint(back) != fmt.Sprint(mine) {
		t.Errorf("read %v, want %v", back, mine)
	}
	for text, want := range map[string]string{
		"":                          "empty",
		"hello":                     "no profile of a host",
		`{"format":"syncd-host-9"}`: `"syncd-host-9", accepted: "syncd-host-1"`,
		`{"findings":[]}`:           "accepted",
		`{"format":"syncd-host-1","links":"all"}`: "no profile of a host",
		strings.Repeat(" ", profileLimit+1):       "more than",
	} {
		if _, err := ReadProfile(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", text, err, want)
		}
	}
}

func FuzzReadProfile(f *testing.F) {
	mine, _ := mineAndPeer()
	var b bytes.Buffer
	if err := mine.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"format":"syncd-host-1"}`))
	f.Add([]byte(`{"format":"syncd-host-1","links":[{}],"sysctls":{"a":"b","net.netfilter.nf_conntrack_max":"-1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ReadProfile(bytes.NewReader(b))
		if err != nil {
			return
		}
		mine, _ := mineAndPeer()
		for _, g := range append(Compare(mine, p), Compare(p, mine)...) {
			if g.Want == "" || g.Why == "" {
				t.Errorf("%+v", g)
			}
		}
	})
}

// goldenReport has a finding of every verdict.
func goldenReport() *Report {
	f, s := goodFacts(), goodSetup()
	f.Sysctls[netfilter+"nf_conntrack_events"] = Reading{Value: "0"}
	f.Sysctls[netfilter+"nf_conntrack_tcp_be_liberal"] = Reading{Value: "1"}
	f.Daemon = Daemon{None: "no daemon runs"}
	return &Report{Node: "fw1", Config: "/etc/syncd/syncd.toml", Kernel: f.Kernel, Findings: Judge(f, s)}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		ok(t, os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	ok(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s (write it anew with -update, and read the difference):\n%s", path, got)
	}
}

func TestText(t *testing.T) {
	r := goldenReport()
	r.Finish(false)
	var plain, coloured bytes.Buffer
	ok(t, r.WriteText(&plain, false), r.WriteText(&coloured, true))
	golden(t, "report.txt", plain.Bytes())
	if stripped := regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(coloured.String(), ""); stripped != plain.String() {
		t.Errorf("colour changes more than colours:\n%s", stripped)
	}
	if !strings.Contains(coloured.String(), "\x1b[31merror   \x1b[0m") {
		t.Error("an error is not red")
	}
}

func TestJSON(t *testing.T) {
	r := goldenReport()
	r.Finish(false)
	var b bytes.Buffer
	ok(t, r.WriteJSON(&b))
	golden(t, "report.json", b.Bytes())
	var back Report
	ok(t, json.Unmarshal(b.Bytes(), &back))
	if fmt.Sprint(back) != fmt.Sprint(*r) {
		t.Error("the document does not read back")
	}
	if err := new(Verdict).UnmarshalText([]byte("fine")); err == nil || !strings.Contains(err.Error(), "accepted: ok, note") {
		t.Error(err)
	}
}

// What fails a check.
func TestFinish(t *testing.T) {
	for _, tt := range []struct {
		verdict      Verdict
		plain, shift bool
	}{{OK, true, true}, {Note, true, true}, {Unknown, true, true}, {Warning, true, false}, {Error, false, false}} {
		for strict, want := range map[bool]bool{false: tt.plain, true: tt.shift} {
			r := &Report{Findings: []Finding{{ID: "kernel.x", Verdict: tt.verdict}}}
			if r.Finish(strict); r.OK != want {
				t.Errorf("%v, strict=%v: ok=%v", tt.verdict, strict, r.OK)
			}
		}
	}
	r := &Report{}
	if r.Finish(false); r.Findings == nil || !r.OK {
		t.Error("no findings is null, or fails")
	}
}

// The file that is installed sets what the check wants, all of it and nothing else.
func TestShippedSysctls(t *testing.T) {
	b, err := os.ReadFile("../../deploy/sysctl.d/60-syncd.conf")
	ok(t, err)
	set := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, " = ")
		if !found {
			t.Fatalf("%q", line)
		}
		set[name] = value
	}
	for _, k := range fixedSysctls {
		name := netfilter + k.name
		v, there := set[name]
		want := k.judge(1).want
		if k.judge(0).want == want && (want == "0" || want == "1") {
			n, err := strconv.ParseInt(v, 10, 64)
			if !there || err != nil || k.judge(n).verdict != OK {
				t.Errorf("the file sets %s to %q, the check wants %s", name, v, want)
			}
		} else if there {
			t.Errorf("the file sets %s, of which the check wants nothing", name)
		}
		delete(set, name)
	}
	for name, v := range set {
		t.Errorf("the file sets %s = %s, which the check does not look at", name, v)
	}
}

// docs/check.md tells of every finding, and of no other.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/check.md")
	ok(t, err)
	heading := regexp.MustCompile("(?m)^\\| `([a-z]+\\.[a-z_*]+)` \\|")
	documented := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	var source []byte
	files, err := filepath.Glob("*.go")
	ok(t, err)
	for _, f := range append(files, "../daemon/check.go") {
		if !strings.HasSuffix(f, "_test.go") {
			b, err := os.ReadFile(f)
			ok(t, err)
			source = append(source, b...)
		}
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(`"((?:config|kernel|table|buffer|link|rules|peer)\.[a-z_]+)"|ID: "(sysctl\.[a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		ids[m[1]+m[2]] = true
	}
	for _, f := range judgeSysctls(goodFacts(), goodSetup()) {
		if strings.Contains(f.ID, "_timeout") {
			f.ID = "sysctl.nf_conntrack_*timeout*"
		}
		ids[f.ID] = true
	}
	for id := range ids {
		if !documented[id] && !slices.Contains([]string{"sysctl.nf_conntrack_*timeout*"}, id) {
			t.Errorf("docs/check.md does not tell of %s", id)
		}
	}
	for id := range documented {
		if !ids[id] && !strings.HasSuffix(id, "_*timeout*") && !strings.Contains(id, "*") {
			t.Errorf("docs/check.md tells of %s, which no finding has", id)
		}
	}
}

// What cannot be read is said, not guessed.
func TestReaders(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		ok(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755), os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
	}
	write("net/netfilter/nf_conntrack_events", "1\n")
	write("net/netfilter/nf_conntrack_count", "7\n")
	write("net/netfilter/nf_conntrack_frag6_timeout", "60\n")
	write("net/ipv4/conf/eth0.7/rp_filter", "1\n")
	write("net/ipv4/conf/all/rp_filter", "0\n")
	ok(t, os.MkdirAll(filepath.Join(root, "net/ipv4/ip_forward"), 0o755)) // cannot be read as a file
	all := readSysctls(root)
	if all["net.netfilter.nf_conntrack_events"].Value != "1" || all["net/ipv4/conf/eth0.7/rp_filter"].Value != "1" || all["net.ipv4.conf.all.rp_filter"].Value != "0" {
		t.Errorf("%v", all)
	}
	if r := all["net.ipv4.ip_forward"]; r.Err == "" || r.ok() {
		t.Errorf("%v", r)
	}
	if len(all) != 4 {
		t.Errorf("%d values: %v", len(all), all)
	}
	if r := readFile(filepath.Join(root, "nowhere")); !r.Missing {
		t.Errorf("%v", r)
	}
	if g := probeBuffer(unix.AF_UNIX+100, 0, 0, 1); g.Err == "" {
		t.Error("a socket of no family")
	}
}

package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// judgeRules judges the packet filter.
func judgeRules(f *Facts, s *Setup) []Finding {
	r := &f.Rules
	all := []Finding{judgeLegacy(r)}
	if r.Err != "" {
		return append(all, Finding{ID: "rules.nftables", Verdict: Unknown, Found: "unreadable", Want: "readable", Why: r.Err})
	}
	rules := 0
	for _, c := range r.Chains {
		rules += len(c.Rules)
	}
	all = append(all, Finding{ID: "rules.nftables", Found: fmt.Sprintf("%d chains, %d rules", len(r.Chains), rules), Want: "the same on all nodes",
		Why: "a connection goes on only where the rules let it"})
	for i := range s.Links {
		all = append(all, judgeLinkRules(r, &s.Links[i])...)
	}
	all = append(all, judgeInvalid(r, f))
	return append(all, judgeUses(f, s)...)
}

func judgeLegacy(r *Ruleset) Finding {
	out := Finding{ID: "rules.legacy", Found: "not in use", Want: "not in use", Why: "all rules are in nftables, where this check sees them"}
	if len(r.Legacy) > 0 {
		out.Verdict, out.Found = Unknown, list(r.Legacy)
		out.Why = "rules of the older iptables cannot be seen here, so what is missing below may be there"
		out.Fix = "iptables-legacy-save; ip6tables-legacy-save"
	}
	return out
}

// hidden makes a finding about a missing rule uncertain where rules may exist that
// cannot be seen.
func (r *Ruleset) hidden(out Finding) Finding {
	if len(r.Legacy) > 0 && out.Verdict > Unknown {
		out.Verdict = Unknown
		out.Why = "not in nftables; whether a rule of the older iptables does it cannot be seen"
	}
	return out
}

// datagrams returns the datagrams of a link that come in or go out: one for each peer,
// or one from or to anybody.
func (l *Link) datagrams(in bool) []packet {
	peers := l.Peers
	if len(peers) == 0 || l.Group.IsValid() && !in {
		peers = peers[:0:0]
		peers = append(peers, netip.Addr{})
	}
	var all []packet
	for _, peer := range peers {
		src, dst := l.Local, peer
		if in {
			src, dst = peer, l.Local
		}
		if l.Group.IsValid() {
			dst = l.Group
		}
		const udp = 17
		p := newPacket(l.is6(), udp, src, dst)
		from := l.Port
		if l.Group.IsValid() {
			from = 0 // any port
		}
		p.ports(from, l.Port)
		if in {
			p.iif = l.Interface
		} else {
			p.oif, p.local = l.Interface, true
		}
		p.state = expr.CtStateBitINVALID // that is what a rule before conntrack sees
		all = append(all, *p)
	}
	return all
}

// judgeLinkRules follows datagrams of a link through the rules, in both directions.
func judgeLinkRules(r *Ruleset, l *Link) []Finding {
	var all []Finding
	for _, in := range [...]bool{true, false} {
		worst, passes := sure, fate{passes: sure}
		for _, p := range l.datagrams(in) {
			track, f := r.followDatagram(p, in)
			worst = min(worst, track)
			if f.passes < passes.passes || f.drops > passes.drops {
				passes = f
			}
		}
		all = append(all, r.hidden(l.notrackFinding(in, worst)), l.acceptFinding(in, worst, passes))
	}
	return all
}

// followDatagram takes a datagram of a link past conntrack and through the rest.
func (r *Ruleset) followDatagram(p packet, in bool) (notrack certainty, f fate) {
	first, second := uint32(unix.NF_INET_PRE_ROUTING), uint32(unix.NF_INET_LOCAL_IN)
	if !in {
		first, second = unix.NF_INET_LOCAL_OUT, unix.NF_INET_POST_ROUTING
	}
	f = r.follow(p, first, lowest, conntrackPriority)
	notrack = f.notrack
	p.state = expr.CtStateBitUNTRACKED
	if notrack != sure {
		p.state, p.tracked = expr.CtStateBitNEW, true
	}
	f = f.and(r.follow(p, first, conntrackPriority, highest))
	return notrack, f.and(r.follow(p, second, lowest, highest))
}

// rule returns what has to be written for the link, in the words of nft(8).
func (l *Link) rule(in bool, verdict string) string {
	way, chain := "iifname", "prerouting"
	if !in {
		way, chain = "oifname", "output"
	}
	if verdict != "notrack" {
		verdict, chain = "ct state untracked accept", "input"
		if !in {
			chain = "output"
		}
	}
	return fmt.Sprintf("in the %s chain: %s %q udp dport %d %s", chain, way, l.Interface, l.Port, verdict)
}

func (l *Link) notrackFinding(in bool, c certainty) Finding {
	out := Finding{ID: "rules.link_notrack_in", Subject: l.Interface, Found: "not tracked", Want: "not tracked",
		Why: "the sync link needs no entry in the table that it replicates"}
	if !in {
		out.ID = "rules.link_notrack_out"
	}
	fix := strings.Replace(l.rule(in, "notrack"), " chain:", " chain of priority raw:", 1)
	switch c {
	case never:
		out.Verdict, out.Found, out.Fix = Warning, "tracked", fix
		out.Why = "each datagram changes an entry, which is an event, which is a datagram; and a full table would cut the link"
	case possible:
		out.Verdict, out.Found, out.Fix = Warning, "some datagrams are tracked", fix
		out.Why = "a rule exempts some datagrams of the link from tracking, but not all"
	case unclear:
		out.Verdict, out.Found, out.Fix = Unknown, "could not be determined", fix
		out.Why = "a rule that may exempt the link from tracking has a condition that this version does not know"
	}
	return out
}

func (l *Link) acceptFinding(in bool, notrack certainty, f fate) Finding {
	out := Finding{ID: "rules.link_accept_in", Subject: l.Interface, Found: "accepted", Want: "accepted", Why: "datagrams of the peers come in"}
	if !in {
		out.ID, out.Why = "rules.link_accept_out", "datagrams go out to the peers"
	}
	at := ""
	if f.dropAt != "" {
		at = ": " + f.dropAt
	}
	fix := l.rule(in, "accept")
	if notrack != sure {
		fix = strings.Replace(fix, "ct state untracked ", "", 1)
	}
	switch {
	case f.drops == never:
	case f.passes == never:
		out.Verdict, out.Found, out.Fix = Error, "dropped"+at, fix
		out.Why = "nothing is replicated while the rules drop the link's datagrams"
		if notrack == sure {
			out.Why += "; \"ct state established,related accept\" does not cover untracked ones"
		}
	case f.drops == possible:
		out.Verdict, out.Found, out.Fix = Warning, "some may be dropped"+at, fix
		out.Why = "a rule drops datagrams of the link under some condition"
	default:
		out.Verdict, out.Found = Unknown, "could not be determined"
		if at != "" {
			out.Found += at
		}
		out.Fix = fix
		out.Why = "a rule has a condition or a target that this version does not know, or there are too many rules"
	}
	return out
}

// judgeInvalid takes a TCP packet in the middle of a connection that is not in the
// table through the rules for forwarded packets, in both address families.
func judgeInvalid(r *Ruleset, f *Facts) Finding {
	out := Finding{ID: "rules.invalid", Found: "dropped", Want: "dropped",
		Why: "packets of a connection that is not restored yet are lost, which TCP repairs, instead of reaching somebody untranslated"}
	fix := "in the forward chain, first: ct state invalid drop"
	worst := fate{drops: sure}
	if six, ok := f.sysctl("net.ipv6.conf.all.forwarding"); ok && six == 0 {
		worst = r.followInvalid(false)
	} else {
		worst = r.followInvalid(false)
		if g := r.followInvalid(true); g.passes > worst.passes {
			worst = g
		}
	}
	at := ""
	if worst.passAt != "" {
		at = ": " + worst.passAt
	}
	switch worst.passes {
	case sure:
		out.Verdict, out.Found, out.Fix = Warning, "forwarded"+at, fix
		out.Why = "after a takeover packets of connections that are not restored yet pass without their translation, and the other end resets them"
	case possible:
		out.Verdict, out.Found, out.Fix = Warning, "some may be forwarded"+at, fix
		out.Why = "a rule accepts packets before their state is looked at; those of connections that are not restored yet pass without their translation"
	case unclear:
		out.Verdict, out.Found, out.Fix = Unknown, "could not be determined"+at, fix
		out.Why = "a rule has a condition or a target that this version does not know, or there are too many rules"
	}
	return r.hidden(out)
}

func (r *Ruleset) followInvalid(six bool) fate {
	const tcp, flagsAt, ack = 6, 13, 0x10
	p := newPacket(six, tcp, netip.Addr{}, netip.Addr{})
	p.transport.set(flagsAt, ack)
	p.state = expr.CtStateBitINVALID
	f := r.follow(*p, unix.NF_INET_PRE_ROUTING, conntrackPriority, highest)
	return f.and(r.follow(*p, unix.NF_INET_FORWARD, lowest, highest))
}

// judgeUses judges what rules do that a takeover has to know of.
func judgeUses(f *Facts, s *Setup) []Finding {
	r := &f.Rules
	places := make(map[what][]string)
	helpers := make(map[string][]string)
	for _, u := range r.uses() {
		places[u.what] = append(places[u.what], u.place)
		if u.what == usesHelper {
			helpers[u.name] = append(helpers[u.name], u.place)
		}
	}
	all := []Finding{judgeMasquerade(places[usesMasquerade])}
	all = append(all, judgeLabels(r, places[usesLabel], s)...)
	names := make([]string, 0, len(helpers))
	for h := range helpers {
		names = append(names, h)
	}
	slices.Sort(names)
	for _, h := range names {
		all = append(all, judgeAssigned(h, helpers[h], s))
	}
	if at := places[usesZone]; len(at) > 0 {
		all = append(all, Finding{ID: "rules.zones", Verdict: Note, Found: "set: " + list(at), Want: "the same rules on all nodes",
			Why: "an entry is found only in its zone, so a node that sets other zones cannot use what it takes over"})
	}
	if at := places[usesEvents]; len(at) > 0 {
		all = append(all, Finding{ID: "rules.events", Verdict: Warning, Found: "limited: " + list(at), Want: "all events",
			Why: "flows whose events are limited by a rule are replicated with gaps, or not at all", Fix: "remove ct event set (CT --ctevents) from these rules"})
	}
	if at := places[usesTimeout]; len(at) > 0 {
		all = append(all, Finding{ID: "rules.timeouts", Verdict: Note, Found: "policies: " + list(at), Want: "timeouts by sysctl",
			Why: "a timeout policy cannot be restored: a flow that was taken over lives by the timeouts of the sysctls"})
	}
	if n := len(r.Flowtables); n > 0 || len(places[usesFlowtable]) > 0 {
		at := r.Flowtables
		if n == 0 {
			at = places[usesFlowtable]
		}
		all = append(all, Finding{ID: "rules.flowtables", Verdict: Note, Found: list(at), Want: "the same on all nodes",
			Why: "offloaded flows change without events; after a takeover the rules of the new node offload them again"})
	}
	if at := places[usesSynproxy]; len(at) > 0 {
		all = append(all, Finding{ID: "rules.synproxy", Verdict: Note, Found: "used: " + list(at), Want: "the same rules on all nodes",
			Why: "where any rule says synproxy, connections that were taken over while they were opening do not open; established ones go on"})
	}
	if at := places[usesUDPLite]; len(at) > 0 {
		all = append(all, judgeUDPLite(f, at))
	}
	return all
}

// judgeUDPLite judges whether what rules say of UDP-Lite can come true.
func judgeUDPLite(f *Facts, at []string) Finding {
	const name = netfilter + "nf_conntrack_checksum"
	out := Finding{ID: "rules.udplite", Found: "used: " + list(at), Want: "nf_conntrack_checksum = 0",
		Why: "packets of UDP-Lite are tracked, and their flows are replicated"}
	switch r, there := f.Sysctls[name]; {
	case !there || !r.ok():
		out.Verdict = Unknown
		out.Why = "whether the kernel verifies checksums could not be read; if it does, all packets of UDP-Lite are invalid"
	case r.Value != "0":
		out.Verdict, out.Fix = Warning, setCommand(name, 0)+" on all nodes, if UDP-Lite is in use"
		out.Why = "the kernel (seen with Linux 6.18) holds checksums of UDP-Lite against those of UDP, so every packet of it is invalid: no flow is tracked, translated or taken over"
	}
	return out
}

func judgeMasquerade(at []string) Finding {
	out := Finding{ID: "rules.masquerade", Found: "not used", Want: "snat to the virtual address",
		Why: "translations do not depend on the address of an interface"}
	if len(at) > 0 {
		out.Verdict, out.Found = Warning, list(at)
		out.Fix = "snat to ADDRESS in place of masquerade"
		out.Why = "when the address moves away the kernel forgets all connections that were masqueraded with it, and new ones get the address of the interface instead of the virtual one"
	}
	return out
}

func judgeLabels(r *Ruleset, at []string, s *Setup) []Finding {
	out := Finding{ID: "rules.labels", Found: "used: " + list(at), Want: "filter.labels = true", Why: "labels that rules use are replicated"}
	switch {
	case len(at) > 0 && !s.Labels:
		out.Verdict, out.Fix = Warning, "filter.labels = true in the configuration, if no module keeps pointers in labels"
		out.Why = "labels are not replicated, so after a takeover these rules find none"
	case len(at) == 0 && s.Labels:
		out.Verdict, out.Found, out.Want = Warning, "no rule uses labels", "a rule that uses them, or filter.labels = false"
		out.Why = "the kernel keeps labels only while a rule uses them, so those of restored flows are lost"
		out = r.hidden(out)
	case len(at) == 0:
		return nil
	}
	return []Finding{out}
}

func judgeAssigned(helper string, at []string, s *Setup) Finding {
	out := Finding{ID: "rules.helper", Subject: helper, Found: "assigned: " + list(at), Want: "its expectations are replicated",
		Why: "connections that it announces before a takeover are let in after it"}
	if !s.Expectations.Has(helper) {
		out.Verdict, out.Fix = Warning, fmt.Sprintf("add %q to filter.expectations in the configuration", helper)
		out.Why = "its expectations are not replicated, so a connection that it announces just before a takeover is refused after it"
	}
	return out
}

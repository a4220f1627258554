package e2e

import (
	"net/netip"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// What the second firewall has picked up by itself, before it was told to take over,
// gives way to what the first one knew: a connection that it saw the server's packet
// of first has the wrong direction, and a mapping that its rules made anew has the
// wrong port.
func TestPickup(t *testing.T) {
	for _, setup := range fidelitySetups {
		if setup.roles.receiver == theirs {
			continue
		}
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			p, d := fidelityPair(t, setup.roles, setup.opts)
			far := newPlaces()
			var all []conversation
			var early []func() error // a packet before the commit
			for _, a := range []lab.Addresses{p.V4, p.V6} {
				routed, snat := ways(p, a)[0], ways(p, a)[1]
				s := far.openStream(t, routed)
				all = append(all, conversation{name: "TCP " + family(a) + ", the server first", is: from(flow.TCP, s.local()), goOn: s.goOn})
				early = append(early, func() error { return s.say(s.far, s.near) })

				u := far.openDatagrams(t, snat, flow.UDP)
				all = append(all, conversation{name: "UDP " + family(a) + ", with another port", is: from(flow.UDP, u.near.local()),
					lacks: snat.untranslated, goOn: u.goOn})
				early = append(early, func() error { return u.near.send(u.to, u.payload()) })
			}
			d.waitReplicated(10*time.Second, "the conversations")

			loose := "flush chain inet fidelity through\nadd chain inet fidelity through { policy accept; }\n"
			ok(t, d.nB.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "1"))
			nft(t, d.nB, loose)
			ok(t, p.TakeOver(d.nA, d.nB))
			for _, f := range early {
				ok(t, f())
			}
			// What the second firewall makes of that.
			originals := kernelFlows(t, d.kA, d.accept)
			waitFor(t, transit, "the packets were picked up", func() bool { return len(kernelFlows(t, d.kB, d.accept)) >= len(all) })
			picked := kernelFlows(t, d.kB, d.accept)
			for _, c := range all {
				k, a := find(t, originals, c)
				b, same := picked[k]
				reverse := tuple{proto: k.proto, src: k.dst, dst: k.src, sport: k.dport, dport: k.sport}
				if _, reversed := picked[reverse]; k.proto == flow.TCP && !reversed || k.proto == flow.UDP && (!same || b.TupleReply == a.TupleReply) {
					t.Fatalf("%s was not picked up the wrong way: this proves nothing", c.name)
				}
			}
			ok(t, d.nB.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"))
			nft(t, d.nB, "delete table inet fidelity\n"+fidelityRules(p))

			if r := d.primary(t); r.Refused != 0 || r.AlreadyThere != 0 {
				t.Errorf("the commit: %+v", *r)
			}
			d.proveEach(t, all)
			for k := range kernelFlows(t, d.kB, d.accept) {
				if k.src == p.V4.Server || k.src == p.V6.Server {
					t.Errorf("%v is still there", k)
				}
			}
		})
	}
}

// Labels that the second firewall has no rule for are missing there, and the report
// says so; the rest of such a flow is there.
func TestLabelsWithoutRule(t *testing.T) {
	t.Parallel()
	p, d := fidelityPair(t, roles{ours, ours}, duoOptions{sealed: true, syncd: "[filter]\nlabels = true\nmark_mask = 0x00ffff00"})
	far := newPlaces()
	w := ways(p, p.V4)[1]
	w.to = netip.AddrPortFrom(p.V4.Server, portLabels)
	w.at = w.to
	s := far.openStream(t, w)
	w.to = netip.AddrPortFrom(p.V4.Server, portMark)
	w.at = w.to
	m := far.openStream(t, w)
	in := form{tuplesOnly: true} // of marks the cache has a part
	waitEqual(t, 5*time.Second, "the connections", d.external, d.kernelA, in)
	ok(t, p.TakeOver(d.nA, d.nB))
	nft(t, d.nB, "flush chain inet fidelity attributes\n")
	r := d.primary(t)
	if r.Created != 2 || r.Refused != 0 || r.IncompleteBy["without labels"] != 1 {
		t.Errorf("the commit: %+v", *r)
	}
	committed := kernelFlows(t, d.kB, d.accept)
	_, a := find(t, kernelFlows(t, d.kA, d.accept), conversation{is: from(flow.TCP, s.local())})
	_, b := find(t, committed, conversation{is: from(flow.TCP, s.local())})
	if len(a.Labels) == 0 || len(b.Labels) != 0 {
		t.Errorf("labels %x, of the original %x", b.Labels, a.Labels)
	}
	if a.Labels = nil; compareCommitted(d.roles, d.opts, a, b) != "" {
		t.Error(compareCommitted(d.roles, d.opts, a, b))
	}
	ok(t, s.goOn())

	// Of a mark, the bits of filter.mark_mask.
	if _, b := find(t, committed, conversation{is: from(flow.TCP, m.local())}); b.Mark != ruleMark&0x00ffff00 {
		t.Errorf("the mark is %#x, the original has %#x", b.Mark, uint32(ruleMark))
	}
	ok(t, m.goOn())
}

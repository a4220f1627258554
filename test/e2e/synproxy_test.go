package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
	"syncd/internal/lab"
)

// portSYNProxy is the port of the server that a SYN proxy stands before.
const portSYNProxy = 7030

// synproxyRules are for nft(8), beside those of fidelityRules.
var synproxyRules = fmt.Sprintf(`
table inet proxied {
	chain raw_in {
		type filter hook prerouting priority raw; policy accept;
		tcp dport %[1]d tcp flags & (syn|ack) == syn notrack
	}
	chain through {
		type filter hook forward priority filter - 1; policy accept;
		tcp dport %[1]d ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
	}
}
`, portSYNProxy)

// A connection that one firewall's SYN proxy has opened goes on through the other one:
// every packet of it has its sequence numbers and its timestamps changed.
func TestSYNProxy(t *testing.T) {
	for _, setup := range fidelitySetups {
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			p, d := fidelityPair(t, setup.roles, setup.opts)
			nft(t, p.FW1, synproxyRules)
			nft(t, p.FW2, synproxyRules)
			far := newPlaces()
			var all []conversation
			for _, a := range []lab.Addresses{p.V4, p.V6} {
				for _, w := range ways(p, a)[:2] { // routed, source NAT
					w.to = netip.AddrPortFrom(a.Server, portSYNProxy)
					w.at = w.to
					s := far.openStream(t, w)
					all = append(all, conversation{
						name: fmt.Sprintf("%s, %s", family(a), w.name),
						is:   from(flow.TCP, s.local()),
						lacks: func(f *conntrack.Flow) string {
							if f.SynProxy == (conntrack.SynProxy{}) || f.SeqAdjReply.OffsetAfter == 0 {
								return fmt.Sprintf("the proxy's doing: %+v, %+v", f.SynProxy, f.SeqAdjReply)
							}
							return w.untranslated(f)
						},
						goOn: s.goOn,
					})
				}
			}
			d.proveAll(t, p, all)
		})
	}
}

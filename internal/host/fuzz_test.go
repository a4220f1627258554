package host

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Whatever an expression looks like, a rule with it can be followed.
func FuzzExpr(f *testing.F) {
	for _, e := range []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: make([]byte, 4), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{14, 196}}, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{1}, ToData: []byte{2}},
		&expr.Lookup{SourceRegister: 1, SetName: "s"}, &expr.Verdict{Kind: expr.VerdictJump, Chain: "c"}, &expr.Notrack{},
		&expr.Immediate{Register: 1, Data: []byte{1}}, &expr.Masq{}, &expr.Exthdr{DestRegister: 1, Len: 2},
		&expr.Objref{Type: objectHelper, Name: "f"},
	} {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1))
	}
	f.Add([]byte{11, 0, 1, 0, 'm', 'a', 't', 'c', 'h', 0, 0, 0, 16, 0, 2, 0x80, 8, 0, 1, 0, 'u', 'd', 'p', 0}, uint32(8))
	f.Fuzz(func(t *testing.T, b []byte, register uint32) {
		e := decodeExpr(unix.NFPROTO_INET, b)
		if e == nil {
			t.Fatal("nothing")
		}
		c := &Chain{Family: unix.NFPROTO_INET, Table: "t", Name: "c", Base: true, Hook: unix.NF_INET_PRE_ROUTING, Priority: -300}
		c.Rules = []Rule{{Exprs: []any{e, &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: []byte{1, 2}}, e, &expr.Verdict{Kind: expr.VerdictDrop}}}}
		r := Ruleset{Chains: []*Chain{c}}
		r.uses()
		l := syncLink(false)
		_, fate := r.followDatagram(l.datagrams(true)[0], true)
		if fate.drops == sure && fate.passes != never || fate.passes == sure && fate.drops == sure {
			t.Errorf("%+v", fate)
		}
		r.follow(*newPacket(true, 6, netip.Addr{}, netip.Addr{}), unix.NF_INET_PRE_ROUTING, lowest, highest)
	})
}

// The same for extensions of iptables, whose structures come in any length.
func FuzzExtension(f *testing.F) {
	for _, name := range []string{"udp", "tcp", "multiport", "conntrack", "state", "comment", "CT", "NOTRACK", "MASQUERADE", "REJECT"} {
		f.Add(name, uint32(1), make([]byte, 64), true)
		f.Add(name, uint32(3), make([]byte, 168), false)
		f.Add(name, uint32(0), []byte{}, false)
	}
	f.Fuzz(func(t *testing.T, name string, rev uint32, info []byte, target bool) {
		e := extension{target, name, rev, info}
		c := &Chain{Family: unix.NFPROTO_IPV4, Base: true, Hook: unix.NF_INET_PRE_ROUTING, Priority: -300,
			Rules: []Rule{{Exprs: []any{e, &expr.Verdict{Kind: expr.VerdictAccept}}}}}
		r := Ruleset{Chains: []*Chain{c}}
		r.uses()
		l := syncLink(false)
		r.followDatagram(l.datagrams(true)[0], true)
		r.followInvalid(false)
	})
}

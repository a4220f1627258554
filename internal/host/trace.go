package host

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// certainty says whether something happens to a packet. They are ordered: what
// happens under two conditions is as certain as the less certain one.
type certainty uint8

const (
	never    certainty = iota // not at all
	unclear                   // depends on something that this package does not understand
	possible                  // depends on what the packet leaves open: to some it happens
	sure                      // to all such packets
)

// packet is a packet as far as it is fixed. What is not fixed differs from one such
// packet to the next.
type packet struct {
	family   byte   // NFPROTO_IPV4 or NFPROTO_IPV6
	proto    byte   // of the transport header
	iif, oif string // "": not fixed
	local    bool   // sent by this host: there is no iif

	network   field // IP header
	transport field // UDP or TCP header

	state   uint32 // bits of ct state; before conntrack has seen the packet it is INVALID
	tracked bool   // belongs to an entry of conntrack
}

// field is a run of octets of which some are fixed.
type field struct{ value, known []byte }

func newField(size int) field { return field{make([]byte, size), make([]byte, size)} }

// set fixes octets.
func (f field) set(offset int, v ...byte) {
	copy(f.value[offset:], v)
	for i := range v {
		f.known[offset+i] = 1
	}
}

// slice returns size octets from offset on; what is beyond the end is not fixed.
func (f field) slice(offset, size int) field {
	s := newField(size)
	if offset < len(f.value) {
		copy(s.value, f.value[offset:])
		copy(s.known, f.known[offset:])
	}
	return s
}

// newPacket returns a packet between two addresses, either of which may be invalid:
// then it is not fixed.
func newPacket(six bool, proto byte, src, dst netip.Addr) *packet {
	p := &packet{family: unix.NFPROTO_IPV4, proto: proto, network: newField(60), transport: newField(20)}
	at, size, protoAt := 12, 4, 9 // RFC 791
	if six {
		p.family, at, size, protoAt = unix.NFPROTO_IPV6, 8, 16, 6 // RFC 8200
	}
	p.network.set(protoAt, proto)
	if src.IsValid() {
		p.network.set(at, src.AsSlice()...)
	}
	if dst.IsValid() {
		p.network.set(at+size, dst.AsSlice()...)
	}
	return p
}

func (p *packet) ports(src, dst uint16) {
	if src != 0 {
		p.transport.set(0, byte(src>>8), byte(src))
	}
	if dst != 0 {
		p.transport.set(2, byte(dst>>8), byte(dst))
	}
}

// fate is what the chains of a hook do to a packet.
type fate struct {
	passes  certainty
	drops   certainty
	dropAt  string // where it is dropped the most certainly
	passAt  string // which rule accepts it; "" for a policy
	notrack certainty
}

// trace takes a packet through chains.
type trace struct {
	rules *Ruleset
	p     packet
	fate  fate
	steps int // rules seen so far

	accepted, dropped certainty // in the current base chain
}

// maxSteps bounds the rules that one packet is held against. Chains that call each
// other many times over could take for ever.
const maxSteps = 200_000

// conntrackPriority is where conntrack sees a packet (NF_IP_PRI_CONNTRACK).
const conntrackPriority = -200

// chains returns the base chains of a hook that the packet goes through, in order. Of
// chains of type nat only the first packet of a connection sees something; they do
// not filter.
func (r *Ruleset) chains(p *packet, hook uint32, from, below int32) []*Chain {
	var all []*Chain
	for _, c := range r.Chains {
		family := c.Family == unix.NFPROTO_INET || byte(c.Family) == p.family
		if c.Base && family && c.Hook == hook && c.Type != string(nftables.ChainTypeNAT) && c.Priority >= from && c.Priority < below {
			all = append(all, c)
		}
	}
	return all
}

const lowest, highest = -1 << 31, 1<<31 - 1

// follow returns what the chains of a hook with a priority in [from, below) do to p.
func (r *Ruleset) follow(p packet, hook uint32, from, below int32) fate {
	t := &trace{rules: r, p: p, fate: fate{passes: sure}}
	for _, c := range r.chains(&p, hook, from, below) {
		t.base(c)
	}
	return t.fate
}

// and returns the fate of a packet that then meets g.
func (f fate) and(g fate) fate {
	if g.drops > never && min(f.passes, g.drops) > f.drops {
		f.drops, f.dropAt = min(f.passes, g.drops), g.dropAt
	}
	if g.passAt != "" {
		f.passAt = g.passAt
	}
	f.passes = min(f.passes, g.passes)
	f.notrack = max(f.notrack, g.notrack)
	return f
}

// base takes the packet through a base chain.
func (t *trace) base(c *Chain) {
	here := fate{}
	t.accepted, t.dropped = never, never
	saved := t.fate
	t.fate = fate{}
	left := t.walk(c, sure, 0)
	here.notrack, here.dropAt, here.passAt = t.fate.notrack, t.fate.dropAt, t.fate.passAt
	if left > never {
		if c.Drop {
			if left > t.dropped {
				here.dropAt = c.place(nil) + ", policy drop"
			}
			t.dropped = max(t.dropped, left)
		} else {
			t.accepted = max(t.accepted, left)
		}
	}
	switch {
	case t.dropped == never:
		here.passes = sure
	case t.accepted == never:
		here.drops = sure
	default:
		here.passes, here.drops = min(t.accepted, possibleOr(t.dropped)), min(t.dropped, possibleOr(t.accepted))
	}
	t.fate = saved.and(here)
}

// possibleOr is how certain the opposite of something can still be.
func possibleOr(c certainty) certainty {
	if c == unclear {
		return unclear
	}
	return possible
}

// walk takes the packet, that comes here with certainty c, through a chain, and
// returns how certainly it leaves at the end.
func (t *trace) walk(c *Chain, here certainty, depth int) certainty {
	const deepest = 16 // jumps, the kernel's limit
	returned := never
	for i := range c.Rules {
		if here == never {
			break
		}
		if t.steps++; t.steps > maxSteps || depth > deepest {
			t.end(unclear, true, "")
			t.end(unclear, false, "")
			return unclear
		}
		rule := &c.Rules[i]
		m, v := t.match(c, rule, here)
		if m == never || v == nil {
			continue
		}
		met := min(here, m)
		rest := never // how certainly the next rule sees the packet
		if m < sure {
			rest = min(here, m)
		}
		switch v.Kind {
		case expr.VerdictAccept, expr.VerdictStop:
			t.end(met, true, c.place(rule))
		case expr.VerdictDrop, expr.VerdictStolen:
			t.end(met, false, c.place(rule))
		case expr.VerdictQueue:
			// A program decides.
			t.end(unclear, true, c.place(rule))
			t.end(unclear, false, c.place(rule))
		case expr.VerdictReturn:
			returned = max(returned, met)
		case expr.VerdictJump, expr.VerdictGoto:
			next := t.rules.chain(c.Family, c.Table, v.Chain)
			if next == nil {
				continue
			}
			out := t.walk(next, met, depth+1)
			switch {
			case v.Kind == expr.VerdictGoto:
				returned = max(returned, out)
			case m == sure:
				rest = out
			case out == met:
				rest = here // as if the rule were not there
			}
		default:
			rest = here
		}
		here = rest
	}
	return max(here, returned)
}

// end notes that the packet is accepted or dropped here.
func (t *trace) end(c certainty, accept bool, place string) {
	if accept {
		if c > t.accepted || t.fate.passAt == "" {
			t.fate.passAt = place
		}
		t.accepted = max(t.accepted, c)
		return
	}
	if c > t.dropped {
		t.fate.dropAt = place
	}
	t.dropped = max(t.dropped, c)
}

// registers hold what expressions load. Register 0 is the verdict, 1 to 4 have 16
// octets, and 8 to 23 are the same in pieces of 4.
type registers struct {
	field
	why [80]certainty // why an octet is not known: possible or unclear
}

func place(reg uint32) int {
	const first32 = 8
	if reg >= first32 {
		return 16 + 4*int(reg-first32)
	}
	return 16 * int(reg)
}

func newRegisters() *registers {
	return &registers{field: newField(80)}
}

// load puts octets into a register; those not known are so for the reason why.
func (r *registers) load(reg uint32, f field, why certainty) {
	at := place(reg)
	for i := range f.value {
		if at+i >= len(r.value) {
			return
		}
		r.value[at+i], r.known[at+i], r.why[at+i] = f.value[i], f.known[i], why
	}
	for i := at + len(f.value); i%4 != 0 && i < len(r.value); i++ {
		r.value[i], r.known[i] = 0, 1 // the kernel fills up with zeros
	}
}

func fixed(v ...byte) field {
	f := newField(len(v))
	f.set(0, v...)
	return f
}

// get returns size octets of a register, and why some of them are not known (sure if
// all are).
func (r *registers) get(reg uint32, size int) (field, certainty) {
	at := min(place(reg), len(r.value))
	f := r.slice(at, size)
	why := sure
	for i := range size {
		if f.known[i] == 0 {
			w := unclear
			if at+i < len(r.why) && r.why[at+i] == possible {
				w = possible
			}
			why = min(why, w)
		}
	}
	return f, why
}

// match returns how certainly the rule applies to the packet, and its verdict if it
// has one. It notes what the rule does besides.
func (t *trace) match(c *Chain, rule *Rule, here certainty) (certainty, *expr.Verdict) {
	m := sure
	regs := newRegisters()
	var verdict *expr.Verdict
	for _, e := range rule.Exprs {
		met := sure
		switch e := e.(type) {
		case *expr.Meta:
			if !e.SourceRegister {
				t.loadMeta(regs, e)
			}
		case *expr.Ct:
			if !e.SourceRegister && !t.loadCt(regs, e) {
				met = never
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				regs.load(e.DestRegister, t.payload(e), possible)
			}
		case *expr.Immediate:
			regs.load(e.Register, fixed(e.Data...), possible)
		case *expr.Bitwise:
			bitwise(regs, e)
		case *expr.Cmp:
			met = compare(regs, e)
		case *expr.Range:
			met = inRange(regs, e)
		case *expr.Lookup:
			var v *expr.Verdict
			if met, v = t.lookup(regs, c, e); v != nil {
				verdict = v
			}
		case *expr.Verdict:
			verdict = e
		case *expr.Reject:
			verdict = &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.SynProxy:
			verdict = &expr.Verdict{Kind: expr.VerdictStolen}
		case *expr.Queue:
			verdict = &expr.Verdict{Kind: expr.VerdictQueue}
		case *expr.Notrack:
			t.fate.notrack = max(t.fate.notrack, min(here, m))
		case *expr.Limit, *expr.Quota, *expr.Connlimit:
			met = possible
		case *expr.Objref:
			const quota, limit, connlimit = 2, 4, 5 // NFT_OBJECT_*
			if e.Type == quota || e.Type == limit || e.Type == connlimit {
				met = possible
			}
		case *expr.Fib:
			regs.load(e.Register, newField(4), possible)
		case *expr.Exthdr:
			regs.load(e.DestRegister, newField(int(max(1, e.Len))), possible)
			met = possible // without the header the rule does not apply
		case *expr.Hash:
			regs.load(e.DestRegister, newField(4), possible)
		case *expr.Numgen:
			regs.load(e.Register, newField(4), possible)
		case extension:
			var v *expr.Verdict
			if met, v = t.extension(e, min(here, m)); v != nil {
				verdict = v
			}
		case opaque:
			// It may be a condition, or load what a later one compares.
			met = unclear
			regs = newRegisters()
		}
		if m = min(m, met); m == never {
			return never, nil
		}
	}
	return m, verdict
}

func ifname(name string) field {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return fixed(b...)
}

func (t *trace) loadMeta(regs *registers, e *expr.Meta) {
	f := newField(16)
	switch e.Key {
	case expr.MetaKeyL4PROTO:
		f = fixed(t.p.proto)
	case expr.MetaKeyNFPROTO:
		f = fixed(t.p.family)
	case expr.MetaKeyPROTOCOL:
		ethertype := []byte{0x08, 0x00}
		if t.p.family == unix.NFPROTO_IPV6 {
			ethertype = []byte{0x86, 0xdd}
		}
		f = fixed(ethertype...)
	case expr.MetaKeyIIFNAME:
		if t.p.iif != "" || t.p.local {
			f = ifname(t.p.iif)
		}
	case expr.MetaKeyOIFNAME:
		if t.p.oif != "" {
			f = ifname(t.p.oif)
		}
	case expr.MetaKeyIIF, expr.MetaKeyOIF:
		name := t.p.iif
		if e.Key == expr.MetaKeyOIF {
			name = t.p.oif
		}
		if index := t.rules.Index[name]; index != 0 {
			f = fixed(binary.NativeEndian.AppendUint32(nil, uint32(index))...)
		}
	}
	regs.load(e.Register, f, possible)
}

// loadCt loads what conntrack knows of the packet. Without an entry there is only
// the state, and a rule that asks for more does not apply.
func (t *trace) loadCt(regs *registers, e *expr.Ct) bool {
	if e.Key == expr.CtKeySTATE {
		regs.load(e.Register, fixed(binary.NativeEndian.AppendUint32(nil, t.p.state)...), possible)
		return true
	}
	if !t.p.tracked {
		return false
	}
	regs.load(e.Register, newField(16), possible)
	return true
}

func (t *trace) payload(e *expr.Payload) field {
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		return t.p.network.slice(int(e.Offset), int(e.Len))
	case expr.PayloadBaseTransportHeader:
		return t.p.transport.slice(int(e.Offset), int(e.Len))
	}
	return newField(int(e.Len))
}

func bitwise(regs *registers, e *expr.Bitwise) {
	size := int(e.Len)
	f, why := regs.get(e.SourceRegister, size)
	if len(e.Mask) != size || len(e.Xor) != size {
		regs.load(e.DestRegister, newField(size), unclear)
		return
	}
	out := newField(size)
	for i := range size {
		if f.known[i] == 1 || e.Mask[i] == 0 {
			out.set(i, f.value[i]&e.Mask[i]^e.Xor[i])
		}
	}
	if why == sure {
		why = possible
	}
	regs.load(e.DestRegister, out, why)
}

// order compares the octets that are known: less, equal as far as known, or greater.
// It is decided by the first octet that differs, if all before it are known.
func (f field) order(v []byte) (sign int, decided bool) {
	for i := range v {
		if i >= len(f.value) || f.known[i] == 0 {
			return 0, false
		}
		if f.value[i] != v[i] {
			return bytes.Compare(f.value[i:i+1], v[i:i+1]), true
		}
	}
	return 0, true
}

// differs reports whether a known octet is another.
func (f field) differs(v []byte) bool {
	for i := range v {
		if i < len(f.value) && f.known[i] == 1 && f.value[i] != v[i] {
			return true
		}
	}
	return false
}

func truth(b bool) certainty {
	if b {
		return sure
	}
	return never
}

func compare(regs *registers, e *expr.Cmp) certainty {
	f, why := regs.get(e.Register, len(e.Data))
	switch e.Op {
	case expr.CmpOpEq, expr.CmpOpNeq:
		switch {
		case f.differs(e.Data):
			return truth(e.Op == expr.CmpOpNeq)
		case why == sure:
			return truth(e.Op == expr.CmpOpEq)
		}
		return why
	}
	sign, decided := f.order(e.Data)
	if !decided {
		return why
	}
	switch e.Op {
	case expr.CmpOpLt:
		return truth(sign < 0)
	case expr.CmpOpLte:
		return truth(sign <= 0)
	case expr.CmpOpGt:
		return truth(sign > 0)
	case expr.CmpOpGte:
		return truth(sign >= 0)
	}
	return unclear
}

func inRange(regs *registers, e *expr.Range) certainty {
	f, why := regs.get(e.Register, len(e.FromData))
	if why != sure || len(e.FromData) != len(e.ToData) {
		return min(why, possible)
	}
	in := bytes.Compare(f.value, e.FromData) >= 0 && bytes.Compare(f.value, e.ToData) <= 0
	return truth(in == (e.Op == expr.CmpOpEq))
}

// lookup looks into a set or a map, and returns the verdict of a verdict map.
func (t *trace) lookup(regs *registers, c *Chain, e *expr.Lookup) (certainty, *expr.Verdict) {
	set, ok := t.rules.Sets[setKey{c.Family, c.Table, e.SetName}]
	elements, size := set.elements, 0
	for _, el := range elements {
		size = max(size, len(el.Key))
	}
	f, why := regs.get(e.SourceRegister, size)
	if !ok {
		why = unclear
	}
	met, element := never, (*nftables.SetElement)(nil)
	if why == sure {
		element = set.find(f.value)
		met = truth(element != nil)
	} else if set.mayHold(f) {
		met = why
	}
	if e.Invert {
		switch met {
		case sure:
			return never, nil
		case never:
			return sure, nil
		}
		return met, nil
	}
	if !e.IsDestRegSet {
		return met, nil
	}
	if e.DestRegister == unix.NFT_REG_VERDICT {
		switch {
		case met == never:
			return never, nil
		case element != nil && element.VerdictData != nil:
			return met, element.VerdictData
		}
		// One of the verdicts of the map, but which?
		t.end(min(why, possible), true, "")
		t.end(min(why, possible), false, "")
		return never, nil
	}
	if element != nil {
		regs.load(e.DestRegister, fixed(element.Val...), possible)
	} else {
		regs.load(e.DestRegister, newField(16), min(why, possible))
	}
	return met, nil
}

// find returns the element that holds a key: its own, that of the interval it lies
// in, that of a range of concatenated fields, or the one for all others.
func (s *set) find(key []byte) *nftables.SetElement {
	var below, others *nftables.SetElement // below: the last boundary that is not above the key
	for i := range s.elements {
		e := &s.elements[i]
		switch {
		case len(e.Key) == 0:
			others = e
		case len(e.KeyEnd) == len(key) && len(e.Key) == len(key):
			if withinFields(key, e.Key, e.KeyEnd) {
				return e
			}
		case !s.interval:
			if bytes.Equal(e.Key, key) {
				return e
			}
		case bytes.Compare(e.Key, key) <= 0:
			// An end and the start of the next interval may be the same: the start counts.
			if below == nil || bytes.Compare(e.Key, below.Key) > 0 || bytes.Equal(e.Key, below.Key) && below.IntervalEnd {
				below = e
			}
		}
	}
	if below != nil && !below.IntervalEnd {
		return below
	}
	return others
}

// withinFields compares concatenated fields, each padded to four octets. A longer
// field counts as one if its first piece decides.
func withinFields(key, from, to []byte) bool {
	for i := 0; i+4 <= len(key); i += 4 {
		if bytes.Compare(key[i:i+4], from[i:i+4]) < 0 || bytes.Compare(key[i:i+4], to[i:i+4]) > 0 {
			return false
		}
	}
	return true
}

// mayHold reports whether a key that is known in part may be in the set. Only exact
// elements can rule it out.
func (s *set) mayHold(f field) bool {
	return slices.ContainsFunc(s.elements, func(e nftables.SetElement) bool {
		return s.interval || len(e.KeyEnd) > 0 || !f.differs(e.Key)
	})
}

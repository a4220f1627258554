package host

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// what a rule does to connections that a takeover has to know of.
type what uint8

const (
	usesMasquerade what = iota
	usesHelper          // assigns one; the name is that of the helper
	usesZone            // sets one
	usesLabel           // sets or reads one
	usesEvents          // limits the events of a flow
	usesTimeout         // gives a flow a timeout policy
	usesFlowtable       // offloads flows
	usesSynproxy        // answers in the place of servers
	usesUDPLite         // is about packets of UDP-Lite
)

// use is one place of the ruleset that does so.
type use struct {
	what  what
	name  string
	place string
}

// Bits of the flags of the CT target (xt_CT.h).
const (
	targetNotrack      = 1 << 0
	targetZone         = 1<<3 | 1<<4 | 1<<5 // of one direction, or from the mark; the zone itself is a field
	targetHelperOffset = 12                 // behind flags, zone and two event masks
	targetHelperLength = 16
)

// uses lists all of it, in the order of chains and rules.
func (r *Ruleset) uses() []use {
	var all []use
	for _, c := range r.Chains {
		for i := range c.Rules {
			rule := &c.Rules[i]
			add := func(w what, name string) { all = append(all, use{w, name, c.place(rule)}) }
			if r.names(c, rule, unix.IPPROTO_UDPLITE) {
				add(usesUDPLite, "")
			}
			for _, e := range rule.Exprs {
				switch e := e.(type) {
				case *expr.Masq:
					add(usesMasquerade, "")
				case *expr.FlowOffload:
					add(usesFlowtable, "")
				case *expr.SynProxy:
					add(usesSynproxy, "")
				case *expr.Objref:
					switch e.Type {
					case objectHelper:
						add(usesHelper, r.Objects[setKey{c.Family, c.Table, e.Name}])
					case objectTimeout:
						add(usesTimeout, e.Name)
					case objectSynproxy:
						add(usesSynproxy, e.Name)
					case 0: // looked up in a map
						r.eachHelper(c, func(name string) { add(usesHelper, name) })
					}
				case *expr.Ct:
					r.useOfCt(e, add)
				case extension:
					useOfExtension(e, add)
				}
			}
		}
	}
	return all
}

// names reports whether the rule compares the protocol above IP with proto: by itself,
// in a set, or as the first part of a set's elements. A rule that is about all others
// names it too.
func (r *Ruleset) names(c *Chain, rule *Rule, proto byte) bool {
	var held uint32 // the register with the protocol, 0 for none: registers begin at 1
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			switch {
			case e.SourceRegister:
			case e.Key == expr.MetaKeyL4PROTO:
				held = e.Register
			case e.Register == held:
				held = 0
			}
		case *expr.Payload:
			const protoAt, nextHeaderAt = 9, 6 // of IPv4 and IPv6
			switch {
			case e.OperationType != expr.PayloadLoad:
			case e.Base == expr.PayloadBaseNetworkHeader && e.Len == 1 && (e.Offset == protoAt || e.Offset == nextHeaderAt):
				held = e.DestRegister
			case e.DestRegister == held:
				held = 0
			}
		case *expr.Cmp:
			if held != 0 && e.Register == held && len(e.Data) == 1 && e.Data[0] == proto {
				return true
			}
		case *expr.Lookup:
			if held == 0 || e.SourceRegister != held {
				continue
			}
			s := r.Sets[setKey{c.Family, c.Table, e.SetName}]
			for i := range s.elements {
				if el := &s.elements[i]; len(el.Key) > 0 && el.Key[0] == proto && !el.IntervalEnd {
					return true
				}
			}
		}
	}
	return false
}

// eachHelper calls fn for the helper of each object of the chain's table, in order.
func (r *Ruleset) eachHelper(c *Chain, fn func(name string)) {
	var names []string
	for k, name := range r.Objects {
		if k.family == c.Family && k.table == c.Table {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		fn(n)
	}
}

func (r *Ruleset) useOfCt(e *expr.Ct, add func(what, string)) {
	switch {
	case e.Key == expr.CtKeyLABELS:
		add(usesLabel, "")
	case !e.SourceRegister:
	case e.Key == expr.CtKeyZONE:
		add(usesZone, "")
	case e.Key == expr.CtKeyEVENTMASK:
		add(usesEvents, "")
	}
}

func useOfExtension(e extension, add func(what, string)) {
	switch {
	case e.target && e.name == "MASQUERADE":
		add(usesMasquerade, "")
	case e.target && e.name == "CT" && len(e.info) >= targetHelperOffset+targetHelperLength:
		// u16 flags, u16 zone, u32 events, u32 events of expectations, helper, and from
		// revision 1 a timeout policy
		flags, zone := binary.NativeEndian.Uint16(e.info), binary.NativeEndian.Uint16(e.info[2:])
		if zone != 0 || flags&targetZone&^(1<<3|1<<4) != 0 {
			add(usesZone, "")
		}
		if binary.NativeEndian.Uint32(e.info[4:]) != 0 {
			add(usesEvents, "")
		}
		if name := cString(e.info[targetHelperOffset:][:targetHelperLength]); name != "" {
			add(usesHelper, name)
		}
		if rest := e.info[targetHelperOffset+targetHelperLength:]; e.rev >= 1 && cString(rest) != "" {
			add(usesTimeout, cString(rest))
		}
	case !e.target && e.name == "connlabel":
		add(usesLabel, "")
	case e.target && e.name == "FLOWOFFLOAD":
		add(usesFlowtable, "")
	case e.target && e.name == "SYNPROXY":
		add(usesSynproxy, "")
	}
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// forwards reports whether there are chains that a forwarded packet goes through.
func (r *Ruleset) forwards() bool {
	for _, c := range r.Chains {
		if c.Base && c.Hook == unix.NF_INET_FORWARD && (len(c.Rules) > 0 || c.Drop) && c.routed() {
			return true
		}
	}
	return false
}

// routed reports whether the chain sees packets of IPv4 or IPv6 that are routed.
func (c *Chain) routed() bool {
	return c.Family == unix.NFPROTO_INET || c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6
}

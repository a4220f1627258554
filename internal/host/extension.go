package host

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
)

// The extensions of iptables, whose rules iptables-nft puts into nftables. Their
// structures are those of the kernel's headers, in the host's octet order.

// extension judges a match or target for the packet.
func (t *trace) extension(e extension, here certainty) (certainty, *expr.Verdict) {
	if e.target {
		return sure, t.target(e, here)
	}
	switch e.name {
	case "comment":
		return sure, nil
	case "udp", "tcp":
		return t.matchPorts(e), nil
	case "multiport":
		return t.matchMultiport(e), nil
	case "conntrack", "state":
		return t.matchState(e), nil
	case "limit", "hashlimit", "addrtype", "mark", "connmark", "length", "ttl", "dscp", "pkttype", "recent", "statistic", "owner", "mac", "connlimit":
		return possible, nil
	}
	return unclear, nil
}

func (t *trace) target(e extension, here certainty) *expr.Verdict {
	switch e.name {
	case "NOTRACK":
		t.fate.notrack = max(t.fate.notrack, here)
	case "CT":
		if len(e.info) >= 2 && binary.NativeEndian.Uint16(e.info)&targetNotrack != 0 {
			t.fate.notrack = max(t.fate.notrack, here)
		}
	case "REJECT", "DROP", "TARPIT", "SYNPROXY":
		return &expr.Verdict{Kind: expr.VerdictDrop}
	case "QUEUE", "NFQUEUE":
		return &expr.Verdict{Kind: expr.VerdictQueue}
	case "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TCPMSS", "DSCP", "TOS", "CLASSIFY", "SET", "TRACE", "AUDIT", "HL", "TTL", "CHECKSUM", "TEE", "SECMARK", "CONNSECMARK":
	default:
		t.end(unclear, true, "")
		t.end(unclear, false, "")
	}
	return nil
}

// port returns a port of the packet, 0 if it is not fixed.
func (p *packet) port(offset int) uint16 {
	f := p.transport.slice(offset, 2)
	if f.known[0] == 0 || f.known[1] == 0 {
		return 0
	}
	return binary.BigEndian.Uint16(f.value)
}

func portIn(port, from, to uint16, invert bool) certainty {
	switch {
	case from == 0 && to == 0xffff:
		return truth(!invert)
	case port == 0:
		return possible
	}
	return truth((port >= from && port <= to) != invert)
}

// matchPorts judges xt_udp and the ports and flags of xt_tcp.
func (t *trace) matchPorts(e extension) certainty {
	const udp, tcp = 17, 6
	proto, invertAt := byte(udp), 8
	if e.name == "tcp" {
		proto, invertAt = tcp, 11
	}
	if len(e.info) <= invertAt {
		return unclear
	}
	if t.p.proto != proto {
		return never
	}
	port := func(i int) uint16 { return binary.NativeEndian.Uint16(e.info[2*i:]) }
	invert := e.info[invertAt]
	met := min(portIn(t.p.port(0), port(0), port(1), invert&1 != 0), portIn(t.p.port(2), port(2), port(3), invert&2 != 0))
	if e.name == "tcp" {
		option, mask, flags := e.info[8], e.info[9], e.info[10]
		if option != 0 {
			met = min(met, possible)
		}
		const flagsAt = 13
		if f := t.p.transport.slice(flagsAt, 1); mask == 0 {
		} else if f.known[0] == 0 {
			met = min(met, possible)
		} else {
			met = min(met, truth((f.value[0]&mask == flags) != (invert&4 != 0)))
		}
	}
	return met
}

// matchMultiport judges xt_multiport of revision 1.
func (t *trace) matchMultiport(e extension) certainty {
	const most = 15
	if e.rev != 1 || len(e.info) < 2+3*most+1 || e.info[1] > most {
		return unclear
	}
	const source, destination = 0, 1
	var port uint16
	switch e.info[0] {
	case source:
		port = t.p.port(0)
	case destination:
		port = t.p.port(2)
	}
	if port == 0 {
		return possible
	}
	in := false
	for i := 0; i < int(e.info[1]); i++ {
		from := binary.NativeEndian.Uint16(e.info[2+2*i:])
		to := from
		if e.info[2+2*most+i] != 0 && i+1 < int(e.info[1]) { // a range takes two
			i++
			to = binary.NativeEndian.Uint16(e.info[2+2*i:])
		}
		in = in || port >= from && port <= to
	}
	return truth(in != (e.info[2+3*most] != 0))
}

// matchState judges xt_state and the state of xt_conntrack. Their bits are those of
// ct state but for UNTRACKED.
func (t *trace) matchState(e extension) certainty {
	const (
		onlyState  = 1 << 0
		flagsAt    = 146
		invertAt   = 148
		stateAt    = 150
		knownBits  = 0x0f
		untrackedC = 1 << 8 // conntrack, revision 2 and 3
		untrackedS = 1 << 6 // state
	)
	var mask uint32
	invert, met := false, sure
	untracked := uint32(untrackedS)
	switch {
	case e.name == "state" && len(e.info) >= 4:
		mask = binary.NativeEndian.Uint32(e.info)
	case e.name == "conntrack" && e.rev >= 2 && len(e.info) >= stateAt+2:
		flags := binary.NativeEndian.Uint16(e.info[flagsAt:])
		if flags&^onlyState != 0 {
			// What else it asks for is known of tracked packets only.
			if met = possible; !t.p.tracked {
				met = unclear
			}
		}
		if flags&onlyState == 0 {
			return met
		}
		untracked = untrackedC
		mask = uint32(binary.NativeEndian.Uint16(e.info[stateAt:]))
		invert = binary.NativeEndian.Uint16(e.info[invertAt:])&onlyState != 0
	default:
		return unclear
	}
	bits := mask & knownBits
	if mask&untracked != 0 {
		bits |= expr.CtStateBitUNTRACKED
	}
	return min(met, truth((t.p.state&bits != 0) != invert))
}

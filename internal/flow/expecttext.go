package flow

import "bytes"

// String returns x as AppendText does.
func (x *Expect) String() string { return string(x.AppendText(make([]byte, 0, 512))) }

// AppendText appends x as one line without its newline, in the form in which
// conntrack(8) lists expectations:
//
//	300 proto=6 src=… dst=… sport=0 dport=2001 mask-src=… mask-dst=… sport=0 dport=65535 master-src=… master-dst=… sport=1001 dport=21 class=0 helper=ftp
//
// Zone, translation and function, which conntrack(8) does not show, follow in
// brackets.
func (x *Expect) AppendText(b []byte) []byte {
	if x.Has&ExpectHasTimeout != 0 {
		b = appendNumber(b, "", uint64(x.Timeout))
		b = append(b, ' ')
	}
	b = appendNumber(b, "proto=", uint64(x.Tuple.Proto))
	b = append(b, ' ')
	b = x.Tuple.appendEnds(b)
	if x.Mask.Family != 0 {
		b = x.appendPart(append(b, ' '), "mask-", &x.Mask)
	}
	b = x.appendPart(append(b, ' '), "master-", &x.Master)
	if x.Has&ExpectHasFlags != 0 && x.Flags != 0 {
		sep := byte(' ')
		for _, n := range expectFlagNames {
			if x.Flags&n.bit != 0 {
				b = append(append(b, sep), bytes.ToUpper([]byte(n.name))...)
				sep = ','
			}
		}
	}
	if x.Has&ExpectHasClass != 0 {
		b = appendNumber(b, " class=", uint64(x.Class))
	}
	if x.Has&ExpectHasHelper != 0 {
		b = append(b, " helper="...)
		b = appendPrintable(b, x.Helper[:])
	}
	if x.Tuple.Zone != 0 {
		b = append(appendNumber(b, " [zone ", uint64(x.Tuple.Zone)), ']')
	}
	if x.Has&ExpectHasNAT != 0 {
		b = append(b, " [nat "...)
		b = append(b, directionName(x.NATDir)...)
		b = append(b, ' ')
		b = append(x.NAT.appendEnds(b), ']')
	}
	if x.Has&ExpectHasFn != 0 {
		b = append(b, " [function "...)
		b = append(appendPrintable(b, x.Fn[:]), ']')
	}
	return b
}

// appendPart appends a tuple whose addresses are named with a prefix.
func (x *Expect) appendPart(b []byte, prefix string, t *Tuple) []byte {
	b = append(append(b, prefix...), "src="...)
	b = t.addr(&t.Src).AppendTo(b)
	b = append(append(append(b, ' '), prefix...), "dst="...)
	b = t.addr(&t.Dst).AppendTo(b)
	if t.HasPorts() {
		b = appendNumber(b, " sport=", uint64(t.SrcPort))
		b = appendNumber(b, " dport=", uint64(t.DstPort))
	}
	return b
}

var expectFlagNames = [...]struct {
	bit  uint32
	name string
}{{ExpectFlagPermanent, "permanent"}, {ExpectFlagInactive, "inactive"}, {ExpectFlagUserspace, "userspace"}}

// directionName names a direction of a flow; what is none is named by "?".
func directionName(dir uint32) string {
	switch dir {
	case DirOriginal:
		return "original"
	case DirReply:
		return "reply"
	}
	return "?"
}

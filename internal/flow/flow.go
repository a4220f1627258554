// Package flow is the vocabulary of the daemon: tuples, flows, expectations and
// kernel events as plain values, and their text and JSON forms.
//
// Every type here is of fixed size and holds no pointer, so that a batch of
// flows or a cache of a million is one block of memory that the garbage
// collector never looks into, and so that a copy is a snapshot. Nothing in this
// package does I/O, reads a clock or keeps state.
//
// Numbers are in host order; addresses are octets in network order.
package flow

// Address families as the kernel numbers them (AF_INET, AF_INET6).
const (
	IPv4 = 2
	IPv6 = 10
)

// IP protocol numbers that conntrack treats by name.
const (
	ICMP    = 1
	TCP     = 6
	UDP     = 17
	DCCP    = 33
	GRE     = 47
	ICMPv6  = 58
	SCTP    = 132
	UDPLite = 136
)

// Tuple is one direction of a flow. It is comparable; the tuple of the original
// direction is the identity of a flow.
//
// The meaning of the port pair depends on the protocol: ports for TCP, UDP,
// UDP-Lite, SCTP and DCCP, keys for GRE, and for ICMP and ICMPv6 the identifier
// in SrcPort and type<<8|code in DstPort. All other protocols leave both zero.
type Tuple struct {
	Src, Dst         [16]byte // IPv4 uses octets 0 to 3, the rest is zero
	SrcPort, DstPort uint16
	Zone             uint16 // conntrack zone of this direction, 0 for none
	Family           uint8  // IPv4 or IPv6
	Proto            uint8  // IP protocol number
}

// Attrs says which optional attributes of a Flow are known.
type Attrs uint32

const (
	HasReply      Attrs = 1 << iota // Reply was stated, not merely derived by inversion
	HasMaster                       // Master
	HasStatus                       // Status
	HasTimeout                      // Timeout
	HasMark                         // Mark
	HasID                           // ID
	HasUse                          // Use
	HasTCP                          // TCPState
	HasTCPFlags                     // TCPFlags, both directions
	HasTCPWScale                    // TCPWScale, both directions
	HasSCTP                         // SCTPState
	HasSCTPVtags                    // SCTPVtag, both directions
	HasLabels                       // Labels
	HasHelper                       // Helper
	HasSeqAdjOrig                   // SeqAdj[Original]
	HasSeqAdjRepl                   // SeqAdj[Reply]
	HasSynproxy                     // Synproxy
	HasSecctx                       // Secctx
	HasCounters                     // Counters, both directions
	HasStart                        // Start
	HasStop                         // Stop
	HasEventTime                    // EventTime
)

// Directions, as indices of arrays of two.
const (
	DirOriginal = 0
	DirReply    = 1
)

// Flow is one entry of a connection-tracking table. Orig and Reply are always
// set; fields named in Has only when their bit is set, and zero otherwise.
type Flow struct {
	Orig   Tuple // the identity
	Reply  Tuple // the inverse of Orig, or what NAT made of it
	Master Tuple // original tuple of the master of an expected flow
	Has    Attrs

	Status  uint32 // Status* bits
	Timeout uint32 // seconds left when this was said
	Mark    uint32
	ID      uint32 // opaque, of one kernel only
	Use     uint32

	TCPState  uint8    // TCP* states
	TCPFlags  [2]uint8 // TCPFlag* bits by direction
	TCPWScale [2]uint8 // window scale by direction, 0 to 14
	SCTPState uint8    // SCTP* states
	SCTPVtag  [2]uint32
	Labels    [16]byte // label n is bit n%8 of octet n/8 (little-endian bit order whatever the host)
	Helper    Name
	SeqAdj    [2]SeqAdj
	Synproxy  Synproxy
	Secctx    [64]byte // NUL-padded, cut at 64 octets

	Counters  [2]Counter
	Start     uint64 // wall clock, ns since the epoch
	Stop      uint64
	EventTime uint64
}

// Name is a NUL-padded name of at most 15 octets (NF_CT_HELPER_NAME_LEN is 16
// with the NUL).
type Name [16]byte

// SeqAdj is the sequence adjustment of one direction (CTA_SEQADJ_*).
type SeqAdj struct {
	Pos           uint32 // sequence number where the last correction applies
	Before, After int32  // offsets before and after it
}

// Synproxy is the state of the SYN proxy (CTA_SYNPROXY_*).
type Synproxy struct{ ISN, ITS, TSOff uint32 }

// Counter counts the traffic of one direction.
type Counter struct{ Packets, Bytes uint64 }

// Conntrack status bits (IPS_* in nf_conntrack_common.h).
const (
	StatusExpected     = 0x1
	StatusSeenReply    = 0x2
	StatusAssured      = 0x4
	StatusConfirmed    = 0x8
	StatusSrcNAT       = 0x10
	StatusDstNAT       = 0x20
	StatusSeqAdjust    = 0x40
	StatusSrcNATDone   = 0x80
	StatusDstNATDone   = 0x100
	StatusDying        = 0x200
	StatusFixedTimeout = 0x400
	StatusTemplate     = 0x800
	StatusNATClash     = 0x1000
	StatusHelper       = 0x2000
	StatusOffload      = 0x4000
	StatusHWOffload    = 0x8000
)

// TCP conntrack states (nf_conntrack_tcp.h).
const (
	TCPNone = iota
	TCPSynSent
	TCPSynRecv
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
	TCPSynSent2
)

// TCP conntrack flags (IP_CT_TCP_FLAG_*).
const (
	TCPFlagWindowScale = 0x01
	TCPFlagSACKPerm    = 0x02
	TCPFlagCloseInit   = 0x04
	TCPFlagBeLiberal   = 0x08
	TCPFlagDataUnacked = 0x10
	TCPFlagMaxAckSet   = 0x20

	// TCPFlagsReplicated are those that mean something on another machine: what the
	// ends agreed on, and which of them closed first.
	TCPFlagsReplicated = TCPFlagWindowScale | TCPFlagSACKPerm | TCPFlagCloseInit
)

// SCTP conntrack states (nf_conntrack_sctp.h).
const (
	SCTPNone = iota
	SCTPClosed
	SCTPCookieWait
	SCTPCookieEchoed
	SCTPEstablished
	SCTPShutdownSent
	SCTPShutdownRecd
	SCTPShutdownAckSent
	SCTPHeartbeatSent
	SCTPHeartbeatAcked
)

// HasPorts reports whether the protocol of t uses the port pair for ports or
// keys (so not for ICMP identifiers).
func (t *Tuple) HasPorts() bool {
	switch t.Proto {
	case TCP, UDP, UDPLite, SCTP, DCCP, GRE:
		return true
	}
	return false
}

// IsICMP reports whether the port pair of t holds identifier, type and code.
func (t *Tuple) IsICMP() bool { return t.Proto == ICMP || t.Proto == ICMPv6 }

// AddrLen is the length of an address of t in octets.
func (t *Tuple) AddrLen() int {
	if t.Family == IPv6 {
		return 16
	}
	return 4
}

// Inverse returns the tuple that a reply to t has when nothing is translated:
// ends swapped and, for ICMP and ICMPv6, the type of the answer. ok is false for
// an ICMP type that has no answer (the kernel refuses such tuples); the type is
// then left as it is.
func (t *Tuple) Inverse() (r Tuple, ok bool) {
	r = *t
	r.Src, r.Dst = t.Dst, t.Src
	if !t.IsICMP() {
		r.SrcPort, r.DstPort = t.DstPort, t.SrcPort
		return r, true
	}
	typ, ok := inverseICMP(t.Proto, uint8(t.DstPort>>8))
	r.DstPort = uint16(typ)<<8 | t.DstPort&0xff
	return r, ok
}

// inverseICMP maps a query type to the type of its answer and back (RFC 792,
// RFC 950, RFC 4443, RFC 4620).
func inverseICMP(proto, typ uint8) (uint8, bool) {
	if proto == ICMP {
		switch typ {
		case 8, 0: // echo
			return 8 - typ, true
		case 13, 15, 17: // timestamp, information, address mask
			return typ + 1, true
		case 14, 16, 18:
			return typ - 1, true
		}
		return typ, false
	}
	switch typ {
	case 128, 139: // echo, node information
		return typ + 1, true
	case 129, 140:
		return typ - 1, true
	}
	return typ, false
}

// Translated reports whether Reply differs from the inverse of Orig by address
// or port, in the source (SNAT) and in the destination (DNAT) of the original
// direction. Zones do not count. For ICMP an identifier changed by the
// translation counts as source translation.
func (f *Flow) Translated() (snat, dnat bool) {
	snat = f.Reply.Dst != f.Orig.Src
	dnat = f.Reply.Src != f.Orig.Dst
	switch {
	case f.Orig.IsICMP():
		snat = snat || f.Reply.SrcPort != f.Orig.SrcPort
	case f.Orig.HasPorts():
		snat = snat || f.Reply.DstPort != f.Orig.SrcPort
		dnat = dnat || f.Reply.SrcPort != f.Orig.DstPort
	}
	return snat, dnat
}

// String returns the name without its padding.
func (n Name) String() string {
	for i, c := range n {
		if c == 0 {
			return string(n[:i])
		}
	}
	return string(n[:])
}

// MakeName returns s as a Name; ok is false when s has more than 15 octets or
// contains a NUL.
func MakeName(s string) (n Name, ok bool) {
	if len(s) >= len(n) {
		return n, false
	}
	copy(n[:], s)
	return n, n.String() == s
}

package flow

// State is the part of a flow that its packets change from its beginning to its end. It is
// packed, since nearly every event and message comes to nothing but this: three words stay
// in registers.
type State struct {
	Status  uint32
	Timeout uint32 // seconds left when this was said, 0 if it is not known

	// Word has what is known (the bits below) in its highest octet, then the state of TCP or
	// SCTP, the TCP flags and the window scales, the latter two with the original direction
	// in the high half of their octet. What is not known is 0.
	Word uint32
}

// What is known, in State.Word.
const (
	KnowsTimeout = 1 << (24 + iota)
	KnowsTCP
	KnowsTCPFlags
	KnowsTCPWScale
	KnowsSCTP
)

const (
	stateShift = 16 // of the state of the protocol, in State.Word
	flagsShift = 8

	maxWScale = 14 // the greatest window scale; what is above counts as this (RFC 7323, section 2.3)
)

// StateAttrs are the attributes that State has.
const StateAttrs = HasStatus | HasTimeout | HasTCP | HasTCPFlags | HasTCPWScale | HasSCTP

// MakeState packs the state of a flow. What does not belong to the protocol is left out, and
// so is a protocol state that no kernel has.
func MakeState(proto uint8, has Attrs, status, timeout uint32, tcp uint8, flags, scale [2]uint8, sctp uint8) (s State) {
	if has&HasStatus != 0 {
		s.Status = status
	}
	if has&HasTimeout != 0 {
		s.Timeout = timeout
		s.Word = KnowsTimeout
	}
	switch proto {
	case TCP:
		if has&HasTCP != 0 && tcp <= TCPSynSent2 {
			s.Word |= KnowsTCP | uint32(tcp)<<stateShift
		}
		if has&HasTCPFlags != 0 {
			s.Word |= KnowsTCPFlags | (uint32(flags[0]&TCPFlagsReplicated)<<4|uint32(flags[1]&TCPFlagsReplicated))<<flagsShift
		}
		if has&HasTCPWScale != 0 {
			s.Word |= KnowsTCPWScale | uint32(min(scale[0], maxWScale))<<4 | uint32(min(scale[1], maxWScale))
		}
	case SCTP:
		if has&HasSCTP != 0 && sctp <= SCTPHeartbeatAcked {
			s.Word |= KnowsSCTP | uint32(sctp)<<stateShift
		}
	}
	return s
}

// Of returns s without what a flow of this protocol cannot have, or no kernel has, and what
// is not known: s may be what anybody has said.
func (s State) Of(proto uint8) State {
	const all, noFlags = (KnowsTimeout | KnowsTCP | KnowsTCPFlags | KnowsTCPWScale) >> 24, ^uint8(TCPFlagsReplicated<<4 | TCPFlagsReplicated)
	if w := s.Word; proto == TCP && w>>24 == all && s.ProtoState() <= TCPSynSent2 && uint8(w>>flagsShift)&noFlags == 0 && uint8(w) < 0xf0 && w&0xf <= maxWScale {
		return s // as nearly always
	}
	return MakeState(proto, s.Has(), s.Status, s.Timeout, s.ProtoState(), s.TCPFlags(), s.TCPWScale(), s.ProtoState())
}

// Has returns the attributes that s knows. Those of the protocol have the same order in
// both.
func (s State) Has() Attrs {
	return HasStatus | Attrs(s.Word/KnowsTimeout&1)*HasTimeout | Attrs(s.Word/KnowsTCP&0xf)*HasTCP
}

// ProtoState is the state of TCP or SCTP.
func (s State) ProtoState() uint8 { return uint8(s.Word >> stateShift) }

// TCPFlags and TCPWScale are those of both directions.
func (s State) TCPFlags() [2]uint8  { return halves(uint8(s.Word >> flagsShift)) }
func (s State) TCPWScale() [2]uint8 { return halves(uint8(s.Word)) }

func halves(b uint8) [2]uint8 { return [2]uint8{b >> 4, b & 0xf} }

// State returns the state of f.
func (f *Flow) State() State {
	return MakeState(f.Orig.Proto, f.Has, f.Status, f.Timeout, f.TCPState, f.TCPFlags, f.TCPWScale, f.SCTPState)
}

// SetState gives f the state s, which is one of its protocol (see Of).
func (f *Flow) SetState(s State) {
	f.Has = f.Has&^StateAttrs | s.Has()
	f.Status, f.Timeout = s.Status, s.Timeout
	f.TCPState, f.SCTPState = 0, 0
	if s.Word&KnowsSCTP != 0 {
		f.SCTPState = s.ProtoState()
	} else {
		f.TCPState = s.ProtoState()
	}
	f.TCPFlags, f.TCPWScale = s.TCPFlags(), s.TCPWScale()
}

package wire

import (
	"encoding/binary"

	"syncd/internal/flow"
)

// Messages about a flow that name it by a number (docs/protocol.md, section 11).
// conntrackd drops the types.
const (
	CTState Type = 12 // the state of a flow, of which the rest is as a message before said
	CTEnd   Type = 13 // a flow that is gone
)

const (
	stateLen    = 12                  // octets of a state
	stateAttr   = ctState + ownToWire // number of STATE on the wire
	stateTail   = attrHeaderLen + 4 + stateLen
	ctEndLen    = HeaderLen + 8
	ctStateLen  = ctEndLen + stateLen
	stateHeader = stateTail<<16 | stateAttr // of the attribute
)

// appendState appends a state: the status (4), the timeout (4), and flow.State.Word.
func appendState(b []byte, s flow.State) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(s.Status)<<32|uint64(s.Timeout))
	return binary.BigEndian.AppendUint32(b, s.Word)
}

// stateAt reads the state at the beginning of p, as it was said.
func stateAt(p []byte) flow.State {
	be := binary.BigEndian
	return flow.State{Status: be.Uint32(p), Timeout: be.Uint32(p[4:]), Word: be.Uint32(p[8:])}
}

// appendStateAttr appends the attribute STATE, which is the last one: the handle, which
// SetHandle fills in, and the state.
func appendStateAttr(b []byte, fl *flow.Flow) []byte {
	return appendState(binary.BigEndian.AppendUint64(b, stateHeader<<32), fl.State())
}

// splitState returns what msg, a whole message about a flow, has from octet 8 up to STATE,
// and the payload of STATE. ok is false if STATE is not its last attribute.
func splitState(msg []byte) (fixed, state []byte, ok bool) {
	at := len(msg) - stateTail
	if at < HeaderLen || binary.BigEndian.Uint32(msg[at:]) != stateHeader {
		return nil, nil, false
	}
	return msg[HeaderLen:at], msg[at+attrHeaderLen:], true
}

// SetHandle makes msg, which AppendFlow has made in the syncd dialect, tell the number by
// which CT_STATE and CT_END will name its flow. 0 is none. Another message it leaves alone.
func SetHandle(msg []byte, h uint32) {
	if _, state, ok := splitState(msg); ok && Type(msg[0]&0xf) <= CTDel {
		binary.BigEndian.PutUint32(state, h)
	}
}

// handleOf returns the number that a message about a flow tells, or 0.
func handleOf(msg []byte) uint32 {
	if _, state, ok := splitState(msg); ok {
		return binary.BigEndian.Uint32(state)
	}
	return 0
}

// CompactHash returns the hash of the flow that msg, a CT_STATE, is about. fixed is what
// FlowHashes returned of the message that it refers to.
func CompactHash(fixed uint64, msg []byte) uint64 { return StateHash(fixed, stateAt(msg[ctEndLen:])) }

// AppendCTState appends a CT_STATE: flow h, of which the message with number base told all,
// has the state s now. It has ctStateLen octets.
func AppendCTState(b []byte, seq Seq, h uint32, base Seq, s flow.State) []byte {
	b = appendHeader(b, CTState, 0, ctStateLen, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(h)<<32|uint64(base))
	return appendState(b, s)
}

// AppendCTEnd appends a CT_END: flow h, of which the message with number base told all, has
// ended.
func AppendCTEnd(b []byte, seq Seq, h uint32, base Seq) []byte {
	b = appendHeader(b, CTEnd, 0, ctEndLen, seq)
	return binary.BigEndian.AppendUint64(b, uint64(h)<<32|uint64(base))
}

// parseCompact reads the body of msg, a CT_STATE or CT_END, into m. ok is false when it is
// too short; what is beyond its end is skipped.
func parseCompact(m *Message, msg []byte) (ok bool) {
	if len(msg) < ctEndLen || m.Type == CTState && len(msg) < ctStateLen {
		return false
	}
	m.Handle = binary.BigEndian.Uint32(msg[HeaderLen:])
	m.Base = Seq(binary.BigEndian.Uint32(msg[HeaderLen+4:]))
	if m.Type == CTState {
		m.State = stateAt(msg[ctEndLen:])
	}
	return m.Handle != 0
}

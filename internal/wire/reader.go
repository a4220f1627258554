package wire

import "encoding/binary"

// Reader walks the messages of one datagram. The zero Reader is an empty walk. One that
// is used again has learned what messages look like, and is faster.
// It never panics and never allocates, whatever the datagram.
type Reader struct {
	// Strict refuses a message with an unknown attribute, as conntrackd does.
	// Otherwise unknown attributes are skipped.
	Strict bool

	// Sync accepts the messages and attributes of the syncd dialect, and hashes flows
	// with Seed.
	Sync bool
	Seed uint64

	b       []byte // what the walk has not reached yet
	layouts layouts
}

func (r *Reader) dialect() Dialect {
	if r.Sync {
		return Syncd
	}
	return Conntrackd
}

// Reset starts a walk of b. The Reader reads b until the walk ends.
func (r *Reader) Reset(b []byte) { r.b = b }

// Next reads the next message into m. It returns false when the datagram is used
// up, and m is then as it was. A fault that makes the rest of the datagram
// unreadable (FaultTruncated, FaultSize) is reported like a message, once, and
// ends the walk, so that a caller who counts m.Fault after every Next has
// counted everything. After any other fault the walk goes on with the next
// message.
//
// Next checks what holds in every mode. Whether Flags go with Type is left to
// the caller, see HeaderValid.
func (r *Reader) Next(m *Message) bool {
	if len(r.b) == 0 {
		return false
	}
	m.Type, m.Flags, m.Seq, m.From, m.To = 0, 0, 0, 0, 0
	n, fault := frame(r.b)
	if fault != FaultNone {
		m.Fault = fault
		r.b = nil
		return true
	}
	// The length alone says where the next message starts: messages are not
	// aligned to anything.
	msg := r.b[:n]
	r.b = r.b[n:]

	m.Type = Type(msg[0] & 0xf)
	m.Flags = Flags(msg[1])
	m.Seq = Seq(binary.BigEndian.Uint32(msg[4:]))
	m.Fault = r.body(m, msg)
	return true
}

// body reads what follows the header of msg, a whole message.
func (r *Reader) body(m *Message, msg []byte) Fault {
	switch {
	case msg[0]>>4 != version:
		return FaultVersion
	case m.Type <= CTDel:
		b, d := msg[HeaderLen:], r.dialect()
		l := r.layouts.find(b, d)
		switch {
		case l != nil:
			if l.flow(b, &m.Flow); r.Sync {
				m.Hash, m.Fixed, m.Handle = l.hashes(r.Seed, b)
			}
			return FaultNone
		case !parseFlow(b, d, r.Strict, &m.Flow):
			return FaultPayload
		}
		r.layouts.miss(b, d)
		if r.Sync {
			m.Hash, m.Fixed = FlowHashes(r.Seed, msg)
			m.Handle = handleOf(msg)
		}
	case m.Type <= ExpDel:
		if !parseExpect(msg[HeaderLen:], r.dialect(), r.Strict, &m.Expect) {
			return FaultPayload
		}
		if r.Sync {
			m.Hash, m.Fixed, m.Handle = FlowHash(r.Seed, msg), 0, 0
		}
	case m.IsCompact() && r.Sync:
		if !parseCompact(m, msg) {
			return FaultPayload
		}
	case m.Type == SyncCtl && r.Sync:
		if m.Sync == nil {
			m.Sync = new(Sync)
		}
		if !parseSync(Kind(m.Flags), msg, m.Sync) {
			return FaultPayload
		}
	case m.Type != Ctl:
		return FaultHeader
	case m.Flags&flagsRange != 0:
		// What is longer than the range is surplus, not an error.
		m.From = Seq(binary.BigEndian.Uint32(msg[HeaderLen:]))
		m.To = Seq(binary.BigEndian.Uint32(msg[HeaderLen+4:]))
	}
	return FaultNone
}

// frame returns the length of the first message of b: at least HeaderLen, at
// least rangeLen when the message has a range, and at most len(b). The order of
// the tests decides which fault is counted and is conntrackd's.
func frame(b []byte) (int, Fault) {
	if len(b) < HeaderLen {
		return 0, FaultTruncated
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case n == 0 || n > len(b):
		return 0, FaultSize
	case Type(b[0]&0xf) == Ctl && Flags(b[1])&flagsRange != 0:
		if len(b) < rangeLen {
			return 0, FaultTruncated
		}
		if n < rangeLen {
			return 0, FaultSize
		}
	case n < HeaderLen:
		return 0, FaultSize
	}
	return n, FaultNone
}

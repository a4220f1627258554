package wire

import (
	"encoding/binary"
	"strconv"

	"syncd/internal/flow"
)

// HeaderLen is the length of the header of every message in octets. The range
// of a control message follows it.
const HeaderLen = 8

const (
	version  = 1
	rangeLen = HeaderLen + 8 // a control message with its range
)

// Type says what a message is about.
type Type uint8

const (
	CTNew  Type = 0 // a flow, never updated since it was created
	CTUpd  Type = 1 // a flow; the receiver may see it here for the first time
	CTDel  Type = 2 // a flow that is gone
	ExpNew Type = 3 // the same for expectations
	ExpUpd Type = 4
	ExpDel Type = 5
	Ctl    Type = 10 // about the stream itself, see Flags
)

func (t Type) String() string {
	switch t {
	case CTNew:
		return "CT_NEW"
	case CTUpd:
		return "CT_UPD"
	case CTDel:
		return "CT_DEL"
	case ExpNew:
		return "EXP_NEW"
	case ExpUpd:
		return "EXP_UPD"
	case ExpDel:
		return "EXP_DEL"
	case Ctl:
		return "CTL"
	case SyncCtl:
		return "SYNC"
	case CTState:
		return "CT_STATE"
	case CTEnd:
		return "CT_END"
	}
	return "type " + strconv.Itoa(int(t))
}

// Flags say what a control message asks for or tells. FlagHello and
// FlagHelloBack may also ride on data.
type Flags uint8

const (
	FlagRepeat    Flags = 0x01 // syncd dialect, on data: the state is what was sent last
	FlagResync    Flags = 0x02 // send me your whole table
	FlagNack      Flags = 0x04 // the messages of the range are missing
	FlagAck       Flags = 0x08 // the messages of the range arrived
	FlagAlive     Flags = 0x10 // keep-alive
	FlagHello     Flags = 0x20 // I have started and do not know whether you hear me
	FlagHelloBack Flags = 0x40 // I heard your HELLO

	flagsRange = FlagResync | FlagNack | FlagAck // the message has a range
	flagsHello = FlagHello | FlagHelloBack       // what data may carry
)

var flagNames = [8]string{1: "RESYNC", 2: "NACK", 3: "ACK", 4: "ALIVE", 5: "HELLO", 6: "HELLO_BACK"}

func (f Flags) String() string {
	if f == 0 {
		return "0"
	}
	s := ""
	for i, name := range flagNames {
		if f&(1<<i) == 0 {
			continue
		}
		if name == "" {
			name = "0x" + strconv.FormatUint(1<<i, 16)
		}
		if s != "" {
			s += "|"
		}
		s += name
	}
	return s
}

// Fault says what is wrong with a message. The names are those of the counters
// in which an operator finds it.
type Fault uint8

const (
	FaultNone      Fault = iota
	FaultTruncated       // too short for its header; ends the walk
	FaultSize            // impossible length field; ends the walk
	FaultVersion         // of another version: must not touch any state, not even that of the sequence
	FaultHeader          // unknown type, or flags that do not go with it
	FaultPayload         // the header is good, so the sequence advances; the content is not
	FaultType            // no Reader sets it: for a mode that counts unknown types apart
)

func (f Fault) String() string {
	switch f {
	case FaultNone:
		return "none"
	case FaultTruncated:
		return "truncated message"
	case FaultSize:
		return "bad message size"
	case FaultVersion:
		return "wrong protocol version"
	case FaultHeader:
		return "malformed header"
	case FaultPayload:
		return "malformed payload"
	case FaultType:
		return "bad message type"
	}
	return "fault " + strconv.Itoa(int(f))
}

// Message is one message as Reader found it. Which fields mean something
// depends on Fault and Type; the others may hold what an earlier message left.
type Message struct {
	Type  Type // with Flags and Seq: zero after FaultTruncated and FaultSize
	Flags Flags
	Seq   Seq
	Fault Fault

	From, To Seq // both inclusive; zero unless Type is Ctl and Flags have ACK, NACK or RESYNC

	Hash uint64 // FlowHash of types 0 to 5 without fault, if Reader.Sync

	// Of types 0 to 5 without fault, if Reader.Sync: the number of the flow, and what
	// FlowHashes says; zero if nothing can refer to the message. Of CTState and CTEnd
	// without fault: the number.
	Handle uint32
	Fixed  uint64
	Base   Seq        // CTState, CTEnd: of the message that told all of the flow
	State  flow.State // CTState

	Flow   flow.Flow   // types 0 to 2 without fault
	Expect flow.Expect // types 3 to 5 without fault

	// Sync is the body of type SyncCtl without fault. It is apart because it is large and
	// rare. Next makes one if there is none.
	Sync *Sync
}

// IsData reports whether m is about a flow or an expectation.
func (m *Message) IsData() bool { return m.Type <= ExpDel || m.IsCompact() }

// IsCompact reports whether m names its flow by a number.
func (m *Message) IsCompact() bool { return m.Type == CTState || m.Type == CTEnd }

// IsExpect reports whether m is about an expectation.
func (m *Message) IsExpect() bool { return m.Type >= ExpNew && m.Type <= ExpDel }

// HeaderValid reports whether Type and Flags go together as FT-FW has it: data
// with no flag but HELLO and HELLO_BACK, and control messages with ACK or NACK
// and a range that is not backwards, with RESYNC, or with ALIVE. Where several
// are set the first of these decides.
func (m *Message) HeaderValid() bool {
	switch {
	case m.Type <= ExpDel:
		return m.Flags&^flagsHello == 0
	case m.Type != Ctl:
		return false
	case m.Flags&(FlagAck|FlagNack) != 0:
		return !m.To.Before(m.From)
	}
	return m.Flags&(FlagResync|FlagAlive) != 0
}

// AppendControl appends a control message to b. With ACK, NACK or RESYNC in f it
// has a range and 16 octets, without (ALIVE) it has 8, and from and to do not
// matter. conntrackd puts zeros into the range of a RESYNC.
func AppendControl(b []byte, f Flags, seq, from, to Seq) []byte {
	if f&flagsRange == 0 {
		return appendHeader(b, Ctl, f, HeaderLen, seq)
	}
	b = appendHeader(b, Ctl, f, rangeLen, seq)
	return binary.BigEndian.AppendUint64(b, uint64(from)<<32|uint64(to))
}

// appendHeader appends a header for a message of n octets.
func appendHeader(b []byte, t Type, f Flags, n uint16, seq Seq) []byte {
	return binary.BigEndian.AppendUint64(b,
		(version<<4|uint64(t&0xf))<<56|uint64(f)<<48|uint64(n)<<32|uint64(seq))
}

// setLen states the length of the message that starts at octet start and ends
// with b. The bounds MaxFlowLen and MaxExpectLen keep it within 16 bits.
func setLen(b []byte, start int) {
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
}

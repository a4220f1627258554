package wire

import (
	"bytes"
	"encoding/binary"
)

// SyncCtl is the message type of the syncd dialect's own control messages. The
// flags octet is their Kind. conntrackd drops the type.
const SyncCtl Type = 11

// Kind says what a message of type SyncCtl is (docs/protocol.md, section 2).
type Kind uint8

const (
	Hello     Kind = 1
	Status    Kind = 2
	Void      Kind = 3
	BulkBegin Kind = 4
	BulkEnd   Kind = 5
	Digest    Kind = 6
)

func (k Kind) String() string {
	switch k {
	case Hello:
		return "HELLO"
	case Status:
		return "STATUS"
	case Void:
		return "VOID"
	case BulkBegin:
		return "BULK_BEGIN"
	case BulkEnd:
		return "BULK_END"
	case Digest:
		return "DIGEST"
	}
	return "?"
}

const (
	Buckets    = 128 // classes of flows that are digested and repaired apart
	MaxName    = 63  // octets of a node's name
	MaxGreets  = 32  // entries of a HELLO: sessions that a node knows
	MaxRanges  = 32  // ranges of a STATUS or VOID
	VoidLost   = 1   // flag of VOID: what the numbers carried is not known any more
	greetLen   = 40
	helloLen   = HeaderLen + 4
	statusLen  = HeaderLen + 36
	voidLen    = HeaderLen + 12
	bulkLen    = HeaderLen + 20
	digestLen  = HeaderLen + 8 + 8*Buckets
	rangeOctet = 8

	featuresLen = 4
)

// FeatureCompact is the bit in the features of a HELLO of a node that understands CT_STATE
// and CT_END.
const FeatureCompact = 1

// MaxSyncLen bounds the length of a control message of the syncd dialect.
const MaxSyncLen = helloLen + 64 + MaxGreets*(greetLen+1) + featuresLen

// Role is what a node does in the cluster, as it says itself.
type Role uint8

const (
	RoleUnsaid  Role = iota // by a node that nobody has told, or of an older version
	RolePrimary             // it is in charge
	RoleBackup              // another one is to be
	RoleFault               // another one is to be, and it could not
)

func (r Role) String() string {
	switch r {
	case RolePrimary:
		return "primary"
	case RoleBackup:
		return "backup"
	case RoleFault:
		return "fault"
	}
	return "unsaid"
}

// Standing is the role that a node says it has. Each change of it is a new edition:
// from 1 up, 1 again after 255, and 0 of a node that knows of no roles.
type Standing struct {
	Role    Role
	Edition uint8
}

// Mask is a set of buckets: bucket b is bit b%64 of word b/64.
type Mask [2]uint64

// AllBuckets is the set of all buckets.
var AllBuckets = Mask{^uint64(0), ^uint64(0)}

// Has reports whether bucket b is in m.
func (m Mask) Has(b uint8) bool { return m[b>>6&1]>>(b&63)&1 != 0 }

// With returns m with bucket b.
func (m Mask) With(b uint8) Mask { m[b>>6&1] |= 1 << (b & 63); return m }

// Or returns the union, And the intersection, and Less what is in m and not in o.
func (m Mask) Or(o Mask) Mask   { return Mask{m[0] | o[0], m[1] | o[1]} }
func (m Mask) And(o Mask) Mask  { return Mask{m[0] & o[0], m[1] & o[1]} }
func (m Mask) Less(o Mask) Mask { return Mask{m[0] &^ o[0], m[1] &^ o[1]} }

// Empty reports whether no bucket is in m.
func (m Mask) Empty() bool { return m[0]|m[1] == 0 }

// Range is a range of numbers, both ends included.
type Range struct{ From, To Seq }

// Greet is what a HELLO says to one session.
type Greet struct {
	Session   uint64
	Challenge [16]byte // to be echoed; zero once the session is met
	Echo      [16]byte // its challenge, echoed; zero if there was none
	Heard     uint8    // edition of its role that was heard, 0 if none was
}

// Sync is the body of a message of type SyncCtl. Which fields mean something
// depends on Kind.
type Sync struct {
	Kind Kind

	Name   [MaxName + 1]byte // Hello: NUL-padded
	Says   Standing          // Hello: of the sender
	Greets [MaxGreets]Greet  // Hello
	// Features are what the sender of a HELLO understands that others may not.
	Features uint32
	N        int // Hello: entries of Greets; Status, Void: entries of Ranges

	To     uint64 // Status, Void: the session that it is for
	Last   Seq    // Status
	Bulk   uint32 // Status: last bulk update seen; BulkBegin, BulkEnd: its id; Digest: the one under way
	Mask   Mask   // Status: wanted; BulkBegin, BulkEnd: concerned
	Lost   bool   // Void
	Ranges [MaxRanges]Range

	Count uint32 // Digest: flows
	Sums  [Buckets]uint64
}

// InStream reports whether a message of kind k takes a number of the stream.
func (k Kind) InStream() bool { return k >= BulkBegin && k <= Digest }

// parseSync reads the body of a message of type SyncCtl into s. ok is false when
// it is malformed. A kind that is not known is well-formed.
func parseSync(k Kind, b []byte, s *Sync) (ok bool) {
	s.Kind = k
	be := binary.BigEndian
	body := b[HeaderLen:]
	switch k {
	case Hello:
		if len(b) < helloLen {
			return false
		}
		n, entries := int(body[0]), int(body[2])
		end := helloLen + (n+3)&^3
		if n == 0 || n > MaxName || entries > MaxGreets || len(b) < end+entries*greetLen {
			return false
		}
		name := b[helloLen : helloLen+n]
		if bytes.IndexByte(name, 0) >= 0 {
			return false
		}
		clear(s.Name[:])
		copy(s.Name[:], name)
		if s.Says = (Standing{Role(body[1]), body[3]}); s.Says.Role > RoleFault {
			s.Says.Role = RoleUnsaid
		}
		s.N = entries
		heard := b[end+entries*greetLen:]
		for i := range entries {
			e := b[end+i*greetLen:]
			g := &s.Greets[i]
			g.Session = be.Uint64(e)
			copy(g.Challenge[:], e[8:24])
			copy(g.Echo[:], e[24:40])
			if g.Heard = 0; len(heard) >= entries { // else of an older version
				g.Heard = heard[i]
			}
		}
		s.Features = 0
		if at := (entries + 3) &^ 3; len(heard) >= at+featuresLen { // else of an older version
			s.Features = be.Uint32(heard[at:])
		}
	case Status:
		if len(b) < statusLen {
			return false
		}
		s.To, s.Last, s.Bulk = be.Uint64(body), Seq(be.Uint32(body[8:])), be.Uint32(body[12:])
		s.Mask = getMask(body[16:])
		return s.parseRanges(int(body[32]), b[statusLen:])
	case Void:
		if len(b) < voidLen {
			return false
		}
		s.To, s.Lost = be.Uint64(body), body[8]&VoidLost != 0
		return s.parseRanges(int(body[9]), b[voidLen:])
	case BulkBegin, BulkEnd:
		if len(b) < bulkLen {
			return false
		}
		s.Bulk, s.Mask = be.Uint32(body), getMask(body[4:])
	case Digest:
		if len(b) < digestLen {
			return false
		}
		s.Count, s.Bulk = be.Uint32(body), be.Uint32(body[4:])
		for i := range s.Sums {
			s.Sums[i] = be.Uint64(body[8+8*i:])
		}
	}
	return true
}

func (s *Sync) parseRanges(n int, b []byte) bool {
	if n > MaxRanges || len(b) < n*rangeOctet {
		return false
	}
	s.N = n
	for i := range n {
		r := Range{Seq(binary.BigEndian.Uint32(b[i*rangeOctet:])), Seq(binary.BigEndian.Uint32(b[i*rangeOctet+4:]))}
		if r.To.Before(r.From) {
			return false
		}
		s.Ranges[i] = r
	}
	return true
}

func getMask(b []byte) Mask {
	return Mask{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b)}
}

func appendMask(b []byte, m Mask) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, m[1]), m[0])
}

// AppendHello appends a HELLO of the node with this name, standing and features. More than
// MaxGreets entries, and more than MaxName octets of the name, are left out.
func AppendHello(b []byte, seq Seq, name string, says Standing, features uint32, greets []Greet) []byte {
	start := len(b)
	name, greets = name[:min(len(name), MaxName)], greets[:min(len(greets), MaxGreets)]
	b = appendHeader(b, SyncCtl, Flags(Hello), 0, seq)
	b = append(b, byte(len(name)), byte(says.Role), byte(len(greets)), says.Edition)
	b = append(b, name...)
	b = pad(b, start)
	for i := range greets {
		g := &greets[i]
		b = binary.BigEndian.AppendUint64(b, g.Session)
		b = append(b, g.Challenge[:]...)
		b = append(b, g.Echo[:]...)
	}
	for i := range greets {
		b = append(b, greets[i].Heard)
	}
	b = pad(b, start)
	b = binary.BigEndian.AppendUint32(b, features)
	setLen(b, start)
	return b
}

// pad makes the length of the message that begins at start a multiple of 4.
func pad(b []byte, start int) []byte {
	for (len(b)-start)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendStatus appends a STATUS. More than MaxRanges ranges are left out.
func AppendStatus(b []byte, seq Seq, to uint64, last Seq, bulk uint32, wanted Mask, missing []Range) []byte {
	start := len(b)
	missing = missing[:min(len(missing), MaxRanges)]
	b = appendHeader(b, SyncCtl, Flags(Status), 0, seq)
	b = binary.BigEndian.AppendUint64(b, to)
	b = binary.BigEndian.AppendUint32(b, uint32(last))
	b = binary.BigEndian.AppendUint32(b, bulk)
	b = appendMask(b, wanted)
	b = append(b, byte(len(missing)), 0, 0, 0)
	b = appendRanges(b, missing)
	setLen(b, start)
	return b
}

// AppendVoid appends a VOID. More than MaxRanges ranges are left out.
func AppendVoid(b []byte, seq Seq, to uint64, lost bool, ranges []Range) []byte {
	start := len(b)
	ranges = ranges[:min(len(ranges), MaxRanges)]
	b = appendHeader(b, SyncCtl, Flags(Void), 0, seq)
	b = binary.BigEndian.AppendUint64(b, to)
	flag := byte(0)
	if lost {
		flag = VoidLost
	}
	b = append(b, flag, byte(len(ranges)), 0, 0)
	b = appendRanges(b, ranges)
	setLen(b, start)
	return b
}

func appendRanges(b []byte, ranges []Range) []byte {
	for _, r := range ranges {
		b = binary.BigEndian.AppendUint64(b, uint64(r.From)<<32|uint64(r.To))
	}
	return b
}

// AppendBulk appends a BULK_BEGIN or BULK_END.
func AppendBulk(b []byte, k Kind, seq Seq, id uint32, m Mask) []byte {
	b = appendHeader(b, SyncCtl, Flags(k), bulkLen, seq)
	b = binary.BigEndian.AppendUint32(b, id)
	return appendMask(b, m)
}

// SetRepeat sets FlagRepeat in the message that msg begins with.
func SetRepeat(msg []byte) { msg[1] |= byte(FlagRepeat) }

// AppendDigest appends a DIGEST. bulk is the id of the bulk update under way, 0 if
// there is none.
func AppendDigest(b []byte, seq Seq, count, bulk uint32, sums *[Buckets]uint64) []byte {
	b = appendHeader(b, SyncCtl, Flags(Digest), digestLen, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(count)<<32|uint64(bulk))
	for _, s := range sums {
		b = binary.BigEndian.AppendUint64(b, s)
	}
	return b
}

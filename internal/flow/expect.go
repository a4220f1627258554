package flow

// ExpectAttrs says which optional attributes of an Expect are known.
type ExpectAttrs uint16

const (
	ExpectHasTimeout ExpectAttrs = 1 << iota
	ExpectHasFlags
	ExpectHasClass
	ExpectHasNAT // NAT and NATDir
	ExpectHasHelper
	ExpectHasFn
	ExpectHasID
)

// Expect is one entry of the expectation table: a flow that a helper foresees
// as a child of Master.
type Expect struct {
	Master  Tuple // original tuple of the master flow
	Tuple   Tuple // what is expected
	Mask    Tuple // which bits of Tuple count
	NAT     Tuple // what the expected flow is translated to
	Has     ExpectAttrs
	Timeout uint32 // seconds
	Flags   uint32 // ExpectFlag* bits
	Class   uint32
	NATDir  uint32 // DirOriginal or DirReply
	ID      uint32
	Helper  Name
	Fn      [28]byte // NUL-padded name of the kernel's expect function, at most 27 octets
}

// ExpectKey is set in the family of a tuple that is the key of an expectation, so that
// it is never that of a flow.
const ExpectKey = 0x80

// Key is the identity of x: what is expected. A kernel has no two expectations that
// would match the same packet.
func (x *Expect) Key() Tuple {
	t := x.Tuple
	t.Family |= ExpectKey
	return t
}

// IsExpectKey reports whether t is the key of an expectation.
func (t *Tuple) IsExpectKey() bool { return t.Family&ExpectKey != 0 }

// SameExpect reports whether a and b say the same but for timeout and id, which are
// of one moment and of one kernel.
func SameExpect(a, b *Expect) bool {
	x, y := *a, *b
	x.Timeout, y.Timeout = 0, 0
	x.ID, y.ID = 0, 0
	const ours = ExpectHasTimeout | ExpectHasID
	x.Has &^= ours
	y.Has &^= ours
	return x == y
}

// Expectation flags (NF_CT_EXPECT_*).
const (
	ExpectFlagPermanent = 1
	ExpectFlagInactive  = 2
	ExpectFlagUserspace = 4
)

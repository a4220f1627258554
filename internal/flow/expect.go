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

// Expectation flags (NF_CT_EXPECT_*).
const (
	ExpectFlagPermanent = 1
	ExpectFlagInactive  = 2
	ExpectFlagUserspace = 4
)

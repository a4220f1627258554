package wire

// Seq numbers the messages of one sender. It wraps, and compares by serial
// number arithmetic (RFC 1982): correct as long as the two numbers are less than
// 2^31 apart. At exactly that distance each is before the other, which is how
// conntrackd has it too.
type Seq uint32

// Before reports whether a precedes b.
func (a Seq) Before(b Seq) bool { return a.Sub(b) < 0 }

// Sub returns how far a is ahead of b, negative when it is behind.
func (a Seq) Sub(b Seq) int32 { return int32(a - b) }

package wire

// Verdict is what a replication mode says of a received message.
type Verdict uint8

const (
	Deliver Verdict = iota // a data message in its place: apply it to the external cache
	Control                // consumed by the mode
	Drop                   // late, reordered or repeated
	Bad                    // makes no sense
)

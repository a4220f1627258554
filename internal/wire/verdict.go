package wire

// Verdict is what a replication mode says of a received message.
type Verdict uint8

const (
	Deliver Verdict = iota // a data message in its place: apply it to the external cache
	Control                // consumed by the mode
	Drop                   // late, reordered or repeated
	Bad                    // makes no sense
)

// Delivery says how a data message that is to be delivered is applied to what is
// held of its sender.
type Delivery struct {
	Owner uint8 // whose flow it is: the mode's number for the sender, from 1 up
	// Late: it is older than what came since. It counts only for a flow of which
	// nothing newer is known: neither a state nor a deletion.
	Late bool
	// Confirms: it takes its flow out of doubt.
	Confirms bool
	// Remember: if it is a deletion, its number must be remembered until the
	// owner is whole, for something older may still come.
	Remember bool
	// Merge: a CT_UPD leaves alone what it does not name.
	Merge bool
}

package seal

import "fmt"

// Fault is why a datagram was dropped.
type Fault uint8

// The faults, in the order in which Open looks for them: what costs least first.
const (
	FaultNone      Fault = iota
	FaultShort           // shorter than Overhead
	FaultMagic           // no sealed datagram: other software, or the plain dialect
	FaultVersion         // a version that we do not speak
	FaultSuite           // a cryptographic suite that we do not have
	FaultKey             // sealed with a key that is not configured
	FaultReflected       // our own session: somebody sent our datagram back
	FaultOld             // counter too far behind, or from before the session was met
	FaultReplayed        // counter seen before
	FaultFlood           // unknown session, and too many of these came lately
	FaultForged          // not sealed with that key, or changed on its way
	NumFaults
)

var faultNames = [NumFaults]string{
	FaultNone:      "none",
	FaultShort:     "short",
	FaultMagic:     "magic",
	FaultVersion:   "version",
	FaultSuite:     "suite",
	FaultKey:       "key",
	FaultReflected: "reflected",
	FaultOld:       "old",
	FaultReplayed:  "replayed",
	FaultFlood:     "flood",
	FaultForged:    "forged",
}

// String returns the word for f in metrics.
func (f Fault) String() string {
	if f >= NumFaults {
		return fmt.Sprintf("fault(%d)", uint8(f))
	}
	return faultNames[f]
}

// Stats counts datagrams.
type Stats struct {
	Opened uint64            // authentic ones, of any state
	Faults [NumFaults]uint64 // dropped ones, by Fault
}

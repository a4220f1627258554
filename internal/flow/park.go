package flow

import "time"

// An entry of a kernel is parked when it was put there for a peer, and no packet has
// passed it: nothing but its timeout says so. Both are in seconds.
const (
	// ParkTimeout is what a parked entry gets: 23 days. Kernels whose clock ticks 1000
	// times a second keep no more than 2147483.
	ParkTimeout = 2_000_000
	// ParkedAbove tells a parked entry from one that a packet has given the timeout of
	// its state, of which the longest is five days unless somebody has changed it.
	ParkedAbove = 1_000_000
)

// Parked reports whether an entry of the kernel is parked.
func (f *Flow) Parked() bool { return f.Has&HasTimeout != 0 && f.Timeout > ParkedAbove }

// ParkOp is what is to be done to this kernel's entry for a flow of a peer.
type ParkOp uint8

const (
	ParkCreate  ParkOp = iota // park it; it is not known to be in the kernel
	ParkUpdate                // park it anew; it is in the kernel
	ParkRemake                // as ParkUpdate, but with what no update can change
	ParkDelete                // remove it if it is parked
	ParkRelease               // give it Timeout, as it is not the peer's any more
)

func (op ParkOp) String() string {
	switch op {
	case ParkCreate:
		return "create"
	case ParkUpdate:
		return "update"
	case ParkRemake:
		return "remake"
	case ParkDelete:
		return "delete"
	case ParkRelease:
		return "release"
	}
	return "?"
}

// ParkResult is what became of a request.
type ParkResult uint8

const (
	ParkDone     ParkResult = iota
	ParkTouched             // not deleted: packets pass it. The flow is what the kernel has
	ParkLocal               // the kernel has the flow already, and packets pass it
	ParkClash               // another flow, which packets pass, has one of its tuples
	ParkFull                // the table is full
	ParkNoMaster            // its master is not in the kernel
	ParkRefused             // the kernel refused it
	ParkResults             // their number
)

func (r ParkResult) String() string {
	switch r {
	case ParkDone:
		return "done"
	case ParkTouched:
		return "in use"
	case ParkLocal:
		return "already there"
	case ParkClash:
		return "clash"
	case ParkFull:
		return "table full"
	case ParkNoMaster:
		return "without master"
	case ParkRefused:
		return "refused"
	}
	return "?"
}

// Park is a request about one flow or expectation, and its answer.
type Park struct {
	Flow     Flow
	Expect   Expect
	IsExpect bool          // it is about Expect
	Age      time.Duration // since the owner said so
	Op       ParkOp
	Last     bool // rather without its master than not at all
	Result   ParkResult
	Owner    uint8 // whose flow it is, as the loop numbers them
}

// Key is the key under which the loop knows the flow or expectation.
func (p *Park) Key() Tuple {
	if p.IsExpect {
		return p.Expect.Key()
	}
	return p.Flow.Orig
}

// ParkBatchSize is how many requests travel at once: as many as go into one message
// to the kernel.
const ParkBatchSize = 128

// ParkBatch carries requests from the loop to the parker, and the answers back.
// Whoever holds the pointer owns it.
type ParkBatch struct {
	Items [ParkBatchSize]Park
	N     int // items in use
}

// StateTimeout returns how long f may be silent, in seconds, where nobody has said so:
// the kernel's defaults, and never less than other flows of unknown timeout get.
func (f *Flow) StateTimeout() uint32 {
	switch {
	case f.Orig.Proto == TCP && f.TCPState == TCPEstablished:
		return 432000
	case f.Orig.Proto == TCP, f.Status&StatusAssured != 0:
		return 120
	}
	return floorTimeout
}

package flow

// EventKind is what a kernel message says about a flow.
type EventKind uint8

const (
	EventNew     EventKind = iota // the entry was created
	EventUpdate                   // something of it changed
	EventDestroy                  // it is gone
	EventDump                     // it was found by a dump: its whole state
)

func (k EventKind) String() string {
	switch k {
	case EventNew:
		return "NEW"
	case EventUpdate:
		return "UPDATE"
	case EventDestroy:
		return "DESTROY"
	case EventDump:
		return "DUMP"
	}
	return "?"
}

// Event is one kernel message about a flow, or about an expectation.
type Event struct {
	Flow   Flow
	Kind   EventKind
	Expect uint8  // if not 0, the event is about Expects[Expect-1] of its batch, and Flow is zero
	PortID uint32 // netlink port of the socket that made the change, 0 for traffic and timers
}

// BatchSize is how many events travel between goroutines at once.
const BatchSize = 64

// ExpectBatchSize is how many of them can be about expectations. These are rare, and
// the others need not carry room for one.
const ExpectBatchSize = 8

// Batch carries events from the goroutine that read them to the loop. Whoever
// holds the pointer owns it.
type Batch struct {
	Events  [BatchSize]Event
	N       int // events in use
	Expects [ExpectBatchSize]Expect
	NExpect int  // expectations in use
	Overrun bool // the kernel dropped events after those of this batch
	Resumed bool // of events between those before this batch and those after it, some were not listened to
}

// Handle names an entry of a cache: an index into its slab, 0 for none. It stays
// valid until the entry is removed.
type Handle uint32

package conformance

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Sending is what the machines of all modes have in common.
type Sending interface {
	Enqueue(h flow.Handle, replace bool)
	Forget(h flow.Handle)
	ForgetAll()
	Evict() flow.Handle
	Bulk()
	RequestResync()
	Advance(now monotime.Time)
	Next(now monotime.Time) monotime.Time
	Pending(now monotime.Time) bool
	AppendDatagram(now monotime.Time, b []byte, limit int) []byte
}

// Machine is a machine for any number of peers.
type Machine interface {
	Sending
	Receive(now monotime.Time, session uint64, m *wire.Message) (wire.Verdict, wire.Delivery)
	Owner(name string) uint8
}

// OnePeer is a machine for one peer, in conntrackd's dialect.
type OnePeer interface {
	Sending
	Receive(now monotime.Time, m *wire.Message) wire.Verdict
	Requests() uint64
	Confirmed(now monotime.Time)
	ResyncComplete(now monotime.Time) bool
}

// Params is what differs between the nodes of a test.
type Params struct {
	Name     string
	Session  uint64
	FirstSeq wire.Seq
	Seed     uint64
	Random   func([]byte)
}

// Mode is what is tested. Exactly one of New and NewOne is set.
type Mode struct {
	New    func(Params, *Node) Machine
	NewOne func(Params, *Node) OnePeer
	Check  func(Sending) error // the invariants of a machine; nil for none

	Meet   time.Duration // after which two nodes that have started know each other
	Prompt time.Duration // after which a change has arrived if nothing is lost
	Settle time.Duration // after the last fault, in which everything becomes equal

	// What the mode does not promise.
	KeepsForgotten bool // flows that were forgotten, not destroyed, stay on the peer
	KeepsStale     bool // flows whose deletion was lost stay on the peer
	GoesBack       bool // what comes late overwrites what is newer, until it heals
	NeedsOrder     bool // what comes out of order is lost
	LosesRequests  bool // a request that was lost may be taken for answered: one more is made when the faults end
	Retains        bool // memory is taken for what is not acknowledged
	NoDamage       bool // entries that are lost by the receiver do not come again
	LongCuts       bool // a link that carries one direction only is noticed after some ten seconds
}

// Package ftfw is the reliable replication protocol FT-FW in conntrackd's
// dialect, as a pure state machine: no socket, clock, goroutine, lock or logger.
// Messages and the current time go in; verdicts, datagrams and deadlines come
// out. The engine's loop is the only caller.
//
// # What travels
//
// Every message, data and control alike, takes the next 32-bit number of its
// sender. The receiver acknowledges ranges (ACK) and names ranges that it missed
// (NACK). A message that was lost is never repeated: its flow becomes dirty
// again and leaves once more in its current state under a new number. So
// nothing old can overwrite something newer, and a burst of changes of one flow
// collapses.
//
//	         Enqueue                 sent as number n            ACK of n
//	clean ───────────────► dirty ────────────────────► in flight ──────► clean
//	                         ▲                             │             (a dead flow
//	                         │ Enqueue, NACK of n, HELLO,  │              is released)
//	                         └──── no ACK for too long ────┘
//
// The queue holds handles, never bytes: Store encodes a flow when it leaves.
//
// # Where this machine is stricter than conntrackd
//
// What a peer can see is conntrackd's protocol. These differences keep state
// from being lost, and a conntrackd cannot tell them apart from chance:
//
//   - No data leaves while our HELLO is unanswered, because the peer detects no
//     loss in that phase, nor while the peer is silent. Flows stay dirty.
//   - When the resend queue is full, sending stops until room is acknowledged.
//     Nothing is dropped from it.
//   - HELLO of the peer makes everything in flight dirty again and starts a bulk
//     update, so a peer that restarts gets our state unasked.
//   - What stays unacknowledged while later numbers are acknowledged is sent
//     again after a while.
//   - A request for the peer's state (RESYNC) leaves only when both sides have
//     finished their HELLO, and is repeated until it was provably received. It is
//     made at the start, after a restart of the peer, after a silence, and after
//     a gap larger than what a resend queue holds. The bulk update that follows
//     counts as over only when the peer has acknowledged a message since.
//   - ACKs leave at least once a second, traffic or not.
//
// A bulk update walks the cache in place, beside the live changes, and never has
// more than bulkInFlight messages unacknowledged, so that it overruns no socket
// buffer. A second request while one is running extends it to a full round from
// where it is. A flow that has left since the request and is still in flight is not
// sent again.
//
// The machine speaks to exactly one peer: the dialect has one sequence state for
// all senders.
package ftfw

// Package stream is the reliable replication protocol FT-FW for any number of
// peers, in the syncd dialect (docs/protocol.md), as a pure state machine: no
// socket, clock, goroutine, lock or logger. Messages and the current time go in;
// verdicts, datagrams and deadlines come out. The engine's loop is the only
// caller.
//
// # One stream, many receivers
//
// A node has one stream of numbered messages for all its peers, and follows the
// streams of all others. What a peer lacks becomes due again and leaves in its
// current state under a new number, for everyone.
//
//	         Enqueue                 sent as number n          every peer that counts
//	clean ───────────────► dirty ────────────────────► in flight ──────► clean   has n
//	                         ▲                             │             (a dead flow
//	                         └── Enqueue, n is missing ────┘              is released)
//
// A peer counts from its first STATUS until it is silent for too long or holds up
// the others. Nothing is kept for a peer that does not count: when it speaks
// again it is told so, and wants a bulk update. So memory is bounded whatever a
// peer does, and with no peer at all nothing is kept.
//
// # Compact messages
//
// Most changes of a flow, and its end, are told by a message of 28 or 16 octets that names
// the flow by its handle and the number of the message that told all of it, its base. A
// receiver holds the flow as that base made it (Replica.Follows), and then the compact
// message is as good as one with all of the flow; or it does not, for whatever reason, and
// then the compact message is as good as lost, which is seen, asked for and repaired like any
// loss: what is sent again tells all. So no state of a peer needs to be known before one is
// sent. What else is done is to spare loss that can be foreseen: none refers to a message
// before floor, since when all peers have counted.
//
// # Provably in step
//
// Both sides keep, for each of 128 buckets, the sum of the hashes of the flows in
// it: the sender of what it has sent, the receiver of what it holds (Replica). The
// sender puts its sums into the stream; a receiver that lacks nothing at that
// point compares. What differs is wanted, and comes by a bulk update of these
// buckets, at whose end the receiver removes what was not confirmed.
package stream

// Package notrack is the best-effort replication protocol NOTRACK, as pure state
// machines: no socket, clock, goroutine, lock or logger. Messages and the current
// time go in; verdicts, datagrams and deadlines come out. The engine's loop is the
// only caller.
//
// Nothing is acknowledged and nothing is kept for being sent again: a flow that
// changed leaves once, in the state that it has then, and the slot of a dead one is
// released as soon as its deletion has left. What is lost heals by bulk updates.
//
//	         Enqueue            sent
//	clean ───────────► dirty ────────► clean (a dead flow is released)
//
// # Conntrackd's dialect
//
// Conntrackd is the machine for one peer that may be a conntrackd: data, ALIVE after
// a second of silence, and RESYNC, answered by everything we have. Every valid data
// message is delivered, whatever its number. What it does beyond that, a conntrackd
// cannot tell from an operator's commands:
//
//   - A RESYNC is repeated until something comes that may be the answer.
//   - A peer that is heard first, or again after a silence, gets a bulk update
//     unasked, and is asked for its own.
//   - A hole in the peer's numbers leads to a RESYNC, at most one in a
//     ConntrackdConfig.BulkInterval.
//
// Nothing in this dialect says that a bulk update is complete, or that a RESYNC has
// arrived. So no entry of the external cache is ever removed for not having been
// confirmed: a deletion that was lost stays lost, as it does with conntrackd.
//
// # The syncd dialect
//
// Syncd is the machine for any number of peers (docs/protocol.md). Flows are classed
// into 128 buckets, and eight of them make a part: 16 parts, each with a bulk update
// of its own. The sender goes through the parts all the time, one round in
// SyncdConfig.BulkInterval, and at once through those that a peer asked for. A
// receiver puts the flows of a part in doubt at its BULK_BEGIN, and removes those
// that were not confirmed at its BULK_END, provided that no number between them was
// missed; otherwise they stay in doubt until the part comes again. Small parts make
// it likely that some get through whole where much is lost.
//
// A receiver asks for the parts it wants by STATUS: all of a session that it has just
// met. It is sent again until the beginning of each has come. Messages that arrive
// out of order are dropped: nothing old overwrites something newer.
package notrack

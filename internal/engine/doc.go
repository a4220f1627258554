// Package engine is the one loop that owns both caches and the replication mode,
// and decides what happens next.
//
// # Who owns what
//
//	goroutine        owns                                   hands over
//	event reader     its netlink socket (ctnetlink)         *flow.Batch of decoded events
//	link reader,     its socket and datagram buffers        *inbox of parsed messages
//	 one per link     opens sealed ones
//	dump worker      its own netlink socket                 *flow.Batch of dumped flows
//	fetch worker     its own netlink socket                 *fetchJob, answered
//	loop             internal cache, Replica, mode,          datagrams, to the links
//	                 timers, send buffers, filter
//	anyone else      nothing                                a function, by Do
//
// Batches and inboxes circulate: the loop returns each to where it came from, and
// whoever holds the pointer owns it. Raw bytes never leave the goroutine that
// read them. Every queue is bounded by the number of batches that exist; a reader
// that finds none waits, and the kernel's socket buffer absorbs the rest.
//
// # One turn of the loop
//
// Wait for input; read the clock once; take a bounded amount of everything that
// waits; act on deadlines; do a slice of long work (sweeps); send a bounded number
// of datagrams. What remains makes the next turn start without waiting.
//
// # Flows and truth
//
// The internal cache mirrors this kernel's table. Events change it as they come;
// a resynchronisation (at the start, after an overrun, on request) dumps the
// table beside them: every flow that the dump finds, or an event touches
// meanwhile, is marked, and what is left unmarked at the end has ended unnoticed
// and is treated as destroyed. An event is always newer than the dump, but most
// events tell little: of a flow that events touched since the dump began, the dump
// counts for what they did not tell. One that began since is not changed by it, and
// one that was destroyed is not brought back.
//
// The sequence adjustment that a helper makes is in no event. Flows that may have one
// are asked for singly (fetch.go): after their events, when somebody else knows that a
// helper was at work, and every few seconds.
//
// The external caches (Replica) hold the flows of peers, one cache for each owner. A
// message creates, changes or removes, and tells all that the peer knows of the flow:
// what it leaves out is gone. While a bulk update of the peer runs, entries are in
// doubt until a message confirms them, and what is still in doubt at its end is
// removed. In conntrackd's dialect, which has one peer and no end of a bulk update,
// OnePeer decides when it is over.
package engine

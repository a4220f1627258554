// Package ctnetlink is the kernel side of the daemon: it listens to
// conntrack events, dumps the table, and gets, creates, updates and deletes
// entries through ctnetlink (nfnetlink subsystem 1), and expectations
// (subsystem 2).
//
// It owns sockets, netlink messages and attributes, and nothing that decides:
// which flow is replicated, what to do about an entry that exists already or
// after an overrun is the business of its callers. Messages never leave the
// package as bytes, only as values of package flow.
//
// # Goroutines and memory
//
// A Listener is read by one goroutine, the caller of Run. It owns the socket and
// the receive buffers, decodes in place into a *flow.Batch that it took from the
// free channel, and gives the batch away with the full channel: whoever holds the
// pointer owns the batch. A Writer belongs to one goroutine at a time. A dump has a
// socket of its own and lends one event to its callback. The event path and the
// batch writer allocate nothing once they are set up.
//
// mdlayher/netlink opens the sockets, enters the namespace, joins groups and
// sets options. Reads and writes go to the same Conn through SyscallConn, with
// closures that are built once, because its Receive allocates for every message.
//
// # Units
//
// Timeouts are seconds, timestamps are nanoseconds of the wall clock, buffer
// sizes are octets as getsockopt reports them (twice what setsockopt takes).
// One event costs about 1280 octets of receive buffer whatever its length.
//
// # What the kernel does that one must know
//
//   - An entry that is born while net.netfilter.nf_conntrack_events is 0, or 2
//     with nobody listening, never emits an event: see Events.
//   - Changes made through ctnetlink come back as events that carry the port id
//     of the socket that made them; traffic and timers have 0.
//   - UPDATE events hold only what changed, and refreshed timeouts are not told.
//   - After an overflow the kernel drops everything until the queue has been
//     read empty, and a dump must say what was missed.
//   - A DELETE without a tuple flushes the table. Nothing here can send one.
//   - An expectation ends when the flow that it expects begins, and with its
//     master; the kernel tells of its end before the former and after the latter,
//     which then carries no port id. It never tells in which zone one is.
package ctnetlink

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
//	parker           its own netlink socket                 *flow.ParkBatch with its answers
//	fetch worker     its own netlink socket                 *fetchJob, answered
//	loop             internal cache, Replica, mode,          datagrams, to the links;
//	                 timers, send buffers, filter            *flow.ParkBatch of requests
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
// Not every end of a kernel's entry is the end of its flow: see behind.go for those that
// are left behind when an address moves, and remnant.go for those that are left from
// this node's time in charge.
//
// The sequence adjustment that a helper makes is in no event. Flows that may have one
// are asked for singly (fetch.go): after their events, when somebody else knows that a
// helper was at work, and every few seconds.
//
// The external caches (Replica) hold the flows of peers, one cache for each owner. A
// message creates, changes or removes, and tells all that the peer knows of the flow:
// what it leaves out is gone. A compact message tells the state alone, or the end, of an
// entry that a certain message has made (compact.go). While a bulk update of the peer
// runs, entries are in doubt until a message confirms them, and what is still in doubt at
// its end is removed. In conntrackd's dialect, which has one peer and no end of a bulk update,
// OnePeer decides when it is over.
//
// # Parked flows
//
// With a Parker (instant takeover) this kernel has the flows of the peers too. Its
// entry for a flow is in one of four states, and nothing but the kernel's own table
// and the two caches says in which, so that a restart loses nothing:
//
//	           in this kernel                  internal cache   external cache
//	ours       yes                             alive            maybe
//	parked     timeout above flow.ParkedAbove  no               yes
//	touched    a shorter one                   no               yes, or was
//	absent     no                              no               yes
//
// A parked entry has a timeout of weeks, since no event of its owner will ever refresh
// it. The first packet that passes it gives it the timeout of its state: it is touched.
// Packets that change more than that make an event, and it is ours at once, with what
// only its owner has told filled in; of the others the next dump tells, which comes a
// few seconds after the first event. What is ours is never parked, changed or deleted
// for a peer.
//
// What is to be done is kept as lists of handles, one entry at most for each external
// entry, and of tuples to be deleted, each of which was in the kernel. So a burst
// collapses, a slow kernel costs no memory, and the loop never waits for it. Deletions
// go first: a tuple that is used again may have another mapping.
//
//	what happens                        what becomes of the kernel's entry
//	message of a new flow               created; if something is there and is parked, it
//	                                    gives way; anything else stays (local, clash)
//	message that changes a flow         updated without a look, which may also reach an
//	                                    entry touched a moment ago; if translation, master
//	                                    or helper differ, deleted and created
//	message that changes nothing        nothing
//	message about what is ours          nothing
//	deletion, sweep, expiry, flush of   deleted if it is parked; if touched, ours, with a
//	the external cache                  timeout that the next packet sets right (and a remnant
//	                                    on a node that is not in charge); if another owner has
//	                                    the flow, parked for that one
//	flow in doubt                       nothing before it is swept
//	traffic on it, with an event        ours
//	ended (not by us)                   parked again if it was parked, or ours on a node
//	                                    not in charge, and its owner lives; otherwise it has
//	                                    ended here, and is neither parked nor adopted until
//	                                    its owner says something new
//	dump: parked, owner known           parked anew if it sinks or differs
//	dump: parked, no owner              stays while peers may still tell of it; deleted
//	                                    once they have told everything; adopted by a
//	                                    takeover that nobody else could tell of it
//	dump: touched                       ours
//	dump: not there                     parked
//	dump: parked and ours               ours: released, it gets its own timeout
//	what the parker did, to what        it is released, and the table is read again soon: the
//	became ours meanwhile               parker's events but for deletions stay away
//	this node is put in charge          adopted: ours at once, before the kernel has given
//	                                    it the timeout of its state
//	this node is not in charge          what another node has is yielded to it, at once,
//	                                    when it tells of it, or, in the syncd dialect, when
//	                                    it leads (lead.go): parked, and, in the syncd
//	                                    dialect, told to the peers as ended here; not if
//	                                    traffic passed it since, nor to one whose flow has
//	                                    not come as far yet, and, in conntrackd's dialect,
//	                                    not to one that has said nothing of it since this
//	                                    node took over
//	this node is put in charge, ours    compared with what its owner told: it may be from an
//	already                             earlier time in charge
//	table full                          absent, tried again now and then
//
// Expectations are parked after their masters, with the timeout that they have on their
// owner, which nothing refreshes there either. They are left alone where their master is
// ours, and become ours with it, when a dump finds them.
//
// Two nodes that are both in charge, or ways that differ by direction, leave a flow
// ours on both. That one of them says it has ended then is no end on the other.
package engine

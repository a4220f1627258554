// Package cache keeps flows and expectations: the internal cache (those of this
// kernel) and the external cache (those of a peer) are two instances of one type.
//
// What it owns: the memory of the flows, the index over their original tuples,
// and a few octets about every entry that the owner of the cache uses as it
// likes (owner, sweep epoch, flags). What must not enter: sockets, clocks,
// locks, goroutines, loggers, the wire format, and any decision about what is
// replicated. The time comes in as an argument.
//
// One goroutine owns an instance; nothing here is safe for concurrent use.
//
// # Memory
//
// A flow is a record of 96 octets without any pointer, in chunks that are
// never moved or copied, so that a million flows cost the garbage collector
// nothing and growing costs no pause. Attributes that few flows have (master,
// labels, helper, sequence adjustment, SYN proxy, security context, and a reply
// tuple that is no plain relative of the original one) live in a side table of
// their own; a record refers to its row there by number.
//
// An expectation is a record too, found by what it expects, and has the rest in a
// table of its own. A bit in the family of its key keeps it apart from flows. Walks,
// limits, handles, marks and all that is not about attributes make no difference
// between the two; what is about the attributes of a flow must not be asked of an
// expectation, and panics.
//
// The index is an extendible hash table: a directory of segments of 4 KiB, each
// of which is split into two when it is full. The most that one insert has to
// do is to split one segment and to double the directory, some tens of
// microseconds with millions of flows. Its hash is keyed with random words of
// each instance, because the other end of a flow chooses addresses and ports.
//
// Memory that was once used for entries stays with the cache and is used again;
// only Clear gives it back.
//
// # What is stored
//
// Everything of a flow.Flow but Use, Counters, Start, Stop and EventTime: these
// change without an event or say nothing about the future, and Load leaves them
// zero with their bits of Has clear.
//
// The replicated attributes are Reply (zone included), Master, Status, Mark, the
// protocol state (TCP state, flags, window scale; SCTP state and verification
// tags), Labels, Helper, SeqAdj and Synproxy. Timeout, ID and Secctx are stored,
// but a change of them alone is no change in the sense of Merge. Of an expectation
// everything is stored.
//
// # Entries
//
// An entry is alive until SetDead. A dead entry still holds its slot and its
// key: a mode keeps it until everyone has acknowledged its deletion, then
// removes it. The limit is on both together.
//
// A handle names an entry until Remove or Clear; after that the same number may
// name another entry. Using a handle that names no entry is a mistake of the
// caller and panics.
package cache

// Package meet is how nodes that speak the syncd dialect come to know each other
// (docs/protocol.md, section 3), as a pure state machine: HELLO once a second, a
// challenge for every session, and a table of the sessions that have proven to live
// now. Nothing of a session that is not met may count.
//
// A mode keeps one Table, gives it every message first, and keeps what it knows of a
// peer in that peer's State. What the mode sends and believes is none of this
// package's business.
//
// Owners are small numbers from 1 up that stand for the names of nodes as long as
// this process lives. Times are those that the caller passes in; a Peer belongs to
// its Table, and both belong to the engine's loop.
package meet

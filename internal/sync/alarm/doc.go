// Package alarm is the replication protocol ALARM, as pure state machines: no
// socket, clock, goroutine, lock or logger. Messages and the current time go in;
// verdicts, datagrams and deadlines come out. The engine's loop is the only caller.
//
// Every flow is sent when it changes, and again and again at random intervals of at
// most Config.Refresh and a second. What a receiver has not heard of for
// Config.CacheTimeout it forgets. So whatever was lost heals, deletions too, and
// there is nothing to acknowledge, to ask for or to count.
//
//	         Enqueue            sent
//	clean ───────────► dirty ────────► resting ──┐
//	                         ▲            │      │ its time has come: sent
//	                         └────────────┘      │
//	                           Enqueue    ▲──────┘
//
// A wheel of slots of 200 ms holds the flows that rest. Putting one in or taking it
// out is a step of a list; there is no timer for each. A walk through the cache, once
// in Config.Refresh, finds the flows that nobody has enqueued (they were there before
// the daemon, or a commit made them) and puts them in.
//
// # Conntrackd's dialect
//
// Conntrackd is the machine for peers that may be conntrackds: data messages alone.
// A message with any flag is swallowed. Entries of the external cache expire
// whether the peer lives or not, because nothing tells: a node whose active peer has
// died must commit within Config.CacheTimeout.
//
// # The syncd dialect
//
// Syncd is the machine for any number of peers (docs/protocol.md). A peer that is met,
// or heard again after a silence, gets everything once without waiting. Messages that
// arrive out of order are dropped. Entries expire only while their owner is heard, so
// that those of an owner that died stay until they are committed.
//
// # Expiry
//
// The machine decides when entries are too old, Expirer removes them; see there.
package alarm

// Package queue holds what best-effort modes send with: lists of flows, a walk
// through the cache in slices, a pace, and a sender that forgets what has left.
//
// Like the modes it is pure: no socket, clock, goroutine, lock or logger, and no
// protocol beyond the number that every message takes. Each value belongs to one
// mode, and that to the engine's loop. A flow is known by its handle alone; nothing
// here holds a pointer to one, and nothing allocates but the growth of a table.
package queue

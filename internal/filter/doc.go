// Package filter decides which flows are replicated.
//
// A Filter has one meaning wherever a flow is looked at: for kernel events, in
// dumps, in bulk updates and when the kernel table is purged. So a flow never
// enters by one way and is forgotten by another.
//
// It is not applied to destroy events. A flow that the internal cache holds has
// passed the filter when it came in, and its end must be told whatever the
// filter says of it by then: its TCP state may have left the accepted ones, or a
// reload may have changed the rules. A destroy event of a flow that the cache
// does not hold concerns nobody.
//
// The package imports the vocabulary of flows only. A Filter never changes after
// it was made, so any goroutine may use it at any time; a reload makes another
// one. Matching allocates nothing and takes no lock.
package filter

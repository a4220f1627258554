// Package commit puts a cache into the kernel's connection-tracking table, and
// makes entries leave it again that nobody uses.
//
// It owns the order (masters before the flows that depend on them), what of an
// entry is fit to be created on another machine, the batches, what happens when
// the kernel already has something in the place of an entry, and the report. It
// does not own netlink: the Kernel interface is what it needs of it. Nothing
// here keeps state between two calls, reads a configuration or writes a log.
//
// # One batch
//
// The kernel works through all requests of one sendmsg before the call returns,
// and answers only those that failed. So a batch of creates in which nothing
// clashes costs one system call to send and one to see that there is no answer.
// Each request that failed is looked at singly, and becomes, together with the
// others of its batch, a request of the next round:
//
//	create ─ EEXIST ──────────────► look at what is there ─► update, delete+create, leave it
//	       ─ unknown helper ──────► create without helper
//	       ─ no such master ──────► once more at the end, then create without master
//	       ─ table full ──────────► counted as refused; after some of them in a row one
//	                                entry of each batch tries, the others are only looked for
//	       ─ anything else ───────► counted as refused
//
// The kernel drops labels without an error when no rule of it uses any. One entry of
// each batch that has some is looked at afterwards.
//
// Expectations follow when all flows are there, in the same way but for one more round:
// the kernel gives a new one the timeout of its helper, and takes another only for one
// that exists.
//
// # What is there stays
//
// An entry of the kernel may be newer than ours: traffic may have moved to this
// node before the commit. Or it may be older: of the time when this node carried
// the flow before, with windows that have long moved on. So an entry with the
// same mapping is only ever merged upwards and made liberal, and only an entry
// that would break the connection (reversed by a loose pickup, or with another
// translation and never answered) gives way.
//
// # Memory and goroutines
//
// Run and Purge work on the goroutine of their caller and start none. Both hold
// one chunk of entries of a fixed size, whatever the size of the cache, and
// allocate nothing for each entry as long as nothing clashes. Timeouts are in
// seconds, ages are durations.
package commit

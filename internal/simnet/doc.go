// Package simnet is the world around an engine, for tests: a network that loses,
// repeats, delays, reorders and cuts, and a kernel with a connection-tracking
// table, an event socket that overflows and a dump that is not atomic.
//
// It is meant for the virtual time of testing/synctest, where hours of faults
// take milliseconds, and works in real time as well. Ports and kernels have the
// methods that an engine asks for; nothing of the engine is imported, and nothing
// but tests may import this package.
//
// All chance comes from seeds. Every direction of the network and every kernel
// has a generator of its own, so that what happens in one place does not depend
// on the order in which goroutines run elsewhere; how goroutines interleave at one
// instant is the scheduler's choice and no seed fixes it.
//
// Everything here may be used from any goroutine. Datagrams are copied when they
// are sent; what Port.Datagram returns belongs to the port until the next Read.
package simnet

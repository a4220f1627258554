// Package lab builds small networks out of network namespaces: nodes, cables,
// bridges, firewall rules, a pair of firewalls with virtual addresses, and
// long-lived traffic through them. The demo and the end-to-end tests run on it.
//
// It needs root and nothing else: no ip(8), no nft(8), no shell. What syncd does
// must not enter here; a lab knows networks, not synchronization.
//
// Ownership: a [Lab] owns every namespace and every process started through it,
// and [Lab.Close] ends them all, however far a test came. What a crash leaves
// behind (kill -9) is named after its process, so that [Sweep] can remove it
// later. Sockets opened inside a node belong to who opened them; they keep the
// namespace alive in the kernel until they are closed, although its name is gone.
//
// Goroutines: [Node.Do] runs its function on a thread of its own that enters the
// namespace and leaves it again. Sockets created there work from every goroutine,
// because the namespace is a property of the socket. Methods of Lab and Node may
// be called concurrently.
//
// Times are of package time; addresses are net/netip values from the ranges set
// aside for documentation and benchmarking (RFC 5737, RFC 2544, RFC 3849).
package lab

// Package host looks at the machine as a firewall that is to carry on the
// connections of another one: sysctls, kernel, interfaces, socket buffers, the
// conntrack table and the packet filter. It says what keeps replication from working,
// what weakens it, and how to change it. Nothing is changed.
//
// Reading and judging are apart. [Read] fills [Facts]; [Judge] is a pure function of
// facts and of what the configuration asks for ([Setup]), and so is [Compare], which
// holds two nodes against each other. What could not be read is a finding of its own
// ([Unknown]), never a guess.
//
// The ruleset is judged by what it does to a packet, not by its looks: a datagram of
// the sync link is taken through the chains of its hooks in their order ([trace]).
// A condition on something that the datagram does not fix, or that this package does
// not know, is neither met nor unmet; see certainty.
//
// All is about the network namespace of the calling thread. The package knows
// netlink and /proc; it knows no configuration file, no daemon and no other package
// of this program but the vocabulary.
package host

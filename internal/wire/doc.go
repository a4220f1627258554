// Package wire is the replication format: the header of a message, its
// attributes, and the serial arithmetic of its numbers. It parses and appends,
// nothing else: no socket, clock, goroutine, logger or state of a peer enters
// here, and what a message means to a mode is decided by the mode.
//
// The format is version 1 of conntrackd's, so that a syncd and a conntrackd
// understand each other. A datagram holds one or more messages, one directly
// after the other:
//
//	octet 0    version 1 in the high half, Type in the low half
//	octet 1    Flags
//	octet 2-3  length of the message in octets, this header included
//	octet 4-7  Seq
//	octet 8-   types 0 to 5: attributes
//	           type 10: nothing, or the range that is acknowledged, missing or
//	           asked for (from and to, 4 octets each, both inclusive)
//
// An attribute is its length (2 octets, these four included, padding not), its
// number (2 octets), its payload, and zero octets up to a multiple of 4. Flows
// (types 0 to 2) and expectations (types 3 to 5) number their attributes
// apart. conntrackd knows numbers below 33 and 21, and drops a message with any
// other. Numbers from 0x101 up are attributes of our own, which are sent and
// understood in the syncd dialect alone. Reader skips what it does not know, unless
// it is Strict.
//
// Integers are big-endian, except three 16-bit fields of flows that conntrackd
// swaps once too often: the translated ports (SPAT_PORT, DPAT_PORT) and the ICMP
// identifier are little-endian, always. Timeouts are seconds.
//
// Memory: a Message is a plain value that holds no pointer and belongs to the
// caller. A Reader keeps the datagram it was given until its walk is over and
// never writes to it. Nothing here allocates, except an append that the
// caller's slice has no room for. No input makes anything here panic.
package wire

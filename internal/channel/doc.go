// Package channel owns the dedicated links between the nodes and the failover
// between them.
//
// A Link is one path: UDP unicast to a list of peers, or one multicast group, on
// one network interface, over IPv4 or IPv6. A Channel is a list of Links, all of
// which receive and one of which sends. The octets are opaque here: nothing in
// this package may know what a message is, and it imports nothing of ours but the
// clock and the gate at which a reader waits.
//
// # Goroutines
//
// The package starts none. A Link expects at most one goroutine in Receive and
// at most one in Send; they may be different ones. All its other methods may be
// called from anywhere at any time. A Channel is a plain value that belongs to
// one goroutine, its owner's loop, and takes the time as an argument.
//
// # Memory
//
// Receive fills a Batch, which belongs to the caller; the datagrams in it are
// valid until the next Receive with that Batch. Send reads the caller's buffers
// and keeps nothing of them after it has returned. Both move many datagrams with
// one system call and allocate nothing.
//
// # Interfaces that come and go
//
// A Link belongs to the interface of that name and index which it found when it
// was opened. The owner watches the interfaces (package netwatch) and tells:
//
//   - SetUp, when the state or the MTU of the interface has changed;
//   - Reopen, when the name now stands for another index than Index, or stands
//     for an interface again after it had gone. If Reopen fails, with
//     ErrNoInterface or ErrNoAddress for instance, the Link has no sockets: Send
//     drops, Receive waits, and Reopen may be tried again at any time.
//
// Sockets are opened in the network namespace of the calling thread.
//
// # Units
//
// Sizes are octets of UDP payload unless a name says otherwise.
package channel

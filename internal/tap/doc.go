// Package tap sees for which flows packets come to this host, before any rule and
// before connection tracking: during a takeover they name the connections that somebody
// waits for.
//
// It owns its packet sockets and nothing else: it knows no cache, decides nothing and
// keeps no packet. What it says is a sample. A socket holds some hundred packets; what
// comes while it is full is not seen, and costs nobody anything. Bridged packets, those
// that hardware or a flowtable forwards, fragments but the first, and IPv6 with
// extension headers are not seen at all.
//
// A Tap belongs to one goroutine. Tuples have no zone: the rules that would choose one
// come later.
package tap

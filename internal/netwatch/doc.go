// Package netwatch tells the state of the network interfaces and the addresses of
// this host, at the start and after every change, as the kernel announces it over
// rtnetlink (rtnetlink(7)).
//
// It reports and decides nothing: what a change means for a dedicated link is for
// the user of the package. Nothing of ours is imported.
//
// Watch runs on the goroutine of its caller and starts none. A Snapshot is a copy
// of its own: whoever gets it may keep it, and hand it to another goroutine.
//
// The MTU is in octets.
package netwatch

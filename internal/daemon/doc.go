// Package daemon builds everything from a configuration and runs it: the event
// listener, the dedicated links, the engine, the control socket; readiness, reload
// and stop. It is the only package besides cmd/syncd that knows the whole.
//
// Order of the start: the configuration, the control socket (one daemon for each),
// the host's settings, the event socket, the links, the first dump of the kernel's
// table, READY=1. Whatever fails on this way ends the daemon with an error that
// says what and where, before anything was changed.
//
// Commands that change the kernel or the role (commit, primary, backup, fault,
// purge) run one after the other, in the order in which they came, on the
// goroutine of whoever asked; they use the engine's loop only for moments.
//
// Two files in node.state_dir outlive the process: what peers have told (at the stop),
// and the role (whenever it changes).
package daemon

// Package rig is the bench on which daemons are measured: two cabled firewalls in
// network namespaces, syncd or Debian's conntrackd on them, and the operating
// system's own accounting of each process.
//
// Nothing here judges; programs under test/bench decide what load there is and what
// is read off. A rig needs root, and belongs to one goroutine but for the methods
// of Daemon that only read.
//
// Times are durations of this machine's monotonic clock, memory is in octets.
package rig

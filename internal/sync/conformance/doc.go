// Package conformance is what every replication mode must hold, as tests: a mode's
// package calls Run from one of its own. It is for tests alone.
//
// A Node is the least of an engine around a machine: flows are told apart by their
// source port, and their state is their mark, which counts the changes on the node,
// so that of two states of a flow the greater one is the newer. A network carries the
// datagrams of some nodes, badly, in virtual time. All chance comes from seeds.
package conformance

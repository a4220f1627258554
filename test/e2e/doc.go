// Package e2e holds the end-to-end tests: whole daemons on real kernels in
// network namespaces, beside real conntrackd and keepalived. It contains nothing
// but tests.
//
// They need root, and conntrackd and conntrack(8) ("make peers" installs them).
// What is missing is named by the tests that are skipped for it; with CI=true they
// fail instead.
//
// What a kernel's table contains is read by github.com/ti-mo/conntrack, never by
// the daemon's own code alone.
package e2e

// Package demo is `syncd demo`: two firewalls in network namespaces of this
// machine, some hundred connections through the first, which then dies. It is
// done twice, without syncd and with it, and shows live what becomes of the
// connections.
//
// The demo uses the daemon as anybody would: the program itself, a configuration
// file, and the control socket. Nothing of the daemon's inside enters here.
//
// Everything runs in one goroutine but the traffic, which package lab owns. What
// the demo makes is owned by a lab.Lab and goes with it, also on Ctrl-C; what
// kill -9 leaves is removed by the next demo.
package demo

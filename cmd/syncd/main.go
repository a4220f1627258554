// Command syncd keeps the connection-tracking state of several Linux firewalls
// in step, and is the tool that controls the daemon that does so.
//
// This package owns commands, flags, exit status and the logger, and nothing
// else: what a command does is in the packages below internal.
//
// Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks; a second one finds its default action and ends the
	// process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

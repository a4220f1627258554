package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"syncd/internal/lab"
)

// prefix begins the names of the demo's namespaces.
const prefix = "syncd-demo-"

// ErrLost says that not every connection survived with syncd.
var ErrLost = errors.New("connections were lost although syncd ran")

// Options of a demo. The zero value is good but for Out.
type Options struct {
	Out         io.Writer // where to show it; live if it is a terminal that is large enough
	Plain       bool      // lines instead of the live picture, also on a terminal
	Connections int       // default 200
	Executable  string    // syncd itself; default this program
	WithoutOnly bool      // only the part without syncd

	withOnly bool // only the part with syncd; for tests
}

// Run runs the demo: without syncd, then with it. It returns ErrLost if with
// syncd a connection died, and cleans up in any case, signals included.
func Run(ctx context.Context, o Options) error {
	// SIGPIPE, too: `syncd demo | head` must not leave namespaces behind.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if o.Connections <= 0 {
		o.Connections = 200
	}
	if o.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		o.Executable = exe
	}
	if err := lab.Usable(); err != nil {
		return fmt.Errorf("demo: cannot build a network here: %w", err)
	}
	screen := newScreen(o.Out, o.Plain)
	if swept, err := lab.Sweep(prefix); err != nil {
		return fmt.Errorf("demo: leftovers of an earlier demo: %w", err)
	} else if len(swept) > 0 {
		screen.line(fmt.Sprintf("removed %d leftovers of an earlier demo", len(swept)))
	}

	var without, with *result
	var err error
	if !o.withOnly {
		if without, err = runExperiment(ctx, screen, o, false); err != nil {
			return fmt.Errorf("demo, without syncd: %w", err)
		}
	}
	if !o.WithoutOnly {
		if with, err = runExperiment(ctx, screen, o, true); err != nil {
			return fmt.Errorf("demo, with syncd: %w", err)
		}
	}
	screen.report(without, with)
	// A nil result lost nothing.
	if t := with.total(); t.alive < t.opened {
		return fmt.Errorf("demo: %d of %d %w", t.opened-t.alive, t.opened, ErrLost)
	}
	return nil
}

package main

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"syncd/internal/ctl"
)

// bar shows how far a commit is.
type bar struct {
	*progressbar.ProgressBar
}

// newBar returns a bar on the terminal of cmd, or one that shows nothing: in a
// script, where the output goes elsewhere, and beside JSON.
func newBar(cmd *cobra.Command, f *ctlFlags) *bar {
	if f.json || !isTerminal(cmd.OutOrStdout()) || !isTerminal(cmd.ErrOrStderr()) {
		return new(bar)
	}
	return &bar{progressbar.NewOptions64(1,
		progressbar.OptionSetWriter(cmd.ErrOrStderr()),
		progressbar.OptionSetDescription("committing"),
		progressbar.OptionSetWidth(24),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("entries"),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(50*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress returns what a client is to call, nil if nothing is shown.
func (b *bar) progress() ctl.ProgressFunc {
	if b.ProgressBar == nil {
		return nil
	}
	return func(p ctl.Progress) {
		// One is left over so that the bar does not end: the cache may have grown.
		total := int64(max(p.Total, p.Done)) + 1
		b.ChangeMax64(total)
		_ = b.Set64(int64(p.Done)) // a terminal that is gone shows nothing
	}
}

// clear removes the bar.
func (b *bar) clear() {
	if b.ProgressBar != nil {
		_ = b.Clear()
	}
}

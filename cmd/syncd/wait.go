package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"syncd/internal/ctl"
)

// newWaitReady is `ctl wait-ready`.
func newWaitReady(f *ctlFlags) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "wait-ready [--timeout DURATION]",
		Short: "Wait until this node may become primary",
		Long: `Wait until this node may become primary without losing connections: it has all
state of its peers, or no peer lives, or ready.timeout is over (see
reference.toml). A node that is primary is ready whatever it lacks, also when
its daemon has just started again. For scripts that start keepalived;
keepalived itself reads ready.track_file.

Exit status: 0 ready, 1 not ready within the time limit, 3 no daemon is running.`,
		Example: "  syncd ctl wait-ready --timeout 2m && systemctl start keepalived",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := ctl.Dial(f.socket)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, errNotReady)
			defer cancel()
			var s *ctl.Status
			for {
				st, err := c.Status(ctx)
				switch {
				case err == nil && st.Ready:
					fmt.Fprintln(cmd.OutOrStdout(), "ready")
					return nil
				case err == nil:
					s = st
				case ctx.Err() == nil && !errors.Is(err, ctl.ErrNotReady):
					return err
				}
				select {
				case <-time.After(waitInterval):
				case <-ctx.Done():
					if s != nil && len(s.Problems) > 0 {
						return fmt.Errorf("%w: %s", context.Cause(ctx), s.Problems[0])
					}
					return context.Cause(ctx)
				}
			}
		},
	}
	cmd.Flags().DurationVar(&limit, "timeout", time.Minute, "give up after this `DURATION`")
	return cmd
}

var errNotReady = errors.New("not ready in time")

// waitInterval is how often the daemon is asked.
const waitInterval = 200 * time.Millisecond

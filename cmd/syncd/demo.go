package main

import (
	"io"

	"github.com/spf13/cobra"
)

// demoOptions are what the flags of the demo say.
type demoOptions struct {
	out         io.Writer
	plain       bool
	connections int
	withoutOnly bool
}

func newDemo() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo [--plain] [--connections N] [--without-only]",
		Short: "Kill a firewall on this machine and watch the connections live",
		Long: `Build two firewalls in network namespaces of this machine, open connections
through one of them, kill it, and show what becomes of the connections: first
without syncd, then with it.

It must be root. Nothing outside its own namespaces is touched, and they are
removed at the end.`,
		Example: `  syncd demo
  syncd demo --plain --connections 1000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.out = cmd.OutOrStdout()
			return runDemo(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.plain, "plain", false, "print lines, also on a terminal")
	cmd.Flags().IntVar(&o.connections, "connections", 200, "open so many `N` connections")
	cmd.Flags().BoolVar(&o.withoutOnly, "without-only", false, "only show what happens without syncd")
	return cmd
}

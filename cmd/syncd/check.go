package main

import (
	"github.com/spf13/cobra"
)

func newCheck() *cobra.Command {
	var config string
	var json bool
	cmd := &cobra.Command{
		Use:   "check [-c FILE] [--json]",
		Short: "Check a configuration and this host",
		Long: `Check a configuration and this host: what is wrong, and what works but is
risky. Nothing is changed and no daemon is needed.

Exit status 0 means that the daemon would start with this configuration.`,
		Example: "  syncd check\n  syncd check -c /etc/syncd/syncd.toml.new && mv /etc/syncd/syncd.toml.new /etc/syncd/syncd.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return checkConfig(config, cmd.OutOrStdout(), json)
		},
	}
	configFlag(cmd, &config)
	jsonFlag(cmd, &json)
	return cmd
}

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command, json *bool) {
	cmd.Flags().BoolVar(json, "json", false, "print JSON")
}

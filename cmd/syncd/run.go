package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

func newRun() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "run [-c FILE]",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground until SIGTERM or SIGINT stops it; a second
signal ends it at once. SIGHUP reads the configuration again, as "syncd ctl
reload" does.

It must be root, or have CAP_NET_ADMIN, and CAP_NET_RAW for commit.used_first.
Under systemd (Type=notify) it reports when it is ready. The log goes to
standard error, without time stamps where journald adds its own.`,
		Example: "  syncd run\n  syncd run -c /etc/syncd/syncd.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := zap.NewAtomicLevel()
			log := newLogger(cmd.ErrOrStderr(), level, underJournald())
			defer log.Sync()
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			return runDaemon(cmd.Context(), config, log, &level, reload)
		},
	}
	configFlag(cmd, &config)
	return cmd
}

// configFlag adds -c.
func configFlag(cmd *cobra.Command, config *string) {
	cmd.Flags().StringVarP(config, "config", "c", defaultConfig, "configuration `FILE`")
	cmd.MarkFlagFilename("config", "toml")
}

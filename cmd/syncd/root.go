package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"syncd/internal/ctl"
)

// Exit status of every command.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoDaemon = 3
)

// defaultConfig is where the package installs the configuration.
const defaultConfig = "/etc/syncd/syncd.toml"

// execute runs the command that args name and returns the exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	// Whatever cobra refuses before a command runs is wrong usage.
	started := false
	root := newRoot()
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if underJournald() {
		fmt.Fprint(stderr, priorityError)
	}
	fmt.Fprintf(stderr, "syncd: %v\n", err)
	switch {
	case !started:
		fmt.Fprintf(stderr, "Try '%s --help'.\n", cmd.CommandPath())
		return exitUsage
	case errors.Is(err, ctl.ErrNoDaemon):
		return exitNoDaemon
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := newGroup(&cobra.Command{
		Use:   "syncd",
		Short: "Keep the connection-tracking state of several firewalls in step",
		Long: `syncd keeps the connection-tracking state of several Linux firewalls in step,
so that when one dies another carries every established connection on.

"syncd run" is the daemon. "syncd ctl" controls it, for people and for the
notify scripts of keepalived. "syncd check" says what is wrong with a
configuration before the daemon does. "syncd demo" shows what it is good for.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon is running.`,
		Example: `  syncd check -c /etc/syncd/syncd.toml
  syncd run -c /etc/syncd/syncd.toml
  syncd ctl status`,
	})
	root.SilenceErrors, root.SilenceUsage = true, true
	root.AddCommand(newRun(), newCheck(), newCtl(), newDemo(), newKey(), newVersion(), newMan(root))
	walk(root, func(c *cobra.Command) { c.DisableFlagsInUseLine = true }) // Use names them
	// A group can be run only as far as cobra is concerned.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(),
		"{{if .Runnable}}", "{{if not .HasAvailableSubCommands}}", 1))
	return root
}

// newGroup completes cmd to one that only has commands below it.
func newGroup(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2 // letters
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			cmd.SetOut(cmd.ErrOrStderr())
			cmd.Help()
			return errors.New("a command is missing")
		}
		err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w, did you mean %s?", err, strings.Join(near, " or "))
		}
		return err
	}
	// Never reached; without it cobra prints the help and is content.
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
	return cmd
}

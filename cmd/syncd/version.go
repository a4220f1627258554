package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is the version of a released build, set by
// -ldflags "-X main.release=1.2.3".
var release string

// build says what this program was made of.
type build struct {
	Version  string `json:"version [--json]"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the tree differed from Commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func thisBuild() build {
	b := build{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
		if b.Version == "" {
			b.Version = info.Main.Version
		}
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	return b
}

func newVersion() *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:     "version [--json]",
		Short:   "Print the version",
		Long:    `Print the version of this program and what it was built from.`,
		Example: `  syncd version --json | jq -r .version`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			if json {
				return printJSON(cmd.OutOrStdout(), b)
			}
			commit := ""
			if b.Commit != "" {
				commit = ", commit " + b.Commit
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "syncd %s (%s %s%s)\n", b.Version, b.Go, b.Platform, commit)
			return err
		},
	}
	jsonFlag(cmd, &json)
	return cmd
}

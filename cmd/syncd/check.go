package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"
)

type checkOptions struct {
	config, compare         string
	json, strict, printHost bool
	colour                  bool
	in                      io.Reader
	out                     io.Writer
}

func newCheck() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check [-c FILE] [--json] [--strict] [--compare FILE | --print-host]",
		Short: "Check a configuration, and this host as a firewall",
		Long: `Check a configuration, and this host as a firewall that is to take over
connections: kernel and modules, capabilities, sysctls, the size of the table,
socket buffers, the sync links, and what the rules do to the datagrams of the
links and to connections. Nothing is changed, and no daemon is needed; one that
runs is asked how many flows the peers have.

What is wrong comes first, with what it should be, why, and how to change it.
Each finding has a verdict: ok, note, warning (will cost connections some day),
error (replication cannot work), or unknown (could not be determined, and why).
Packets are followed through the rules of nftables, those of iptables-nft among
them; rules of the older iptables cannot be seen, which is said.

What must be the same on all nodes is compared by way of a file: print it on one
node with --print-host, and give it to --compare on the other.

Exit status 0 means that the daemon would start with this configuration and that
there is no error; with --strict, that there is no warning either.`,
		Example: `  syncd check
  syncd check -c /etc/syncd/syncd.toml.new && mv /etc/syncd/syncd.toml.new /etc/syncd/syncd.toml
  ssh fw2 syncd check --print-host | syncd check --compare -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.printHost && cmd.Flags().Changed("compare") {
				return errors.New("--print-host prints what --compare reads: one of the two at most")
			}
			if cmd.Flags().Changed("compare") && o.compare == "" {
				return errors.New("--compare needs the name of a file, or - for standard input")
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.in, o.out = cmd.InOrStdin(), cmd.OutOrStdout()
			o.colour = showsColour(o.out)
			return runCheck(cmd.Context(), o)
		},
	}
	configFlag(cmd, &o.config)
	jsonFlag(cmd, &o.json)
	f := cmd.Flags()
	f.BoolVar(&o.strict, "strict", false, "fail on warnings too")
	f.BoolVar(&o.printHost, "print-host", false, "print what must be the same on all nodes, as JSON, and check nothing")
	f.StringVar(&o.compare, "compare", "", "compare with what --print-host has printed on another node, from `FILE` or - for standard input")
	return cmd
}

// showsColour reports whether w shows colours. NO_COLOR is the wish of those who do
// not want any (no-color.org).
func showsColour(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
}

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command, json *bool) {
	cmd.Flags().BoolVar(json, "json", false, "print JSON")
}

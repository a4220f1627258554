package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"syncd/internal/ctl"
)

// ctlFlags are the flags of all commands below ctl.
type ctlFlags struct {
	socket string
	json   bool
}

func newCtl() *cobra.Command {
	f := new(ctlFlags)
	group := newGroup(&cobra.Command{
		Use:   "ctl",
		Short: "Control the daemon that runs on this host",
		Long: `Control the daemon that runs on this host, over its control socket.

A command returns when what it asks for is done, and its exit status says how
that ended: 0 done, 1 failed, 2 wrong usage, 3 no daemon is running. The socket
speaks HTTP and JSON, so curl does as well:

  curl --unix-socket /run/syncd/syncd.sock http://syncd/v1/status`,
		Example: `  syncd ctl status
  syncd ctl primary
  syncd ctl dump external --json | jq .flow.original`,
	})
	group.PersistentFlags().StringVar(&f.socket, "socket", ctl.DefaultSocket,
		"`PATH` of the control socket, or @NAME of an abstract one")
	group.PersistentFlags().BoolVar(&f.json, "json", false, "print JSON")
	group.MarkPersistentFlagFilename("socket", "sock")

	group.AddCommand(
		query(f, &cobra.Command{
			Use:   "status",
			Short: "Show the state of the node",
			Long: `Show role, peers, links, caches and the kernel's table, whether this node is in
step with its peers and, when it is not, why. A role "as before the restart of
the daemon" was taken over from there, and nobody has said it since.`,
			Example: `  syncd ctl status
  syncd ctl status --json | jq -e .in_sync`,
		}, (*ctl.Client).Status, ctl.RenderStatus),
		query(f, &cobra.Command{
			Use:   "stats",
			Short: "Show all counters",
			Long: `Show all counters since the daemon started: kernel events, caches, messages,
links, commits, control socket.`,
			Example: `  syncd ctl stats
  syncd ctl stats --json | jq .sync.lost`,
		}, (*ctl.Client).Stats, ctl.RenderStats),
		newCommit(f),
		newFlush(f),
		newResync(f),
		query(f, &cobra.Command{
			Use:     "bulk",
			Short:   "Send the whole internal cache to all peers",
			Long:    `Send the whole internal cache to all peers. Live changes go on meanwhile.`,
			Example: `  syncd ctl bulk`,
		}, (*ctl.Client).Bulk, renderDone),
		query(f, &cobra.Command{
			Use:   "verify",
			Short: "Prove that this node holds what its peers have",
			Long: `Compare what this node holds of every peer with what the peer has: first with
what its messages said, then by the digests of its stream. What differs is
sent again and repaired; the report counts missing, stale and different
entries.

Run it on each node: every node verifies what it holds itself. Only the syncd
dialect has digests.`,
			Example: `  syncd ctl verify
  syncd ctl verify --json | jq -e .ok`,
		}, (*ctl.Client).Verify, ctl.RenderVerify),
		newWaitReady(f),
		newDump(f),
		newRole(f, ctl.RolePrimary, "Take over: this node becomes primary",
			`Do all that is needed when this node becomes primary, in order, and return when
the connections of the peers are in the kernel.`),
		newRole(f, ctl.RoleBackup, "Step back: this node becomes backup",
			`Do all that is needed when this node becomes backup, in order. Connections that
another node takes over leave this kernel after purge.after, unless they are
used here; what nobody takes over stays.`),
		newRole(f, ctl.RoleFault, "Note that this node has a fault",
			`Do all that is needed when a fault was found on this node, in order.`),
		query(f, &cobra.Command{
			Use:   "reload",
			Short: "Read the configuration again",
			Long: `Read the configuration and the keys again and apply what can be applied while
running. A configuration with a mistake changes nothing and is an error.`,
			Example: `  syncd ctl reload`,
		}, (*ctl.Client).Reload, renderDone),
	)
	return group
}

// query completes cmd to one that asks the daemon for a document and shows it.
func query[T any](f *ctlFlags, cmd *cobra.Command, ask func(*ctl.Client, context.Context) (*T, error),
	render func(io.Writer, *T) error) *cobra.Command {
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := ctl.Dial(f.socket)
		if err != nil {
			return err
		}
		doc, err := ask(c, cmd.Context())
		if err != nil {
			return interrupted(cmd, err)
		}
		if f.json {
			return printJSON(cmd.OutOrStdout(), doc)
		}
		return render(cmd.OutOrStdout(), doc)
	}
	return cmd
}

func newCommit(f *ctlFlags) *cobra.Command {
	var o ctl.CommitOptions
	cmd := &cobra.Command{
		Use:   "commit [--dry-run] [--peer NAME]",
		Short: "Put the external cache into the kernel",
		Long: `Put the external cache, the connections of the peers, into the kernel's table,
and report how many entries were created, updated, skipped and refused, and why.
With --dry-run only look, and report what would be done.

With takeover.mode = "instant" they are there already. They become this node's
own, and get the timeouts of their states.

On a terminal a bar shows how far the commit is. Scripts get nothing but the
report.

The exit status is 0 when the commit came to its end. Entries that the kernel
refused are in the report and do not change it.`,
		Example: `  syncd ctl commit --dry-run --peer fw2
  syncd ctl commit --json | jq .flows.refused_by_reason`,
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "change nothing, report what would be done")
	cmd.Flags().StringVar(&o.Peer, "peer", "", "commit only the connections of the peer `NAME`, as status shows it")
	return query(f, cmd, func(c *ctl.Client, ctx context.Context) (*ctl.CommitReport, error) {
		b := newBar(cmd, f)
		defer b.clear()
		o.Progress = b.progress()
		return c.Commit(ctx, o)
	}, ctl.RenderCommit)
}

func newFlush(f *ctlFlags) *cobra.Command {
	which := ctl.Both
	cmd := &cobra.Command{
		Use:   "flush [internal|external]",
		Short: "Empty the caches of the daemon",
		Long: `Empty the internal or the external cache of the daemon, or both when none is
named. The kernel's table is left alone, but for what instant takeover has put
there for the peers: it goes with the external cache.

The internal cache stays empty until it is read again (resync --kernel). In
the syncd dialect the peers give up what it held meanwhile, since they hold
exactly what is in it.`,
		Example: `  syncd ctl flush
  syncd ctl flush external`,
		ValidArgs: []string{ctl.Internal, ctl.External},
		Args:      cacheArgs(0),
		PreRun: func(_ *cobra.Command, args []string) {
			if len(args) == 1 {
				which = args[0]
			}
		},
	}
	return query(f, cmd, func(c *ctl.Client, ctx context.Context) (*ctl.Done, error) { return c.Flush(ctx, which) }, renderDone)
}

// cacheArgs wants the name of a cache, as ValidArgs lists them, or not even that.
func cacheArgs(atLeast int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		names := strings.Join(cmd.ValidArgs, " or ")
		switch {
		case len(args) < atLeast:
			return fmt.Errorf("the name of a cache is missing: %s", names)
		case len(args) > 1:
			return fmt.Errorf("one cache at most: %s", names)
		case len(args) == 1 && !slices.Contains(cmd.ValidArgs, args[0]):
			return fmt.Errorf("unknown cache %q: %s", args[0], names)
		}
		return nil
	}
}

func newResync(f *ctlFlags) *cobra.Command {
	var kernel bool
	cmd := &cobra.Command{
		Use:   "resync [--kernel]",
		Short: "Ask the peers for their state",
		Long: `Ask all peers for their whole state. With --kernel read the kernel's table again
instead, and repair the internal cache where it differs.`,
		Example: `  syncd ctl resync
  syncd ctl resync --kernel`,
	}
	cmd.Flags().BoolVar(&kernel, "kernel", false, "read the kernel's table again")
	return query(f, cmd, func(c *ctl.Client, ctx context.Context) (*ctl.Done, error) { return c.Resync(ctx, kernel) }, renderDone)
}

func newRole(f *ctlFlags, role, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   role,
		Short: short,
		Long: long + `

It is made for a notify script of keepalived, and can be repeated at will: the
same steps are done again, and a purge that runs goes on. The daemon keeps the
role over its own restart, not over one of the host. What is said while no
daemon runs is lost (exit status 3).`,
		Example: `  notify_` + keepalivedNames[role] + ` "/usr/sbin/syncd ctl ` + role + `"`,
	}
	return query(f, cmd, func(c *ctl.Client, ctx context.Context) (*ctl.RoleReport, error) {
		b := newBar(cmd, f)
		defer b.clear()
		return c.SetRole(ctx, role, b.progress())
	}, ctl.RenderRole)
}

// keepalivedNames is what keepalived calls the roles.
var keepalivedNames = map[string]string{ctl.RolePrimary: "master", ctl.RoleBackup: "backup", ctl.RoleFault: "fault"}

func newDump(f *ctlFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "dump internal|external",
		Short: "List the entries of a cache",
		Long: `List the entries of the internal cache, the connections of this node, or of the
external cache, those of the peers: one line each as conntrack(8) prints them,
with --json one JSON object a line. There is no order.

The connections that a helper expects are among them, as "conntrack -L expect"
prints them; with --json they have the member "expect" instead of "flow".`,
		Example: `  syncd ctl dump external | grep -c ESTABLISHED
  syncd ctl dump external | grep master-src=
  syncd ctl dump internal --json | jq -r '.flow // empty | .original.src' | sort | uniq -c`,
		ValidArgs: []string{ctl.Internal, ctl.External},
		Args:      cacheArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := ctl.Dial(f.socket)
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			if f.json {
				err = c.DumpLines(cmd.Context(), args[0], func(line []byte) error {
					out.Write(line)
					return out.WriteByte('\n')
				})
			} else {
				var buf []byte
				err = c.Dump(cmd.Context(), args[0], func(e *ctl.DumpEntry) error {
					buf = append(e.AppendText(buf[:0]), '\n')
					_, err := out.Write(buf)
					return err
				})
			}
			// What came before an error is shown all the same.
			return interrupted(cmd, errors.Join(err, out.Flush()))
		},
	}
}

// interrupted says so when err comes from a signal.
func interrupted(cmd *cobra.Command, err error) error {
	if err != nil && cmd.Context().Err() != nil {
		return errors.New("interrupted; what the daemon has begun it finishes")
	}
	return err
}

func renderDone(w io.Writer, d *ctl.Done) error {
	_, err := fmt.Fprintln(w, d.Message)
	return err
}

func printJSON(w io.Writer, doc any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}

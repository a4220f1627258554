package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan returns the hidden command that packaging calls. The page comes from
// the same texts as --help, so that the two cannot disagree.
func newMan(root *cobra.Command) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "man [--dir DIR]",
		Short:  "Write the manual page syncd.8",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "syncd.8"), manPage(root), 0o644); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "write to `DIR`")
	return cmd
}

// roff builds a manual page in the macros of man(7).
type roff struct{ bytes.Buffer }

// manPage returns one page about root and all commands below it.
func manPage(root *cobra.Command) []byte {
	var p roff
	p.macro("TH", "SYNCD", "8", "", "syncd "+thisBuild().Version, "System Administration")
	p.macro("SH", "NAME")
	p.text("syncd - " + strings.ToLower(root.Short[:1]) + root.Short[1:])
	p.macro("SH", "SYNOPSIS")
	walk(root, func(c *cobra.Command) {
		if !c.HasSubCommands() {
			p.macro("PP")
			p.text(c.UseLine())
		}
	})
	p.macro("SH", "DESCRIPTION")
	p.text(root.Long)
	p.macro("SH", "COMMANDS")
	walk(root, func(c *cobra.Command) {
		if c == root {
			return
		}
		p.macro("SS", c.CommandPath())
		p.text(c.Long)
		if c.HasAvailableLocalFlags() {
			p.flags(c.NonInheritedFlags())
		}
		if c.Example != "" {
			p.macro("PP")
			p.text("For example:\n\n" + c.Example)
		}
	})
	p.macro("SH", "FILES")
	p.text(defaultConfig + ", /run/syncd/syncd.sock")
	p.macro("SH", "SEE ALSO")
	p.text("conntrack(8), keepalived(8), keepalived.conf(5), conntrackd(8)")
	return p.Bytes()
}

// walk calls f for c and the commands below it that users see, except what
// comes with the command library.
func walk(c *cobra.Command, f func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	f(c)
	for _, sub := range c.Commands() {
		walk(sub, f)
	}
}

func (p *roff) macro(name string, args ...string) {
	p.WriteString("." + name)
	for _, a := range args {
		p.WriteString(` "` + strings.ReplaceAll(roffEscape(a), `"`, `\(dq`) + `"`)
	}
	p.WriteByte('\n')
}

// text writes paragraphs, which an empty line separates. An indented paragraph
// is shown as it is.
func (p *roff) text(s string) {
	for i, para := range strings.Split(s, "\n\n") {
		literal := strings.HasPrefix(para, "  ")
		if i > 0 {
			p.macro("PP")
		}
		if literal {
			p.macro("nf")
		}
		for line := range strings.SplitSeq(para, "\n") {
			line = roffEscape(line)
			if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
				line = `\&` + line // no macro
			}
			p.WriteString(line + "\n")
		}
		if literal {
			p.macro("fi")
		}
	}
}

func (p *roff) flags(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + value
		}
		if f.DefValue != "" && f.DefValue != "false" {
			usage += " (default " + f.DefValue + ")"
		}
		p.macro("TP")
		p.text(name)
		p.text(usage)
	})
}

func roffEscape(s string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
}

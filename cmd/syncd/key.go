package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"syncd/internal/seal"
)

func newKey() *cobra.Command {
	return &cobra.Command{
		Use:   "key [FILE]",
		Short: "Make a key that seals the traffic between the nodes",
		Long: `Make a random key for sync.keys and print it, or write it to FILE, which must
not exist yet and will be readable by its owner only.

All nodes of a cluster need the same key. Copy the file over a channel that
nobody else reads. To rotate, see docs/security.md.`,
		Example: "  syncd key /etc/syncd/sync.key",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := seal.NewKey().Text()
			if len(args) == 0 {
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("write key: %w", err)
			}
			_, err = f.Write(text)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return fmt.Errorf("write key %s: %w", args[0], err)
			}
			return nil
		},
	}
}

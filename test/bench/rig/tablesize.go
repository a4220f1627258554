package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// RaiseTable makes room for so many flows in the kernel's tables, with as many buckets,
// if there is less, and returns a function that puts the settings back. They are of
// the whole machine and can be set in its first network namespace only.
func RaiseTable(flows int) (restore func() error, err error) {
	const dir = "/proc/sys/net/netfilter"
	var undo []func() error
	restore = func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		undo = nil
		return errors.Join(errs...)
	}
	for _, name := range []string{"nf_conntrack_max", "nf_conntrack_buckets"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			return restore, err
		}
		old := strings.TrimSpace(string(b))
		n, err := strconv.Atoi(old)
		if err != nil {
			return restore, fmt.Errorf("%s: %w", path, err)
		}
		if n >= flows || n == 0 && name == "nf_conntrack_max" {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(flows)), 0); err != nil {
			return restore, fmt.Errorf("make room for %d flows: %w", flows, err)
		}
		undo = append(undo, func() error { return os.WriteFile(path, []byte(old), 0) })
	}
	return restore, nil
}

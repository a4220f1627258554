package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A confined process may use its share of a processor in each period, and waits for the
// next one then. Both in microseconds; the kernel takes no smaller quota.
const (
	confinePeriod = 10_000
	leastQuota    = 1_000
)

// cgroupRoot is where control groups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// Confine limits the processor time of a process, all its threads together, to a share
// of one processor, by a control group of its own (version 1 or 2, whichever has the
// controller). A process with real-time priority is not limited. release lifts the limit,
// and must be called while the process lives or when it has ended.
func Confine(name string, pid int, share float64) (release func() error, err error) {
	period := max(confinePeriod, int(leastQuota/share)+1)
	parent, quota := filepath.Join(cgroupRoot, "cpu"), int(share*float64(period))
	limits := [][2]string{{"cpu.cfs_period_us", strconv.Itoa(period)}, {"cpu.cfs_quota_us", strconv.Itoa(quota)}}
	if _, err := os.Stat(filepath.Join(parent, limits[0][0])); err != nil { // only the second version
		parent, limits = cgroupRoot, [][2]string{{"cpu.max", fmt.Sprintf("%d %d", quota, period)}}
		if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpu"), 0); err != nil {
			return nil, fmt.Errorf("limit processor time: %w", err)
		}
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("limit processor time: %w", err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
	release = func() error {
		_ = move(parent) // a process that has ended is in no group
		return os.Remove(dir)
	}
	for _, l := range limits {
		if err := os.WriteFile(filepath.Join(dir, l[0]), []byte(l[1]), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("limit processor time: %w", err), release())
		}
	}
	if err := move(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("limit processor time: %w", err), release())
	}
	return release, nil
}

// Throttled is how often a confined process has been made to wait for its next period
// so far.
func Throttled(name string) (n uint64, err error) {
	for _, parent := range []string{filepath.Join(cgroupRoot, "cpu"), cgroupRoot} {
		b, err := os.ReadFile(filepath.Join(parent, name, "cpu.stat"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "nr_throttled "); ok {
				return strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no account of the control group %s", name)
}

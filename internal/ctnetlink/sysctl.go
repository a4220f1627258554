package ctnetlink

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// sysctlDir shows the values of the network namespace of the thread that reads.
const sysctlDir = "/proc/sys/net/netfilter/"

// Events returns net.netfilter.nf_conntrack_events of the calling thread's
// network namespace: 0 no events, 1 events for every entry, 2 events for entries
// that are born while somebody listens.
func Events() (int, error) { return sysctl("nf_conntrack_events") }

// MaxEntries returns nf_conntrack_max: how many entries each network namespace
// may hold, 0 for no limit.
func MaxEntries() (int, error) { return sysctl("nf_conntrack_max") }

// Buckets returns nf_conntrack_buckets, the size of the hash table that all
// network namespaces share.
func Buckets() (int, error) { return sysctl("nf_conntrack_buckets") }

func sysctl(name string) (int, error) {
	b, err := os.ReadFile(sysctlDir + name)
	if err != nil {
		return 0, fmt.Errorf("read sysctl: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return n, nil
}

// LongTimeouts returns the timeouts of the calling thread's network namespace that are
// longer than limit, in seconds, by the names of their settings.
func LongTimeouts(limit uint32) (map[string]int, error) {
	files, err := os.ReadDir(sysctlDir)
	if err != nil {
		return nil, fmt.Errorf("read sysctls: %w", err)
	}
	long := map[string]int{}
	for _, f := range files {
		if !strings.Contains(f.Name(), "_timeout") {
			continue
		}
		switch v, err := sysctl(f.Name()); {
		case err != nil:
			return nil, err
		case v > int(limit):
			long["net.netfilter."+f.Name()] = v
		}
	}
	return long, nil
}

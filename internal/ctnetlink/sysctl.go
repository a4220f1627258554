package ctnetlink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctlDir shows the values of the network namespace of the thread that reads.
const sysctlDir = "/proc/sys/net/netfilter/"

// Severity grades a Finding.
type Severity uint8

const (
	Info    Severity = iota // as it should be, or a matter of taste
	Warning                 // works, with a gap that one should know
	Error                   // cannot work
)

func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Error:
		return "error"
	}
	return "?"
}

// Finding is what a check of the host has to say about one of its settings.
type Finding struct {
	Name     string // sysctl or capability
	Value    string // as it is
	Want     string // as it should be
	Why      string
	Severity Severity
}

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

// CheckHost tells what of the kernel's settings, in the calling thread's network
// namespace, keeps replication from working or weakens it.
func CheckHost() []Finding {
	findings := []Finding{checkCapability()}
	for _, c := range []struct {
		name  string
		judge func(v int) (want, why string, s Severity)
	}{
		{"nf_conntrack_events", judgeEvents},
		{"nf_conntrack_tcp_loose", judgeLoose},
		{"nf_conntrack_tcp_be_liberal", judgeLiberal},
	} {
		f := Finding{Name: "net.netfilter." + c.name}
		if v, err := sysctl(c.name); err != nil {
			f.Value, f.Want, f.Severity = "unreadable", "readable", Warning
			f.Why = err.Error()
			if errors.Is(err, fs.ErrNotExist) {
				f.Why = "this kernel or network namespace has no connection tracking, or its module is not loaded"
			}
		} else {
			f.Value = strconv.Itoa(v)
			f.Want, f.Why, f.Severity = c.judge(v)
		}
		findings = append(findings, f)
	}
	return findings
}

func judgeEvents(v int) (want, why string, s Severity) {
	switch v {
	case 0:
		return "1", "the kernel tells nothing about new connections, so none is replicated", Error
	case 1:
		return "1", "the kernel tells about every connection", Info
	}
	return "1", "connections that begin before the daemon listens are never told about as long as they live", Warning
}

func judgeLoose(v int) (want, why string, s Severity) {
	if v == 0 {
		return "0", "packets of unknown connections are invalid until the connection is restored", Info
	}
	return "0", "a packet of a connection that is not restored yet makes an entry of its own, perhaps in the wrong direction and without its translation, which is in the way of the restored one", Info
}

func judgeLiberal(v int) (want, why string, s Severity) {
	if v == 0 {
		return "0", "windows are checked, restored connections are exempted one by one", Info
	}
	return "0", "no connection has its TCP windows checked", Info
}

// checkCapability looks at the effective set of the calling thread.
func checkCapability() Finding {
	f := Finding{Name: "CAP_NET_ADMIN", Value: "present", Want: "present", Severity: Info, Why: "needed to listen to and change conntrack entries"}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		f.Value, f.Severity = "missing", Error
	}
	return f
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

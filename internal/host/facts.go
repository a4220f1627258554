package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what was read from the host. A part that could not be read says why.
type Facts struct {
	Kernel  string // release
	Sysctls map[string]Reading
	Count   Reading // nf_conntrack_count
	Expects Reading // expectations in the table

	Admin      Reading // "present" or "missing": CAP_NET_ADMIN of this process
	Raw        Reading // the same of CAP_NET_RAW
	Modules    map[string]Support
	Buffers    Buffers
	Interfaces map[string]Interface
	Addresses  []string // of all interfaces
	Rules      Ruleset

	// From here on the caller's: it knows how to ask.
	Daemon    Daemon
	Ctnetlink error // of a request for the statistics of the kernel's table

	// LinkErrs says of each link of the setup why its sockets could not be opened, as
	// the daemon opens them; "" where they could, nil where it was not tried.
	LinkErrs []string
}

// Reading is a value, or why there is none.
type Reading struct {
	Value   string
	Missing bool   // there is no such thing on this kernel
	Err     string // why it could not be read
}

func (r Reading) ok() bool { return r.Err == "" && !r.Missing }

// Daemon is what a daemon that runs on this node says. Without one Peers is empty
// and None says why.
type Daemon struct {
	Peers []Peer
	None  string
}

// Peer is another node as the daemon knows it.
type Peer struct {
	Name  string
	Flows uint64 // that it has, as far as it has told
}

// Read reads the facts that do not need a daemon's own code: the last ones are
// the caller's. It never fails; what could not be read is in the facts.
func Read(ctx context.Context, s *Setup) *Facts {
	f := &Facts{Sysctls: readSysctls(procSys)}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		f.Kernel = strings.TrimSpace(string(b))
	}
	f.Count = readFile(filepath.Join(procSys, "net/netfilter/nf_conntrack_count"))
	f.Expects = countLines("/proc/thread-self/net/nf_conntrack_expect")
	f.Admin, f.Raw = readCapability(unix.CAP_NET_ADMIN), readCapability(unix.CAP_NET_RAW)
	f.Rules = readRuleset(ctx)
	f.Modules = readModules(f.Kernel, wantedModules(f, s))
	f.Buffers = probeBuffers(s)
	f.Interfaces, f.Addresses = readInterfaces()
	f.Rules.Index = make(map[string]int)
	for name, ifi := range f.Interfaces {
		f.Rules.Index[name] = ifi.Index
	}
	return f
}

// readFile returns the content of a file without the space around it.
func readFile(path string) Reading {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Reading{Missing: true}
	case err != nil:
		return Reading{Err: err.Error()}
	}
	return Reading{Value: strings.TrimSpace(string(b))}
}

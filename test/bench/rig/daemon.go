package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// Kind is what is measured.
type Kind string

const (
	Sealed     Kind = "syncd"         // syncd in its own dialect, sealed, with digests
	Plain      Kind = "syncd-plain"   // syncd in conntrackd's dialect
	Instant    Kind = "syncd-instant" // syncd in its own dialect, with instant takeover
	Conntrackd Kind = "conntrackd"    // Debian's
)

// Kinds are those that are held against one another.
var Kinds = []Kind{Sealed, Plain, Conntrackd}

// ParseKinds reads a list of kinds, separated by commas.
func ParseKinds(list string) (kinds []Kind, err error) {
	for k := range strings.SplitSeq(list, ",") {
		if !slices.Contains(Kinds, Kind(k)) && Kind(k) != Instant {
			return nil, fmt.Errorf("%q is none of %v, %s", k, Kinds, Instant)
		}
		kinds = append(kinds, Kind(k))
	}
	return kinds, nil
}

// Settings are what daemons are given beyond their defaults.
type Settings struct {
	Flows int // that fit into a cache

	// Shipped leaves conntrackd the socket buffers of Debian's example, 2 MiB that
	// grow to 8 MiB. Else it gets those that syncd has by default.
	Shipped bool

	// Ordinary takes conntrackd's real-time priority away by its configuration, and gives it
	// the nice value that syncd has.
	Ordinary bool

	Extra string // more of syncd's configuration: tables
	Env   []string
}

// Daemon is one that runs on a node.
type Daemon struct {
	Kind Kind
	Node *lab.Node
	PID  int

	proc   *lab.Process
	config string // file
	socket string
	log    string
	client *ctl.Client // of syncd
	stats  func(context.Context) (*ctl.Stats, error)
}

// niceness is that of deploy/systemd/syncd.service. conntrackd takes a real-time priority
// by itself.
const niceness = "-5"

// Start starts a daemon on A (0) or B (1) and waits until it answers.
func (r *Rig) Start(kind Kind, which int, s Settings) (*Daemon, error) {
	node := []*lab.Node{r.A, r.B}[which]
	r.next++
	base := filepath.Join(r.dir, fmt.Sprintf("%s-%d", node.Name(), r.next))
	d := &Daemon{Kind: kind, Node: node, config: base + ".conf", socket: base + ".sock", log: base + ".log"}
	text, args, name := r.syncdConfig(d, which, s), []string{"-n", niceness, r.bin, "run", "-c", d.config}, "nice"
	if kind == Conntrackd {
		var err error
		if name, err = exec.LookPath("conntrackd"); err != nil {
			return nil, fmt.Errorf("conntrackd is not installed (make peers installs it): %w", err)
		}
		text, args = conntrackdConfig(d, which, s, base), []string{"-C", d.config}
		if s.Ordinary {
			name, args = "nice", append([]string{"-n", niceness, name}, args...)
		}
	} else {
		var err error
		if d.client, err = ctl.Dial(d.socket); err != nil {
			return nil, err
		}
		d.stats = keptAlive(d.socket)
	}
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := node.Command(name, args...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as a service has: see autogroup in sched(7)
	cmd.Env = append(os.Environ(), s.Env...)
	if d.proc, err = node.Start(cmd); err != nil {
		return nil, err
	}
	d.PID = d.proc.Cmd.Process.Pid
	if kind == Conntrackd && s.Ordinary {
		// syncd gives its session the nice value by itself. Where there are no groups there
		// is no such file.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", d.PID), []byte(niceness), 0)
	}
	return d, Wait(20*time.Second, fmt.Sprintf("%s on %s answers", kind, node.Name()), func() (bool, error) {
		select {
		case <-d.proc.Done():
			return false, fmt.Errorf("%s on %s ended: %v\n%s", kind, node.Name(), d.proc.Wait(), d.Log())
		default:
		}
		_, err := d.Counters()
		return err == nil, nil
	})
}

func (r *Rig) syncdConfig(d *Daemon, which int, s Settings) string {
	dialect := fmt.Sprintf("keys = [%q]", r.key)
	if d.Kind == Plain {
		dialect = "wire = \"conntrackd\"\ninsecure = true"
	}
	extra := s.Extra
	if d.Kind == Instant {
		extra += "\n[takeover]\nmode = \"instant\""
	}
	return fmt.Sprintf(`[node]
name = %q
socket = %q
state_dir = ""
[sync]
%s
%s
[[link]]
type = "udp"
interface = %q
local = %q
peers = [%q]
port = %d
`, d.Node.Name(), d.socket, dialect, extra, IfSync, syncAddrs[which].Addr(), syncAddrs[1-which].Addr(), syncPort)
}

// Stop ends the daemon.
func (d *Daemon) Stop() error { return d.proc.Stop(10 * time.Second) }

// Kill ends the daemon at once, as a machine that loses power does, and waits for that.
func (d *Daemon) Kill() {
	d.proc.Kill()
	<-d.proc.Done()
}

// Socket is the control socket of a syncd.
func (d *Daemon) Socket() string { return d.socket }

// Config is the file of the daemon's configuration.
func (d *Daemon) Config() string { return d.config }

// Log returns the end of what the daemon has logged.
func (d *Daemon) Log() string {
	b, _ := os.ReadFile(d.log) // nothing is said where there is nothing
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Counters are what both kinds of daemon tell of themselves.
type Counters struct {
	Events   uint64 // read from the kernel
	Overruns uint64 // episodes in which the kernel dropped events

	// What messages did to the external cache.
	Created, Updated, Deleted uint64
}

// Messages is how many messages changed the external cache.
func (c Counters) Messages() uint64 { return c.Created + c.Updated + c.Deleted }

// Counters asks the daemon for its counters, over its control socket.
func (d *Daemon) Counters() (c Counters, err error) {
	if d.Kind == Conntrackd {
		return d.conntrackdCounters()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := d.stats(ctx)
	if err != nil {
		return c, err
	}
	return Counters{
		Events: s.Events.Received, Overruns: s.Events.Overruns,
		Created: s.External.Created, Updated: s.External.Updated, Deleted: s.External.Deleted,
	}, nil
}

// Entries returns how many live flows the caches hold.
func (d *Daemon) Entries() (internal, external uint64, err error) {
	if d.Kind == Conntrackd {
		return d.conntrackdEntries()
	}
	s, err := d.Status()
	if err != nil {
		return 0, 0, err
	}
	return s.Internal.Entries, s.External.Entries, nil
}

// Status returns the status of a syncd.
func (d *Daemon) Status() (*ctl.Status, error) { return d.client.Status(context.Background()) }

// Client is the control socket of a syncd.
func (d *Daemon) Client() *ctl.Client { return d.client }

// InStep reports whether a syncd says that it is in step with its peer; of a
// conntrackd it is true always, since it does not say.
func (d *Daemon) InStep() (bool, error) {
	if d.Kind == Conntrackd {
		return true, nil
	}
	s, err := d.Status()
	return err == nil && s.InSync, err
}

// Wait waits until cond holds, with an error after the timeout.
func Wait(timeout time.Duration, what string, cond func() (bool, error)) error {
	for begin := time.Now(); ; {
		ok, err := cond()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case ok:
			return nil
		case time.Since(begin) > timeout:
			return fmt.Errorf("after %v still not so: %s", timeout, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

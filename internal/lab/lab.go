package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netns"
)

const (
	netnsDir = "/run/netns" // where ip-netns(8) keeps named namespaces
	filesDir = "/run"       // where labs keep files: root's alone, and with short paths for sockets

	filesSuffix = "files" // after the name of a lab: its directory in filesDir
)

// instances numbers the labs of this process.
var instances atomic.Int64

// Lab is a set of nodes that live and die together.
type Lab struct {
	name string // "<prefix><pid>-<n>-": every namespace name begins so

	mu        sync.Mutex
	closed    bool
	nodes     []*Node
	processes []*Process
	spawner   *thread // parent of all processes; nil until the first starts
	dir       string  // empty until somebody asks
}

// Usable returns nil if this process may build a lab, and otherwise says what is
// missing.
func Usable() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	}
	ns, err := onThread(func() (netns.NsHandle, error) { return netns.New() })
	if err != nil {
		return fmt.Errorf("create a network namespace: %w", err)
	}
	return ns.Close()
}

// New returns an empty lab. Its namespaces are called <prefix><pid>-<n>-<node>;
// a prefix ends in a hyphen, for example "syncd-lab-".
func New(prefix string) (*Lab, error) {
	if prefix == "" || strings.ContainsRune(prefix, '/') {
		return nil, fmt.Errorf("lab: %q is no prefix for namespace names", prefix)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("lab: %w", os.ErrPermission)
	}
	return &Lab{name: fmt.Sprintf("%s%d-%d-", prefix, os.Getpid(), instances.Add(1))}, nil
}

// Close kills all processes of the lab, waits for them, and removes all its
// namespaces. It goes on after an error and returns all of them. A second call
// does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	nodes, processes, spawner, dir := l.nodes, l.processes, l.spawner, l.dir
	l.nodes, l.processes, l.spawner = nil, nil, nil
	l.mu.Unlock()

	var errs []error
	for _, p := range processes {
		p.Kill()
	}
	for _, p := range processes {
		<-p.Done()
	}
	// Only now: the death of this thread kills what it is the parent of.
	if spawner != nil {
		spawner.stop()
	}
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	if dir != "" {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// Dir returns a directory for configurations, sockets and logs of the programs in
// the lab. It goes with the lab.
func (l *Lab) Dir() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return "", fmt.Errorf("lab: directory: %w", os.ErrClosed)
	}
	if l.dir == "" {
		dir := filepath.Join(filesDir, l.name+filesSuffix)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", fmt.Errorf("lab: %w", err)
		}
		l.dir = dir
	}
	return l.dir, nil
}

// Sweep removes the namespaces and directories that labs with this prefix have
// left behind in processes that are no longer alive, and returns their names.
func Sweep(prefix string) ([]string, error) {
	var swept []string
	var errs []error
	for _, place := range [...]struct {
		dir    string
		remove func(name string) error
	}{
		{netnsDir, removeName},
		{filesDir, func(name string) error { return os.RemoveAll(filepath.Join(filesDir, name)) }},
	} {
		entries, err := os.ReadDir(place.dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("lab: sweep: %w", err))
		}
		for _, e := range entries {
			pid, ok := ownerOf(e.Name(), prefix)
			if !ok || alive(pid) {
				continue
			}
			if err := place.remove(e.Name()); err != nil {
				errs = append(errs, err)
				continue
			}
			swept = append(swept, e.Name())
		}
	}
	return swept, errors.Join(errs...)
}

// ownerOf returns the process that a namespace called name belongs to, if it is
// one of a lab with this prefix.
func ownerOf(name, prefix string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	pidText, rest, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	instance, _, ok := strings.Cut(rest, "-")
	if _, err := strconv.ParseUint(instance, 10, 63); !ok || err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(pidText, 10, 31)
	return int(n), err == nil && n > 0
}

// alive reports whether a process has this number. A number that was given to
// another process since then counts as alive: leftovers wait for a later sweep.
func alive(pid int) bool {
	return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// removeName unbinds the name of a namespace. The namespace itself goes when the
// last socket and process in it are gone.
func removeName(name string) error {
	path := filepath.Join(netnsDir, name)
	// A crash between creating the file and binding it leaves a plain file.
	err := syscall.Unmount(path, syscall.MNT_DETACH)
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("lab: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lab: remove: %w", err)
	}
	return nil
}

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
	"syncd/internal/seal"
)

// daemonConfig is the configuration of one node.
var daemonConfig = template.Must(template.New("").Parse(`[node]
name = "{{.Name}}"
socket = "{{.Socket}}"
state_dir = ""

[sync]
mode = "ftfw"
keys = ["{{.Key}}"]

[[link]]
type = "udp"
interface = "` + lab.IfSync + `"
local = "{{.Local}}"
peers = ["{{.Peer}}"]
port = 3780
`))

// daemon is syncd on one firewall.
type daemon struct {
	name    string
	log     string // file with its output
	process *lab.Process
	client  *ctl.Client
}

// startDaemon starts `syncd run` inside a firewall. Files go to dir.
func startDaemon(n *lab.Node, dir, executable string, local, peer netip.Addr) (*daemon, error) {
	d := &daemon{name: n.Name(), log: filepath.Join(dir, n.Name()+".log")}
	socket := filepath.Join(dir, n.Name()+".sock")
	key := filepath.Join(dir, "sync.key")
	if err := writeKey(key); err != nil {
		return nil, err
	}
	var config bytes.Buffer
	err := daemonConfig.Execute(&config, map[string]any{"Name": n.Name(), "Socket": socket, "Key": key, "Local": local, "Peer": peer})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, n.Name()+".toml")
	if err := os.WriteFile(file, config.Bytes(), 0o600); err != nil {
		return nil, err
	}
	if d.client, err = ctl.Dial(socket); err != nil {
		return nil, err
	}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the daemon has its own copy
	cmd := n.Command(executable, "run", "-c", file)
	cmd.Stdout, cmd.Stderr = log, log
	d.process, err = n.Start(cmd)
	return d, err
}

// writeKey makes the key of the nodes, unless it is there already.
func writeKey(file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	return os.WriteFile(file, seal.NewKey().Text(), 0o600)
}

// errEnded: a daemon that should run has ended.
var errEnded = errors.New("it has ended")

// ended returns an error with the end of the log if the daemon runs no longer.
func (d *daemon) ended() error {
	select {
	case <-d.process.Done():
	default:
		return nil
	}
	b, _ := os.ReadFile(d.log)
	const most = 2000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return fmt.Errorf("syncd on %s: %w (%v); its last words:\n%s", d.name, errEnded, d.process.Wait(), bytes.TrimSpace(b))
}

// status returns nil without an error while the daemon does not answer yet.
func (d *daemon) status(ctx context.Context) (*ctl.Status, error) {
	s, err := d.client.Status(ctx)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, ctl.ErrNoDaemon), errors.Is(err, ctl.ErrNotReady):
		return nil, d.ended()
	}
	return nil, fmt.Errorf("status of %s: %w", d.name, err)
}

// setRole tells the daemon its role, as a keepalived notify script does, and
// returns what that did and how long it took.
func (d *daemon) setRole(ctx context.Context, role string) (*ctl.RoleReport, time.Duration, error) {
	begin := time.Now()
	r, err := d.client.SetRole(ctx, role, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("%s on %s: %w", role, d.name, err)
	}
	return r, time.Since(begin), nil
}

// inStep reports whether the standby knows all flows of the active node, at least so
// many, and can prove it. have is how many it knows.
func inStep(active, standby *ctl.Status, atLeast int) (have int, ok bool) {
	have = int(standby.External.Entries)
	return have, have >= atLeast && standby.External.Entries == active.Internal.Entries && standby.InSync
}

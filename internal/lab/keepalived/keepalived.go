// Package keepalived runs keepalived on the firewalls of a lab.Pair, with the
// configuration that operators start from (deploy/keepalived/keepalived.conf), in
// which nothing but names, addresses and what is notified is replaced.
//
// It knows no replication daemon: what the notify lines call is handed in.
package keepalived

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"syncd/internal/lab"
)

// command is what the notify lines of the example call, with the role behind it.
const command = "/usr/sbin/syncd ctl"

// Config returns the configuration of firewall 1 or 2 of a pair, made from the text of
// the example. notify is what the notify lines run, with the role as one more argument:
// primary, backup or fault. Firewall 1 has the higher priority.
func Config(example string, fw *lab.Node, number int, notify string) (string, error) {
	name, own, peer := fw.Name(), fmt.Sprint(1+number), fmt.Sprint(4-number)
	r := []string{
		"eth0", lab.IfOutside, "eth1", lab.IfInside,
		"198.51.100.1/24", "203.0.113.1/24", "198.51.100.2", "203.0.113." + own, "198.51.100.3", "203.0.113." + peer,
		"192.0.2.1/24", "198.51.100.1/24",
		"2001:db8:0::1/64", "2001:db8:2::1/64", "2001:db8:0::2", "2001:db8:2::" + own, "2001:db8:0::3", "2001:db8:2::" + peer,
		command, notify,
		"router_id fw1", "router_id " + name,
	}
	if number == 2 {
		r = append(r, "priority 100", "priority 90")
	}
	for i := 0; i < len(r); i += 2 {
		if !strings.Contains(example, r[i]) {
			return "", fmt.Errorf("keepalived: the example does not say %q any more", r[i])
		}
	}
	// One pass over the text: what has been replaced is not looked at again.
	return strings.NewReplacer(r...).Replace(example), nil
}

// Release takes the virtual addresses, which a new pair has on its first firewall, away
// from it: from here on they are keepalived's.
func Release(p *lab.Pair) error {
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		for _, v := range []struct {
			ifname string
			addr   netip.Addr
		}{{lab.IfInside, a.InsideVIP}, {lab.IfOutside, a.OutsideVIP}} {
			if err := p.FW1.DelAddr(v.ifname, netip.PrefixFrom(v.addr, v.addr.BitLen())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Daemon is a keepalived on a node. The zero value is none.
type Daemon struct {
	Conf, Log string // files

	node *lab.Node
	proc *lab.Process
}

// New returns a keepalived, not started yet, whose files are in dir, which must not be
// below a folder that others than root may write to: it would not run scripts then.
func New(node *lab.Node, dir, config string) (*Daemon, error) {
	d := &Daemon{node: node, Conf: filepath.Join(dir, node.Name()+".keepalived.conf"), Log: filepath.Join(dir, node.Name()+".keepalived.log")}
	return d, os.WriteFile(d.Conf, []byte(config), 0o600)
}

// Start starts it.
func (d *Daemon) Start() error {
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own copy
	cmd := d.node.Command("keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp",
		"-f", d.Conf, "-p", d.Conf+".pid", "-r", d.vrrpPID())
	cmd.Stdout, cmd.Stderr = log, log
	d.proc, err = d.node.Start(cmd)
	return err
}

// Stop ends it as systemd does.
func (d *Daemon) Stop() error { return d.proc.Stop(10 * time.Second) }

// Kill ends both of its processes at once, as a machine that loses power does: it tells
// nobody and runs no script.
func (d *Daemon) Kill() error {
	child, err := d.child()
	if err != nil {
		return err
	}
	d.proc.Kill() // first: it would start another child
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill keepalived's process %d: %w", child, err)
	}
	<-d.proc.Done()
	return nil
}

// vrrpPID is the file with the number of the child that speaks VRRP.
func (d *Daemon) vrrpPID() string { return d.Conf + ".vrrp.pid" }

func (d *Daemon) child() (pid int, err error) {
	b, err := os.ReadFile(d.vrrpPID())
	if err != nil {
		return 0, err
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s: %q is no process", d.vrrpPID(), b)
	}
	return pid, nil
}

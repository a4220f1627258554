// Package deploy holds what is installed beside the program. Its tests hold the
// files against the programs that read them.
package deploy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// need skips without a program, or root, that a check takes; on CI nothing may be
// skipped.
func need(t *testing.T, root bool, programs ...string) {
	t.Helper()
	missing := ""
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing += " " + p
		}
	}
	if root && os.Geteuid() != 0 {
		missing += " root"
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("missing:%s", missing)
	default:
		t.Skipf("missing:%s", missing)
	}
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// namespace makes a network namespace with a pair of interfaces and returns its
// name.
func namespace(t *testing.T) string {
	t.Helper()
	ns := fmt.Sprintf("syncd-cf-%d", os.Getpid())
	for _, args := range [][]string{
		{"netns", "add", ns},
		{"-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"},
	} {
		if err := run("ip", args...); err != nil {
			t.Fatal(err)
		}
		if args[0] == "netns" {
			t.Cleanup(func() {
				if err := run("ip", "netns", "del", ns); err != nil {
					t.Error(err)
				}
			})
		}
	}
	return ns
}

// altered writes a copy of a file with old replaced by new in its text.
func altered(t *testing.T, file, old, new string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("%s does not contain %q", file, old)
	}
	copied := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(copied, []byte(strings.ReplaceAll(string(b), old, new)), 0o644); err != nil {
		t.Fatal(err)
	}
	return copied
}

func TestKeepalived(t *testing.T) {
	need(t, true, "keepalived", "ip")
	const file = "keepalived/keepalived.conf"
	ns := namespace(t)
	check := func(file string) error {
		return run("ip", "netns", "exec", ns, "keepalived", "--config-test", "-f", file)
	}
	if err := check(file); err != nil {
		t.Error(err)
	}
	if check(altered(t, file, "nopreempt", "nopreemt")) == nil {
		t.Error("keepalived accepts a typing error, so the check is worth nothing")
	}
}

func TestNftables(t *testing.T) {
	need(t, true, "nft", "ip")
	const file = "nftables/sync-link.nft"
	ns := namespace(t)
	load := func(file string) error { return run("ip", "netns", "exec", ns, "nft", "-f", file) }
	if err := run("ip", "netns", "exec", ns, "nft", "-c", "-f", file); err != nil {
		t.Error(err)
	}
	for range 2 { // loading it again must replace it
		if err := load(file); err != nil {
			t.Error(err)
		}
	}
	out, err := exec.Command("ip", "netns", "exec", ns, "nft", "list", "table", "inet", "syncd_link").Output()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), "notrack"); n != 2 {
		t.Errorf("%d notrack rules, want one for each way:\n%s", n, out)
	}
	if load(altered(t, file, "notrack", "notrak")) == nil {
		t.Error("nft accepts a typing error, so the check is worth nothing")
	}
}

func TestUnit(t *testing.T) {
	need(t, false, "systemd-analyze")
	const file, program = "systemd/syncd.service", "/usr/sbin/syncd"
	// The program need not be installed where the unit is checked.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	verify := func(file string) error { return run("systemd-analyze", "verify", "--man=no", file) }
	unit := altered(t, file, program, self)
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if verify(altered(t, file, program, "/nonexistent")) == nil {
		t.Error("systemd-analyze accepts a missing program, so the check is worth nothing")
	}
	// 0 is fully confined, 10 not at all. A daemon that needs CAP_NET_ADMIN and
	// AF_NETLINK cannot do much better than this.
	if err := run("systemd-analyze", "security", "--offline=true", "--threshold=25", unit); err != nil {
		t.Error(err)
	}
}

// The drop-in tells the role by where the virtual address is, as long as that changes.
func TestRole(t *testing.T) {
	need(t, true, "ip", "systemd-analyze")
	const file, key = "keepalived/role.conf", "ExecStartPost=-/bin/sh -c "
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, line, found := strings.Cut(string(b), key)
	line, _, _ = strings.Cut(line, "\n")
	script, quoted := strings.CutPrefix(strings.TrimSuffix(line, "'"), "'")
	if !found || !quoted {
		t.Fatalf("%s has no %s'…'", file, key)
	}
	ns := namespace(t)
	dir := t.TempDir()
	told := filepath.Join(dir, "told")
	ip := func(what string) string { return "ip -n " + ns + " address " + what + " 198.51.100.1/24 dev eth0" }
	// say runs the script beside a syncd that does something else too.
	say := func(also string) (roles string, err error) {
		os.Remove(told)
		syncd := filepath.Join(dir, "syncd")
		stub := "#!/bin/sh\necho $* >>" + told + "\n" + also + "\n"
		if err := os.WriteFile(syncd, []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
		sh := strings.NewReplacer("$$", "$", "/usr/sbin/syncd", syncd).Replace(script)
		err = run("ip", "netns", "exec", ns, "env", "VIRTUAL_ADDRESS=198.51.100.1", "/bin/sh", "-c", sh)
		b, _ := os.ReadFile(told)
		return string(b), err
	}
	for _, tt := range []struct{ name, also, want string }{
		{"without the address", "", "ctl backup\n"},
		{"the address comes", "[ $2 = primary ] || " + ip("add"), "ctl backup\nctl primary\n"},
		{"with the address", "", "ctl primary\n"},
		{"the address goes", "[ $2 = backup ] || " + ip("del"), "ctl primary\nctl backup\n"},
	} {
		if got, err := say(tt.also); err != nil || got != tt.want {
			t.Errorf("%s: told %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	if got, err := say("exit 3"); err == nil || got != "ctl backup\n" {
		t.Errorf("no daemon runs: told %q, %v", got, err)
	}

	// systemd takes it as it is.
	units := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(units, "syncd.service")
	text, err := os.ReadFile(altered(t, "systemd/syncd.service", "/usr/sbin/syncd", self))
	if err == nil {
		err = errors.Join(os.WriteFile(unit, text, 0o644), os.Mkdir(unit+".d", 0o755), os.WriteFile(unit+".d/role.conf", b, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if err := os.WriteFile(unit+".d/role.conf", []byte(strings.ReplaceAll(string(b), "'", "")+"\""), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err == nil && len(out) == 0 {
		t.Error("systemd-analyze does not read the drop-in, so the check is worth nothing")
	}
}

// What the files say about the same thing is the same.
func TestFilesAgree(t *testing.T) {
	for file, words := range map[string][]string{
		"systemd/syncd.service":      {"/usr/sbin/syncd run -c /etc/syncd/syncd.toml", "60-syncd.conf"},
		"keepalived/role.conf":       {"198.51.100.1", "/usr/sbin/syncd ctl"},
		"keepalived/keepalived.conf": {"198.51.100.1/24", `"/usr/sbin/syncd ctl primary"`, `"/usr/sbin/syncd ctl backup"`, `"/usr/sbin/syncd ctl fault"`},
		"sysctl.d/60-syncd.conf":     {"nf_conntrack_events = 1\n", "nf_conntrack_tcp_loose = 0\n"},
		"nftables/sync-link.nft":     {`link_interface = "eth2"`, "link_port = 3780", "203.0.113.2"},
		"../configs/syncd.toml":      {`interface = "eth2"`, "port = 3780", `peers = ["203.0.113.2"]`},
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range words {
			if !strings.Contains(string(b), w) {
				t.Errorf("%s does not say %q", file, w)
			}
		}
	}
}

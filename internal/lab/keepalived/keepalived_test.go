package keepalived

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"syncd/internal/lab"
	"syncd/internal/lab/labtest"
)

func example(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../../deploy/keepalived/keepalived.conf")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A killed keepalived is gone with its child, and runs no script any more; what it ran at
// the start got the role.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for VRRP")
	}
	if _, err := exec.LookPath("keepalived"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("keepalived is not installed (make peers installs it)")
	}
	p := labtest.Pair(t)
	if err := Release(p); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", "syncd-keepalived-") // others may write to /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	told := filepath.Join(dir, "told")
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" >>"+told+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := Config(example(t), p.FW2, 2, script)
	if err != nil {
		t.Fatal(err)
	}
	for _, not := range []string{"eth0", "eth1", command, "priority 100"} {
		if strings.Contains(config, not+"\n") || strings.Contains(config, not+" ") {
			t.Errorf("the configuration of the second node says %q", not)
		}
	}
	d, err := New(p.FW2, dir, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	roles := func() string {
		b, _ := os.ReadFile(told)
		return strings.Join(strings.Fields(string(b)), " ")
	}
	for begin := time.Now(); !strings.HasSuffix(roles(), "primary"); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 15*time.Second {
			b, _ := os.ReadFile(d.Log)
			t.Fatalf("after %v the script was told %q\n%s", time.Since(begin), roles(), b)
		}
	}
	before := roles()
	pid, err := d.child()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	// A child that nobody has waited for yet has no command line any more.
	if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); err == nil && len(b) > 0 {
		t.Errorf("the child %d lives: %q", pid, b)
	}
	if now := roles(); now != before {
		t.Errorf("after its death the script was told %q", now)
	}
}

func TestExampleChanged(t *testing.T) {
	_, err := Config(strings.ReplaceAll(example(t), "eth1", "lan"), &lab.Node{}, 1, "x")
	if err == nil || !strings.Contains(err.Error(), `"eth1"`) {
		t.Errorf("error %v", err)
	}
}

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"syncd/internal/seal"
)

// Keys are rotated by reloads while flows come and go: no step loses a datagram or
// the proof of being in step.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, multicast6, "")
	old, fresh := c.keys[0], c.newKey("fresh")
	busy := make(chan error, 1)
	var both errgroup.Group
	both.Go(func() error { return churn(t, c.kernels[0], 0, 400, 9*time.Second) })
	both.Go(func() error { return churn(t, c.kernels[1], 20000, 200, 9*time.Second) })
	go func() { busy <- both.Wait() }()
	inStep := func(d time.Duration) {
		t.Helper()
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
			for _, f := range c.fws {
				if s := f.Status(); !s.InSync {
					t.Errorf("%s is not in step: %v", f.node.Name(), s.Problems)
					return
				}
			}
		}
	}
	inStep(500 * time.Millisecond)
	for step, keys := range [][]string{{old, fresh}, {fresh, old}, {fresh}} {
		c.keys = keys
		for i, f := range c.fws {
			f.write(c.config(f, i))
			if i == 0 { // as systemctl reload does
				lines := strings.Count(f.Log(), "configuration read again")
				ok(t, f.proc.Cmd.Process.Signal(syscall.SIGHUP))
				waitFor(t, 5*time.Second, "the reload is done", func() bool { return strings.Count(f.Log(), "configuration read again") > lines })
			} else {
				done, err := f.ctl.Reload(context.Background())
				ok(t, err)
				says(t, done.Message, "in force now: sync.keys")
			}
			inStep(200 * time.Millisecond) // between one node and the next, too
		}
		t.Logf("step %d is done on all nodes", step+1)
		inStep(time.Second)
	}
	ok(t, <-busy)
	c.equal(3*time.Second, "after the rotation")
	c.inStep(5 * time.Second)
	for _, f := range c.fws {
		s := f.Stats().Sync
		if s.DigestsDiffered != 0 || s.Refused["old"] != 0 {
			t.Errorf("%s: %d digests differed, refused %v", f.node.Name(), s.DigestsDiffered, s.Refused)
		}
	}
	c.verified()
	c.clean()

	// A reload with a bad key file changes nothing.
	ok(t, os.Chmod(fresh, 0o644))
	if _, err := c.fws[0].ctl.Reload(context.Background()); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("reload with a key that all can read: %v", err)
	}
	create(t, c.kernels[0], 40000, 40100)
	c.equal(3*time.Second, "after the refused reload")
	c.inStep(5 * time.Second)
}

// Nodes with different keys exchange nothing, and say so.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, udp4, "")
	c.start(0)
	own := c.keys
	c.keys = []string{c.newKey("other")}
	c.start(1)
	create(t, c.kernels[0], 0, 1000)
	create(t, c.kernels[1], 1000, 2000)
	waitFor(t, 10*time.Second, "datagrams are refused", func() bool {
		return c.fws[0].Stats().Sync.Refused["key"] >= 3 && c.fws[1].Stats().Sync.Refused["key"] >= 3
	})
	for _, f := range c.fws {
		s := f.Status()
		t.Logf("%s: %v", f.node.Name(), s.Problems)
		if s.InSync || len(s.Peers) != 0 || s.External.Entries != 0 || s.ProvenAgeS != 0 {
			t.Errorf("%s, with another key than its peer: %+v", f.node.Name(), s)
		}
		says(t, strings.Join(s.Problems, "\n"), "no peer has been heard yet")
	}
	// The right key, and all is well.
	c.keys = own
	c.fws[1].write(c.config(c.fws[1], 1))
	_, err := c.fws[1].ctl.Reload(context.Background())
	ok(t, err)
	c.equal(5*time.Second, "with the same key")
	c.inStep(5 * time.Second)
}

// A key file that cannot be used ends the start with a word of what to do.
func TestBadKeyFile(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, udp4, "")
	good := c.newKey("good")
	text, err := os.ReadFile(good)
	ok(t, err)
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(c.dir, name)
		ok(t, os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
		return path
	}
	foreign := write("foreign", string(text), 0o600)
	ok(t, os.Chown(foreign, 12345, 0))
	pipe := filepath.Join(c.dir, "pipe")
	ok(t, syscall.Mkfifo(pipe, 0o600))
	for _, tt := range []struct {
		name  string
		keys  []string
		words []string
	}{
		{"missing", []string{filepath.Join(c.dir, "none")}, []string{"none", "no such file"}},
		{"readable by all", []string{write("open", string(text), 0o644)}, []string{"0644", "chmod 0600"}},
		{"writable by a group", []string{write("group", string(text), 0o620)}, []string{"0620", "chmod 0600"}},
		{"of another user", []string{foreign}, []string{"user 12345", "chown root"}},
		{"a directory", []string{c.dir}, []string{"no regular file"}},
		{"a pipe", []string{pipe}, []string{"no regular file"}},
		{"empty", []string{write("empty", "", 0o600)}, []string{"empty"}},
		{"a passphrase", []string{write("phrase", "correct horse battery staple\n", 0o600)}, []string{"phrase", "syncd-key-1"}},
		{"too short", []string{write("short", "syncd-key-1 c2hvcnQ=\n", 0o600)}, []string{"short", "32"}},
		{"twice the same", []string{good, good}, []string{"sync.keys", "twice"}},
		{"twice the same key", []string{good, write("copy", string(text), 0o600)}, []string{"sync.keys", "same"}},
		{"the second one missing", []string{good, filepath.Join(c.dir, "none")}, []string{"none", "no such file"}},
	} {
		f := newFirewall(t, c.nodes[0], "syncd")
		c.keys = tt.keys
		f.write(c.config(f, 0))
		begin := time.Now()
		out, err := f.node.Output(f.node.Command(bin, "run", "-c", f.config))
		if err == nil || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: the daemon ended after %v: %v", tt.name, time.Since(begin), err)
		}
		t.Logf("%s: %s", tt.name, tail(string(out), 1))
		says(t, string(out), tt.words...)
		calm(t, string(out))
		if strings.Contains(string(out), strings.Fields(string(text))[len(strings.Fields(string(text)))-1]) || strings.Contains(string(out), "horse") {
			t.Errorf("%s: the key is in the output:\n%s", tt.name, out)
		}
	}
}

// "syncd key" makes keys that the daemon takes.
func TestKeyCommand(t *testing.T) {
	t.Parallel()
	printed, err := exec.Command(bin, "key").Output()
	ok(t, err)
	first, err := seal.ParseKey(printed)
	ok(t, err)
	again, err := exec.Command(bin, "key").Output()
	ok(t, err)
	if second, err := seal.ParseKey(again); err != nil || first == second {
		t.Errorf("two keys: %v %v %v", first, second, err)
	}
	path := filepath.Join(t.TempDir(), "sync.key")
	if out, err := exec.Command(bin, "key", path).CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("key to a file: %v %s", err, out)
	}
	fi, err := os.Stat(path)
	ok(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("the key file has mode %v", fi.Mode())
	}
	_, err = seal.ReadKeyFile(path)
	ok(t, err)
	before, err := os.ReadFile(path)
	ok(t, err)
	out, err := exec.Command(bin, "key", path).CombinedOutput()
	if err == nil {
		t.Error("a key was written over another one")
	}
	says(t, string(out), "file exists")
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Error("the key that was there is gone")
	}
}

// Without keys the sealed format works, with a warning, if the configuration
// consents.
func TestInsecureWithoutKeys(t *testing.T) {
	t.Parallel()
	a, b := cabled(t, newLab(t), 1)
	k := openKernel(t, a)
	config := func(node int) string {
		return "[sync]\ninsecure = true\n" + newLink(udp4, 0, node).toml()
	}
	f1, f2 := newSyncd(t, a, config(1)), newSyncd(t, b, config(2))
	create(t, k, 0, 500)
	waitEqual(t, 5*time.Second, "without keys", f2.External, func() table { return kernelTable(t, k, isTestFlow) }, form{})
	waitFor(t, 5*time.Second, "both are in step", func() bool { return f1.Status().InSync && f2.Status().InSync })
	for _, f := range []*firewall{f1, f2} {
		says(t, f.Log(), "warn", "a key that everybody knows")
	}

	// Without that consent it does not start.
	f := newFirewall(t, a, "syncd")
	f.write("[node]\nname = \"c\"\nsocket = \"" + f.socket + "\"\n" + strings.Replace(config(1), "insecure = true\n", "", 1))
	out, err := a.Output(a.Command(bin, "run", "-c", f.config))
	if err == nil {
		t.Error("started without keys and without consent")
	}
	says(t, string(out), "sync.keys", "insecure")
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"syncd/internal/ctl"
	"syncd/internal/flow"
)

// program is the built command: exit status and streams are tested as a shell
// sees them.
var program string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "syncd-cli")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "syncd")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// syncd runs the program and returns what it printed.
func syncd(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if strings.Contains(errOut.String(), "goroutine ") {
		t.Errorf("syncd %q: a stack trace:\n%s", args, &errOut)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// node is a daemon that does nothing.
type node struct {
	err   error
	steps int           // of progress
	block chan struct{} // Commit sends on it and then waits for its end, unless nil
}

func (n *node) Status(context.Context) (*ctl.Status, error) {
	return &ctl.Status{Node: "fw1", Role: ctl.RoleBackup, InSync: true}, n.err
}
func (n *node) Stats(context.Context) (*ctl.Stats, error) {
	return &ctl.Stats{Sync: ctl.SyncStats{Lost: 4711}}, n.err
}
func (n *node) Commit(ctx context.Context, o ctl.CommitOptions) (*ctl.CommitReport, error) {
	n.tell(o.Progress)
	if n.block != nil {
		n.block <- struct{}{}
		<-ctx.Done()
	}
	r := &ctl.CommitReport{DryRun: o.DryRun, Flows: ctl.CommitCount{Entries: 7, Created: 7}}
	if o.Peer != "" {
		r.Flows = ctl.CommitCount{Entries: 3, Created: 3}
	}
	return r, n.err
}

// tell reports progress to whoever wants to know, at the pace of a daemon.
func (n *node) tell(progress ctl.ProgressFunc) {
	for i := 0; progress != nil && i < n.steps; i++ {
		progress(ctl.Progress{Done: uint64(i+1) * 1000, Total: uint64(n.steps) * 1000})
		time.Sleep(200 * time.Millisecond)
	}
}

func (n *node) Flush(_ context.Context, which string) (*ctl.Done, error) {
	return &ctl.Done{Message: "flushed " + which}, n.err
}
func (n *node) Resync(_ context.Context, kernel bool) (*ctl.Done, error) {
	return &ctl.Done{Message: fmt.Sprint("kernel=", kernel)}, n.err
}
func (n *node) Verify(context.Context) (*ctl.VerifyReport, error) {
	return &ctl.VerifyReport{OK: true, Peers: []ctl.VerifyPeer{}, Entries: []ctl.VerifyEntry{}}, n.err
}
func (n *node) Bulk(context.Context) (*ctl.Done, error)   { return &ctl.Done{Message: "sending"}, n.err }
func (n *node) Reload(context.Context) (*ctl.Done, error) { return &ctl.Done{Message: "read"}, n.err }
func (n *node) SetRole(_ context.Context, role string, progress ctl.ProgressFunc) (*ctl.RoleReport, error) {
	n.tell(progress)
	return &ctl.RoleReport{Role: role, Before: ctl.RoleUnknown}, n.err
}
func (n *node) Dump(_ context.Context, which string, fn func(*ctl.DumpEntry) error) error {
	e := ctl.DumpEntry{AgeS: 3, Flow: flow.Flow{
		Orig:  flow.Tuple{Src: [16]byte{198, 51, 100, 2}, Dst: [16]byte{203, 0, 113, 2}, SrcPort: 1, DstPort: 53, Family: flow.IPv4, Proto: flow.UDP},
		Reply: flow.Tuple{Src: [16]byte{203, 0, 113, 2}, Dst: [16]byte{198, 51, 100, 2}, SrcPort: 53, DstPort: 1, Family: flow.IPv4, Proto: flow.UDP},
	}}
	if which == ctl.External {
		e.Owner = "fw2"
	}
	if err := fn(&e); err != nil {
		return err
	}
	return n.err
}

// serve runs n on a control socket until the test ends.
func serve(t *testing.T, n *node) (socket string) {
	t.Helper()
	s, err := ctl.Listen(filepath.Join(t.TempDir(), "s"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, n) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Path()
}

func TestWrongUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                             "a command is missing",
		"ctl":                          "a command is missing",
		"stauts":                       `unknown command "stauts" for "syncd"`,
		"chek":                         `unknown command "chek" for "syncd", did you mean check?`,
		"ctl comit":                    `unknown command "comit" for "syncd ctl", did you mean commit?`,
		"ctl status now":               `unknown command "now" for "syncd ctl status"`,
		"ctl status --josn":            "unknown flag: --josn",
		"ctl dump":                     "the name of a cache is missing: internal or external",
		"ctl dump kernel":              `unknown cache "kernel": internal or external`,
		"ctl dump internal external":   "one cache at most: internal or external",
		"ctl flush kernel":             `unknown cache "kernel": internal or external`,
		"ctl commit fw2":               `unknown command "fw2" for "syncd ctl commit"`,
		"ctl commit --peer":            "flag needs an argument: --peer",
		"ctl resync --kernel=perhaps":  `invalid argument "perhaps" for "--kernel" flag: strconv.ParseBool: parsing "perhaps": invalid syntax`,
		"run -c":                       "flag needs an argument: 'c' in -c",
		"run file":                     `unknown command "file" for "syncd run"`,
		"check file":                   `unknown command "file" for "syncd check"`,
		"demo --connections many":      `invalid argument "many" for "--connections" flag: strconv.ParseInt: parsing "many": invalid syntax`,
		"version 2":                    `unknown command "2" for "syncd version"`,
		"ctl primary --json --bad-one": "unknown flag: --bad-one",
	} {
		status, stdout, stderr := syncd(t, strings.Fields(args)...)
		if status != exitUsage || stdout != "" || !strings.Contains(stderr, "syncd: "+want+"\nTry 'syncd") {
			t.Errorf("syncd %s: %d %q %q, want %q", args, status, stdout, stderr, want)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	for _, socket := range []string{filepath.Join(dir, "none"), stale, "@syncd-test-nobody"} {
		for _, args := range []string{
			"status", "stats", "commit", "flush", "flush internal", "resync", "resync --kernel", "bulk", "dump internal",
			"dump external --json", "primary", "backup", "fault", "reload",
		} {
			status, stdout, stderr := syncd(t, append([]string{"ctl", "--socket", socket}, strings.Fields(args)...)...)
			want := "syncd: control socket: no syncd is running at " + socket + "\n"
			if status != exitNoDaemon || stdout != "" || stderr != want {
				t.Errorf("syncd ctl %s: %d %q %q, want %q", args, status, stdout, stderr, want)
			}
		}
	}
}

func TestDone(t *testing.T) {
	socket := serve(t, new(node))
	for args, want := range map[string]string{
		"status":                 "node     fw1\n",
		"stats":                  "  lost              4711\n",
		"commit":                 "committed 7 entries",
		"flush":                  "flushed both\n",
		"flush internal":         "flushed internal\n",
		"flush external":         "flushed external\n",
		"resync":                 "kernel=false\n",
		"resync --kernel":        "kernel=true\n",
		"bulk":                   "sending\n",
		"primary":                "primary, was unknown",
		"backup":                 "backup, was unknown",
		"fault":                  "fault, was unknown",
		"reload":                 "read\n",
		"dump internal":          "udp      17 src=198.51.100.2 dst=203.0.113.2 sport=1 dport=53 src=203.0.113.2 dst=198.51.100.2 sport=53 dport=1 [active since 3s]\n",
		"dump external":          "[active since 3s] [owner fw2]\n",
		"status --json":          `"node": "fw1",`,
		"stats --json":           `"lost": 4711,`,
		"commit --json":          `"created": 7,`,
		"commit --dry-run":       "would commit 7 entries",
		"commit --peer fw2":      "committed 3 entries",
		"flush external --json":  `"message": "flushed external"`,
		"resync --kernel --json": `"message": "kernel=true"`,
		"bulk --json":            `"message": "sending"`,
		"primary --json":         `"role": "primary",`,
		"reload --json":          `"message": "read"`,
		"dump internal --json":   `"age_s":3.000}`,
	} {
		status, stdout, stderr := syncd(t, append([]string{"ctl", "--socket", socket}, strings.Fields(args)...)...)
		if status != exitDone || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("syncd ctl %s: %d %q %q, want %q", args, status, stdout, stderr, want)
		}
		if strings.HasSuffix(args, "--json") && !json.Valid([]byte(stdout)) {
			t.Errorf("syncd ctl %s: no JSON: %s", args, stdout)
		}
	}
}

func TestFailed(t *testing.T) {
	socket := serve(t, &node{err: fmt.Errorf("commit of fw2: %w", ctl.ErrBusy)})
	for _, args := range []string{"status", "commit", "primary", "flush", "reload", "dump internal", "dump external --json"} {
		status, _, stderr := syncd(t, append([]string{"ctl", "--socket", socket}, strings.Fields(args)...)...)
		if want := "syncd: commit of fw2: already running\n"; status != exitFailed || stderr != want {
			t.Errorf("syncd ctl %s: %d %q, want %q", args, status, stderr, want)
		}
	}
	for args, want := range map[string]string{
		"ctl status --socket " + strings.Repeat("x", 108): "a UNIX socket can have 107",
		"check -c /nonexistent/syncd.toml":                "/nonexistent/syncd.toml",
		"run -c /nonexistent/syncd.toml":                  "/nonexistent/syncd.toml",
		"man --dir /dev/null":                             "/dev/null",
	} {
		status, _, stderr := syncd(t, strings.Fields(args)...)
		if status != exitFailed || !strings.HasPrefix(stderr, "syncd: ") || !strings.Contains(stderr, want) {
			t.Errorf("syncd %s: %d %q, want %q", args, status, stderr, want)
		}
	}
}

// ^C ends a client at once and says what it means.
func TestInterrupt(t *testing.T) {
	n := &node{block: make(chan struct{})}
	cmd := exec.Command(program, "ctl", "commit", "--socket", serve(t, n))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-n.block
	cmd.Process.Signal(os.Interrupt)
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		cmd.Process.Kill()
		t.Fatal("the client does not end")
	}
	want := "syncd: interrupted; what the daemon has begun it finishes\n"
	if got := cmd.ProcessState.ExitCode(); got != exitFailed || stderr.String() != want {
		t.Errorf("%d %q, want %q", got, &stderr, want)
	}
}

func TestVersion(t *testing.T) {
	status, stdout, _ := syncd(t, "version")
	if status != exitDone || !strings.HasPrefix(stdout, "syncd ") {
		t.Errorf("%d %q", status, stdout)
	}
	var b build
	status, stdout, _ = syncd(t, "version", "--json")
	if err := json.Unmarshal([]byte(stdout), &b); status != exitDone || err != nil || b.Version == "" || b.Go == "" {
		t.Errorf("%d %v %q", status, err, stdout)
	}
}

// Every command that a user sees explains itself.
func TestHelp(t *testing.T) {
	walk(newRoot(), func(c *cobra.Command) {
		if c.Short == "" || len(c.Long) < 40 || c.Example == "" {
			t.Errorf("%s: short, long or example is missing", c.CommandPath())
		}
		for line := range strings.SplitSeq(c.Long, "\n") {
			if len(line) > 80 {
				t.Errorf("%s: the line %q is longer than a terminal", c.CommandPath(), line)
			}
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		status, stdout, stderr := syncd(t, args...)
		if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, c.Long) || !strings.Contains(stdout, c.Example) {
			t.Errorf("syncd %q: %d %q %q", args, status, stdout, stderr)
		}
	})
}

func TestManPage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man8")
	if status, _, stderr := syncd(t, "man", "--dir", dir); status != exitDone {
		t.Fatal(status, stderr)
	}
	file := filepath.Join(dir, "syncd.8")
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`.SS "syncd ctl primary"`, `\-c, \-\-config FILE`, ".SH \"NAME\"\nsyncd \\- keep the",
	} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("%q is missing", want)
		}
	}
	if bytes.Contains(page, []byte("completion")) {
		t.Error("the page describes what comes with the command library")
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must have groff")
		}
		t.Skip("needs the program groff, to see that the page is well-formed")
	}
	out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", file).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		journald bool
		want     string
	}{
		{true, "<4>warn ctl the message {\"peer\": \"fw2\", \"took\": \"1.5s\"}\n"},
		{false, " warn ctl the message {\"peer\": \"fw2\", \"took\": \"1.5s\"}\n"},
	} {
		var b bytes.Buffer
		level := zap.NewAtomicLevelAt(zapcore.InfoLevel)
		log := newLogger(&b, level, tt.journald).Named("ctl")
		log.Debug("not shown")
		log.Warn("the message", zap.String("peer", "fw2"), zap.Duration("took", 1500*time.Millisecond))
		got := b.String()
		if !tt.journald {
			if len(got) < 24 {
				t.Fatalf("%q", got)
			}
			stamp, rest, _ := strings.Cut(got, " ")
			if _, err := time.Parse(time.RFC3339, stamp); err != nil {
				t.Error(err)
			}
			got = " " + rest
		}
		if got != tt.want {
			t.Errorf("journald=%t: %q, want %q", tt.journald, got, tt.want)
		}
		level.SetLevel(zapcore.DebugLevel)
		if log.Debug("shown"); !strings.Contains(b.String(), "shown\n") {
			t.Error("the level cannot be changed")
		}
	}
}

// An inherited JOURNAL_STREAM does not count when the log goes elsewhere.
func TestUnderJournald(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	if underJournald() {
		t.Error("without the variable")
	}
	t.Setenv("JOURNAL_STREAM", "8:1")
	if underJournald() {
		t.Error("with that of another stream")
	}
	fi, err := os.Stderr.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	if !underJournald() {
		t.Error("with our own stream")
	}
}

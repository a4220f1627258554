package ctl

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// holdEnv names the variable that makes the test binary hold a socket.
const holdEnv = "SYNCD_TEST_HOLD_SOCKET"

// hold starts a process that serves path and returns once it does.
func hold(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should this process crash
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd
}

// One process at a time; when it is killed, its successor needs no cleaning up.
func TestOneInstance(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "s"), fmt.Sprintf("@syncd-test-%d", os.Getpid())} {
		other := hold(t, path)
		_, err := Listen(path, nil)
		want := fmt.Sprintf("control socket: another syncd is serving %s (pid %d)", path, other.Process.Pid)
		if err == nil || err.Error() != want {
			t.Errorf("second instance: %v, want %s", err, want)
		}
		other.Process.Kill()
		other.Wait()
		c, _ := Dial(path)
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("client after kill -9: %v", err)
		}
		startAt(t, path, &fakeNode{}, nil)
		if _, err := c.Status(t.Context()); err != nil {
			t.Errorf("successor after kill -9: %v", err)
		}
	}
}

func TestListenTwiceInOneProcess(t *testing.T) {
	path := start(t, &fakeNode{}, nil)
	if _, err := Listen(path, nil); err == nil {
		t.Error("the second succeeded")
	}
	c, _ := Dial(path)
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the first suffers: %v", err)
	}
}

func TestSocketMode(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o177} {
		path := filepath.Join(t.TempDir(), "s")
		func() {
			defer syscall.Umask(syscall.Umask(umask))
			startAt(t, path, &fakeNode{}, nil)
		}()
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != socketMode {
			t.Errorf("with umask %03o the mode is %v", umask, fi.Mode())
		}
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, "foreign") // served without our lock
	ln, err := net.Listen("unix", foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	long := filepath.Join(dir, strings.Repeat("x", 108-len(dir)-1))
	for path, want := range map[string]string{
		filepath.Join(dir, "none", "s"): "the directory " + filepath.Join(dir, "none") + " does not exist",
		file:                            file + " exists and is no socket",
		foreign:                         fmt.Sprintf("another process is serving %s (pid %d)", foreign, os.Getpid()),
		long:                            "the path has 108 octets, a UNIX socket can have 107",
		"":                              "the path is empty",
		"@":                             "the path is empty",
	} {
		_, err := Listen(path, nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "control socket: ") {
			t.Errorf("%q: %v, want %s", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "mine" {
		t.Errorf("the file that was in the way: %q, %v", b, err)
	}
	if _, err := Dial(long); err == nil {
		t.Error("Dial took a path that is too long")
	}
}

func TestLongestPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	startAt(t, path, &fakeNode{}, nil)
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// An abstract socket has no mode, so another user must be turned away by who he
// is.
func TestAbstractSocketTurnsOthersAway(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must run this as root")
		}
		t.Skip("needs root, to act as another user")
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs the program curl")
	}
	name := fmt.Sprintf("syncd-test-other-%d", os.Getpid())
	node := &fakeNode{}
	startAt(t, "@"+name, node, nil)
	as := func(uid uint32) error {
		cmd := exec.Command(curl, "-sS", "--abstract-unix-socket", name, "-X", "POST", "http://syncd/v1/commit")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	if err := as(65534); err == nil || node.takeCalls() != nil {
		t.Errorf("another user could commit: %v", err)
	}
	if err := as(0); err != nil || node.takeCalls() == nil {
		t.Errorf("root could not commit: %v", err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	ln, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(dir, "no", "dir"), dead, "@syncd-test-nobody"} {
		c, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		want := "control socket: no syncd is running at " + path
		if !errors.Is(err, ErrNoDaemon) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if err := c.Dump(t.Context(), Internal, nil); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("dump: %v", err)
		}
	}
}

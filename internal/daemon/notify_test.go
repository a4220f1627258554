package daemon

import (
	"net"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestNotify speaks to a stand-in for systemd (sd_notify(3)).
func TestNotify(t *testing.T) {
	path := t.TempDir() + "/notify"
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	n := newNotifier(zap.NewNop())
	want := func(pattern string) {
		t.Helper()
		b := make([]byte, 1024)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		l, err := c.Read(b)
		if err != nil {
			t.Fatalf("waiting for %q: %v", pattern, err)
		}
		if !regexp.MustCompile("^(?:" + pattern + ")$").Match(b[:l]) {
			t.Errorf("systemd was told %q, want %q", b[:l], pattern)
		}
	}
	n.ready("5 flows")
	want("READY=1\nSTATUS=5 flows")
	n.status("5 flows") // told already
	n.status("6 flows")
	want("STATUS=6 flows")
	n.alive()
	want("WATCHDOG=1")
	n.reloading()
	want("RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*")
	n.ready("7 flows")
	want("READY=1\nSTATUS=7 flows")
	n.stopping()
	want("STOPPING=1")
}

func TestNotifyWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := newNotifier(zap.NewNop())
	n.ready("")
	n.stopping()
	if n.watchdog() != nil {
		t.Error("a watchdog that nobody asked for")
	}
}

func TestWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	beat := newNotifier(zap.NewNop()).watchdog()
	if beat == nil {
		t.Fatal("no watchdog")
	}
	select {
	case <-beat:
	case <-time.After(5 * time.Second):
		t.Error("the watchdog never asked to be fed")
	}
}

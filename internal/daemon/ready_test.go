package daemon

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// A daemon that starts again on the node in charge does not make it step down; one that
// is told that it is not in charge before it has the state of its peers is not ready.
func TestReadyWhileInCharge(t *testing.T) {
	l := newLives(t, "[ready]\ntrack_file = \"@\"\n[purge]\nafter = \"1h\"\n")
	track := l.file + ".track"
	text, err := os.ReadFile(l.config)
	if err == nil {
		err = os.WriteFile(l.config, []byte(strings.Replace(string(text), `"@"`, `"`+track+`"`, 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		l.kernel.Destroy(testFlow(i, flow.TCPEstablished).Orig, 0)
	}
	says := func(d *Daemon, want string, ready bool) {
		t.Helper()
		waitFor(t, "the track file says "+want, func() bool {
			b, _ := os.ReadFile(track)
			return string(b) == want+"\n" && d.status(t).Ready == ready
		})
	}
	begin := func() (*Daemon, func()) {
		d, stop := l.start()
		d.begun = monotime.Now().Add(-time.Second) // nobody is known to be there yet
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.watchReadiness(ctx) }()
		return d, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			stop()
		}
	}
	d, stop := begin()
	says(d, "1", false)
	d.set(t, ctl.RoleBackup)
	stop()
	l.change(func(s *savedRole) { s.Role = ctl.RolePrimary })
	if err := os.WriteFile(track, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	d, stop = begin()
	for range 20 {
		if b, _ := os.ReadFile(track); string(b) != "0\n" {
			t.Fatalf("the track file says %q", b)
		}
		time.Sleep(10 * time.Millisecond)
	}
	says(d, "0", true)
	d.set(t, ctl.RoleBackup)
	says(d, "1", false)
	says(d, "0", true) // alone for long enough
	d.set(t, ctl.RoleFault)
	time.Sleep(300 * time.Millisecond)
	says(d, "0", true) // it never goes back
	stop()
}

package daemon

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"syncd/internal/config"
	"syncd/internal/flow"
)

func TestReload(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	level := zap.NewAtomicLevel()
	d.opts.Level = &level
	reload := func(text string) (string, error) {
		t.Helper()
		if err := os.WriteFile(d.opts.ConfigPath, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		done, err := d.Reload(t.Context())
		if err != nil {
			return "", err
		}
		return done.Message, nil
	}
	matches := func() (ok bool) {
		f := testFlow(1, flow.TCPEstablished)
		if err := d.engine.Do(t.Context(), func() { ok = d.engine.Filter().Match(&f) }); err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if msg, err := reload(validConfig); err != nil || msg != "nothing has changed" {
		t.Errorf("%q, %v", msg, err)
	}
	changed := strings.Replace(validConfig, "[filter]", "[filter]\nprotocols = { ignore = [\"tcp\"] }", 1)
	if !matches() {
		t.Error("the flow does not match at first")
	}
	msg, err := reload(changed)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(msg, "in force now: filter.protocols") || matches() {
		t.Errorf("%q; the flow matches: %v", msg, matches())
	}

	// A file that is wrong changes nothing.
	if _, err := reload("nonsense = 1\n"); err == nil || matches() {
		t.Errorf("a wrong file: %v; the flow matches: %v", err, matches())
	}

	// What needs a restart waits for it, and is told every time.
	both := strings.Replace(validConfig, "[sync]", "[sync]\nack_window = 17", 1)
	both = strings.Replace(both, `name = "fw1"`, "name = \"fw1\"\nlog_level = \"debug\"", 1)
	msg, err = reload(both)
	if err != nil || !strings.Contains(msg, "in force now: ") || !strings.Contains(msg, "node.log_level") ||
		!strings.Contains(msg, "after a restart: sync.ack_window") || !matches() {
		t.Errorf("%q, %v; the flow matches: %v", msg, err, matches())
	}
	if level.Level() != zapcore.DebugLevel {
		t.Errorf("log level %v", level.Level())
	}
	if d.config().Sync.AckWindow == 17 {
		t.Error("what needs a restart is in force")
	}
	if msg, err = reload(both); err != nil || msg != "needs a restart: sync.ack_window" {
		t.Errorf("%q, %v", msg, err)
	}
	both += "[takeover]\nmode = \"instant\"\n"
	if msg, err = reload(both); err != nil || msg != "needs a restart: sync.ack_window, takeover.mode" || d.config().Takeover.Mode != config.TakeoverCommit {
		t.Errorf("%q, %v", msg, err)
	}
}

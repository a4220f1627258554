package daemon

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/simnet"
)

// lives are the lives of the process of one node: its configuration, its folder and the
// kernel's table outlive each.
type lives struct {
	t      *testing.T
	config string
	file   string // the role
	kernel *simnet.Kernel
	logs   *observer.ObservedLogs
}

func newLives(t *testing.T, text string) *lives {
	dir := t.TempDir()
	text = strings.Replace(validConfig, `state_dir = ""`, "state_dir = \""+dir+"\"", 1) + text
	k := simnet.NewKernel(1)
	k.Mute(true) // they are from long ago
	for i := range 10 {
		k.Create(testFlow(i, flow.TCPEstablished), 0)
	}
	k.Mute(false)
	return &lives{t: t, config: writeConfig(t, text), file: dir + "/" + roleName, kernel: k}
}

// start begins a life. It ends with the test, if not before.
func (l *lives) start() (d *Daemon, stop func()) {
	l.t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	l.logs = logs
	d, end := startDaemon(l.t, zap.New(core), l.config, l.kernel)
	if err := <-d.engine.Loaded(); err != nil {
		l.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			end()
		}
	}
	l.t.Cleanup(stop)
	return d, stop
}

func (d *Daemon) set(t *testing.T, role string) {
	t.Helper()
	if _, err := d.SetRole(t.Context(), role, nil); err != nil {
		t.Fatal(err)
	}
}

func (d *Daemon) status(t *testing.T) *ctl.Status {
	t.Helper()
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (d *Daemon) remnants(t *testing.T) engine.Remnants {
	t.Helper()
	n, err := d.countRemnants(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (d *Daemon) currentPurge() *purge {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.purge
}

// A backup is one after a restart too, and what was in its kernel is still to go.
func TestRoleOutlivesRestart(t *testing.T) {
	for _, role := range []string{ctl.RoleBackup, ctl.RoleFault} {
		l := newLives(t, "[purge]\nafter = \"1h\"\n")
		d, stop := l.start()
		if st := d.status(t); st.Role != ctl.RoleUnknown || st.RoleRestored {
			t.Errorf("at first: %s, restored %v", st.Role, st.RoleRestored)
		}
		d.set(t, role)
		since := d.status(t).Since
		stop()

		d, stop = l.start()
		if st := d.status(t); st.Role != role || !st.Since.Equal(since) || !st.RoleRestored {
			t.Errorf("after the restart: %s since %v, restored %v; want %s since %v", st.Role, st.Since, st.RoleRestored, role, since)
		}
		if n := d.remnants(t); n.All != 10 {
			t.Errorf("%d remnants, want 10", n.All)
		}
		p := d.currentPurge()
		if p == nil || p.after != time.Hour {
			t.Fatalf("the purge is %+v", p)
		}
		// Told of it again, it goes on.
		d.set(t, role)
		if st := d.status(t); st.Role != role || !st.Since.Equal(since) || st.RoleRestored {
			t.Errorf("told again: %s since %v, restored %v; want %s since %v", st.Role, st.Since, st.RoleRestored, role, since)
		}
		if d.currentPurge() != p {
			t.Error("the purge began anew")
		}
		stop()

		// What a peer has taken over is known to be taken over.
		l.change(func(s *savedRole) { s.TakenOver = true })
		d, stop = l.start()
		if p := d.currentPurge(); p == nil || !p.takenOver {
			t.Errorf("the purge is %+v", p)
		}
		stop()
	}
}

// A purge that has been done is not done again: what is in the kernel now is in use.
func TestPurgeDoneOutlivesRestart(t *testing.T) {
	l := newLives(t, "[purge]\nafter = \"1s\"\n")
	for i := range 10 {
		l.kernel.Destroy(testFlow(i, flow.TCPEstablished).Orig, 0)
	}
	d, stop := l.start()
	d.set(t, ctl.RoleBackup)
	if s := l.read(); !s.Remnants || !s.Done {
		t.Errorf("before the purge: %+v", s)
	}
	waitFor(t, "the purge to end", func() bool { return !l.read().Remnants })
	stop()
	l.kernel.Create(testFlow(20, flow.TCPEstablished), 0)
	d, _ = l.start()
	if n, st := d.remnants(t), d.status(t); n.All != 0 || d.currentPurge() != nil || st.Role != ctl.RoleBackup {
		t.Errorf("%s, %d remnants, purge %+v", st.Role, n.All, d.currentPurge())
	}
}

// A primary has nothing to do after a restart but to know what it is.
func TestPrimaryOutlivesRestart(t *testing.T) {
	l := newLives(t, "[purge]\nafter = \"1h\"\n")
	d, stop := l.start()
	d.set(t, ctl.RoleBackup)
	stop()
	l.change(func(s *savedRole) { s.Role = ctl.RolePrimary })
	d, _ = l.start()
	if st := d.status(t); st.Role != ctl.RolePrimary || !st.RoleRestored || d.currentPurge() != nil || d.remnants(t).All != 0 {
		t.Errorf("%s, restored %v, purge %+v, %d remnants", st.Role, st.RoleRestored, d.currentPurge(), d.remnants(t).All)
	}
}

// The daemon was ended in the midst of a change of role.
func TestRoleIsFinished(t *testing.T) {
	l := newLives(t, "[purge]\nafter = \"1h\"\n")
	d, stop := l.start()
	d.set(t, ctl.RoleBackup)
	stop()
	l.change(func(s *savedRole) { s.Done, s.Remnants = false, false })
	d, _ = l.start()
	waitFor(t, "the steps", func() bool { return d.currentPurge() != nil })
	waitFor(t, "the note that they are done", func() bool { s := l.read(); return s.Done && s.Remnants })
	if st := d.status(t); st.Role != ctl.RoleBackup || !st.RoleRestored || !st.Peers[0].Resync || d.remnants(t).All != 10 {
		t.Errorf("%s, restored %v, resync %v, %d remnants", st.Role, st.RoleRestored, st.Peers[0].Resync, d.remnants(t).All)
	}
}

// A file that cannot be used is said to be so, and is no obstacle.
func TestRoleIsNotRestored(t *testing.T) {
	text := func(change func(*savedRole)) string {
		id, err := bootID()
		if err != nil {
			t.Fatal(err)
		}
		s := savedRole{Role: ctl.RoleBackup, Since: time.Now(), BootID: id, Done: true, Remnants: true}
		change(&s)
		b, _ := json.Marshal(&s)
		return string(b)
	}
	whole := text(func(*savedRole) {})
	for _, tt := range []struct{ name, text, log string }{
		{"empty", "", "unexpected end of JSON input"},
		{"truncated", whole[:len(whole)-1], "unexpected end of JSON input"},
		{"garbage", "\x00\xff", "invalid character"},
		{"another type", `{"role":7}`, "cannot unmarshal number"},
		{"no role", text(func(s *savedRole) { s.Role = "" }), `role ""`},
		{"unknown role", text(func(s *savedRole) { s.Role = "master" }), `role "master"`},
		{"no time", text(func(s *savedRole) { s.Since = time.Time{} }), "since when is missing"},
		{"no boot", text(func(s *savedRole) { s.BootID = "" }), "boot_id is missing"},
		{"too long", whole + strings.Repeat(" ", 5000), "more than 4096 octets"},
		{"another boot", text(func(s *savedRole) { s.BootID = "a" }), "before the start of the host"},
	} {
		l := newLives(t, "")
		if err := os.WriteFile(l.file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		d, stop := l.start()
		if st := d.status(t); st.Role != ctl.RoleUnknown || st.RoleRestored || !st.Since.IsZero() || d.currentPurge() != nil || d.remnants(t).All != 0 {
			t.Errorf("%s: %s since %v, restored %v", tt.name, st.Role, st.Since, st.RoleRestored)
		}
		said := ""
		for _, e := range l.logs.All() {
			said += e.Message
			for _, v := range e.ContextMap() {
				if s, ok := v.(string); ok {
					said += " " + s
				}
			}
		}
		if !strings.Contains(said, tt.log) || tt.name != "another boot" && !strings.Contains(said, l.file) {
			t.Errorf("%s: the log says %q", tt.name, said)
		}
		// It is replaced.
		d.set(t, ctl.RoleBackup)
		stop()
		if s := l.read(); s.Role != ctl.RoleBackup || !s.Done {
			t.Errorf("%s: afterwards %+v", tt.name, s)
		}
	}
}

// Without a folder nothing is kept, and a folder that is not there hinders no role.
func TestRoleIsNotKept(t *testing.T) {
	l := newLives(t, "")
	if err := os.Remove(l.file[:len(l.file)-len(roleName)-1]); err != nil {
		t.Fatal(err)
	}
	d, _ := l.start()
	d.set(t, ctl.RoleBackup)
	if l.logs.FilterMessage("the role could not be kept for the next start").Len() == 0 {
		t.Error("nobody said so")
	}
}

func (l *lives) read() savedRole {
	l.t.Helper()
	s, err := readRole(l.file)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// change edits what is kept between two lives.
func (l *lives) change(fn func(*savedRole)) {
	l.t.Helper()
	s := l.read()
	fn(&s)
	b, err := json.Marshal(&s)
	if err == nil {
		err = os.WriteFile(l.file, b, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// keepalived waits for none of its scripts: roles may be told at the same time, while
// the kernel's table is still being read too. They are done one after the other, and the
// last one is what the node is, and is kept.
func TestRolesAtTheSameTime(t *testing.T) {
	l := newLives(t, "[purge]\nafter = \"1h\"\n")
	l.kernel.DumpPause = 2 * time.Millisecond // 64 of them
	d, stop := startDaemon(t, zap.NewNop(), l.config, l.kernel)
	defer stop()
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			time.Sleep(time.Duration(i) * 10 * time.Millisecond)
			if _, err := d.SetRole(t.Context(), []string{ctl.RoleBackup, ctl.RoleFault}[i%2], nil); err != nil {
				t.Error(err)
			}
		})
	}
	first := (*purge)(nil)
	waitFor(t, "the first one", func() bool { first = d.currentPurge(); return first != nil })
	wait.Wait()
	if err := <-d.engine.Loaded(); err != nil {
		t.Fatal(err)
	}
	st, s := d.status(t), l.read()
	if s.Role != st.Role || !s.Since.Equal(st.Since) || !s.Done {
		t.Errorf("%s since %v, and kept is %+v", st.Role, st.Since, s)
	}
	if d.currentPurge() != first {
		t.Error("the purge began anew")
	}
	if n := d.remnants(t); n.All != 10 {
		t.Errorf("%d remnants, want 10", n.All)
	}
}

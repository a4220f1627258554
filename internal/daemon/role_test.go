package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

func TestBackup(t *testing.T) {
	d, _ := newDaemon(t, validConfig+"[purge]\nafter = \"1h\"\n")
	if _, err := d.SetRole(t.Context(), "master", nil); !errors.Is(err, ctl.ErrInvalid) {
		t.Errorf("an unknown role: %v", err)
	}
	rep, err := d.SetRole(t.Context(), ctl.RoleBackup, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Role != ctl.RoleBackup || rep.Before != ctl.RoleUnknown || len(rep.Steps) != 2 ||
		rep.Steps[1].Message != "flows that another node takes over leave the kernel in 1h0m0s" {
		t.Errorf("%+v", rep)
	}
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Role != ctl.RoleBackup || !st.Peers[0].Resync {
		t.Errorf("role %s, resync asked %v", st.Role, st.Peers[0].Resync)
	}
	// Told again, it goes on with the purge that is under way.
	p := d.purge
	due := p.due
	if _, err := d.SetRole(t.Context(), ctl.RoleFault, nil); err != nil || d.purge != p || p.due.Sub(due).Abs() > time.Second {
		t.Errorf("the purge began anew: %v", err)
	}
	if d.stopPurge() != p || d.purge != nil {
		t.Error("a purge is still due")
	}
}

// roleSpy notes what peers are told, and whether a commit was over by then.
type roleSpy struct {
	mode
	d    *Daemon
	said []string
}

func (s *roleSpy) setRole(r wire.Role) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.said = append(s.said, fmt.Sprintf("%v, committed %v, purge %v", r, s.d.lastCommit != nil, s.d.purge != nil))
}

// "A node that is told to be primary says so when it has put into its kernel what it
// holds of others. One that is told to be anything else says so at once, before it gives
// anything up."
func TestRoleIsSaid(t *testing.T) {
	d, _ := newDaemon(t, validConfig+"[purge]\nafter = \"1h\"\n")
	spy := &roleSpy{mode: d.mode, d: d}
	if err := d.engine.Do(t.Context(), func() { d.mode = spy }); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{ctl.RoleBackup, ctl.RolePrimary, ctl.RoleFault} {
		d.set(t, role)
	}
	want := []string{"backup, committed false, purge false", "primary, committed true, purge false", "fault, committed true, purge false"}
	if !slices.Equal(spy.said, want) {
		t.Errorf("said %q, want %q", spy.said, want)
	}
	d.stopPurge()
}

// When another node leads, the next look for what it has taken over does not wait for
// long. What has been given a short timeout keeps its time.
func TestPurgeSooner(t *testing.T) {
	d, _ := newDaemon(t, validConfig+"[purge]\nafter = \"1h\"\n")
	d.purgeSooner() // there is none
	for _, c := range []struct {
		p    purge
		wait time.Duration
		want time.Duration
	}{
		{purge{after: time.Hour}, 3 * time.Hour, 30 * time.Minute},
		{purge{after: time.Hour}, 10 * time.Minute, 10 * time.Minute},
		{purge{after: time.Hour, short: 1}, 3 * time.Hour, 3 * time.Hour},
		{purge{after: time.Hour, primary: true}, 3 * time.Hour, 3 * time.Hour},
	} {
		p := c.p
		d.schedulePass(&p, c.wait)
		d.purgeSooner()
		if wait := p.due.Sub(monotime.Now()); (wait - c.want).Abs() > time.Minute {
			t.Errorf("%+v, due in %v: in %v, want %v", c.p, c.wait, wait, c.want)
		}
		if d.stopPurge() != &p {
			t.Error("another purge is due")
		}
	}
}

func TestNoPurge(t *testing.T) {
	d, _ := newDaemon(t, validConfig+"[purge]\nafter = \"0s\"\n")
	rep, err := d.SetRole(t.Context(), ctl.RoleFault, nil)
	if err != nil || d.purge != nil || !strings.Contains(rep.Steps[1].Message, "stay") {
		t.Errorf("%v, %+v", err, rep)
	}
}

func TestResyncWithTheKernel(t *testing.T) {
	d, k := newDaemon(t, validConfig)
	k.Mute(true)
	k.Create(testFlow(1, flow.TCPEstablished), 0)
	done, err := d.Resync(t.Context(), true)
	if err != nil || done.Message != "the internal cache is in step with the kernel: 1 entries" {
		t.Errorf("%v, %v", done, err)
	}
	if done, err = d.Resync(t.Context(), false); err != nil || done.Message != "asked the peer for its state" {
		t.Errorf("%v, %v", done, err)
	}
}

func TestFlushAndDump(t *testing.T) {
	d, k := newDaemon(t, validConfig)
	for i := range 1000 {
		k.Create(testFlow(i, flow.TCPEstablished), 0)
	}
	d.external(t, func(put func(flow.Flow)) {
		for i := range 700 {
			put(testFlow(2000+i, flow.TCPEstablished))
		}
	})
	count := func(which string) (n int, owner string) {
		seen := map[flow.Tuple]bool{}
		if err := d.Dump(t.Context(), which, func(e *ctl.DumpEntry) error {
			if seen[e.Flow.Orig] {
				t.Error("an entry came twice")
			}
			seen[e.Flow.Orig], owner = true, e.Owner
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return len(seen), owner
	}
	waitFor(t, "1000 flows in the internal cache", func() bool { n, _ := count(ctl.Internal); return n == 1000 })
	if n, owner := count(ctl.External); n != 700 || owner != "127.0.0.2" {
		t.Errorf("%d entries of %q in the external cache", n, owner)
	}
	enough := errors.New("enough")
	if err := d.Dump(t.Context(), ctl.Internal, func(*ctl.DumpEntry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a dump whose reader has enough: %v", err)
	}
	if done, err := d.Flush(t.Context(), ctl.External); err != nil || done.Message != "flushed 700 entries of the external cache" {
		t.Errorf("%v, %v", done, err)
	}
	if done, err := d.Flush(t.Context(), ctl.Both); err != nil || done.Message != "flushed 1000 entries of the internal and the external cache" {
		t.Errorf("%v, %v", done, err)
	}
}

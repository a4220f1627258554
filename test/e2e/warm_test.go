package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/snapshot"
)

// snapshotOf is the file in which a daemon keeps what it holds while it restarts.
func (c *cluster) snapshotOf(i int) string { return filepath.Join(c.stateDir(i), "peers.snapshot") }

// roleOf is the file in which a daemon keeps its role.
func (c *cluster) roleOf(i int) string { return filepath.Join(c.stateDir(i), "role.json") }

// gone fails the test if a file is there, or another one but for the role.
func gone(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	ok(t, err)
	hidden, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	ok(t, err)
	left = slices.DeleteFunc(append(left, hidden...), func(f string) bool { return filepath.Base(f) == "role.json" })
	if len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
}

// The daemon of a node that was just told to be backup dies, and nobody tells it again
// what it is: it knows, and purges what the other node has taken over. In a file that
// makes no sense it finds nothing, and says so.
func TestRoleOutlivesDaemon(t *testing.T) {
	t.Parallel()
	p, c := sealedPair(t, udp4, "[purge]\nafter = \"8s\"\n")
	c.start(0)
	c.start(1)
	c.fws[0].Primary()
	c.fws[1].Backup()
	live := openTraffic(t, p)
	through := passes(p)
	c.inStep(5 * time.Second)
	ok(t, p.Move(p.FW1, p.FW2))
	c.fws[1].Primary()
	c.fws[0].Backup()
	since := c.fws[0].Status().Since
	c.fws[0].Kill()
	if len(kernelTable(t, c.kernels[0], through)) == 0 {
		t.Error("nothing is left to be purged: the test is worth nothing")
	}
	c.fws[0].Start()
	s := c.fws[0].Status()
	if s.Role != ctl.RoleBackup || !s.Since.Equal(since) || !s.RoleRestored {
		t.Errorf("%s since %v, restored %v; want backup since %v", s.Role, s.Since, s.RoleRestored, since)
	}
	waitFor(t, 5*time.Second, "the other one knows", func() bool {
		p := c.fws[1].Status().Peers
		return len(p) == 1 && p[0].State == ctl.PeerUp && p[0].Role == ctl.RoleBackup
	})
	waitFor(t, 20*time.Second, "the purge", func() bool { return len(kernelTable(t, c.kernels[0], through)) == 0 })
	live.check(t, "on the second, with the purge of the first")
	c.fws[0].Backup()
	if s := c.fws[0].Status(); !s.Since.Equal(since) || s.RoleRestored {
		t.Errorf("told again: since %v, restored %v; want %v", s.Since, s.RoleRestored, since)
	}

	c.fws[0].Stop()
	ok(t, os.WriteFile(c.roleOf(0), []byte("{"), 0o600))
	c.fws[0].Start()
	if s := c.fws[0].Status(); s.Role != ctl.RoleUnknown || s.RoleRestored {
		t.Errorf("%s, restored %v, after a broken file", s.Role, s.RoleRestored)
	}
	says(t, c.fws[0].Log(), "the role of before the restart is not taken over", c.roleOf(0)+": unexpected end of JSON input")
}

// The backup restarts, and while it is down the node in charge dies: what it kept
// is the only copy, and saves all connections.
func TestWarmRestartAlone(t *testing.T) {
	t.Parallel()
	p, c := sealedPair(t, udp4, "")
	c.start(0)
	c.start(1)
	c.fws[0].Primary()
	c.fws[1].Backup()
	live := openTraffic(t, p)
	through := passes(p)
	c.inStep(5 * time.Second)
	c.equal(5*time.Second, "before")
	before := kernelTable(t, c.kernels[0], through)

	c.fws[1].Stop()
	fi, err := os.Stat(c.snapshotOf(1))
	ok(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot has mode %v", fi.Mode())
	}
	ok(t, p.TakeOver(p.FW1, p.FW2))
	c.fws[0].Kill()
	c.fws[1].Start()
	says(t, c.fws[1].Log(), "loaded what peers had sent before the restart")
	gone(t, c.snapshotOf(1))
	c.fws[1].Primary()
	got := kernelTable(t, c.kernels[1], through)
	for k := range before {
		if _, there := got[k]; !there {
			t.Errorf("%v was not committed", k)
		}
	}
	live.forgetGaps()
	time.Sleep(2 * grace)
	live.check(t, "after the restart and the takeover")

	// The dead one comes back: everything is as it was never away.
	ok(t, p.FW1.Replug())
	c.start(0)
	c.fws[0].Backup()
	c.equal(10*time.Second, "after the return of the other one")
	c.inStep(10 * time.Second)
	c.verified()
	c.clean()
}

// The backup restarts beside a node in charge that goes on: what ended meanwhile is
// removed, what began is there.
func TestWarmRestartBesidePeer(t *testing.T) {
	t.Parallel()
	const flows = 3000
	c := newCluster(t, 2, multicast4, "")
	c.fws[0].Primary()
	c.fws[1].Backup()
	create(t, c.kernels[0], 0, flows)
	c.equal(5*time.Second, "before")
	c.fws[1].Stop()
	destroy(t, c.kernels[0], 0, 1000)
	create(t, c.kernels[0], flows, flows+500)
	for n := 1000; n < 1500; n++ { // another flow with the same tuple, in another state
		ok(t, c.kernels[0].Delete(numbered(n)))
		f := numbered(n)
		f.Mark = 99
		ok(t, c.kernels[0].Create(f))
	}
	c.fws[1].Start()
	says(t, c.fws[1].Log(), "loaded what peers had sent before the restart")
	c.equal(5*time.Second, "the backup is back")
	c.inStep(5 * time.Second)
	c.verified()
	gone(t, c.snapshotOf(1))

	// The node in charge restarts, gracefully and not: it is in step by itself.
	for _, stop := range []func(){c.fws[0].Stop, c.fws[0].Kill} {
		stop()
		destroy(t, c.kernels[0], 1500, 1600)
		create(t, c.kernels[0], 1500, 1550)
		c.fws[0].Start()
		c.equal(5*time.Second, "the node in charge is back")
		c.inStep(5 * time.Second)
		destroy(t, c.kernels[0], 1500, 1550)
		create(t, c.kernels[0], 1500, 1600)
		c.equal(5*time.Second, "and works")
	}
	c.verified()
	c.clean()
}

// A snapshot that is not what it should be is refused with a word, and nothing
// else happens.
func TestBadSnapshot(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, udp4, "")
	c.start(0) // its peer is n2, which never runs here
	path := c.snapshotOf(0)
	write := func(owner string, written time.Time, entries int) []byte {
		t.Helper()
		f, err := os.Create(path)
		ok(t, err)
		defer f.Close()
		w := snapshot.NewWriter(f, written)
		ok(t, w.Owner(owner))
		for n := range entries {
			fl := flow.Flow{Orig: flow.Tuple{Family: flow.IPv4, Proto: flow.UDP, SrcPort: uint16(n), DstPort: 53}}
			copy(fl.Orig.Src[:], []byte{198, 18, 0, 1})
			copy(fl.Orig.Dst[:], []byte{198, 19, 0, 1})
			fl.Reply = fl.Orig
			fl.Reply.Src, fl.Reply.Dst = fl.Orig.Dst, fl.Orig.Src
			fl.Reply.SrcPort, fl.Reply.DstPort = fl.Orig.DstPort, fl.Orig.SrcPort
			fl.Status, fl.Timeout = flow.StatusSeenReply|flow.StatusAssured|flow.StatusConfirmed, 600
			ok(t, w.Flow(&fl, 0))
		}
		ok(t, w.Close())
		b, err := os.ReadFile(path)
		ok(t, err)
		return b
	}
	c.fws[0].Stop()
	for _, tt := range []struct {
		name    string
		make    func()
		entries int
		says    string
	}{
		{"good", func() { write("n2", time.Now(), 500) }, 500, "loaded what peers had sent"},
		{"one bit", func() {
			b := write("n2", time.Now(), 500)
			b[len(b)/2] ^= 4
			ok(t, os.WriteFile(path, b, 0o600))
		}, 0, "snapshot is damaged"},
		{"cut short", func() {
			b := write("n2", time.Now(), 500)
			ok(t, os.WriteFile(path, b[:len(b)*2/3], 0o600))
		}, 0, "cut short"},
		{"without its sum", func() {
			b := write("n2", time.Now(), 500)
			ok(t, os.WriteFile(path, b[:len(b)-32], 0o600))
		}, 0, "cut short"},
		{"empty", func() { ok(t, os.WriteFile(path, nil, 0o600)) }, 0, "cut short"},
		{"old", func() { write("n2", time.Now().Add(-time.Hour), 500) }, 0, "too old"},
		{"of the future", func() { write("n2", time.Now().Add(time.Hour), 500) }, 0, "too old"},
		{"of another dialect", func() { write("(peer)", time.Now(), 500) }, 0, ""},
		{"another format", func() { ok(t, os.WriteFile(path, []byte(strings.Repeat("SYNCDSN9", 1000)), 0o600)) }, 0, "does not begin with"},
	} {
		tt.make()
		earlier := len(c.fws[0].Log())
		c.fws[0].Start()
		if n := c.fws[0].Status().External.Entries; int(n) != tt.entries {
			t.Errorf("%s: %d entries, want %d", tt.name, n, tt.entries)
		}
		log := c.fws[0].Log()[earlier:]
		t.Logf("%s: %s", tt.name, firstWith(log, "snapshot", "loaded"))
		says(t, log, tt.says)
		gone(t, path)
		if tt.entries != 0 {
			// They are committed: nobody else has them.
			r := c.fws[0].Commit()
			if got := r.Total().Created; int(got) != tt.entries {
				t.Errorf("%s: %d of %d entries were committed", tt.name, got, tt.entries)
			}
			ok(t, c.kernels[0].Flush())
			c.fws[0].Kill() // a stop would keep them
		} else {
			c.fws[0].Stop()
		}
		calm(t, log)
	}
}

// A state directory that cannot be written is a word in the log, at the stop.
func TestSnapshotCannotBeWritten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, udp4, "")
	create(t, c.kernels[0], 0, 100)
	c.equal(5*time.Second, "before")
	ok(t, os.Remove(c.stateDir(1)))
	c.fws[1].Stop()
	says(t, c.fws[1].Log(), "could not be kept for the next start")
	c.fws[1].Start()
	c.equal(5*time.Second, "after a cold start")
	c.inStep(5 * time.Second)
}

// firstWith returns the first line of a text that has one of the words.
func firstWith(text string, words ...string) string {
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.Contains(line, w) {
				return strings.TrimSpace(line)
			}
		}
	}
	return fmt.Sprintf("no line with %v", words)
}

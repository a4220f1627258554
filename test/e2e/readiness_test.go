package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"syncd/internal/ctl"
)

// trackFile reads a file for keepalived's track_file over and over.
type trackFile struct {
	mu   sync.Mutex
	seen []string // each time that it changed: its content, or "none"
	at   []time.Time
	odd  string // a content that may not be
}

// watchTrackFile reads until the test ends.
func watchTrackFile(t testing.TB, path string) *trackFile {
	t.Helper()
	w := &trackFile{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Microsecond):
			}
			b, err := os.ReadFile(path)
			text := string(b)
			if os.IsNotExist(err) {
				text = "none"
			}
			w.mu.Lock()
			if text != "none" && text != "0\n" && text != "1\n" {
				w.odd = fmt.Sprintf("%q %v", text, err)
			}
			if len(w.seen) == 0 || w.seen[len(w.seen)-1] != text {
				w.seen, w.at = append(w.seen, text), append(w.at, time.Now())
			}
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
		if w.odd != "" {
			t.Errorf("the track file had the content %s", w.odd)
		}
	})
	return w
}

// is reports whether these are the contents so far, and since when the last one is
// there.
func (w *trackFile) is(contents ...string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.seen, contents) {
		return time.Time{}, false
	}
	return w.at[len(w.at)-1], true
}

func (w *trackFile) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%q", w.seen)
}

// gate is more of a configuration; the track file of a cluster is "track"
// in its directory.
func (c *cluster) gate(timeout string) string {
	return fmt.Sprintf("[ready]\ntrack_file = %q\ntimeout = %q", filepath.Join(c.dir, "track"), timeout)
}

// waitReady runs "ctl wait-ready" and sends how long it took, or its failure.
func waitReady(f *firewall, timeout string) (out string, took time.Duration, err error) {
	begin := time.Now()
	b, err := f.node.Output(f.node.Command(bin, "ctl", "--socket", f.socket, "wait-ready", "--timeout", timeout))
	return string(b), time.Since(begin), err
}

// A fresh node is not ready before it has all that its peer has, proven.
func TestReadyWithState(t *testing.T) {
	t.Parallel()
	const flows = 50_000
	c := layCluster(t, 2, udp4, "")
	c.start(0)
	c.fill(0, 0, flows)
	c.sync = c.gate("60s")
	track := watchTrackFile(t, filepath.Join(c.dir, "track"))
	c.fws[1] = c.prepare(1)
	// A slow link, so that there is time to look.
	slow(t, c, 1)
	c.fws[1].Start()
	f := c.fws[1]
	if out, _, err := waitReady(f, "300ms"); err == nil || !strings.Contains(out, "not ready in time: ") {
		t.Errorf("wait-ready before the state is there: %v %s", err, out)
	}
	if _, is := track.is("none", "1\n"); !is || f.Status().Ready {
		t.Errorf("before the state is there: track file %v, ready %v", track, f.Status().Ready)
	}
	var wait errgroup.Group
	wait.Go(func() error {
		out, took, err := waitReady(f, "50s")
		t.Logf("wait-ready: %v %s", took.Round(time.Millisecond), strings.TrimSpace(out))
		return err
	})
	var early uint64
	waitFor(t, 50*time.Second, "the node is ready", func() bool {
		s := f.Status()
		if !s.Ready {
			early = s.External.Entries
			if s.InSync && s.External.Entries < flows {
				t.Fatalf("in sync with %d of %d flows", s.External.Entries, flows)
			}
		}
		return s.Ready
	})
	s := f.Status()
	if s.External.Entries != flows || s.ProvenAgeS == 0 {
		t.Errorf("ready with %d flows, proven %v s ago", s.External.Entries, s.ProvenAgeS)
	}
	if _, is := track.is("none", "1\n", "0\n"); !is {
		t.Errorf("track file %v", track)
	}
	ok(t, wait.Wait())
	if early == 0 {
		t.Error("never seen with a part of the flows: the test is worth nothing")
	}
	says(t, f.Log(), `"because": "in step with every peer"`)
	ok(t, c.nodes[1].SetLoss())
	c.equal(5*time.Second, "when ready")

	// At a restart it begins anew, and what is in the way of the track file stays
	// away: it is replaced as a whole.
	f.Stop()
	f.Start()
	waitFor(t, 5*time.Second, "ready after a restart", func() bool { return f.Status().Ready })
	if _, is := track.is("none", "1\n", "0\n", "1\n", "0\n"); !is {
		t.Errorf("track file %v", track)
	}
	if files, err := filepath.Glob(filepath.Join(c.dir, ".track*")); err != nil || len(files) > 0 {
		t.Errorf("left: %v %v", files, err)
	}
}

// slow limits what comes to a node.
func slow(t testing.TB, c *cluster, i int) {
	t.Helper()
	need(t, "nft")
	rules(t, c, i, "udp dport 3780 udp length > 600 limit rate over 1000/second burst 100 packets drop")
}

// rules loads a rule for what comes in on a node, in the place of the last one.
func rules(t testing.TB, c *cluster, i int, rule string) {
	t.Helper()
	cmd := c.nodes[i].Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet gate\ndelete table inet gate\ntable inet gate { chain in { type filter hook prerouting priority -400; " + rule + "; }; }\n")
	if out, err := c.nodes[i].Output(cmd); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// A node that hears nobody is ready after some seconds.
func TestReadyAlone(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, multicast6, "")
	c.sync = c.gate("60s")
	track := watchTrackFile(t, filepath.Join(c.dir, "track"))
	begin := time.Now()
	c.start(0)
	waitFor(t, 15*time.Second, "the node is ready", func() bool { return c.fws[0].Status().Ready })
	at, is := track.is("none", "1\n", "0\n")
	if took := at.Sub(begin); !is || took < 4500*time.Millisecond || took > 8*time.Second {
		t.Errorf("track file %v, after %v", track, took)
	}
	says(t, c.fws[0].Log(), `"because": "no peer lives"`)
	if out, took, err := waitReady(c.fws[0], "5s"); err != nil || took > 2*time.Second {
		t.Errorf("wait-ready when ready: %v after %v: %s", err, took, out)
	}

	// In charge it stays ready when its daemon starts again: keepalived would move the
	// addresses.
	c.fws[0].Primary()
	c.fws[0].Stop()
	c.fws[0].Start()
	if s := c.fws[0].Status(); !s.Ready || s.Role != ctl.RolePrimary {
		t.Errorf("after a restart in charge: %s, ready %v", s.Role, s.Ready)
	}
	if _, is := track.is("none", "1\n", "0\n"); !is {
		t.Errorf("track file %v", track)
	}
}

// A peer that lives but whose state does not come holds the node back for a
// limited time.
func TestReadyTimeLimit(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	c := layCluster(t, 2, udp6, "")
	c.start(0)
	create(t, c.kernels[0], 0, 2000)
	c.sync = c.gate("9s")
	track := watchTrackFile(t, filepath.Join(c.dir, "track"))
	// Greetings pass; bulk updates and digests are longer.
	rules(t, c, 1, "udp dport 3780 udp length > 400 drop")
	begin := time.Now()
	c.start(1)
	waitFor(t, 20*time.Second, "the node is ready", func() bool { return c.fws[1].Status().Ready })
	at, is := track.is("none", "1\n", "0\n")
	if took := at.Sub(begin); !is || took < 8500*time.Millisecond || took > 13*time.Second {
		t.Errorf("track file %v, after %v", track, took)
	}
	says(t, c.fws[1].Log(), `"because": "the time limit of 9s is over"`)
	if s := c.fws[1].Status(); s.InSync || s.ProvenAgeS != 0 {
		t.Errorf("without any state: %+v", s)
	} else {
		t.Logf("what the status says: %v", s.Problems)
	}
	rules(t, c, 1, "accept")
	c.equal(5*time.Second, "when the state comes")
	c.inStep(5 * time.Second)
}

// A peer that does not answer at all does not hold the node back for longer than
// if it were not there.
func TestReadyBesideFrozenPeer(t *testing.T) {
	t.Parallel()
	c := layCluster(t, 2, multicast4, "")
	c.start(0)
	create(t, c.kernels[0], 0, 2000)
	c.fws[0].Freeze()
	c.sync = c.gate("30s")
	c.start(1)
	waitFor(t, 8*time.Second, "the node is ready", func() bool { return c.fws[1].Status().Ready })
	says(t, c.fws[1].Log(), `"because": "no peer lives"`)
	c.fws[0].Thaw()
	c.equal(5*time.Second, "when the peer goes on")
	c.inStep(5 * time.Second)
	if !c.fws[1].Status().Ready {
		t.Error("not ready any more")
	}
}

// A node is not ready before it has heard all its peers, although it is in step with
// those that it has heard: the first words of one may get lost.
func TestReadyWithAllPeers(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	const flows = 2000
	c := layCluster(t, 3, udp4, "")
	c.start(0)
	c.start(1)
	create(t, c.kernels[1], 0, flows)
	c.sync = c.gate("60s")
	rules(t, c, 2, "ip saddr "+linkAddr(udp4, 0, 2).String()+" drop")
	begin := time.Now()
	c.start(2)
	time.Sleep(time.Until(begin.Add(1500 * time.Millisecond)))
	rules(t, c, 2, "accept")
	waitFor(t, 10*time.Second, "the node is ready", func() bool { return c.fws[2].Status().Ready })
	if n := c.fws[2].Status().External.Entries; n < flows {
		t.Errorf("ready after %v with %d of %d flows", time.Since(begin).Round(10*time.Millisecond), n, flows)
	}
	says(t, c.fws[2].Log(), `"because": "in step with every peer"`)
}

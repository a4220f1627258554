package daemon

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/monotime"
	"syncd/internal/sync/ftfw"
)

func TestPeerState(t *testing.T) {
	const now = monotime.Time(time.Hour)
	up := ftfw.Peer{Heard: now, HelloDone: true}
	with := func(change func(*ftfw.Peer)) ftfw.Peer {
		p := up
		change(&p)
		return p
	}
	for _, tt := range []struct {
		name     string
		peer     ftfw.Peer
		evicted  uint64
		state    string
		problems []string
	}{
		{"up", up, 0, ctl.PeerUp, nil},
		{"unheard", ftfw.Peer{}, 0, ctl.PeerUnheard, []string{"peer fw2 has not been heard yet"}},
		{"silent", with(func(p *ftfw.Peer) { p.Silent, p.Heard = true, now.Add(-90*time.Second) }), 0, ctl.PeerSilent,
			[]string{"peer fw2 has been silent for 1m30s"}},
		{"does not hear us", with(func(p *ftfw.Peer) { p.HelloDone = false }), 0, ctl.PeerHelloing, []string{"the greeting with peer fw2 is under way"}},
		{"does not know that we hear it", with(func(p *ftfw.Peer) { p.Helloing = true }), 0, ctl.PeerHelloing, []string{"the greeting with peer fw2 is under way"}},
		{"bulk and resync", with(func(p *ftfw.Peer) { p.BulkRunning, p.ResyncWanted = true, true }), 0, ctl.PeerUp,
			[]string{"a bulk update to the peer is under way", "the peer has not answered the request for its state yet"}},
		{"evicted", up, 3, ctl.PeerUp, []string{"3 deletions could not be delivered for want of room; the peer may hold stale entries until it restarts"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer, problems := onePeerStatus(tt.peer, "fw2", now, tt.evicted)
			if peer.State != tt.state || !slices.Equal(problems, tt.problems) {
				t.Errorf("%+v, %q; want %s, %q", peer, problems, tt.state, tt.problems)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	d, k := newDaemon(t, validConfig)
	for i := range 5 {
		k.Create(testFlow(i, 3), 0)
	}
	waitFor(t, "5 flows in the internal cache", func() bool {
		st, err := d.Status(t.Context())
		return err == nil && st.Internal.Entries == 5
	})
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Node != "fw1" || st.Role != ctl.RoleUnknown || st.Mode != "ftfw" || st.Wire != "conntrackd" || st.Version != "test" {
		t.Errorf("node %q, role %q, mode %q, wire %q, version %q", st.Node, st.Role, st.Mode, st.Wire, st.Version)
	}
	if st.InSync || len(st.Peers) != 1 || st.Peers[0].State != ctl.PeerUnheard || st.Peers[0].Address != "127.0.0.2" {
		t.Errorf("without a peer: in sync %v, ready %v, peers %+v", st.InSync, st.Ready, st.Peers)
	}
	if len(st.Links) != 1 || st.Links[0].Interface != "lo" || !st.Links[0].Active {
		t.Errorf("links %+v", st.Links)
	}
	line := d.statusLine(t.Context())
	if want := "5 flows of this node, 0 of peers; peer 127.0.0.2 has not been heard yet"; line != want {
		t.Errorf("status line %q, want %q", line, want)
	}
	d.mu.Lock()
	d.role, d.task = ctl.RolePrimary, "commit"
	d.mu.Unlock()
	if line := d.statusLine(t.Context()); !strings.HasPrefix(line, "primary; 5 flows of this node") || !strings.Contains(line, "; commit;") {
		t.Errorf("status line %q", line)
	}
}

func TestCommitReport(t *testing.T) {
	start := time.Now()
	r := commit.Report{
		Entries: 10, Created: 4, Updated: 2, Replaced: 1, AlreadyThere: 1, Skipped: 1, Refused: 1,
		ByReason:  map[string]int{"table full": 1, "conflict": 1, "without master": 2},
		RefusedBy: map[string]int{"table full": 1}, SkippedBy: map[string]int{"conflict": 1},
		Related: 4, OfRelated: commit.Counts{Created: 1, Replaced: 1, Skipped: 1, Refused: 1},
		Duration: 2 * time.Second,
	}
	x := commit.Report{
		Entries: 3, Created: 1, Refused: 2, Duration: time.Second,
		RefusedBy: map[string]int{"master is not there": 2}, Examples: []string{"b"},
	}
	r.Examples = []string{"a"}
	got := commitReport(&reports{r, x}, start)
	if e := got.Expects; e.Entries != 3 || e.Created != 1 || e.Refused != 2 || e.RefusedBy["master is not there"] != 2 ||
		!slices.Equal(got.Examples, []string{"a", "b"}) || got.Total().Entries != 13 {
		t.Errorf("%+v, examples %q", e, got.Examples)
	}
	f := got.Flows
	if f.Entries != 6 || f.Created != 3 || f.Updated != 2 || f.AlreadyThere != 1 || f.Skipped != 0 || f.Refused != 0 {
		t.Errorf("%+v", f)
	}
	if f := got.Related; f.Entries != 4 || f.Created != 2 || f.Updated != 0 || f.AlreadyThere != 0 || f.Skipped != 1 || f.Refused != 1 {
		t.Errorf("related: %+v", f)
	}
	for _, by := range []struct{ got, want map[string]uint64 }{
		{f.RefusedBy, map[string]uint64{"table full": 1}},
		{f.SkippedBy, map[string]uint64{"conflict": 1}},
		{f.IncompleteBy, map[string]uint64{"without master": 2}},
	} {
		if !maps.Equal(by.got, by.want) {
			t.Errorf("%v, want %v", by.got, by.want)
		}
	}
	if got.DurationS != 3 || got.RatePerS != 13./3 || !got.Started.Equal(start) {
		t.Errorf("took %v s, %v a second, started %v", got.DurationS, got.RatePerS, got.Started)
	}
}

// waitFor waits for a condition of something that runs in real time.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

package ctl

import (
	"context"
	"fmt"
	"sync"
	"time"

	"syncd/internal/flow"
)

// fakeNode answers with fixed documents and notes what it was asked.
type fakeNode struct {
	mu    sync.Mutex
	calls []string

	err     error                           // answer of every method
	entries int                             // of a dump
	dumpErr error                           // after the entries
	block   func(ctx context.Context) error // in place of a command
	steps   int                             // of progress, of a command that tells it
	pace    chan struct{}                   // a value lets it go on after a step; nil for at once
}

var _ Node = (*fakeNode)(nil)

func (n *fakeNode) called(ctx context.Context, format string, args ...any) error {
	n.mu.Lock()
	n.calls = append(n.calls, fmt.Sprintf(format, args...))
	n.mu.Unlock()
	if n.block != nil {
		return n.block(ctx)
	}
	return n.err
}

func (n *fakeNode) takeCalls() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.calls
	n.calls = nil
	return c
}

func (n *fakeNode) Status(context.Context) (*Status, error) { return sampleStatus(), n.err }
func (n *fakeNode) Stats(context.Context) (*Stats, error)   { return sampleStats(), n.err }

func (n *fakeNode) Commit(ctx context.Context, o CommitOptions) (*CommitReport, error) {
	call := "commit"
	if o.DryRun {
		call += " dry"
	}
	if o.Peer != "" {
		call += " of " + o.Peer
	}
	n.tell(o.Progress)
	return sampleCommit(), n.called(ctx, "%s", call)
}

// tell reports progress to whoever wants to know.
func (n *fakeNode) tell(progress ProgressFunc) {
	if progress == nil {
		return
	}
	for i := range n.steps {
		progress(Progress{Done: uint64(i + 1), Total: uint64(n.steps), ElapsedS: float64(i)})
		if n.pace != nil {
			<-n.pace
		}
	}
}

func (n *fakeNode) Flush(ctx context.Context, which string) (*Done, error) {
	return &Done{"flushed " + which}, n.called(ctx, "flush %s", which)
}

func (n *fakeNode) Resync(ctx context.Context, kernel bool) (*Done, error) {
	return &Done{"asked"}, n.called(ctx, "resync kernel=%t", kernel)
}

func (n *fakeNode) Verify(ctx context.Context) (*VerifyReport, error) {
	return &VerifyReport{
		DurationS: 1.5,
		Peers:     []VerifyPeer{{Name: "fw2", Flows: 10, Missing: 1, Stale: 2, Different: 3, Corrupted: 4, Proven: true}, {Name: "fw3", Problem: "silent"}},
		Entries:   []VerifyEntry{{Peer: "fw2", What: "missing", Flow: "tcp 192.0.2.1:1>192.0.2.2:2"}},
	}, n.called(ctx, "verify")
}

func (n *fakeNode) Bulk(ctx context.Context) (*Done, error) {
	return &Done{"sending"}, n.called(ctx, "bulk")
}

func (n *fakeNode) SetRole(ctx context.Context, role string, progress ProgressFunc) (*RoleReport, error) {
	r := sampleRole()
	r.Role = role
	n.tell(progress)
	return r, n.called(ctx, "role %s", role)
}

func (n *fakeNode) Reload(ctx context.Context) (*Done, error) {
	return &Done{"reloaded"}, n.called(ctx, "reload")
}

func (n *fakeNode) Dump(_ context.Context, which string, fn func(*DumpEntry) error) error {
	if n.err != nil {
		return n.err
	}
	e := DumpEntry{Flow: sampleFlow(), AgeS: 1.5}
	if which == External {
		e.Owner, e.Dead = "fw2", true
	}
	for i := range n.entries {
		e.Flow.Orig.SrcPort = uint16(i)
		if err := fn(&e); err != nil {
			return err
		}
	}
	return n.dumpErr
}

var sampleTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func sampleFlow() flow.Flow {
	f := flow.Flow{
		Orig: flow.Tuple{
			Src: [16]byte{198, 51, 100, 2}, Dst: [16]byte{203, 0, 113, 2},
			SrcPort: 40000, DstPort: 80, Family: flow.IPv4, Proto: flow.TCP,
		},
		Has:    flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasTCP,
		Status: flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed, Timeout: 300, TCPState: flow.TCPEstablished,
	}
	f.Reply, _ = f.Orig.Inverse()
	return f
}

func sampleCommit() *CommitReport {
	return &CommitReport{
		Started: sampleTime, DurationS: 0.25, RatePerS: 40012,
		Flows: CommitCount{
			Entries: 10000, Created: 9000, Updated: 900, AlreadyThere: 50, Skipped: 40, Refused: 10,
			RefusedBy:    map[string]uint64{"not supported": 7, "invalid": 3},
			SkippedBy:    map[string]uint64{"conflict": 40},
			IncompleteBy: map[string]uint64{"without helper": 5},
		},
		Related: CommitCount{
			Entries: 3, Created: 2, Refused: 1,
			RefusedBy: map[string]uint64{"invalid": 1}, IncompleteBy: map[string]uint64{"without master": 2},
		},
		Examples: []string{"tcp 192.0.2.1:5>198.51.100.1:443: conflict", "udp 192.0.2.1:7>198.51.100.1:53: without master"},
	}
}

func sampleRole() *RoleReport {
	return &RoleReport{
		Role: RolePrimary, Before: RoleBackup, DurationS: 0.3,
		Steps: []RoleStep{
			{Name: "commit", DurationS: 0.25, Message: "10003 entries"},
			{Name: "bulk", DurationS: 0.002, Message: "to fw2"},
		},
		Commit: sampleCommit(),
	}
}

func sampleStatus() *Status {
	return &Status{
		Node: "fw1", Version: "1.0.0", Role: RoleBackup, Since: sampleTime, RoleRestored: true, Started: sampleTime.Add(-time.Hour),
		UptimeS: 93784, Mode: "ftfw", Wire: "syncd", ProvenAgeS: 0.4,
		Problems: []string{"a bulk update from fw2 runs", "fw3 was never heard"},
		Peers: []PeerStatus{
			{
				Name: "fw2", Address: "203.0.113.2:3780", State: PeerUp, Role: RolePrimary, HeardAgeS: 0.3124, Flows: 123456,
				Unacked: 12, Dirty: 3, Bulk: true, Resync: true, Membership: "alive",
			},
			{Name: "fw3", Address: "203.0.113.3:3780", State: PeerUnheard},
			{Name: "fw4\x1b[2J", Address: "203.0.113.4:3780", State: PeerUp, HeardAgeS: 1, InSync: true},
		},
		Links: []LinkStatus{
			{Name: "eth2", Type: "udp", Interface: "eth2", Active: true, Up: true, MaxPayloadBytes: 1452},
			{Name: "eth3", Type: "multicast", Interface: "eth3", Reason: "no carrier", MaxPayloadBytes: 1452},
		},
		Internal: CacheStatus{Entries: 654321, Expects: 12, Dead: 12, Limit: 524288, Refused: 1, Bytes: 104857600},
		External: CacheStatus{Entries: 123456, Expects: 3, Limit: 524288, Bytes: 512},
		Kernel: KernelStatus{
			Entries: 654321, Max: 262144, Events: 2,
			Warnings: []string{"the table is almost full"},
		},
		Parked:     &ParkStatus{Entries: 123000, Waiting: 5},
		LastCommit: sampleCommit(), Task: "bulk update to fw2",
	}
}

func sampleStats() *Stats {
	return &Stats{
		Since: sampleTime,
		Events: EventStats{
			Expects: 70, ExpectsLeftOut: 6,
			Received: 600, New: 100, Updates: 300, Destroys: 200, Filtered: 6, Own: 7, Malformed: 1, Overruns: 2,
			Dumps: 3, Dumped: 3000, Repaired: 4, Fetched: 40, Learned: 8, FetchFailures: 1, ReceiveBufferBytes: 8 << 20,
		},
		Internal: CacheStats{Created: 100, Updated: 300, Unchanged: 5, Deleted: 90, Swept: 4, Expired: 3, NotFound: 2, NotOwner: 0, Refused: 1, LeftBehind: 12, Purged: 34},
		External: CacheStats{Created: 50, Updated: 20, Deleted: 10, NotOwner: 1},
		Sync: SyncStats{
			MessagesSent:     map[string]uint64{"CT_NEW": 100, "CT_UPD": 250},
			MessagesReceived: map[string]uint64{"CT_NEW": 50, "CT_DEL": 10},
			AcksSent:         1, AcksReceived: 2, NacksSent: 3, NacksReceived: 4, Lost: 5, Before: 6, Resent: 7, Unfollowed: 78,
			ResyncsAsked: 8, ResyncsServed: 9, BulksSent: 10, BulksReceived: 11, DigestsAgreed: 12, DigestsDiffered: 13,
			Repaired: 14, Malformed: map[string]uint64{"truncated": 15, "bad type": 0}, Refused: map[string]uint64{"replayed": 16, "unknown key": 17},
		},
		Links: []LinkStats{{
			Name: "eth2", DatagramsSent: 18, DatagramsReceived: 19, SentBytes: 20, ReceivedBytes: 21,
			Drops: map[string]uint64{"no route": 22},
		}},
		Commit: CommitStats{Commits: 1, Entries: 10003, Created: 9002, Updated: 900, Skipped: 90, Refused: 11, DurationS: 0.25},
		Parked: &ParkStats{
			Created: 1, Updated: 2, Remade: 3, Deleted: 4, Released: 5, Adopted: 6, Touched: 7, Yielded: 8,
			NotParked: map[string]uint64{"clash": 9, "table full": 10, "refused": 0},
		},
	}
}

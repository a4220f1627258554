package ctl

import (
	"context"
	"errors"
)

// Roles of a node, as SetRole takes them and Status shows them.
const (
	RoleUnknown = "unknown" // nobody has said since the host started, or it was not kept
	RolePrimary = "primary"
	RoleBackup  = "backup"
	RoleFault   = "fault"
)

// Names of the caches, as Dump and Flush take them.
const (
	Internal = "internal"
	External = "external"
	Both     = "both" // Flush only
)

// Errors of a Node that have a status code of their own. Wrap them to say more.
var (
	// ErrBusy: what was asked for runs already (409).
	ErrBusy = errors.New("already running")
	// ErrNotReady: the daemon starts or stops; the same request can succeed
	// later (503).
	ErrNotReady = errors.New("not ready")
	// ErrInvalid: the request makes no sense here, for example a bulk update in
	// a mode that has none (400).
	ErrInvalid = errors.New("invalid request")
)

// CommitOptions says what to commit, and how.
type CommitOptions struct {
	DryRun   bool         // only look, and report what would be done
	Peer     string       // only the entries of the peer with this name; "" for those of all
	Progress ProgressFunc // told now and then how far the commit is; nil for nobody
}

// ProgressFunc is told how far a commit is. It does not block.
type ProgressFunc func(Progress)

// Node is what the daemon does for the control socket. All methods are called
// from several goroutines at once and none may keep another waiting longer than
// it must. A returned document belongs to the caller.
//
// ctx of a reading method ends when its client goes away. ctx of a commanding
// method ends only when the daemon stops.
type Node interface {
	Status(ctx context.Context) (*Status, error)

	// Stats returns all counters. Stats.Control is filled in by the server.
	Stats(ctx context.Context) (*Stats, error)

	// Commit puts the external cache into the kernel and returns when that is
	// done. Entries that the kernel refused are in the report and are no error.
	// A dry run only looks: its ctx ends when its client goes away.
	Commit(ctx context.Context, o CommitOptions) (*CommitReport, error)

	// Flush empties caches of the daemon: Internal, External or Both.
	Flush(ctx context.Context, which string) (*Done, error)

	// Resync asks all peers for their state; with kernel it reads the kernel's
	// table again instead.
	Resync(ctx context.Context, kernel bool) (*Done, error)

	// Bulk sends the whole internal cache to all peers.
	Bulk(ctx context.Context) (*Done, error)

	// Verify compares what is held of every peer with what the peer has, repairs
	// what differs, and returns when the last digests agree or time is over.
	Verify(ctx context.Context) (*VerifyReport, error)

	// Dump calls fn for every entry of the cache Internal or External, in no
	// order. The entry is fn's until fn returns. An error of fn ends the dump
	// and is returned.
	//
	// fn runs at the speed of the client and may block for many seconds: it
	// must be called from the goroutine that called Dump, with no lock held and
	// never inside the loop.
	Dump(ctx context.Context, which string, fn func(*DumpEntry) error) error

	// SetRole does all that a change to RolePrimary, RoleBackup or RoleFault
	// needs and returns when it is done. progress, if not nil, is told how far
	// its commit is.
	SetRole(ctx context.Context, role string, progress ProgressFunc) (*RoleReport, error)

	// Reload reads the configuration again and applies what can be applied.
	Reload(ctx context.Context) (*Done, error)
}

package e2e

import (
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/lab"
)

// roles says which daemon runs on the node whose kernel has the flows, and which
// on the other one.
type roles struct{ sender, receiver daemonKind }

type daemonKind string

const (
	ours   daemonKind = "syncd"
	theirs daemonKind = "conntrackd"
)

var allRoles = []roles{{ours, ours}, {ours, theirs}, {theirs, ours}}

// theirs reports whether a real conntrackd takes part.
func (r roles) theirs() bool { return r.sender == theirs || r.receiver == theirs }

func (r roles) String() string { return string(r.sender) + " to " + string(r.receiver) }

// duoOptions are what a test may want of a duo besides roles and transport.
type duoOptions struct {
	tracking bool   // TCPWindowTracking of conntrackd
	links    int    // 0 for 1
	syncd    string // more of syncd's configuration: tables
	sealed   bool   // the sealed dialect, with a key of the test's own
	mode     string // more of the Mode block of conntrackd

	expectations bool // replicate them; in the sealed dialect that is the default
}

// duo is a sender a and a receiver b on cabled nodes. In its kernels there is only
// what the test makes.
type duo struct {
	t        testing.TB
	roles    roles
	opts     duoOptions
	nA, nB   *lab.Node
	a, b     *firewall
	kA, kB   *conntrack.Conn  // the kernels' tables
	accept   func(tuple) bool // whether a flow of a kernel is one of the test's
	key      string           // file with the key, if sealed
	configOf func(kind daemonKind, node int) string
}

// newDuo starts two daemons. When the test ends it fails if one of them has counted
// a malformed message of the other.
func newDuo(t testing.TB, r roles, tr transport, opts duoOptions) *duo {
	t.Helper()
	d := layDuo(t, r, tr, opts)
	d.startA()
	d.startB()
	return d
}

// layDuo makes the nodes of a duo without daemons: a test may want flows, or one
// daemon, first.
func layDuo(t testing.TB, r roles, tr transport, opts duoOptions) *duo {
	t.Helper()
	if r.theirs() {
		need(t, "conntrackd")
	}
	a, b := cabled(t, newLab(t), max(1, opts.links))
	return duoOn(t, r, tr, opts, a, b)
}

// duoOn is a duo without daemons on nodes that exist.
func duoOn(t testing.TB, r roles, tr transport, opts duoOptions, a, b *lab.Node) *duo {
	t.Helper()
	opts.links = max(1, opts.links)
	d := &duo{t: t, roles: r, opts: opts, nA: a, nB: b, accept: isTestFlow}
	d.kA, d.kB = openKernel(t, d.nA), openKernel(t, d.nB)
	d.configOf = func(kind daemonKind, node int) string {
		var links []link
		for which := range opts.links {
			links = append(links, newLink(tr, which, node))
		}
		if kind == ours && opts.sealed {
			return d.sealedConfig(links...) // looks at d.opts
		}
		more, options := opts.syncd, "TCPWindowTracking "+map[bool]string{false: "off", true: "on"}[opts.tracking]
		if opts.expectations {
			more, options = more+"\n[filter]\nexpectations = true", options+"\nExpectationSync on"
		}
		if kind == ours {
			return syncdConfig(more, links...)
		}
		return conntrackdConfigMode("StartupResync on\n"+opts.mode, options, links...)
	}
	return d
}

func (d *duo) startA() { d.t.Helper(); d.a = d.start(d.roles.sender, d.nA, 1) }
func (d *duo) startB() { d.t.Helper(); d.b = d.start(d.roles.receiver, d.nB, 2) }

func (d *duo) start(kind daemonKind, n *lab.Node, number int) *firewall {
	d.t.Helper()
	var f *firewall
	if kind == ours {
		f = newSyncd(d.t, n, d.configOf(kind, number))
	} else {
		f = newConntrackd(d.t, n, d.configOf(kind, number))
	}
	d.t.Cleanup(func() {
		if f.proc == nil {
			return
		}
		if bad := f.Malformed(); len(bad) > 0 {
			d.t.Errorf("the %s on %s found messages of its peer malformed: %v", kind, n.Name(), bad)
		}
	})
	return f
}

// kernelA and kernelB return the test's flows in the kernels.
func (d *duo) kernelA() table { d.t.Helper(); return kernelTable(d.t, d.kA, d.accept) }
func (d *duo) kernelB() table { d.t.Helper(); return kernelTable(d.t, d.kB, d.accept) }

// external returns the external cache of the receiver.
func (d *duo) external() table { d.t.Helper(); return d.b.External() }

// waitReplicated waits until the receiver's external cache is what the sender's
// kernel is.
func (d *duo) waitReplicated(timeout time.Duration, what string) {
	d.t.Helper()
	waitEqual(d.t, timeout, what, d.external, d.kernelA, d.form())
}

// form is how caches are compared here: a conntrackd that sends leaves out the
// ports of UDP-Lite and the keys of GRE.
func (d *duo) form() form {
	return form{portless: d.roles.sender == theirs}
}

// reverse is form for the direction from the receiver to the sender.
func (d *duo) reverse() form { return form{portless: d.roles.receiver == theirs} }

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sync/errgroup"

	"syncd/internal/ctl"
	"syncd/internal/lab"
	"syncd/internal/seal"
)

// cluster is some nodes on one Ethernet, "n1", "n2" ..., that speak the sealed
// dialect. What their tables contain is what a test puts there.
type cluster struct {
	t      testing.TB
	tr     transport
	lab    *lab.Lab
	bridge *lab.Bridge
	dir    string // key files, and the states of the daemons
	keys   []string
	sync   string // more of [sync], then more tables

	nodes   []*lab.Node
	kernels []*conntrack.Conn
	fws     []*firewall // nil: never started
}

// layCluster makes the nodes of a cluster without daemons, and a key.
func layCluster(t testing.TB, n int, tr transport, sync string) *cluster {
	t.Helper()
	c := &cluster{t: t, tr: tr, lab: newLab(t), sync: sync, fws: make([]*firewall, n)}
	dir, err := os.MkdirTemp("", "e2e-")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.dir = dir
	c.keys = []string{c.newKey("key")}
	c.bridge, err = c.lab.Bridge("sw")
	ok(t, err)
	for i := range n {
		c.nodes = append(c.nodes, c.host(fmt.Sprintf("n%d", i+1), i+1))
		c.kernels = append(c.kernels, openKernel(t, c.nodes[i]))
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, f := range c.running() {
			status, err := f.ctl.Status(context.Background())
			t.Logf("%s: %+v %v", f.node.Name(), status, err)
			stats, err := f.ctl.Stats(context.Background())
			t.Logf("%s: %+v %v", f.node.Name(), stats, err)
		}
	})
	return c
}

// newCluster starts a cluster and waits until it is in step.
func newCluster(t testing.TB, n int, tr transport, sync string) *cluster {
	t.Helper()
	c := layCluster(t, n, tr, sync)
	for i := range n {
		c.start(i)
	}
	c.inStep(10 * time.Second)
	return c
}

// host plugs another host into the Ethernet, with the addresses of this number.
func (c *cluster) host(name string, number int) *lab.Node {
	c.t.Helper()
	n, err := c.lab.Node(name)
	ok(c.t, err)
	ok(c.t, c.bridge.Plug(lab.End{Node: n, If: "sync0", LinkOptions: lab.LinkOptions{Addrs: []netip.Prefix{
		netip.PrefixFrom(linkAddr(udp4, 0, number), 26),
		netip.PrefixFrom(linkAddr(udp6, 0, number), 64),
	}}}))
	ok(c.t, n.Settle())
	return n
}

// newKey makes a key file and returns its path.
func (c *cluster) newKey(name string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	ok(c.t, os.WriteFile(path, seal.NewKey().Text(), 0o600))
	return path
}

// config is the configuration of a daemon.
func (c *cluster) config(f *firewall, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[node]\nname = %q\nsocket = %q\nstate_dir = %q\n", f.node.Name(), f.socket, c.stateDir(i))
	fmt.Fprintf(&b, "[sync]\nkeys = [\"%s\"]\n%s\n", strings.Join(c.keys, `", "`), c.sync)
	l := link{transport: c.tr, ifname: "sync0", port: port, local: linkAddr(c.tr, 0, i+1)}
	if c.tr.multicast {
		b.WriteString(l.toml())
		return b.String()
	}
	var peers []string
	for j := range c.nodes {
		if j != i {
			peers = append(peers, fmt.Sprintf("%q", linkAddr(c.tr, 0, j+1)))
		}
	}
	fmt.Fprintf(&b, "[[link]]\ntype = \"udp\"\ninterface = %q\nlocal = %q\npeers = [%s]\n", l.ifname, l.local, strings.Join(peers, ", "))
	return b.String()
}

// stateDir is the directory in which a daemon keeps its snapshot.
func (c *cluster) stateDir(i int) string { return filepath.Join(c.dir, c.nodes[i].Name()) }

// prepare makes a daemon ready to start.
func (c *cluster) prepare(i int) *firewall {
	c.t.Helper()
	f := newFirewall(c.t, c.nodes[i], "syncd")
	ok(c.t, os.MkdirAll(c.stateDir(i), 0o700))
	f.write(c.config(f, i))
	var err error
	f.ctl, err = ctl.Dial(f.socket)
	ok(c.t, err)
	return f
}

// start starts the daemon of a node for the first time, or again.
func (c *cluster) start(i int) {
	c.t.Helper()
	if c.fws[i] == nil {
		c.fws[i] = c.prepare(i)
	}
	c.fws[i].Start()
}

// running returns the daemons that run.
func (c *cluster) running() (fws []*firewall) {
	for _, f := range c.fws {
		if f != nil && f.proc != nil {
			fws = append(fws, f)
		}
	}
	return fws
}

// inStep waits until every daemon that runs says, by proofs younger than this call,
// that it is in step with all others that run.
func (c *cluster) inStep(timeout time.Duration) {
	c.t.Helper()
	begin := time.Now()
	waitFor(c.t, timeout, "all nodes are in step, proven", func() bool {
		for _, f := range c.running() {
			if !c.proven(f, begin) {
				return false
			}
		}
		return true
	})
}

func (c *cluster) proven(f *firewall, since time.Time) bool {
	s := f.Status()
	up := 0
	for _, p := range s.Peers {
		if p.InSync {
			up++
		}
	}
	return s.InSync && up == len(c.running())-1 && s.ProvenAgeS > 0 && s.ProvenAgeS < time.Since(since).Seconds()
}

// held returns what a daemon holds of the others, by their names.
func (c *cluster) held(f *firewall) map[string]table {
	c.t.Helper()
	all := map[string]table{}
	ok(c.t, f.ctl.Dump(context.Background(), ctl.External, func(d *ctl.DumpEntry) error {
		if all[d.Owner] == nil {
			all[d.Owner] = table{}
		}
		e := fromDump(&d.Flow)
		all[d.Owner][e.tuple] = e
		return nil
	}))
	return all
}

// differences says where an internal cache is not what its kernel has, or where
// what a peer holds is not what the owner has.
func (c *cluster) differences() string {
	c.t.Helper()
	var bad []string
	internal := map[string]table{}
	for i, f := range c.fws {
		if f == nil || f.proc == nil {
			continue
		}
		internal[f.node.Name()] = f.Internal()
		if d := diff(internal[f.node.Name()].only(isTestFlow), kernelTable(c.t, c.kernels[i], isTestFlow), form{}); d != "" {
			bad = append(bad, fmt.Sprintf("the internal cache of %s against its kernel:\n%s", f.node.Name(), d))
		}
	}
	for _, f := range c.running() {
		held := c.held(f)
		for owner, want := range internal {
			if owner == f.node.Name() {
				continue
			}
			if d := diff(held[owner], want, form{}); d != "" {
				bad = append(bad, fmt.Sprintf("what %s holds of %s:\n%s", f.node.Name(), owner, d))
			}
		}
	}
	return strings.Join(bad, "\n")
}

// equal waits until every daemon holds of every other what that one's kernel has,
// and returns how long it took. Dumps of large tables take a while of their own.
func (c *cluster) equal(timeout time.Duration, what string) time.Duration {
	c.t.Helper()
	begin := time.Now()
	for {
		at := time.Now()
		d := c.differences()
		if d == "" {
			c.t.Logf("%s: equal after %v", what, at.Sub(begin).Round(10*time.Millisecond))
			return at.Sub(begin)
		}
		if at.Sub(begin) > timeout {
			c.t.Fatalf("%s: after %v there are differences:\n%s", what, timeout, d)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// verified fails the test if a daemon finds something that differs.
func (c *cluster) verified() {
	c.t.Helper()
	for _, f := range c.running() {
		r, err := f.ctl.Verify(context.Background())
		ok(c.t, err)
		alive := 0
		for _, p := range r.Peers {
			if p.Proven {
				alive++
			}
			if p.Missing+p.Stale+p.Different+p.Corrupted != 0 {
				c.t.Errorf("verify on %s: %+v", f.node.Name(), p)
			}
		}
		if alive != len(c.running())-1 || !r.OK && len(r.Peers) == alive {
			c.t.Errorf("verify on %s: %+v", f.node.Name(), r)
		}
	}
}

// clean fails the test if a daemon counted something bad of the others.
func (c *cluster) clean() {
	c.t.Helper()
	for _, f := range c.running() {
		s := f.Stats().Sync
		for why, n := range s.Refused {
			if n != 0 && why != "old" { // a few after a restart are normal
				c.t.Errorf("%s refused %d datagrams: %s", f.node.Name(), n, why)
			}
		}
		if bad := f.Malformed(); len(bad) > 0 {
			c.t.Errorf("%s found messages malformed: %v", f.node.Name(), bad)
		}
		calm(c.t, f.Log())
	}
}

// Some nodes share all state: each has what all the others have, whatever happens
// to one of them.
func TestCluster(t *testing.T) {
	for _, tt := range []struct {
		nodes int
		tr    transport
	}{{3, udp4}, {3, multicast6}, {5, udp6}, {5, multicast4}} {
		t.Run(fmt.Sprintf("%d nodes/%s", tt.nodes, tt.tr.name), func(t *testing.T) {
			t.Parallel()
			testCluster(t, tt.nodes, tt.tr)
		})
	}
}

func testCluster(t *testing.T, n int, tr transport) {
	const each = 1000 // numbers of flows of one node
	c := layCluster(t, n, tr, "peer_dead_after = \"4s\"\n[purge]\nafter = \"2s\"")
	for i := range n - 1 { // the last one comes later
		c.start(i)
	}
	c.inStep(10 * time.Second)
	var all errgroup.Group
	for i := range n - 1 {
		all.Go(func() error { return churn(t, c.kernels[i], 10000*i, 300, 3*time.Second) })
	}
	ok(t, all.Wait())
	c.equal(5*time.Second, "flows on all nodes at once")
	c.inStep(10 * time.Second)

	last := n - 1
	c.start(last)
	create(t, c.kernels[last], 10000*last, 10000*last+each)
	c.equal(10*time.Second, "with another node")
	c.inStep(10 * time.Second)
	c.verified()

	// One dies. The others keep what it had.
	dead := c.fws[0]
	name := dead.node.Name()
	lost := dead.Internal()
	dead.Kill()
	waitFor(t, 10*time.Second, "the others note that one is dead", func() bool {
		for _, f := range c.running() {
			s := f.Status()
			if s.InSync || !strings.Contains(strings.Join(s.Problems, "\n"), "peer "+name+" has been silent") {
				return false
			}
		}
		return true
	})
	create(t, c.kernels[1], 55000, 55100) // life goes on
	c.equal(5*time.Second, "without the dead one")
	for _, f := range c.running() {
		if d := diff(c.held(f)[name], lost, form{}); d != "" {
			t.Errorf("what %s keeps of the dead one:\n%s", f.node.Name(), d)
		}
	}
	c.fws[1].Primary()
	got := kernelTable(t, c.kernels[1], isTestFlow)
	for k := range lost.only(isTestFlow) {
		if _, there := got[k]; !there {
			t.Errorf("%v of the dead one was not committed", k)
		}
	}
	c.equal(5*time.Second, "after the takeover")

	// It comes back, and what it still has in its kernel is its own again.
	c.start(0)
	c.fws[0].Backup()
	c.equal(10*time.Second, "after its return")
	c.inStep(10 * time.Second)
	waitFor(t, 10*time.Second, "the returned one has purged", func() bool { return len(kernelTable(t, c.kernels[0], isTestFlow)) == 0 })
	c.equal(5*time.Second, "after its purge")
	c.inStep(10 * time.Second)
	c.verified()

	// A partition: changes on both sides of it.
	cut := time.Now()
	ok(t, c.nodes[1].Unplug())
	var both errgroup.Group
	both.Go(func() error { return churn(t, c.kernels[1], 62000, 300, 10*time.Second) })
	both.Go(func() error { return churn(t, c.kernels[last], 60000, 300, 10*time.Second) })
	err := both.Wait()
	ok(t, err)
	mine := kernelTable(t, c.kernels[1], isTestFlow)
	i := 0
	for k, f := range kernelFlows(t, c.kernels[1], isTestFlow) { // half of it ends
		if i++; i%2 == 0 {
			if err := c.kernels[1].Delete(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("destroy %v: %v", k, err)
			}
		}
	}
	t.Logf("%d flows before, %d after", len(mine), len(kernelTable(t, c.kernels[1], isTestFlow)))
	time.Sleep(time.Until(cut.Add(15 * time.Second)))
	if s := c.fws[1].Status(); s.InSync {
		t.Error("a node without a link says that it is in sync")
	}
	ok(t, c.nodes[1].Replug())
	c.equal(10*time.Second, "after the partition")
	c.inStep(10 * time.Second)
	c.verified()
	c.clean()
}

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/ctl"
	"syncd/internal/lab"
	"syncd/internal/seal"
)

// Every kind of flow arrives with its attributes, sealed.
func TestSealedAttributes(t *testing.T) {
	need(t, "conntrack")
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			testAttributes(t, roles{ours, ours}, tr, duoOptions{sealed: true, syncd: "[filter]\nlabels = true"})
		})
	}
}

// A pair with live connections, sealed: takeover, purge, return, and never a flow
// that has ended anywhere.
func TestSealedFailover(t *testing.T) {
	for _, tr := range []transport{udp4, udp6, multicast4, multicast6} {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			testSealedFailover(t, tr)
		})
	}
}

// sealedPair is a pair of firewalls with live traffic as a cluster of two.
func sealedPair(t testing.TB, tr transport, sync string) (*lab.Pair, *cluster) {
	t.Helper()
	p := newPair(t)
	dir, err := os.MkdirTemp("", "e2e-")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{t: t, tr: tr, dir: dir, sync: sync, nodes: []*lab.Node{p.FW1, p.FW2}, fws: make([]*firewall, 2),
		kernels: []*conntrack.Conn{openKernel(t, p.FW1), openKernel(t, p.FW2)}}
	c.keys = []string{c.newKey("key")}
	return p, c
}

func testSealedFailover(t *testing.T, tr transport) {
	p, c := sealedPair(t, tr, "[purge]\nafter = \"3s\"")
	c.start(0)
	c.start(1)
	fw1, fw2 := c.fws[0], c.fws[1]
	fw1.Primary()
	fw2.Backup()
	live := openTraffic(t, p)
	through := passes(p)
	inKernel := func(i int) table { return kernelTable(t, c.kernels[i], through) }
	waitEqual(t, 5*time.Second, "the backup knows the connections", func() table { return c.held(fw2)[fw1.node.Name()].only(through) },
		func() table { return inKernel(0) }, form{})
	live.check(t, "before")
	live.forgetGaps()
	c.inStep(5 * time.Second)
	c.verified()

	ok(t, p.TakeOver(p.FW1, p.FW2))
	fw2.Primary()
	committed := inKernel(1)
	for k := range inKernel(0) {
		if _, there := committed[k]; !there {
			t.Errorf("%v is not in the survivor's kernel", k)
		}
	}
	time.Sleep(2 * grace)
	live.check(t, "after the takeover")

	more := openMore(t, p)
	ok(t, p.FW1.Replug())
	fw1.Backup()
	c.equal(10*time.Second, "after the return of the other one")
	c.inStep(10 * time.Second)
	waitFor(t, 10*time.Second, "the returned one has purged", func() bool { return len(inKernel(0)) == 0 })
	c.equal(5*time.Second, "after the purge")
	waitEqual(t, 5*time.Second, "what the returned one holds", func() table { return c.held(fw1)[fw2.node.Name()].only(through) },
		func() table { return inKernel(1) }, form{})

	// Some end on the survivor: nobody may bring them back.
	for name, conn := range more {
		ok(t, conn.Close())
		delete(more, name)
		if len(more) == 4 {
			break
		}
	}
	live.check(t, "before the return")
	more.check(t, "opened on the survivor, before the return")
	live.forgetGaps()
	more.forgetGaps()
	ok(t, p.Move(p.FW2, p.FW1))
	fw1.Primary()
	fw2.Backup()
	time.Sleep(2 * grace)
	live.check(t, "after the return")
	more.check(t, "opened on the survivor, after the return")
	waitFor(t, 10*time.Second, "the other one has purged", func() bool { return len(inKernel(1)) == 0 })
	c.equal(5*time.Second, "after the second purge")
	c.inStep(10 * time.Second)
	if held := c.held(fw1)[fw2.node.Name()].only(through); len(held) != 0 {
		t.Errorf("of the backup %d flows are held, its kernel has none:\n%s", len(held), diff(held, table{}, form{}))
	}
	if s := fw1.Status(); s.Internal.Dead != 0 {
		t.Errorf("%d deletions still wait to be acknowledged", s.Internal.Dead)
	}
	c.verified()
	c.clean()
}

// The state of the node in charge goes back and forth many times; the mirror rule
// holds after each move.
func TestSealedFailback(t *testing.T) {
	t.Parallel()
	const flows = 800
	c := newCluster(t, 2, udp4, "[purge]\nafter = \"1s\"")
	c.fws[0].Primary()
	c.fws[1].Backup()
	create(t, c.kernels[0], 0, flows)
	c.equal(5*time.Second, "before")
	active := 0
	for round := range 4 {
		all := kernelTable(t, c.kernels[active], isTestFlow)
		other := 1 - active
		c.fws[other].Primary()
		c.fws[active].Backup()
		checkKernel(t, kernelTable(t, c.kernels[other], isTestFlow), all, "the new primary")
		// Some end and some begin while the old one's purge is due.
		first := round * 100
		destroy(t, c.kernels[other], first, first+100)
		create(t, c.kernels[other], flows+first, flows+first+50)
		want := kernelTable(t, c.kernels[other], isTestFlow)
		waitFor(t, 10*time.Second, "the old primary has purged", func() bool { return len(kernelTable(t, c.kernels[active], isTestFlow)) == 0 })
		c.equal(5*time.Second, fmt.Sprintf("after move %d", round+1))
		checkKernel(t, kernelTable(t, c.kernels[other], isTestFlow), want, "the new primary after the purge")
		active = other
	}
	c.inStep(5 * time.Second)
	c.verified()
	c.clean()
}

// sealedConfig is the sealed counterpart of syncdConfig. The key is of this test
// alone.
func (d *duo) sealedConfig(links ...link) string {
	d.t.Helper()
	if d.key == "" {
		dir, err := os.MkdirTemp("", "e2e-")
		ok(d.t, err)
		d.t.Cleanup(func() { os.RemoveAll(dir) })
		d.key = filepath.Join(dir, "key")
		ok(d.t, os.WriteFile(d.key, seal.NewKey().Text(), 0o600))
	}
	s := fmt.Sprintf("[sync]\nkeys = [%q]\n%s\n", d.key, d.opts.syncd)
	for _, l := range links {
		s += l.toml()
	}
	return s
}

var errDumpEnough = errors.New("enough")

// has reports whether a daemon holds a flow of its peers, without reading all of a
// large dump.
func has(f *firewall, k tuple) bool {
	err := f.ctl.Dump(f.t.Context(), ctl.External, func(d *ctl.DumpEntry) error {
		if fromDump(&d.Flow).tuple == k {
			return errDumpEnough
		}
		return nil
	})
	return errors.Is(err, errDumpEnough)
}

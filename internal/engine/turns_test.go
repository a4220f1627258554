package engine

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"syncd/internal/flow"
	"syncd/internal/simnet"
	"syncd/internal/wire"
)

// TestTurns lets two to four nodes, each of which takes over in its own way, lead in turn,
// as scripts make them, while flows begin and end on the one that leads. Whoever leads has
// every flow that lives, nobody else keeps one as its own, and, of two nodes, what has ended
// is nowhere when purges are over.
func TestTurns(t *testing.T) {
	first, n := uint64(1), 60
	if raceEnabled || testing.Short() {
		n = 10
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "seeds" {
			n = *seeds
		}
	})
	total := turns{}
	for s := range uint64(n) {
		bubble(t, func(t *testing.T) {
			x := &turns{t: t, r: rand.New(rand.NewPCG(first+s, 404)), alive: map[flow.Tuple]bool{}, ended: map[flow.Tuple]bool{}}
			x.run()
			total.yielded, total.purged, total.late = total.yielded+x.yielded, total.purged+x.purged, total.late+x.late
		})
		if t.Failed() {
			t.Fatalf("replay with: go test ./internal/engine -run 'TestTurns$' -seed %d", first+s)
		}
	}
	if n > 1 && (total.yielded == 0 || total.purged == 0 || total.late == 0) {
		t.Errorf("%d flows were yielded, %d purged, and %d ended in the moment of a takeover: nothing was tested", total.yielded, total.purged, total.late)
	}
}

// turns is one run.
type turns struct {
	t     *testing.T
	r     *rand.Rand
	nodes []*node
	lead  int
	made  int
	alive map[flow.Tuple]bool
	ended map[flow.Tuple]bool
	did   []string

	yielded, purged, late int
}

func (x *turns) note(format string, args ...any) { x.did = append(x.did, fmt.Sprintf(format, args...)) }

// sleep lets up to max pass.
func (x *turns) sleep(max time.Duration) { time.Sleep(time.Duration(x.r.Int64N(int64(max) + 1))) }

func (x *turns) run() {
	const heard = 5 * time.Second // what is said was heard by everybody, in spite of losses
	r := x.r
	net, nodes := mirrorNodes(x.t, 2+r.IntN(3), ways(r))
	x.nodes = nodes
	x.takeover(0)
	for _, d := range nodes[1:] {
		d.tell(wire.RoleBackup)
	}
	x.begin(30 + r.IntN(100))
	net.SetFaults(simnet.Faults{Loss: 0.1 * float64(r.IntN(2)), Delay: time.Duration(r.IntN(20)) * time.Millisecond, Jitter: time.Duration(r.IntN(30)) * time.Millisecond})
	for range 10 {
		x.begin(r.IntN(10))
		x.end(r.IntN(4))
		time.Sleep(heard)
		next := (x.lead + 1 + r.IntN(len(nodes)-1)) % len(nodes)
		old := x.lead
		x.note("%s after %s", nodes[next].name, nodes[old].name)
		if r.IntN(2) == 0 {
			nodes[old].tell(wire.RoleBackup)
			x.sleep(time.Second)
			x.takeover(next)
		} else {
			x.takeover(next)
			x.sleep(time.Second)
			nodes[old].tell(wire.RoleBackup)
		}
		x.sleep(40 * time.Millisecond)
		x.late += x.end(r.IntN(4))
		time.Sleep(heard)
		if r.IntN(2) == 0 {
			for i := range nodes {
				x.purge(i)
			}
			x.sleep(heard)
		}
		x.check()
	}
	net.SetFaults(simnet.Faults{})
	for range 2 { // the second one ends what was found only after the first one
		time.Sleep(2 * touchedPause)
		for i := range nodes {
			x.purge(i)
		}
	}
	time.Sleep(heard)
	x.check()
	for i, d := range nodes {
		there := d.kernel.Flows()
		own := d.internalTable()
		for k := range x.ended {
			if len(nodes) > 2 {
				// A third node may have taken over with what the second one had not purged
				// yet, although the first one had ended it: docs/architecture.md.
				break
			}
			if f, ok := there[k]; ok {
				x.failf("%s has %d in its kernel, which has ended, for %d s", d.name, k.SrcPort, f.Timeout)
			}
			if _, ok := own[k]; ok {
				x.failf("%s has %d in its cache, which has ended", d.name, k.SrcPort)
			}
			if d.replica.holds(&k) {
				x.failf("%s has %d of another node, which has ended", d.name, k.SrcPort)
			}
		}
		for k, f := range there {
			if i != x.lead && !f.Parked() {
				x.failf("%s still has %d of before, for %d s", d.name, k.SrcPort, f.Timeout)
			}
		}
		for k := range x.alive {
			if _, ok := there[k]; !ok && d.Parks() {
				x.failf("%s has not parked %d", d.name, k.SrcPort)
			}
		}
		x.yielded += int(d.stats().Yielded)
		d.stop()
	}
}

func (x *turns) failf(format string, args ...any) {
	x.t.Helper()
	x.t.Fatalf("%s; last:\n\t%s", fmt.Sprintf(format, args...), strings.Join(x.did[max(0, len(x.did)-25):], "\n\t"))
}

// begin begins n flows where they are forwarded, and lets packets pass others.
func (x *turns) begin(n int) {
	k := x.nodes[x.lead].kernel
	for range n {
		f := newFlow(x.made)
		if x.made%8 == 7 { // it does not go with a master
			f.Master, f.Has, f.Status = flow.Tuple{}, f.Has&^flow.HasMaster, f.Status&^flow.StatusExpected
		}
		if !k.Create(f, 0) {
			x.failf("there is a %d already", f.Orig.SrcPort)
		}
		x.alive[f.Orig] = true
		x.made++
	}
	for range 2 * n {
		if key := newFlow(x.r.IntN(x.made)).Orig; x.alive[key] {
			k.Update(key, 0, func(f *flow.Flow) { establish(f); f.Timeout = 300 })
		}
	}
	x.note("%d flows on %s", n, x.nodes[x.lead].name)
}

// end ends n flows, and returns how many it has ended.
func (x *turns) end(n int) (ended int) {
	for range n {
		key := newFlow(x.r.IntN(x.made)).Orig
		if !x.alive[key] {
			continue
		}
		x.nodes[x.lead].kernel.Destroy(key, 0)
		delete(x.alive, key)
		x.ended[key] = true
		x.note("%d ends on %s", key.SrcPort, x.nodes[x.lead].name)
		ended++
	}
	return ended
}

// takeover puts a node in charge, as the daemon does, with the purge of what has ended
// elsewhere since it was in charge last.
func (x *turns) takeover(i int) {
	d := x.nodes[i]
	d.takeover()
	n := d.count(true)
	ends, _ := d.judge(RemnantRule{Primary: true, All: n.TakenOver()})
	x.evict(d, ends)
	d.slices(d.ForgetRemnants)
	d.do(func() { d.Engine.Mode().(speaker).SetRole(d.now, wire.RolePrimary) })
	x.lead = i
}

// purge is a purge of what node i has from its time in charge.
func (x *turns) purge(i int) {
	d := x.nodes[i]
	if i == x.lead || !d.standingBy() {
		return
	}
	n := d.count(false)
	ends, _ := d.judge(RemnantRule{All: n.TakenOver()})
	x.evict(d, ends)
}

// evict lets flows of a node come to their end, since nobody uses them.
func (x *turns) evict(d *node, ends map[flow.Tuple]bool) {
	for k := range ends {
		d.kernel.Update(k, purgePort, func(f *flow.Flow) { f.Timeout = 30 })
		d.kernel.Destroy(k, 0)
	}
	x.purged += len(ends)
	if len(ends) > 0 {
		x.note("%s purges %d flows", d.name, len(ends))
	}
	time.Sleep(time.Millisecond) // the events
}

// check checks that the node that leads has every flow that lives.
func (x *turns) check() {
	d := x.nodes[x.lead]
	own, there := d.internalTable(), d.kernel.Flows()
	for k := range x.alive {
		if f, ok := there[k]; !ok || f.Parked() {
			x.failf("%s leads, and has %d: %v, for %d s", d.name, k.SrcPort, ok, f.Timeout)
		}
		if _, ok := own[k]; !ok {
			x.failf("%s leads, and does not know of %d", d.name, k.SrcPort)
		}
	}
}

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/lab"
)

// overloaded is a pair whose first node has the flows.
type overloaded struct {
	t      testing.TB
	nA, nB *lab.Node
	a, b   *firewall
	k      *conntrack.Conn // the kernel of a
}

// newOverloaded starts a pair that is in sync. extraA and extraB go into the
// configurations.
func newOverloaded(t testing.TB, extraA, extraB string) *overloaded {
	t.Helper()
	o := &overloaded{t: t}
	o.nA, o.nB = cabled(t, newLab(t), 1)
	o.k = openKernel(t, o.nA)
	o.a = newSyncd(t, o.nA, syncdConfig(extraA, newLink(udp4, 0, 1)))
	o.b = newSyncd(t, o.nB, syncdConfig(extraB, newLink(udp4, 0, 2)))
	t.Cleanup(func() {
		if t.Failed() {
			for _, f := range []*firewall{o.a, o.b} {
				stats, err := f.ctl.Stats(context.Background())
				t.Logf("%s: %+v %v", f.node.Name(), stats, err)
				status, err := f.ctl.Status(context.Background())
				t.Logf("%s: %+v %v", f.node.Name(), status, err)
			}
		}
	})
	o.inSync(20 * time.Second)
	return o
}

func (o *overloaded) inSync(timeout time.Duration) {
	o.t.Helper()
	waitFor(o.t, timeout, "both nodes are in sync", func() bool { return o.a.Status().InSync && o.b.Status().InSync })
}

func (o *overloaded) kernel() table { o.t.Helper(); return kernelTable(o.t, o.k, isTestFlow) }

// equal waits until both caches are what the kernel is, in every attribute.
func (o *overloaded) equal(timeout time.Duration, what string) {
	o.t.Helper()
	begin := time.Now()
	own := func() table { return o.a.Internal().only(isTestFlow) }
	waitEqual(o.t, timeout, what+": internal cache", own, o.kernel, form{})
	waitEqual(o.t, timeout-time.Since(begin), what+": external cache of the peer", o.b.External, o.kernel, form{})
}

// problem reports whether the status of a node names a problem with this word.
func problem(f *firewall, word string) bool {
	return strings.Contains(strings.Join(f.Status().Problems, "\n"), word)
}

// resident returns the memory of a daemon, in octets.
func resident(t testing.TB, f *firewall) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(f.proc.Cmd.Process.Pid), "status"))
	ok(t, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	ok(t, err)
	return kib << 10
}

// Events that the kernel drops are noticed, and what they would have told is
// found in its table: nothing is missing and nothing stale, on both nodes.
func TestEventOverrun(t *testing.T) {
	t.Parallel()
	o := newOverloaded(t, "[events]\nbuffer = \"64k\"\nbuffer_max = \"64k\"", "")
	const flows = 20000
	create(t, o.k, 0, 1000)
	o.equal(10*time.Second, "before")

	// The flood is as fast as a kernel can be asked. Half of the creations are
	// undone while it goes on.
	begin := time.Now()
	create(t, o.k, 1000, flows/2)
	// So that the result does not hang on who is faster here: for a moment
	// nobody reads at all.
	o.a.Freeze()
	create(t, o.k, flows/2, flows)
	destroy(t, o.k, 0, flows/2)
	o.a.Thaw()
	t.Logf("%d changes in %v", flows+flows/2-1000, time.Since(begin).Round(time.Millisecond))
	destroy(t, o.k, flows/2, flows/2+2000)

	o.equal(15*time.Second, "after the overrun")
	s := o.a.Stats()
	t.Logf("%d overruns, %d dumps, %d flows repaired, buffer of %d octets", s.Events.Overruns, s.Events.Dumps, s.Events.Repaired, s.Events.ReceiveBufferBytes)
	if s.Events.Overruns == 0 || s.Events.Dumps < 2 || s.Events.Repaired == 0 {
		t.Errorf("the overrun is not counted, or nothing was repaired: %+v", s.Events)
	}
	says(t, o.a.Log(), "the kernel dropped events")
	// A word for each would be one for each hundred flows.
	if n := strings.Count(o.a.Log(), "dropped events"); n > 20 {
		t.Errorf("%d lines of log about overruns", n)
	}
	o.inSync(10 * time.Second)
}

// The buffer grows with what it could not hold, as far as it may.
func TestEventBufferGrows(t *testing.T) {
	t.Parallel()
	node, k := alone(t)
	f := newSyncd(t, node, syncdConfig("[events]\nbuffer = \"64k\"\nbuffer_max = \"16MiB\"", newLink(udp4, 0, 1)))
	before := f.Stats().Events.ReceiveBufferBytes
	for round := 0; round < 10 && f.Stats().Events.ReceiveBufferBytes < 1<<20; round++ {
		f.Freeze()
		create(t, k, 0, 3000)
		f.Thaw()
		destroy(t, k, 0, 3000)
	}
	after := f.Stats().Events.ReceiveBufferBytes
	t.Logf("from %d to %d octets", before, after)
	if after < 1<<20 || after > 64<<20 {
		t.Errorf("the buffer grew from %d to %d octets", before, after)
	}
	waitEqual(t, 10*time.Second, "internal cache", f.Internal, func() table { return kernelTable(t, k, isTestFlow) }, form{})
}

// A peer that does not take anything for a while costs the sender neither memory
// without bound nor its own duties, and gets everything in the end.
func TestPeerStopsReading(t *testing.T) {
	t.Parallel()
	o := newOverloaded(t, "", "")
	create(t, o.k, 0, 5000)
	o.equal(10*time.Second, "before")
	memory := resident(t, o.a)

	begin := time.Now()
	o.b.Freeze()
	create(t, o.k, 5000, 10000)
	destroy(t, o.k, 0, 5000)
	// Changes go on all the time, on flows of which each may change many times.
	for i := 0; time.Since(begin) < 15*time.Second; i++ {
		f := numbered(9000 + i%1000)
		f.Mark = uint32(i)
		ok(t, o.k.Update(f))
		time.Sleep(2 * time.Millisecond)
	}
	waitEqual(t, 5*time.Second, "the sender itself goes on", func() table { return o.a.Internal().only(isTestFlow) }, o.kernel, form{})
	if s := o.a.Status(); s.InSync || !problem(o.a, "silent") {
		t.Errorf("the peer is not heard for 15 s and this is in sync: %v", s.Problems)
	}
	if grown := resident(t, o.a) - memory; grown > 32<<20 {
		t.Errorf("the sender grew by %d octets", grown)
	} else {
		t.Logf("the sender has %d KiB, %d KiB more than before", resident(t, o.a)>>10, grown>>10)
	}
	o.b.Thaw()
	o.equal(15*time.Second, "after the peer is back")
	o.inSync(30 * time.Second)
	if n := o.a.Status().Internal.Dead; n != 0 {
		t.Errorf("%d deletions still wait to be acknowledged", n)
	}
}

// A dedicated link that is cut, and heals.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	o := newOverloaded(t, "", "")
	create(t, o.k, 0, 3000)
	o.equal(10*time.Second, "before")

	cut := time.Now()
	ok(t, o.nB.Unplug())
	waitFor(t, 5*time.Second, "the status says that the link is down", func() bool { return !o.b.Status().Links[0].Up && !o.a.Status().Links[0].Up })
	if s := o.b.Status(); s.InSync || s.Links[0].Reason == "" {
		t.Errorf("without a link: in sync %v, reason %q", s.InSync, s.Links[0].Reason)
	}
	create(t, o.k, 3000, 6000)
	destroy(t, o.k, 0, 1500)
	for i := 1500; i < 2500; i++ {
		f := numbered(i)
		f.Mark = 7
		ok(t, o.k.Update(f))
	}
	time.Sleep(time.Until(cut.Add(15 * time.Second)))
	ok(t, o.nB.Replug())
	o.equal(15*time.Second, "after the link is back")
	o.inSync(30 * time.Second)
}

// A flood of datagrams that are lost at random on the way is a slow link, no more.
func TestLossyLink(t *testing.T) {
	t.Parallel()
	o := newOverloaded(t, "", "")
	loss := func(percent int) {
		for _, n := range []*lab.Node{o.nA, o.nB} {
			ok(t, n.SetLoss(lab.Loss{Interface: "sync0", UDPPort: port, Percent: percent}))
		}
	}
	loss(20)
	create(t, o.k, 0, 4000)
	destroy(t, o.k, 0, 2000)
	create(t, o.k, 1000, 1500)
	o.equal(15*time.Second, "with 20 % of all datagrams lost, both ways")
	s := o.b.Stats()
	t.Logf("%d numbers missed, %d resent", s.Sync.Lost, o.a.Stats().Sync.Resent)
	if s.Sync.Lost == 0 {
		t.Error("nothing was lost: the test is worth nothing")
	}
	loss(0)
}

// A full internal cache refuses, says so, and takes what it refused once there is
// room.
func TestInternalLimit(t *testing.T) {
	t.Parallel()
	const limit, flows = 500, 2000
	o := newOverloaded(t, fmt.Sprintf("[cache]\nlimit = %d", limit), "")
	create(t, o.k, 0, flows)
	waitFor(t, 5*time.Second, "the status says that the cache is full", func() bool { return problem(o.a, "internal cache is full") })
	s := o.a.Status()
	if s.InSync || s.Internal.Limit != limit || s.Internal.Entries+s.Internal.Dead > limit || s.Internal.Refused < flows-limit {
		t.Errorf("in sync: %v, cache %+v", s.InSync, s.Internal)
	}
	if n := o.a.Stats().Internal.Refused; n < flows-limit {
		t.Errorf("counted %d refused flows, want %d", n, flows-limit)
	}
	waitFor(t, 10*time.Second, "the peer has what was taken", func() bool { return len(o.b.External()) == limit })
	if n := strings.Count(o.a.Log(), "internal cache is full"); n > 2 {
		t.Errorf("%d lines of log about it", n)
	}

	// All but 300 end, among them flows that were refused and others.
	destroy(t, o.k, 0, flows-300)
	o.equal(20*time.Second, "after there is room again")
	o.inSync(20 * time.Second)
	if problem(o.a, "full") {
		t.Errorf("still: %v", o.a.Status().Problems)
	}
}

// The same of the external cache.
func TestExternalLimit(t *testing.T) {
	t.Parallel()
	const limit, flows = 500, 2000
	o := newOverloaded(t, "", fmt.Sprintf("[cache]\nexternal_limit = %d", limit))
	create(t, o.k, 0, flows)
	waitFor(t, 5*time.Second, "the status says that the cache is full", func() bool { return problem(o.b, "external cache is full") })
	s := o.b.Status()
	if s.InSync || s.External.Limit != limit || s.External.Entries > limit || s.External.Refused == 0 {
		t.Errorf("in sync: %v, cache %+v", s.InSync, s.External)
	}
	if n := o.b.Stats().External.Refused; n < flows-limit {
		t.Errorf("counted %d refused flows, want %d", n, flows-limit)
	}
	if n := strings.Count(o.b.Log(), "external cache is full"); n > 2 {
		t.Errorf("%d lines of log about it", n)
	}
	destroy(t, o.k, 0, flows-300)
	o.equal(20*time.Second, "after there is room again")
	o.inSync(30 * time.Second)
}

// Clients that hang take nothing from the others, nor from replication, nor from
// each other for ever.
func TestHangingClients(t *testing.T) {
	t.Parallel()
	o := newOverloaded(t, "", "")
	create(t, o.k, 0, 6000)
	o.equal(10*time.Second, "before")
	var all []net.Conn
	hang := func(request string) {
		t.Helper()
		c, err := net.Dial("unix", o.a.socket)
		ok(t, err)
		t.Cleanup(func() { c.Close() })
		_, err = io.WriteString(c, request)
		ok(t, err)
		all = append(all, c)
	}
	for range 20 {
		hang("")
		hang("POST /v1/bulk HTT")
	}
	for range 3 { // one less than may run
		hang("GET /v1/dump/internal HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	// Meanwhile: commands, dumps and changes.
	begin := time.Now()
	create(t, o.k, 6000, 8000)
	destroy(t, o.k, 0, 1000)
	o.equal(5*time.Second, "beside hanging clients")
	slowest := time.Duration(0)
	for range 20 {
		at := time.Now()
		o.a.Status()
		slowest = max(slowest, time.Since(at))
	}
	t.Logf("slowest status %v", slowest.Round(time.Microsecond))
	if slowest > time.Second {
		t.Errorf("a status took %v", slowest)
	}
	// Those that say nothing are dropped after 5 s, and dumps that nobody reads
	// after 10 s: then four of them run again.
	waitFor(t, 20*time.Second, "dumps that nobody reads are cut off", func() bool { return o.a.Stats().Control.CutOff == 3 })
	t.Logf("cut off after %v", time.Since(begin).Round(time.Second))
	for i, c := range all {
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && os.IsTimeout(err) {
			t.Errorf("client %d is still connected", i)
		}
	}
	calm(t, o.a.Log())
}

package ctnetlink

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// churn creates and deletes n flows, which makes two events for each, and returns
// the number of events.
func churn(t testing.TB, w *Writer, n int) int {
	t.Helper()
	fail := func(_ int, errno unix.Errno) { t.Fatal(errno) }
	for i := 0; i < n; {
		f := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", uint16(i), uint16(i>>16)))
		_, err := w.Add(OpCreate, &f, CreateOptions{})
		if err == nil {
			_, err = w.Add(OpDelete, &f, CreateOptions{})
			i++
		}
		if err != nil || w.Len() == MaxBatch {
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(fail); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Flush(fail); err != nil {
		t.Fatal(err)
	}
	return 2 * n
}

// TestOverrun overflows a small buffer while nobody reads. What was queued must
// arrive, then one batch with Overrun, then the events that follow.
func TestOverrun(t *testing.T) {
	ns := newNS(t, "overrun")
	w := ns.writer()
	l, err := Listen(ListenConfig{NetNS: ns.fd(), BufferSize: 128 << 10, BufferMax: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.BufferSize() != 128<<10 {
		t.Fatalf("buffer of %d octets", l.BufferSize())
	}

	free, full := make(chan *flow.Batch, 4), make(chan *flow.Batch)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	size := 128 << 10
	for episode := 1; episode <= 3; episode++ {
		sent := churn(t, w, 1000) // nobody reads yet
		if episode == 1 {
			go func() { done <- l.Run(ctx, free, full) }()
		}
		var before, after int
		overrun := false
		// The marker is told only after the queue has been emptied.
		marker := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 9, uint16(episode)))
		for found := false; !found; {
			b := <-full
			for i := range b.N {
				ev := &b.Events[i]
				switch {
				case ev.Flow.Orig == marker.Orig:
					found = true
				case overrun:
					after++
				default:
					before++
				}
			}
			if b.Overrun {
				if overrun {
					t.Errorf("episode %d: told twice", episode)
				}
				overrun = true
				mustDo(t, w, OpCreate, &marker, CreateOptions{})
			}
			free <- b
		}
		// Nothing reads here in episodes 2 and 3 while churn runs, except for what the
		// Listener holds in its hands already.
		if room := size / 1280; before < room || before > room+flow.BatchSize+listenSlots || after != 0 {
			t.Errorf("episode %d: %d events of %d before the overrun and %d after it, the buffer holds %d", episode, before, sent, after, room)
		}
		if size = 256 << 10; l.BufferSize() != size {
			t.Errorf("episode %d: buffer of %d octets, want %d", episode, l.BufferSize(), size)
		}
		if got := l.Stats().Overruns; got != uint64(episode) {
			t.Errorf("%d overruns after %d", got, episode)
		}
	}
	if drops, ok := l.Drops(); !ok || drops < 1000 {
		t.Errorf("kernel drops: %d, %v", drops, ok)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFlood has the writer and the listener run at once with a buffer that is too
// small. Afterwards the listener must have told as many overruns as it counted and
// go on.
func TestFlood(t *testing.T) {
	ns := newNS(t, "flood")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{BufferSize: 32 << 10})
	churn(t, w, 20000)
	time.Sleep(50 * time.Millisecond)
	marker := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 9, 9))
	mustDo(t, w, OpCreate, &marker, CreateOptions{})
	time.Sleep(50 * time.Millisecond)
	events, overruns := s.stop()
	stats := s.Stats()
	t.Logf("%d events of 40000 in %d reads, %d overruns", stats.Events, stats.Reads, stats.Overruns)
	if overruns == 0 || stats.Overruns != uint64(overruns) {
		t.Errorf("told of %d overruns, counted %d", overruns, stats.Overruns)
	}
	if len(events) != int(stats.Events) || stats.Bad != 0 {
		t.Errorf("%d events arrived, counted %d and %d bad", len(events), stats.Events, stats.Bad)
	}
	if last := events[len(events)-1]; last.Flow.Orig != marker.Orig {
		t.Errorf("last event is %+v", last)
	}
}

// TestNoLoss: with a buffer that holds them all, every event arrives, in order.
func TestNoLoss(t *testing.T) {
	ns := newNS(t, "noloss")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{BufferSize: 64 << 20})
	want := churn(t, w, 20000)
	waitEvents(t, s.Listener, want)
	events, overruns := s.stop()
	if len(events) != want || overruns != 0 {
		t.Fatalf("%d events, %d overruns, want %d and 0", len(events), overruns, want)
	}
	for i, ev := range events {
		kind := flow.EventNew
		if i%2 == 1 {
			kind = flow.EventDestroy
		}
		if ev.Kind != kind || ev.Flow.Orig.SrcPort != uint16(i/2) || ev.PortID != w.PortID() {
			t.Fatalf("event %d is %v of port %d by %d", i, ev.Kind, ev.Flow.Orig.SrcPort, ev.PortID)
		}
	}
}

func waitEvents(t testing.TB, l *Listener, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); l.Stats().Events < uint64(n); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d events of %d after 20 s", l.Stats().Events, n)
		}
	}
}

// TestStopsWithoutBatches: while no batch is free nothing is read, and the end of
// the context still ends Run; the next Run loses nothing.
func TestStopsWithoutBatches(t *testing.T) {
	ns := newNS(t, "stop")
	w := ns.writer()
	l, err := Listen(ListenConfig{NetNS: ns.fd(), BufferSize: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := churn(t, w, 500)

	var events []flow.Event
	free, full := make(chan *flow.Batch, 100), make(chan *flow.Batch, 100)
	given, passed := 0, 0
	for deadline := time.Now().Add(20 * time.Second); len(events) < want; {
		if time.Now().After(deadline) {
			t.Fatalf("%d events of %d", len(events), want)
		}
		free <- new(flow.Batch)
		given++
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := l.Run(ctx, free, full); err != nil {
			t.Fatal(err)
		}
		cancel()
		for len(full) > 0 {
			b := <-full
			events = append(events, b.Events[:b.N]...)
			passed++
		}
		if passed > given {
			t.Fatalf("%d batches from %d", passed, given)
		}
	}
	for i, ev := range events {
		if ev.Flow.Orig.SrcPort != uint16(i/2) {
			t.Fatalf("event %d is of port %d", i, ev.Flow.Orig.SrcPort)
		}
	}
}

func TestCloseEndsRun(t *testing.T) {
	ns := newNS(t, "close")
	l, err := Listen(ListenConfig{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	free := make(chan *flow.Batch, 1)
	free <- new(flow.Batch)
	done := make(chan error)
	go func() { done <- l.Run(t.Context(), free, nil) }()
	time.Sleep(10 * time.Millisecond)
	l.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if _, ok := l.Drops(); ok {
		t.Error("drops of a closed socket")
	}
}

// TestListenGroups joins only the destroy group.
func TestListenGroups(t *testing.T) {
	ns := newNS(t, "groups")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{Groups: []uint32{unix.NFNLGRP_CONNTRACK_DESTROY}, BufferSize: 4 << 20})
	churn(t, w, 100)
	waitEvents(t, s.Listener, 100)
	events, _ := s.stop()
	if len(events) != 100 || events[0].Kind != flow.EventDestroy {
		t.Errorf("%d events", len(events))
	}
}

func TestParseDrops(t *testing.T) {
	const table = `sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
00000000e1b7c0b7 0   4294965187 00000550 0        0        0     2        0        8472
0000000041b7a0b7 12  4294965187 00000007 0        0        0     2        815      8473
0000000041b7a0b7 12  17         00000007 0        0        0     2        4        8474
`
	for port, want := range map[uint32]uint64{4294965187: 815, 17: 4} {
		if got, ok := parseDrops([]byte(table), port); !ok || got != want {
			t.Errorf("port %d: %d, %v", port, got, ok)
		}
	}
	if _, ok := parseDrops([]byte(table), 18); ok {
		t.Error("found a socket that is not there")
	}
	if _, ok := parseDrops([]byte("12 12 17\n"), 17); ok {
		t.Error("found a column that is not there")
	}
}

// TestNoCapability runs on a thread without CAP_NET_ADMIN.
func TestNoCapability(t *testing.T) {
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		withoutCapabilities(t)
		if _, err := Listen(ListenConfig{}); !errors.Is(err, ErrNoCapability) || !errors.Is(err, os.ErrPermission) {
			t.Errorf("listen: %v", err)
		}
		if _, err := NewWriter(WriterConfig{}); !errors.Is(err, ErrNoCapability) {
			t.Errorf("writer: %v", err)
		}
		if err := Dump(t.Context(), DumpFilter{}, nil); !errors.Is(err, ErrNoCapability) {
			t.Errorf("dump: %v", err)
		}
	}()
	<-done
}

func BenchmarkListener(b *testing.B) {
	ns := newNS(b, "lbench")
	w := ns.writer()
	s := listen(b, ns, ListenConfig{BufferSize: 256 << 20})
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	want := 0
	for b.Loop() {
		want += churn(b, w, 20000)
		waitEvents(b, s.Listener, want)
	}
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	stats := s.Stats()
	b.ReportMetric(float64(stats.Events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(stats.Events)/float64(stats.Reads), "events/read")
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(stats.Events), "cpu-ns/event+request")
}

// withoutCapabilities locks the goroutine to its thread for good and drops the
// effective capabilities of that thread alone.
func withoutCapabilities(t testing.TB) {
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Error(err)
	}
}

// TestGather: an event after a pause is passed on at once, however long events
// may gather; those that follow closely wait and come together.
func TestGather(t *testing.T) {
	ns := newNS(t, "gather")
	w := ns.writer()
	const gather = 400 * time.Millisecond
	l, err := Listen(ListenConfig{NetNS: ns.fd(), Gather: gather})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	free, full := make(chan *flow.Batch, 4), make(chan *flow.Batch, 4)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	done := make(chan error)
	go func() { done <- l.Run(ctx, free, full) }()

	event := func(port uint16) {
		f := established(tuple(flow.UDP, "192.0.2.1", "198.51.100.1", port, 53))
		mustDo(t, w, OpCreate, &f, CreateOptions{})
	}
	expect := func(what string, n int, early, late time.Duration, start time.Time) {
		t.Helper()
		b := <-full
		if took := time.Since(start); b.N != n || took < early || took > late {
			t.Errorf("%s: %d events after %v, want %d after %v to %v", what, b.N, took, n, early, late)
		}
		free <- b
	}
	start := time.Now()
	event(1)
	expect("lone", 1, 0, gather/2, start)
	start = time.Now()
	event(2)
	expect("second", 1, 0, gather/2, start)
	for port := range uint16(10) {
		event(10 + port)
	}
	expect("ten that follow", 10, gather/2, 2*gather, start)
	time.Sleep(3 * gather)
	start = time.Now()
	event(3)
	expect("lone again", 1, 0, gather/2, start)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestListenerAllocates counts what the whole process allocates while events pass:
// nothing for an event or a batch.
func TestListenerAllocates(t *testing.T) {
	ns := newNS(t, "lallocs")
	w := ns.writer()
	l, err := Listen(ListenConfig{NetNS: ns.fd(), BufferSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free, full := make(chan *flow.Batch, 4), make(chan *flow.Batch, 4)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx, free, full) }()

	pass := func(flows int) uint64 {
		want := churn(t, w, flows)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for n := 0; n < want; {
			b := <-full
			n += b.N
			free <- b
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	pass(1000)
	if n := pass(5000); n > 100 {
		t.Errorf("%d allocations for 10000 events", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

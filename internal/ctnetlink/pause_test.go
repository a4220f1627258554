package ctnetlink

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"syncd/internal/flow"
)

// socketGroups returns the groups of a netlink socket as /proc/net/netlink shows them.
func (ns *testNS) socketGroups(port uint32) (groups string) {
	ns.t.Helper()
	ns.do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range bytes.Lines(table) {
			if c := bytes.Fields(line); len(c) > 3 && string(c[1]) == "12" && string(c[2]) == strconv.FormatUint(uint64(port), 10) {
				groups = string(c[3])
			}
		}
		return err
	})
	return groups
}

// TestPause: what happens in a pause is not told, what was queued before it is, and
// the batch that tells of the pause comes after that, although nothing else wakes the
// reader.
func TestPause(t *testing.T) {
	ns := newNS(t, "pause")
	w := ns.writer()
	l, err := Listen(ListenConfig{NetNS: ns.fd(), BufferSize: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	joined := ns.socketGroups(l.PortID())
	free, full := make(chan *flow.Batch, 4), make(chan *flow.Batch, 4)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	events := 0 // read so far
	// read takes batches until one has Resumed set, or until there are so many events.
	read := func(want int) (resumed bool) {
		t.Helper()
		for limit := time.After(20 * time.Second); !resumed && events < want; {
			select {
			case b := <-full:
				if b.Overrun {
					t.Error("told of an overrun")
				}
				events += b.N
				resumed = b.Resumed
				free <- b
			case <-limit:
				t.Fatalf("%d events of %d after 20 s", events, want)
			}
		}
		return resumed
	}
	pause := func() {
		t.Helper()
		if err := l.Pause(); err != nil {
			t.Fatal(err)
		}
		if groups := ns.socketGroups(l.PortID()); groups != "00000000" {
			t.Errorf("groups %s in a pause", groups)
		}
	}
	resume := func() {
		t.Helper()
		if err := l.Resume(); err != nil {
			t.Fatal(err)
		}
		if groups := ns.socketGroups(l.PortID()); groups != joined {
			t.Errorf("groups %s after the pause, %s before", groups, joined)
		}
	}

	queued := churn(t, w, 500)
	pause()
	churn(t, w, 300)
	go func() { done <- l.Run(ctx, free, full) }()
	if read(queued) {
		t.Error("told of the end of the pause before its end")
	}
	churn(t, w, 300)
	time.Sleep(20 * time.Millisecond) // the reader waits
	resume()
	if !read(queued+1) || events != queued {
		t.Errorf("%d events up to the end of the pause, want %d", events, queued)
	}
	queued += churn(t, w, 100)
	if read(queued) || events != queued {
		t.Errorf("%d events after the pause, want %d", events, queued)
	}

	// The reader is stopped while events queue before a pause, and after it.
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	before := queued + churn(t, w, 500)
	pause()
	churn(t, w, 300)
	resume()
	queued = before + churn(t, w, 500)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- l.Run(ctx, free, full) }()
	if !read(queued+1) || events < before {
		t.Errorf("%d events up to the end of the pause, want at least %d", events, before)
	}
	if read(queued) || events != queued {
		t.Errorf("%d events, want %d", events, queued)
	}
	if s := l.Stats(); int(s.Events) != queued || s.Overruns != 0 || s.Bad != 0 {
		t.Errorf("%+v", s)
	}
	if drops, ok := l.Drops(); !ok || drops != 0 {
		t.Errorf("%d drops, %v", drops, ok)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPauseAfterAnOverrun: one batch tells of both.
func TestPauseAfterAnOverrun(t *testing.T) {
	ns := newNS(t, "pauseover")
	w := ns.writer()
	l, err := Listen(ListenConfig{NetNS: ns.fd(), BufferSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	churn(t, w, 1000)
	if err := l.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := l.Resume(); err != nil {
		t.Fatal(err)
	}
	free, full := make(chan *flow.Batch, 4), make(chan *flow.Batch, 4)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, free, full) }()
	for told := 0; ; {
		b := <-full
		if b.Overrun {
			told |= 1
		}
		if b.Resumed {
			told |= 2
		}
		free <- b
		if told == 3 {
			break
		}
		if b.Resumed && l.Stats().Overruns == 0 {
			t.Fatal("resumed before the overrun was told")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestResumeAndStop: the end of the context ends Run whatever Resume does at the same
// moment, and the pause is told in the next Run if not in this one.
func TestResumeAndStop(t *testing.T) {
	ns := newNS(t, "resumestop")
	l, err := Listen(ListenConfig{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free, full := make(chan *flow.Batch, 1), make(chan *flow.Batch, 1)
	free <- new(flow.Batch)
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx, free, full) }()
		go cancel()
		if err := l.Resume(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("Run goes on without its context, round %d", i)
		}
		if len(full) == 0 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { done <- l.Run(ctx, free, full) }()
			b := <-full
			cancel()
			<-done
			full <- b
		}
		b := <-full
		if !b.Resumed {
			t.Fatalf("%+v", b.N)
		}
		free <- b
		for len(full) > 0 { // it may have been noticed twice
			free <- <-full
		}
	}
}

func TestResumeFails(t *testing.T) {
	ns := newNS(t, "resumefail")
	l, err := Listen(ListenConfig{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := l.Pause(); err == nil {
		t.Error("a closed socket left its groups")
	}
	if err := l.Resume(); err == nil {
		t.Error("a closed socket joined groups")
	}
}

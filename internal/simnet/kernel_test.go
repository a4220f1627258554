package simnet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"syncd/internal/flow"
)

func testFlow(port uint16) flow.Flow {
	f := flow.Flow{
		Orig: flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}, SrcPort: port, DstPort: 80},
		Has:  flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale | flow.HasMark | flow.HasMaster, TCPState: flow.TCPSynSent, Timeout: 100,
		Master: flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, SrcPort: 21},
	}
	f.Reply, _ = f.Orig.Inverse()
	return f
}

// listen runs k until the test ends and returns where its batches arrive.
func listen(t *testing.T, k *Kernel) (free, full chan *flow.Batch, stop func()) {
	free, full = make(chan *flow.Batch, 4), make(chan *flow.Batch, 4)
	for range cap(free) {
		free <- new(flow.Batch)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx, free, full) }()
	return free, full, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	}
}

func TestEventsTellWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKernel(1)
		free, full, stop := listen(t, k)
		defer stop()
		f := testFlow(1)
		const always = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasID
		for _, step := range []struct {
			name string
			do   func() bool
			kind flow.EventKind
			has  flow.Attrs
			port uint32
		}{
			{"create", func() bool { return k.Create(f, 7) }, flow.EventNew, always | f.Has&^flow.HasMark, 7},
			{"nothing", func() bool { return k.Update(f.Orig, 0, func(*flow.Flow) {}) }, flow.EventUpdate, always, 0},
			{"mark", func() bool { return k.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark = 5 }) }, flow.EventUpdate, always | flow.HasMark, 0},
			{"state", func() bool { return k.Update(f.Orig, 0, func(f *flow.Flow) { f.TCPState++ }) }, flow.EventUpdate,
				always | flow.HasMark | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale, 0},
			{"mark cleared", func() bool { return k.Update(f.Orig, 0, func(f *flow.Flow) { f.Mark = 0 }) }, flow.EventUpdate, always | flow.HasMark, 0},
			{"destroy", func() bool { return k.Destroy(f.Orig, 9) }, flow.EventDestroy, flow.HasReply | flow.HasStatus | flow.HasID, 9},
		} {
			if !step.do() {
				t.Fatalf("%s: not possible", step.name)
			}
			b := <-full
			if b.N != 1 || b.Overrun {
				t.Fatalf("%s: batch of %d, overrun %v", step.name, b.N, b.Overrun)
			}
			ev := &b.Events[0]
			if ev.Kind != step.kind || ev.Flow.Has != step.has || ev.PortID != step.port || ev.Flow.Orig != f.Orig {
				t.Errorf("%s: %v has %#x from %d, want %v %#x from %d", step.name, ev.Kind, ev.Flow.Has, ev.PortID, step.kind, step.has, step.port)
			}
			free <- b
		}
		if k.Create(f, 0); k.Create(f, 0) {
			t.Error("a tuple was taken twice")
		}
		<-full
		f = testFlow(2) // of a commit that knows nothing of its state
		f.Has = 0
		k.Create(f, 9)
		b := <-full
		if has := b.Events[0].Flow.Has; has != always|flow.HasTCP|flow.HasTCPFlags|flow.HasTCPWScale {
			t.Errorf("a flow of TCP has %#x", has)
		}
	})
}

func TestOverrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKernel(1)
		k.SocketLimit = 100
		free, full, stop := listen(t, k)
		defer stop()
		k.Stall(true)
		synctest.Wait()
		for p := range uint16(150) {
			k.Create(testFlow(p), 0)
		}
		k.Stall(false)
		told, overruns := 0, 0
		for told < 100 {
			b := <-full
			told += b.N
			if b.Overrun {
				overruns++
				if told != 100 {
					t.Errorf("overrun after %d events, want after all that were queued", told)
				}
			}
			free <- b
		}
		k.Create(testFlow(1000), 0)
		if b := <-full; b.N != 1 || b.Overrun {
			t.Errorf("after the overrun a batch of %d, overrun %v", b.N, b.Overrun)
		}
		if told != 100 || overruns != 1 || k.Overruns() != 1 || k.Len() != 151 {
			t.Errorf("%d events, %d overruns told and %d counted, %d flows", told, overruns, k.Overruns(), k.Len())
		}
	})
}

// TestDumpIsNotAtomic: what is there all the time is told once, and changes that
// are made meanwhile are told or not.
func TestDumpIsNotAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKernel(1)
		k.DumpPause = time.Millisecond
		for p := range uint16(500) {
			k.Create(testFlow(p), 0)
		}
		go func() {
			for p := range uint16(60) {
				time.Sleep(time.Millisecond)
				k.Destroy(testFlow(p).Orig, 0)
				k.Create(testFlow(1000+p), 0)
			}
		}()
		times := map[uint16]int{}
		if err := k.Dump(t.Context(), func(ev *flow.Event) error {
			if ev.Kind != flow.EventDump || ev.Flow.Has&flow.HasMark == 0 {
				t.Errorf("told %v with %#x", ev.Kind, ev.Flow.Has)
			}
			times[ev.Flow.Orig.SrcPort]++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		gone, fresh := 0, 0
		for p := range uint16(500) {
			switch n := times[p]; {
			case p >= 60 && n != 1:
				t.Errorf("flow %d was there all the time and told %d times", p, n)
			case p < 60 && n == 0:
				gone++
			}
		}
		for p := range uint16(60) {
			fresh += times[1000+p]
		}
		if gone == 0 || gone == 60 || fresh == 0 || fresh == 60 {
			t.Errorf("of 60 flows that went %d were not told, of 60 that came %d were: the dump was atomic", gone, fresh)
		}
		synctest.Wait()
	})
}

func TestDumpFailsOnCue(t *testing.T) {
	k := NewKernel(1)
	want := errors.New("resized")
	k.FailDumps(want)
	nothing := func(*flow.Event) error { return nil }
	if err := k.Dump(t.Context(), nothing); !errors.Is(err, want) {
		t.Errorf("first dump: %v", err)
	}
	if err := k.Dump(t.Context(), nothing); err != nil {
		t.Errorf("second dump: %v", err)
	}
	if k.Dumps() != 2 {
		t.Errorf("%d dumps", k.Dumps())
	}
}

func TestIDs(t *testing.T) {
	k := NewKernel(1)
	f := testFlow(1)
	id := func() uint32 { return k.Flows()[f.Orig].ID }
	k.Create(f, 0)
	first := id()
	k.Destroy(f.Orig, 0)
	k.Create(f, 0)
	if id() == first {
		t.Error("the same id again")
	}
	k.ReuseIDs = true
	first = id()
	k.Destroy(f.Orig, 0)
	k.Create(f, 0)
	if id() != first {
		t.Error("another id in the same slot")
	}
}

package gate

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a datagram socket, and a gate for the first.
func pair(t *testing.T) (g *Gate, in, out int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if g, err = New(fds[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return g, fds[0], fds[1]
}

func send(t *testing.T, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		t.Error(err)
	}
}

func empty(fd int) (n int) {
	var b [8]byte
	for {
		if _, err := unix.Read(fd, b[:]); err != nil {
			return n
		}
		n++
	}
}

func TestWait(t *testing.T) {
	g, in, out := pair(t)
	for range 3 { // what is there already
		send(t, out)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if n := empty(in); n != 1 {
			t.Fatalf("%d messages, want 1", n)
		}
	}
	for range 3 { // what comes while we wait
		begin := time.Now()
		go func() {
			time.Sleep(20 * time.Millisecond)
			send(t, out)
		}()
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 15*time.Millisecond || empty(in) != 1 {
			t.Fatalf("waited %v", took)
		}
	}
	// What was left there is seen again.
	send(t, out)
	for range 2 {
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPause(t *testing.T) {
	g, in, out := pair(t)
	for _, d := range []time.Duration{0, 200 * time.Microsecond, 30 * time.Millisecond} {
		begin := time.Now()
		go send(t, out) // does not end it
		if err := g.Pause(d); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < d || took > d+200*time.Millisecond {
			t.Errorf("paused for %v, want %v", took, d)
		}
	}
	if err := g.Wait(); err != nil || empty(in) != 3 {
		t.Errorf("after the pauses: %v", err)
	}
}

func TestDeadlineAndClose(t *testing.T) {
	g, in, out := pair(t)
	for what, wait := range map[string]func() error{
		"wait": g.Wait, "pause": func() error { return g.Pause(time.Hour) },
	} {
		set := make(chan error)
		time.AfterFunc(10*time.Millisecond, func() { set <- g.SetDeadline(time.Unix(0, 1)) })
		if err := wait(); err != os.ErrDeadlineExceeded {
			t.Errorf("%s: %v, want %v", what, err, os.ErrDeadlineExceeded)
		}
		if err := <-set; err != nil { // or the half of it that is to come would end the next one
			t.Fatal(err)
		}
		if err := g.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	// All is as before: the timer of the pause that was ended is forgotten.
	begin := time.Now()
	if err := g.Pause(5 * time.Millisecond); err != nil || time.Since(begin) < 5*time.Millisecond {
		t.Errorf("paused for %v: %v", time.Since(begin), err)
	}
	send(t, out)
	if err := g.Wait(); err != nil || empty(in) != 1 {
		t.Error(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { g.Close() })
	if err := g.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want %v", err, os.ErrClosed)
	}
	g.Close() // the one under way has got half of it done, maybe
	if err := g.Pause(1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want %v", err, os.ErrClosed)
	}
}

// During a pause nothing wakes but its timer: this is what a gate is for.
func TestPauseIsQuiet(t *testing.T) {
	g, in, out := pair(t)
	switches := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return u.Nvcsw
	}
	const messages = 2000
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		var b [8]byte
		for range messages { // each one comes into an empty socket
			unix.Write(out, []byte{1})
			unix.Read(in, b[:])
			for at := time.Now(); time.Since(at) < 30*time.Microsecond; { // for who is woken to go to sleep again
			}
		}
		<-stop
	}()
	before := switches()
	if err := g.Pause(100 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	n := switches() - before
	close(stop)
	<-done
	t.Logf("%d switches while %d messages came", n, messages)
	if n > messages/4 {
		t.Errorf("%d switches while %d messages came", n, messages)
	}
}

func TestAllocs(t *testing.T) {
	g, in, out := pair(t)
	one := []byte{1}
	var b [8]byte
	if n := testing.AllocsPerRun(100, func() {
		unix.Write(out, one)
		if g.Wait() != nil || g.Pause(1) != nil {
			t.Fatal("no wait")
		}
		unix.Read(in, b[:])
	}); n != 0 {
		t.Errorf("%v allocations for a wait and a pause", n)
	}
}

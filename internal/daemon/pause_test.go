package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"syncd/internal/flow"
)

func TestWithoutEvents(t *testing.T) {
	const paused = "a commit runs, during which changes of the kernel's table are not followed"
	failed := errors.New("no")
	for _, tt := range []struct {
		name   string
		n      int
		known  int // in the internal cache
		forAll bool
		pays   bool
		err    error
	}{
		{"few", pauseFrom - 1, 0, true, false, nil},
		{"many", pauseFrom, 0, true, true, nil},
		{"many, of which some fail", pauseFrom, 0, true, true, failed},
		{"few beside what is there", pauseFrom, 2*pauseFrom + 2, true, false, nil},
		{"new entries would be mute", pauseFrom, 0, false, false, nil},
	} {
		d, k := newDaemon(t, validConfig)
		d.forAll = func() bool { return tt.forAll }
		entries := func() (n int) {
			if err := d.engine.Do(t.Context(), func() { n = d.engine.Internal().Len() }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for i := range tt.known {
			k.Create(testFlow(i, flow.TCPEstablished), 0)
			if n := i + 1; n%1000 == 0 || n == tt.known { // the simulated socket is slow when it is full
				waitFor(t, fmt.Sprintf("%d entries", n), func() bool { return entries() == n })
			}
		}
		problems := func() []string {
			s, err := d.look(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.problems
		}
		err := d.withoutEvents(t.Context(), tt.n, func() error {
			if got := slices.Contains(problems(), paused); got != tt.pays {
				t.Errorf("%s: paused %v, want %v", tt.name, got, tt.pays)
			}
			k.Create(testFlow(100_000, flow.TCPEstablished), 0)
			return tt.err
		})
		if err != tt.err {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := d.rereadAfterPause(t.Context()); got != tt.pays || d.rereadAfterPause(t.Context()) {
			t.Errorf("%s: a reading after it that can be waited for: %v, want %v, once", tt.name, got, tt.pays)
		}
		if n := entries(); tt.pays && n != tt.known+1 {
			t.Errorf("%s: after the reading there are %d entries, want %d", tt.name, n, tt.known+1)
		}
		waitFor(t, "the table is read again", func() bool {
			return entries() == tt.known+1 && !slices.ContainsFunc(problems(), func(p string) bool {
				return p == paused || strings.Contains(p, "resynchronisation with the kernel")
			})
		})
		want := 1 // the first
		if tt.pays {
			want++
		}
		if n := k.Dumps(); n != want {
			t.Errorf("%s: %d dumps, want %d", tt.name, n, want)
		}
	}
}

// deafened is an event source that can be left, and not joined again.
type deafened struct{ err error }

func (d deafened) Pause() error  { return errors.New("cannot leave") }
func (d deafened) Resume() error { return d.err }

// Whoever cannot listen any more must not go on as if nothing were.
func TestEventsThatDoNotComeBack(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	d.events = deafened{errors.New("join group 1: operation not permitted")}
	for range 3 {
		if err := d.withoutEvents(t.Context(), pauseFrom, func() error { return nil }); err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-d.broken:
		if want := "listen to the kernel again after a commit: join group 1: operation not permitted"; err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	default:
		t.Error("the daemon goes on")
	}
}

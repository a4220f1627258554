package rig

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"syncd/internal/lab"
)

// A pair that has nothing to do sleeps: each daemon says a word or two a second and hears as
// many, and each of these wakes one thread once. What is beyond that are the seldom
// timers of the runtime, which wake the thread that watches over it.
func TestIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("watches real daemons for some seconds")
	}
	if err := lab.Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no lab: %v", err)
		}
		t.Skipf("no lab: %v", err)
	}
	bin := filepath.Join(t.TempDir(), "syncd")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "syncd/cmd/syncd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build syncd: %v\n%s", err, out)
	}
	for _, kind := range []Kind{Sealed, Plain} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, err := New(bin)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var pair [2]*Daemon
			for i := range pair {
				if pair[i], err = r.Start(kind, i, Settings{}); err != nil {
					t.Fatal(err)
				}
			}
			// Greeting, first bulk update, readiness: 10 s with conntrackd's dialect, which has
			// no end of a bulk update.
			if err := Wait(30*time.Second, "both are ready", func() (bool, error) {
				for _, d := range pair {
					if s, err := d.Status(); err != nil || !s.Ready || !s.InSync {
						return false, err
					}
				}
				return true, nil
			}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			// Other work on the machine wakes them too, by what it delays: the calmest of some
			// moments counts.
			const watch, moments, most = 4 * time.Second, 4, 12
			calmest := [2]float64{math.Inf(1), math.Inf(1)}
			for range moments {
				var before [2]uint64
				var cpu [2]time.Duration
				for i, d := range pair {
					if before[i], err = Wakeups(d.PID); err != nil {
						t.Fatal(err)
					}
					cpu[i], _ = CPU(d.PID)
				}
				time.Sleep(watch)
				for i, d := range pair {
					after, err := Wakeups(d.PID)
					if err != nil {
						t.Fatal(err)
					}
					used, _ := CPU(d.PID)
					rate := float64(after-before[i]) / watch.Seconds()
					t.Logf("%s: %.1f wake-ups a second, %.3f %% of a processor", d.Node.Name(), rate, 100*(used-cpu[i]).Seconds()/watch.Seconds())
					calmest[i] = min(calmest[i], rate)
				}
				if max(calmest[0], calmest[1]) <= most {
					return
				}
			}
			for i, d := range pair {
				if calmest[i] > most {
					t.Errorf("%s wakes %.1f times a second with nothing to do", d.Node.Name(), calmest[i])
				}
			}
		})
	}
}

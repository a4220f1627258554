package rig

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A process that would use a whole processor uses its share of one, and all of it again
// when the limit is lifted.
func TestConfine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	pid := cmd.Process.Pid
	name := fmt.Sprintf("%s%d-test", Prefix, os.Getpid())
	const share = 0.1
	release, err := Confine(name, pid, share)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("no control group with processor time here: %v", err)
	}
	used := func() time.Duration {
		t.Helper()
		c, err := CPU(pid)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before, begin := used(), time.Now()
	time.Sleep(500 * time.Millisecond)
	if part := (used() - before).Seconds() / time.Since(begin).Seconds(); part > 1.5*share {
		t.Errorf("it used %.2f of a processor, may use %.2f", part, share)
	}
	if n, err := Throttled(name); err != nil || n == 0 {
		t.Errorf("made to wait %d times, %v", n, err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	// On a busy machine it may have to wait for others.
	before, begin = used(), time.Now()
	for time.Since(begin) < 10*time.Second && (used()-before).Seconds() < 2*share*time.Since(begin).Seconds()+0.01 {
		time.Sleep(50 * time.Millisecond)
	}
	if part := (used() - before).Seconds() / time.Since(begin).Seconds(); part < 2*share {
		t.Errorf("without a limit it used %.2f of a processor", part)
	}
	if _, err := Throttled(name); err == nil {
		t.Error("the group is still there")
	}
}

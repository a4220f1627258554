package daemon

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// All threads have the short slice, also those that start later; a thread of another
// policy is left alone.
func TestShortSlices(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	probe := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Runtime: uint64(2 * time.Millisecond)}
	if err := unix.SchedSetAttr(0, probe, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.SchedGetAttr(0, 0); err != nil || got.Runtime != probe.Runtime {
		t.Logf("this kernel (before 6.12) has no slices of its own for a thread: %+v %v", got, err)
		return
	}
	shortenSlices()
	started := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: a thread of its own, which ends with it
		started <- unix.Gettid()
		time.Sleep(time.Second)
	}()
	<-started
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		got, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			continue // it has ended
		}
		if got.Runtime != uint64(timeSlice) || got.Policy != unix.SCHED_NORMAL {
			t.Errorf("thread %d: %+v", tid, got)
		}
	}
}

// A process with a session of its own gives its nice value to the session; one among
// others does not touch theirs.
func TestNiceSession(t *testing.T) {
	const child = "SYNCD_TEST_NICE_SESSION"
	if os.Getenv(child) != "" {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -5); err != nil {
			t.Skipf("no priority to give: %v", err)
		}
		niceSession()
		b, err := os.ReadFile("/proc/self/autogroup")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("autogroup: %s", b)
		return
	}
	if _, err := os.Stat("/proc/self/autogroup"); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root, and a kernel that groups by session: %v", err)
	}
	for _, own := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], "-test.run", "TestNiceSession$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "nice -5") != own {
			t.Errorf("own session: %v:\n%s", own, out)
		}
	}
}

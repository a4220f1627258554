package daemon

import (
	"os"
	"runtime"
	"strconv"
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

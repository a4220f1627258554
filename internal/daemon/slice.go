package daemon

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// timeSlice is the time slice that our threads ask the scheduler for. Linux 6.12 and
// later let a thread with a short slice run soon after it is woken, although others
// are at work, and give it no larger part of the processor for that: what we do each
// time takes some hundred microseconds.
const timeSlice = 300 * time.Microsecond

// shortenSlices asks for it, for all threads that there are; those that they start
// inherit it. Where it cannot be had all is as it was: older kernels ignore it, and
// another policy than the usual one is somebody's wish.
func shortenSlices() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil || attr.Policy != unix.SCHED_NORMAL {
			continue
		}
		attr.Runtime = uint64(timeSlice)
		_ = unix.SchedSetAttr(tid, attr, 0)
	}
}

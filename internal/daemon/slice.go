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

// niceSession gives our session the nice value that we have. Where the scheduler groups
// processes by session (autogroup, sched(7), as most distributions do), a nice value
// counts against those of the same session alone, of which a service has no others. It
// does nothing if we are one of several in a session that is not ours, if we have no
// priority to give, or if it is not allowed.
func niceSession() {
	if session, err := unix.Getsid(0); err != nil || session != os.Getpid() {
		return
	}
	// The system call returns 20 less the nice value.
	if p, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && p > 20 {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(20-p)), 0)
	}
}

package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the processor time that a process has used since it started, all threads,
// those that ended included. It is the scheduler's own account in nanoseconds, not
// the ticks of /proc/PID/stat.
func CPU(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED: see clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory is what a process has resident, and its proportional share of that, in
// octets.
type Memory struct{ RSS, PSS int64 }

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (m Memory, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64) // the first line, addresses, is none of ours
		switch f[0] {
		case "Rss:":
			m.RSS = kib << 10
		case "Pss:":
			m.PSS = kib << 10
		}
	}
	if m.RSS == 0 {
		return m, fmt.Errorf("smaps_rollup of process %d says nothing", pid)
	}
	return m, nil
}

// Drops is how many messages the kernel has dropped on netfilter sockets in the
// network namespace of a process, for want of room in their buffers.
func Drops(pid int) (n uint64, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "net/netlink"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		f := strings.Fields(line)
		if len(f) < 10 || f[1] != strconv.Itoa(unix.NETLINK_NETFILTER) {
			continue
		}
		d, err := strconv.ParseUint(f[8], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/net/netlink: %w", err)
		}
		n += d
	}
	return n, nil
}

// Wakeups is how often the threads of a process have gone to sleep by themselves so
// far: each time they were woken once.
func Wakeups(pid int) (n uint64, err error) {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/status"))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no tasks: %w", pid, os.ErrNotExist)
	}
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
		f := strings.Fields(rest)
		if len(f) == 0 {
			continue
		}
		v, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", t, err)
		}
		n += v
	}
	return n, nil
}

// Waited is for how long the threads of a process have wanted to run and had no
// processor, in all, those that ended left out.
func Waited(pid int) (d time.Duration, err error) {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/schedstat"))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no tasks: %w", pid, os.ErrNotExist)
	}
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		// Time on a processor, time in wait for one, in nanoseconds; how often.
		f := strings.Fields(string(b))
		if len(f) != 3 {
			return 0, fmt.Errorf("%s: %q", t, b)
		}
		ns, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", t, err)
		}
		d += time.Duration(ns)
	}
	return d, nil
}

// RealTime gives a thread (0 for the calling one) the lowest real-time priority.
func RealTime(tid int) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
	return os.NewSyscallError("sched_setattr", unix.SchedSetAttr(tid, &attr, 0))
}

// Scheduling says under which policy a process runs, in the words of sched(7).
func Scheduling(pid int) string {
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		return "unknown"
	}
	switch attr.Policy {
	case unix.SCHED_FIFO:
		return fmt.Sprintf("SCHED_FIFO %d", attr.Priority)
	case unix.SCHED_RR:
		return fmt.Sprintf("SCHED_RR %d", attr.Priority)
	}
	return fmt.Sprintf("SCHED_OTHER, nice %d", attr.Nice)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"syncd/internal/ctnetlink"
	"syncd/test/bench/rig"
)

// Sample is one run of one kind of daemon. All times are in seconds.
type Sample struct {
	Kind  rig.Kind `json:"kind"`
	Flows int      `json:"flows"`
	Run   int      `json:"run"`

	FillS     float64 `json:"fill_s"`              // from the first flow on the active node to the last in the backup's cache
	CommitS   float64 `json:"commit_s"`            // of the commit, as the daemon tells it
	WallS     float64 `json:"wall_s"`              // of the command
	CPUS      float64 `json:"cpu_s"`               // of the backup's daemon during the command, the kernel's work for it included
	SettledS  float64 `json:"settled_s"`           // from the beginning of the commit until the backup's own cache has all, too
	Unsettled int     `json:"unsettled,omitempty"` // entries that it has not got after settleLimit
	AgainS    float64 `json:"again_s"`             // of a second commit, of entries that are all there
	AgainCPUS float64 `json:"again_cpu_s"`
	ReadS     float64 `json:"read_s"` // of reading the kernel's table again into a cache that has it
	ReadCPUS  float64 `json:"read_cpu_s"`

	Churned int `json:"churned"` // events on the active node during the commit
}

const (
	maxFlows     = 1 << 30
	fillDeadline = 2 * time.Minute
	settleLimit  = 30 * time.Second
	churnFlows   = 1000 // that come and go on the active node
)

// Targets of the flows, see rig.Flow.
const (
	targetFill  = 1
	targetChurn = 2
)

// fillRate is slow enough for any daemon here to follow, in flows a second.
const fillRate = 100_000

// churn lets flows come and go at a rate of events a second until stop is set, and
// counts the events.
func churn(w *rig.Load, rate int, stop *atomic.Bool, events *atomic.Int64) error {
	begin := time.Now()
	for n := 0; !stop.Load(); n++ {
		op := ctnetlink.OpCreate
		if n/churnFlows%2 == 1 {
			op = ctnetlink.OpDelete
		}
		if err := w.Add(op, n%churnFlows, targetChurn); err != nil {
			return err
		}
		if n%10 == 9 {
			if err := w.Flush(); err != nil {
				return err
			}
			events.Store(int64(n + 1))
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		}
	}
	return w.Flush()
}

// favour gives the threads of a process real-time priority over what else runs on the
// machine, as conntrackd takes it for itself.
func favour(pid int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return fmt.Errorf("process %d has no tasks: %w", pid, os.ErrNotExist)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			return err
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority of process %d: %w", pid, err)
		}
	}
	return nil
}

// measure measures one kind of daemon once, on a new rig.
func measure(ctx context.Context, o *options, kind rig.Kind, flows int) (s *Sample, err error) {
	r, err := rig.New(o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	settings := rig.Settings{Flows: 2 * (flows + churnFlows), Env: o.env}
	a, err := r.Start(kind, 0, settings)
	if err != nil {
		return nil, err
	}
	b, err := r.Start(kind, 1, settings)
	if err != nil {
		return nil, err
	}
	for _, d := range []*rig.Daemon{a, b} {
		if d.Kind != rig.Conntrackd {
			if err := favour(d.PID); err != nil {
				return nil, err
			}
		}
	}
	w, err := rig.NewLoad(r.A)
	if err != nil {
		return nil, err
	}
	defer w.Close()

	s = &Sample{Kind: kind, Flows: flows}
	begin := time.Now()
	if err := w.Range(ctx, ctnetlink.OpCreate, 0, flows, targetFill, fillRate); err != nil {
		return nil, err
	}
	if err := rig.Wait(fillDeadline, fmt.Sprintf("the backup has %d flows", flows), func() (bool, error) {
		time.Sleep(20 * time.Millisecond) // who asks more often slows it down
		_, external, err := b.Entries()
		return external == uint64(flows), err
	}); err != nil {
		return nil, err
	}
	s.FillS = time.Since(begin).Seconds()
	if err := rig.Wait(time.Minute, "the backup is in step", b.InStep); err != nil {
		return nil, err
	}

	if o.alone {
		if err := a.Stop(); err != nil {
			return nil, err
		}
	}
	// From here on the active node's events go on.
	var stop atomic.Bool
	var events atomic.Int64
	churned := make(chan error, 1)
	if o.churn > 0 {
		go func() { churned <- churn(w, o.churn, &stop, &events) }()
	} else {
		churned <- nil
	}
	err = s.commit(r, b, o.alone, &events)
	stop.Store(true)
	if err = errors.Join(err, <-churned); err != nil {
		return nil, err
	}

	time.Sleep(1100 * time.Millisecond) // syncd lets a second pass between two readings
	if s.ReadS, s.ReadCPUS, err = cost(b, b.Reread); err != nil {
		return nil, err
	}
	if s.AgainS, s.AgainCPUS, err = cost(b, func() (time.Duration, error) {
		c, err := b.Commit()
		// With instant takeover the first one has made them the node's own.
		if err == nil && c.Created+c.There < uint64(flows) && kind != rig.Instant {
			err = fmt.Errorf("a second commit of %d entries: %+v", flows, c)
		}
		return c.Took, err
	}); err != nil {
		return nil, err
	}

	// The rig is removed with an empty table and without listeners, which is quick.
	if !o.alone {
		err = a.Stop()
	}
	if err := errors.Join(err, b.Stop()); err != nil {
		return nil, err
	}
	return s, errors.Join(rig.FlushKernel(r.A), rig.FlushKernel(r.B))
}

// cost runs something and returns how long it took by its own words, and what it took
// of the processor, in seconds.
func cost(b *rig.Daemon, run func() (time.Duration, error)) (took, cpu float64, err error) {
	before, err := rig.CPU(b.PID)
	if err != nil {
		return 0, 0, err
	}
	t, err := run()
	if err != nil {
		return 0, 0, err
	}
	after, err := rig.CPU(b.PID)
	return t.Seconds(), (after - before).Seconds(), err
}

// commit measures the commit.
func (s *Sample) commit(r *rig.Rig, b *rig.Daemon, alone bool, events *atomic.Int64) error {
	time.Sleep(500 * time.Millisecond) // the churn runs
	began, before := time.Now(), events.Load()
	var c rig.Committed
	var err error
	if s.CommitS, s.CPUS, err = cost(b, func() (_ time.Duration, err error) {
		c, err = b.Commit()
		return c.Took, err
	}); err != nil {
		return err
	}
	s.WallS, s.Churned = c.Wall.Seconds(), int(events.Load()-before)
	n, err := r.B.FlowCount()
	if err != nil {
		return err
	}
	done := c.Created
	if s.Kind == rig.Instant {
		done += c.There // they have been parked there before
	}
	// Some of the churn's flows are committed too.
	if n < s.Flows || n > s.Flows+churnFlows+100 || done < uint64(s.Flows) || c.Refused > 0 {
		return fmt.Errorf("the backup says that it has created %d entries, %d were refused; its kernel has %d, and should have %d", c.Created, c.Refused, n, s.Flows)
	}
	for {
		time.Sleep(10 * time.Millisecond)
		internal, _, err := b.Entries()
		if err != nil {
			return err
		}
		settled := internal >= uint64(s.Flows)
		if settled && !alone { // there is nobody to be in step with
			if settled, err = b.InStep(); err != nil {
				return err
			}
		}
		if s.SettledS = time.Since(began).Seconds(); settled {
			return nil
		}
		if s.SettledS > settleLimit.Seconds() {
			if b.Kind != rig.Conntrackd {
				return fmt.Errorf("after %v its own cache has %d entries", settleLimit, internal)
			}
			s.Unsettled = s.Flows - int(internal) // events that it has lost
			return nil
		}
	}
}

// Package monotime is the clock of the daemon: monotonic nanoseconds that no
// step of the wall clock and no daylight-saving rule disturbs.
//
// The loop reads it once per turn and passes it down; state machines never read
// it. Only differences mean anything: the zero point is the start of the
// process, and inside a testing/synctest bubble values may be negative.
package monotime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Time is a point on the monotonic clock, in nanoseconds. The zero Time stands
// for "never" or "no deadline" wherever a field or result says so; Now never
// returns it.
type Time int64

// start carries a monotonic reading; time.Since uses that alone.
var start = time.Now()

// Now returns the current time.
func Now() Time {
	d := Time(time.Since(start))
	if d == 0 {
		return 1
	}
	return d
}

// Add returns t shifted by d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns the duration t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Before reports whether t is earlier than u.
func (t Time) Before(u Time) bool { return t < u }

// Earliest returns the earlier of two deadlines, of which zero means none.
func Earliest(a, b Time) Time {
	switch {
	case a == 0:
		return b
	case b == 0 || a < b:
		return a
	}
	return b
}

// SystemMicroseconds returns CLOCK_MONOTONIC in microseconds, as sd_notify(3) wants
// it for a reload.
func SystemMicroseconds() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}

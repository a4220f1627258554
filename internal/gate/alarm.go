package gate

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"syncd/internal/monotime"
)

// Alarm wakes one goroutine at a time that it sets, as a time.Timer does, at less
// cost for the machine: for each timer of its own the runtime wakes its monitor thread
// besides, which looks around for a while, and itself a millisecond too early. It may
// ring before its time, so whoever hears it looks at the clock. The methods belong to
// one goroutine, but for Close.
type Alarm struct {
	timer polled
	rings chan struct{}
	at    monotime.Time // what the timer is set to; 0 for nothing, or that has rung
	set   monotime.Time // when it was set
	err   error         // of setting it; then it rings at once
	d     time.Duration
	arm   func(fd uintptr)
}

// settle is for how long a timer that was set is left as it is when it turns out to be
// too early: to wake in vain once is less than a system call each time.
const settle = 5 * time.Millisecond

// NewAlarm returns an alarm that is not set.
func NewAlarm() (*Alarm, error) {
	a := &Alarm{rings: make(chan struct{}, 1)}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err := a.timer.open(fd, "timerfd_create", err); err != nil {
		return nil, err
	}
	a.arm = func(fd uintptr) {
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(a.d))}
		a.err = unix.TimerfdSettime(int(fd), 0, &spec, nil)
	}
	go a.run()
	return a, nil
}

// run rings until the alarm is closed.
func (a *Alarm) run() {
	var expired [8]byte
	for {
		if a.timer.raw.Read(func(fd uintptr) bool {
			// It does not wait, so it is raw: see Gate.
			_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&expired[0])), uintptr(len(expired)))
			return errno != unix.EAGAIN
		}) != nil {
			return // closed
		}
		a.ring()
	}
}

func (a *Alarm) ring() {
	select {
	case a.rings <- struct{}{}:
	default:
	}
}

// Rings is where the alarm says that the time has come. Whoever hears it calls Heard.
func (a *Alarm) Rings() <-chan struct{} { return a.rings }

// Heard says that the alarm was heard. It rings no more until it is set.
func (a *Alarm) Heard() { a.at = 0 }

// Set lets the alarm ring at a time, or a little earlier, in the place of any other
// time; 0 means never.
func (a *Alarm) Set(now, at monotime.Time) {
	if at == 0 || a.at != 0 && at >= a.at && (at == a.at || now.Sub(a.set) < settle) {
		return // one that rings in vain does no harm
	}
	a.at, a.set, a.d = at, now, max(at.Sub(now), 1)
	if a.timer.raw.Control(a.arm) != nil || a.err != nil {
		a.ring()
	}
}

// Close ends the alarm. It rings no more.
func (a *Alarm) Close() error { return a.timer.close() }

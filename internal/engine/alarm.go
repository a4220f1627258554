package engine

import (
	"time"

	"syncd/internal/monotime"
)

// timerAlarm is an Alarm made of a timer of the runtime.
type timerAlarm struct {
	timer *time.Timer
	rings chan struct{}
}

func newTimerAlarm() *timerAlarm {
	a := &timerAlarm{rings: make(chan struct{}, 1)}
	a.timer = time.AfterFunc(time.Hour, func() {
		select {
		case a.rings <- struct{}{}:
		default:
		}
	})
	a.timer.Stop()
	return a
}

func (a *timerAlarm) Rings() <-chan struct{} { return a.rings }
func (a *timerAlarm) Heard()                 {}

func (a *timerAlarm) Set(now, at monotime.Time) {
	if at != 0 {
		a.timer.Reset(max(at.Sub(now), 0))
	}
}

package gate

import (
	"testing"
	"time"

	"syncd/internal/monotime"
)

func alarm(t *testing.T) *Alarm {
	t.Helper()
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// rang waits for the alarm and returns how long after begin it rang.
func rang(t *testing.T, a *Alarm, begin monotime.Time) time.Duration {
	t.Helper()
	select {
	case <-a.Rings():
		a.Heard()
		return monotime.Now().Sub(begin)
	case <-time.After(5 * time.Second):
		t.Fatal("the alarm does not ring")
		return 0
	}
}

func TestAlarm(t *testing.T) {
	a := alarm(t)
	for _, d := range []time.Duration{-time.Second, 0, 300 * time.Microsecond, 30 * time.Millisecond} {
		now := monotime.Now()
		a.Set(now, now.Add(d))
		if took := rang(t, a, now); took < d {
			t.Errorf("rang after %v, want %v", took, d)
		}
	}
	select {
	case <-a.Rings():
		t.Error("rang without being set")
	case <-time.After(50 * time.Millisecond):
	}
}

// An earlier time counts at once, a later one too once the alarm has stood for a
// moment, and it never rings after the last time that it was given.
func TestAlarmIsSetAnew(t *testing.T) {
	a := alarm(t)
	now := monotime.Now()
	a.Set(now, now.Add(time.Hour))
	a.Set(now, now.Add(10*time.Millisecond))
	if took := rang(t, a, now); took < 10*time.Millisecond {
		t.Errorf("rang after %v", took)
	}
	now = monotime.Now()
	a.Set(now, now.Add(30*time.Millisecond))
	later := now.Add(2 * settle)
	a.Set(later, now.Add(90*time.Millisecond))
	if took := rang(t, a, now); took < 80*time.Millisecond { // the clock of later has not come yet
		t.Errorf("rang after %v, and was put off", took)
	}
	now = monotime.Now()
	a.Set(now, now.Add(20*time.Millisecond))
	a.Set(now.Add(time.Millisecond), now.Add(time.Hour)) // is left as it was
	if took := rang(t, a, now); took < 20*time.Millisecond || took > time.Second {
		t.Errorf("rang after %v", took)
	}
}

func TestAlarmThatRingsUnheard(t *testing.T) {
	a := alarm(t)
	for range 3 {
		now := monotime.Now()
		a.Set(now, now.Add(time.Microsecond))
		time.Sleep(5 * time.Millisecond) // it has rung, and nobody listened
		a.Heard()
	}
	now := monotime.Now()
	a.Set(now, now.Add(time.Millisecond))
	rang(t, a, now) // the one of before stands for this one
	a.Close()
	a.Set(now, now.Add(time.Millisecond)) // rings at once rather than never
	rang(t, a, now)
}

func TestAlarmDoesNotAllocate(t *testing.T) {
	a := alarm(t)
	now := monotime.Now()
	n := testing.AllocsPerRun(1000, func() {
		now = now.Add(2 * settle)
		a.Set(now, now.Add(time.Hour))
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

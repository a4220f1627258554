package lab

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// onThread runs f on an OS thread that nobody else uses meanwhile, and puts the
// thread back into its network namespace afterwards. A thread that cannot be put
// back is given up: the runtime ends it.
func onThread[T any](f func() (T, error)) (T, error) {
	type result struct {
		value    T
		err      error
		panicked any
	}
	done := make(chan result, 1)
	go func() {
		r := result{err: errors.New("the function left its goroutine (t.Fatal inside?)")}
		defer func() {
			// A panic goes on in the caller, whose deferred calls clean up.
			r.panicked = recover()
			done <- r
		}()
		runtime.LockOSThread()
		origin, err := netns.Get()
		if err != nil {
			r.err = fmt.Errorf("current namespace: %w", err)
			return
		}
		defer func() {
			// The main thread must be put back rather than ended: it stands for
			// the whole process in /proc/self.
			if netns.Set(origin) == nil {
				runtime.UnlockOSThread()
			}
			_ = origin.Close()
		}()
		r.value, r.err = f()
	}()
	r := <-done
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.value, r.err
}

// enter moves the calling thread into ns.
func enter(ns netns.NsHandle) error {
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	return nil
}

// thread is one OS thread that runs functions in turn until it is stopped.
type thread struct {
	work chan func()
}

func newThread() *thread {
	t := &thread{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		for f := range t.work {
			f()
		}
	}()
	return t
}

// inside runs f on the thread in namespace ns. It must not be called after stop.
func (t *thread) inside(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	t.work <- func() {
		done <- func() error {
			origin, err := netns.Get()
			if err != nil {
				return fmt.Errorf("current namespace: %w", err)
			}
			defer origin.Close()
			if err := enter(ns); err != nil {
				return err
			}
			return errors.Join(f(), enter(origin))
		}()
	}
	return <-done
}

func (t *thread) stop() { close(t.work) }

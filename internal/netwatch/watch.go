package netwatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls f with the present state, and again after every change, until ctx
// is done; then it returns nil. It returns an error when the kernel cannot be
// asked.
//
// f runs on the goroutine of the caller and should be quick; while it runs,
// changes gather in the kernel. Should they be too many, everything is read
// again: the last Snapshot is always the present state, although states in
// between may be left out.
//
// The network namespace is that of the calling thread.
func Watch(ctx context.Context, f func(Snapshot)) error {
	w := watcher{notify: f}
	return w.run(ctx)
}

type watcher struct {
	notify     func(Snapshot)
	readBuffer int // of the subscription, in octets; 0: the system's default
	overruns   int // how often the kernel has lost messages

	state *state // nil before the first notify
}

func (w *watcher) run(ctx context.Context) error {
	for {
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// Messages are lost. Those that still wait in the socket are older
			// than the loss: begin anew with an empty socket.
			w.overruns++
		default:
			return err
		}
	}
}

// follow subscribes, reads everything, and takes changes in until an error.
func (w *watcher) follow(ctx context.Context) error {
	// Subscribe first: what changes during the dumps is applied after them.
	events, err := w.subscribe()
	if err != nil {
		return fmt.Errorf("netwatch: subscribe: %w", err)
	}
	defer events.Close()
	// A deadline in the past ends a Receive that waits.
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(0, 1)) })
	defer stop()

	fresh, err := readAll()
	if err != nil {
		return fmt.Errorf("netwatch: read interfaces: %w", err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	changed := w.state == nil || !fresh.equal(w.state)
	w.state = fresh
	for {
		if changed {
			w.notify(w.state.snapshot())
		}
		messages, err := events.Receive()
		if err != nil {
			return fmt.Errorf("netwatch: receive: %w", err)
		}
		if changed, err = w.state.applyAll(messages); err != nil {
			return fmt.Errorf("netwatch: %w", err)
		}
	}
}

func (w *watcher) subscribe() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	if w.readBuffer > 0 {
		err = conn.SetReadBuffer(w.readBuffer)
	}
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR} {
		if err == nil {
			err = conn.JoinGroup(group)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// dumpAttempts is how often a dump is repeated that the kernel marks as not of one
// moment (NLM_F_DUMP_INTR). The last one is taken as it is: on a host where
// interfaces change all the time, what it misses is about to be announced.
const dumpAttempts = 5

// readAll dumps all interfaces and addresses.
func readAll() (*state, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s := newState()
	for _, request := range []struct {
		kind   netlink.HeaderType
		header int // octets of the family header; all zero asks for everything
	}{
		{unix.RTM_GETLINK, unix.SizeofIfInfomsg},
		{unix.RTM_GETADDR, unix.SizeofIfAddrmsg},
	} {
		var messages []netlink.Message
		for range dumpAttempts {
			messages, err = conn.Execute(netlink.Message{
				Header: netlink.Header{Type: request.kind, Flags: netlink.Request | netlink.Dump},
				Data:   make([]byte, request.header),
			})
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(messages, interrupted) {
				break
			}
		}
		if _, err := s.applyAll(messages); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func interrupted(m netlink.Message) bool {
	return m.Header.Flags&netlink.DumpInterrupted != 0
}

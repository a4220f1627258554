package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// teller sends the lines of a command that runs: how far it is, and at last its
// answer. The command never waits for the client: a goroutine writes, and what
// comes while it waits is dropped but for the latest.
type teller struct {
	q      *request
	latest chan Progress // of one
	ended  chan struct{} // closed when the goroutine has ended
	sent   bool          // a line; valid when it has ended
	lost   error         // the client is gone or does not read; as sent
}

func (q *request) newTeller() *teller {
	t := &teller{q: q, latest: make(chan Progress, 1), ended: make(chan struct{})}
	go t.run()
	return t
}

// progress is a ProgressFunc. It is called by one goroutine.
func (t *teller) progress(p Progress) {
	select {
	case <-t.latest: // it is told better
	default:
	}
	t.latest <- p
}

func (t *teller) run() {
	defer close(t.ended)
	for p := range t.latest {
		if t.lost == nil {
			t.line(&progressLine{&p})
		}
	}
}

// line sends one document. An error stays in lost.
func (t *teller) line(doc any) {
	b, err := json.Marshal(doc)
	if err == nil {
		if !t.sent {
			t.q.w.Header().Set("Content-Type", "application/x-ndjson")
			t.sent = true
		}
		t.q.refreshDeadline()
		_, err = t.q.w.Write(append(b, '\n'))
	}
	if err == nil {
		err = http.NewResponseController(t.q.w).Flush()
	}
	t.lost = err
}

// answer sends what the command ended with. It is called once, and progress not
// after it.
func (t *teller) answer(doc any, err error) error {
	close(t.latest)
	<-t.ended
	switch {
	case !t.sent:
		return t.q.answer(doc, err)
	case t.lost != nil:
		return t.q.cut(t.lost, "control client cut off: it does not read the answer to its command")
	case err == nil:
		t.line(doc)
		return t.lost
	}
	t.q.failed.Add(1)
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: the daemon stops", ErrNotReady)
	}
	t.line(&Error{Error: err.Error()})
	return errors.Join(err, t.lost) // tears the connection down
}

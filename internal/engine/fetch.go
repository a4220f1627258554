package engine

import (
	"context"
	"time"

	"go.uber.org/zap"

	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// fetches asks the kernel for what it tells in no event: the sequence adjustment that
// a helper makes when it writes another address into a command of a connection. A
// peer without it would garble the rest of that connection.
//
// Flows that events show to be adjusted are asked for at once, and so are those of
// which somebody else knows that a helper has touched them (wantFetch). All flows
// that can be adjusted are watched besides: asked for now and then.
type fetches struct {
	due     []wanted // in the order of time
	head    int      // of due; what is before it is done
	watched map[flow.Tuple]struct{}
	round   []flow.Tuple  // watched flows that are still to be asked for this time
	again   monotime.Time // when the next round begins; 0: nothing is watched
	pause   monotime.Time // when the next part of this one is asked for

	job      *fetchJob // nil while the worker has it
	asked    chan *fetchJob
	answered chan *fetchJob
	ended    chan struct{}
}

// wanted is a flow to be asked for. It is no handle, because an entry may be gone
// when its turn comes.
type wanted struct {
	key flow.Tuple
	at  monotime.Time
}

// fetchJob travels between the loop and the worker; whoever has it owns it.
type fetchJob struct {
	keys  [flow.BatchSize]flow.Tuple
	n     int // keys in use
	flows [flow.BatchSize]flow.Flow
	found int // flows in use
	err   error
}

const (
	// fetchDelay is between what happened and the question. A helper says that it
	// expects a connection first, and then changes the packet.
	fetchDelay = 5 * time.Millisecond
	// fetchInterval is between two rounds over what is watched, if that is little. What
	// changes without a word is known to peers after as much.
	fetchInterval = time.Second
	// fetchPause is between two parts of a round: 12,800 flows a second at most, which
	// takes 6 % of the time of a processor.
	fetchPause = 5 * time.Millisecond
	// fetchShare is how much longer than a round the pause after it is, at least.
	fetchShare = 4
	// maxWatched bounds what is watched: a round over as many takes 5 s. Of flows beyond
	// nothing is known but what events cause to be asked.
	maxWatched = 1 << 16
	// maxFetches bounds what waits to be asked for. The next round comes to what is
	// beyond.
	maxFetches = 1 << 16
)

// start starts the worker.
func (x *fetches) start(ctx context.Context, fetch FetchFunc) {
	if fetch == nil {
		return
	}
	x.watched = map[flow.Tuple]struct{}{}
	x.job = new(fetchJob)
	x.asked, x.answered = make(chan *fetchJob, 1), make(chan *fetchJob, 1)
	x.ended = make(chan struct{})
	asked, answered, ended := x.asked, x.answered, x.ended
	go func() {
		defer close(ended)
		for j := range asked {
			j.found = 0
			j.err = fetch(ctx, j.keys[:j.n], func(f *flow.Flow) {
				if j.found < len(j.flows) {
					j.flows[j.found] = *f
					j.found++
				}
			})
			answered <- j // has room for the only one
		}
	}()
}

// stop ends the worker.
func (x *fetches) stop() {
	if x.asked != nil {
		close(x.asked)
		<-x.ended
		x.asked = nil
	}
}

// next is when startFetch has something to do that waits for the time alone.
func (x *fetches) next() (at monotime.Time) {
	if x.job == nil {
		return 0 // the worker comes back
	}
	if x.head < len(x.due) {
		at = x.due[x.head].at
	}
	if len(x.round) > 0 {
		return monotime.Earliest(at, x.pause)
	}
	return monotime.Earliest(at, x.again)
}

// follow has the adjustment of entry h fetched if f, which an event says of it, shows
// that it may have one.
func (e *Engine) follow(h flow.Handle, f *flow.Flow) {
	switch adjusted, may := e.adjustable(h, f); {
	case adjusted:
		e.wantFetch(h)
	case may:
		e.watch(f.Orig)
	}
}

// followDumped is follow for a dump, which has told the adjustment.
func (e *Engine) followDumped(h flow.Handle, f *flow.Flow) {
	if adjusted, may := e.adjustable(h, f); adjusted || may {
		e.watch(f.Orig)
	}
}

// adjustable reports whether the sequence numbers of entry h are adjusted by what no
// event tells, and whether they may come to be. f is what the kernel says of it.
func (e *Engine) adjustable(h flow.Handle, f *flow.Flow) (adjusted, may bool) {
	if f.Status&flow.StatusSeqAdjust == 0 && f.Has&flow.HasHelper == 0 || e.fetch.watched == nil {
		return false, false
	}
	if f.Orig.Proto != flow.TCP {
		return false, false // nothing else has sequence numbers that a helper changes
	}
	if f.Status&flow.StatusSeqAdjust == 0 {
		return false, f.Status&(flow.StatusSrcNAT|flow.StatusDstNAT) != 0
	}
	// The adjustment of the SYN proxy is told by events, and does not change.
	has := e.internal.Has(h)
	return has&flow.HasSynproxy == 0 || has&flow.HasHelper != 0, false
}

// helperAtWork is told of a new expectation, replicated or not: its helper is about to
// write the translated address into the packet that told of it.
func (e *Engine) helperAtWork(x *flow.Expect) {
	if e.fetch.watched == nil || x.Master.Proto != flow.TCP {
		return
	}
	const changed = flow.StatusSrcNAT | flow.StatusDstNAT | flow.StatusSeqAdjust
	e.inZone(x, func() bool {
		h := e.internal.Lookup(&x.Master)
		if h != 0 && !e.internal.Dead(h) && e.internal.Has(h)&flow.HasHelper != 0 && e.internal.Status(h)&changed != 0 {
			e.wantFetch(h)
		}
		return false
	})
}

// wantFetch has entry h, which is alive, asked for in a moment: something has
// happened that may have changed what the kernel does not tell.
func (e *Engine) wantFetch(h flow.Handle) {
	x := &e.fetch
	if x.watched == nil {
		return
	}
	key := e.internal.Key(h)
	e.watch(key)
	switch {
	case e.internal.Flags(h)&flagFetchDue != 0:
		e.internal.SetFlags(h, flagFetchAgain, 0)
	case len(x.due)-x.head < maxFetches:
		x.due = append(x.due, wanted{key, e.now.Add(fetchDelay)})
		e.internal.SetFlags(h, flagFetchDue, 0)
	}
}

// watch has the flow with this key asked for now and then.
func (e *Engine) watch(key flow.Tuple) {
	x := &e.fetch
	if len(x.watched) >= maxWatched {
		return
	}
	x.watched[key] = struct{}{}
	if x.again == 0 {
		x.again = e.now.Add(fetchInterval)
	}
}

// startFetch asks for what is due, if the worker is free.
func (e *Engine) startFetch() {
	x := &e.fetch
	j := x.job
	if j == nil {
		return
	}
	j.n = 0
	for ; j.n < len(j.keys) && x.head < len(x.due) && !e.now.Before(x.due[x.head].at); x.head++ {
		key := x.due[x.head].key
		h := e.ask(key)
		if h == 0 {
			continue
		}
		flags := e.internal.Flags(h)
		e.internal.SetFlags(h, 0, flagFetchDue|flagFetchAgain)
		if flags&flagFetchAgain != 0 {
			x.due = append(x.due, wanted{key, e.now.Add(fetchDelay)})
			e.internal.SetFlags(h, flagFetchDue, 0)
		}
	}
	if x.head > len(x.due)/2 { // moves no more than it frees
		x.due, x.head = append(x.due[:0], x.due[x.head:]...), 0
	}
	if len(x.round) == 0 && x.again != 0 && !e.now.Before(x.again) {
		for key := range x.watched {
			x.round = append(x.round, key)
		}
		parts := time.Duration((len(x.round) + flow.BatchSize - 1) / flow.BatchSize)
		x.again, x.pause = e.now.Add(fetchInterval+(1+fetchShare)*parts*fetchPause), e.now
		if parts == 0 {
			x.again = 0
		}
	}
	if len(x.round) > 0 && !e.now.Before(x.pause) {
		x.pause = e.now.Add(fetchPause)
		for ; j.n < len(j.keys) && len(x.round) > 0; x.round = x.round[:len(x.round)-1] {
			if key := x.round[len(x.round)-1]; e.ask(key) == 0 {
				delete(x.watched, key)
			}
		}
	}
	if j.n > 0 {
		x.job = nil
		x.asked <- j // has room for the only one
	}
}

// ask puts a flow into the job, if it is alive, and returns its entry.
func (e *Engine) ask(key flow.Tuple) flow.Handle {
	h := e.internal.Lookup(&key)
	if h == 0 || e.internal.Dead(h) {
		return 0
	}
	j := e.fetch.job
	j.keys[j.n] = key
	j.n++
	e.internal.SetFlags(h, flagFetching, 0)
	return h
}

// takeFetched applies the answers of the kernel.
func (e *Engine) takeFetched(j *fetchJob) {
	e.fetch.job = j
	e.Stats.Fetched += uint64(j.n)
	for i := range j.found {
		e.fetched(&j.flows[i])
	}
	if j.err == nil {
		return
	}
	// The next round asks again.
	if e.Stats.FetchesFailed++; e.Stats.FetchesFailed&(e.Stats.FetchesFailed-1) == 0 {
		e.log.Warn("reading single flows of the kernel failed; trying again",
			zap.Error(j.err), zap.Uint64("failures", e.Stats.FetchesFailed))
	}
}

// fetched takes over the adjustment of one flow, as the kernel has it, and nothing
// else: of all other things events tell, and those that wait to be read may be
// older or newer.
func (e *Engine) fetched(f *flow.Flow) {
	const adjustment = flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	h := e.internal.Lookup(&f.Orig)
	if h == 0 || e.internal.Dead(h) || e.internal.Flags(h)&flagFetching == 0 || e.internal.ID(h) != f.ID {
		return // of another flow with this tuple, or in the other direction
	}
	e.internal.SetFlags(h, 0, flagFetching)
	if f.Has&adjustment == 0 {
		return
	}
	status := e.internal.Status(h) | f.Status&flow.StatusSeqAdjust
	told := flow.Flow{Has: f.Has&adjustment | flow.HasStatus, SeqAdj: f.SeqAdj, Status: status}
	changed := e.internal.Merge(h, &told, e.now)
	e.touch(h, f.Has&adjustment)
	if !changed {
		return
	}
	e.Stats.FetchedNews++
	e.internal.SetFlags(h, flagUpdated, 0)
	e.mode.Enqueue(h, false)
}

package engine

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// inbox carries parsed messages from a link reader to the loop.
type inbox struct {
	home    chan *inbox // where the loop returns it
	link    int
	n       int
	msgs    [64]wire.Message
	near    [64]flow.Handle // of which external entries the messages seem to be, for the loop
	session [64]uint64      // that sealed it; 0 for plain datagrams
	from    [64]netip.Addr
	faults  [wire.FaultType + 1]uint32 // what was not worth a message, by wire.Fault
}

// readers are the goroutines that feed the loop.
type readers struct {
	events     chan *flow.Batch
	freeEvents chan *flow.Batch
	inbox      chan *inbox
	group      sync.WaitGroup
}

// stop ends the readers, whose context has ended, and waits for them.
func (r *readers) stop(links []LinkReader) {
	for _, l := range links {
		l.Close()
	}
	r.group.Wait()
}

// startReaders starts the event reader, the parker and the link readers. The first that ends
// with an error while ctx lives cancels it with that error as the cause.
func startReaders(ctx context.Context, cancel context.CancelCauseFunc, cfg Config, p *parking) *readers {
	r := &readers{
		events:     make(chan *flow.Batch, eventBatches),
		freeEvents: make(chan *flow.Batch, eventBatches),
		inbox:      make(chan *inbox, inboxes*len(cfg.Links)),
	}
	for range eventBatches {
		r.freeEvents <- new(flow.Batch)
	}
	r.group.Go(func() {
		if err := cfg.Events.Run(ctx, r.freeEvents, r.events); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("event reader: %w", err))
		}
	})
	if p != nil {
		r.group.Go(func() {
			if err := cfg.Parker.Run(ctx, p.work, p.done); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("parker: %w", err))
			}
		})
	}
	for i, l := range cfg.Links {
		home := make(chan *inbox, inboxes)
		for range inboxes {
			home <- &inbox{home: home, link: i}
		}
		r.group.Go(func() {
			if err := readLink(ctx, l, cfg.Sealer, home, r.inbox); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("link reader: %w", err))
			}
		})
	}
	return r
}

// readLink reads datagrams until the link is closed, and hands over what they
// contain. A sender's messages keep their order.
func readLink(ctx context.Context, l LinkReader, sealer Sealer, home chan *inbox, full chan<- *inbox) error {
	var in *inbox
	var plain []byte // of the datagram being read
	rd := wire.Reader{Sync: sealer != nil}
	for {
		n, err := l.Read()
		if err != nil {
			return err
		}
		for i := range n {
			b, from := l.Datagram(i)
			var session uint64
			if sealer != nil {
				var ok bool
				if plain, session, ok = sealer.Open(plain[:0], b, monotime.Now()); !ok {
					continue
				}
				b, rd.Seed = plain, session
			}
			rd.Reset(b)
			for {
				if in == nil {
					select {
					case in = <-home:
						in.n, in.faults = 0, [wire.FaultType + 1]uint32{}
					case <-ctx.Done():
						return nil
					}
				}
				m := &in.msgs[in.n]
				if !rd.Next(m) {
					break
				}
				switch m.Fault {
				case wire.FaultTruncated, wire.FaultSize, wire.FaultVersion:
					in.faults[m.Fault]++
					continue
				}
				in.from[in.n], in.session[in.n] = from, session
				if in.n++; in.n == len(in.msgs) {
					full <- in
					in = nil
				}
			}
		}
		if in != nil {
			full <- in
			in = nil
		}
	}
}

package daemon

import (
	"context"
	"fmt"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/sync/stream"
)

const (
	verifyLimit    = time.Minute // how long the peers may take to prove themselves
	verifyInterval = 100 * time.Millisecond
)

// Verify implements ctl.Node: it compares all entries held of the peers with the
// messages that made them, then waits for a digest of every living peer that agrees.
// What differs is repaired meanwhile, and counted.
func (d *Daemon) Verify(ctx context.Context) (*ctl.VerifyReport, error) {
	if d.stream == nil {
		return nil, fmt.Errorf("verify: %w: conntrackd's dialect has no digests", ctl.ErrInvalid)
	}
	start := monotime.Now()
	before := map[uint8]engine.Found{}
	var peers []stream.PeerState
	if err := d.engine.Do(ctx, func() {
		peers = d.stream.Peers(d.engine.Now())
		for _, p := range peers {
			if p.Owner == 0 {
				continue // not met: nothing is held of it
			}
			before[p.Owner] = d.engine.Replica().Found(p.Owner)
		}
	}); err != nil {
		return nil, err
	}
	for _, p := range peers {
		if p.Owner == 0 {
			continue
		}
		for pos, first := flow.Handle(0), true; first || pos != 0; first = false {
			if err := d.engine.Do(ctx, func() { pos = d.engine.Replica().Audit(p.Owner, p.Session, pos) }); err != nil {
				return nil, err
			}
		}
	}
	audited := monotime.Now()
	proven := func(p *stream.PeerState) bool { return p.Proven != 0 && !p.Proven.Before(audited) }
	for {
		done := true
		if err := d.engine.Do(ctx, func() { peers = d.stream.Peers(d.engine.Now()) }); err != nil {
			return nil, err
		}
		for i := range peers {
			done = done && (proven(&peers[i]) || !peers[i].Alive || peers[i].Shadow)
		}
		if done || monotime.Now().Sub(start) > verifyLimit {
			break
		}
		select {
		case <-time.After(verifyInterval):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	rep := &ctl.VerifyReport{OK: true, Peers: []ctl.VerifyPeer{}, Entries: []ctl.VerifyEntry{}}
	if err := d.engine.Do(ctx, func() {
		for i := range peers {
			p := &peers[i]
			if p.Owner == 0 {
				continue
			}
			was, is := before[p.Owner], d.engine.Replica().Found(p.Owner)
			v := ctl.VerifyPeer{
				Name: p.Name, Missing: is.Missing - was.Missing, Stale: is.Stale - was.Stale,
				Different: is.Different - was.Different, Corrupted: is.Corrupted - was.Corrupted,
				Proven: proven(p),
			}
			if c := d.engine.Replica().Cache(p.Owner); c != nil {
				v.Flows = uint64(c.Len())
			}
			switch {
			case !p.Alive:
				v.Problem = "silent"
			case !v.Proven:
				v.Problem = "no digest has agreed yet"
			}
			rep.OK = rep.OK && v.Proven && v.Missing+v.Stale+v.Different+v.Corrupted == 0
			rep.Peers = append(rep.Peers, v)
			for _, s := range is.Samples {
				rep.Entries = append(rep.Entries, ctl.VerifyEntry{Peer: p.Name, What: s.What, Flow: s.Flow.String()})
			}
		}
	}); err != nil {
		return nil, err
	}
	rep.DurationS = monotime.Now().Sub(start).Seconds()
	return rep, nil
}

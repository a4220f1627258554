package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"syncd/internal/ctnetlink"
	"syncd/test/bench/rig"
)

// Cut is one run of a cut of the sync link. Times are in seconds.
type Cut struct {
	Kind    rig.Kind `json:"kind"`
	Run     int      `json:"run"`
	Flows   int      `json:"flows"`
	Changes int      `json:"changes"` // ends of flows while the link was cut

	FillS    float64 `json:"fill_s"`
	ChangesS float64 `json:"changes_s"` // from the first to the last change
	CutS     float64 `json:"cut_s"`

	// From the return of the link until the backup held no more than what was left; 0 if it
	// never came to that.
	CleanS float64 `json:"clean_s,omitempty"`
	// From the return of the link until the backup said that it was in step, proven by
	// digests; 0 where that is not said.
	ProvenS float64 `json:"proven_s,omitempty"`

	// The end, flow by flow, against the active node's kernel.
	LookedS    float64        `json:"looked_s"` // after the return of the link
	Divergence rig.Divergence `json:"divergence"`
}

const fillRate = 100_000 // flows a second: slow enough for any daemon here to follow

// patience is how long after the return of the link stale entries may go yet. What is
// there then is there for ever: nothing goes on that could end it.
const patience = 20 * time.Second

const (
	targetStanding = 1 // see rig.Flow
	asking         = 20 * time.Millisecond
)

// measureCut cuts the link of one kind of daemon.
func measureCut(ctx context.Context, o *options, kind rig.Kind) (s *Cut, err error) {
	r, err := rig.New(o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	settings := rig.Settings{Flows: o.cutFlows}
	a, err := r.Start(kind, 0, settings)
	if err != nil {
		return nil, err
	}
	b, err := r.Start(kind, 1, settings)
	if err != nil {
		return nil, err
	}
	load, err := rig.NewLoad(r.A)
	if err != nil {
		return nil, err
	}
	defer load.Close()

	s = &Cut{Kind: kind, Flows: o.cutFlows, Changes: o.cutChanges}
	begin := time.Now()
	if err := load.Range(ctx, ctnetlink.OpCreate, 0, o.cutFlows, targetStanding, fillRate); err != nil {
		return nil, err
	}
	if err := inStep(ctx, a, b, o.cutFlows); err != nil {
		return nil, err
	}
	s.FillS = time.Since(begin).Seconds()

	if err := r.CutSync(true); err != nil {
		return nil, err
	}
	begin = time.Now()
	rate := max(int(float64(o.cutChanges)/(0.9*o.cut.Seconds())), 1) // done by the end of the cut
	if err := load.Range(ctx, ctnetlink.OpDelete, 0, o.cutChanges, targetStanding, rate); err != nil {
		return nil, err
	}
	s.ChangesS = time.Since(begin).Seconds()
	if err := sleep(ctx, time.Until(begin.Add(o.cut))); err != nil {
		return nil, err
	}
	s.CutS = time.Since(begin).Seconds()
	if err := r.CutSync(false); err != nil {
		return nil, err
	}
	if err := s.watch(ctx, r, b, time.Now()); err != nil {
		return nil, err
	}
	// The rig is removed with an empty table and without listeners, which is quick.
	return s, errors.Join(a.Stop(), b.Stop(), rig.FlushKernel(r.A))
}

// watch looks what becomes of the backup after the link has returned.
func (s *Cut) watch(ctx context.Context, r *rig.Rig, b *rig.Daemon, healed time.Time) error {
	left := uint64(s.Flows - s.Changes)
	for time.Since(healed) < patience {
		if err := sleep(ctx, asking); err != nil {
			return err
		}
		_, have, err := b.Entries()
		if err != nil {
			return err
		}
		now := time.Since(healed).Seconds()
		if s.CleanS == 0 && have == left {
			s.CleanS = now
			if b.Kind == rig.Conntrackd {
				break
			}
		}
		if s.CleanS == 0 || b.Kind == rig.Conntrackd {
			continue
		}
		if ok, err := b.InStep(); err != nil {
			return err
		} else if ok {
			s.ProvenS = now
			break
		}
	}
	s.LookedS = time.Since(healed).Seconds()
	want, err := rig.KernelTable(r.A)
	if err != nil {
		return err
	}
	if len(want) != s.Flows-s.Changes {
		return fmt.Errorf("the active node's kernel has %d flows, should have %d: the load was not what it is said to be", len(want), s.Flows-s.Changes)
	}
	have, err := b.External()
	if err != nil {
		return err
	}
	s.Divergence = rig.Compare(want, have)
	return nil
}

// inStep waits until the backup has so many flows, and the nodes say that they are in
// step, if they say so.
func inStep(ctx context.Context, a, b *rig.Daemon, flows int) error {
	var have uint64
	err := rig.Wait(time.Minute, "the backup has the flows", func() (ok bool, err error) {
		if err := sleep(ctx, asking); err != nil { // who asks more often slows it down
			return false, err
		}
		if _, have, err = b.Entries(); err != nil || have < uint64(flows) {
			return false, err
		}
		for _, d := range []*rig.Daemon{a, b} {
			if ok, err = d.InStep(); err != nil || !ok {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w: it has %d of %d; the active node logs:\n%s\nthe backup logs:\n%s", err, have, flows, a.Log(), b.Log())
	}
	return nil
}

// sleep waits for a time, or for the end of ctx, which is an error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

package daemon

import (
	"errors"
	"io"

	"syncd/internal/commit"
	"syncd/internal/ctnetlink"
	"syncd/internal/flow"
)

// NextExpects implements commit.ExpectSource: the expectations of the same owners, of
// those helpers that are selected here.
func (s *externalSource) NextExpects(dst []commit.ExpectEntry) (n int, err error) {
	for n == 0 && !s.expects.ended {
		err := s.engine.Do(s.ctx, func() {
			x, r, now, match := &s.expects, s.engine.Replica(), s.engine.Now(), s.engine.Filter()
			if x.owners == nil {
				x.owners = s.choose(r)
			}
			if x.ended = len(x.owners) == 0; x.ended {
				return
			}
			c := r.Cache(x.owners[0])
			if x.pos != 0 || c.ExpectLen() > 0 { // else there is no need to search
				x.pos = c.Walk(x.pos, walkSlots, func(h flow.Handle) bool {
					if !c.IsExpect(h) || c.Dead(h) {
						return true
					}
					e := &dst[n]
					if c.LoadExpect(h, &e.Expect); match.MatchExpect(&e.Expect) {
						e.Age = now.Sub(c.Updated(h))
						n++
					}
					return n < len(dst)
				})
			}
			if x.pos == 0 {
				x.owners = x.owners[1:]
				x.ended = len(x.owners) == 0
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if s.expects.ended {
		return n, io.EOF
	}
	return n, nil
}

// expectWalk is where NextExpects is.
type expectWalk struct {
	owners []uint8
	pos    flow.Handle
	ended  bool
}

// AddExpect and GetExpect make a kernel a commit.ExpectKernel too.

func (k kernel) AddExpect(op commit.Op, x *flow.Expect) (int, error) {
	var cop ctnetlink.Op
	switch op {
	case commit.Create:
		cop = ctnetlink.OpCreate
	case commit.Update:
		cop = ctnetlink.OpUpdate
	case commit.Delete:
		cop = ctnetlink.OpDelete
	}
	i, err := k.w.AddExpect(cop, x)
	if errors.Is(err, ctnetlink.ErrBatchFull) {
		return 0, commit.ErrBatchFull
	}
	return i, err
}

func (k kernel) GetExpect(t *flow.Tuple, x *flow.Expect) error { return k.w.GetExpect(t, x) }

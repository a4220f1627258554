package daemon

import (
	"go.uber.org/zap"

	"syncd/internal/commit"
	"syncd/internal/config"
	"syncd/internal/engine"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/tap"
)

// usedFrom is from how many entries on a commit puts those first that are in use: below,
// all of them are in the kernel before a packet could be looked at twice.
const usedFrom = 2048

// usedPackets is how many packets are looked at each time that entries are handed out. At
// 500 entries a millisecond that is a few per cent of a processor; what comes beyond is
// not seen, but comes again.
const usedPackets = 128

// packets are where packets that come to this host are seen.
type packets interface {
	Read(dst []flow.Tuple) (int, error)
	Close() error
}

// usedFirst hands out the entries of flows of which packets come during a commit, before
// it is their turn: a commit of a large table takes seconds, and who sends is waiting. A
// nil one has none. It belongs to the goroutine of the source; what needs the caches runs
// on the loop.
type usedFirst struct {
	tap    packets
	failed func(error) // told of the first error, after which nothing is seen any more
	tuples []flow.Tuple

	// handed has a bit for each entry that was handed out, by owner and handle. It says
	// nothing of entries that have changed since, which are handed out again.
	handed map[uint8][]uint64
	early  int // entries handed out before their turn
}

// checkUsed warns at the start, and not only at a takeover, if packets cannot be seen.
func (d *Daemon) checkUsed(cfg *config.Config) {
	if !cfg.Commit.UsedFirst || cfg.Takeover.Mode != config.TakeoverCommit {
		return
	}
	t, err := tap.Open()
	if err != nil {
		d.log.Warn("a commit will not put connections in use before the others: give the daemon the capability, or set commit.used_first = false", zap.Error(err))
		return
	}
	_ = t.Close() // nothing was read from it
}

// openUsed begins to look at packets for a commit of so many entries.
func (d *Daemon) openUsed(entries int) *usedFirst {
	if entries < usedFrom || !d.config().Commit.UsedFirst {
		return nil
	}
	t, err := tap.Open()
	if err != nil {
		d.log.Warn("connections in use are not committed before the others", zap.Error(err))
		return nil
	}
	return newUsed(t, func(err error) { d.log.Warn("no more packets are seen during this commit", zap.Error(err)) })
}

func newUsed(t packets, failed func(error)) *usedFirst {
	return &usedFirst{tap: t, failed: failed, tuples: make([]flow.Tuple, 0, usedPackets), handed: map[uint8][]uint64{}}
}

func (u *usedFirst) close() {
	if u != nil && u.tap != nil {
		_ = u.tap.Close() // nothing of it is wanted any more
		u.tap = nil
	}
}

// look takes the packets that have come.
func (u *usedFirst) look() {
	if u == nil || u.tap == nil {
		return
	}
	n, err := u.tap.Read(u.tuples[:usedPackets])
	u.tuples = u.tuples[:n]
	if err != nil {
		u.failed(err)
		u.close()
	}
}

// take hands out the entries of the packets that have come, those that were not handed out
// yet. Entries with a master wait for their turn, and for their master. It runs on the loop.
func (u *usedFirst) take(r *engine.Replica, owners []uint8, now monotime.Time, dst []commit.Entry) (n int) {
	for i := range u.tuples {
		if n == len(dst) {
			break
		}
		t := &u.tuples[i]
		// The far side sends the reply, which is found by its inverse if nothing is translated.
		back, _ := t.Inverse()
		for _, o := range owners {
			x := r.Cache(o)
			h := x.Lookup(t)
			if h == 0 {
				h = x.Lookup(&back)
			}
			if h == 0 || x.Dead(h) || u.done(o, h) || commit.Classify(x.Has(h), x.Status(h), x.TCPState(h)) == commit.PassRelated {
				continue
			}
			n += load(x, h, now, &dst[n])
			u.mark(o, h)
			u.early++
			break
		}
	}
	u.tuples = u.tuples[:0]
	return n
}

// done reports whether an entry was handed out.
func (u *usedFirst) done(owner uint8, h flow.Handle) bool {
	if u == nil {
		return false
	}
	bits := u.handed[owner]
	i := int(h / 64)
	return i < len(bits) && bits[i]&(1<<(h%64)) != 0
}

// mark notes that an entry was handed out.
func (u *usedFirst) mark(owner uint8, h flow.Handle) {
	if u == nil {
		return
	}
	bits := u.handed[owner]
	i := int(h / 64)
	if i >= len(bits) {
		bits = append(bits, make([]uint64, i+1-len(bits)+len(bits)/2)...)
		u.handed[owner] = bits
	}
	bits[i] |= 1 << (h % 64)
}

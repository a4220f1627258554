package meet

import (
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Peer is a session of another node, with the State that a mode keeps of it.
type Peer[T any] struct {
	Session uint64
	Name    string
	Owner   uint8         // 0 until it is met
	Met     bool          // it has proven that it lives
	Knows   bool          // it has met us
	Heard   monotime.Time // last valid message
	Since   monotime.Time // since when it has not been silent for as long as Config.DeadAfter
	Role    View          // what it says of its role; zero until it is met
	State   T             // of the mode; zero until it is met

	challenge [16]byte // that we want echoed
	theirs    [16]byte // that it wants echoed
}

// Alive reports whether p was heard within the last dead.
func (p *Peer[T]) Alive(now monotime.Time, dead time.Duration) bool { return now.Sub(p.Heard) < dead }

// Owner returns the owner number of a name, or 0.
func (t *Table[T]) Owner(name string) uint8 {
	for i, n := range t.owners {
		if n == name {
			return uint8(i + 1)
		}
	}
	return 0
}

// AddOwner returns the owner number of a name, giving it one if need be; 0 if there
// is none left. It is for entries that were loaded from an earlier life, too.
func (t *Table[T]) AddOwner(name string) uint8 {
	if o := t.Owner(name); o != 0 || len(t.owners) == maxOwners {
		return o
	}
	t.owners = append(t.owners, name)
	return uint8(len(t.owners))
}

// OwnerName returns the name that an owner number stands for.
func (t *Table[T]) OwnerName(owner uint8) string {
	if owner == 0 || int(owner) > len(t.owners) {
		return ""
	}
	return t.owners[owner-1]
}

// Peers returns every session that is known, met or not. The slice and what it
// points to belong to the table.
func (t *Table[T]) Peers() []*Peer[T] { return t.peers }

// Alive reports whether any peer that is met lives.
func (t *Table[T]) Alive(now monotime.Time) bool {
	for _, p := range t.peers {
		if p.Met && p.Alive(now, t.cfg.DeadAfter) {
			return true
		}
	}
	return false
}

// Living returns the session of an owner that is met and heard, nil if there is none.
func (t *Table[T]) Living(now monotime.Time, owner uint8) *Peer[T] {
	for _, p := range t.peers {
		if p.Met && p.Owner == owner && p.Alive(now, t.cfg.DeadAfter) {
			return p
		}
	}
	return nil
}

// Knows reports whether a peer that is met knows our role (see View.Knows).
func (t *Table[T]) Knows(p *Peer[T]) bool { return p.Role.Knows(&t.self) }

func (t *Table[T]) find(session uint64) *Peer[T] {
	for _, p := range t.peers {
		if p.Session == session {
			return p
		}
	}
	return nil
}

// meetable returns the entry of a session that has greeted us, making one in the
// place of the longest unheard if there is no room; nil if there is none.
func (t *Table[T]) meetable(now monotime.Time, session uint64) *Peer[T] {
	if p := t.find(session); p != nil {
		return p
	}
	oldest := -1
	if len(t.peers) == maxPeers {
		for i, q := range t.peers {
			if (!q.Met || !q.Alive(now, t.cfg.DeadAfter)) && (oldest < 0 || q.Heard < t.peers[oldest].Heard) {
				oldest = i
			}
		}
		if oldest < 0 {
			return nil
		}
	}
	p := &Peer[T]{Session: session, Heard: now, Since: now}
	t.cfg.Random(p.challenge[:])
	if oldest < 0 {
		t.peers = append(t.peers, p)
		return p
	}
	t.leave(t.peers[oldest])
	t.peers[oldest] = p
	return p
}

// meet makes p a peer, in the place of a session of the same name. It reports false
// if no owner number is left for the name.
func (t *Table[T]) meet(now monotime.Time, p *Peer[T]) bool {
	owner := t.AddOwner(p.Name)
	if owner == 0 {
		t.Stats.OwnersFull++
		return false
	}
	if p.Name == t.cfg.Name {
		t.Stats.Conflicts++
	}
	kept := t.peers[:0]
	for _, q := range t.peers {
		if q == p || !q.Met || q.Name != p.Name {
			kept = append(kept, q)
			continue
		}
		if q.Alive(now, 3*helloInterval) {
			t.Stats.Conflicts++ // or a restart within three seconds
		}
		t.leave(q)
	}
	clear(t.peers[len(kept):])
	t.peers = kept
	p.Met, p.Owner = true, owner
	t.Stats.Met++
	t.cfg.Meet(p.Session)
	return true
}

func (t *Table[T]) leave(p *Peer[T]) {
	if t.Left != nil {
		t.Left(p)
	}
	if p.Met {
		t.cfg.Drop(p.Session)
	}
}

// name returns a NUL-padded name without its padding.
func name(b *[wire.MaxName + 1]byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b[:])
}

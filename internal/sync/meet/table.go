package meet

import (
	"slices"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

const (
	helloInterval = time.Second
	helloAtMost   = 50 * time.Millisecond // between two HELLOs
	maxPeers      = wire.MaxGreets
	maxOwners     = 250
)

// Config says who we are.
type Config struct {
	Name      string        // of this node, unique in the cluster
	Session   uint64        // random, not 0
	Random    func([]byte)  // fills with unpredictable octets, for challenges
	DeadAfter time.Duration // silence after which a peer counts as gone (10 s)

	// Meet is told of a session that has proven that it lives, Drop of one that was
	// met and is forgotten: for whoever opens sealed datagrams. Both may be nil.
	Meet, Drop func(session uint64)
}

// Stats counts what happened since the start, in messages unless named otherwise.
type Stats struct {
	HelloSent, HelloReceived uint64

	Unmet      uint64 // from sessions that are not met
	Bad        uint64 // with a header or content that makes no sense
	Met        uint64 // sessions met
	Conflicts  uint64 // two live sessions with one name
	OwnersFull uint64 // names beyond what can be told apart
}

// Table is the sessions that a node knows. It is not safe for concurrent use.
type Table[T any] struct {
	// Left is told of a peer that goes out of the table. It may be nil.
	Left func(*Peer[T])

	cfg    Config
	self   Self
	peers  []*Peer[T]
	owners []string      // by owner-1: the names that were ever met
	said   bool          // a HELLO has left
	last   monotime.Time // when; valid if said
	due    monotime.Time // of the next one; valid if said
	greets []wire.Greet  // scratch

	Stats Stats
}

// New returns an empty table, whose first HELLO is due.
func New[T any](cfg Config) *Table[T] {
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 10 * time.Second
	}
	if cfg.Meet == nil {
		cfg.Meet = func(uint64) {}
	}
	if cfg.Drop == nil {
		cfg.Drop = func(uint64) {}
	}
	return &Table[T]{cfg: cfg, self: NewSelf()}
}

// Judgement is what the table says of a message.
type Judgement uint8

const (
	Refused Judgement = iota // it makes no sense
	Ignored                  // it is of a session that is not met, or there is no room for it
	Greeted                  // a HELLO, dealt with; of a peer that is met it still tells the number of its stream
	Met                      // a HELLO, by which the peer has just been met: its stream goes on with the number of this message
	Heard                    // a message of a peer that is met: the mode's business
)

// Receive judges a message of a session, which must come from a sealed datagram of
// that session. The peer is nil unless it is met. A data message whose attributes
// did not parse is Heard: its number is good.
func (t *Table[T]) Receive(now monotime.Time, session uint64, msg *wire.Message) (*Peer[T], Judgement) {
	data := msg.Type <= wire.ExpDel
	switch {
	case session == t.cfg.Session || session == 0:
		t.Stats.Bad++
		return nil, Refused
	case data && msg.Fault == wire.FaultPayload && msg.Flags == 0:
	case msg.Fault != wire.FaultNone, data && msg.Flags != 0, !data && msg.Type != wire.SyncCtl:
		t.Stats.Bad++
		return nil, Refused
	}
	if !data && msg.Sync.Kind == wire.Hello {
		return t.hello(now, session, msg.Sync)
	}
	p := t.find(session)
	if p == nil || !p.Met {
		t.Stats.Unmet++
		t.greet(now)
		return nil, Ignored
	}
	t.hear(now, p)
	return p, Heard
}

func (t *Table[T]) hear(now monotime.Time, p *Peer[T]) {
	if !p.Alive(now, t.cfg.DeadAfter) {
		p.Since = now
	}
	p.Heard = now
}

func (t *Table[T]) hello(now monotime.Time, session uint64, s *wire.Sync) (*Peer[T], Judgement) {
	t.Stats.HelloReceived++
	p := t.meetable(now, session)
	if p == nil {
		return nil, Ignored
	}
	t.hear(now, p)
	if !p.Met {
		p.Name = name(&s.Name)
	}
	p.Knows = false
	met, heard := false, uint8(0)
	for i := range s.N {
		g := &s.Greets[i]
		if g.Session != t.cfg.Session {
			continue
		}
		heard = g.Heard
		if p.Knows = g.Challenge == [16]byte{}; !p.Knows {
			p.theirs = g.Challenge
		}
		if !p.Met && g.Echo == p.challenge {
			met = t.meet(now, p)
		}
	}
	if p.Met && p.Role.Hear(s.Says, heard) || !p.Met || !p.Knows {
		t.greet(now)
	}
	switch {
	case met:
		return p, Met
	case p.Met:
		return p, Greeted
	}
	return nil, Greeted
}

// SetRole changes the role that this node says it has, which is told at once.
func (t *Table[T]) SetRole(now monotime.Time, r wire.Role) {
	if t.self.Set(r) && t.said {
		t.due = now // before anything that is said because of it
	}
}

// greet lets a HELLO leave soon.
func (t *Table[T]) greet(now monotime.Time) {
	if at := max(now, t.last.Add(helloAtMost)); t.said && at < t.due {
		t.due = at
	}
}

// HelloDue reports whether a HELLO is to be sent now.
func (t *Table[T]) HelloDue(now monotime.Time) bool { return !t.said || now >= t.due }

// HelloRoom is the length of a HELLO in octets, at most.
const HelloRoom = wire.MaxSyncLen

// AppendHello appends a HELLO. seq is the number that the next message of our stream
// will have.
func (t *Table[T]) AppendHello(now monotime.Time, b []byte, seq wire.Seq) []byte {
	t.greets = t.greets[:0]
	for _, p := range t.peers {
		g := wire.Greet{Session: p.Session, Echo: p.theirs, Heard: p.Role.Edition}
		if !p.Met {
			g.Challenge = p.challenge
		}
		t.greets = append(t.greets, g)
	}
	t.said, t.last, t.due = true, now, now.Add(helloInterval)
	t.Stats.HelloSent++
	return wire.AppendHello(b, seq, t.cfg.Name, t.self.Says(), 0, t.greets)
}

// Next returns when the next HELLO is due, 0 for at once.
func (t *Table[T]) Next() monotime.Time {
	if !t.said {
		return 0
	}
	return t.due
}

// Advance forgets sessions that greeted us, were never met, and are silent.
func (t *Table[T]) Advance(now monotime.Time) {
	t.peers = slices.DeleteFunc(t.peers, func(p *Peer[T]) bool {
		return !p.Met && !p.Alive(now, t.cfg.DeadAfter)
	})
}

// DeadAfter returns the silence after which a peer counts as gone.
func (t *Table[T]) DeadAfter() time.Duration { return t.cfg.DeadAfter }

// SetDeadAfter changes it.
func (t *Table[T]) SetDeadAfter(d time.Duration) { t.cfg.DeadAfter = d }

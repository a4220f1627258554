package engine

import (
	"bytes"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/snapshot"
	"syncd/internal/sync/stream"
	"syncd/internal/wire"
)

// sendLog is what a session has told its peers of its flows, in the order of its
// numbers. Once the flow is in the log it stays, so readers need the lock for the
// slice only.
type sendLog struct {
	c       *cluster
	owner   string
	entries []sentFlow
}

// sentFlow is a flow as it is from a number on.
type sentFlow struct {
	number wire.Seq
	what   sentWhat
	flow   flow.Flow // canonical; of sentEnd the tuple only
}

type sentWhat uint8

const (
	sentState sentWhat = iota // it is alive
	sentEnd                   // it has ended, or is not told of any more
	sentNone                  // and so are all others
)

func (l *sendLog) add(f sentFlow) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.entries = append(l.entries, f)
}

// at returns what was sent with number n, nil if that was no state of a flow.
func (l *sendLog) at(n wire.Seq) *sentFlow {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for i := len(l.entries) - 1; i >= 0 && !l.entries[i].number.Before(n); i-- {
		if e := &l.entries[i]; e.number == n && e.what == sentState {
			return e
		}
	}
	return nil
}

// follower follows a log: table is what the session's flows were at some number.
type follower struct {
	log   *sendLog
	pos   int
	table table
}

// advance goes on to number n.
func (f *follower) advance(n wire.Seq) {
	f.log.c.mu.Lock()
	defer f.log.c.mu.Unlock()
	for ; f.pos < len(f.log.entries) && !n.Before(f.log.entries[f.pos].number); f.pos++ {
		switch e := &f.log.entries[f.pos]; e.what {
		case sentState:
			f.table[e.flow.Orig] = e.flow
		case sentEnd:
			delete(f.table, e.flow.Orig)
		case sentNone:
			clear(f.table)
		}
	}
}

// probe is the real mode with an eye on all that goes in and out. It writes down what
// is sent, and holds against it what becomes of it on the other nodes:
//
//   - Of two messages of a session about a flow, the one with the greater number is
//     what the entry is, whatever the order in which they come.
//   - A message changes nothing that is held of another owner.
//   - The sweep at the end of a bulk update removes nothing that its owner had told of
//     and had not ended.
//   - When a digest agrees, what is held is what the owner had told at that point of
//     its stream.
type probe struct {
	*stream.Machine
	c    *cluster
	self string
	e    *Engine

	first   wire.Seq
	sent    *sendLog
	written *sentFlow // by AppendFlow; whether it leaves is the machine's to say
	before  uint64    // messages that had left then

	hello     wire.Seq             // number of the HELLO that is being received
	session   map[uint8]uint64     // that is met, by owner
	seen      map[uint64]wire.Seq  // by session that is met: its stream has come so far
	followers map[uint64]*follower // by session
	receiving uint64               // session of the message being received
	begun     map[uint64]bool      // it has put what was held of its owner in doubt
	known     map[uint8]map[flow.Tuple]word
	pending   delivery // the last one, to be looked at when it has been applied

	turned monotime.Time // time of the last turn of the loop
	turns  int           // at that time
}

// maxTurns is how often the loop may turn while no time passes: as often as there is
// input, but not for ever.
const maxTurns = 10_000

// word is the last word of a session on a flow.
type word struct {
	session uint64
	number  wire.Seq
	dead    bool
	mark    uint32
}

// delivery is a message that the engine is about to apply.
type delivery struct {
	valid bool
	wire.Delivery
	word
	key    flow.Tuple
	others int // entries of other owners
}

func newProbe(c *cluster, self string, session uint64, first wire.Seq) *probe {
	p := &probe{
		c: c, self: self, first: first, sent: &sendLog{c: c, owner: self},
		session: map[uint8]uint64{}, seen: map[uint64]wire.Seq{}, followers: map[uint64]*follower{},
		begun: map[uint64]bool{}, known: map[uint8]map[flow.Tuple]word{},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs[session] = p.sent
	return p
}

// attach makes the machine of an engine, which gets back what an earlier process
// held of the others.
func (p *probe) attach(e *Engine, cfg stream.Config, snap []byte) Mode {
	p.e = e
	meet, drop := cfg.Meet, cfg.Drop
	cfg.Meet = func(session uint64) {
		p.session[p.Machine.AddOwner(p.c.log(session).owner)] = session
		p.seen[session] = p.hello - 1
		p.followers[session] = &follower{log: p.c.log(session), table: table{}}
		if meet != nil {
			meet(session)
		}
	}
	cfg.Drop = func(session uint64) {
		delete(p.seen, session)
		if drop != nil {
			drop(session)
		}
	}
	p.Machine = stream.New(cfg, watchedStore{e, p}, watchedReplica{e.Replica(), p})
	if snap == nil {
		return p
	}
	var owner uint8
	now := monotime.Now()
	_, err := snapshot.Read(bytes.NewReader(snap), func(name string) error {
		owner = p.AddOwner(name)
		return nil
	}, func(s *snapshot.Entry) error {
		if s.IsExpect {
			return e.Replica().RestoreExpect(owner, &s.Expect, now.Add(-s.Age))
		}
		return e.Replica().Restore(owner, &s.Flow, now.Add(-s.Age))
	})
	if err != nil {
		p.c.failf("%s: %v", p.self, err)
	}
	return p
}

// next is the number that the next message of the stream will have.
func (p *probe) next() wire.Seq {
	s := &p.Machine.Stats
	return p.first + wire.Seq(s.DataSent+s.BulkSent+s.DigestSent)
}

// write notes what AppendFlow wrote if it has left.
func (p *probe) write() {
	if p.written != nil && p.Machine.Stats.DataSent > p.before {
		p.sent.add(*p.written)
	}
	p.written = nil
}

// end notes that a flow is not told of any more.
func (p *probe) end(h flow.Handle) {
	p.write()
	p.sent.add(sentFlow{number: p.next(), what: sentEnd, flow: flow.Flow{Orig: p.e.internal.Key(h)}})
}

func (p *probe) Forget(h flow.Handle) {
	p.end(h)
	p.Machine.Forget(h)
}

func (p *probe) ForgetAll() {
	p.write()
	p.sent.add(sentFlow{number: p.next(), what: sentNone})
	p.Machine.ForgetAll()
}

func (p *probe) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	b = p.Machine.AppendDatagram(now, b, limit)
	p.write()
	return b
}

func (p *probe) Advance(now monotime.Time) {
	p.settle()
	p.Machine.Advance(now)
}

// Next is called once a turn. A loop that never waits would stop the virtual time.
func (p *probe) Next(now monotime.Time) monotime.Time {
	if now != p.turned {
		p.turned, p.turns = now, 0
	}
	next := p.Machine.Next(now)
	if p.turns++; p.turns > maxTurns {
		p.c.failf("%s never waits: it is %d, and the deadline %d", p.self, now, next)
		time.Sleep(time.Second)
	}
	return next
}

func (p *probe) Receive(now monotime.Time, session uint64, m *wire.Message) (wire.Verdict, wire.Delivery) {
	p.settle()
	p.receiving = session
	owner := p.ownerOf(session)
	sync, digest := m.Type == wire.SyncCtl, false
	if sync {
		digest = m.Sync.Kind == wire.Digest
		p.hello = m.Seq
	}
	if digest && p.c.flaw == flawNoDigest {
		return wire.Control, wire.Delivery{}
	}
	if digest && p.c.flaw == flawDigest && owner != 0 {
		m.Sync.Sums = *p.e.replica.Sums(owner)
	}
	if seen, met := p.seen[session]; met && !(sync && m.Sync.Kind == wire.Hello) {
		at := m.Seq
		if sync && !m.Sync.Kind.InStream() {
			at--
		}
		if seen.Before(at) {
			p.seen[session] = at
		}
	}
	agreed := p.Machine.Stats.Agreed
	v, d := p.Machine.Receive(now, session, m)
	switch {
	case v == wire.Bad:
		p.c.failf("%s calls a message bad: type %d, kind %v", p.self, m.Type, m.Sync.Kind)
	case p.Machine.Stats.Agreed != agreed:
		p.proven(session, m.Seq)
	case v == wire.Deliver:
		if name := p.OwnerName(d.Owner); name != p.c.log(session).owner {
			p.c.failf("%s applies a flow of %s to %q", p.self, p.c.log(session).owner, name)
		}
		if m.IsCompact() {
			p.spell(d.Owner, m)
		}
		p.pending = delivery{true, d, word{session, m.Seq, isDeletion(m), versionOf(m)}, keyOf(m), p.others(d.Owner)}
		p.sabotage(&d, m)
	}
	return v, d
}

// spell makes a compact message say what the one with all of the flow would have said, for
// whoever does not look at its type.
func (p *probe) spell(owner uint8, m *wire.Message) {
	o := p.e.replica.of(owner)
	h := o.named(m)
	if h == 0 {
		p.c.failf("%s: a message of %s refers to nothing", p.self, p.OwnerName(owner))
		return
	}
	o.cache.Load(h, &m.Flow)
	if m.Type == wire.CTState {
		m.Flow.SetState(m.State.Of(m.Flow.Orig.Proto))
	}
}

// sabotage makes the flaws that are in applying a message.
func (p *probe) sabotage(d *wire.Delivery, m *wire.Message) {
	switch {
	case p.c.flaw == flawLate:
		d.Late = false
	case p.c.flaw == flawOwner && isDeletion(m):
		for _, o := range p.e.replica.Owners() {
			x := p.e.replica.owners[o]
			if h := x.cache.Lookup(&m.Flow.Orig); o != d.Owner && h != 0 {
				p.e.replica.remove(x, h, &m.Flow.Orig)
			}
		}
	}
}

// ownerOf returns the owner of a session that is met, or 0.
func (p *probe) ownerOf(session uint64) uint8 {
	if _, met := p.seen[session]; !met {
		return 0
	}
	return p.Owner(p.c.log(session).owner)
}

// others counts the entries of all owners but one.
func (p *probe) others(owner uint8) (n int) {
	for _, o := range p.e.replica.Owners() {
		if o != owner {
			n += p.e.replica.Cache(o).Len()
		}
	}
	return n
}

// settle looks at what became of the last delivery.
func (p *probe) settle() {
	d := &p.pending
	if !d.valid {
		return
	}
	d.valid = false
	if n := p.others(d.Owner); n != d.others {
		p.c.failf("%s: a message of %s changed the entries of other owners: %d, now %d", p.self, p.OwnerName(d.Owner), d.others, n)
	}
	o := p.e.replica.of(d.Owner)
	words := p.known[d.Owner]
	if words == nil {
		words = map[flow.Tuple]word{}
		p.known[d.Owner] = words
	}
	was, ok := words[d.key]
	h := o.cache.Lookup(&d.key)
	var seq wire.Seq
	var now flow.Flow
	if h != 0 {
		seq = o.at(h).seq
		now = shadow(o.cache, h)
	}
	switch {
	case ok && was.session == d.session && d.number.Before(was.number):
		// An entry that was swept meanwhile stays away.
		if h != 0 && (was.dead || seq != was.number || versionIn(&now) != was.mark) {
			p.c.failf("%s: flow %d of %s went back from %+v to %+v", p.self, d.key.SrcPort, p.OwnerName(d.Owner), was, d.word)
		}
		return
	case !ok && d.Late, ok && was.session != d.session && d.Late && !(d.Confirms && p.begun[d.session]):
		// What is held may be newer, if it is not known how it came to be (forgotten), or
		// of the session before, whose numbers tell nothing. In this case the bulk update
		// sends the flow once more.
		if (h == 0) != d.dead || h != 0 && seq != d.number {
			return
		}
	case d.dead && h != 0, !d.dead && (h == 0 || seq != d.number || versionIn(&now) != d.mark):
		p.c.failf("%s: %+v about flow %d of %s was not applied: have %d with number %d, mark %d", p.self, d.word, d.key.SrcPort, p.OwnerName(d.Owner), h, seq, versionIn(&now))
	}
	words[d.key] = d.word
	if h == 0 || d.dead {
		return
	}
	if said := p.c.log(d.session).at(d.number); said != nil && canonical(now) != said.flow {
		p.c.failf("%s: number %d about flow %d of %s was not applied as it was sent: %s, want %s", p.self, d.number, d.key.SrcPort, p.OwnerName(d.Owner), text(now), text(said.flow))
	}
}

// forgotten says that something else than messages is about to change what is held.
func (p *probe) forgotten() { clear(p.known) }

// proven checks the claim that what is held of a session is what it had sent at
// number n.
func (p *probe) proven(session uint64, n wire.Seq) {
	f := p.followers[session]
	f.advance(n)
	o := p.e.replica.of(p.ownerOf(session))
	have := table{}
	o.cache.Walk(0, 0, func(h flow.Handle) bool {
		fl := shadow(o.cache, h)
		have[fl.Orig] = canonical(fl)
		return true
	})
	if d := differences(have, f.table); d != "" {
		p.c.failf("%s holds %s to be proven, but at number %d: %s", p.self, f.log.owner, n, d)
	}
}

// watchedStore is the internal cache, of which it is written down what leaves.
type watchedStore struct {
	*Engine
	p *probe
}

func (s watchedStore) AppendFlow(b []byte, h flow.Handle, f wire.Flags, seq wire.Seq, replace bool, now monotime.Time) []byte {
	s.writes(h, seq)
	return s.Engine.AppendFlow(b, h, f, seq, replace, now)
}

func (s watchedStore) AppendCompact(b []byte, h flow.Handle, seq, base wire.Seq, now monotime.Time) ([]byte, bool) {
	b, ok := s.Engine.AppendCompact(b, h, seq, base, now)
	if ok {
		s.writes(h, seq)
		compacts.Add(1)
	}
	return b, ok
}

// writes notes that h is told with number seq.
func (s watchedStore) writes(h flow.Handle, seq wire.Seq) {
	p := s.p
	p.write()
	if seq != p.next() {
		p.c.failf("%s: number %d is due, not %d", p.self, p.next(), seq)
	}
	e := &sentFlow{number: seq}
	e.flow = canonical(shadow(s.internal, h))
	if s.Dead(h) {
		e.what = sentEnd
	}
	p.written, p.before = e, p.Machine.Stats.DataSent
}

func (s watchedStore) Release(h flow.Handle) {
	s.p.end(h)
	s.Engine.Release(h)
}

// watchedReplica is what is held of others, of which it is checked what is swept.
type watchedReplica struct {
	*Replica
	p *probe
}

// Follows may be flawed: it takes whatever the handle leads to for what is meant.
func (r watchedReplica) Follows(owner uint8, msg *wire.Message) bool {
	o := r.of(owner)
	if h := flow.Handle(o.names.get(msg.Handle)); r.p.c.flaw == flawBase && h&noRoom == 0 && o.cache.Holds(h) && o.at(h).base != 0 {
		msg.Base = o.at(h).base
	}
	return r.Replica.Follows(owner, msg)
}

func (r watchedReplica) Doubt(owner uint8, m wire.Mask) {
	r.p.begun[r.p.receiving] = true
	r.Replica.Doubt(owner, m)
}

func (r watchedReplica) Sweep(owner uint8, m wire.Mask) {
	p, o := r.p, r.of(owner)
	session := p.session[owner]
	f := p.followers[session]
	f.advance(p.seen[session])
	o.cache.Walk(0, 0, func(h flow.Handle) bool {
		key := o.cache.Key(h)
		if _, has := f.table[key]; has && o.cache.Mark(h) != o.epoch && m.Has(wire.Bucket(&key)) {
			p.c.failf("%s removes flow %d of %s at number %d, which that has", p.self, key.SrcPort, f.log.owner, p.seen[session])
		}
		return true
	})
	if p.c.flaw == flawSweep {
		o.doubt = o.doubt.Less(m)
		return
	}
	r.Replica.Sweep(owner, m)
}

package stream

import (
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Enqueue says that h changed: its current state must reach the peers.
func (m *Machine) Enqueue(h flow.Handle, _ bool) {
	s := m.slot(h)
	switch s.state {
	case dirty:
		return
	case inFlight:
		m.at(s.number).h = 0
		m.flying--
	}
	m.push(h, s)
}

// Warm reads the slots of flows, of which some may be 0: most of them will be enqueued
// soon, and here all wait for memory together.
func (m *Machine) Warm(flows []flow.Handle) {
	for _, h := range flows {
		if c := int(h / chunkLen); c < len(m.slots) {
			s := &m.slots[c][h%chunkLen]
			m.warmed += s.hash + uint64(s.state) // its beginning and its end
		}
	}
}

// Forget drops h from the queues: the slot is about to be used for something else.
// If peers hold the flow, their digests will tell them.
func (m *Machine) Forget(h flow.Handle) {
	s := m.slot(h)
	switch s.state {
	case dirty:
		m.unlink(s)
	case inFlight:
		m.at(s.number).h = 0
		m.flying--
	}
	m.account(s, 0, 0)
	*s = slot{}
	if m.bulk.hold == h {
		m.bulk.hold = 0
	}
}

// ForgetAll drops every flow, before the cache is emptied.
func (m *Machine) ForgetAll() {
	m.slots = nil
	m.head, m.tail, m.dirty, m.flying, m.count = 0, 0, 0, 0, 0
	m.sums = [wire.Buckets]uint64{}
	for n := m.base; n != m.next; n++ {
		m.at(n).h = 0
	}
	m.bulk.hold, m.bulk.pos = 0, 0
}

// Evict returns 0: deletions are kept for peers that answer only, and those answer
// soon.
func (m *Machine) Evict() flow.Handle { return 0 }

// Bulk sends everything to everyone.
func (m *Machine) Bulk() { m.bulk.next = wire.AllBuckets }

// RequestResync wants everything of every peer.
func (m *Machine) RequestResync() {
	for _, p := range m.peers {
		p.wanted = wire.AllBuckets
	}
}

// Pending reports whether AppendDatagram has something to send now.
func (m *Machine) Pending(now monotime.Time) bool {
	if m.helloReady(now) {
		return true
	}
	for _, p := range m.peers {
		if p.met && p.statusDue != 0 && now >= p.statusDue || m.voidReady(p) {
			return true
		}
	}
	return m.streamReady(now)
}

// streamReady reports whether a message of the stream can leave.
func (m *Machine) streamReady(now monotime.Time) bool {
	if !m.anyCounted() {
		return m.dirty > 0 || m.bulkWork(now)
	}
	if m.queueFull() {
		return false
	}
	return m.dirty > 0 || m.bulkWork(now) || m.digestReady(now)
}

// helloReady and digestReady report whether the deadlines have passed; zero is that
// of the first.
func (m *Machine) helloReady(now monotime.Time) bool  { return m.helloDue == 0 || now >= m.helloDue }
func (m *Machine) digestReady(now monotime.Time) bool { return m.digestDue == 0 || now >= m.digestDue }

func (m *Machine) anyCounted() bool {
	for _, p := range m.peers {
		if p.counted {
			return true
		}
	}
	return false
}

// AppendDatagram appends as many waiting messages to b as fit in limit octets and
// returns it. b must have room for limit plus one message.
func (m *Machine) AppendDatagram(now monotime.Time, b []byte, limit int) []byte {
	start := len(b)
	fits := func(n int) bool { return len(b)-start+n <= limit || len(b) == start }
	if m.helloReady(now) && fits(wire.MaxSyncLen) {
		b = m.appendHello(now, b)
	}
	for _, p := range m.peers {
		if p.met && p.statusDue != 0 && now >= p.statusDue && fits(statusRoom) {
			b = m.appendStatus(now, b, p)
		}
		if m.voidReady(p) && fits(statusRoom) {
			b = wire.AppendVoid(b, m.next, p.session, p.lost, p.lacks)
			p.void, p.lost = false, false
			m.Stats.VoidSent++
		}
	}
	if !m.anyCounted() {
		m.drop()
		return b
	}
	m.lookCompact()
	b, full := m.appendDirty(now, b, start, limit)
	if full || m.queueFull() {
		return b
	}
	b = m.appendBulk(now, b, start, limit)
	if m.digestReady(now) && !m.queueFull() && fits(digestRoom) {
		id := m.bulk.id
		if m.bulk.stage == bulkIdle {
			id = 0
		}
		b = wire.AppendDigest(b, m.take(sent{kind: wire.Digest}), m.count, id, &m.sums)
		m.digestDue = now.Add(digestInterval)
		m.Stats.DigestSent++
	}
	return b
}

const (
	statusRoom = 64 + 8*wire.MaxRanges
	digestRoom = 16 + 8*wire.Buckets
)

func (m *Machine) appendHello(now monotime.Time, b []byte) []byte {
	m.greets = m.greets[:0]
	for _, p := range m.peers {
		g := wire.Greet{Session: p.session, Echo: p.theirs, Heard: p.role.Edition}
		if !p.met {
			g.Challenge = p.challenge
		}
		m.greets = append(m.greets, g)
		if p.met && p.alive(now, m.cfg.DeadAfter) {
			// It may count on us, or not, without our knowing: the last STATUS was lost.
			p.statusDue = monotime.Earliest(p.statusDue, now)
		}
	}
	m.helloDue, m.lastHi = now.Add(helloInterval), now
	if m.digestDue.Sub(now) < digestInterval/2 {
		m.digestDue = now // goes along: each word that is said alone wakes both nodes
	}
	m.Stats.HelloSent++
	return wire.AppendHello(b, m.next, m.cfg.Name, m.self.Says(), wire.FeatureCompact, m.greets)
}

func (m *Machine) appendStatus(now monotime.Time, b []byte, p *peer) []byte {
	// What is not listed, because it may only be late or there is no room, must not
	// count as covered.
	last, list := p.expected-1, m.ranges[:0]
	p.statusDue = 0
	for i := range p.missing {
		g := &p.missing[i]
		if ripe := g.since.Add(p.patience); now < ripe || len(list) == wire.MaxRanges {
			last = g.From - 1
			p.statusDue = max(ripe, now.Add(time.Millisecond))
			break
		}
		list = append(list, g.Range)
	}
	m.ranges = list
	b = wire.AppendStatus(b, m.next, p.session, last, p.bulkSeen, p.wanted, list)
	m.Stats.StatusSent++
	p.uncovered, p.statusAt = 0, now
	if len(list) > 0 || !p.wanted.Empty() {
		p.statusDue = monotime.Earliest(p.statusDue, now.Add(statusRepeat))
		if len(list) == wire.MaxRanges {
			p.statusDue = now.Add(statusRepeat)
		}
	}
	return b
}

// voidReady reports whether the peer can be told that what it lacked has left
// again.
func (m *Machine) voidReady(p *peer) bool {
	return p.void && (p.lost || m.passed(p.ticket))
}

// passed reports whether every flow that was dirty when ticket was the latest has
// left.
func (m *Machine) passed(ticket wire.Seq) bool {
	return m.head == 0 || ticket.Before(m.slot(m.head).number)
}

// appendDirty appends flows that changed.
func (m *Machine) appendDirty(now monotime.Time, b []byte, start, limit int) (_ []byte, full bool) {
	for m.dirty > 0 && !m.queueFull() {
		h := m.head
		s := m.slot(h)
		var ok bool
		if b, ok = m.appendFlow(b, start, limit, h, s, false, now); !ok {
			return b, true
		}
		m.unlink(s)
		s.state = inFlight
		s.number = m.next - 1
	}
	return b, false
}

// appendFlow appends the message of one flow if it fits; repeat says that every peer
// has what was sent last. The caller sets the state.
func (m *Machine) appendFlow(b []byte, start, limit int, h flow.Handle, s *slot, repeat bool, now monotime.Time) ([]byte, bool) {
	end, compact := len(b), false
	if s.base != 0 && m.compact && !repeat && m.refers(s.base) {
		b, compact = m.store.AppendCompact(b, h, m.next, s.base, now)
	}
	if !compact {
		b = m.store.AppendFlow(b, h, 0, m.next, true, now)
	}
	if len(b)-start > limit && end > start {
		if !compact {
			s.base = 0 // the store takes it for told
		}
		return b[:end], false
	}
	switch dead := m.store.Dead(h); {
	case dead:
		m.account(s, 0, 0)
		s.base = 0
	case compact:
		m.account(s, wire.CompactHash(s.fixed, b[end:]), s.bucket)
	default:
		hash, fixed := wire.FlowHashes(m.cfg.Session, b[end:])
		if repeat && hash == s.hash {
			wire.SetRepeat(b[end:])
		}
		if fixed != 0 { // not an expectation, to which nothing refers
			wire.SetHandle(b[end:], uint32(h))
			s.base, s.fixed = m.next, fixed
		}
		m.account(s, hash, m.store.Bucket(h))
	}
	m.take(sent{h: h})
	m.flying++
	m.Stats.DataSent++
	if compact {
		m.Stats.CompactSent++
	}
	return b, true
}

// refers reports whether a message may refer to that with number n: it is not before
// floor. Lengths, not serial comparisons: n may be as old as it likes.
func (m *Machine) refers(n wire.Seq) bool { return m.next-n <= m.next-m.floor }

// lookCompact looks whether all peers that count understand compact messages.
func (m *Machine) lookCompact() {
	m.compact = true
	for _, p := range m.peers {
		m.compact = m.compact && (p.compact || !p.counted)
	}
}

// unsent stands for the hash of a state that no peer was told of. It is odd, so that
// no number of them adds up to nothing.
const unsent = 0x9e3779b97f4a7c15

// account replaces what the digest holds of a flow; hash 0 takes it out.
func (m *Machine) account(s *slot, hash uint64, bucket uint8) {
	if s.hash != 0 {
		m.sums[s.bucket] -= s.hash
		m.count--
	}
	if hash != 0 {
		m.sums[bucket] += hash
		m.count++
	}
	s.hash, s.bucket = hash, bucket
}

// take gives out the next number for a message that has been appended.
func (m *Machine) take(e sent) wire.Seq {
	n := m.next
	if int(n-m.base) == len(m.ring) {
		ring := make([]sent, 2*len(m.ring))
		for k := m.base; k != m.next; k++ {
			ring[int(k)&(len(ring)-1)] = *m.at(k)
		}
		m.ring = ring
	}
	*m.at(n) = e
	m.next++
	return n
}

// queueFull reports whether nothing more may leave until some peer that counts has
// caught up, or does not count any more (see Advance).
func (m *Machine) queueFull() bool { return int(m.next-m.base) >= m.cfg.ResendQueue }

// keeps reports whether a marker of this kind is kept at number n.
func (m *Machine) keeps(n wire.Seq, k wire.Kind) bool {
	return uint32(n-m.base) < uint32(m.next-m.base) && m.at(n).kind == k
}

func (m *Machine) at(n wire.Seq) *sent { return &m.ring[int(n)&(len(m.ring)-1)] }

// landed ends the flight of a flow that every peer has.
func (m *Machine) landed(h flow.Handle) {
	s := m.slot(h)
	m.flying--
	s.state = clean
	if m.store.Dead(h) {
		m.Forget(h)
		m.store.Release(h)
	}
}

// drop empties the queue when nobody listens: a peer that comes gets everything by
// a bulk update. One that comes back finds the buckets to differ of all changes that
// it was not told of.
func (m *Machine) drop() {
	for m.head != 0 {
		h := m.head
		s := m.slot(h)
		m.unlink(s)
		if m.store.Dead(h) {
			m.Forget(h)
			m.store.Release(h)
		} else {
			m.account(s, unsent, m.store.Bucket(h))
		}
	}
	m.retire()
	m.bulk = bulk{id: m.bulk.id} // given up: its id has no end
}

// push appends h to the queue of dirty flows.
func (m *Machine) push(h flow.Handle, s *slot) {
	m.ticket++
	s.state, s.number = dirty, m.ticket
	s.prev, s.next = m.tail, 0
	if m.tail == 0 {
		m.head = h
	} else {
		m.slot(m.tail).next = h
	}
	m.tail = h
	m.dirty++
}

// unlink takes a flow out of the queue of dirty flows.
func (m *Machine) unlink(s *slot) {
	if s.prev == 0 {
		m.head = s.next
	} else {
		m.slot(s.prev).next = s.next
	}
	if s.next == 0 {
		m.tail = s.prev
	} else {
		m.slot(s.next).prev = s.prev
	}
	s.prev, s.next, s.state = 0, 0, clean
	m.dirty--
}

// slot returns the slot of h, growing the table to hold it. Chunks never move.
func (m *Machine) slot(h flow.Handle) *slot {
	c := int(h / chunkLen)
	for c >= len(m.slots) {
		m.slots = append(m.slots, new([chunkLen]slot))
	}
	return &m.slots[c][h%chunkLen]
}

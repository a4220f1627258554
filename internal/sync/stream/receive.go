package stream

import (
	"slices"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Receive takes one message of a session. A message that is to be delivered must be
// applied to the replica before the next one is given in. Bad leaves the machine as
// it was, except that a data message whose attributes did not parse takes its number
// with it.
func (m *Machine) Receive(now monotime.Time, session uint64, msg *wire.Message) (v wire.Verdict, d wire.Delivery) {
	if session == m.cfg.Session || session == 0 {
		m.Stats.Bad++
		return wire.Bad, d
	}
	data := msg.IsData()
	flags := msg.Flags &^ wire.FlagRepeat
	switch {
	case data && msg.Fault == wire.FaultPayload && flags == 0: // its number is good
	case msg.Fault != wire.FaultNone, data && flags != 0, !data && msg.Type != wire.SyncCtl:
		m.Stats.Bad++
		return wire.Bad, d
	}
	if !data && msg.Sync.Kind == wire.Hello {
		m.Stats.HelloReceived++
		return m.receiveHello(now, session, msg), d
	}
	p := m.find(session)
	if p == nil || !p.met {
		m.Stats.Unmet++
		m.greet(now)
		return wire.Drop, d
	}
	p.heard = now
	d.Owner = p.owner
	if !data && !msg.Sync.Kind.InStream() {
		m.see(now, p, msg.Seq)
		m.receiveAside(now, p, msg)
		return wire.Control, d
	}
	late := msg.Seq.Before(p.expected)
	missing := late && contains(p.missing, msg.Seq)
	if msg.IsCompact() && msg.Fault == wire.FaultNone && (missing || !late) && !m.replica.Follows(p.owner, msg) {
		// What it refers to has not come, or is not what is held of the flow any more. It is
		// as good as lost: the sender will tell all of the flow.
		m.Stats.Unfollowed++
		if !late {
			m.see(now, p, msg.Seq)
			m.miss(now, p, msg.Seq)
		}
		return wire.Drop, d
	}
	if late {
		d.Late = true
		if !missing {
			if m.Stats.Before++; p.expected.Sub(msg.Seq) < int32(m.cfg.AckWindow) {
				p.patience = min(2*p.patience, maxPatience) // given up too soon, perhaps
			}
			return wire.Drop, d
		}
		m.Stats.Late++
		p.missing = subtract(p.missing, wire.Range{From: msg.Seq, To: msg.Seq})
	} else {
		m.see(now, p, msg.Seq)
		p.expected = msg.Seq + 1
	}
	m.bound(p)
	m.cover(now, p)
	if !data {
		m.receiveMarker(now, p, msg.Seq, d.Late, msg.Sync)
		return wire.Control, d
	}
	if msg.Fault != wire.FaultNone {
		m.Stats.Bad++
		return wire.Bad, d
	}
	m.Stats.DataReceived++
	if msg.IsCompact() {
		m.Stats.CompactReceived++
	}
	d.Confirms = p.bulkSeen == 0 || p.bulkAt.Before(msg.Seq)
	d.Remember = !p.whole()
	return wire.Deliver, d
}

// contains reports whether n is in one of the ascending ranges.
func contains(ranges []gap, n wire.Seq) bool {
	for _, r := range ranges {
		if !n.Before(r.From) && !r.To.Before(n) {
			return true
		}
	}
	return false
}

// Confirmed does nothing: this dialect says when a bulk update is over.
func (m *Machine) Confirmed(monotime.Time) {}

// Applied must be called after the messages of a turn have been applied: what hangs
// on being whole is done now.
func (m *Machine) Applied(now monotime.Time) {
	for _, p := range m.peers {
		m.finish(p)
	}
}

// finish ends a bulk update of p's once nothing of it is missing.
func (m *Machine) finish(p *peer) {
	if !p.met || !p.whole() {
		return
	}
	m.replica.Whole(p.owner)
	if p.ending {
		p.ending, p.sweeping = false, true
		m.replica.Sweep(p.owner, p.bulkMask)
	}
	if p.sweeping && m.replica.Doubtful(p.owner).And(p.bulkMask).Empty() {
		p.sweeping = false
	}
}

func (m *Machine) receiveHello(now monotime.Time, session uint64, msg *wire.Message) wire.Verdict {
	p := m.meetable(now, session)
	if p == nil {
		return wire.Drop
	}
	p.heard = now
	s := msg.Sync
	p.compact = s.Features&wire.FeatureCompact != 0
	if !p.met {
		p.name = nameOf(&s.Name)
	}
	known, heard := false, uint8(0)
	for i := range s.N {
		g := &s.Greets[i]
		if g.Session != m.cfg.Session {
			continue
		}
		known, heard = true, g.Heard
		p.knows = g.Challenge == [16]byte{}
		if !p.knows {
			p.theirs = g.Challenge
		}
		if !p.met && g.Echo == p.challenge {
			m.meet(now, p, msg.Seq)
		}
	}
	if !known {
		p.knows = false
	}
	if p.met && p.role.Hear(s.Says, heard) || !p.met || !p.knows {
		m.greet(now)
	} else if m.helloDue.Sub(now) < helloInterval/2 {
		m.helloDue = now // both are awake, and what is said now need not wake them again
	}
	if !p.met || !p.knows {
		return wire.Control
	}
	m.see(now, p, msg.Seq)
	return wire.Control
}

func nameOf(b *[wire.MaxName + 1]byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b[:])
}

// greet lets a HELLO leave soon.
func (m *Machine) greet(now monotime.Time) {
	if at := m.lastHi.Add(helloAtMost); m.lastHi == 0 || at < m.helloDue {
		m.helloDue = max(at, now)
		if m.lastHi == 0 {
			m.helloDue = now
		}
	}
}

// see notes that the peer's stream has come as far as seq: what lies between is
// missing.
func (m *Machine) see(now monotime.Time, p *peer, seq wire.Seq) {
	if !p.expected.Before(seq) {
		return
	}
	m.Stats.Gaps++
	m.Stats.Missing += uint64(uint32(seq - p.expected))
	p.missing = append(p.missing, gap{wire.Range{From: p.expected, To: seq - 1}, now})
	p.expected = seq
	m.bound(p)
	// What is only late comes by itself in a moment.
	if at := now.Add(p.patience); p.statusDue == 0 || at < p.statusDue {
		p.statusDue = at
	}
}

// miss makes the number after the last one of the peer's stream missing. It is not late, so
// that one range may have it together with those before.
func (m *Machine) miss(now monotime.Time, p *peer, seq wire.Seq) {
	if k := len(p.missing) - 1; k >= 0 && p.missing[k].To == seq-1 {
		p.missing[k].To = seq
	} else {
		p.missing = append(p.missing, gap{wire.Range{From: seq, To: seq}, now})
	}
	p.expected = seq + 1
	m.bound(p)
	p.statusDue = monotime.Earliest(p.statusDue, now.Add(p.patience))
}

// bound gives up on what is missing if it is too much to list, or if its numbers
// are so old that they would soon be taken for new ones. A bulk update is cheaper.
func (m *Machine) bound(p *peer) {
	if n := len(p.missing); n > maxMissing || n > 0 && !p.missing[0].From.Before(p.expected) {
		p.missing = p.missing[:0]
		p.wantAll()
	}
}

// wantAll is for when it is not known what some numbers carried. They may be flows of
// the bulk update under way, whose end means nothing then: what it seems not to have
// confirmed is there. A beginning that is repeated begins it anew.
func (p *peer) wantAll() {
	p.wanted = wire.AllBuckets
	p.ending, p.bulkMask = false, wire.Mask{}
}

// cover counts a message that a STATUS has to cover.
func (m *Machine) cover(now monotime.Time, p *peer) {
	p.uncovered++
	switch p.uncovered {
	case 1:
		p.statusDue = monotime.Earliest(p.statusDue, now.Add(statusDelay))
	case m.cfg.AckWindow:
		// Each costs as much as the reading of some datagrams, here and there.
		p.statusDue = monotime.Earliest(p.statusDue, max(now, p.statusAt.Add(statusApart)))
	case statusAtOnce * m.cfg.AckWindow:
		p.statusDue = now
	}
}

// receiveMarker handles a message of the stream that is not a flow.
func (m *Machine) receiveMarker(now monotime.Time, p *peer, seq wire.Seq, late bool, s *wire.Sync) {
	switch s.Kind {
	case wire.BulkBegin:
		m.Stats.BulkReceived++
		if late {
			return // what it would put in doubt may be confirmed already; it is repeated
		}
		if s.Bulk != p.bulkSeen || s.Mask != p.bulkMask {
			p.bulkSeen, p.bulkMask, p.bulkAt, p.ending, p.sweeping = s.Bulk, s.Mask, seq, false, false
			m.replica.Doubt(p.owner, s.Mask)
		}
		p.wanted = p.wanted.Less(s.Mask)
		p.statusDue = now // the sender waits for this
	case wire.BulkEnd:
		m.Stats.BulkReceived++
		if s.Bulk == p.bulkSeen && s.Mask == p.bulkMask && !s.Mask.Empty() {
			p.ending = true
			m.finish(p)
		}
	case wire.Digest:
		m.Stats.DigestReceived++
		if seq == p.expected-1 { // nothing newer has been applied yet
			m.compare(now, p, s)
		}
	}
}

// compare compares the sender's sums with ours, at this point of its stream.
func (m *Machine) compare(now monotime.Time, p *peer, s *wire.Sync) {
	if !p.whole() {
		return
	}
	doubtful := m.replica.Doubtful(p.owner)
	if s.Bulk == 0 && !p.sweeping && !doubtful.Empty() {
		p.wanted = p.wanted.Or(doubtful) // the end of the bulk update was missed
		p.statusDue = now
	}
	skip := p.wanted.Or(doubtful)
	ours := m.replica.Sums(p.owner)
	var differ wire.Mask
	for b := range s.Sums {
		if s.Sums[b] != ours[b] && !skip.Has(uint8(b)) {
			differ = differ.With(uint8(b))
			m.Stats.BadBuckets++
		}
	}
	switch {
	case !differ.Empty():
		m.Stats.Differed++
		p.differed = true
		if now.Sub(p.repairAt) >= 0 || p.repairWait == 0 {
			p.wanted = p.wanted.Or(differ)
			p.statusDue = now
			p.repairWait = min(max(2*p.repairWait, digestInterval), maxRepairWait)
			p.repairAt = now.Add(p.repairWait - digestInterval/2) // digests do not come to the moment
		}
	case skip.Empty():
		m.Stats.Agreed++
		p.proven, p.differed, p.repairWait = now, false, 0
		p.patience = max(p.patience-p.patience/4, minPatience)
	}
}

// receiveAside handles a message that is not of the stream.
func (m *Machine) receiveAside(now monotime.Time, p *peer, msg *wire.Message) {
	s := msg.Sync
	ours := s.To == m.cfg.Session
	switch s.Kind {
	case wire.Status:
		m.Stats.StatusReceived++
		if ours {
			p.knows = true
			m.receiveStatus(now, p, s)
		}
	case wire.Void:
		m.Stats.VoidReceived++
		if ours {
			m.receiveVoid(now, p, msg.Seq, s)
		}
	default:
		m.Stats.Unknown++
	}
}

// receiveVoid takes numbers out of what is missing that will not come.
func (m *Machine) receiveVoid(now monotime.Time, p *peer, seq wire.Seq, s *wire.Sync) {
	if s.Lost {
		p.missing = subtract(p.missing, wire.Range{From: seq - 1<<31 + 1, To: seq - 1})
		p.wantAll()
		p.statusDue = now
	} else {
		for _, r := range s.Ranges[:s.N] {
			p.missing = subtract(p.missing, r)
		}
		m.bound(p)
	}
	m.finish(p)
}

// subtract takes the numbers of r out of ascending gaps, in their memory if it can.
func subtract(gaps []gap, r wire.Range) []gap {
	out := gaps[:0]
	for i, q := range gaps {
		if q.To.Before(r.From) || r.To.Before(q.From) {
			out = append(out, q)
			continue
		}
		head, tail := q.From.Before(r.From), r.To.Before(q.To)
		if head && tail { // r lies within q, so the others are outside
			after := q
			after.From = r.To + 1
			gaps[i].To = r.From - 1
			return slices.Insert(gaps, i+1, after)
		}
		switch {
		case head:
			q.To = r.From - 1
			out = append(out, q)
		case tail:
			q.From = r.To + 1
			out = append(out, q)
		}
	}
	return out
}

// receiveStatus learns how far a peer follows our stream.
func (m *Machine) receiveStatus(now monotime.Time, p *peer, s *wire.Sync) {
	p.told = s.Bulk
	if !p.counted {
		// It may follow from where it is if it has seen all that is not kept any
		// more, else from here on.
		p.counted, p.covered, p.progress = true, s.Last, now
		p.losing = uint32(s.Last+1-m.base) > uint32(m.next-m.base) || s.N > 0
		if p.losing {
			p.covered, p.lostAt = m.next-1, m.next
		}
		m.digestDue = now // what changed while it did not count was not kept
		m.floor = m.next  // what it has of before is not known
	}
	if p.losing {
		p.losing = (s.Last + 1).Before(p.lostAt) || m.next.Before(s.Last+1) || s.N > 0 && s.Ranges[0].From.Before(p.lostAt)
	}
	if p.losing { // it has not got the VOID that tells it
		p.lost, p.void, p.lacks = true, true, p.lacks[:0]
		m.want(p, wire.AllBuckets)
		m.retire()
		return
	}
	if p.covered.Before(s.Last) && s.Last.Before(m.next) {
		p.covered, p.progress = s.Last, now
	}
	ranges := s.Ranges[:s.N]
	for _, r := range ranges {
		m.lack(r)
	}
	if s.N > 0 && !p.void { // else the VOID that is due leaves first, or it never would
		p.void, p.ticket = true, m.ticket
		p.lacks = append(p.lacks[:0], ranges...)
	}
	m.want(p, s.Mask)
	m.retire()
}

// want notes which buckets a peer wants of us.
func (m *Machine) want(p *peer, mask wire.Mask) {
	p.wants = mask
	if mask.Empty() {
		return
	}
	b := &m.bulk
	switch {
	case b.stage == bulkIdle && p.told != b.id && m.keeps(b.end, wire.BulkEnd) && p.covered.Before(b.end):
		// It has not come to the last one yet.
		mask = mask.Less(b.mask)
	case b.stage != bulkIdle && p.told != b.id:
		mask = mask.Less(b.mask)
	}
	b.next = b.next.Or(mask)
}

// lack makes what the numbers of r carried due again.
func (m *Machine) lack(r wire.Range) {
	// Lengths, not serial comparisons: a range may be as wide as it likes.
	held := uint32(m.next - m.base)
	first, length := uint32(r.From-m.base), uint32(r.To-r.From)+1
	if first >= held { // it begins before base, or after the end
		before := -first
		if before >= length || first == 0 {
			return
		}
		first, length = 0, length-before
	}
	for n, end := m.base+wire.Seq(first), m.base+wire.Seq(first+min(length, held-first)); n != end; n++ {
		e := m.at(n)
		switch {
		case e.h != 0:
			m.Stats.Resent++
			m.flying--
			s := m.slot(e.h)
			s.base = 0 // what is sent again tells all
			m.push(e.h, s)
		case e.kind == wire.BulkEnd && m.bulk.stage == bulkIdle:
			m.bulk.stage = bulkEnding // its end leaves again
			m.bulk.ticket = m.ticket
		}
		*e = sent{}
	}
}

// retire gives up what every peer that counts has.
func (m *Machine) retire() {
	end := m.next
	for _, p := range m.peers {
		if p.counted && p.covered.Before(end-1) {
			end = p.covered + 1
		}
	}
	for ; m.base.Before(end); m.base++ {
		e := m.at(m.base)
		if e.h != 0 {
			m.landed(e.h)
		}
		*e = sent{}
	}
}

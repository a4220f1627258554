package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"time"

	"syncd/internal/monotime"
)

// How many sessions are kept. A cluster has some ten nodes, and a node has one
// session at a time.
const (
	maxGreeting = 64
	maxMet      = 256
)

// challengeLife is how long a challenge can be echoed.
const challengeLife = 10 * time.Second

// Peer is the session of a peer, that is, one run of its process. It belongs to the
// opening half of its Box.
type Peer struct {
	session uint64
	box     *Box // nil: forgotten
	met     bool
	window  window
	traffic []cipher.AEAD // of this session, for each of Box.keys; nil: not derived yet
	heard   uint64        // Box.heard as of the last authentic datagram

	challenge [16]byte
	asked     monotime.Time // when challenge was made; zero: there is none

	// Stats counts the datagrams that name this session. A fault among them need
	// not be the peer's: anyone can write its session id into a header.
	Stats Stats
}

// greet makes the entry of a session whose first datagram was authentic.
func (b *Box) greet(session uint64) *Peer {
	b.makeRoom(false, maxGreeting)
	p := &Peer{session: session, box: b, traffic: make([]cipher.AEAD, len(b.keys))}
	b.peers[session] = p
	return p
}

// makeRoom forgets one of the sessions that are met, or are not, if there are limit
// of them: the one that was silent for longest.
func (b *Box) makeRoom(met bool, limit int) {
	n := 0
	var silent *Peer
	for _, p := range b.peers {
		if p.met != met {
			continue
		}
		n++
		if silent == nil || p.heard < silent.heard {
			silent = p
		}
	}
	if n >= limit {
		b.Drop(silent.session)
		b.Forgotten++
	}
}

// Drop forgets a session: a peer that restarted has a new one. Should the old one
// speak again, it has to be met again.
func (b *Box) Drop(session uint64) {
	if p := b.peers[session]; p != nil {
		delete(b.peers, session)
		p.box, p.met = nil, false
	}
}

// Session returns the id of the session.
func (p *Peer) Session() uint64 { return p.session }

// Met reports whether the content of the session can be believed. It is false for
// a session that the Box has forgotten.
func (p *Peer) Met() bool { return p.met }

// Challenge returns what we want echoed in this session: random, the same for 10 s
// or until it was echoed, so that a greeting can be repeated.
func (p *Peer) Challenge(now monotime.Time) [16]byte {
	if !p.asking(now) {
		rand.Read(p.challenge[:]) // does not fail
		p.asked = now
	}
	return p.challenge
}

// Answer takes an echo that came in an authentic datagram of this session, and
// reports whether it is that of the present challenge. If so, the challenge is
// used up and the session is met from now on: datagrams up to the newest one that
// was opened are refused, for they may have been recorded before the challenge.
func (p *Peer) Answer(now monotime.Time, echo [16]byte) bool {
	if p.box == nil || !p.asking(now) || subtle.ConstantTimeCompare(p.challenge[:], echo[:]) != 1 {
		return false
	}
	p.asked = 0
	if !p.met {
		p.box.makeRoom(true, maxMet)
		p.met = true
		p.window.shut()
	}
	return true
}

// asking reports whether there is a challenge that can be echoed.
func (p *Peer) asking(now monotime.Time) bool {
	return p.asked != 0 && now.Sub(p.asked) < challengeLife
}

package channel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"syncd/internal/monotime"
)

// ErrNoLink is what Channel.Err tells while no link can carry datagrams.
var ErrNoLink = errors.New("no dedicated link is up")

const (
	// silence is how long nothing must have been heard on the sending link
	// before a message on another one moves the sending there. Every node sends
	// at least once a second.
	silence = 3 * time.Second

	// latePenalty is added to silence for moving to a link that is later in the
	// configuration, so that of two nodes that send on different links one gives
	// way first. It exceeds the interval between messages, with room to spare.
	latePenalty = 2 * time.Second

	// maxJitter bounds the random part, see Channel.jitter.
	maxJitter = 4 * time.Second
)

// Reason says why the sending link has changed.
type Reason uint8

const (
	LinkDown Reason = iota + 1 // the old link cannot carry datagrams
	Silent                     // peers are heard on the new link and no more on the old one
)

func (r Reason) String() string {
	switch r {
	case LinkDown:
		return "link down"
	case Silent:
		return "peers use the other link"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// A Switch is a change of the sending link. From and To are positions in the
// configuration.
type Switch struct {
	From, To int
	Reason   Reason
}

// A Channel is a list of links of which one sends, the active one.
//
// The active link is at first the first one that is up. It stays active while it
// is up, also when one before it comes up again: a switch costs more than a
// worse link. Two events move it:
//
//   - Update finds it down: the first link that is up becomes active. If none is,
//     the active link is kept.
//   - Heard tells of a message on another link, when the active one is down or has
//     been silent: that link becomes active, so that nodes that see the state of
//     a link differently meet on one that works.
//
// A Channel has no lock and no clock; it belongs to the loop of its owner.
type Channel struct {
	links    []*Link
	active   int
	switches uint64

	// heard is when something was last heard on the active link, or when it
	// became active: a new link gets its time too.
	heard monotime.Time

	// jitter is added to silence. It is zero, until the channel has moved for
	// silence, and again when something is heard on the active link. Two nodes
	// that wait for each other on different links would else change places in
	// step for ever, whatever the order of their links.
	jitter time.Duration
}

// New returns a Channel over links, in the order of the configuration. There must
// be at least one. The channel does not own the links: its user receives on all
// of them and closes them.
func New(now monotime.Time, links []*Link) *Channel {
	c := &Channel{links: links, heard: now}
	c.active = c.firstUp()
	return c
}

// firstUp returns the first link that is up, or the active one if none is.
func (c *Channel) firstUp() int {
	for i, l := range c.links {
		if l.Up() {
			return i
		}
	}
	return c.active
}

// Active returns the position of the link that sends.
func (c *Channel) Active() int { return c.active }

// Links returns the links in the order of the configuration. The caller must not
// change the slice.
func (c *Channel) Links() []*Link { return c.links }

// Switches returns how often the sending link has changed.
func (c *Channel) Switches() uint64 { return c.switches }

// Err returns ErrNoLink while the active link is down, which after an Update
// means that all are.
func (c *Channel) Err() error {
	if c.links[c.active].Up() {
		return nil
	}
	return ErrNoLink
}

// Update looks at the state of the links. The owner calls it after it has told
// one of them its state, and reports the switch if ok.
func (c *Channel) Update(now monotime.Time) (sw Switch, ok bool) {
	if c.links[c.active].Up() {
		return Switch{}, false
	}
	to := c.firstUp()
	if to == c.active {
		return Switch{}, false
	}
	return c.move(now, to, LinkDown), true
}

// Heard tells that a valid message came in on link i. The owner reports the
// switch if ok. "Valid" is for the layer above to say: a datagram that anyone can
// forge must not move the sending link.
func (c *Channel) Heard(now monotime.Time, i int) (sw Switch, ok bool) {
	if i == c.active {
		c.heard = now
		c.jitter = 0
		return Switch{}, false
	}
	if !c.links[i].Up() {
		// Its state is on the way. A switch now would be undone by Update.
		return Switch{}, false
	}
	if !c.links[c.active].Up() {
		return c.move(now, i, LinkDown), true
	}
	patience := silence + c.jitter
	if i > c.active {
		patience += latePenalty
	}
	if now.Sub(c.heard) <= patience {
		return Switch{}, false
	}
	sw = c.move(now, i, Silent)
	c.jitter = rand.N(maxJitter)
	return sw, true
}

func (c *Channel) move(now monotime.Time, to int, reason Reason) Switch {
	sw := Switch{From: c.active, To: to, Reason: reason}
	c.active = to
	c.heard = now
	c.jitter = 0
	c.switches++
	return sw
}

// Send sends the datagrams on the active link, see Link.Send.
func (c *Channel) Send(datagrams [][]byte) (sent int, err error) {
	return c.links[c.active].Send(datagrams)
}

// MaxPayload returns that of the active link, in octets.
func (c *Channel) MaxPayload() int { return c.links[c.active].MaxPayload() }

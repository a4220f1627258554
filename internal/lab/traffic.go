package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Pattern is who speaks on a connection.
type Pattern uint8

const (
	// Echo: the dialing side asks at an interval, the far side answers.
	Echo Pattern = iota
	// Push: after one greeting only the far side speaks. Its packets pass a
	// firewall only where that has the state of the connection.
	Push
)

// Spec says what a connection is.
type Spec struct {
	From     *Node
	Network  string         // "tcp" or "udp"
	Local    netip.Addr     // source address
	To       netip.AddrPort // where a Service is, perhaps behind a firewall
	Pattern  Pattern
	Interval time.Duration // between messages
}

// Connection is one long-lived connection and its record.
type Connection struct {
	spec   Spec
	id     uint32
	conn   net.Conn
	seen   netip.AddrPort
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	due      time.Time // since when something is due that has not come; zero if nothing is
	longest  time.Duration
	received uint64
	err      error
	closed   time.Time // when Close was called; what happens later is no news
}

// Record is what became of a connection so far.
type Record struct {
	Received uint64 // messages

	// Gap is the longest time that something was due and did not come: from a
	// question to the next answer, or from the end of an interval to the next
	// push. It grows while nothing comes.
	Gap     time.Duration
	Overdue time.Duration // the gap that has not ended yet, or zero

	// Err is why the connection is dead: reset, closed, damaged data, or another
	// address or port seen by the far side than at first. A connection whose
	// packets vanish has no error, it is overdue.
	Err error
}

// Alive reports whether the connection has no error and is not overdue by more
// than grace.
func (r Record) Alive(grace time.Duration) bool { return r.Err == nil && r.Overdue <= grace }

var (
	errMapping  = errors.New("the far side sees another address")
	errSequence = errors.New("a message is missing or came twice")
)

// connections numbers the connections of this process.
var connections atomic.Uint32

// Open opens a connection, greets the far side, and keeps traffic on it until
// Close. It gives up after some seconds.
func Open(ctx context.Context, spec Spec) (*Connection, error) {
	const patience = 5 * time.Second // a lost SYN or two; the kernel would try for two minutes
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := spec.From.Dial(ctx, spec.Network, spec.Local, spec.To)
	if err != nil {
		return nil, err
	}
	c := &Connection{spec: spec, conn: conn, id: connections.Add(1)}
	if err := c.greet(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("lab: greet %s %s: %w", spec.Network, spec.To, err)
	}
	run, stop := context.WithCancel(context.Background())
	c.cancel = stop
	c.due = time.Now().Add(spec.Interval)
	c.wg.Go(c.read)
	if spec.Pattern == Echo {
		c.due = time.Time{}
		c.wg.Go(func() { c.ask(run) })
	}
	return c, nil
}

// greet says hello until it is answered or ctx, which has a deadline, ends. TCP
// sends again by itself.
func (c *Connection) greet(ctx context.Context) error {
	const again = 250 * time.Millisecond
	hello := message{kind: kindHello, pattern: c.spec.Pattern, id: c.id, interval: c.spec.Interval}.append(nil)
	in := make([]byte, messageSize)
	for {
		if _, err := c.conn.Write(hello); err != nil {
			return err
		}
		limit, _ := ctx.Deadline()
		if next := time.Now().Add(again); c.spec.Network == "udp" && next.Before(limit) {
			limit = next
		}
		if err := c.conn.SetReadDeadline(limit); err != nil {
			return err
		}
		_, err := io.ReadFull(c.conn, in)
		if c.spec.Network == "udp" && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return err
		}
		m, err := parse(in)
		if err != nil {
			return err
		}
		c.seen = m.seen
		return c.conn.SetReadDeadline(time.Time{})
	}
}

// Seen returns the address and port of this connection as the far side sees them.
func (c *Connection) Seen() netip.AddrPort { return c.seen }

// Spec returns what the connection was opened with.
func (c *Connection) Spec() Spec { return c.spec }

// Record returns what became of the connection so far.
func (c *Connection) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Record{Received: c.received, Gap: c.longest, Err: c.err}
	now := c.closed
	if now.IsZero() {
		now = time.Now()
	}
	if !c.due.IsZero() {
		r.Overdue = max(0, now.Sub(c.due))
	}
	r.Gap = max(r.Gap, r.Overdue)
	return r
}

// ForgetGap begins the search for the longest gap anew.
func (c *Connection) ForgetGap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest = 0
}

// Close ends the connection and waits for its goroutines. Record goes on telling
// what it was at this moment.
func (c *Connection) Close() error {
	c.mu.Lock()
	if c.closed.IsZero() {
		c.closed = time.Now()
	}
	c.mu.Unlock()
	c.cancel()
	err := c.conn.Close()
	c.wg.Wait()
	return err
}

// fail notes what the connection died of: its first error while it was open.
func (c *Connection) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.closed.IsZero() {
		c.err = err
	}
}

// ask asks at the interval. On UDP it does so whatever became of the last
// question; a TCP socket whose peer is silent takes questions until it is full.
func (c *Connection) ask(ctx context.Context) {
	tick := time.NewTicker(c.spec.Interval)
	defer tick.Stop()
	m := message{kind: kindAsk, id: c.id}
	b := make([]byte, 0, messageSize)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.number++
		c.mu.Lock()
		if c.due.IsZero() {
			c.due = time.Now()
		}
		c.mu.Unlock()
		if _, err := c.conn.Write(m.append(b)); err != nil && c.spec.Network == "tcp" {
			c.fail(err)
			return
		}
	}
}

// read takes what comes and checks it.
func (c *Connection) read() {
	in := make([]byte, messageSize)
	var last uint64
	for {
		var n int
		var err error
		if c.spec.Network == "tcp" {
			n, err = io.ReadFull(c.conn, in)
		} else {
			n, err = c.conn.Read(in)
		}
		if c.spec.Network == "udp" && isICMP(err) {
			continue // about one datagram; UDP has no connection that could end
		}
		if err != nil {
			c.fail(err)
			return
		}
		m, err := parse(in[:n])
		switch {
		case err != nil:
		case m.id != c.id:
			err = errDamaged
		case m.seen != c.seen:
			err = fmt.Errorf("%w: %s, at first %s", errMapping, m.seen, c.seen)
		case c.spec.Network == "tcp" && m.number != last+1:
			err = fmt.Errorf("%w: number %d after %d", errSequence, m.number, last)
		}
		if err != nil {
			c.fail(err)
			return
		}
		if m.kind == kindAnswer && m.number == 0 {
			continue // a second answer to a hello
		}
		last = max(last, m.number)
		c.arrived()
	}
}

// isICMP reports whether a socket error tells of an ICMP error message.
func isICMP(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

func (c *Connection) arrived() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received++
	if !c.due.IsZero() {
		c.longest = max(c.longest, now.Sub(c.due))
	}
	c.due = time.Time{}
	if c.spec.Pattern == Push {
		c.due = now.Add(c.spec.Interval)
	}
}

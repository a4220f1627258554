package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"syncd/internal/cache"
	"syncd/internal/filter"
	"syncd/internal/flow"
	"syncd/internal/monotime"
	"syncd/internal/seal"
	"syncd/internal/simnet"
	"syncd/internal/snapshot"
	"syncd/internal/sync/stream"
	"syncd/internal/wire"
)

// clusterSeeds is how many seeds TestCluster runs unless -seeds says otherwise.
const clusterSeeds = 30

// hardSeeds are seeds that found a defect once. A seed does not fix how goroutines
// interleave, so that some of them need several runs to find it again.
var hardSeeds = []uint64{
	5,    // a full queue kept the loop awake
	462,  // the end of a bulk update removed flows that had been sent before a VOID with "lost"
	861,  // the same
	223,  // an expectation began after a dump had come to them, and before the loop knew its master from it
	3113, // with too many deletions to remember, those that were known were not kept up to date
}

// TestCluster runs two to five whole nodes in the syncd dialect while their kernels
// change, the network and the event sockets fail in all ways, dumps fail, processes
// start again with or without what they held of the others, operators commit, purge,
// flush and change filters, and memory loses entries. What holds at all times is
// checked at every message (see probe). When the faults end and the changes pause, the
// kernel of each node, its internal cache and what all others hold of it are equal,
// and everyone knows it.
func TestCluster(t *testing.T) {
	list, first, n := slices.Clone(hardSeeds), uint64(1), clusterSeeds
	if raceEnabled || testing.Short() {
		n = 8
	}
	if *seed != 0 {
		list, first, n = nil, *seed, 1
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "seeds" {
			n = *seeds
		}
	})
	for s := range uint64(n) {
		list = append(list, first+s)
	}
	for _, s := range list {
		for _, what := range runCluster(t, s, flawNone) {
			t.Error(what)
		}
		if t.Failed() {
			t.Fatalf("replay with: go test ./internal/engine -run 'TestCluster$' -seed %d", s)
		}
	}
	if t.Logf("%d compact messages", compacts.Load()); n > 1 && compacts.Load() < 1000 {
		t.Error("too few to prove anything")
	}
}

// TestClusterCanFail shows that the simulation sees what is wrong: with a flaw in the
// nodes some seed must find it.
func TestClusterCanFail(t *testing.T) {
	for _, c := range []struct {
		name string
		flaw flaw
		want string
	}{
		{"digests always agree", flawDigest, "proven, but"},
		{"digests are not looked at", flawNoDigest, "external cache of"},
		{"what was not confirmed is kept", flawSweep, "stale"},
		{"what is late is applied as if it were not", flawLate, "went back"},
		{"a deletion counts for all owners", flawOwner, "other owners"},
		{"a compact message is applied to whatever its handle leads to", flawBase, "as it was sent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for s := uint64(1); s <= 60; s++ {
				for _, what := range runCluster(t, s, c.flaw) {
					if strings.Contains(what, c.want) {
						t.Logf("seed %d: %s", s, what)
						return
					}
				}
			}
			t.Error("nothing was found")
		})
	}
}

// flaw is something wrong with the nodes that the simulation must notice.
type flaw uint8

const (
	flawNone     flaw = iota
	flawDigest        // digests always agree
	flawNoDigest      // digests never come
	flawSweep         // what was not confirmed is kept
	flawLate          // what is late is applied as if it were not
	flawOwner         // a deletion removes the flow of every owner
	flawBase          // a compact message is applied to whatever its handle leads to
)

// compacts counts the compact messages that left in all clusters.
var compacts atomic.Uint64

// cluster is some nodes and what happens to them.
type cluster struct {
	t       *testing.T
	r       *rand.Rand
	moves   *rand.Rand // for what happens to addresses and roles
	net     *simnet.Network
	members []*member
	faults  simnet.Faults
	flows   int
	expects *rand.Rand // says when something is expected; nil: never
	rate    int        // changes of a kernel in a step, at most
	flaw    flaw
	keys    []seal.Key // nil: datagrams are sealed in name only
	steps   int
	ending  bool // nothing happens any more that no event tells of
	parks   bool // what others have is parked in the kernels
	mixed   bool // in some of them

	mu    sync.Mutex // the loops of all nodes come here
	wrong []string
	logs  map[uint64]*sendLog // by session
}

func (c *cluster) failf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wrong) < 20 {
		c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
	}
}

// log returns what a session has sent.
func (c *cluster) log(session uint64) *sendLog {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logs[session]
}

// member is a node of a cluster.
type member struct {
	*node
	c       *cluster
	queue   int // stream.Config.ResendQueue
	window  int
	version uint32 // of the last change of the kernel: the mark of the flow concerned
	snap    []byte // what the last process held of the others, or nil
	down    bool
	parks   bool // what others have, in its kernel
	*probe
}

// start begins a process with a new session.
func (m *member) start() {
	c := m.c
	session := c.r.Uint64() | 1
	first, words := wire.Seq(c.r.Uint32()), rand.New(rand.NewPCG(c.r.Uint64(), 5))
	if c.r.IntN(2) == 0 {
		first = -wire.Seq(c.r.IntN(4000)) // soon to wrap
	}
	m.probe = newProbe(c, m.name, session, first)
	var meet, drop func(uint64)
	if c.keys == nil {
		m.cfg.Sealer = named(session)
	} else {
		b, err := seal.New(session, c.keys)
		if err != nil {
			c.t.Fatal(err)
		}
		s := &sealed{box: b}
		m.cfg.Sealer, meet, drop = s, s.meet, s.drop
	}
	m.cfg.NewMode = func(e *Engine) Mode {
		return m.probe.attach(e, stream.Config{
			Name: m.name, Session: session, FirstSeq: first,
			Random:      func(b []byte) { binary.BigEndian.PutUint64(b[:8], words.Uint64()|1) },
			ResendQueue: m.queue, AckWindow: m.window, Meet: meet, Drop: drop,
		}, m.snap)
	}
	m.down = false
	m.node.start()
	m.host(mobile)
}

// stop ends the process. If keep, the next one starts with what this one held of the
// others, by way of a snapshot.
func (m *member) stop(keep bool) {
	m.node.stop()
	m.snap, m.down = nil, true
	if !keep {
		return
	}
	var b bytes.Buffer
	w := snapshot.NewWriter(&b, time.Now())
	for _, o := range m.replica.Owners() {
		if err := w.Owner(m.Machine.OwnerName(o)); err != nil {
			m.t.Fatal(err)
		}
		x := m.replica.Cache(o)
		x.Walk(0, 0, func(h flow.Handle) bool {
			var f flow.Flow
			var exp flow.Expect
			var err error
			if age := m.now.Sub(x.Updated(h)); x.IsExpect(h) {
				x.LoadExpect(h, &exp)
				err = w.Expect(&exp, age)
			} else {
				x.Load(h, &f)
				err = w.Flow(&f, age)
			}
			if err != nil {
				m.t.Fatal(err)
			}
			return true
		})
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.snap = b.Bytes()
}

// on runs fn on the loop, between two messages.
func (m *member) on(fn func()) {
	m.do(func() {
		m.settle()
		fn()
	})
}

// named is a Sealer that says which session a datagram is of, and nothing else.
type named uint64

func (n named) Seal(b, plain []byte) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(n)), plain...)
}

func (named) Open(b, datagram []byte, _ monotime.Time) ([]byte, uint64, bool) {
	if len(datagram) < 8 {
		return b, 0, false
	}
	return append(b, datagram[8:]...), binary.BigEndian.Uint64(datagram), true
}

func (named) Overhead() int { return 8 }

// sealed is a Sealer that really seals.
type sealed struct {
	box *seal.Box
	mu  sync.Mutex // guards the opening half of the box
}

func (s *sealed) Seal(b, plain []byte) []byte { return s.box.Seal(b, plain) }

func (s *sealed) Open(b, datagram []byte, now monotime.Time) ([]byte, uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	plain, p, fault := s.box.Open(b, datagram, now)
	if fault != seal.FaultNone {
		return b, 0, false
	}
	return plain, p.Session(), true
}

func (s *sealed) Overhead() int { return seal.Overhead }

func (s *sealed) meet(session uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.box.Peer(session); p != nil {
		now := monotime.Now()
		p.Answer(now, p.Challenge(now))
	}
}

func (s *sealed) drop(session uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.box.Drop(session)
}

// runCluster runs a seed and returns what went wrong.
func runCluster(t *testing.T, seed uint64, flaw flaw, options ...func(*cluster)) (wrong []string) {
	bubble(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 101))
		c := &cluster{
			t: t, r: r, moves: rand.New(rand.NewPCG(seed, 202)), net: simnet.New(seed), flaw: flaw, logs: map[uint64]*sendLog{},
			flows: 1 + r.IntN(300), rate: r.IntN(15),
		}
		if r.IntN(4) == 0 {
			c.keys = []seal.Key{seal.NewKey()}
		}
		for _, o := range options {
			o(c)
		}
		if seed%4 == 3 && !c.parks {
			c.expects = rand.New(rand.NewPCG(seed, 0x657870))
		}
		for i := range 2 + r.IntN(4) {
			k := simnet.NewKernel(seed*8 + uint64(i))
			k.ReuseIDs = r.IntN(2) == 0
			k.DumpPause = time.Duration(r.IntN(5)) * time.Millisecond
			k.SocketLimit = 20 + r.IntN(2000)
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
			m := &member{c: c, queue: 256 << r.IntN(8), window: 2 + r.IntN(300), parks: c.parks}
			if c.mixed {
				m.parks = c.moves.IntN(2) == 0
			}
			m.node = newNode(t, string(rune('A'+i)), addr, c.net, k, func(cfg *Config) {
				cfg.Mirror = true
				if seed%2 == 0 {
					cfg.Fetch = k.Fetch
				}
				cfg.Leads = func(owner uint8) (leads, known bool) { return m.Machine.Leads(m.now, owner) }
				if m.parks {
					cfg.Parker = &simParker{kernel: k}
					if r.IntN(4) > 0 { // as the real listener does it
						k.Quiet = parkPort
					}
					cfg.Gone = m.gone
				}
				// Every flow can be held once, alive or dead: more is a leak.
				cfg.InternalLimit, cfg.ExternalLimit = c.limit(), c.limit()
			})
			for range r.IntN(c.flows + 1) {
				c.change(m)
			}
			c.members = append(c.members, m)
			m.start()
		}
		c.faults = simnet.Faults{
			Loss: r.Float64() * 0.4 * float64(r.IntN(2)), Duplicate: r.Float64() * 0.1,
			Delay: time.Duration(r.IntN(5)) * time.Millisecond, Jitter: time.Duration(r.IntN(40)) * time.Millisecond,
		}
		c.weather()
		for range 1 + r.IntN(6) {
			c.run(time.Duration(r.IntN(4000)) * time.Millisecond)
			c.trouble(c.members[r.IntN(len(c.members))])
			c.move(c.members[c.moves.IntN(len(c.members))])
		}
		c.net.SetFaults(simnet.Faults{})
		c.ending = true
		for _, m := range c.members {
			m.on(func() {
				m.SetFilter(filter.Compile(filter.Rules{Expects: filter.Expects{All: true}}))
				m.SetHost([]netip.Addr{mobile})
				m.SetOrphans(OrphansGo)
				m.RequestKernelSync()
			})
		}
		c.run(time.Second)
		for i := range 30 {
			time.Sleep(time.Second)
			if i == 5 { // all that was queued has come
				c.forgo()
			}
			c.check()
		}
		if c.parks {
			time.Sleep(2 * touchedPause)
		}
		c.agree()
		for _, m := range c.members {
			m.stop(false)
		}
		wrong = c.wrong
	})
	return wrong
}

// weather makes the network as bad as it usually is, and worse in some directions.
func (c *cluster) weather() {
	c.net.SetFaults(c.faults)
	for _, from := range c.members {
		for _, to := range c.members {
			if from != to && c.r.IntN(8) == 0 {
				f := c.faults
				f.Loss, f.Jitter = 0.5*c.r.Float64(), time.Duration(c.r.IntN(200))*time.Millisecond
				c.net.SetDirection(from.port, to.port, f)
			}
		}
	}
}

// run lets the kernels change for a while.
func (c *cluster) run(d time.Duration) {
	const step = 20 * time.Millisecond
	for range d / step {
		for _, m := range c.members {
			for range c.r.IntN(c.rate + 1) {
				c.change(m)
			}
		}
		time.Sleep(step)
		if c.steps++; c.steps%16 == 0 {
			c.check()
		}
	}
}

// while lets the kernels change for a random time of at most so many milliseconds.
func (c *cluster) while(ms int) { c.run(time.Duration(c.r.IntN(ms)) * time.Millisecond) }

// change creates, updates, destroys or makes anew one flow of a kernel.
func (c *cluster) change(m *member) {
	r, k := c.r, m.kernel
	f := clusterFlow(r.IntN(c.flows))
	create := func() bool {
		m.version++
		f.Mark = m.version
		f.Has |= flow.HasMark
		return k.Create(f, 0)
	}
	if c.expects != nil && f.Has&flow.HasHelper != 0 && c.expects.IntN(2) == 0 {
		c.expect(m, &f)
		return
	}
	switch x := r.IntN(10); {
	case m.cfg.Fetch != nil && f.Has&flow.HasHelper != 0 && f.Status&flow.StatusSrcNAT != 0 && r.IntN(3) == 0:
		k.Adjust(f.Orig, adjustment(r.IntN(100)))
	case x < 4 && create():
	case x < 6:
		k.Destroy(f.Orig, 0)
		if r.IntN(3) == 0 {
			create()
		}
	default:
		m.version++
		if c.parks && !c.ending && r.IntN(4) == 0 {
			k.Touch(f.Orig, 300)
			return
		}
		k.Update(f.Orig, 0, func(f *flow.Flow) {
			switch {
			case m.version%3 == 0:
				f.Mark = m.version
			case !c.parks: // nothing but its state changes
				f.Status = f.Status&0xffff | m.version<<16
			case f.TCPState >= flow.TCPEstablished && f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0: // as of a connection that closes
				f.TCPState = flow.TCPEstablished + uint8(m.version%4)
			}
			f.Timeout = 300
			if r.IntN(3) == 0 {
				establish(f)
				if c.parks && f.Orig.Proto == flow.TCP {
					// It may have been parked when one end alone had spoken.
					f.TCPFlags[0], f.TCPWScale[0] = flow.TCPFlagWindowScale, 7
				}
			}
		})
	}
}

// clusterFlow is newFlow with some that only this dialect can tell of.
func clusterFlow(i int) flow.Flow {
	f := newFlow(i)
	switch i % 16 {
	case 11:
		f.Reply.Zone = 0
	case 12:
		f.Reply.SrcPort += 100
		f.Status |= flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone
	case 14:
		return control(i / 8)
	}
	return f
}

// trouble is one thing that goes wrong at a node, or that its operator does.
func (c *cluster) trouble(m *member) {
	r := c.r
	if c.flaw == flawDigest || c.flaw == flawNoDigest {
		c.forget(m)
		return
	}
	if c.parks && r.IntN(3) == 0 {
		c.role(m)
		return
	}
	switch r.IntN(16) {
	case 0, 1: // the process is down for a while
		m.stop(r.IntN(3) > 0)
		if m.snap != nil && r.IntN(2) == 0 {
			c.run(time.Duration(r.IntN(200)) * time.Millisecond) // as for an update of the program
		} else {
			c.while(12000)
		}
		m.start()
	case 2: // one direction is cut
		if to := c.members[r.IntN(len(c.members))]; to != m {
			c.net.SetDirection(m.port, to.port, simnet.Faults{Cut: true})
			c.while(15000)
			c.weather()
		}
	case 3, 4: // the network falls in two
		for _, a := range c.members {
			for _, b := range c.members {
				if a != b && (a == m) != (b == m) || a != b && r.IntN(5) == 0 {
					c.net.SetDirection(a.port, b.port, simnet.Faults{Cut: true})
				}
			}
		}
		c.while(15000)
		c.weather()
	case 5, 6: // the event reader gets no processor
		m.kernel.Stall(true)
		c.while(1000)
		m.kernel.Stall(false)
	case 7:
		m.kernel.FailDumps(errResized, errResized)
		m.on(m.RequestKernelSync)
	case 8:
		m.on(func() {
			m.FlushExternal()
			m.forgotten()
			if r.IntN(2) == 0 {
				m.RequestResync()
			}
		})
	case 9:
		m.on(func() {
			m.FlushInternal()
			m.RequestKernelSync()
		})
	case 10:
		c.commit(m)
	case 11: // purge
		for t := range m.kernel.Flows() {
			m.kernel.Destroy(t, purgePort)
		}
	case 12:
		m.on(func() {
			m.SetFilter(filter.Compile(filter.Rules{Protocols: filter.List[uint8]{Ignore: []uint8{flow.UDP, flow.ICMP}}, Expects: filter.Expects{All: c.steps%2 == 0}}))
		})
		c.while(5000)
		m.on(func() {
			m.SetFilter(filter.Compile(filter.Rules{Expects: filter.Expects{All: true}}))
			m.RequestKernelSync()
		})
	case 13:
		c.forget(m)
	case 14:
		m.on(func() {
			m.Machine.Bulk()
			m.RequestResync()
		})
	case 15: // nothing to send for a while
		time.Sleep(time.Duration(r.IntN(15000)) * time.Millisecond)
	}
}

// forgo gives up what was left behind, which would take hours by itself.
func (c *cluster) forgo() {
	for _, m := range c.members {
		m.on(func() {
			m.internal.Walk(0, 0, func(h flow.Handle) bool {
				if !m.internal.Dead(h) && m.Engine.gone(h) {
					m.Engine.end(h)
				}
				return true
			})
		})
	}
}

// move lets an address leave a node, or come back, with the flows that are masqueraded
// with it, or the node change its role.
func (c *cluster) move(m *member) {
	kill := func() {
		for t, f := range m.kernel.Flows() {
			if f.Status&flow.StatusSrcNAT != 0 && !f.Parked() {
				m.kernel.Kill(t, 0)
			}
		}
	}
	switch c.moves.IntN(8) {
	case 0: // the flows first
		kill()
		time.Sleep(time.Duration(c.moves.IntN(400)) * time.Millisecond)
		m.on(func() { m.SetHost(nil) })
	case 1:
		m.on(func() { m.SetHost(nil) })
		kill()
	case 2:
		m.on(func() { m.SetHost([]netip.Addr{mobile}) })
	case 3: // it was something else
		kill()
	case 4:
		m.on(func() {
			for pos, more := flow.Handle(0), true; more; more = pos != 0 {
				pos = m.MarkRemnants(pos)
			}
		})
	case 5:
		m.on(func() {
			for pos, more := flow.Handle(0), true; more; more = pos != 0 {
				pos = m.ForgetRemnants(pos)
			}
		})
	case 6: // a purge, of which some is used again
		rule := RemnantRule{All: c.moves.IntN(2) == 0, Primary: c.moves.IntN(4) == 0}
		var ends []flow.Tuple
		m.on(func() {
			for t, f := range m.kernel.Flows() {
				if m.JudgeRemnant(&f, rule) == RemnantEnds {
					ends = append(ends, t)
				}
			}
		})
		for _, t := range ends {
			m.kernel.Update(t, purgePort, func(f *flow.Flow) { f.Timeout = 30 })
		}
		time.Sleep(time.Duration(c.moves.IntN(200)) * time.Millisecond)
		for i, t := range ends {
			if i%3 > 0 {
				m.kernel.Destroy(t, 0)
			}
		}
	case 7:
		m.on(func() {
			for _, f := range m.kernel.Flows() {
				m.JudgeRemnant(&f, RemnantRule{Outlived: true})
			}
		})
	}
}

// commit puts what a node holds of another into its kernel.
func (c *cluster) commit(m *member) {
	if m.parks {
		c.adopt(m)
		return
	}
	var flows []flow.Flow
	var expected []flow.Expect
	m.on(func() {
		owners := m.replica.Owners()
		if len(owners) == 0 {
			return
		}
		x := m.replica.Cache(owners[c.r.IntN(len(owners))])
		x.Walk(0, 0, func(h flow.Handle) bool {
			var f flow.Flow
			if x.IsExpect(h) {
				var e flow.Expect
				x.LoadExpect(h, &e)
				expected = append(expected, e)
				return true
			}
			x.Load(h, &f)
			flows = append(flows, f)
			return true
		})
	})
	for _, f := range flows {
		m.version++
		f.Mark = m.version
		f.Has |= flow.HasMark
		if f.Orig.Proto == flow.TCP && f.Has&flow.HasTCPWScale != 0 {
			f.TCPFlags = [2]uint8{flow.TCPFlagWindowScale, flow.TCPFlagWindowScale}
		}
		m.kernel.Create(f, commitPort)
	}
	for _, x := range expected {
		m.version++
		x.Class = m.version
		m.kernel.Expect(x, commitPort)
	}
}

// expect begins or ends an expectation of flow f, of which there is one at most.
func (c *cluster) expect(m *member, f *flow.Flow) {
	x := expects(f, int(f.Orig.SrcPort))
	x.Tuple.Zone = x.Master.Zone
	if key := x.Key(); c.expects.IntN(3) == 0 {
		m.kernel.Fulfil(key, 0)
		if c.expects.IntN(2) == 0 {
			return
		}
	}
	m.version++
	x.Class = m.version
	m.kernel.Expect(x, 0)
}

// limit is how many different entries there can be.
func (c *cluster) limit() int {
	if c.expects == nil {
		return c.flows
	}
	return 2 * c.flows
}

// forget takes entries of others out of a node, or damages them, which the protocol
// cannot know: only digests find that, and of what is damaged only after an audit.
func (c *cluster) forget(m *member) {
	audit := c.r.IntN(2) == 0 && c.flaw == flawNone
	m.on(func() {
		m.forgotten()
		for _, o := range m.replica.Owners() {
			x := m.replica.owners[o]
			x.cache.Walk(0, 0, func(h flow.Handle) bool {
				switch {
				case c.r.IntN(8) > 0:
				case audit:
					if x.cache.IsExpect(h) {
						var e flow.Expect
						x.cache.LoadExpect(h, &e)
						e.Class = c.r.Uint32()
						x.cache.MergeExpect(h, &e, m.now)
						return true
					}
					f := flow.Flow{Mark: c.r.Uint32(), Has: flow.HasMark}
					f.Orig = x.cache.Key(h)
					x.cache.Merge(h, &f, m.now)
				default:
					key := x.cache.Key(h)
					m.replica.remove(x, h, &key)
				}
				return true
			})
			for pos, next := flow.Handle(0), true; audit && next; next = pos != 0 {
				pos = m.replica.Audit(o, m.session[o], pos)
			}
		}
	})
}

// check checks what is bounded, and what is the sum of what.
func (c *cluster) check() {
	for _, m := range c.members {
		if m.down {
			continue
		}
		m.on(func() {
			if n := m.internal.Len() + m.internal.DeadLen(); n > c.limit() {
				c.failf("%s: %d internal entries of %d", m.name, n, c.limit())
			}
			if k := &m.Engine.kernel; !k.running && len(k.graves)+len(k.told) > 0 {
				c.failf("%s: remembers %d destructions without a dump", m.name, len(k.graves))
			}
			if n := m.Engine.Stats.EventsRefused + m.Engine.Stats.ExternalRefused; n > 0 {
				c.failf("%s: %d events or messages were refused", m.name, n)
			}
			for _, p := range m.Peers(m.now) {
				if p.Counted && (p.Lag < 0 || p.Lag > m.queue) {
					c.failf("%s: keeps %d messages for %s, limit %d", m.name, p.Lag, p.Name, m.queue)
				}
			}
			for _, o := range m.replica.Owners() {
				x := m.replica.owners[o]
				if len(x.graves) > c.limit() || len(x.meta) > 1 || len(m.replica.work) > len(m.replica.Owners()) {
					c.failf("%s: %d graves, %d chunks, %d sweeps", m.name, len(x.graves), len(x.meta), len(m.replica.work))
				}
				if got := sumsOf(x); got != x.sums {
					c.failf("%s: the sums of %s are not those of its entries", m.name, m.OwnerName(o))
				}
			}
		})
	}
}

// sumsOf adds up the hashes of all entries.
func sumsOf(o *owned) (sums [wire.Buckets]uint64) {
	o.cache.Walk(0, 0, func(h flow.Handle) bool {
		key := o.cache.Key(h)
		sums[wire.Bucket(&key)] += o.at(h).hash
		return true
	})
	return sums
}

// agree checks that all caches are what they should be when all is quiet.
func (c *cluster) agree() {
	for _, a := range c.members {
		want := a.kernelTable()
		if a.parks {
			c.agreeParked(a)
		}
		if d := differences(a.internalTable(), want); d != "" {
			c.failf("internal cache of %s against its kernel: %s", a.name, d)
		}
		if p := a.problems(); p != "" {
			c.failf("%s is idle and says: %s", a.name, p)
		}
		a.on(func() {
			if !a.InStep() {
				c.failf("%s has something to send", a.name)
			}
			if n := a.internal.DeadLen(); n > 0 {
				c.failf("%s is idle and keeps %d deletions", a.name, n)
			}
		})
		for _, b := range c.members {
			if a == b {
				continue
			}
			got := b.cacheTable(func() *cache.Cache { return b.replica.of(b.AddOwner(a.name)).cache })
			if d := differences(got, want); d != "" {
				c.failf("external cache of %s against the kernel of %s: %s", b.name, a.name, d)
			}
			b.on(func() {
				for _, p := range b.Peers(b.now) {
					if ago := b.now.Sub(p.Proven); p.Name == a.name && (!p.Met || ago > 2*time.Second || p.Missing != 0 || p.Wanted || p.Doubtful || p.Differed || !p.Counted) {
						c.failf("%s is not sure of %s: %+v, proven %v ago", b.name, a.name, p, ago)
					}
				}
				if len(b.Peers(b.now)) != len(c.members)-1 {
					c.failf("%s knows %d sessions", b.name, len(b.Peers(b.now)))
				}
			})
		}
	}
}

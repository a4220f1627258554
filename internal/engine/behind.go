package engine

import (
	"net/netip"
	"time"

	"syncd/internal/flow"
	"syncd/internal/monotime"
)

// When an address leaves this host, or its interface goes down, the kernel destroys
// every flow that it has masqueraded with that address. These DESTROY events look like
// any other but for the time that is left: nobody asked for them, and nothing has
// ended. The node that has the address now carries the flows on, so they are not
// deletions to be told: such a flow is *left behind*.
//
// The event may come before the news of the address. So the end of a flow of which
// that could be true waits in the limbo for a moment, and counts as an ordinary end
// if the address is still here then.
//
// The entry of a flow left behind stays alive in the internal cache, since the peers
// have it from there, until a peer has taken the flow over or told of its end, its
// time is over, or it comes back.
type behind struct {
	hosts map[host]presence // addresses of this host, and those that have just left

	// limbo holds ends in the order in which they came, from head on.
	limbo []ending
	head  int

	some bool // the internal cache may have flows that were left behind
	look monotime.Time
	pos  flow.Handle // of the look under way
	left int         // seen by it
}

type host struct {
	addr   [16]byte
	family uint8
}

// presence says whether an address is in use, and when it was not for the last time,
// 0 for never.
type presence struct {
	here bool
	left monotime.Time
}

// ending is the end of a flow that waits for news of an address.
type ending struct {
	orig flow.Tuple
	id   uint32
	due  monotime.Time
}

const (
	// The kernel tells of the address first, and of the flows within a millisecond, but
	// over another socket, which another goroutine reads.
	limboTime = 300 * time.Millisecond
	// A limbo of this many ends takes 14 MiB. Those beyond are told at once.
	maxLimbo = 1 << 18
	// How long the kernel may need to destroy the flows of an address that is gone: half
	// a second for a hundred thousand, and then they wait in our socket.
	hostMemory = 30 * time.Second
	// The same where the address is back already, as after an interface went down and
	// up: by now new flows use it, which end as any other.
	hostBack = 2 * time.Second

	behindLook = 10 * time.Second // between two looks for what needs to be kept no longer
	// How long what a peer has already is kept all the same: it may have had the flow
	// before, and be about to commit ours.
	behindHeld = 30 * time.Second
	// Flows that nobody takes over are kept for this long at most.
	behindKeep = 10 * time.Minute
)

// SetHost says which addresses of this host are in use. Call it by Do, or before
// Run.
func (e *Engine) SetHost(addrs []netip.Addr) {
	b := &e.behind
	next := make(map[host]presence, len(addrs))
	for k, p := range b.hosts {
		if p.here {
			p = presence{left: e.now}
		}
		if p.left != 0 && e.now.Sub(p.left) < hostMemory {
			next[k] = p
		}
	}
	for _, a := range addrs {
		a = a.Unmap()
		k := host{family: flow.IPv4}
		if a.Is6() {
			k.family, k.addr = flow.IPv6, a.As16()
		} else {
			v4 := a.As4()
			copy(k.addr[:], v4[:])
		}
		p := next[k]
		if was := b.hosts[k]; was.here {
			p.left = was.left // it has not left now
		}
		p.here = true
		next[k] = p
	}
	b.hosts = next
}

// moved reports whether an address of this host is not in use any more, or was not a
// moment ago; known is false for one that is of no interest.
func (e *Engine) moved(addr *[16]byte, family uint8) (moved, known bool) {
	p, known := e.behind.hosts[host{*addr, family}]
	if !known {
		return false, false
	}
	since := e.now.Sub(p.left)
	if p.here {
		return p.left != 0 && since < hostBack, true
	}
	return since < hostMemory, true
}

// suspect reports whether a DESTROY may say no more than that an address moved. It
// costs flows without source translation nothing.
func suspect(ev *flow.Event) bool {
	f := &ev.Flow
	return f.Status&flow.StatusSrcNAT != 0 && f.Has&flow.HasTimeout != 0 && f.Timeout > 0 && ev.PortID == 0
}

// hold decides about a suspect end of the flow of entry h, which is alive. It returns
// false if that is an ordinary end.
func (e *Engine) hold(h flow.Handle, f *flow.Flow) bool {
	moved, known := e.moved(&f.Reply.Dst, f.Reply.Family)
	b := &e.behind
	switch {
	case !known:
		return false
	case moved:
		e.leave(f)
	case len(b.limbo)-b.head >= maxLimbo:
		return false
	default:
		b.limbo = append(b.limbo, ending{f.Orig, e.internal.ID(h), e.now.Add(limboTime)})
	}
	e.setStanding(h, standGone, 0)
	f.Has &= flow.HasTimeout // the time that it had left, and since when
	e.internal.Merge(h, f, e.now)
	return true
}

// holdExpect decides about the end of the expectation of entry h, which is alive. Its
// master takes it along, to wherever that goes; the kernel tells of the master first.
func (e *Engine) holdExpect(h flow.Handle) bool {
	b := &e.behind
	if b.head == len(b.limbo) && !b.some || !e.masterGone(h) || len(b.limbo)-b.head >= maxLimbo {
		return false
	}
	e.setStanding(h, standGone, 0)
	b.limbo = append(b.limbo, ending{e.internal.Key(h), e.internal.ID(h), e.now.Add(limboTime)})
	return true
}

// masterGone reports whether the master of an expectation was left behind, or that is
// not clear yet.
func (e *Engine) masterGone(h flow.Handle) bool {
	x := &e.scratchX
	e.internal.LoadExpect(h, x)
	m := e.internal.Lookup(&x.Master)
	return m != 0 && !e.internal.Dead(m) && e.gone(m)
}

// leave notes that a flow was left behind.
func (e *Engine) leave(f *flow.Flow) {
	e.Stats.LeftBehind++
	if e.park != nil {
		e.parkEnded(f, false)
	}
	if b := &e.behind; !b.some {
		b.some, b.pos, b.look = true, 0, e.now.Add(behindLook)
	}
}

// gone reports whether the kernel has no flow for an entry: it is dead, or its flow was
// left behind, or that is not clear yet.
func (e *Engine) gone(h flow.Handle) bool {
	return e.internal.Dead(h) || e.standing(h)&standGone != 0
}

// due is when behindWork has something to do.
func (b *behind) due() (due monotime.Time) {
	if b.head < len(b.limbo) {
		due = b.limbo[b.head].due
	}
	if b.some {
		due = monotime.Earliest(due, b.look)
	}
	return due
}

// behindWork decides about a bounded number of ends whose time in the limbo is over,
// and looks through a part of the cache for flows that need to be kept no longer. It
// reports whether something is left to do.
func (e *Engine) behindWork() (more bool) {
	b := &e.behind
	for n := 0; b.head < len(b.limbo) && b.limbo[b.head].due <= e.now; n++ {
		if n == sweepSlots {
			return true
		}
		e.decide(&b.limbo[b.head])
		b.head++
	}
	if b.head == len(b.limbo) {
		b.limbo, b.head = b.limbo[:0], 0
		if cap(b.limbo) > sweepSlots {
			b.limbo = nil
		}
	} else if b.head > len(b.limbo)/2 && b.head >= sweepSlots {
		b.limbo = b.limbo[:copy(b.limbo, b.limbo[b.head:])]
		b.head = 0
	}
	if !b.some || e.now < b.look {
		return false
	}
	if b.pos == 0 {
		b.left = 0
	}
	b.pos = e.internal.Walk(b.pos, sweepSlots, func(h flow.Handle) bool {
		if !e.internal.Dead(h) && e.gone(h) {
			b.left++
			e.forgo(h)
		}
		return true
	})
	if b.pos != 0 {
		return true
	}
	b.some, b.look = b.left > 0, e.now.Add(behindLook)
	return false
}

// decide decides about an end whose time in the limbo is over.
func (e *Engine) decide(d *ending) {
	h := e.internal.Lookup(&d.orig)
	if h == 0 || e.internal.Dead(h) || !e.gone(h) || e.internal.ID(h) != d.id {
		return // it came back
	}
	if e.internal.IsExpect(h) {
		if !e.masterGone(h) {
			e.end(h)
		}
		return
	}
	f := &e.scratch
	e.internal.Load(h, f)
	if moved, _ := e.moved(&f.Reply.Dst, f.Reply.Family); moved {
		e.leave(f)
		return
	}
	if e.park != nil {
		e.parkEnded(f, true)
	}
	e.end(h)
}

// forgo gives up the entry of a flow that was left behind, when its time has come.
func (e *Engine) forgo(h flow.Handle) {
	if e.internal.IsExpect(h) {
		if !e.masterGone(h) {
			e.end(h)
		}
		return
	}
	key := e.internal.Key(h)
	ended := e.standing(h)&standEnded != 0
	age := e.now.Sub(e.internal.Updated(h))
	held := e.replica.holds(&key)
	switch {
	case ended:
	case held && age >= behindHeld && e.carried(&key):
	case age >= min(behindKeep, time.Duration(e.internal.Timeout(h))*time.Second) && age >= behindLook:
		// Behind for good: the address has not become anybody's, or nothing was told of it.
	default:
		return
	}
	if held || ended && e.standby {
		e.drop(h)
		return
	}
	e.end(h)
}

// WalkBehind calls fn for flows that were left behind and could go on here: the address
// is in use again, and no peer has the flow or has told of its end. age is the time
// since the kernel destroyed it. It visits some slots from position from on, stops after
// an fn that returns false, and returns where to go on, 0 at the end. For functions run
// by Do.
func (e *Engine) WalkBehind(from flow.Handle, fn func(f *flow.Flow, age time.Duration) bool) flow.Handle {
	if !e.behind.some {
		return 0
	}
	f := &e.scratch
	return e.internal.Walk(from, sweepSlots, func(h flow.Handle) bool {
		if e.internal.Dead(h) || !e.gone(h) || e.standing(h)&standEnded != 0 || e.internal.IsExpect(h) {
			return true
		}
		e.internal.Load(h, f)
		if !e.behind.hosts[host{f.Reply.Dst, f.Reply.Family}].here || e.replica.holds(&f.Orig) {
			return true
		}
		return fn(f, e.now.Sub(e.internal.Updated(h)))
	})
}

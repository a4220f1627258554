package channel

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"syncd/internal/monotime"
)

// fakeLinks returns links that have nothing but their state: '+' is up.
func fakeLinks(states string) []*Link {
	links := make([]*Link, len(states))
	for i, state := range states {
		links[i] = new(Link)
		links[i].current.Store(new(sockets))
		links[i].SetUp(state == '+', 1500)
	}
	return links
}

const second = monotime.Time(time.Second)

func TestFirstActive(t *testing.T) {
	for states, want := range map[string]int{"+": 0, "-": 0, "++": 0, "-+": 1, "--": 0, "--+": 2} {
		c := New(0, fakeLinks(states))
		if got := c.Active(); got != want {
			t.Errorf("%s: link %d is active, want %d", states, got, want)
		}
		if got := c.Err(); errors.Is(got, ErrNoLink) != (states == "-" || states == "--") {
			t.Errorf("%s: %v", states, got)
		}
	}
}

// A script of what happens to a channel of three links, second by second.
func TestFailover(t *testing.T) {
	type event struct {
		at     int    // seconds
		states string // told and updated; empty: a message is heard instead
		heard  int
		active int // after it
		reason Reason
	}
	for _, tt := range []struct {
		name   string
		events []event
	}{
		{"first other that is up, and no way back", []event{
			{1, "-++", 0, 1, LinkDown},
			{2, "+++", 0, 1, 0},
			{3, "+-+", 0, 0, LinkDown},
			{4, "--+", 0, 2, LinkDown},
			{5, "---", 0, 2, 0},
			{6, "-+-", 0, 1, LinkDown},
		}},
		{"heard elsewhere, but the active link is in use", []event{
			{1, "", 0, 0, 0},
			{2, "", 1, 0, 0},
			{3, "", 0, 0, 0},
			{6, "", 1, 0, 0},
			{7, "", 0, 0, 0},
			{12, "", 1, 0, 0},
			{13, "", 1, 1, Silent},
		}},
		{"an earlier link is followed sooner", []event{
			{1, "-++", 0, 1, LinkDown},
			{2, "+++", 0, 1, 0},
			{4, "", 0, 1, 0},
			{5, "", 0, 0, Silent},
		}},
		{"a new link gets its time", []event{
			{10, "-++", 0, 1, LinkDown},
			{11, "+++", 0, 1, 0},
			{13, "", 0, 1, 0},
			{14, "", 0, 0, Silent},
		}},
		{"heard while the active link is down", []event{
			{1, "---", 0, 0, 0},
			{2, "", 1, 0, 0},
			{3, "--+", 0, 2, LinkDown},
		}},
		{"heard on a link that is told to be down", []event{
			{1, "+-+", 0, 0, 0},
			{20, "", 1, 0, 0},
		}},
	} {
		links := fakeLinks("+++")
		c := New(0, links)
		var switches uint64
		for _, e := range tt.events {
			before := c.Active()
			var sw Switch
			var ok bool
			if e.states == "" {
				sw, ok = c.Heard(monotime.Time(e.at)*second, e.heard)
			} else {
				for i, state := range e.states {
					links[i].SetUp(state == '+', 1500)
				}
				sw, ok = c.Update(monotime.Time(e.at) * second)
			}
			if ok {
				switches++
			}
			want := Switch{}
			if e.reason != 0 {
				want = Switch{From: before, To: e.active, Reason: e.reason}
			}
			if c.Active() != e.active || sw != want || ok != (e.reason != 0) || c.Switches() != switches {
				t.Errorf("%s: at %d s: link %d is active, switch %+v; want %d, %+v", tt.name, e.at, c.Active(), sw, e.active, want)
			}
		}
	}
}

// Between a link that comes up and its Update, a message may come first.
func TestHeardBeforeUpdate(t *testing.T) {
	links := fakeLinks("--")
	c := New(0, links)
	links[1].SetUp(true, 1500)
	if sw, ok := c.Heard(second, 1); !ok || sw != (Switch{From: 0, To: 1, Reason: LinkDown}) {
		t.Errorf("switch %+v, %v", sw, ok)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

// simulated is a node of TestNodesMeet. order maps the positions of its
// configuration to cables.
type simulated struct {
	c     *Channel
	order []int
	phase monotime.Time // of its ALIVEs, one a second
}

func (n *simulated) cable() int { return n.order[n.c.Active()] }

// hear tells the channel of a message on a cable, and whether it has switched.
func (n *simulated) hear(now monotime.Time, cable int) bool {
	_, switched := n.c.Heard(now, slices.Index(n.order, cable))
	return switched
}

// Two nodes may begin on any two cables, list them in different orders, and see a
// broken one differently: one node has lost its carrier, the other one has not.
// After a while both send on the same cable, one that works, and stay there.
func TestNodesMeet(t *testing.T) {
	const (
		tick  = second / 100
		limit = 120 * second
		calm  = 30 * second
	)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		cables := 2 + r.IntN(2)
		broken := r.IntN(cables+1) - 1 // -1: none
		nodes := [2]*simulated{}
		for i := range nodes {
			nodes[i] = &simulated{
				c:     New(0, fakeLinks("+++"[:cables])),
				order: r.Perm(cables),
				phase: tick * monotime.Time(r.IntN(100)),
			}
			nodes[i].c.active = r.IntN(cables)
		}
		if seed%3 == 0 {
			// The hardest: in step, each on what is a later link for the other.
			broken = -1
			nodes[0].order, nodes[1].order = []int{0, 1, 2}[:cables], []int{1, 0, 2}[:cables]
			for _, n := range nodes {
				n.c.active, n.phase = 0, 0
			}
		}
		if broken >= 0 {
			n := nodes[r.IntN(2)]
			n.c.links[slices.Index(n.order, broken)].SetUp(false, 0)
			n.c.Update(0)
		}

		var lastSwitch monotime.Time
		for now := tick; now < limit; now += tick {
			var on [2]int // what is sent in a tick arrives after both have sent
			for i, n := range nodes {
				on[i] = -1
				if (now+n.phase)%second == 0 && n.cable() != broken {
					on[i] = n.cable()
				}
			}
			for i, n := range nodes {
				if cable := on[1-i]; cable >= 0 && n.hear(now, cable) {
					lastSwitch = now
				}
			}
		}
		if a, b := nodes[0].cable(), nodes[1].cable(); a != b || a == broken || limit-lastSwitch < calm {
			t.Errorf("seed %d: on cables %d and %d, last switch at %v; orders %v and %v, broken %d",
				seed, a, b, time.Duration(lastSwitch), nodes[0].order, nodes[1].order, broken)
		}
	}
}

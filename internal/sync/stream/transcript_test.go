package stream

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"syncd/internal/wire"
)

// Only commit the changes if you understand what caused them.
var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata with what the machines do now")

// TestTranscripts runs the operators' scripts of testdata/*.txt. A script is a list
// of paragraphs: comments (#), commands, a line of dashes, and what came of them.
// Commands:
//
//	start A [seq=100] [window=N] [queue=N] [keep]   begin a process
//	stop A                                          end it
//	add A 1 2 5-9       flows begin; update and destroy likewise; pass changes their state only
//	resync A            A wants everything of everyone
//	bulk A              A sends everything to everyone
//	corrupt B A 1 2     B loses entries that it holds of A
//	record A            keep the last HELLO of A
//	replay A            whoever is up receives it again
//	run 2s [quiet] [OPTION=WHAT,WHAT ...]           the time passes
//	show                what all hold and wait for
//
// Options of run are drop (lost), dup (arrives twice), late (arrives 5 ms later than
// it should), and tardy (50 ms). WHAT is A:KIND for the first message of this kind that A sends in
// this run, A:KIND* for all, A:* for all of every kind, each with >B behind it for
// what goes to B alone. A datagram has one message and travels for one millisecond.
func TestTranscripts(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no transcripts")
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := playScript(t, want)
			if *rewrite {
				if err := os.WriteFile(name, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			a, b := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
			for i := range max(len(a), len(b)) {
				if i >= len(a) || i >= len(b) || a[i] != b[i] {
					t.Fatalf("%s:%d: got\n%s\nwant\n%s", name, i+1, strings.Join(a[min(i, len(a)):min(i+1, len(a))], ""), strings.Join(b[min(i, len(b)):min(i+1, len(b))], ""))
				}
			}
		})
	}
}

// stage is some nodes under an operator's hand.
type stage struct {
	t        testing.TB
	w        *network
	labels   map[uint64]string // of sessions
	recorded map[string]simDatagram
	hello    map[string]simDatagram // the last one of each node
	out      bytes.Buffer
}

func newStage(t testing.TB) *stage {
	return &stage{
		t: t, w: &network{r: rand.New(rand.NewPCG(1, 1)), now: 1},
		labels: map[uint64]string{}, recorded: map[string]simDatagram{}, hello: map[string]simDatagram{},
	}
}

// do runs commands, one a line, and returns what came of them.
func (s *stage) do(script string) string {
	s.t.Helper()
	s.out.Reset()
	for line := range strings.Lines(script) {
		if words := strings.Fields(line); len(words) > 0 && words[0][0] != '#' {
			s.command(words)
		}
	}
	return s.out.String()
}

func playScript(t *testing.T, script []byte) []byte {
	s := newStage(t)
	var result bytes.Buffer
	inResult := false
	for line := range strings.Lines(string(script)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "----":
			inResult = true
			fmt.Fprintf(&result, "----\n%s", s.out.Bytes())
			s.out.Reset()
		case line == "":
			inResult = false
			result.WriteByte('\n')
		case inResult:
		default:
			fmt.Fprintln(&result, line)
			if !strings.HasPrefix(line, "#") {
				s.command(strings.Fields(line))
			}
		}
	}
	return result.Bytes()
}

// node returns the node with this name, making one if need be.
func (s *stage) node(name string) *node {
	for _, n := range s.w.nodes {
		if n.name == name {
			return n
		}
	}
	n := &node{w: s.w, name: name, down: true}
	s.w.nodes = append(s.w.nodes, n)
	return n
}

func (s *stage) command(words []string) {
	s.t.Helper()
	switch words[0] {
	case "run":
		s.run(words[1], words[2:])
	case "show":
		s.show()
	default:
		s.control(s.node(words[1]), words)
	}
	for _, n := range s.w.nodes {
		if err := check(n.m); err != nil {
			s.t.Fatalf("after %q: %s: %v", words, n.name, err)
		}
	}
	if len(s.w.wrong) > 0 {
		s.t.Fatalf("after %q: %s", words, s.w.wrong[0])
	}
}

func (s *stage) control(n *node, words []string) {
	s.t.Helper()
	switch words[0] {
	case "start":
		var cfg Config
		keep := false
		for _, w := range words[2:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "seq":
				cfg.FirstSeq = wire.Seq(s.number(value))
			case "window":
				cfg.AckWindow = s.number(value)
			case "queue":
				cfg.ResendQueue = s.number(value)
			case "keep":
				keep = true
			default:
				s.t.Fatalf("%q", words)
			}
		}
		n.start(cfg, keep)
		n.down = false
		label := n.name
		for slices.Contains(slices.Collect(maps.Values(s.labels)), label) {
			label += "'"
		}
		s.labels[n.session] = label
	case "stop":
		n.down = true
	case "resync":
		n.m.RequestResync()
	case "bulk":
		n.m.Bulk()
	case "corrupt":
		x := n.held(n.m.Owner(words[2]))
		for _, p := range s.ports(words[3:]) {
			x.remove(p)
		}
	case "record":
		s.recorded[n.name] = s.hello[n.name]
	case "replay":
		d := s.recorded[n.name]
		d.at = s.w.now
		for _, to := range s.w.nodes {
			if !to.down && to != n {
				to.inbox = append(to.inbox, d)
			}
		}
		s.print(&d, "  (recorded)")
	case "pass":
		for _, p := range s.ports(words[2:]) {
			n.pass(p)
		}
	case "add", "update", "destroy":
		for _, p := range s.ports(words[2:]) {
			if _, ok := n.byPort[p]; ok != (words[0] != "add") {
				s.t.Fatalf("%q: flow %d exists: %v", words, p, ok)
			}
			n.set(p, words[0] == "destroy")
		}
	default:
		s.t.Fatalf("unknown command %q", words)
	}
}

func (s *stage) number(v string) int {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		s.t.Fatal(err)
	}
	return int(n)
}

func (s *stage) ports(words []string) (list []uint16) {
	for _, w := range words {
		first, last, ok := strings.Cut(w, "-")
		if !ok {
			last = first
		}
		for p := s.number(first); p <= s.number(last); p++ {
			list = append(list, uint16(p))
		}
	}
	return list
}

// fate says what happens to a message on its way.
type fate struct {
	option, what, to string
	used             bool
}

func (f *fate) String() string {
	text := map[string]string{"drop": "lost", "dup": "arrives twice", "late": "arrives late", "tardy": "arrives very late"}[f.option]
	if f.to != "" {
		text += " at " + f.to
	}
	return "(" + text + ")"
}

// run lets the time pass, from one thing that happens to the next.
func (s *stage) run(d string, options []string) {
	s.t.Helper()
	duration, err := time.ParseDuration(d)
	if err != nil {
		s.t.Fatal(err)
	}
	var fates []*fate
	quiet := false
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if key == "quiet" {
			quiet = true
			continue
		}
		for _, what := range strings.Split(value, ",") {
			what, to, _ := strings.Cut(what, ">")
			fates = append(fates, &fate{option: key, what: what, to: to})
		}
	}
	w := s.w
	for stop := w.now.Add(duration); w.now < stop; {
		for _, n := range w.nodes {
			if n.down {
				n.inbox = nil
				continue
			}
			n.work()
			slices.SortStableFunc(n.inbox, func(a, b simDatagram) int { return cmp.Compare(a.at, b.at) })
			for len(n.inbox) > 0 && n.inbox[0].at <= w.now {
				d := n.inbox[0]
				n.inbox = n.inbox[1:]
				n.receive(w.now, &d)
			}
			n.turn(w.now, 28, 1000, func(b []byte) { s.send(n, b, fates, quiet) })
		}
		next := stop
		for _, n := range w.nodes {
			if n.down {
				continue
			}
			next = min(next, max(w.now+1, n.m.Next(w.now)))
			for _, x := range n.owners {
				if !x.sweep.Empty() {
					next = min(next, w.now.Add(time.Millisecond))
				}
			}
			for _, d := range n.inbox {
				next = min(next, max(w.now+1, d.at))
			}
		}
		w.now = next
	}
	for _, f := range fates {
		if !f.used && !strings.HasSuffix(f.what, "*") {
			s.t.Fatalf("%s=%s: no such message was sent", f.option, f.what)
		}
	}
}

// send gives a datagram to everyone else.
func (s *stage) send(n *node, b []byte, fates []*fate, quiet bool) {
	d := simDatagram{s.w.now.Add(time.Millisecond), n, n.session, b, n.told}
	m := s.parse(&d)
	kind := m.Type.String()
	if m.Type == wire.SyncCtl {
		kind = m.Sync.Kind.String()
	}
	if kind == "HELLO" {
		s.hello[n.name] = d
	}
	what := ""
	var mine []*fate
	for _, f := range fates {
		if f.what == n.name+":"+kind && !f.used || f.what == n.name+":"+kind+"*" || f.what == n.name+":*" {
			f.used = true
			mine = append(mine, f)
			what += "  " + f.String()
		}
	}
	for _, to := range s.w.nodes {
		if to == n {
			continue
		}
		copies, d := 1, d
		for _, f := range mine {
			if f.to != "" && f.to != to.name {
				continue
			}
			switch f.option {
			case "drop":
				copies = 0
			case "dup":
				copies = 2
			case "late":
				d.at = d.at.Add(5 * time.Millisecond)
			case "tardy":
				d.at = d.at.Add(50 * time.Millisecond)
			}
		}
		for range copies {
			to.inbox = append(to.inbox, d)
		}
	}
	if !quiet {
		s.print(&d, what)
	}
}

func (s *stage) parse(d *simDatagram) wire.Message {
	rd := wire.Reader{Sync: true}
	rd.Reset(d.b)
	var m wire.Message
	rd.Next(&m)
	if m.Fault != wire.FaultNone || rd.Next(new(wire.Message)) {
		s.t.Fatalf("not one message: % x", d.b)
	}
	return m
}

func (s *stage) print(d *simDatagram, what string) {
	m := s.parse(d)
	line := fmt.Sprintf("%7.3f  %-2s %s%s", time.Duration(s.w.now).Seconds(), s.labels[d.session], s.describe(&m), what)
	fmt.Fprintln(&s.out, strings.TrimRight(line, " "))
}

// describe writes a message as "CT_NEW #101 flow 1 state 7" or "STATUS #9 for A: has up
// to 100, lacks 90-91, wants all".
func (s *stage) describe(m *wire.Message) string {
	c := m.Sync
	switch {
	case m.Type == wire.CTState:
		return fmt.Sprintf("%v #%d flow as of #%d, now state %d", m.Type, m.Seq, m.Base, m.State.Status)
	case m.Type == wire.CTEnd:
		return fmt.Sprintf("%v #%d flow as of #%d", m.Type, m.Seq, m.Base)
	case m.Type != wire.SyncCtl:
		return fmt.Sprintf("%v #%d flow %d state %d", m.Type, m.Seq, m.Flow.Orig.SrcPort, m.Flow.Status)
	}
	text := fmt.Sprintf("%v #%d", c.Kind, m.Seq)
	switch c.Kind {
	case wire.Hello:
		for i := range c.N {
			g := &c.Greets[i]
			text += fmt.Sprintf(", %s:", s.labels[g.Session])
			if g.Challenge != [16]byte{} {
				text += " challenge"
			} else {
				text += " met"
			}
			if g.Echo != [16]byte{} {
				text += " echo"
			}
		}
	case wire.Status:
		text += fmt.Sprintf(" for %s: up to %d, bulk %d", s.labels[c.To], c.Last, c.Bulk)
		if c.N > 0 {
			text += ", lacks" + describeRanges(c)
		}
		if !c.Mask.Empty() {
			text += ", wants " + describeMask(c.Mask)
		}
	case wire.Void:
		text += fmt.Sprintf(" for %s:", s.labels[c.To])
		if c.Lost {
			text += " lost"
		}
		text += describeRanges(c)
	case wire.BulkBegin, wire.BulkEnd:
		text += fmt.Sprintf(" %d: %s", c.Bulk, describeMask(c.Mask))
	case wire.Digest:
		text += fmt.Sprintf(" %d flows, bulk %d", c.Count, c.Bulk)
	}
	return text
}

func describeRanges(c *wire.Sync) (text string) {
	for _, r := range c.Ranges[:c.N] {
		text += fmt.Sprintf(" %d", r.From)
		if r.To != r.From {
			text += fmt.Sprintf("-%d", r.To)
		}
	}
	return text
}

func describeMask(m wire.Mask) string {
	if m == wire.AllBuckets {
		return "all"
	}
	text := "buckets"
	for b := range uint8(wire.Buckets) {
		if m.Has(b) {
			text += fmt.Sprintf(" %d", b)
		}
	}
	return text
}

// show writes what every node holds of the others and waits for.
func (s *stage) show() {
	for _, n := range s.w.nodes {
		if n.down {
			fmt.Fprintf(&s.out, "%s is down\n", n.name)
			continue
		}
		fmt.Fprintf(&s.out, "%s: %d due, %d in flight, %d kept, %d slots in use\n", n.name, n.m.dirty, n.m.flying, n.m.next-n.m.base, len(n.byPort))
		for _, p := range n.m.Peers(s.w.now) {
			fmt.Fprintf(&s.out, "   %s:", s.labels[p.Session])
			proven := p.Proven != 0 && s.w.now.Sub(p.Proven) < 1500*time.Millisecond
			for _, x := range []struct {
				is   bool
				name string
			}{
				{!p.Met, " not met"}, {!p.Alive, " silent"}, {!p.Counted, " does not count"}, {p.Missing > 0, " lacking"},
				{p.Wanted, " wanting"}, {p.Doubtful, " in doubt"}, {p.Wants, " is wanting"}, {p.Differed, " differed"}, {proven, " in step"},
			} {
				if x.is {
					s.out.WriteString(x.name)
				}
			}
			s.out.WriteString("; holds")
			x := n.held(p.Owner)
			for _, port := range slices.Sorted(maps.Keys(x.entries)) {
				fmt.Fprintf(&s.out, " %d:%d", port, x.entries[port].version)
				if x.entries[port].doubt {
					s.out.WriteByte('?')
				}
			}
			s.out.WriteByte('\n')
		}
	}
}

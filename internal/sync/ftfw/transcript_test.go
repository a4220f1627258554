package ftfw

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"syncd/internal/monotime"
	"syncd/internal/wire"
)

// Only commit the changes if you understand what caused them.
var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata with what the machines do now")

// TestTranscripts runs the operators' scripts of testdata/*.txt. A script is a
// list of paragraphs: comments (#), commands, a line of dashes, and what came of
// them. Commands:
//
//	start A seq=100 [resync] [window=N] [queue=N]   begin a process
//	stop A                                          end it
//	add A 1 2 5-9       flows begin; update and destroy likewise
//	resync A            A asks for the state of B
//	bulk A              A sends all of its state
//	run 2s [drop=A1,B2] [dup=A1] [swap=A1] [cut=A] [quiet]  the time passes
//	show                what both hold and wait for
//
// A1 is the first datagram that A sends in this run; swap delivers it after the
// next one, also of a later run; quiet prints nothing. A datagram travels for one
// millisecond.
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
			for i := range a {
				if i >= len(b) || a[i] != b[i] {
					t.Fatalf("%s:%d: got\n%s\nwant\n%s", name, i+1, a[i], strings.Join(b[min(i, len(b)):min(i+1, len(b))], ""))
				}
			}
			if len(b) > len(a) {
				t.Fatalf("%s:%d: missing in what came", name, len(a)+1)
			}
		})
	}
}

// stage is two nodes under an operator's hand.
type stage struct {
	t     *testing.T
	now   monotime.Time
	nodes [2]*node
	wires [2][]datagram // what each has sent and the other not received
	held  [2]*datagram  // what is to arrive after the next
	out   bytes.Buffer
}

func playScript(t *testing.T, script []byte) []byte {
	s := &stage{t: t, now: 1}
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

func (s *stage) command(words []string) {
	defer func() {
		for _, n := range s.nodes {
			if n != nil && n.m != nil {
				if err := check(n.m); err != nil {
					s.t.Fatalf("after %q: %v", words, err)
				}
			}
		}
	}()
	switch words[0] {
	case "run":
		s.runFor(words[1], words[2:])
		return
	case "show":
		s.show()
		return
	}
	i := strings.Index("AB", words[1])
	if i < 0 || len(words[1]) != 1 {
		s.t.Fatalf("no node in %q", words)
	}
	n := s.nodes[i]
	switch words[0] {
	case "start":
		cfg := Config{}
		for _, w := range words[2:] {
			key, value, _ := strings.Cut(w, "=")
			v := s.number(value)
			switch key {
			case "seq":
				cfg.FirstSeq = wire.Seq(v)
			case "resync":
				cfg.Resync = true
			case "window":
				cfg.AckWindow = v
			case "queue":
				cfg.ResendQueue = v
			default:
				s.t.Fatalf("%q", words)
			}
		}
		if n == nil {
			s.nodes[i] = newNode(words[1], cfg)
		} else {
			n.restart(cfg)
		}
	case "stop":
		n.m = nil
	case "resync":
		n.m.RequestResync()
	case "bulk":
		n.m.Bulk()
	case "add", "update", "destroy":
		for _, p := range s.ports(words[2:]) {
			switch words[0] {
			case "add":
				n.add(p, 1)
			case "update":
				n.update(p, n.flows[n.byPort[p]].mark+1)
			case "destroy":
				n.destroy(p)
			}
		}
	default:
		s.t.Fatalf("unknown command %q", words)
	}
}

func (s *stage) number(v string) int {
	if v == "" {
		return 0
	}
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

// runFor lets the time pass, from one thing that happens to the next.
func (s *stage) runFor(d string, options []string) {
	duration, err := time.ParseDuration(d)
	if err != nil {
		s.t.Fatal(err)
	}
	what := map[string][]string{}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		what[key] = strings.Split(value, ",")
	}
	const travel = time.Millisecond
	var count [2]int
	for stop := s.now.Add(duration); ; {
		for i, n := range s.nodes {
			var due, later []datagram
			for _, d := range s.wires[1-i] {
				if d.at <= s.now {
					due = append(due, d)
				} else {
					later = append(later, d)
				}
			}
			s.wires[1-i] = later
			if n == nil || n.m == nil {
				continue
			}
			for _, d := range due {
				if err := n.receive(s.now, d.b); err != nil {
					s.t.Fatal(err)
				}
			}
			n.turn(s.now, func(b []byte) {
				count[i]++
				id := fmt.Sprintf("%s%d", n.name, count[i])
				d := datagram{s.now.Add(travel), b}
				fate := ""
				switch {
				case slices.Contains(what["drop"], id), slices.Contains(what["cut"], n.name):
					fate = "  (lost)"
				case slices.Contains(what["dup"], id):
					fate = "  (arrives twice)"
					s.wires[i] = append(s.wires[i], d, d)
				case slices.Contains(what["swap"], id):
					fate = "  (arrives after the next)"
					s.held[i] = &d
				default:
					s.wires[i] = append(s.wires[i], d)
					if s.held[i] != nil {
						s.wires[i] = append(s.wires[i], datagram{d.at, s.held[i].b})
						s.held[i] = nil
					}
				}
				if what["quiet"] == nil {
					s.print(n.name, b, fate)
				}
			})
		}
		next := stop
		for i, n := range s.nodes {
			if n != nil && n.m != nil {
				next = min(next, max(s.now+1, n.next(s.now)))
			}
			for _, d := range s.wires[i] {
				next = min(next, d.at)
			}
		}
		if s.now = next; s.now >= stop {
			return
		}
	}
}

// print writes one line for each datagram, and more if it has many messages.
func (s *stage) print(from string, b []byte, fate string) {
	to := map[string]string{"A": "B", "B": "A"}[from]
	head := fmt.Sprintf("%7.3f %s->%s  ", time.Duration(s.now).Seconds(), from, to)
	fmt.Fprint(&s.out, head)
	var rd wire.Reader
	rd.Reset(b)
	var m wire.Message
	for k := 0; rd.Next(&m); k++ {
		switch {
		case k == 0:
		case k%4 == 0:
			fmt.Fprintf(&s.out, ",\n%*s", len(head), "")
		default:
			s.out.WriteString(", ")
		}
		s.out.WriteString(describe(&m))
	}
	fmt.Fprintln(&s.out, fate)
}

// describe writes a message as "CT_NEW+HELLO #101 flow 1 mark 1", "ACK #7 1-3".
func describe(m *wire.Message) string {
	name := m.Type.String()
	f := m.Flags
	if m.Type == wire.Ctl {
		f &^= wire.FlagHello | wire.FlagHelloBack
		name = f.String()
		f = m.Flags & (wire.FlagHello | wire.FlagHelloBack)
	}
	if f != 0 {
		name += "+" + strings.ReplaceAll(f.String(), "|", "+")
	}
	name += fmt.Sprintf(" #%d", m.Seq)
	switch {
	case m.Type != wire.Ctl:
		return name + fmt.Sprintf(" flow %d mark %d", m.Flow.Orig.SrcPort, m.Flow.Mark)
	case m.Flags&(wire.FlagAck|wire.FlagNack) != 0:
		return name + fmt.Sprintf(" %d-%d", m.From, m.To)
	}
	return name
}

func (s *stage) show() {
	for i, n := range s.nodes {
		if n == nil || n.m == nil {
			fmt.Fprintf(&s.out, "%c is down\n", "AB"[i])
			continue
		}
		p := n.m.Peer()
		fmt.Fprintf(&s.out, "%s: %d waiting, %d in flight, %d slots in use", n.name, p.Dirty, p.Unacked, len(n.byPort))
		for _, x := range []struct {
			set  bool
			name string
		}{
			{!p.HelloDone, "peer has not answered HELLO"}, {p.Helloing, "peer says HELLO"}, {p.Silent, "peer silent"},
			{p.BulkRunning, "bulk running"}, {p.ResyncWanted, "resync wanted"}, {n.doubt, "in doubt"},
		} {
			if x.set {
				s.out.WriteString(", " + x.name)
			}
		}
		s.out.WriteString("; holds")
		held := n.foreign()
		for _, p := range ports(held) {
			fmt.Fprintf(&s.out, " %d:%d", p, held[p])
		}
		s.out.WriteByte('\n')
	}
}

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/flow"
)

// expecter makes flows with helpers and what they expect in the kernel of a node.
type expecter struct {
	t testing.TB
	w *ctnetlink.Writer
}

func newExpecter(t testing.TB, netNS int) *expecter {
	t.Helper()
	w, err := ctnetlink.NewWriter(ctnetlink.WriterConfig{NetNS: netNS})
	ok(t, err)
	t.Cleanup(func() { w.Close() })
	return &expecter{t, w}
}

func (e *expecter) flush() {
	e.t.Helper()
	ok(e.t, e.w.Flush(func(i int, errno unix.Errno) { e.t.Fatalf("request %d: %v", i, errno) }))
}

// expectation returns master i and what it expects: passive and active transfers of
// FTP with and without translation, and the media of SIP.
func expectation(i int) (m flow.Flow, x flow.Expect) {
	v6 := i%4 == 3
	addr := func(last byte) (a [16]byte) {
		if v6 {
			return [16]byte{0x20, 1, 0xd, 0xb8, 5: 7, 15: last}
		}
		return [16]byte{198, 18, 7, last}
	}
	m.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: addr(1), Dst: addr(2), SrcPort: uint16(2000 + i), DstPort: 21}
	if v6 {
		m.Orig.Family = flow.IPv6
	}
	m.Has = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasHelper
	m.Status, m.Timeout = flow.StatusSeenReply|flow.StatusAssured|flow.StatusConfirmed, 1000
	m.Helper, _ = flow.MakeName("ftp")
	if i%4 == 2 {
		m.Helper, _ = flow.MakeName("sip")
		m.Orig.Proto, m.Orig.DstPort = flow.UDP, 5060
		x.Class = 2
	} else {
		m.Has |= flow.HasTCP
		m.TCPState = flow.TCPEstablished
	}
	x.Master, x.Tuple = m.Orig, m.Orig
	x.Tuple.SrcPort, x.Tuple.DstPort = 0, uint16(40000+i)
	x.Mask = flow.Tuple{Family: m.Orig.Family, Proto: m.Orig.Proto, DstPort: 0xffff}
	for j := range m.Orig.AddrLen() {
		x.Mask.Src[j], x.Mask.Dst[j] = 0xff, 0xff
	}
	x.Has = flow.ExpectHasClass | flow.ExpectHasFlags | flow.ExpectHasHelper
	x.Helper = m.Helper
	if i%4 == 1 { // active, through source translation
		x.Tuple.Src, x.Tuple.Dst = m.Orig.Dst, addr(200)
		x.NAT = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: m.Orig.Src, SrcPort: 4000}
		x.NATDir = flow.DirReply
		copy(x.Fn[:], "nat-follow-master")
		x.Has |= flow.ExpectHasNAT | flow.ExpectHasFn
	}
	m.Reply, _ = m.Orig.Inverse()
	if i%4 == 1 {
		m.Reply.Dst = addr(200)
	}
	return m, x
}

// expectLines returns the expectations of a text as conntrack(8) prints them, sorted,
// without the seconds that pass and what we or conntrackd add.
func expectLines(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if i := strings.Index(line, "proto="); i >= 0 && strings.Contains(line, "master-src=") {
			line, _, _ = strings.Cut(strings.TrimSpace(line[i:]), " [")
			lines = append(lines, expectSpace.ReplaceAllString(line, " "))
		}
	}
	slices.Sort(lines)
	return lines
}

var expectSpace = regexp.MustCompile(` +`)

// Expectations in the kernel of one node are in the external cache of the other, with
// all that conntrackd's dialect can tell; their ends are told; and a peer that starts
// later gets them all.
func TestExpectationsReplicated(t *testing.T) {
	roles := append([]roles{{ours, ours}}, allRoles...)
	for i, r := range roles {
		sealed := i == 0
		name := r.String()
		if sealed {
			name = "syncd dialect"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			need(t, "conntrack")
			d := layDuo(t, r, udp4, duoOptions{sealed: sealed, expectations: true})
			e := newExpecter(t, d.nA.FD())
			const n = 40
			add := func(i int) {
				m, x := expectation(i)
				_, err := e.w.Add(ctnetlink.OpCreate, &m, ctnetlink.CreateOptions{})
				ok(t, err)
				_, err = e.w.AddExpect(ctnetlink.OpCreate, &x)
				ok(t, err)
				e.flush()
			}
			for i := range n / 2 {
				add(i) // found by a dump
			}
			d.startA()
			d.startB()
			for i := n / 2; i < n; i++ {
				add(i) // told by events
			}
			kernel := func() []string {
				var all []string
				for _, family := range []string{"ipv4", "ipv6"} {
					// What it says to the standard error may come in the middle of a line.
					out, err := d.nA.Output(d.nA.Command("sh", "-c", "conntrack -L expect -f "+family+" 2>/dev/null"))
					ok(t, err)
					all = append(all, expectLines(string(out))...)
				}
				slices.Sort(all)
				return all
			}
			external := func() []string {
				if d.b.real {
					return expectLines(d.b.conntrackd("-e", "expect"))
				}
				var text strings.Builder
				ok(t, d.b.ctl.Dump(t.Context(), ctl.External, func(e *ctl.DumpEntry) error {
					if e.Expect != nil {
						fmt.Fprintf(&text, "%s\n", e.AppendText(nil))
					}
					return nil
				}))
				return expectLines(text.String())
			}
			same := func(when string, want int) {
				t.Helper()
				if got := len(kernel()); got != want {
					t.Fatalf("%s: %d expectations in the kernel, want %d", when, got, want)
				}
				var got []string
				defer func() {
					if t.Failed() {
						t.Errorf("%s: -kernel +held\n%s", when, cmp.Diff(kernel(), got))
					}
				}()
				waitFor(t, 10*time.Second, when+": the peer holds what is expected", func() bool {
					got = external()
					return slices.Equal(got, kernel())
				})
			}
			same("at first", n)
			if !d.b.real { // what the text does not show
				ok(t, d.b.ctl.Dump(t.Context(), ctl.External, func(e *ctl.DumpEntry) error {
					if e.Expect == nil {
						return nil
					}
					_, want := expectation(int(e.Expect.Tuple.DstPort) - 40000)
					if !flow.SameExpect(e.Expect, &want) {
						return fmt.Errorf("held %v, made %v", e.Expect, &want)
					}
					return nil
				}))
			}
			for i := 0; i < n; i += 3 {
				m, x := expectation(i)
				var err error
				if i%2 == 0 {
					_, err = e.w.AddExpect(ctnetlink.OpDelete, &x)
				} else {
					_, err = e.w.Add(ctnetlink.OpDelete, &m, ctnetlink.CreateOptions{})
				}
				ok(t, err)
			}
			e.flush()
			same("after some ended", n-n/3-1)
			if r.sender == theirs {
				return // it sends nothing unasked
			}
			d.b.Stop()
			d.b.Start()
			same("after a restart of the peer", n-n/3-1)
		})
	}
}

// With filter.expectations only those of selected helpers are replicated, and a reload
// changes that.
func TestExpectationsSelected(t *testing.T) {
	d := layDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: true, syncd: "[filter]\nexpectations = [\"sip\"]"})
	d.startA()
	d.startB()
	e := newExpecter(t, d.nA.FD())
	for i := range 8 {
		m, x := expectation(i)
		_, err := e.w.Add(ctnetlink.OpCreate, &m, ctnetlink.CreateOptions{})
		_, errX := e.w.AddExpect(ctnetlink.OpCreate, &x)
		ok(t, errors.Join(err, errX))
	}
	e.flush()
	waitFor(t, 10*time.Second, "the peer holds those of SIP", func() bool { return d.b.expectations(ctl.External) == 2 })
	st := d.a.Stats().Events
	if st.Expects != 8 || st.ExpectsLeftOut != 6 {
		t.Errorf("%d events about expectations, %d left out", st.Expects, st.ExpectsLeftOut)
	}
	if s := d.b.Status(); s.External.Expects != 2 || s.External.Entries != 10 {
		t.Errorf("status: %+v", s.External)
	}
	d.opts.syncd = "[filter]\nexpectations = true"
	d.a.write(fmt.Sprintf("[node]\nname = %q\nsocket = %q\nstate_dir = \"\"\n%s", d.nA.Name(), d.a.socket, d.configOf(ours, 1)))
	done, err := d.a.ctl.Reload(t.Context())
	ok(t, err)
	if !strings.Contains(done.Message, "filter.expectations") {
		t.Errorf("reload says %q", done.Message)
	}
	waitFor(t, 10*time.Second, "the peer holds all", func() bool { return d.b.expectations(ctl.External) == 8 })
}

package ctnetlink

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"syncd/internal/flow"
)

// withHelper returns a flow that has the helper of this name.
func withHelper(name string, orig flow.Tuple) flow.Flow {
	f := established(orig)
	f.Helper, _ = flow.MakeName(name)
	f.Has |= flow.HasHelper
	return f
}

// expectOf returns an expectation of a connection to dst, from any port.
func expectOf(master *flow.Flow, tup flow.Tuple) flow.Expect {
	x := flow.Expect{
		Master: master.Orig, Tuple: tup, Mask: exactMask(&tup), Helper: master.Helper,
		Has:     flow.ExpectHasTimeout | flow.ExpectHasFlags | flow.ExpectHasClass | flow.ExpectHasHelper,
		Timeout: 300, // the ftp helper's
	}
	x.Tuple.Zone, x.Mask.Zone = master.Orig.Zone, 0
	return x
}

// follow adds what the NAT helper adds: the expected connection goes on to addr:port
// of src in this direction of the master.
func follow(x flow.Expect, dir uint32, src flow.Tuple) flow.Expect {
	x.NAT = flow.Tuple{Family: src.Family, Proto: src.Proto, Src: src.Src, SrcPort: src.SrcPort}
	x.NATDir = dir
	copy(x.Fn[:], "nat-follow-master")
	x.Has |= flow.ExpectHasNAT | flow.ExpectHasFn
	return x
}

// expectSamples are masters, each with an expectation of it.
func expectSamples() (masters []flow.Flow, expects []flow.Expect) {
	add := func(m flow.Flow, x flow.Expect) {
		masters, expects = append(masters, m), append(expects, x)
	}
	ftp4 := func(port uint16) flow.Flow {
		return withHelper("ftp", tuple(flow.TCP, "192.0.2.1", "198.51.100.1", port, 21))
	}
	m := ftp4(1001)
	add(m, expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2001))) // passive
	m = ftp4(1002)
	add(m, expectOf(&m, tuple(flow.TCP, "198.51.100.1", "192.0.2.1", 0, 2002))) // active
	m = ftp4(1003)
	m.Reply.Dst = tuple(flow.TCP, "203.0.113.9", "203.0.113.9", 0, 0).Dst
	add(m, follow(expectOf(&m, tuple(flow.TCP, "198.51.100.1", "203.0.113.9", 0, 2003)), flow.DirReply,
		tuple(flow.TCP, "192.0.2.1", "192.0.2.1", 2003, 0))) // active through source translation
	m = ftp4(1004)
	add(m, follow(expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2004)), flow.DirOriginal,
		tuple(flow.TCP, "198.51.100.200", "198.51.100.200", 3004, 0)))
	m = ftp4(1005)
	x := expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1234, 2005)) // a source port that counts
	x.Flags = flow.ExpectFlagPermanent
	add(m, x)
	m = ftp4(1006)
	m.Orig.Zone, m.Reply.Zone = 9, 9
	add(m, expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2001))) // as the first, in another zone
	m = withHelper("ftp", tuple(flow.TCP, "2001:db8::1", "2001:db8:1::1", 1007, 21))
	add(m, follow(expectOf(&m, tuple(flow.TCP, "2001:db8::1", "2001:db8:1::1", 0, 2007)), flow.DirOriginal,
		tuple(flow.TCP, "2001:db8:2::77", "2001:db8:2::77", 3007, 0)))
	m = withHelper("sip", tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 5060, 5060))
	x = expectOf(&m, tuple(flow.UDP, "198.51.100.1", "192.0.2.1", 0, 4000))
	x.Class, x.Timeout = 2, 180 // audio
	add(m, x)
	m = withHelper("tftp", tuple(flow.UDP, "192.0.2.1", "198.51.100.1", 1009, 69))
	add(m, expectOf(&m, tuple(flow.UDP, "198.51.100.1", "192.0.2.1", 0, 1009)))
	return masters, expects
}

// doExpect carries out one request.
func doExpect(t testing.TB, w *Writer, op Op, x *flow.Expect) (errno unix.Errno) {
	t.Helper()
	if _, err := w.AddExpect(op, x); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(func(_ int, err unix.Errno) { errno = err }); err != nil {
		t.Fatal(err)
	}
	return errno
}

// sameAsMade compares what the kernel tells of an expectation with what it was made
// from.
func sameAsMade(t *testing.T, what string, got, want flow.Expect) {
	t.Helper()
	if got.Has&flow.ExpectHasID == 0 {
		t.Errorf("%s: no id: %+v", what, got)
	}
	if got.Timeout > want.Timeout || got.Timeout+5 < want.Timeout {
		t.Errorf("%s: timeout %d, want %d", what, got.Timeout, want.Timeout)
	}
	if !flow.SameExpect(&got, &want) {
		got.Timeout, got.ID, got.Has = want.Timeout, want.ID, got.Has&^flow.ExpectHasID
		diff(t, what, got, want)
	}
}

// TestExpectRoundTrip makes expectations of every kind in the real kernel, gives them
// timeouts, and reads them back by get, dump and event.
func TestExpectRoundTrip(t *testing.T) {
	ns := newNS(t, "expect")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{})
	masters, expects := expectSamples()
	byMaster := map[flow.Tuple]int{}
	for i := range masters {
		mustDo(t, w, OpCreate, &masters[i], CreateOptions{})
		if errno := doExpect(t, w, OpCreate, &expects[i]); errno != 0 {
			t.Fatalf("create %v: %v", expects[i].Tuple, errno)
		}
		m := masters[i].Orig
		m.Zone = 0
		byMaster[m] = i
		var got flow.Expect
		if err := w.GetExpect(&expects[i].Tuple, &got); err != nil {
			t.Fatalf("get %v: %v", expects[i].Tuple, err)
		}
		sameAsMade(t, fmt.Sprintf("get %d", i), got, expects[i])

		expects[i].Timeout = 1000 + 100*uint32(i)
		if errno := doExpect(t, w, OpUpdate, &expects[i]); errno != 0 {
			t.Fatalf("update %v: %v", expects[i].Tuple, errno)
		}
	}
	var got []flow.Expect
	if err := DumpExpects(t.Context(), ns.fd(), func(x *flow.Expect) error {
		got = append(got, *x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(expects) {
		t.Fatalf("%d expectations dumped, want %d", len(got), len(expects))
	}
	noZone := func(x flow.Expect) flow.Expect { x.Tuple.Zone, x.Master.Zone = 0, 0; return x } // the kernel does not tell it
	for _, x := range got {
		i, ok := byMaster[x.Master]
		if !ok {
			t.Fatalf("dumped with an unknown master: %+v", x)
		}
		sameAsMade(t, fmt.Sprintf("dump %d", i), x, noZone(expects[i]))
		x.Tuple.Zone, x.Master.Zone = expects[i].Tuple.Zone, expects[i].Tuple.Zone

		// Another id spares it, its own does not.
		x.ID ^= 1
		if errno := doExpect(t, w, OpDelete, &x); errno != unix.ENOENT {
			t.Errorf("delete %d with another id: %v", i, errno)
		}
		x.ID ^= 1
		if errno := doExpect(t, w, OpDelete, &x); errno != 0 {
			t.Errorf("delete %d: %v", i, errno)
		}
		var none flow.Expect
		if err := w.GetExpect(&x.Tuple, &none); !errors.Is(err, unix.ENOENT) {
			t.Errorf("get %d after its end: %v", i, err)
		}
	}
	waitEvents(t, s.Listener, 3*len(masters))
	s.stop()
	if s.Stats().Bad != 0 {
		t.Errorf("%d bad messages", s.Stats().Bad)
	}
	var created, destroyed int
	for i := range s.events {
		ev := &s.events[i]
		if ev.Expect == 0 {
			continue
		}
		x := s.expects[i]
		j := byMaster[x.Master]
		if ev.PortID != w.PortID() || ev.Flow != (flow.Flow{}) {
			t.Errorf("event %+v", ev)
		}
		switch want := noZone(expects[j]); ev.Kind {
		case flow.EventNew:
			created++
			want.Timeout = x.Timeout // the helper's then
			sameAsMade(t, fmt.Sprintf("new %d", j), x, want)
		case flow.EventDestroy:
			destroyed++
			sameAsMade(t, fmt.Sprintf("destroy %d", j), x, want)
		default:
			t.Errorf("event kind %v", ev.Kind)
		}
	}
	if created != len(masters) || destroyed != len(masters) {
		t.Errorf("%d created, %d destroyed of %d", created, destroyed, len(masters))
	}
}

// TestExpectErrors is what the kernel says when it does not take one.
func TestExpectErrors(t *testing.T) {
	ns := newNS(t, "expecterr")
	w := ns.writer()
	m := withHelper("ftp", tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1001, 21))
	plain := established(tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1002, 22))
	second := withHelper("ftp", tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1003, 21))
	for _, f := range []flow.Flow{m, plain, second} {
		mustDo(t, w, OpCreate, &f, CreateOptions{})
	}
	there := expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2001))
	if errno := doExpect(t, w, OpCreate, &there); errno != 0 {
		t.Fatal(errno)
	}
	missing := m
	missing.Orig.SrcPort = 9
	other := tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2002)
	wide := expectOf(&second, tuple(flow.TCP, "192.0.2.0", "198.51.100.1", 0, 2001))
	wide.Mask.Src[3] = 0
	badFn := expectOf(&m, other)
	copy(badFn.Fn[:], "no-such-function")
	badFn.Has |= flow.ExpectHasFn
	badClass := expectOf(&m, other)
	badClass.Class = 9
	for what, c := range map[string]struct {
		op   Op
		x    flow.Expect
		want unix.Errno
	}{
		"there":            {OpCreate, there, unix.EEXIST},
		"of another":       {OpCreate, expectOf(&second, there.Tuple), unix.EEXIST},
		"overlap":          {OpCreate, wide, unix.EBUSY},
		"no master":        {OpCreate, expectOf(&missing, other), unix.ENOENT},
		"no helper":        {OpCreate, expectOf(&plain, other), unix.EOPNOTSUPP},
		"unknown function": {OpCreate, badFn, unix.EINVAL},
		"unknown class":    {OpCreate, badClass, unix.EINVAL},
		"update of none":   {OpUpdate, expectOf(&m, other), unix.ENOENT},
		"delete of none":   {OpDelete, expectOf(&m, other), unix.ENOENT},
	} {
		if errno := doExpect(t, w, c.op, &c.x); errno != c.want {
			t.Errorf("%s: %v, want %v", what, errno, c.want)
		}
	}
	// The ftp helper allows one: the newer one takes its place.
	if errno := doExpect(t, w, OpCreate, ptr(expectOf(&m, other))); errno != 0 {
		t.Errorf("second of a master: %v", errno)
	}
	var got []flow.Tuple
	if err := DumpExpects(t.Context(), ns.fd(), func(x *flow.Expect) error { got = append(got, x.Tuple); return nil }); err != nil {
		t.Fatal(err)
	}
	diff(t, "left", got, []flow.Tuple{other})

	bad := there
	bad.Master.Family = 0
	if _, err := w.AddExpect(OpCreate, &bad); !errors.Is(err, ErrFamily) {
		t.Errorf("no family: %v", err)
	}
	for range MaxBatch {
		if _, err := w.AddExpect(OpUpdate, &there); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.AddExpect(OpUpdate, &there); err != ErrBatchFull {
		t.Errorf("full batch: %v", err)
	}
	w.Reset()
}

func ptr[T any](v T) *T { return &v }

// TestExpectDiesWithMaster: the kernel tells of it, after the master or before it.
func TestExpectDiesWithMaster(t *testing.T) {
	ns := newNS(t, "expectmaster")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{})
	m := withHelper("ftp", tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1001, 21))
	mustDo(t, w, OpCreate, &m, CreateOptions{})
	x := expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2001))
	if errno := doExpect(t, w, OpCreate, &x); errno != 0 {
		t.Fatal(errno)
	}
	mustDo(t, w, OpDelete, &m, CreateOptions{})
	waitEvents(t, s.Listener, 4)
	s.stop()
	var order []string
	for i := range s.events {
		what := "flow"
		if s.events[i].Expect != 0 {
			what = "expectation"
		}
		order = append(order, fmt.Sprintf("%v %s by us %v", s.events[i].Kind, what, s.events[i].PortID == w.PortID()))
	}
	diff(t, "order", order, []string{
		"NEW flow by us true", "NEW expectation by us true", "DESTROY flow by us true", "DESTROY expectation by us false",
	})
}

// TestListenManyExpects: more expectations than a batch holds come in order, between
// flows.
func TestListenManyExpects(t *testing.T) {
	ns := newNS(t, "expectmany")
	w := ns.writer()
	s := listen(t, ns, ListenConfig{Gather: time.Millisecond})
	const n = 3*flow.ExpectBatchSize + 1
	for i := range uint16(n) {
		m := withHelper("ftp", tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 1000+i, 21))
		if _, err := w.Add(OpCreate, &m, CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		x := expectOf(&m, tuple(flow.TCP, "192.0.2.1", "198.51.100.1", 0, 2000+i))
		if _, err := w.AddExpect(OpCreate, &x); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(func(i int, errno unix.Errno) { t.Errorf("request %d: %v", i, errno) }); err != nil {
		t.Fatal(err)
	}
	waitEvents(t, s.Listener, 2*n)
	s.stop()
	if len(s.events) != 2*n {
		t.Fatalf("%d events", len(s.events))
	}
	for i := range s.events {
		ev, k := &s.events[i], uint16(i/2)
		switch {
		case i%2 == 0 && (ev.Expect != 0 || ev.Flow.Orig.SrcPort != 1000+k),
			i%2 == 1 && (ev.Expect == 0 || s.expects[i].Tuple.DstPort != 2000+k || s.expects[i].Master.SrcPort != 1000+k):
			t.Fatalf("event %d is %+v, expectation %+v", i, ev, s.expects[i])
		}
	}
}

// recordedExpects returns the messages of testdata/expects.txt: events and a dump of each
// of expectSamples.
func recordedExpects(t testing.TB) [][]byte { t.Helper(); return recordedIn(t, "testdata/expects.txt") }

func TestDecodeExpectRecorded(t *testing.T) {
	_, expects := expectSamples()
	seen := map[int]int{}
	var kinds [flow.EventDump + 1]int
	for _, msg := range recordedExpects(t) {
		var x flow.Expect
		kind, port, err := DecodeExpect(msg, &x)
		if err != nil {
			t.Fatalf("%x: %v", msg, err)
		}
		kinds[kind]++
		if port != native.Uint32(msg[12:]) {
			t.Errorf("port %d", port)
		}
		for i := range expects {
			want := expects[i]
			want.Tuple.Zone, want.Master.Zone = 0, 0
			if flow.SameExpect(&x, &want) {
				seen[i]++
			}
		}
	}
	for i := range expects {
		if seen[i] < 2 {
			t.Errorf("expectation %d was decoded %d times", i, seen[i])
		}
	}
	if kinds[flow.EventNew] == 0 || kinds[flow.EventUpdate] == 0 || kinds[flow.EventDestroy] == 0 {
		t.Errorf("kinds %v", kinds)
	}
}

// TestDumpExpectsOracle compares a dump with what ti-mo/conntrack makes of it.
func TestDumpExpectsOracle(t *testing.T) {
	ns := newNS(t, "expectoracle")
	w := ns.writer()
	masters, expects := expectSamples()
	for i := range masters {
		mustDo(t, w, OpCreate, &masters[i], CreateOptions{})
		if errno := doExpect(t, w, OpCreate, &expects[i]); errno != 0 {
			t.Fatal(errno)
		}
	}
	c, err := conntrack.Dial(&netlink.Config{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	theirs, err := c.DumpExpect()
	if err != nil {
		t.Fatal(err)
	}
	byID := map[uint32]conntrack.Expect{}
	for _, o := range theirs {
		o.Timeout = 0
		byID[o.ID] = o
	}
	n := 0
	if err := DumpExpects(t.Context(), ns.fd(), func(x *flow.Expect) error {
		n++
		want := conntrack.Expect{
			ID: x.ID, TupleMaster: oracleTuple(&x.Master), Tuple: oracleTuple(&x.Tuple), Mask: oracleTuple(&x.Mask),
			HelpName: x.Helper.String(), Function: cString(x.Fn[:]), Flags: x.Flags, Class: x.Class,
		}
		if x.Has&flow.ExpectHasNAT != 0 {
			want.NAT = conntrack.ExpectNAT{Direction: x.NATDir != 0, Tuple: oracleTuple(&x.NAT)}
		}
		diff(t, "expectation", fmt.Sprintf("%+v", byID[x.ID]), fmt.Sprintf("%+v", want))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != len(expects) || len(theirs) != n {
		t.Errorf("%d and %d of %d", n, len(theirs), len(expects))
	}
}

// expectEntry is a message about an expectation with these attributes besides the
// tuples.
func expectEntry(attrs ...[]byte) []byte {
	b := appendHeader(nil, msgExpectNew, 0, 0, flow.IPv4)
	b = appendTuple(b, ctaExpectMaster, &anyTuple, 0)
	b = appendTuple(b, ctaExpectTuple, &anyTuple, 0)
	return finish(append(b, bytes.Join(attrs, nil)...), 0)
}

func TestDecodeExpectRefuses(t *testing.T) {
	header := func(typ uint16, tuples ...uint16) []byte {
		b := appendHeader(nil, typ, 0, 0, flow.IPv4)
		for _, num := range tuples {
			b = appendTuple(b, num, &anyTuple, 0)
		}
		return finish(b, 0)
	}
	for name, msg := range map[string][]byte{
		"nothing":              nil,
		"no nfgenmsg":          expectEntry()[:nlHeaderLen],
		"length beyond data":   expectEntry()[:len(expectEntry())-1],
		"entry":                header(msgNew, ctaExpectMaster, ctaExpectTuple),
		"get":                  header(msgExpectGet, ctaExpectMaster, ctaExpectTuple),
		"no tuple":             header(msgExpectNew, ctaExpectMaster),
		"no master":            header(msgExpectNew, ctaExpectTuple),
		"attribute too long":   expectEntry([]byte{255, 0, ctaExpectFlags, 0}),
		"timeout of 2 octets":  expectEntry(attr(ctaExpectTimeout, 1, 2)),
		"class of no octets":   expectEntry(attr(ctaExpectClass)),
		"mask without address": expectEntry(nest(ctaExpectMask, nest(ctaTupleProto, attr(ctaProtoNum, 6)))),
		"direction too short":  expectEntry(nest(ctaExpectNAT, attr(ctaExpectNATDir, 1))),
		"zone of 1 octet":      expectEntry(attr(ctaExpectZone, 1)),
	} {
		var x flow.Expect
		if _, _, err := DecodeExpect(msg, &x); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var x flow.Expect
	if _, _, err := DecodeExpect(expectEntry(nest(ctaExpectNAT, attr(ctaExpectNATDir, 0, 0, 0, 1)),
		attr(ctaExpectHelper, []byte("a-name-longer-than-15\x00")...), attr(ctaExpectFn, 0), attr(99, 1),
		attr(ctaExpectZone, 0, 5)), &x); err != nil {
		t.Fatal(err)
	}
	if x.Has != flow.ExpectHasHelper || x.NATDir != 0 || x.Helper.String() != "a-name-longer-t" ||
		x.Tuple.Zone != 5 || x.Master.Zone != 5 {
		t.Errorf("%+v", x)
	}
}

func TestExpectAllocates(t *testing.T) {
	msgs := recordedExpects(t)
	_, expects := expectSamples()
	var x flow.Expect
	buf := make([]byte, 0, maxRequestLen)
	if n := testing.AllocsPerRun(10, func() {
		for _, msg := range msgs {
			if _, _, err := DecodeExpect(msg, &x); err != nil {
				t.Fatal(err)
			}
		}
		for i := range expects {
			for op := OpCreate; op <= OpDelete; op++ {
				if _, err := appendExpect(buf[:0], op, 1, &expects[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecodeExpect(f *testing.F) {
	for _, msg := range recordedExpects(f) {
		f.Add(msg)
	}
	f.Add(expectEntry(nest(ctaExpectNAT, attr(ctaExpectNATDir, 0, 0, 0, 1))))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var a flow.Expect
		_, _, err := DecodeExpect(msg, &a)
		// What x held before must not matter.
		b := flow.Expect{Has: ^flow.ExpectAttrs(0), Class: 7, Master: anyTuple, NAT: anyTuple}
		_, _, err2 := DecodeExpect(msg, &b)
		if (err == nil) != (err2 == nil) || err == nil && a != b {
			t.Fatalf("two results: %v %v\n%+v\n%+v", err, err2, a, b)
		}
		if err != nil {
			return
		}
		// What is read can be written, and is the same when it is read again.
		req, err := appendExpect(make([]byte, 0, maxRequestLen), OpCreate, 1, &a)
		if err != nil || len(req) > maxRequestLen {
			t.Fatalf("request of %d octets: %v", len(req), err)
		}
		var c flow.Expect
		if _, _, err := DecodeExpect(req, &c); err != nil {
			t.Fatal(err)
		}
		if c.Tuple != a.Tuple && a.Tuple.HasPorts() || c.Master != a.Master && a.Master.HasPorts() ||
			c.Has&flow.ExpectHasNAT != a.Has&flow.ExpectHasNAT || c.Fn != a.Fn {
			t.Fatalf("not the same:\n%+v\n%+v", a, c)
		}
	})
}

// TestExpectTextMatchesConntrackTool: conntrack(8) lists the same lines.
func TestExpectTextMatchesConntrackTool(t *testing.T) {
	needCommand(t, "conntrack")
	ns := newNS(t, "expecttext")
	w := ns.writer()
	masters, expects := expectSamples()
	for i := range masters {
		mustDo(t, w, OpCreate, &masters[i], CreateOptions{})
		if errno := doExpect(t, w, OpCreate, &expects[i]); errno != 0 {
			t.Fatal(errno)
		}
	}
	var theirs, ours []string
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(ns.run("", "conntrack", "-L", "expect", "-f", family)) {
			if _, text, ok := strings.Cut(strings.TrimSpace(line), " proto="); ok { // without the time left
				theirs = append(theirs, text)
			}
		}
	}
	if err := DumpExpects(t.Context(), ns.fd(), func(x *flow.Expect) error {
		text, _, _ := strings.Cut(x.String(), " [")
		_, text, _ = strings.Cut(text, " proto=")
		ours = append(ours, text)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(theirs)
	slices.Sort(ours)
	if len(ours) != len(expects) {
		t.Errorf("%d lines", len(ours))
	}
	diff(t, "lines", ours, theirs)
}

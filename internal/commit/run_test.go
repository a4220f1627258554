package commit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"syncd/internal/flow"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// counts returns the figures of a report without times and examples.
func counts(r Report) Report {
	r.Duration, r.Examples, r.SkippedBy, r.RefusedBy, r.OfRelated = 0, nil, nil, nil, Counts{}
	return r
}

// mustRun commits and checks that the report adds up.
func mustRun(t testing.TB, src Source, k Kernel, o Options) Report {
	t.Helper()
	r, err := Run(context.Background(), src, k, o)
	if err != nil {
		t.Fatal(err)
	}
	checkSum(t, r)
	return r
}

func checkSum(t reporter, r Report) {
	t.Helper()
	if sum := r.Created + r.Updated + r.AlreadyThere + r.Replaced + r.Skipped + r.Refused; sum != r.Entries {
		t.Errorf("%d entries, but the parts make %d: %+v", r.Entries, sum, r)
	}
	if o := r.OfRelated; o.Created+o.Updated+o.AlreadyThere+o.Replaced+o.Skipped+o.Refused != r.Related {
		t.Errorf("%d related entries became %+v", r.Related, o)
	}
	sum := func(m map[string]int) (n int) {
		for _, v := range m {
			n += v
		}
		return n
	}
	if sum(r.SkippedBy) != r.Skipped || sum(r.RefusedBy) != r.Refused {
		t.Errorf("reasons for %d skipped and %d refused: %+v", sum(r.SkippedBy), sum(r.RefusedBy), r)
	}
	if left := sum(r.Incomplete()); sum(r.ByReason) != r.Skipped+r.Refused+left || left != r.ByReason[reasonNoHelper]+r.ByReason[reasonNoMaster]+r.ByReason[reasonNoLabels] {
		t.Errorf("%d reasons, %d entries are incomplete: %+v", sum(r.ByReason), left, r)
	}
	if len(r.Examples) > maxExamples {
		t.Errorf("%d examples", len(r.Examples))
	}
}

func TestEmptyTableTakesNoRoundTripPerEntry(t *testing.T) {
	const n = 1000
	for _, step := range []int{0, 1, 7, 600} {
		src := &sliceSource{step: step}
		for i := range n {
			src.entries = append(src.entries, Entry{Flow: tcpFlow(uint16(i))})
		}
		k := newFake(t)
		r := mustRun(t, src, k, all)
		if want := (Report{Entries: n, Created: n}); !cmp.Equal(counts(r), want) {
			t.Errorf("step %d: %+v", step, r)
		}
		if want := (n + batchSize - 1) / batchSize; k.flushes != want || k.gets != 0 {
			t.Errorf("step %d: %d flushes and %d gets, want %d and none", step, k.flushes, k.gets, want)
		}
		if len(k.entries) != n {
			t.Errorf("step %d: %d entries in the kernel", step, len(k.entries))
		}
	}
}

func TestOrder(t *testing.T) {
	childOf := func(master flow.Flow, port uint16) flow.Flow {
		return with(udpFlow(port), func(f *flow.Flow) { f.Has, f.Master = f.Has|flow.HasMaster, master.Orig })
	}
	master, other := tcpFlow(1), udpFlow(2)
	first := childOf(master, 3)
	second := childOf(first, 4)
	third := childOf(second, 5)
	fourth := childOf(third, 6)
	lone := childOf(tcpFlow(99), 7)

	k := newFake(t)
	r := mustRun(t, source(lone, fourth, third, second, other, first, master), k, all)
	want := []flow.Tuple{master.Orig, other.Orig, first.Orig, second.Orig, third.Orig, fourth.Orig, lone.Orig}
	if !slices.Equal(k.created, want) {
		t.Errorf("created in order %v\nwant %v", k.created, want)
	}
	wantReport := Report{Entries: 7, Related: 5, Created: 7, ByReason: map[string]int{reasonNoMaster: 1}}
	if diff := cmp.Diff(wantReport, counts(r)); diff != "" {
		t.Error(diff)
	}
	if r.OfRelated != (Counts{Created: 5}) {
		t.Errorf("of the related ones: %+v", r.OfRelated)
	}
	if k.find(fourth.Orig).Has&flow.HasMaster == 0 || k.find(lone.Orig).Has&flow.HasMaster != 0 {
		t.Error("the wrong one has no master")
	}
}

func TestAdopt(t *testing.T) {
	k := newFake(t)
	var flows []flow.Flow
	for i := range uint16(10) {
		f := udpFlow(i)
		flows = append(flows, f)
		if i < 7 {
			k.insert(with(f, func(f *flow.Flow) { f.Timeout = flow.ParkTimeout }))
		}
	}
	src := source(flows...)
	for i := range src.entries {
		src.entries[i].Parked = i != 5 && i != 9 // as far as one knows
		src.entries[i].Current = i%2 == 0
	}
	k.before = func(op Op, f *flow.Flow) unix.Errno {
		if op == Create && f.Orig.SrcPort < 5 {
			t.Errorf("%s is there, and was created", describe(&f.Orig))
		}
		if timeout := f.Has == flow.HasTimeout; op == Update && f.Orig.SrcPort < 5 && timeout != (f.Orig.SrcPort%2 == 0) {
			t.Errorf("the update of %s has %b", describe(&f.Orig), f.Has)
		}
		return 0
	}
	r := mustRun(t, src, k, all)
	// One look for the entry that nobody knew of, two for each of those that were gone.
	if k.gets != 5 {
		t.Errorf("%d looks", k.gets)
	}
	if want := (Report{Entries: 10, Updated: 7, Created: 3}); !cmp.Equal(counts(r), want) {
		t.Errorf("%+v", r)
	}
	for _, f := range k.entries {
		if f.Timeout != 30 {
			t.Errorf("%s: timeout %d, want 30", describe(&f.Orig), f.Timeout)
		}
	}
}

func TestManyOrphans(t *testing.T) {
	const n = 3*maxOrphans + 10
	src := &sliceSource{}
	for i := range n {
		f := udpFlow(uint16(i + 1))
		f.Has |= flow.HasMaster
		f.Master = udpFlow(0).Orig
		src.entries = append(src.entries, Entry{Flow: f})
	}
	k := newFake(t)
	r := mustRun(t, src, k, all)
	want := Report{Entries: n, Related: n, Created: n, ByReason: map[string]int{reasonNoMaster: n}}
	if diff := cmp.Diff(want, counts(r)); diff != "" {
		t.Error(diff)
	}
}

func TestErrnos(t *testing.T) {
	ftp := with(tcpFlow(1), func(f *flow.Flow) { f.Has |= flow.HasHelper; f.Helper, _ = flow.MakeName("ftp") })
	sip := with(tcpFlow(2), func(f *flow.Flow) { f.Has |= flow.HasHelper; f.Helper, _ = flow.MakeName("sip") })
	for _, tt := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.ENOMEM, "table full"},
		{unix.ENOSPC, "chain too long"},
		{unix.EINVAL, "invalid"},
		{unix.ERANGE, "invalid"},
		{unix.EOPNOTSUPP, "not supported"},
		{unix.EBUSY, "busy"},
		{unix.EMFILE, "EMFILE"},
		{unix.Errno(4000), "errno 4000"},
	} {
		k := newFake(t)
		k.before = func(op Op, f *flow.Flow) unix.Errno {
			if f.Orig.SrcPort == 7 {
				return tt.errno
			}
			return 0
		}
		r := mustRun(t, source(tcpFlow(6), tcpFlow(7), tcpFlow(8)), k, all)
		want := Report{Entries: 3, Created: 2, Refused: 1, ByReason: map[string]int{tt.want: 1}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Errorf("%v: %s", tt.errno, diff)
		}
		if want := []string{"tcp 192.0.2.1:7>198.51.100.1:443: " + tt.want}; !slices.Equal(r.Examples, want) {
			t.Errorf("examples %q, want %q", r.Examples, want)
		}
	}

	t.Run("helper", func(t *testing.T) {
		k := newFake(t)
		r := mustRun(t, source(ftp, sip), k, all)
		want := Report{Entries: 2, Created: 2, ByReason: map[string]int{"without helper": 1}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Error(diff)
		}
		if k.find(ftp.Orig).Has&flow.HasHelper == 0 {
			t.Error("the known helper is gone too")
		}
	})
	t.Run("full", func(t *testing.T) {
		k := newFake(t)
		k.max = 150
		src := &sliceSource{}
		for i := range 400 {
			src.entries = append(src.entries, Entry{Flow: tcpFlow(uint16(i))})
		}
		r := mustRun(t, src, k, all)
		want := Report{Entries: 400, Created: 150, Refused: 250, ByReason: map[string]int{"table full": 250}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Error(diff)
		}
		if len(r.Examples) != maxExamples {
			t.Errorf("%d examples", len(r.Examples))
		}
	})
	t.Run("not in words of the kernel", func(t *testing.T) {
		bad := with(tcpFlow(7), func(f *flow.Flow) { f.Orig.Family = 77 })
		r := mustRun(t, source(tcpFlow(6), bad, tcpFlow(8)), newFake(t), all)
		want := Report{Entries: 3, Created: 2, Refused: 1, ByReason: map[string]int{"EAFNOSUPPORT": 1}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("EPERM ends it", func(t *testing.T) {
		k := newFake(t)
		k.before = func(Op, *flow.Flow) unix.Errno { return unix.EPERM }
		if r, err := Run(t.Context(), source(tcpFlow(1)), k, all); !errors.Is(err, unix.EPERM) || r.Created != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("dead socket ends it", func(t *testing.T) {
		k := newFake(t)
		k.flushErr = []error{unix.EBADF}
		if _, err := Run(t.Context(), source(tcpFlow(1)), k, all); !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
	})
	t.Run("lost answers", func(t *testing.T) {
		k := newFake(t)
		k.insert(with(tcpFlow(2), func(f *flow.Flow) { f.TCPState = flow.TCPSynRecv; f.TCPFlags = [2]uint8{} }))
		k.insert(masqueraded(udpFlow(77), 5)) // takes what the fourth is translated to
		k.flushErr = []error{fmt.Errorf("receive: %w", unix.ENOBUFS)}
		clash := with(masqueraded(udpFlow(4), 5), func(f *flow.Flow) { f.Orig.Src[3] = 9 })
		r := mustRun(t, source(tcpFlow(1), tcpFlow(2), tcpFlow(3), clash), k, all)
		want := Report{Entries: 4, AlreadyThere: 2, Updated: 1, Skipped: 1, ByReason: map[string]int{reasonNATClash: 1}}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("the node went back to standby")
	k := newFake(t)
	src := &sliceSource{}
	for i := range 1000 {
		src.entries = append(src.entries, Entry{Flow: tcpFlow(uint16(i))})
	}
	k.before = func(_ Op, f *flow.Flow) unix.Errno {
		if f.Orig.SrcPort == 200 {
			cancel(why)
		}
		return 0
	}
	r, err := Run(ctx, src, k, all)
	if !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	// The batch in hand is finished.
	if r.Created != 256 || len(k.entries) != 256 {
		t.Errorf("%d created, %d there, want 256", r.Created, len(k.entries))
	}
}

func TestSourceErrors(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		src  Source
		want error
	}{
		{sourceFunc(func(Pass, []Entry) (int, error) { return 0, boom }), boom},
		{sourceFunc(func(Pass, []Entry) (int, error) { return 0, nil }), io.ErrNoProgress},
	} {
		if _, err := Run(t.Context(), tt.src, newFake(t), all); !errors.Is(err, tt.want) {
			t.Errorf("error %v, want %v", err, tt.want)
		}
	}
}

type sourceFunc func(Pass, []Entry) (int, error)

func (f sourceFunc) Next(p Pass, dst []Entry) (int, error) { return f(p, dst) }

func TestDryRunChangesNothing(t *testing.T) {
	k := newFake(t)
	there := with(tcpFlow(1), func(f *flow.Flow) { f.TCPFlags = [2]uint8{0x2b, 0x2b} })
	k.insert(there)
	k.insert(with(tcpFlow(2), func(f *flow.Flow) { f.Status &^= flow.StatusAssured; f.TCPFlags = [2]uint8{} }))
	k.insert(reversed(tcpFlow(3)))
	k.insert(masqueraded(tcpFlow(4), 4))
	k.insert(with(masqueraded(tcpFlow(5), 1005), func(f *flow.Flow) { f.Orig.Src[3] = 7 }))
	flows := []flow.Flow{
		there, tcpFlow(2), tcpFlow(3), tcpFlow(4), masqueraded(tcpFlow(5), 1005), tcpFlow(6),
		with(tcpFlow(7), func(f *flow.Flow) { f.Status |= flow.StatusDying }),
	}
	o := all
	o.DryRun = true
	r := mustRun(t, source(flows...), k, o)
	want := Report{
		DryRun: true, Entries: 7, Created: 1, Updated: 1, AlreadyThere: 1, Replaced: 1, Skipped: 3,
		ByReason: map[string]int{reasonConflict: 1, reasonNATClash: 1, reasonDying: 1},
	}
	if diff := cmp.Diff(want, counts(r)); diff != "" {
		t.Error(diff)
	}
	if k.flushes != 0 || k.changes != 0 {
		t.Errorf("%d flushes, %d changes", k.flushes, k.changes)
	}

	// And it told the truth.
	want.DryRun = false
	if diff := cmp.Diff(want, counts(mustRun(t, source(flows...), k, all))); diff != "" {
		t.Error(diff)
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFake(t)
		k.before = func(Op, *flow.Flow) unix.Errno { time.Sleep(time.Millisecond); return 0 }
		src := &sliceSource{}
		for i := range 1000 {
			src.entries = append(src.entries, Entry{Flow: tcpFlow(uint16(i))})
		}
		var seen []int
		o := all
		o.Progress = func(r *Report) {
			if r.Duration != time.Duration(r.Entries)*time.Millisecond {
				t.Errorf("%d entries after %v", r.Entries, r.Duration)
			}
			seen = append(seen, r.Entries)
		}
		r := mustRun(t, src, k, o)
		if want := []int{256, 512, 768, 1000}; !slices.Equal(seen, want) {
			t.Errorf("told at %v, want %v", seen, want)
		}
		if r.Duration != time.Second {
			t.Errorf("took %v", r.Duration)
		}
	})
}

func TestReportString(t *testing.T) {
	r := Report{Entries: 10, Created: 7, Skipped: 2, Refused: 1, Duration: 1234567 * time.Microsecond,
		ByReason: map[string]int{"table full": 1, "conflict": 2}}
	want := "committed 10 entries in 1.235s: 7 created, 0 updated, 0 already there, 0 replaced, 2 skipped, 1 refused (conflict: 2, table full: 1)"
	if got := r.String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	r = Report{DryRun: true}
	if got := r.String(); !strings.HasPrefix(got, "would commit 0 entries") || strings.Contains(got, "(") {
		t.Error(got)
	}
}

func TestDescribe(t *testing.T) {
	v6 := flow.Tuple{Family: flow.IPv6, Proto: flow.UDP, SrcPort: 1, DstPort: 2}
	v6.Src = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}
	v6.Dst = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 2}
	for want, tuple := range map[string]flow.Tuple{
		"tcp 192.0.2.1:5>198.51.100.1:443":        tcpFlow(5).Orig,
		"udp [2001:db8::1]:1>[2001:db8::2]:2":     v6,
		"icmp 192.0.2.1>198.51.100.1 type 8 id 7": plain(flow.ICMP, 7, 8<<8).Orig,
		"proto 50 192.0.2.1>198.51.100.1":         plain(50, 0, 0).Orig,
		"gre 192.0.2.1:9>198.51.100.1:10":         plain(flow.GRE, 9, 10).Orig,
	} {
		if got := describe(&tuple); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// nullKernel takes everything and remembers nothing.
type nullKernel struct{ n int }

func (k *nullKernel) Add(Op, *flow.Flow) (int, error)   { k.n++; return k.n - 1, nil }
func (k *nullKernel) Flush(func(int, unix.Errno)) error { k.n = 0; return nil }
func (k *nullKernel) Get(*flow.Tuple, *flow.Flow) error { return unix.ENOENT }

func TestCommonPathDoesNotAllocate(t *testing.T) {
	part := make([]Entry, batchSize)
	r := newRunner(&nullKernel{}, all)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		for i := range part {
			part[i].Flow = tcpFlow(uint16(i))
		}
		if err := r.commit(ctx, part); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
	if r.report.Created != r.report.Entries || r.report.Created == 0 {
		t.Errorf("%+v", r.report)
	}
}

func BenchmarkCommit(b *testing.B) {
	part := make([]Entry, batchSize)
	flows := make([]flow.Flow, batchSize)
	for i := range flows {
		flows[i] = tcpFlow(uint16(i))
	}
	r := newRunner(&nullKernel{}, all)
	b.ReportAllocs()
	for b.Loop() {
		for i := range part {
			part[i].Flow = flows[i]
		}
		if err := r.commit(b.Context(), part); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/entry")
}

// TestFullTable: a table that is full is not asked for each entry, those that are there
// are brought up to date all the same, and room that comes is used.
func TestFullTable(t *testing.T) {
	const n, limit = 10_000, 1000
	k := newFake(t)
	k.max = limit
	src := &sliceSource{}
	for i := range n {
		f := tcpFlow(uint16(i))
		src.entries = append(src.entries, Entry{Flow: f})
		if i%10 == 9 && i >= 2*limit { // 800
			k.insert(with(f, func(f *flow.Flow) { f.TCPState, f.TCPFlags = flow.TCPSynRecv, [2]uint8{} }))
		}
	}
	creates := 0
	k.before = func(op Op, f *flow.Flow) unix.Errno {
		if op == Create {
			creates++
		}
		if f.Orig.SrcPort == 9000 && op == Create {
			t.Errorf("an entry in the middle of a batch was tried")
		}
		return 0
	}
	r := mustRun(t, src, k, all)
	want := Report{Entries: n, Created: 200, Updated: 800, Refused: n - limit, ByReason: map[string]int{"table full": n - limit}}
	if diff := cmp.Diff(want, counts(r)); diff != "" {
		t.Error(diff)
	}
	if most := 200 + fullAfter + batchSize + n/batchSize + 800; creates > most {
		t.Errorf("%d creates for %d that found room, want %d at most", creates, r.Created, most)
	}

	// There is room while the next commit runs.
	k.before = func(op Op, f *flow.Flow) unix.Errno {
		if f.Orig.SrcPort == 5000 {
			k.max += 5000
		}
		return 0
	}
	r = mustRun(t, src, k, all)
	// What comes before is lost, and the batch whose first entry finds the room.
	after := (n - 5000/batchSize*batchSize - batchSize) * 9 / 10 // of ten one is there
	if r.Created < after-batchSize || r.Created > after || r.AlreadyThere != limit {
		t.Errorf("%+v: want up to %d created", counts(r), after)
	}
}

// refusing is a kernel that refuses every create, at the speed of a real one or faster.
type refusing struct {
	nullKernel
	errno unix.Errno
}

func (k *refusing) Flush(fail func(int, unix.Errno)) error {
	for i := range k.n {
		fail(i, k.errno)
	}
	k.n = 0
	return nil
}

// A million refusals are figures, not memory, and not time.
func TestRefusalsAreCheap(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOMEM, unix.ENOSPC, unix.EINVAL, unix.ENOENT} {
		part := make([]Entry, batchSize)
		r := newRunner(&refusing{errno: errno}, all)
		ctx := t.Context()
		run := func() {
			for i := range part {
				part[i].Flow = tcpFlow(uint16(i))
			}
			if err := r.commit(ctx, part); err != nil {
				t.Fatal(err)
			}
		}
		run() // the examples, the map of reasons
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("%v: %v allocations for a batch", errno, n)
		}
		if r.report.Refused != r.report.Entries || len(r.report.Examples) != maxExamples || len(r.report.ByReason) != 1 {
			t.Errorf("%v: %+v", errno, r.report)
		}
	}
}

package commit

import (
	"context"
	"errors"
	"io"
	"maps"
	"testing"
	"time"

	"syncd/internal/flow"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// expectTable behaves as the kernel's table of expectations where a commit can notice
// it: masters with helpers, and what they expect.
type expectTable struct {
	masters map[flow.Tuple]bool // whether they have a helper
	expects map[flow.Tuple]flow.Expect
	max     int // 0 for any
	batch   []expectRequest
	before  func(op Op, x *flow.Expect) unix.Errno
	flushes int
	err     error // of the next flush
}

type expectRequest struct {
	op Op
	x  flow.Expect
}

const helperTimeout = 300

func (k *expectTable) AddExpect(op Op, x *flow.Expect) (int, error) {
	if len(k.batch) == batchSize {
		return 0, ErrBatchFull
	}
	k.batch = append(k.batch, expectRequest{op, *x})
	return len(k.batch) - 1, nil
}

func (k *expectTable) Flush(fail func(int, unix.Errno)) error {
	k.flushes++
	for i := range k.batch {
		if errno := k.do(&k.batch[i]); errno != 0 && k.err == nil {
			fail(i, errno)
		}
	}
	k.batch = k.batch[:0]
	err := k.err
	k.err = nil
	return err
}

func (k *expectTable) do(q *expectRequest) unix.Errno {
	if k.before != nil {
		if errno := k.before(q.op, &q.x); errno != 0 {
			return errno
		}
	}
	old, there := k.expects[q.x.Tuple]
	helper, alive := k.masters[q.x.Master]
	switch {
	case q.op == Update && !there:
		return unix.ENOENT
	case q.op == Update:
		old.Timeout = q.x.Timeout
		k.expects[q.x.Tuple] = old
	case there:
		return unix.EEXIST
	case !alive:
		return unix.ENOENT
	case !helper:
		return unix.EOPNOTSUPP
	case k.max > 0 && len(k.expects) >= k.max:
		return unix.EMFILE
	default:
		q.x.Timeout, q.x.ID = helperTimeout, uint32(len(k.expects)+1)
		q.x.Has |= flow.ExpectHasTimeout | flow.ExpectHasID | flow.ExpectHasClass | flow.ExpectHasFlags
		k.expects[q.x.Tuple] = q.x
	}
	return 0
}

func (k *expectTable) GetExpect(t *flow.Tuple, x *flow.Expect) error {
	have, ok := k.expects[*t]
	if !ok {
		return unix.ENOENT
	}
	*x = have
	return nil
}

// expectList is a source of expectations, a few at a time.
type expectList struct {
	all   []ExpectEntry
	err   error
	eager bool // tells the end with the last ones
}

func (s *expectList) NextExpects(dst []ExpectEntry) (int, error) {
	if len(s.all) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(dst[:min(len(dst), 50)], s.all)
	if s.all = s.all[n:]; len(s.all) == 0 && s.eager {
		return n, io.EOF
	}
	return n, nil
}

func newExpectTable() *expectTable {
	return &expectTable{masters: map[flow.Tuple]bool{}, expects: map[flow.Tuple]flow.Expect{}}
}

// expectation returns number i, of a master that k has.
func (k *expectTable) expectation(i int) flow.Expect {
	m := flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}, SrcPort: uint16(1000 + i), DstPort: 21}
	k.masters[m] = true
	x := flow.Expect{Master: m, Tuple: m, Timeout: 200, Has: flow.ExpectHasTimeout | flow.ExpectHasClass | flow.ExpectHasFlags}
	x.Tuple.SrcPort, x.Tuple.DstPort = 0, uint16(2000+i)
	x.Mask = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{255, 255, 255, 255}, DstPort: 0xffff}
	return x
}

func runExpects(t *testing.T, k *expectTable, o Options, xs ...flow.Expect) Report {
	t.Helper()
	src := &expectList{eager: len(xs)%2 == 0}
	for _, x := range xs {
		src.all = append(src.all, ExpectEntry{Expect: x, Age: 20 * time.Second})
	}
	r, err := RunExpects(context.Background(), src, k, o)
	if err != nil {
		t.Fatal(err)
	}
	if sum := r.Created + r.Updated + r.AlreadyThere + r.Skipped + r.Refused; sum != r.Entries || r.Entries != len(xs) {
		t.Errorf("the report does not add up: %+v", r)
	}
	return r
}

// TestRunExpects: every entry is there afterwards, with the time that it has left.
func TestRunExpects(t *testing.T) {
	k := newExpectTable()
	var xs []flow.Expect
	for i := range 201 {
		xs = append(xs, k.expectation(i))
	}
	xs[3].Timeout = 7 // as with flows: the owner has not said that it has ended
	xs[4].Has &^= flow.ExpectHasTimeout
	r := runExpects(t, k, Options{}, xs...)
	if r.Created != 201 || len(k.expects) != 201 {
		t.Errorf("%+v, %d in the kernel", r, len(k.expects))
	}
	for i, x := range xs {
		want := uint32(180)
		switch i {
		case 3:
			want = 7
		case 4:
			want = helperTimeout
		}
		if got := k.expects[x.Tuple].Timeout; got != want {
			t.Errorf("expectation %d has %d s left, want %d", i, got, want)
		}
	}
	if k.flushes > 12 {
		t.Errorf("%d batches for 201", k.flushes)
	}
	// Once more: nothing changes, but a longer time.
	xs[5].Timeout = 1000
	r = runExpects(t, k, Options{}, xs...)
	if r.AlreadyThere != 200 || r.Updated != 1 || k.expects[xs[5].Tuple].Timeout != 980 {
		t.Errorf("%+v, %d", r, k.expects[xs[5].Tuple].Timeout)
	}
	// A fixed timeout counts for all.
	if r = runExpects(t, k, Options{Timeout: 5000}, xs[6]); r.Updated != 1 || k.expects[xs[6].Tuple].Timeout != 5000 {
		t.Errorf("%+v, %d", r, k.expects[xs[6].Tuple].Timeout)
	}
}

// TestExpectReasons: what the kernel does not take is counted by reason, and never ends
// the commit.
func TestExpectReasons(t *testing.T) {
	k := newExpectTable()
	good, gone, plain, other, unknown := k.expectation(1), k.expectation(2), k.expectation(3), k.expectation(4), k.expectation(5)
	delete(k.masters, gone.Master)
	k.masters[plain.Master] = false
	there := other
	there.Master = good.Master // another connection expects it
	k.expects[other.Tuple] = there
	overlap, late := k.expectation(6), k.expectation(7)
	k.before = func(op Op, x *flow.Expect) unix.Errno {
		switch {
		case op != Create:
		case x.Tuple == overlap.Tuple:
			return unix.EBUSY
		case x.Tuple == unknown.Tuple:
			return unix.EINVAL
		case x.Tuple == late.Tuple:
			return unix.EMFILE
		}
		return 0
	}
	r := runExpects(t, k, Options{}, good, gone, plain, other, unknown, overlap, late)
	if r.Created != 1 || k.expects[other.Tuple] != there {
		t.Errorf("%+v", r)
	}
	skipped := map[string]int{reasonConflict: 2}
	refused := map[string]int{reasonMasterGone: 1, reasonMasterPlain: 1, reasonUnknownPart: 1, reasonExpectFull: 1}
	if !maps.Equal(r.SkippedBy, skipped) || !maps.Equal(r.RefusedBy, refused) {
		t.Errorf("skipped %v, refused %v", r.SkippedBy, r.RefusedBy)
	}
	if want := "expected tcp 192.0.2.1:0>198.51.100.1:2002: " + reasonMasterGone; r.Examples[0] != want && r.Examples[1] != want {
		t.Errorf("examples %q lack %q", r.Examples, want)
	}
}

// TestExpectSame: what the kernel has in its place is ours if it does the same.
func TestExpectSame(t *testing.T) {
	for name, c := range map[string]struct {
		change func(ours, theirs *flow.Expect)
		want   int // already there
	}{
		"equal":           {func(_, _ *flow.Expect) {}, 1},
		"mask of all":     {func(_, y *flow.Expect) { y.Mask.Dst = [16]byte{255, 255, 255, 255} }, 1},
		"no mask":         {func(x, _ *flow.Expect) { x.Mask = flow.Tuple{} }, 1},
		"source mask":     {func(_, y *flow.Expect) { y.Mask.Src = [16]byte{255} }, 0},
		"class":           {func(_, y *flow.Expect) { y.Class++ }, 0},
		"class not known": {func(x, y *flow.Expect) { y.Class++; x.Has &^= flow.ExpectHasClass }, 1},
		"helper":          {func(_, y *flow.Expect) { y.Helper[0] = 'x'; y.Has |= flow.ExpectHasHelper }, 1},
		"userspace flag":  {func(x, _ *flow.Expect) { x.Flags = flow.ExpectFlagUserspace }, 1},
		"permanent flag":  {func(x, _ *flow.Expect) { x.Flags = flow.ExpectFlagPermanent }, 0},
		"translation":     {func(_, y *flow.Expect) { y.Has |= flow.ExpectHasNAT; y.NAT.SrcPort = 7 }, 0},
		"function":        {func(x, _ *flow.Expect) { x.Has |= flow.ExpectHasFn; x.Fn[0] = 'f' }, 0},
	} {
		k := newExpectTable()
		x := k.expectation(1)
		x.Timeout = 100
		y := x
		c.change(&x, &y)
		k.expects[x.Tuple] = y
		if r := runExpects(t, k, Options{}, x); r.AlreadyThere != c.want || r.AlreadyThere+r.Skipped != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestExpectRaces: what comes and goes under our hands is tried again, within bounds;
// answers that were lost are looked for.
func TestExpectRaces(t *testing.T) {
	k := newExpectTable()
	x := k.expectation(1)
	n := 0
	k.before = func(op Op, _ *flow.Expect) unix.Errno {
		if n++; op == Create && n < 3 {
			return unix.EEXIST // and gone when it is looked for
		}
		return 0
	}
	if r := runExpects(t, k, Options{}, x); r.Created != 1 {
		t.Errorf("%+v", r)
	}
	k.before = func(Op, *flow.Expect) unix.Errno { return unix.EEXIST }
	if r := runExpects(t, k, Options{}, k.expectation(2)); r.SkippedBy[reasonBusy] != 1 {
		t.Errorf("%+v", r)
	}
	// It is fulfilled before it gets its timeout.
	k.before = func(op Op, x *flow.Expect) unix.Errno {
		if op == Update {
			delete(k.expects, x.Tuple)
		}
		return 0
	}
	if r := runExpects(t, k, Options{}, k.expectation(3)); r.Created != 1 {
		t.Errorf("%+v", r)
	}
	k.before = nil
	k.err = unix.ENOBUFS
	gone := k.expectation(5)
	delete(k.masters, gone.Master)
	if r := runExpects(t, k, Options{}, k.expectation(4), gone); r.AlreadyThere != 1 || r.RefusedBy[reasonMasterGone] != 1 {
		t.Errorf("answers lost: %+v", r)
	}
}

func TestExpectDryRun(t *testing.T) {
	k := newExpectTable()
	x, y, z := k.expectation(1), k.expectation(2), k.expectation(3)
	k.expects[y.Tuple] = y
	other := z
	other.Class++
	k.expects[z.Tuple] = other
	before := maps.Clone(k.expects)
	r := runExpects(t, k, Options{DryRun: true}, x, y, z)
	if r.Created != 1 || r.AlreadyThere != 1 || r.Skipped != 1 || !r.DryRun || k.flushes != 0 {
		t.Errorf("%+v", r)
	}
	if d := cmp.Diff(before, k.expects); d != "" {
		t.Error(d)
	}
}

// TestExpectErrors: what ends a commit.
func TestExpectErrors(t *testing.T) {
	k := newExpectTable()
	broken := errors.New("broken")
	x := ExpectEntry{Expect: k.expectation(1)}
	run := func(ctx context.Context, src ExpectSource) (Report, error) { return RunExpects(ctx, src, k, Options{}) }
	if _, err := run(context.Background(), &expectList{all: []ExpectEntry{x}, err: broken}); !errors.Is(err, broken) {
		t.Errorf("source: %v", err)
	}
	k.err = broken
	if _, err := run(context.Background(), &expectList{all: []ExpectEntry{x}}); !errors.Is(err, broken) {
		t.Errorf("kernel: %v", err)
	}
	k.before = func(Op, *flow.Expect) unix.Errno { return unix.EPERM }
	if _, err := run(context.Background(), &expectList{all: []ExpectEntry{x}}); !errors.Is(err, unix.EPERM) {
		t.Errorf("no permission: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(broken)
	if r, err := run(ctx, &expectList{all: []ExpectEntry{x}}); !errors.Is(err, broken) || r.Entries != 0 {
		t.Errorf("context: %v", err)
	}
}

package commit

import (
	"fmt"
	"io"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// reporter is what the helpers need of a testing.T or rapid.T.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// fakeKernel behaves as the kernel's table does where a commit can notice it.
type fakeKernel struct {
	t       reporter
	entries map[uint32]*flow.Flow // by ID
	byTuple map[flow.Tuple]uint32 // both directions
	max     int                   // nf_conntrack_max, 0 for none
	room    int                   // of a batch, 0 for any
	helpers map[string]bool
	lastID  uint32
	// noLabels is that no rule uses labels: a create drops them, an update fails for
	// want of room after it has done all else.
	noLabels bool

	// before runs ahead of each request; a non-zero result is the kernel's
	// answer. It may change the table.
	before   func(op Op, f *flow.Flow) unix.Errno
	flushErr []error // results of the next flushes

	batch   []fakeRequest
	created []flow.Tuple // in order
	flushes int
	gets    int
	changes int // requests that changed something
	deletes int // of them
	largest int // batch
}

type fakeRequest struct {
	op Op
	f  flow.Flow
}

func newFake(t reporter) *fakeKernel {
	return &fakeKernel{
		t:       t,
		entries: map[uint32]*flow.Flow{},
		byTuple: map[flow.Tuple]uint32{},
		helpers: map[string]bool{"ftp": true},
	}
}

func (k *fakeKernel) Add(op Op, f *flow.Flow) (int, error) {
	if f.Orig.Family != flow.IPv4 && f.Orig.Family != flow.IPv6 {
		return 0, unix.EAFNOSUPPORT
	}
	if k.room > 0 && len(k.batch) == k.room {
		return 0, fmt.Errorf("fake: %w", ErrBatchFull)
	}
	k.batch = append(k.batch, fakeRequest{op, *f})
	return len(k.batch) - 1, nil
}

func (k *fakeKernel) Flush(fail func(int, unix.Errno)) error {
	k.flushes++
	k.largest = max(k.largest, len(k.batch))
	var err error
	if len(k.flushErr) > 0 {
		err, k.flushErr = k.flushErr[0], k.flushErr[1:]
	}
	for i := range k.batch {
		q := &k.batch[i]
		var errno unix.Errno
		if k.before != nil {
			errno = k.before(q.op, &q.f)
		}
		if errno == 0 {
			errno = k.do(q.op, &q.f)
		}
		if errno != 0 && err != unix.ENOBUFS {
			fail(i, errno)
		}
	}
	k.batch = k.batch[:0]
	return err
}

func (k *fakeKernel) Get(t *flow.Tuple, f *flow.Flow) error {
	k.gets++
	id, ok := k.byTuple[*t]
	if !ok {
		return unix.ENOENT
	}
	*f = *k.entries[id]
	return nil
}

func (k *fakeKernel) do(op Op, f *flow.Flow) unix.Errno {
	var errno unix.Errno
	switch op {
	case Create:
		errno = k.create(f)
	case Update:
		errno = k.update(f)
	case Delete:
		id, ok := k.byTuple[f.Orig]
		if !ok || f.Has&flow.HasID != 0 && f.ID != id {
			return unix.ENOENT
		}
		k.remove(id)
		k.deletes++
	}
	if errno == 0 {
		k.changes++
	}
	return errno
}

func (k *fakeKernel) create(f *flow.Flow) unix.Errno {
	switch {
	case f.Has&flow.HasTimeout == 0:
		return unix.EINVAL
	case k.byTuple[f.Orig] != 0:
		return unix.EEXIST
	case k.max > 0 && len(k.entries) >= k.max:
		return unix.ENOMEM
	case f.Has&flow.HasHelper != 0 && !k.helpers[f.Helper.String()]:
		return unix.EOPNOTSUPP
	case f.Status&flow.StatusConfirmed == 0 || f.Status&(flow.StatusExpected|flow.StatusDying) != 0:
		return unix.EBUSY
	case f.TCPState > flow.TCPSynSent2 || f.SCTPState > flow.SCTPHeartbeatSent:
		return unix.ERANGE
	case f.Has&flow.HasMaster != 0 && k.byTuple[f.Master] == 0:
		return unix.ENOENT
	case k.byTuple[f.Reply] != 0:
		return unix.EEXIST
	}
	k.created = append(k.created, f.Orig)
	g := *f
	if k.noLabels {
		g.Has, g.Labels = g.Has&^flow.HasLabels, [16]byte{}
	}
	k.insert(g)
	return 0
}

// insert puts f into the table whatever it is, and returns its ID.
func (k *fakeKernel) insert(f flow.Flow) uint32 {
	k.lastID++
	f.ID = k.lastID
	f.Has |= flow.HasID
	if f.Has&flow.HasMaster != 0 {
		f.Status |= flow.StatusExpected
	}
	snat, dnat := f.Translated()
	if snat {
		f.Status |= flow.StatusSrcNAT
	}
	if dnat {
		f.Status |= flow.StatusDstNAT
	}
	if k.byTuple[f.Orig] != 0 || k.byTuple[f.Reply] != 0 {
		k.t.Fatalf("fake kernel: %s is taken", describe(&f.Orig))
	}
	k.entries[f.ID] = &f
	k.byTuple[f.Orig], k.byTuple[f.Reply] = f.ID, f.ID
	return f.ID
}

func (k *fakeKernel) remove(id uint32) {
	f := k.entries[id]
	delete(k.entries, id)
	delete(k.byTuple, f.Orig)
	delete(k.byTuple, f.Reply)
}

func (k *fakeKernel) update(f *flow.Flow) unix.Errno {
	id, ok := k.byTuple[f.Orig]
	if !ok {
		return unix.ENOENT
	}
	have := k.entries[id]
	if f.Has&(flow.HasMaster|flow.HasHelper) != 0 {
		return unix.EOPNOTSUPP
	}
	if f.Has&flow.HasTimeout != 0 {
		if have.Status&flow.StatusFixedTimeout != 0 {
			return unix.EPERM
		}
		have.Timeout = f.Timeout
	}
	if f.Has&flow.HasStatus != 0 {
		const sticky = flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed
		if have.Status&^f.Status&sticky != 0 || (have.Status^f.Status)&flow.StatusExpected != 0 {
			return unix.EBUSY
		}
		have.Status |= f.Status & (sticky | flow.StatusFixedTimeout)
	}
	if f.Has&flow.HasTCP != 0 {
		have.TCPState = f.TCPState
	}
	if f.Has&flow.HasTCPFlags != 0 {
		for dir := range f.TCPFlags {
			have.TCPFlags[dir] = have.TCPFlags[dir]&^0x0f | f.TCPFlags[dir]
		}
		if f.Has&flow.HasTCPWScale != 0 && f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0 {
			have.TCPWScale = f.TCPWScale
		}
	}
	if f.Has&flow.HasSCTP != 0 {
		have.SCTPState, have.SCTPVtag = f.SCTPState, f.SCTPVtag
	}
	if f.Has&flow.HasMark != 0 {
		have.Mark = f.Mark
	}
	for dir, bit := range [2]flow.Attrs{flow.HasSeqAdjOrig, flow.HasSeqAdjRepl} {
		if f.Has&bit != 0 {
			have.SeqAdj[dir] = f.SeqAdj[dir]
		}
	}
	if f.Has&flow.HasSynproxy != 0 {
		have.Synproxy = f.Synproxy
	}
	have.Has |= f.Has &^ flow.HasLabels
	if f.Has&flow.HasLabels != 0 {
		if k.noLabels {
			return unix.ENOSPC
		}
		have.Labels, have.Has = f.Labels, have.Has|flow.HasLabels
	}
	return 0
}

// find returns the entry that holds t, or nil.
func (k *fakeKernel) find(t flow.Tuple) *flow.Flow { return k.entries[k.byTuple[t]] }

// dump calls fn with a copy of each entry.
func (k *fakeKernel) dump(fn func(*flow.Flow) error) error {
	for id := range k.lastID {
		if f := k.entries[id+1]; f != nil {
			c := *f
			if err := fn(&c); err != nil {
				return err
			}
		}
	}
	return nil
}

// sliceSource is a source over a slice, a few entries at a time.
type sliceSource struct {
	entries []Entry
	pass    Pass
	pos     int
	step    int // entries at a time, 0 for as many as are wanted
}

func (s *sliceSource) Next(p Pass, dst []Entry) (n int, err error) {
	if p != s.pass {
		s.pass, s.pos = p, 0
	}
	if s.step > 0 {
		dst = dst[:min(s.step, len(dst))]
	}
	for ; s.pos < len(s.entries); s.pos++ {
		if PassOf(&s.entries[s.pos].Flow) != p {
			continue
		}
		if n == len(dst) {
			return n, nil
		}
		dst[n] = s.entries[s.pos]
		n++
	}
	return n, io.EOF
}

func source(flows ...flow.Flow) *sliceSource {
	s := &sliceSource{}
	for _, f := range flows {
		s.entries = append(s.entries, Entry{Flow: f})
	}
	return s
}

var (
	client = [16]byte{192, 0, 2, 1}
	server = [16]byte{198, 51, 100, 1}
	public = [16]byte{203, 0, 113, 1}
)

// tcpFlow is an established connection of client port n to server port 443.
func tcpFlow(n uint16) flow.Flow {
	f := plain(flow.TCP, n, 443)
	f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	f.Timeout = 432000
	f.Status |= flow.StatusSeenReply | flow.StatusAssured
	f.TCPState = flow.TCPEstablished
	f.TCPFlags = [2]uint8{0x23, 0x23}
	f.TCPWScale = [2]uint8{7, 9}
	return f
}

func udpFlow(n uint16) flow.Flow {
	f := plain(flow.UDP, n, 53)
	f.Timeout = 30
	return f
}

func plain(proto uint8, sport, dport uint16) flow.Flow {
	f := flow.Flow{
		Orig: flow.Tuple{Src: client, Dst: server, SrcPort: sport, DstPort: dport, Family: flow.IPv4, Proto: proto},
		Has:  flow.HasReply | flow.HasStatus | flow.HasTimeout,
	}
	f.Reply, _ = f.Orig.Inverse()
	f.Status = flow.StatusConfirmed
	return f
}

// masqueraded gives f the source address public and the port.
func masqueraded(f flow.Flow, port uint16) flow.Flow {
	f.Reply.Dst, f.Reply.DstPort = public, port
	return f
}

// reversed is what a loose pickup of the first packet of the reply makes of f.
func reversed(f flow.Flow) flow.Flow {
	f.Orig, f.Reply = f.Reply, f.Orig
	return f
}

// with returns f changed by edit.
func with(f flow.Flow, edit func(*flow.Flow)) flow.Flow {
	edit(&f)
	return f
}

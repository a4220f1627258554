package commit

import (
	"testing"
	"time"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// anyFlow draws from so few flows that they often meet.
func anyFlow(t *rapid.T, what string) flow.Flow {
	var f flow.Flow
	port := rapid.Uint16Range(1, 6).Draw(t, what+" port")
	switch rapid.IntRange(0, 2).Draw(t, what+" protocol") {
	case 0:
		f = tcpFlow(port)
		f.TCPState = uint8(rapid.IntRange(0, 10).Draw(t, what+" state"))
		f.TCPFlags = rapid.SampledFrom([][2]uint8{{0, 0}, {0x23, 0x23}, {0x0b, 0x0b}, {0x03, 0}}).Draw(t, what+" flags")
	case 1:
		f = udpFlow(port)
	case 2:
		f = plain(flow.SCTP, port, 9)
		f.Has |= flow.HasSCTP | flow.HasSCTPVtags
		f.SCTPState = uint8(rapid.IntRange(0, 9).Draw(t, what+" state"))
		f.SCTPVtag = [2]uint32{rapid.Uint32Range(0, 1).Draw(t, what+" tag"), 1}
	}
	f.Status |= rapid.SampledFrom([]uint32{0x8, 0xa, 0xe}).Draw(t, what+" status")
	f.Timeout = rapid.SampledFrom([]uint32{0, 10, 100, 1000}).Draw(t, what+" timeout")
	if rapid.Bool().Draw(t, what+" translated") {
		f = masqueraded(f, rapid.Uint16Range(1001, 1004).Draw(t, what+" nat port"))
	}
	if rapid.IntRange(0, 3).Draw(t, what+" reversed") == 0 {
		f = reversed(f)
	}
	if rapid.Bool().Draw(t, what+" marked") {
		f.Mark = rapid.Uint32Range(0, 3).Draw(t, what+" mark")
		f.Has |= flow.HasMark
	}
	if rapid.IntRange(0, 3).Draw(t, what+" helped") == 0 {
		f.Has |= flow.HasHelper
		f.Helper, _ = flow.MakeName(rapid.SampledFrom([]string{"ftp", "sip"}).Draw(t, what+" helper"))
	}
	return f
}

// After a commit, the place of every entry is taken: by the entry itself or by
// one that was there and is alive; what was there and assured has lost nothing; and
// the report adds up.
func TestCommitProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newFake(t)
		for range rapid.IntRange(0, 8).Draw(t, "entries in the kernel") {
			f := anyFlow(t, "kernel")
			f.Has &^= flow.HasHelper
			if k.byTuple[f.Orig] == 0 && k.byTuple[f.Reply] == 0 {
				k.insert(f)
			}
		}
		before := map[uint32]flow.Flow{}
		for id, f := range k.entries {
			before[id] = *f
		}

		src := &sliceSource{step: rapid.IntRange(0, 3).Draw(t, "step")}
		for range rapid.IntRange(1, 12).Draw(t, "entries in the cache") {
			f := anyFlow(t, "cache")
			if rapid.IntRange(0, 3).Draw(t, "related") == 0 {
				f.Has |= flow.HasMaster
				f.Master = anyFlow(t, "master").Orig
			}
			age := time.Duration(rapid.IntRange(0, 200).Draw(t, "age")) * time.Second
			src.entries = append(src.entries, Entry{Flow: f, Age: age})
		}
		if rapid.IntRange(0, 4).Draw(t, "answers lost") == 0 {
			k.flushErr = []error{unix.ENOBUFS}
		}
		k.room = rapid.IntRange(0, 3).Draw(t, "room")

		r, err := Run(t.Context(), src, k, all)
		if err != nil {
			t.Fatal(err)
		}
		checkSum(t, r)
		if r.Refused != 0 {
			t.Fatalf("the kernel refused something: %+v", r)
		}
		if r.Entries != len(src.entries) {
			t.Fatalf("%d entries of %d", r.Entries, len(src.entries))
		}

		for i := range src.entries {
			f := src.entries[i].Flow
			// What made one be skipped may have given way to the next.
			if k.byTuple[f.Orig] == 0 && k.byTuple[f.Reply] == 0 && k.deletes == 0 {
				t.Fatalf("nothing is in the place of %s; %v", describe(&f.Orig), r.String())
			}
			now := k.find(f.Orig)
			if now == nil || now.Orig != f.Orig || now.Reply != f.Reply || twice(src.entries) {
				continue
			}
			if now.Status&f.Status != f.Status {
				t.Fatalf("%s has status %#x, wants %#x", describe(&f.Orig), now.Status, f.Status)
			}
			if now.TCPFlags[0]&(flow.TCPFlagBeLiberal|flow.TCPFlagWindowScale) == 0 && f.Orig.Proto == flow.TCP &&
				now.TCPState == flow.TCPEstablished && !sawTraffic(now) {
				t.Fatalf("%s would stop: flags %#x", describe(&f.Orig), now.TCPFlags)
			}
		}
		for id, was := range before {
			now := k.entries[id]
			if now == nil {
				if was.Status&flow.StatusAssured == 0 {
					continue
				}
				// It can only have given way to its own mirror image.
				if m := k.find(was.Orig); (m == nil || m.Orig == was.Orig) && !twice(src.entries) {
					t.Fatalf("assured %s is gone", describe(&was.Orig))
				}
				continue
			}
			switch {
			case now.Status&was.Status != was.Status:
				t.Fatalf("status of %s fell from %#x to %#x", describe(&was.Orig), was.Status, now.Status)
			case was.Orig.Proto == flow.TCP && progress(now.TCPState) < progress(was.TCPState):
				t.Fatalf("state of %s fell from %d to %d", describe(&was.Orig), was.TCPState, now.TCPState)
			case sawTraffic(&was) && now.TCPState != was.TCPState:
				t.Fatalf("state of %s, which carries traffic, changed", describe(&was.Orig))
			case now.Timeout < was.Timeout:
				t.Fatalf("timeout of %s fell from %d to %d", describe(&was.Orig), was.Timeout, now.Timeout)
			case was.Mark != 0 && now.Mark != was.Mark:
				t.Fatalf("mark of %s changed", describe(&was.Orig))
			}
		}

		// A second commit finds everything done.
		changes := k.changes
		again, err := Run(t.Context(), src, k, all)
		if err != nil {
			t.Fatal(err)
		}
		if settled := r.Skipped == 0 && r.Replaced == 0 && !twice(src.entries); settled && k.changes != changes {
			t.Fatalf("the second commit changed something: %s\nafter %s", again.String(), r.String())
		}
	})
}

// twice reports whether two entries share a tuple, so that each commit merges
// one into the other.
func twice(entries []Entry) bool {
	seen := map[flow.Tuple]bool{}
	for i := range entries {
		f := &entries[i].Flow
		if seen[f.Orig] || seen[f.Reply] {
			return true
		}
		seen[f.Orig], seen[f.Reply] = true, true
	}
	return false
}

package commit

import (
	"testing"

	"syncd/internal/flow"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func tcpState(state uint8) func(*flow.Flow) {
	return func(f *flow.Flow) { f.TCPState = state }
}

// untouched is f as a commit leaves it: no packet has passed.
func untouched(f flow.Flow) flow.Flow {
	f.TCPFlags = [2]uint8{0x0b, 0x0b}
	return f
}

// offloaded is how a dump shows f while a flowtable forwards its packets.
func offloaded(f flow.Flow) flow.Flow {
	f.Status |= flow.StatusSeenReply | flow.StatusAssured | flow.StatusOffload
	f.Has &^= flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	f.Timeout, f.TCPState, f.TCPFlags, f.TCPWScale = 0, 0, [2]uint8{}, [2]uint8{}
	return f
}

// TestReconcile commits one flow into a table with one entry in its way.
func TestReconcile(t *testing.T) {
	unassured := func(f *flow.Flow) { f.Status &^= flow.StatusAssured }
	timeout := func(s uint32) func(*flow.Flow) { return func(f *flow.Flow) { f.Timeout = s } }
	mark := func(m uint32) func(*flow.Flow) {
		return func(f *flow.Flow) {
			if f.Mark = m; m != 0 {
				f.Has |= flow.HasMark
			}
		}
	}
	labels := func(l byte) func(*flow.Flow) {
		return func(f *flow.Flow) { f.Labels[0], f.Has = l, f.Has|flow.HasLabels }
	}
	live := tcpFlow(1) // flags 0x23: segments have passed here
	liberal := with(live, func(f *flow.Flow) { f.TCPFlags = [2]uint8{0x2b, 0x2b} })
	udp := udpFlow(1)
	sctp := with(plain(flow.SCTP, 1, 2), func(f *flow.Flow) {
		f.Has |= flow.HasSCTP | flow.HasSCTPVtags
		f.SCTPState, f.SCTPVtag, f.Timeout = flow.SCTPEstablished, [2]uint32{11, 22}, 210
	})
	nat := masqueraded(tcpFlow(1), 1001)
	gre := plain(flow.GRE, 0, 0)

	for _, tt := range []struct {
		name  string
		have  flow.Flow // in the kernel
		ours  flow.Flow
		o     Options
		want  string                            // the figure of the report
		check func(t *testing.T, now flow.Flow) // the entry that holds our tuple afterwards
	}{
		// Same flow, same mapping.
		{"the same", liberal, live, all, "there", nil},
		{"was here before and moved on elsewhere", live, live, all, "updated",
			func(t *testing.T, f flow.Flow) {
				want(t, "flags", f.TCPFlags, [2]uint8{0x2b, 0x2b})
				want(t, "scales", f.TCPWScale, live.TCPWScale)
			}},
		{"liberal in one direction", with(live, func(f *flow.Flow) { f.TCPFlags = [2]uint8{0x2b, 0x23} }), live, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "flags", f.TCPFlags, [2]uint8{0x2b, 0x2b}) }},
		{"same again, a second later", untouched(live), with(live, timeout(431999)), all, "there", nil},
		{"committed long ago, and short of time", with(untouched(live), timeout(100)), live, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "timeout", f.Timeout, 432000) }},
		{"the timeout is never lowered", untouched(live), with(live, timeout(100)), all, "there", nil},
		{"but of what is parked", with(untouched(udp), timeout(flow.ParkTimeout)), udp, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "timeout", f.Timeout, 30) }},
		{"a fixed timeout is left", with(untouched(udp), func(f *flow.Flow) { f.Status |= flow.StatusFixedTimeout; f.Timeout = 10 }),
			udp, all, "there", nil},
		{"GRE that packets pass", with(gre, timeout(180)), with(gre, timeout(30)), all, "there", nil},
		{"parked GRE", with(gre, timeout(flow.ParkTimeout)), with(gre, timeout(30)), all, "updated", func(t *testing.T, now flow.Flow) {
			if now.Timeout != timeoutGRE || now.Status&flow.StatusFixedTimeout == 0 {
				t.Errorf("timeout %d, status %#x: it would die with its next packet", now.Timeout, now.Status)
			}
		}},

		{"status is or'ed", udp, with(udp, func(f *flow.Flow) { f.Status |= flow.StatusSeenReply | flow.StatusAssured }), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "status", f.Status, 0xe) }},
		{"and never taken back", liberal, with(live, unassured), all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "status", f.Status, 0xe) }},
		{"status of an expected flow", with(udp, func(f *flow.Flow) { f.Status |= flow.StatusExpected }),
			with(udp, func(f *flow.Flow) { f.Status |= flow.StatusSeenReply }), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "status", f.Status, 0xb) }},

		{"mark where there is none", udp, with(udp, mark(7)), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "mark", f.Mark, 7) }},
		{"mark where there is one", with(udp, mark(5)), with(udp, mark(7)), all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "mark", f.Mark, 5) }},

		{"mark beside bits of this machine", with(udp, mark(0x500)), with(udp, mark(0x307)), Options{MarkMask: 0xff}, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "mark", f.Mark, 0x507) }},
		{"mark where there is one, beside bits of this machine", with(udp, mark(0x501)), with(udp, mark(0x307)), Options{MarkMask: 0xff}, "there",
			func(t *testing.T, f flow.Flow) { want(t, "mark", f.Mark, 0x501) }},

		{"labels where there are none", udp, with(udp, labels(7)), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "labels", f.Labels, [16]byte{7}) }},
		{"labels where there are some", with(udp, labels(5)), with(udp, labels(7)), all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "labels", f.Labels, [16]byte{5}) }},
		{"labels that are not wanted", udp, with(udp, labels(7)), Options{}, "there",
			func(t *testing.T, f flow.Flow) { want(t, "labels", f.Labels, [16]byte{}) }},

		{"offloaded: no state and no timeout are shown", offloaded(live), live, all, "there",
			func(t *testing.T, f flow.Flow) {
				was := offloaded(live)
				was.ID, was.Has = f.ID, f.Has&flow.HasID|was.Has
				want(t, "the entry", f, was)
			}},
		{"offloaded, and ours is ending", offloaded(live), with(live, tcpState(flow.TCPTimeWait)), all, "there",
			func(t *testing.T, f flow.Flow) {
				was := offloaded(live)
				was.ID, was.Has = f.ID, f.Has&flow.HasID|was.Has
				want(t, "the entry", f, was)
			}},
		{"offloaded by hardware", with(offloaded(udp), func(f *flow.Flow) { f.Status ^= flow.StatusOffload | flow.StatusHWOffload }),
			with(udp, mark(7)), all, "there", func(t *testing.T, f flow.Flow) { want(t, "mark", f.Mark, 0) }},

		{"TCP goes forward", with(untouched(live), tcpState(flow.TCPSynRecv)), live, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.TCPState, flow.TCPEstablished) }},
		{"TCP goes forward to the end", untouched(live), with(live, tcpState(flow.TCPTimeWait)), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.TCPState, flow.TCPTimeWait) }},
		{"simultaneous open comes before SYN_RECV", with(untouched(live), tcpState(flow.TCPSynSent2)),
			with(live, tcpState(flow.TCPSynRecv)), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.TCPState, flow.TCPSynRecv) }},
		{"TCP never goes back", with(untouched(live), func(f *flow.Flow) { f.TCPState, f.Timeout = flow.TCPTimeWait, 50 }), live, all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "timeout", f.Timeout, 50) }},
		{"traffic here knows the state better", liberal, with(live, tcpState(flow.TCPClose)), all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.TCPState, flow.TCPEstablished) }},
		{"the next connection from the same port",
			with(live, func(f *flow.Flow) {
				f.TCPState, f.TCPFlags, f.Timeout = flow.TCPSynSent, [2]uint8{0x03, 0}, 120
				f.Status = flow.StatusConfirmed
			}),
			with(live, func(f *flow.Flow) { f.TCPState, f.Status = flow.TCPTimeWait, flow.StatusConfirmed }), all, "there",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.TCPState, flow.TCPSynSent) }},
		{"created without flags and scales", with(live, func(f *flow.Flow) { f.TCPFlags, f.TCPWScale = [2]uint8{}, [2]uint8{} }), live, all, "updated",
			func(t *testing.T, f flow.Flow) {
				want(t, "flags", f.TCPFlags, [2]uint8{0x0b, 0x0b})
				want(t, "scales", f.TCPWScale, [2]uint8{7, 9})
				want(t, "state", f.TCPState, flow.TCPEstablished)
			}},
		{"stuck for want of a scale", with(live, func(f *flow.Flow) { f.TCPFlags, f.TCPWScale = [2]uint8{0x20, 0x20}, [2]uint8{} }), live, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "flags", f.TCPFlags, [2]uint8{0x2b, 0x2b}) }},
		{"a scale is not taken away", with(untouched(live), tcpState(flow.TCPSynRecv)),
			with(live, func(f *flow.Flow) { f.Has &^= flow.HasTCPFlags | flow.HasTCPWScale }), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "flags", f.TCPFlags, [2]uint8{0x0b, 0x0b}) }},
		{"sequence adjustment of an idle entry", untouched(live),
			with(live, func(f *flow.Flow) {
				f.Has |= flow.HasSeqAdjRepl
				f.SeqAdj[1] = flow.SeqAdj{Pos: 1, Before: 2, After: -3}
			}), all, "updated",
			func(t *testing.T, f flow.Flow) {
				want(t, "seqadj", f.SeqAdj[1], flow.SeqAdj{Pos: 1, Before: 2, After: -3})
			}},
		{"sequence adjustment of a busy one", liberal,
			with(live, func(f *flow.Flow) { f.Has |= flow.HasSeqAdjRepl; f.SeqAdj[1].Pos = 1 }), all, "there", nil},
		{"SYN proxy of an idle entry", untouched(live),
			with(live, func(f *flow.Flow) { f.Has |= flow.HasSynproxy; f.Synproxy.TSOff = 9 }), all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "synproxy", f.Synproxy, flow.Synproxy{TSOff: 9}) }},

		{"SCTP without tags", with(sctp, func(f *flow.Flow) { f.SCTPVtag = [2]uint32{} }), sctp, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "tags", f.SCTPVtag, [2]uint32{11, 22}) }},
		{"SCTP goes forward", with(sctp, func(f *flow.Flow) { f.SCTPState = flow.SCTPCookieEchoed }), sctp, all, "updated",
			func(t *testing.T, f flow.Flow) { want(t, "state", f.SCTPState, flow.SCTPEstablished) }},
		{"SCTP never goes back", with(sctp, func(f *flow.Flow) { f.SCTPState = flow.SCTPShutdownSent; f.Timeout = 3 }), sctp, all, "there", nil},
		{"another association with the same ports", with(sctp, func(f *flow.Flow) { f.SCTPState = flow.SCTPCookieWait; f.SCTPVtag[0] = 5 }),
			sctp, all, "there", nil},

		// Something else.
		{"reversed by a loose pickup", reversed(live), live, all, "replaced", nil},
		{"reversed, unassured", with(reversed(udp), unassured), udp, all, "replaced", nil},
		{"picked up without its translation", with(live, unassured), nat, all, "replaced",
			func(t *testing.T, f flow.Flow) { want(t, "port", f.Reply.DstPort, 1001) }},
		{"picked up with another port", with(masqueraded(live, 2002), unassured), nat, all, "replaced", nil},
		{"the same ends, alive with another port", masqueraded(live, 2002), nat, all, reasonConflict, nil},
		{"the server's packet came first, translated flow", with(reversed(nat), func(f *flow.Flow) {
			unassured(f)
			f.Reply, _ = f.Orig.Inverse()
		}), nat, all, "replaced", nil},
		{"and was answered", with(reversed(nat), func(f *flow.Flow) { f.Reply, _ = f.Orig.Inverse() }), nat, all, reasonNATClash, nil},
		{"another flow has the port", with(nat, func(f *flow.Flow) { f.Orig.Src[3] = 77; f.Status &^= flow.StatusAssured }), nat, all, reasonNATClash, nil},
		{"our tuple is what another is translated to", with(reversed(live), func(f *flow.Flow) { f.Orig.Src[3] = 200 }), live, all, reasonConflict, nil},
		{"so is one that nobody answered", with(reversed(live), func(f *flow.Flow) { f.Orig.Src[3] = 200; unassured(f) }), live, all, "replaced", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFake(t)
			id := k.insert(tt.have)
			before := *k.entries[id]
			ours := tt.ours
			r := mustRun(t, source(ours), k, tt.o)
			checkFigure(t, r, tt.want)
			now := k.find(ours.Orig)
			switch tt.want {
			case "there", reasonConflict, reasonNATClash:
				if diff := cmp.Diff(before, *k.entries[id]); diff != "" {
					t.Errorf("the entry changed: %s", diff)
				}
			case "replaced":
				if k.entries[id] != nil || len(k.entries) != 1 {
					t.Errorf("%d entries; the one in the way is there: %v", len(k.entries), k.entries[id] != nil)
				}
				if now == nil || now.Orig != ours.Orig || now.Reply != ours.Reply {
					t.Fatalf("now there is %+v", now)
				}
			case "updated":
				if k.entries[id] == nil {
					t.Error("the entry was not updated but replaced")
				}
			}
			if tt.check != nil {
				tt.check(t, *now)
			}
		})
	}
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s %v, want %v", what, got, want)
	}
}

// checkFigure checks the report of a commit of one entry.
func checkFigure(t *testing.T, r Report, figure string) {
	t.Helper()
	want := Report{Entries: 1}
	switch figure {
	case "created":
		want.Created = 1
	case "there":
		want.AlreadyThere = 1
	case "updated":
		want.Updated = 1
	case "replaced":
		want.Replaced = 1
	default:
		want.Skipped = 1
		want.ByReason = map[string]int{figure: 1}
	}
	if diff := cmp.Diff(want, counts(r)); diff != "" {
		t.Error(diff)
	}
}

// Whatever happens between look and request, the commit looks again.
func TestReconcileRaces(t *testing.T) {
	nat := masqueraded(tcpFlow(1), 1001)
	for _, tt := range []struct {
		name string
		have flow.Flow
		ours flow.Flow
		race func(k *fakeKernel, op Op, n int) unix.Errno // before the n-th request, from 1
		want string
	}{
		{"it expires before the look", tcpFlow(1), tcpFlow(1), func(k *fakeKernel, op Op, n int) unix.Errno {
			if n == 1 {
				k.remove(1)
				return unix.EEXIST
			}
			return 0
		}, "created"},
		{"it expires before the update", with(tcpFlow(1), func(f *flow.Flow) { f.TCPFlags = [2]uint8{} }), tcpFlow(1), func(k *fakeKernel, op Op, n int) unix.Errno {
			if op == Update {
				k.remove(1)
			}
			return 0
		}, "created"},
		{"it becomes assured before the update", with(udpFlow(1), func(f *flow.Flow) { f.Status = 8 }),
			with(udpFlow(1), func(f *flow.Flow) { f.Status = 0xa }), func(k *fakeKernel, op Op, n int) unix.Errno {
				if op == Update {
					k.entries[1].Status = 0xe
				}
				return 0
			}, "there"},
		{"its timeout is fixed before the update", with(udpFlow(1), func(f *flow.Flow) { f.Timeout = 1 }), udpFlow(1),
			func(k *fakeKernel, op Op, n int) unix.Errno {
				if op == Update {
					k.entries[1].Status |= flow.StatusFixedTimeout
				}
				return 0
			}, "there"},
		{"it expires before the delete", reversed(tcpFlow(1)), tcpFlow(1), func(k *fakeKernel, op Op, n int) unix.Errno {
			if op == Delete {
				k.remove(1)
			}
			return 0
		}, "created"},
		{"a living one takes its place before the delete", with(tcpFlow(1), func(f *flow.Flow) { f.Status = 8 }), nat, func(k *fakeKernel, op Op, n int) unix.Errno {
			if op == Delete {
				k.remove(1)
				k.insert(tcpFlow(1))
			}
			return 0
		}, reasonConflict},
		{"it comes back for ever", with(tcpFlow(1), func(f *flow.Flow) { f.Status = 8 }), nat, func(k *fakeKernel, op Op, n int) unix.Errno {
			if op == Create && k.find(nat.Orig) == nil {
				k.insert(with(tcpFlow(1), func(f *flow.Flow) { f.Status = 8 }))
			}
			return 0
		}, reasonBusy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFake(t)
			k.insert(tt.have)
			n := 0
			k.before = func(op Op, f *flow.Flow) unix.Errno {
				n++
				return tt.race(k, op, n)
			}
			checkFigure(t, mustRun(t, source(tt.ours), k, all), tt.want)
			if tt.want == reasonConflict && k.find(nat.Orig) == nil {
				t.Error("the living entry was deleted")
			}
		})
	}
}

// An entry gives way only if our flow can be created then.
func TestNothingGivesWayInVain(t *testing.T) {
	nat := masqueraded(tcpFlow(1), 1001)
	k := newFake(t)
	k.insert(with(tcpFlow(1), func(f *flow.Flow) { f.Status = flow.StatusConfirmed }))
	k.insert(with(nat, func(f *flow.Flow) { f.Orig.Src[3] = 77 })) // holds the port
	checkFigure(t, mustRun(t, source(nat), k, all), reasonNATClash)
	if len(k.entries) != 2 {
		t.Errorf("%d entries left of 2", len(k.entries))
	}
}

// Both of the entries in the way are useless.
func TestTwoGiveWay(t *testing.T) {
	nat := masqueraded(tcpFlow(1), 1001)
	k := newFake(t)
	k.insert(with(tcpFlow(1), func(f *flow.Flow) { f.Status = flow.StatusConfirmed }))
	k.insert(with(reversed(nat), func(f *flow.Flow) { f.Status = 8; f.Reply, _ = f.Orig.Inverse() }))
	checkFigure(t, mustRun(t, source(nat), k, all), "replaced")
	if len(k.entries) != 1 || k.find(nat.Orig) == nil {
		t.Errorf("%d entries", len(k.entries))
	}
}

// All steps at once in small batches, so that batches fill up in their middle.
func TestMixedBatches(t *testing.T) {
	for _, room := range []int{1, 2, 3, 50, 0} {
		k := newFake(t)
		k.room = room
		src := &sliceSource{}
		for i := range uint16(400) {
			f := masqueraded(tcpFlow(i), 10000+i)
			switch i % 4 {
			case 1:
				k.insert(with(f, func(f *flow.Flow) { f.TCPFlags = [2]uint8{0x2b, 0x2b} }))
			case 2:
				k.insert(with(f, func(f *flow.Flow) { f.TCPFlags = [2]uint8{} }))
			case 3:
				k.insert(reversed(f))
			}
			src.entries = append(src.entries, Entry{Flow: f})
		}
		r := mustRun(t, src, k, all)
		want := Report{Entries: 400, Created: 100, AlreadyThere: 100, Updated: 100, Replaced: 100}
		if diff := cmp.Diff(want, counts(r)); diff != "" {
			t.Errorf("room %d: %s", room, diff)
		}
		if k.largest > batchSize {
			t.Errorf("room %d: a batch of %d", room, k.largest)
		}
	}
}

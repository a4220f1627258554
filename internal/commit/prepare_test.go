package commit

import (
	"testing"
	"time"

	"syncd/internal/flow"
)

var all = Options{MarkMask: ^uint32(0), Labels: true}

func TestRemaining(t *testing.T) {
	for _, tt := range []struct {
		name     string
		reported int // negative: unknown
		age      time.Duration
		fixed    uint32
		want     uint32
	}{
		{"what remains", 432000, 1000 * time.Second, 0, 431000},
		{"part of a second does not count", 100, 999 * time.Millisecond, 0, 100},
		{"never below a minute", 432000, 431990 * time.Second, 0, 60},
		{"long past its time", 120, 1000 * time.Hour, 0, 60},
		{"never above what was reported", 30, 29 * time.Second, 0, 30},
		{"just the minute", 120, 60 * time.Second, 0, 60},
		{"one more", 120, 59 * time.Second, 0, 61},
		{"never zero", 0, 5 * time.Second, 0, 1},
		{"unknown", -1, 5 * time.Second, 0, 60},
		{"fixed", 432000, 5 * time.Second, 180, 180},
		{"fixed for unknown", -1, 5 * time.Second, 180, 180},
		{"clock went back", 120, -5 * time.Second, 0, 120},
		{"largest", 1<<32 - 1, 1<<63 - 1, 0, 60},
	} {
		f := flow.Flow{}
		if tt.reported >= 0 {
			f.Has, f.Timeout = flow.HasTimeout, uint32(tt.reported)
		}
		if got := remaining(&f, tt.age, tt.fixed); got != tt.want {
			t.Errorf("%s: %d s, want %d", tt.name, got, tt.want)
		}
	}
}

func TestPrepareStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status uint32
		want   uint32
		reason string
	}{
		{"replied", 0x0a, 0x0a, ""},
		{"unreplied", 0x08, 0x08, ""},
		{"not confirmed", 0x06, 0x0e, ""},
		{"everything that follows from something else", 0xe5ff &^ 0x0200, 0x0e, ""},
		{"offloaded", 0xc00e, 0x0e, ""},
		{"fixed timeout", 0x40e, 0x0e, ""},
		{"dying", 0x20e, 0, reasonDying},
		{"template", 0x808, 0, reasonTemplate},
		{"clash", 0x1008, 0, reasonClashEntry},
	} {
		e := Entry{Flow: udpFlow(1)}
		e.Flow.Status = tt.status
		reason := prepare(&e, &all)
		if reason != tt.reason || reason == "" && e.Flow.Status != tt.want {
			t.Errorf("%s: status %#x %q, want %#x %q", tt.name, e.Flow.Status, reason, tt.want, tt.reason)
		}
	}
}

// Packets do not refresh what of GRE was made through ctnetlink.
func TestPrepareGRE(t *testing.T) {
	for _, tt := range []struct {
		name         string
		o            Options
		wantStatus   uint32
		wantTimeout  uint32
		anotherProto uint8
	}{
		{"committed", all, 0x40e, timeoutGRE, 0},
		{"with a timeout for all", Options{Timeout: 180}, 0x40e, timeoutGRE, 0},
		{"parked", Options{Timeout: flow.ParkTimeout}, 0x0e, flow.ParkTimeout, 0},
		{"another protocol without ports", all, 0x0e, 30, 50},
	} {
		e := Entry{Flow: plain(flow.GRE, 0, 0)}
		if tt.anotherProto != 0 {
			e.Flow = plain(tt.anotherProto, 0, 0)
		}
		f := &e.Flow
		f.Status = 0x0e
		f.Has |= flow.HasTimeout
		f.Timeout = 30
		if reason := prepare(&e, &tt.o); reason != "" || f.Status != tt.wantStatus || f.Timeout != tt.wantTimeout {
			t.Errorf("%s: status %#x timeout %d %q, want %#x %d", tt.name, f.Status, f.Timeout, reason, tt.wantStatus, tt.wantTimeout)
		}
	}
}

func TestPrepareTCP(t *testing.T) {
	const none = 0xff
	for _, tt := range []struct {
		name       string
		state      uint8 // none: unknown
		status     uint32
		flags      [2]uint8 // none: unknown
		scale      [2]uint8 // none: unknown
		wantState  uint8
		wantFlags  [2]uint8
		wantScaled bool
	}{
		{"established", 3, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{7, 9}, 3, [2]uint8{0x0b, 0x0b}, true},
		{"scaling by nothing is scaling", 3, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{0, 0}, 3, [2]uint8{0x0b, 0x0b}, true},
		{"unacknowledged data and seen acks stay behind", 7, 0xe, [2]uint8{0xff, 0x37}, [2]uint8{7, 9}, 7, [2]uint8{0x0f, 0x0f}, true},
		{"one end does not scale", 3, 0xe, [2]uint8{0x23, 0x22}, [2]uint8{7, 0}, 3, [2]uint8{0x0a, 0x0a}, false},
		{"peer that sends scales without flags", 3, 0xe, [2]uint8{none, none}, [2]uint8{7, 9}, 3, [2]uint8{0x09, 0x09}, true},
		{"peer that sends nothing", 3, 0xe, [2]uint8{none, none}, [2]uint8{none, none}, 3, [2]uint8{0x08, 0x08}, false},
		{"flags without scales", 3, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{none, none}, 3, [2]uint8{0x0a, 0x0a}, false},
		{"a scale that no TCP has", 3, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{15, 7}, 3, [2]uint8{0x0a, 0x0a}, false},
		{"offloaded shows no state", none, 0x400e, [2]uint8{none, none}, [2]uint8{none, none}, 3, [2]uint8{0x08, 0x08}, false},
		{"state NONE of a living connection", 0, 0xe, [2]uint8{0x02, 0x02}, [2]uint8{0, 0}, 3, [2]uint8{0x0a, 0x0a}, false},
		{"state NONE of an unanswered one", 0, 0x8, [2]uint8{0x02, 0x02}, [2]uint8{0, 0}, 1, [2]uint8{0x0a, 0x0a}, false},
		{"state that does not exist", 10, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{7, 9}, 3, [2]uint8{0x0b, 0x0b}, true},
		{"closing states are kept", 8, 0xe, [2]uint8{0x23, 0x23}, [2]uint8{7, 9}, 8, [2]uint8{0x0b, 0x0b}, true},
		{"opening, with a scale", 1, 0x8, [2]uint8{0x03, 0}, [2]uint8{7, 0}, 1, [2]uint8{0x0b, 0x09}, true},
		{"opening, without a scale", 1, 0x8, [2]uint8{0x02, 0}, [2]uint8{0, 0}, 1, [2]uint8{0x0a, 0x08}, false},
		{"opening, by a peer that sends no flags", 1, 0x8, [2]uint8{none, none}, [2]uint8{7, 0}, 1, [2]uint8{0x09, 0x09}, true},
		{"answered without a scale", 2, 0xa, [2]uint8{0x03, 0}, [2]uint8{7, 0}, 2, [2]uint8{0x0a, 0x08}, false},
		{"simultaneous open", 9, 0x8, [2]uint8{0x03, 0x03}, [2]uint8{7, 9}, 9, [2]uint8{0x0b, 0x0b}, true},
	} {
		e := Entry{Flow: plain(flow.TCP, 1, 2)}
		f := &e.Flow
		f.Status = tt.status
		if tt.state != none {
			f.Has |= flow.HasTCP
			f.TCPState = tt.state
		}
		if tt.flags[0] != none || tt.flags[1] != none {
			f.Has |= flow.HasTCPFlags
			f.TCPFlags = tt.flags
		}
		if tt.scale[0] != none {
			f.Has |= flow.HasTCPWScale
			f.TCPWScale = tt.scale
		}
		if reason := prepare(&e, &all); reason != "" {
			t.Errorf("%s: %s", tt.name, reason)
		}
		const must = flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
		scaled := f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0
		if want := tt.scale; scaled && f.TCPWScale != want || !scaled && f.TCPWScale != [2]uint8{} {
			t.Errorf("%s: scales %v of %v", tt.name, f.TCPWScale, want)
		}
		if f.Has&must != must || f.TCPState != tt.wantState || f.TCPFlags != tt.wantFlags || scaled != tt.wantScaled {
			t.Errorf("%s: has %#x state %d flags %#x scaled %v, want state %d flags %#x scaled %v",
				tt.name, f.Has, f.TCPState, f.TCPFlags, scaled, tt.wantState, tt.wantFlags, tt.wantScaled)
		}
	}
}

func TestPrepareSCTP(t *testing.T) {
	e := Entry{Flow: plain(flow.SCTP, 1, 2)}
	e.Flow.Has |= flow.HasSCTP | flow.HasSCTPVtags | flow.HasTCP
	e.Flow.SCTPState, e.Flow.SCTPVtag = flow.SCTPHeartbeatAcked, [2]uint32{1, 2}
	prepare(&e, &all)
	if f := &e.Flow; f.SCTPState != flow.SCTPEstablished || f.SCTPVtag != [2]uint32{1, 2} || f.Has&flow.HasTCP != 0 {
		t.Errorf("state %d tags %v has %#x", f.SCTPState, f.SCTPVtag, f.Has)
	}

	e = Entry{Flow: plain(flow.SCTP, 1, 2)}
	e.Flow.Has |= flow.HasSCTP
	prepare(&e, &all)
	if f := &e.Flow; f.Has&(flow.HasSCTP|flow.HasSCTPVtags) != flow.HasSCTP|flow.HasSCTPVtags || f.SCTPState != flow.SCTPEstablished {
		t.Errorf("without tags the kernel refuses the whole: has %#x", f.Has)
	}
}

func TestPrepareAttributes(t *testing.T) {
	full := func() Entry {
		e := Entry{Flow: tcpFlow(1)}
		f := &e.Flow
		f.Has = 1<<22 - 1&^(flow.HasSCTP|flow.HasSCTPVtags)
		f.Mark = 0xabcd
		f.Labels[3] = 1
		f.Helper, _ = flow.MakeName("ftp")
		f.Synproxy.ISN = 1
		return e
	}
	const created = flow.HasReply | flow.HasMaster | flow.HasStatus | flow.HasTimeout | flow.HasTCP |
		flow.HasTCPFlags | flow.HasTCPWScale | flow.HasHelper | flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
	for _, tt := range []struct {
		name string
		o    Options
		edit func(*flow.Flow)
		want flow.Attrs
		mark uint32
	}{
		{"all", all, nil, created | flow.HasMark | flow.HasLabels | flow.HasSynproxy, 0xabcd},
		{"no labels wanted, part of the mark", Options{MarkMask: 0xff}, nil, created | flow.HasMark | flow.HasSynproxy, 0xcd},
		{"no mark wanted", Options{}, nil, created | flow.HasSynproxy, 0},
		{"empty values", all, func(f *flow.Flow) {
			f.Mark, f.Labels, f.Synproxy = 0, [16]byte{}, flow.Synproxy{}
		}, created, 0},
		{"empty helper", all, func(f *flow.Flow) { f.Helper = flow.Name{} },
			created&^flow.HasHelper | flow.HasMark | flow.HasLabels | flow.HasSynproxy, 0xabcd},
	} {
		e := full()
		if tt.edit != nil {
			tt.edit(&e.Flow)
		}
		prepare(&e, &tt.o)
		if e.Flow.Has != tt.want || e.Flow.Mark != tt.mark {
			t.Errorf("%s: has %#x mark %#x, want %#x %#x", tt.name, e.Flow.Has, e.Flow.Mark, tt.want, tt.mark)
		}
	}
}

func TestPassOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    flow.Flow
		want Pass
	}{
		{"established", tcpFlow(1), PassEstablished},
		{"closing, although assured", with(tcpFlow(1), func(f *flow.Flow) { f.TCPState = flow.TCPTimeWait }), PassOthers},
		{"answered", with(udpFlow(1), func(f *flow.Flow) { f.Status |= flow.StatusSeenReply }), PassEstablished},
		{"unanswered", udpFlow(1), PassOthers},
		{"offloaded", with(tcpFlow(1), func(f *flow.Flow) { f.Has &^= flow.HasTCP }), PassEstablished},
		{"related", with(tcpFlow(1), func(f *flow.Flow) { f.Has |= flow.HasMaster }), PassRelated},
	} {
		if got := PassOf(&tt.f); got != tt.want {
			t.Errorf("%s: pass %d, want %d", tt.name, got, tt.want)
		}
	}
}

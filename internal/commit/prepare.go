package commit

import (
	"time"

	"syncd/internal/flow"
)

// Options says how entries are put into the kernel.
type Options struct {
	Timeout  uint32 // seconds that every entry gets; 0: what remains of its own timeout
	MarkMask uint32 // bits of the mark that are set; 0 sets no mark
	Labels   bool   // set labels
	DryRun   bool   // only look, and report what would be done
	// Progress, if not nil, is called about five times a second on the goroutine
	// of Run. The report is valid during the call.
	Progress func(*Report)
}

// graceTimeout is what a flow gets when its timeout is unknown, in seconds.
const graceTimeout = 60

// remaining returns the timeout to set, in seconds, at least 1.
func remaining(f *flow.Flow, age time.Duration, fixed uint32) uint32 {
	if fixed != 0 {
		return fixed
	}
	if f.Has&flow.HasTimeout == 0 {
		return graceTimeout
	}
	return max(f.Remaining(age), 1)
}

// ofOneMachine are the attributes that mean nothing on another machine, or that
// the kernel does not let anybody set.
const ofOneMachine = flow.HasID | flow.HasUse | flow.HasSecctx | flow.HasCounters |
	flow.HasStart | flow.HasStop | flow.HasEventTime

// prepare makes of an entry of the cache what is to be created. It returns the
// reason why nothing should be, or "".
func prepare(e *Entry, o *Options) string {
	f := &e.Flow
	if f.Has&flow.HasStatus != 0 {
		switch {
		case f.Status&flow.StatusDying != 0:
			return reasonDying
		case f.Status&flow.StatusTemplate != 0:
			return reasonTemplate
		case f.Status&flow.StatusNATClash != 0:
			// Its original tuple belongs to another entry, which is committed.
			return reasonClashEntry
		}
	}

	f.Timeout = remaining(f, e.Age, o.Timeout)
	prepareTCP(f)
	prepareSCTP(f)

	// Of the other bits, some are refused (EXPECTED, DYING), some follow from
	// other attributes (NAT, HELPER, SEQ_ADJUST), some belong to one machine
	// (OFFLOAD), and FIXED_TIMEOUT could never be cleared again: only GRE needs it.
	f.Status = f.Status&(flow.StatusSeenReply|flow.StatusAssured) | flow.StatusConfirmed
	f.Has = f.Has&^ofOneMachine | flow.HasTimeout | flow.HasStatus | flow.HasReply
	if f.Orig.Proto == flow.GRE && o.Timeout != flow.ParkTimeout {
		fixGRE(f)
	}

	if f.Mark &= o.MarkMask; f.Mark == 0 {
		f.Has &^= flow.HasMark
	}
	if !o.Labels || f.Labels == [16]byte{} {
		f.Has &^= flow.HasLabels
	}
	if f.Helper == (flow.Name{}) {
		f.Has &^= flow.HasHelper
	}
	// Every entry that was made by ctnetlink shows an empty SYN proxy.
	if f.Synproxy == (flow.Synproxy{}) {
		f.Has &^= flow.HasSynproxy
	}
	return ""
}

// timeoutGRE is what an entry of GRE gets, in seconds: a day.
const timeoutGRE = 86400

// fixGRE gives f a timeout that packets do not change. The kernel keeps the timeouts
// of GRE in each entry, where only the packet that makes the entry puts them: one that
// was made through ctnetlink is refreshed with 0 seconds, and gone with its first
// packet.
func fixGRE(f *flow.Flow) {
	f.Status |= flow.StatusFixedTimeout
	f.Timeout = timeoutGRE
}

// prepareTCP gives f a state, flags and window scales with which a connection in
// full flight keeps its speed.
//
// The window itself cannot be carried over; the kernel learns it from the next
// packets, and until then only "be liberal" in both directions keeps it from
// dropping data that this node never saw the acknowledgement of. Of the flags
// that tell of past traffic, "maximum ack seen" is the dangerous one: with it,
// genuine resets are judged invalid.
func prepareTCP(f *flow.Flow) {
	const pi = flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	if f.Orig.Proto != flow.TCP {
		f.Has &^= pi
		return
	}
	// An entry in state NONE drops every reply. Offloaded flows show no state.
	if f.Has&flow.HasTCP == 0 || f.TCPState == flow.TCPNone || f.TCPState > flow.TCPSynSent2 {
		f.TCPState = flow.TCPSynSent
		if f.Status&(flow.StatusSeenReply|flow.StatusAssured|flow.StatusOffload|flow.StatusHWOffload) != 0 {
			f.TCPState = flow.TCPEstablished
		}
	}

	scaled := f.Has&flow.HasTCPWScale != 0 && f.TCPWScale[0] <= 14 && f.TCPWScale[1] <= 14
	if f.Has&flow.HasTCPFlags != 0 {
		// Of a connection that is opening only one end has offered its scale, and the
		// kernel takes scales of both or none. The answer replaces what is set here for
		// the other end, and turns both off if it has no scale. (One without any option,
		// not even a segment size, leaves them; such an entry is liberal all the same.)
		const scales = flow.TCPFlagWindowScale
		if f.TCPState == flow.TCPSynSent && f.TCPFlags[0]&scales != 0 && f.TCPFlags[1]&scales == 0 {
			f.TCPFlags[1] |= scales
			f.TCPWScale[1] = 0
		}
		// Window scaling is on if both ends offered it.
		scaled = scaled && f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0
	} else {
		f.TCPFlags = [2]uint8{}
		scaled = scaled && f.TCPWScale[0]|f.TCPWScale[1] != 0
	}
	f.Has |= flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	for dir := range f.TCPFlags {
		flags := f.TCPFlags[dir]&flow.TCPFlagsReplicated&^flow.TCPFlagWindowScale | flow.TCPFlagBeLiberal
		if scaled {
			flags |= flow.TCPFlagWindowScale // the kernel ignores scales without it
		}
		f.TCPFlags[dir] = flags
	}
	if !scaled {
		f.TCPWScale = [2]uint8{}
	}
}

// prepareSCTP completes the state of an SCTP association: the kernel takes
// state and both verification tags, or nothing. Tags that are not known stay
// zero: no data passes with them, but the entry keeps the translation until a
// HEARTBEAT or a new INIT shows the tags.
func prepareSCTP(f *flow.Flow) {
	const pi = flow.HasSCTP | flow.HasSCTPVtags
	if f.Orig.Proto != flow.SCTP {
		f.Has &^= pi
		return
	}
	if f.Has&flow.HasSCTP == 0 || f.SCTPState == flow.SCTPNone || f.SCTPState > flow.SCTPHeartbeatSent {
		// HEARTBEAT_ACKED was dropped from the kernel: it is now ESTABLISHED.
		f.SCTPState = flow.SCTPEstablished
	}
	if f.Has&flow.HasSCTPVtags == 0 {
		f.SCTPVtag = [2]uint32{}
	}
	f.Has |= pi
}

package commit

import "syncd/internal/flow"

// verdict is what to do about an entry of the kernel that is in the way of ours.
type verdict uint8

const (
	verdictFree     verdict = iota // nothing is there
	verdictThere                   // it is our flow, at least as far
	verdictUpdate                  // it is our flow, and can learn something
	verdictReplace                 // it would break our flow
	verdictConflict                // it is alive, and not our flow
	verdictNATClash                // it holds what our flow is translated to
)

// decide judges have, an entry of the kernel that holds one of the tuples of
// the prepared flow f. For verdictUpdate it leaves the request in u.
func decide(u, f, have *flow.Flow, o *Options) verdict {
	assured := have.Status&flow.StatusAssured != 0
	switch {
	case have.Orig == f.Orig && have.Reply == f.Reply:
		merge(u, f, have, o)
		if u.Has == 0 {
			return verdictThere
		}
		return verdictUpdate
	case have.Orig == f.Reply && have.Reply == f.Orig:
		// The first packet that came here was one of the server, and a loose
		// pickup took it for the client. Rules that look at the direction, helpers
		// and window tracking are all wrong for this flow.
		return verdictReplace
	case have.Orig == f.Orig || have.Reply == f.Orig || have.Orig == f.Reply:
		// The same ends with another translation: what a pickup makes when a packet
		// passes the NAT rules anew. One that was never answered serves nobody.
		if !assured {
			return verdictReplace
		}
		if have.Orig != f.Orig && have.Reply != f.Orig {
			return verdictNATClash
		}
		return verdictConflict
	}
	return verdictNATClash
}

// timeoutSlack is by how many seconds two timeouts may differ and count as the
// same: both are rounded, and the kernel's clock goes on while the commit runs.
const timeoutSlack = 5

// merge fills u with what the kernel's entry have can learn from f, which has
// the same tuples: never less than what it is now. If there is nothing, u.Has is 0.
func merge(u, f, have *flow.Flow, o *Options) {
	*u = flow.Flow{Orig: have.Orig, Reply: have.Reply}
	if have.Status&(flow.StatusOffload|flow.StatusHWOffload) != 0 {
		// Its packets pass here, beside conntrack, which shows neither its timeout nor its
		// state: what it lacks it has not lost.
		return
	}

	// The whole status must be sent: leaving a bit out means clearing it, which
	// the kernel refuses.
	const kept = flow.StatusExpected | flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed
	status := (have.Status | f.Status) & kept
	if status != have.Status&kept {
		u.Has |= flow.HasStatus
		u.Status = status
	}
	if f.Has&flow.HasMark != 0 && have.Mark&o.MarkMask == 0 {
		u.Has |= flow.HasMark
		u.Mark = have.Mark&^o.MarkMask | f.Mark // the other bits are this machine's own
	}
	mergeLabels(u, f, have)

	seen := sawTraffic(have)
	same := true // the protocol state will be that of f
	switch f.Orig.Proto {
	case flow.TCP:
		same = mergeTCP(u, f, have, seen)
	case flow.SCTP:
		same = mergeSCTP(u, f, have)
	}

	if same && have.Status&flow.StatusFixedTimeout == 0 {
		// Of GRE the timeout is not what its owner had: see fixGRE.
		longer := uint64(f.Timeout) > uint64(have.Timeout)+timeoutSlack && f.Orig.Proto != flow.GRE
		shorter := uint64(have.Timeout) > uint64(f.Timeout)+timeoutSlack
		if longer || shorter && have.Parked() {
			u.Has |= flow.HasTimeout
			u.Timeout = f.Timeout
			if fixed := f.Status & flow.StatusFixedTimeout; fixed != 0 {
				u.Has |= flow.HasStatus
				u.Status = status | fixed
			}
		}
	}
	if seen {
		return
	}
	// Not one packet has passed here, so whatever is there came from a replica,
	// and ours is the later one.
	for dir, bit := range [2]flow.Attrs{flow.HasSeqAdjOrig, flow.HasSeqAdjRepl} {
		if f.Has&bit != 0 && f.SeqAdj[dir] != have.SeqAdj[dir] {
			u.Has |= bit
			u.SeqAdj[dir] = f.SeqAdj[dir]
		}
	}
	if f.Has&flow.HasSynproxy != 0 && f.Synproxy != have.Synproxy {
		u.Has |= flow.HasSynproxy
		u.Synproxy = f.Synproxy
	}
}

// sawTraffic reports whether TCP segments with an ACK have passed have on this
// machine. The kernel notes that in flags which a commit never sets.
func sawTraffic(have *flow.Flow) bool {
	const traces = flow.TCPFlagMaxAckSet | flow.TCPFlagDataUnacked
	return have.Orig.Proto == flow.TCP && (have.TCPFlags[0]|have.TCPFlags[1])&traces != 0
}

// tcpProgress orders the TCP states by the life of a connection.
var tcpProgress = [...]uint8{
	flow.TCPNone:        0,
	flow.TCPSynSent:     1,
	flow.TCPSynSent2:    2,
	flow.TCPSynRecv:     3,
	flow.TCPEstablished: 4,
	flow.TCPFinWait:     5,
	flow.TCPCloseWait:   6,
	flow.TCPLastAck:     7,
	flow.TCPTimeWait:    8,
	flow.TCPClose:       9,
}

func progress(state uint8) uint8 {
	if int(state) < len(tcpProgress) {
		return tcpProgress[state]
	}
	return 0
}

// mergeTCP moves the state forward, gives an entry without any flag those of f,
// and makes every entry liberal. It reports whether the state will be that of f.
func mergeTCP(u, f, have *flow.Flow, seen bool) (same bool) {
	ours, theirs := progress(f.TCPState), progress(have.TCPState)
	const established = 4
	// An entry that is just opening while ours is closing is the next connection
	// from the same port.
	newer := theirs > 0 && theirs < established && ours > established
	ahead := ours > theirs && !seen && !newer
	// Without a scale and without "be liberal", a connection that does scale its
	// window stops.
	const useful = flow.TCPFlagWindowScale | flow.TCPFlagBeLiberal
	bare := (have.TCPFlags[0]|have.TCPFlags[1])&useful == 0
	scaled := f.TCPFlags[0]&f.TCPFlags[1]&flow.TCPFlagWindowScale != 0
	// A strict entry judges by the windows that it saw. Where the connection was
	// here before and has moved on elsewhere since, they are old, and whatever
	// acknowledges newer data would be refused, in both directions, for ever.
	strict := have.TCPFlags[0]&have.TCPFlags[1]&flow.TCPFlagBeLiberal == 0

	if ahead || strict && !newer {
		u.Has |= flow.HasTCP // flags do not go without the state
		u.TCPState = have.TCPState
		if ahead {
			u.TCPState = f.TCPState
		}
		switch {
		case bare || ahead && scaled: // never take a scale away
			u.Has |= flow.HasTCPFlags | flow.HasTCPWScale
			u.TCPFlags, u.TCPWScale = f.TCPFlags, f.TCPWScale
		case strict:
			u.Has |= flow.HasTCPFlags | flow.HasTCPWScale
			u.TCPFlags, u.TCPWScale = have.TCPFlags, have.TCPWScale
			for dir := range u.TCPFlags {
				u.TCPFlags[dir] |= flow.TCPFlagBeLiberal
			}
		}
	}
	return ahead || ours == theirs
}

// mergeSCTP gives an entry without verification tags those of f, and moves the
// state of the same association forward. It reports whether the state will be
// that of f.
func mergeSCTP(u, f, have *flow.Flow) (same bool) {
	none := [2]uint32{}
	bare := have.SCTPVtag == none && f.SCTPVtag != none
	inOrder := have.SCTPState >= flow.SCTPCookieWait && f.SCTPState <= flow.SCTPShutdownAckSent
	ahead := have.SCTPVtag == f.SCTPVtag && inOrder && f.SCTPState > have.SCTPState
	if bare || ahead {
		u.Has |= flow.HasSCTP | flow.HasSCTPVtags
		u.SCTPState, u.SCTPVtag = f.SCTPState, f.SCTPVtag
		return true
	}
	return f.SCTPState == have.SCTPState
}

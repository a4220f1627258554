package flow

import "time"

// floorTimeout is what a flow is given at least, in seconds.
const floorTimeout = 60

// Remaining returns the timeout to hand on for what had timeout seconds left age ago,
// and lives without being used, like an expectation or a connection that is closing.
// What nobody has destroyed is alive whatever the arithmetic says: the result never
// falls below floorTimeout, or below timeout itself if that is less.
func Remaining(timeout uint32, age time.Duration) uint32 {
	s := max(0, int64(age/time.Second))
	return uint32(max(int64(timeout)-s, int64(min(timeout, floorTimeout))))
}

// Remaining returns the timeout to hand on for f, of which f.Timeout was said age ago.
//
// The kernel emits no event when a packet refreshes a timeout. Of a conversation in
// full swing the last event is that of its beginning, and the last packet may have come
// a moment ago. So it keeps half of the timeout at least; and the whole if it should have
// ended by now, for then it has been refreshed. With the arithmetic alone, a TCP
// connection of five days that speaks once an hour would not outlive a takeover.
func (f *Flow) Remaining(age time.Duration) uint32 {
	return remaining(f.Timeout, age, f.refreshed())
}

// Remaining is Flow.Remaining of a flow with this state.
func (s State) Remaining(age time.Duration) uint32 {
	return remaining(s.Timeout, age, refreshed(s.Status, s.Has(), s.ProtoState(), s.ProtoState()))
}

func remaining(timeout uint32, age time.Duration, refreshed bool) uint32 {
	switch {
	case !refreshed:
		return Remaining(timeout, age)
	case age >= time.Duration(timeout)*time.Second:
		return timeout
	}
	return max(Remaining(timeout, age), timeout/2)
}

// refreshed reports whether f is in the state in which flows spend their lives, where
// every packet sets the timeout anew and changes nothing that an event would tell.
func (f *Flow) refreshed() bool {
	return refreshed(f.Status, f.Has, f.TCPState, f.SCTPState)
}

func refreshed(status uint32, has Attrs, tcp, sctp uint8) bool {
	switch {
	case status&StatusAssured == 0:
		return false
	case has&HasTCP != 0:
		return tcp == TCPEstablished
	case has&HasSCTP != 0:
		return sctp == SCTPEstablished
	}
	return true
}

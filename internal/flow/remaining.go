package flow

import "time"

// floorTimeout is what a flow is given at least, in seconds.
const floorTimeout = 60

// Remaining returns the timeout to hand on for a flow that had timeout seconds
// left age ago. The kernel emits no event when traffic refreshes a timeout, so a
// flow that nobody has destroyed is alive whatever the arithmetic says: the result
// never falls below floorTimeout, or below timeout itself if that is less.
func Remaining(timeout uint32, age time.Duration) uint32 {
	s := max(0, int64(age/time.Second))
	return uint32(max(int64(timeout)-s, int64(min(timeout, floorTimeout))))
}

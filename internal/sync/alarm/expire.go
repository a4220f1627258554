package alarm

import (
	"time"

	"syncd/internal/monotime"
)

// Expirer is the external cache, as far as it forgets by time.
type Expirer interface {
	// Expire removes the owner's entries whose last CT_NEW or CT_UPD came before
	// olderThan, whether it changed anything or not. It may take its time, in
	// slices of the loop's turns; a call that comes while an earlier one is under
	// way replaces its limit, and what the earlier one has passed waits for the
	// next. It is called some sixteen times in Config.CacheTimeout, but no more
	// than once a second.
	Expire(owner uint8, olderThan monotime.Time)
}

// OnlyPeer is the owner of everything in conntrackd's dialect.
const OnlyPeer = 1

// expireEvery is the time between two calls of Expirer.Expire for one owner.
func expireEvery(timeout time.Duration) time.Duration { return max(timeout/16, time.Second) }

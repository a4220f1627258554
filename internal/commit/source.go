package commit

import (
	"errors"
	"fmt"
	"io"
	"time"

	"syncd/internal/flow"
)

// Entry is one entry of an external cache.
type Entry struct {
	Flow flow.Flow
	Age  time.Duration // since its owner last said something about it
	// Parked says that it is in the kernel already, with a long timeout (flow.Parked): it
	// is updated without a look, and gets its own timeout although that is shorter.
	Parked bool
	// Current says of a parked one that it lacks nothing but that timeout.
	Current bool
}

// Pass is one walk over a source. Entries are committed in the order of the
// passes.
type Pass uint8

const (
	PassEstablished Pass = iota // connections that carry traffic, without a master
	PassOthers                  // all others without a master
	PassRelated                 // flows that have a master
	passes
)

// PassOf returns the pass in which f is due. Established connections go first:
// they are those that somebody misses.
func PassOf(f *flow.Flow) Pass { return Classify(f.Has, f.Status, f.TCPState) }

// Classify is PassOf for who has only these parts of a flow at hand: a source walks
// over all entries in each pass, and should not copy those that are not due.
func Classify(has flow.Attrs, status uint32, tcpState uint8) Pass {
	switch {
	case has&flow.HasMaster != 0:
		return PassRelated
	case has&flow.HasTCP != 0:
		if tcpState == flow.TCPEstablished {
			return PassEstablished
		}
	case status&(flow.StatusAssured|flow.StatusSeenReply) != 0:
		return PassEstablished
	}
	return PassOthers
}

// Source hands out the entries of a cache, pass by pass.
type Source interface {
	// Next copies entries that are due in pass p into dst and returns how many.
	// The pass ends with io.EOF, which may come together with the last entries;
	// any other error ends the commit.
	//
	// An entry may move from one class of PassOf to the other while the commit
	// runs. Then the source should hand it out in the later pass: one that is
	// handed out twice does no harm, one that is never handed out is lost.
	Next(p Pass, dst []Entry) (n int, err error)
}

// chunkSize is how many entries are asked of a source at once: a whole number
// of batches, so that short batches come at the end of a pass only.
const chunkSize = 4 * batchSize

// fill reads from src until dst is full or the pass is over (last).
func fill(src Source, p Pass, dst []Entry) (n int, last bool, err error) {
	for idle := 0; n < len(dst); {
		m, err := src.Next(p, dst[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return n, true, nil
		case err != nil:
			return n, false, fmt.Errorf("commit: read cache: %w", err)
		case m > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return n, false, fmt.Errorf("commit: read cache: %w", io.ErrNoProgress)
			}
		}
	}
	return n, false, nil
}

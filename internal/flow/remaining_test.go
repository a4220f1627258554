package flow

import (
	"testing"
	"time"
)

// A conversation in full swing has half of its timeout at least, whatever its age, since
// nothing tells when a packet has passed last.
func TestRemainingOfFlow(t *testing.T) {
	const (
		answered = StatusConfirmed | StatusSeenReply
		assured  = answered | StatusAssured
		week     = 7 * 24 * time.Hour
	)
	for _, tt := range []struct {
		name string
		f    Flow
		age  time.Duration
		want uint32
	}{
		{"TCP, established a week ago", Flow{Has: HasTCP, TCPState: TCPEstablished, Status: assured, Timeout: 432000}, week, 432000},
		{"TCP, established an hour ago", Flow{Has: HasTCP, TCPState: TCPEstablished, Status: assured, Timeout: 432000}, time.Hour, 428400},
		{"TCP, established four days ago", Flow{Has: HasTCP, TCPState: TCPEstablished, Status: assured, Timeout: 432000}, 4 * 24 * time.Hour, 216000},
		{"TCP, established five days ago", Flow{Has: HasTCP, TCPState: TCPEstablished, Status: assured, Timeout: 432000}, 5 * 24 * time.Hour, 432000},
		{"TCP, established but not assured", Flow{Has: HasTCP, TCPState: TCPEstablished, Status: answered, Timeout: 432000}, time.Hour, 428400},
		{"TCP, opening", Flow{Has: HasTCP, TCPState: TCPSynSent, Status: StatusConfirmed, Timeout: 120}, 30 * time.Second, 90},
		{"TCP, closing", Flow{Has: HasTCP, TCPState: TCPTimeWait, Status: assured, Timeout: 120}, 30 * time.Second, 90},
		{"TCP, closing for long", Flow{Has: HasTCP, TCPState: TCPFinWait, Status: assured, Timeout: 120}, week, 60},
		{"UDP in both directions", Flow{Orig: Tuple{Proto: UDP}, Status: assured, Timeout: 120}, week, 120},
		{"UDP in both directions, a minute ago", Flow{Orig: Tuple{Proto: UDP}, Status: assured, Timeout: 120}, 61 * time.Second, 60},
		{"UDP in both directions, a short timeout", Flow{Orig: Tuple{Proto: UDP}, Status: assured, Timeout: 5}, 3 * time.Second, 5},
		{"UDP, answered once", Flow{Orig: Tuple{Proto: UDP}, Status: answered, Timeout: 30}, 10 * time.Second, 30},
		{"UDP, unanswered", Flow{Orig: Tuple{Proto: UDP}, Status: StatusConfirmed, Timeout: 300}, 100 * time.Second, 200},
		{"SCTP, established", Flow{Has: HasSCTP, SCTPState: SCTPEstablished, Status: assured, Timeout: 210}, week, 210},
		{"SCTP, closing", Flow{Has: HasSCTP, SCTPState: SCTPShutdownSent, Status: assured, Timeout: 100}, 30 * time.Second, 70},
		{"GRE in both directions", Flow{Orig: Tuple{Proto: GRE}, Status: assured, Timeout: 180}, week, 180},
	} {
		if got := tt.f.Remaining(tt.age); got != tt.want {
			t.Errorf("%s: %d s, want %d", tt.name, got, tt.want)
		}
		if f := tt.f; true { // its state alone says the same
			switch f.Has |= HasStatus | HasTimeout; {
			case f.Has&HasTCP != 0:
				f.Orig.Proto = TCP
			case f.Has&HasSCTP != 0:
				f.Orig.Proto = SCTP
			}
			if got := f.State().Remaining(tt.age); got != tt.want {
				t.Errorf("%s, by its state: %d s, want %d", tt.name, got, tt.want)
			}
		}
	}
}

package monotime

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestEarliest(t *testing.T) {
	for _, tt := range []struct{ a, b, want Time }{
		{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {3, 5, 3}, {5, 3, 3}, {-5, 3, -5},
	} {
		if got := Earliest(tt.a, tt.b); got != tt.want {
			t.Errorf("Earliest(%d, %d) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestNowFollowsTheBubbleClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := Now()
		time.Sleep(3 * time.Hour)
		if d := Now().Sub(a); d != 3*time.Hour {
			t.Errorf("three hours of sleep took %v", d)
		}
	})
}

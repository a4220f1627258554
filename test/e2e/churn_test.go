package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
)

// numbered returns flow number n (below 2^16) of a test: TCP and UDP over IPv4 and
// IPv6 in turn, answered, and with a timeout that no test outlives.
func numbered(n int) conntrack.Flow {
	v6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01}
	binary.BigEndian.PutUint32(v6[12:], uint32(n))
	src, dst := netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), server4
	if n&2 != 0 {
		src, dst = netip.AddrFrom16(v6), server6
	}
	proto := uint8(flow.TCP)
	if n&1 != 0 {
		proto = flow.UDP
	}
	f := conntrack.NewFlow(proto, established, src, dst, uint16(1024+n%50000), 443, 1200, uint32(n))
	if proto == flow.TCP {
		f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: flow.TCPEstablished}
	}
	return f
}

// create makes the flows from number first up to below end.
func create(t testing.TB, k *conntrack.Conn, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		if err := k.Create(numbered(n)); err != nil {
			t.Fatalf("create flow %d: %v", n, err)
		}
	}
}

// destroy ends the flows from number first up to below end.
func destroy(t testing.TB, k *conntrack.Conn, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		if err := k.Delete(numbered(n)); err != nil {
			t.Fatalf("destroy flow %d: %v", n, err)
		}
	}
}

// churn creates, changes, ends and re-creates flows, from number first on, at a
// rate (operations a second) for a time. It leaves many of them.
func churn(t testing.TB, k *conntrack.Conn, first, rate int, d time.Duration) error {
	const most = 1500 // different flows
	seed := time.Now().UnixNano()
	t.Logf("churn with seed %d", seed)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	alive := map[int]bool{}
	begin := time.Now()
	done := 0
	for now := begin; now.Sub(begin) < d; now = time.Now() {
		for ; done < int(now.Sub(begin).Seconds()*float64(rate)); done++ {
			n := first + r.IntN(most)
			f := numbered(n)
			var err error
			switch {
			case !alive[n]:
				f.Mark = r.Uint32()
				err = k.Create(f)
				alive[n] = true
			case r.IntN(3) == 0:
				err = k.Delete(f)
				delete(alive, n)
				if r.IntN(3) == 0 && err == nil { // at once another with the same tuple
					f.Mark = r.Uint32()
					err = k.Create(f)
					alive[n] = true
				}
			default:
				f.Mark = r.Uint32() | 1 // no mark leaves the old one
				f.Timeout = 600 + uint32(r.IntN(1000))
				if f.ProtoInfo.TCP != nil {
					f.ProtoInfo.TCP.State = flow.TCPEstablished + uint8(r.IntN(5))
				}
				err = k.Update(f)
			}
			if err != nil {
				return fmt.Errorf("churn: flow %d: %w", n, err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d changes, %d flows are left", done, len(alive))
	return nil
}

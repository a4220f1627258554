package simnet

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pair returns a network with two ports.
func pair(seed uint64) (n *Network, a, b *Port) {
	n = New(seed)
	return n, n.Port(netip.MustParseAddr("192.0.2.1")), n.Port(netip.MustParseAddr("192.0.2.2"))
}

// reader gathers what a port receives.
type reader struct {
	mu  sync.Mutex
	got []string
	at  []time.Duration
	err error
}

func read(p *Port) *reader {
	r := &reader{}
	start := time.Now()
	go func() {
		for {
			n, err := p.Read()
			r.mu.Lock()
			if err != nil {
				r.err = err
				r.mu.Unlock()
				return
			}
			for i := range n {
				b, _ := p.Datagram(i)
				r.got = append(r.got, string(b))
				r.at = append(r.at, time.Since(start))
			}
			r.mu.Unlock()
		}
	}()
	return r
}

func send(p *Port, n int) {
	for i := range n {
		p.Send([][]byte{[]byte(strconv.Itoa(i))})
	}
}

func TestPerfectNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(1)
		ra, rb := read(a), read(b)
		buf := []byte("hello")
		a.Send([][]byte{buf})
		copy(buf, "later") // the network has its own copy
		synctest.Wait()
		if len(ra.got) != 0 || !slices.Equal(rb.got, []string{"hello"}) {
			t.Errorf("A got %q, B got %q", ra.got, rb.got)
		}
		if _, from := b.Datagram(0); from != a.Addr() {
			t.Errorf("sender %v, want %v", from, a.Addr())
		}
		if s := n.Stats(a, b); s != (PathStats{Sent: 1, Delivered: 1}) {
			t.Errorf("stats %+v", s)
		}
		a.Close()
		b.Close()
		synctest.Wait()
		if !errors.Is(ra.err, net.ErrClosed) {
			t.Errorf("reader of a closed port ended with %v", ra.err)
		}
	})
}

func TestFaults(t *testing.T) {
	const total = 2000
	for _, tt := range []struct {
		name  string
		f     Faults
		check func(t *testing.T, s PathStats, r *reader)
	}{
		{"loss", Faults{Loss: 0.3}, func(t *testing.T, s PathStats, r *reader) {
			if s.Lost < total/5 || s.Lost > total/2 || len(r.got) != total-s.Lost {
				t.Errorf("%+v, %d arrived", s, len(r.got))
			}
		}},
		{"duplicate", Faults{Duplicate: 0.3}, func(t *testing.T, s PathStats, r *reader) {
			if s.Duplicated < total/5 || s.Duplicated > total/2 || len(r.got) != total+s.Duplicated {
				t.Errorf("%+v, %d arrived", s, len(r.got))
			}
		}},
		{"delay", Faults{Delay: time.Second}, func(t *testing.T, s PathStats, r *reader) {
			if len(r.got) != total || slices.Min(r.at) != time.Second || slices.Max(r.at) != time.Second {
				t.Errorf("%d arrived after %v to %v", len(r.got), slices.Min(r.at), slices.Max(r.at))
			}
		}},
		{"reordering", Faults{Jitter: time.Second}, func(t *testing.T, s PathStats, r *reader) {
			numbers := make([]int, len(r.got))
			for i := range r.got {
				numbers[i], _ = strconv.Atoi(r.got[i])
			}
			if len(r.got) != total || slices.IsSorted(numbers) {
				t.Errorf("%d arrived, in order: %v", len(r.got), slices.IsSorted(numbers))
			}
		}},
		{"cut", Faults{Cut: true}, func(t *testing.T, s PathStats, r *reader) {
			if len(r.got) != 0 || s.Lost != total {
				t.Errorf("%+v, %d arrived", s, len(r.got))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b := pair(7)
				ra, rb := read(a), read(b)
				n.SetDirection(a, b, tt.f)
				send(a, total)
				send(b, 10)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				tt.check(t, n.Stats(a, b), rb)
				if len(ra.got) != 10 {
					t.Errorf("the other direction delivered %d of 10", len(ra.got))
				}
				n.SetFaults(Faults{}) // and all is well again
				before := len(rb.got)
				send(a, 10)
				synctest.Wait()
				if len(rb.got)-before != 10 {
					t.Errorf("%d of 10 arrived without faults", len(rb.got)-before)
				}
				a.Close()
				b.Close()
			})
		})
	}
}

func TestSameSeedSameFaults(t *testing.T) {
	run := func(seed uint64) (got []string) {
		synctest.Test(t, func(t *testing.T) {
			n, a, b := pair(seed)
			r := read(b)
			n.SetFaults(Faults{Loss: 0.5, Duplicate: 0.2})
			send(a, 200)
			synctest.Wait()
			got = r.got
			a.Close()
			b.Close()
		})
		return got
	}
	if !slices.Equal(run(3), run(3)) {
		t.Error("the same seed made other faults")
	}
	if slices.Equal(run(3), run(4)) {
		t.Error("another seed made the same faults")
	}
}

func TestQueueIsBounded(t *testing.T) {
	n, a, b := pair(1)
	send(a, maxQueue+5)
	if s := n.Stats(a, b); s.Delivered != maxQueue || s.Overflowed != 5 {
		t.Errorf("%+v", s)
	}
}

func TestClosedPortIsDetached(t *testing.T) {
	n, a, b := pair(1)
	b.Close()
	c := n.Port(b.Addr()) // the node starts again
	send(a, 3)
	if got := n.Stats(a, c).Delivered; got != 3 {
		t.Errorf("the new port got %d of 3", got)
	}
}

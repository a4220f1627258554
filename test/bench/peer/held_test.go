package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"syncd/test/bench/rig"
	"syncd/test/bench/rig/rigtest"
)

// A daemon that holds so much, beside a generator that makes so much.
func TestSearch(t *testing.T) {
	rates := ladder(heldFrom, heldTo)
	if !slices.IsSorted(rates) || rates[0] != heldFrom {
		t.Fatalf("the ladder is %v", rates)
	}
	for _, c := range []struct {
		holds, makes float64
		want         float64 // at least
		limited      bool
	}{
		{holds: 100e3, makes: 1e9, want: 100e3 / 1.126},
		{holds: 1e3, makes: 1e9},
		{holds: 1e9, makes: 300e3, want: 300e3, limited: true},
		{holds: 1e9, makes: 1e9, want: heldTo / 1.126, limited: true},
		{holds: 290e3, makes: 300e3, want: 290e3 / 1.126},
	} {
		h, err := search(rates, func(rate int) (*Load, error) {
			made := min(float64(rate), c.makes)
			return &Load{Rate: made, Held: made <= c.holds}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if h.Rate < c.want || h.Rate > min(c.holds, c.makes) || h.Limited != c.limited {
			t.Errorf("%+v: %v/s, limited %v", c, h.Rate, h.Limited)
		}
		if len(h.Loads) > 6 {
			t.Errorf("%d loads were tried", len(h.Loads))
		}
	}
}

func TestShares(t *testing.T) {
	if s, err := shares("0.4,0"); err != nil || !slices.Equal(s, []float64{0.4, 0}) {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"2", "x", "-1", "0.001", "0.4,", "NaN"} {
		if _, err := shares(bad); err == nil || !strings.HasPrefix(err.Error(), "-held") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// With a sixteenth of a processor a daemon holds little: the limit is felt, the losses are
// counted, and are repaired when it is lifted.
func TestConfined(t *testing.T) {
	o := options{bin: rigtest.Build(t), quick: true}
	if err := o.parse("syncd", "1", "", ""); err != nil {
		t.Fatal(err)
	}
	r, err := rig.New(o.bin)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &pairUnderTest{rig: r, o: o}
	for i, d := range []**rig.Daemon{&p.a, &p.b} {
		if *d, err = r.Start(rig.Sealed, i, rig.Settings{}); err != nil {
			t.Fatal(err)
		}
	}
	g, err := newGenerator(r.A)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	if err := p.meet(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l, err := p.confined(leastShare, func() (int, time.Duration, error) {
		return g.churn(t.Context(), 120000, 5000, time.Second)
	})
	if err != nil {
		if os.Getenv("CI") != "true" && strings.Contains(err.Error(), "limit processor time") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	// On a busy machine the generator may make no more than that is enough for.
	if l.Held && l.Rate > 80e3 {
		t.Errorf("a sixteenth of a processor was enough: %+v", l)
	}
	if d, err := p.diverged(); err != nil || !d.Zero() {
		t.Errorf("afterwards %+v, %v", d, err)
	}
	res := HeldResults{Rates: []Held{{Kind: rig.Sealed, Share: 0.4, Rate: 200e3, Limited: true}, {Kind: rig.Conntrackd, Share: 0.4, Rate: 80e3}}}
	var out bytes.Buffer
	res.table(&out)
	if !strings.Contains(out.String(), "2.50+") || !strings.Contains(out.String(), "40 % of a processor each") {
		t.Errorf("the table:\n%s", &out)
	}
}

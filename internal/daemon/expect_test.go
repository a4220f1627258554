package daemon

import (
	"errors"
	"io"
	"testing"

	"syncd/internal/commit"
	"syncd/internal/ctl"
	"syncd/internal/flow"
)

// someExpect is expectation i, of the helper "ftp", or of "sip" if i is a multiple of 5.
func someExpect(i int) (x flow.Expect) {
	x.Tuple = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, byte(i)}, Dst: [16]byte{198, 51, 100, 1}, DstPort: uint16(i)}
	x.Master = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, byte(i)}, Dst: [16]byte{198, 51, 100, 1}, SrcPort: uint16(i), DstPort: 21}
	x.Timeout, x.Has = 300, flow.ExpectHasTimeout|flow.ExpectHasHelper
	x.Helper, _ = flow.MakeName("ftp")
	if i%5 == 0 {
		x.Helper, _ = flow.MakeName("sip")
	}
	return x
}

// TestExpectsHandedOut: a commit gets all flows and no expectation, and then each
// expectation of a selected helper once; a dump shows both.
func TestExpectsHandedOut(t *testing.T) {
	d, _ := newDaemon(t, validConfig)
	const n = 1000
	d.external(t, func(put func(flow.Flow)) {
		x := externalCache(d.engine)
		for i := range n {
			put(classes(i))
			e := someExpect(i)
			if _, err := x.InsertExpect(&e, d.engine.Now()); err != nil {
				t.Error(err)
			}
		}
	})
	expects := func(helpers ...string) map[flow.Tuple]int {
		t.Helper()
		d.cfg.Filter.Expectations.Helpers = helpers
		if err := d.engine.Do(t.Context(), func() { d.engine.SetFilter(compileFilter(d.cfg, nil)) }); err != nil {
			t.Fatal(err)
		}
		src, err := d.newSource(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if src.total != n {
			t.Errorf("%d flows are announced, want %d", src.total, n)
		}
		got := map[flow.Tuple]int{}
		dst := make([]commit.ExpectEntry, 64)
		for {
			k, err := src.NextExpects(dst)
			for i := range dst[:k] {
				got[dst[i].Expect.Key()]++
			}
			if errors.Is(err, io.EOF) {
				return got
			}
			if err != nil || k == 0 {
				t.Fatalf("%d, %v", k, err)
			}
		}
	}
	for _, c := range []struct {
		helpers []string
		want    int
	}{{nil, 0}, {[]string{"sip"}, n / 5}, {[]string{"sip", "ftp"}, n}} {
		got := expects(c.helpers...)
		if len(got) != c.want {
			t.Errorf("%v: %d expectations, want %d", c.helpers, len(got), c.want)
		}
		for key, times := range got {
			if times != 1 {
				t.Errorf("%v: %v was handed out %d times", c.helpers, key, times)
			}
		}
	}
	src, err := d.newSource(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	flows := map[flow.Tuple]int{}
	for p := range commit.Pass(3) {
		take(t, src, p, flows, nil)
	}
	for key := range flows {
		if key.IsExpectKey() {
			t.Errorf("%v was handed out as a flow", key)
		}
	}
	if len(flows) != n {
		t.Errorf("%d flows were handed out, want %d", len(flows), n)
	}

	var shownFlows int
	shown := map[flow.Tuple]flow.Expect{}
	if err := d.Dump(t.Context(), ctl.External, func(e *ctl.DumpEntry) error {
		if e.Expect == nil {
			shownFlows++
		} else if shown[e.Expect.Key()] = *e.Expect; e.Flow != (flow.Flow{}) {
			t.Errorf("an expectation comes with the flow %v", &e.Flow)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		want := someExpect(i)
		if got := shown[want.Key()]; got != want {
			t.Errorf("shown %v, want %v", &got, &want)
		}
	}
	if shownFlows != n || len(shown) != n {
		t.Errorf("%d flows and %d expectations are shown", shownFlows, len(shown))
	}
	s, err := d.Status(t.Context())
	if err != nil || s.External.Expects != n || s.External.Entries != 2*n {
		t.Errorf("status: %+v, %v", s, err)
	}
}

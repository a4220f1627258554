package chart

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestSVG(t *testing.T) {
	for name, c := range map[string]Chart{
		"nothing": {},
		"one":     {Title: "a < b & c", X: "x", Y: "y", Series: []Series{{"one", []Point{{1, 0}}}}},
		"log log": {LogX: true, LogY: true, Series: []Series{{"a", []Point{{1e3, 47}, {2e5, 0.6}}}}},
		"log y":   {LogY: true},
		"one log": {LogX: true, Series: []Series{{"one", []Point{{1e4, 2}}}}},
		"log":     {LogX: true, Series: []Series{{"a", []Point{{1e4, 3}, {2e6, 4.5}}}, {"b", []Point{{1e5, 1}}}}},
	} {
		svg := string(c.SVG())
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, svg)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s: a point is nowhere:\n%s", name, svg)
		}
		points := 0
		for _, s := range c.Series {
			points += len(s.Points)
		}
		if n := strings.Count(svg, "<circle"); n != points {
			t.Errorf("%s: %d of %d points", name, n, points)
		}
	}
}

// A logarithmic axis goes from the first point to the last, with round numbers on it,
// and many names take two rows.
func TestAxisAndNames(t *testing.T) {
	c := Chart{LogX: true}
	for _, name := range []string{"a rather long name", "another long name", "one that is long too", "and the last of them"} {
		c.Series = append(c.Series, Series{name, []Point{{1e4, 1}, {2e6, 2}}})
	}
	svg := string(c.SVG())
	for _, want := range []string{">10k<", ">20k<", ">50k<", ">1M<", ">2M<", `cx="60"`, `cx="620"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("the chart lacks %s", want)
		}
	}
	for _, not := range []string{">5M<", ">5000<"} {
		if strings.Contains(svg, not) {
			t.Errorf("the axis has %s", not)
		}
	}
	c.LogY, c.Series[0].Points[1].Y = true, 60
	log := string(c.SVG())
	for _, want := range []string{">1<", ">2<", ">5<", ">10<", ">20<", ">50<"} {
		if !strings.Contains(log, want) {
			t.Errorf("the logarithmic chart lacks %s", want)
		}
	}
	if strings.Contains(log, ">0<") || strings.Contains(log, ">100<") {
		t.Error("the logarithmic axis goes too far")
	}
	if first, last := strings.Index(svg, `y="296"`), strings.Index(svg, `y="312"`); first < 0 || last < first {
		t.Errorf("names in rows at %d and %d", first, last)
	}
}

func TestStep(t *testing.T) {
	for limit, want := range map[float64]float64{0: 1, 1: 0.2, 5: 1, 7.3: 2, 240: 50, 1e6: 2e5} {
		if got := step(limit); got < want*0.999 || got > want*1.001 {
			t.Errorf("axis up to %v: step %v, want %v", limit, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 0.2: "0.2", 250: "250", 12000: "12k", 1e6: "1M"} {
		if got := label(v); got != want {
			t.Errorf("%v is labelled %q, want %q", v, got, want)
		}
	}
}

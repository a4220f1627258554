// Package chart draws the small line charts of the documentation, as SVG. It knows
// numbers, not what they mean.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
)

// Chart is a set of lines over common axes. Both axes begin at 0, unless LogX or LogY is
// set: then that one is logarithmic, and all its values must be positive.
type Chart struct {
	Title, X, Y string // Title and the names of the axes
	LogX, LogY  bool
	Series      []Series
}

// Series is one line.
type Series struct {
	Name   string
	Points []Point
}

// Point is a value, in the units of the axes.
type Point struct{ X, Y float64 }

const (
	width, height = 640, 320
	left, right   = 60, 20
	top, bottom   = 34, 74
)

// Colours that the colour-blind can tell apart (Okabe and Ito), dark enough for both
// light and dark pages.
var colours = []string{"#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b58900", "#333333"}

// SVG returns the chart as a document.
func (c *Chart) SVG() []byte {
	maxX, maxY, minX, minY := 0.0, 0.0, math.Inf(1), math.Inf(1)
	for _, s := range c.Series {
		for _, p := range s.Points {
			maxX, maxY, minX, minY = max(maxX, p.X), max(maxY, p.Y), min(minX, p.X), min(minY, p.Y)
		}
	}
	if maxX == 0 {
		maxX, minX = 1, 1
	}
	stepY := step(maxY)
	topY := max(math.Ceil(maxY/stepY-1e-9), 1) * stepY
	posX := func(x float64) float64 { return left + x/maxX*(width-left-right) }
	if c.LogX {
		if minX == maxX {
			minX, maxX = minX/2, 2*maxX
		}
		lo, hi := math.Log10(minX), math.Log10(maxX)
		posX = func(x float64) float64 { return left + (math.Log10(x)-lo)/(hi-lo)*(width-left-right) }
	}
	posY := func(y float64) float64 { return height - bottom - y/topY*(height-top-bottom) }
	var ticksY []float64
	if c.LogY && maxY > 0 {
		minY, maxY = minY/1.2, maxY*1.2
		lo, hi := math.Log10(minY), math.Log10(maxY)
		posY = func(y float64) float64 { return height - bottom - (math.Log10(y)-lo)/(hi-lo)*(height-top-bottom) }
		ticksY = logTicks(minY, maxY)
	} else {
		for y := 0.0; y <= topY+stepY/2; y += stepY {
			ticksY = append(ticksY, y)
		}
	}

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(&b, `<text x="%s" y="%s" text-anchor="%s"%s>`, num(x), num(y), anchor, extra)
		_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
		b.WriteString("</text>\n")
	}
	text(left, 20, "start", ` font-size="14" font-weight="bold"`, c.Title)
	for _, y := range ticksY {
		fmt.Fprintf(&b, `<path d="M%d %sH%d" stroke="#ddd"/>`+"\n", left, num(posY(y)), width-right)
		text(left-6, posY(y)+4, "end", "", label(y))
	}
	for _, x := range c.ticksX(minX, maxX) {
		fmt.Fprintf(&b, `<path d="M%s %dv4" stroke="#000"/>`+"\n", num(posX(x)), height-bottom)
		text(posX(x), height-bottom+18, "middle", "", label(x))
	}
	fmt.Fprintf(&b, `<path d="M%d %dV%dH%d" fill="none" stroke="#000"/>`+"\n", left, top, height-bottom, width-right)
	text((left+width-right)/2, height-bottom+36, "middle", "", c.X)
	middle := float64(top+height-bottom) / 2
	text(16, middle, "middle", fmt.Sprintf(` transform="rotate(-90 16 %s)"`, num(middle)), c.Y)
	x, y := float64(left), height-24.0
	for i, s := range c.Series {
		long := 36 + 6.5*float64(len([]rune(s.Name)))
		if x+long > width && x > left {
			x, y = left, y+16
		}
		colour := colours[i%len(colours)]
		b.WriteString(`<path d="`)
		for j, p := range s.Points {
			b.WriteString(map[bool]string{true: "M", false: "L"}[j == 0] + num(posX(p.X)) + " " + num(posY(p.Y)))
		}
		fmt.Fprintf(&b, `" fill="none" stroke="%s" stroke-width="2"/>`+"\n", colour)
		for _, p := range s.Points {
			fmt.Fprintf(&b, `<circle cx="%s" cy="%s" r="3" fill="%s"/>`+"\n", num(posX(p.X)), num(posY(p.Y)), colour)
		}
		fmt.Fprintf(&b, `<path d="M%s %dh16" stroke="%s" stroke-width="2"/>`+"\n", num(x), int(y)-4, colour)
		text(x+22, y, "start", "", s.Name)
		x += long
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (c *Chart) ticksX(minX, maxX float64) (ticks []float64) {
	if c.LogX {
		return logTicks(minX, maxX)
	}
	for s, x := step(maxX), 0.0; x <= maxX*1.0001; x += s {
		ticks = append(ticks, x)
	}
	return ticks
}

// logTicks returns the round numbers of a logarithmic axis.
func logTicks(least, most float64) (ticks []float64) {
	for e := math.Floor(math.Log10(least)); e <= math.Ceil(math.Log10(most)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if x := m * math.Pow(10, e); x >= least*0.9999 && x <= most*1.0001 {
				ticks = append(ticks, x)
			}
		}
	}
	return ticks
}

// step returns a round distance of ticks for an axis up to limit: about five of them.
func step(limit float64) float64 {
	if limit <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(limit/5)))
	for _, m := range []float64{1, 2, 5} {
		if limit/(m*unit) <= 6 {
			return m * unit
		}
	}
	return 10 * unit
}

func num(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// label writes a number of an axis: 1200000 is 1.2M.
func label(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 4, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'g', 4, 64) + "k"
	}
	return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64)
}

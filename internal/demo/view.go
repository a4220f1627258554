package demo

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The size of the picture. It fits the smallest usual terminal, with a line left.
const (
	viewWidth  = 80
	viewHeight = 23
	viewSteps  = 6
	barWidth   = 16
)

// view is what the picture shows.
type view struct {
	title     string
	elapsed   time.Duration
	firewalls [2]firewallView
	kinds     map[kind]tally
	steps     []string
}

type firewallView struct {
	dead, carries, syncd bool
	entries              int // flows known by way of syncd
	rate                 int // packets a second
}

// style is how a piece of text looks; an empty one is as it is.
type style string

const (
	bold  style = "1"
	dim   style = "2"
	red   style = "31"
	green style = "32"
	cyan  style = "36"
)

func (s style) paint(text string) string {
	if text == "" {
		return ""
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// render returns the viewHeight lines of the picture, each at most viewWidth
// columns wide.
func (v *view) render() []string {
	lines := []string{
		bold.paint(fmt.Sprintf(" %-64s %10.1f s", v.title, v.elapsed.Seconds())),
		"",
	}
	lines = append(lines, v.picture()...)
	lines = append(lines, "")
	for i := 0; i < len(kinds); i += 2 { // IPv4 and IPv6 side by side
		k := kinds[i]
		lines = append(lines, fmt.Sprintf(" %s %-13s IPv4 %s IPv6 %s", k.protocol(), k.path, v.bar(k), v.bar(kinds[i+1])))
	}
	lines = append(lines, "")
	steps := v.steps[max(0, len(v.steps)-viewSteps):]
	for i := range viewSteps {
		if i < len(steps) {
			lines = append(lines, " "+steps[i])
		} else {
			lines = append(lines, "")
		}
	}
	return lines
}

// boxWidth is the width of a firewall in the picture, inside its frame.
const boxWidth = 36

// picture draws the network in seven lines.
func (v *view) picture() []string {
	a, b := v.firewalls[0], v.firewalls[1]
	now := v.active()
	frame := strings.Repeat("─", boxWidth)
	name := func(s string) string { return "┌ " + s + " " + frame[:len("─")*(boxWidth-len(s)-2)] + "┐" }
	// Between the two corners of the wires: the box, its frame, and two columns
	// at each side. The sync link is in the middle.
	const between, mark = boxWidth + 6, len("| sync")
	link := dim.paint("┆") + "     "
	if a.syncd && b.syncd {
		link = cyan.paint("┃ sync")
	}
	link = strings.Repeat(" ", between/2) + link + strings.Repeat(" ", between-between/2-mark)

	const left = "           "
	return []string{
		left + "   " + a.look().paint(name("fw1")),
		left + a.wire("┌──") + a.look().paint("┤"+a.text()+"├") + a.wire("──┐"),
		left + a.wire("│") + "  " + a.look().paint("└"+frame+"┘") + "  " + a.wire("│"),
		" client " + now.wire("───┤") + link + now.wire("├───") + " server",
		left + b.wire("│") + "  " + b.look().paint(name("fw2")) + "  " + b.wire("│"),
		left + b.wire("└──") + b.look().paint("┤"+b.text()+"├") + b.wire("──┘"),
		left + "   " + b.look().paint("└"+frame+"┘"),
	}
}

func (fw firewallView) look() style {
	switch {
	case fw.dead:
		return red
	case fw.carries:
		return green
	}
	return dim
}

// text says what the firewall does, in boxWidth columns.
func (fw firewallView) text() string {
	text := " ○ standby"
	switch {
	case fw.dead:
		text = " ✗ dead"
	case fw.carries:
		text = fmt.Sprintf(" ● active %6d packets/s", fw.rate)
	}
	switch {
	case fw.syncd && fw.entries > 0 && !fw.carries:
		text += fmt.Sprintf("  syncd knows %d flows", fw.entries)
	case fw.syncd:
		text += "  syncd"
	}
	return text + strings.Repeat(" ", max(0, boxWidth-utf8.RuneCountInString(text)))
}

// wire paints a piece of the firewall's cables.
func (fw firewallView) wire(text string) string {
	if fw.dead {
		text = strings.ReplaceAll(text, "─", "╌")
	}
	return fw.look().paint(text)
}

// active returns the firewall that has the addresses.
func (v *view) active() firewallView {
	if v.firewalls[1].carries {
		return v.firewalls[1]
	}
	return v.firewalls[0]
}

// bar shows how many connections of a kind are alive.
func (v *view) bar(k kind) string {
	t := v.kinds[k]
	if t.opened == 0 {
		return strings.Repeat(" ", barWidth+8)
	}
	full := t.alive * barWidth / t.opened
	return green.paint(strings.Repeat("█", full)) + red.paint(strings.Repeat("░", barWidth-full)) +
		fmt.Sprintf(" %3d/%-3d", t.alive, t.opened)
}

package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// screen shows the demo: on a terminal a picture that is drawn again in place,
// otherwise lines. Write errors are ignored: a demo that nobody can see still
// has an exit status.
type screen struct {
	out   io.Writer
	live  bool
	drawn int // lines of the picture that are on the terminal

	lastLine time.Time // of the state, without a picture
}

func newScreen(out io.Writer, plain bool) *screen {
	return &screen{out: out, live: !plain && canDraw(out)}
}

// canDraw reports whether out is a terminal that can show the picture.
func canDraw(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" || os.Getenv("NO_COLOR") != "" {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width >= viewWidth && height > viewHeight
}

func (s *screen) line(text string) { fmt.Fprintln(s.out, text) }

// begin starts the part of the demo with this title.
func (s *screen) begin(title string) {
	if s.live {
		fmt.Fprint(s.out, "\x1b[?25l") // no cursor
		return
	}
	s.line("\n" + title)
}

// end leaves the last picture where it is.
func (s *screen) end() {
	if s.live {
		fmt.Fprint(s.out, "\x1b[?25h\n")
		s.drawn = 0
	}
}

// step tells of something that has happened; the picture has its own place for it.
func (s *screen) step(text string) {
	if !s.live {
		s.line(text)
	}
}

// draw shows the state of things.
func (s *screen) draw(v *view) {
	if !s.live {
		s.drawLine(v)
		return
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", s.drawn)
	}
	lines := v.render()
	for _, l := range lines {
		b.WriteString(l)
		b.WriteString("\x1b[K\r\n") // the rest of the line may hold older text
	}
	s.drawn = len(lines)
	_, _ = io.WriteString(s.out, b.String()) // at once, or it flickers
}

// drawLine writes a line about the state once a second.
func (s *screen) drawLine(v *view) {
	if time.Since(s.lastLine) < time.Second || len(v.kinds) == 0 {
		return
	}
	s.lastLine = time.Now()
	var alive, opened [2]int
	for k, t := range v.kinds {
		i := 0
		if k.udp {
			i = 1
		}
		alive[i] += t.alive
		opened[i] += t.opened
	}
	s.line(fmt.Sprintf("%5.1f s    alive: TCP %d/%d, UDP %d/%d; packets/s: fw1 %d, fw2 %d", v.elapsed.Seconds(),
		alive[0], opened[0], alive[1], opened[1], v.firewalls[0].rate, v.firewalls[1].rate))
}

package host

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteJSON writes the report as one JSON document.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// colours of the verdicts on a terminal (ECMA-48), by verdict.
var colours = [...]string{OK: "\x1b[32m", Note: "\x1b[36m", Unknown: "\x1b[35m", Warning: "\x1b[33m", Error: "\x1b[31m"}

// Width of the column of the verdict, and the most of the other columns: longer text
// pushes the rest of its line to the right.
const (
	verdictWidth = 8
	nameWidth    = 44
	foundWidth   = 24
	textWidth    = 80 // of the explanations
)

// WriteText writes the report for people: first what has to be done, the gravest
// first, with what it should be, why, and how to change it; then all findings by
// group, a line each.
func (r *Report) WriteText(w io.Writer, colour bool) error {
	t := &textWriter{colour: colour}
	t.printf("%s on %s", r.Config, r.Node)
	if r.Kernel != "" {
		t.printf(", Linux %s", r.Kernel)
	}
	t.printf("\n")
	for v := Error; v >= Warning; v-- {
		for i := range r.Findings {
			if f := &r.Findings[i]; f.Verdict == v {
				t.problem(f)
			}
		}
	}
	nameLen, foundLen := 0, 0
	for i := range r.Findings {
		f := &r.Findings[i]
		nameLen = max(nameLen, min(len(f.short()), nameWidth))
		foundLen = max(foundLen, min(len(f.Found), foundWidth))
	}
	group, why := "", ""
	for i := range r.Findings {
		f := &r.Findings[i]
		if g := f.Group(); g != group {
			group = g
			t.printf("\n%s\n", title(g))
		}
		t.line(f, nameLen, foundLen, why)
		why = f.Why
	}
	t.printf("\n%s\n", r.Summary())
	_, err := io.WriteString(w, t.b.String())
	return err
}

func title(group string) string {
	if i := groupRank(group); i < len(groups) {
		return groups[i].title
	}
	return group
}

// Summary returns the result in one line.
func (r *Report) Summary() string {
	var parts []string
	for _, c := range [...]struct {
		n         int
		one, many string
	}{
		{r.Counts.Errors, "error", "errors"}, {r.Counts.Warnings, "warning", "warnings"},
		{r.Counts.Unknown, "thing not determined", "things not determined"}, {r.Counts.Notes, "note", "notes"},
	} {
		switch c.n {
		case 0:
		case 1:
			parts = append(parts, "1 "+c.one)
		default:
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.many))
		}
	}
	parts = append(parts, fmt.Sprintf("%d ok", r.Counts.OK))
	result := "failed: "
	if r.OK {
		result = "passed: "
	}
	return result + strings.Join(parts, ", ")
}

type textWriter struct {
	b      strings.Builder
	colour bool
}

func (t *textWriter) printf(format string, args ...any) { fmt.Fprintf(&t.b, format, args...) }

// verdict writes the verdict, padded to its column.
func (t *textWriter) verdict(v Verdict) {
	if t.colour {
		t.printf("%s%-*s\x1b[0m", colours[v], verdictWidth, v)
		return
	}
	t.printf("%-*s", verdictWidth, v)
}

// problem writes all that is known of a finding that asks for something to be done.
func (t *textWriter) problem(f *Finding) {
	t.printf("\n")
	t.verdict(f.Verdict)
	t.printf("%s: %s\n", f.Name(), f.Found)
	for _, l := range [...]struct{ name, text string }{{"want", f.Want}, {"why", f.Why}, {"fix", f.Fix}} {
		if l.text != "" {
			const nameWidth = 6
			text := l.text
			if l.name != "fix" { // that is to be copied as it is
				text = wrap(text, verdictWidth+nameWidth)
			}
			t.printf("%*s%-*s%s\n", verdictWidth, "", nameWidth, l.name, text)
		}
	}
}

// wrap breaks a sentence into lines that begin in this column, at its spaces.
func wrap(s string, column int) string {
	var b strings.Builder
	at := column
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
		case at+1+len(word) > textWidth:
			fmt.Fprintf(&b, "\n%*s", column, "")
			at = column
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String()
}

// short returns the name without the group, which is the title of its list.
func (f *Finding) short() string { return strings.TrimPrefix(f.Name(), f.Group()+".") }

// line writes a finding in one line: what it is, and what that means, unless the line
// before has just said so. Problems have been explained above.
func (t *textWriter) line(f *Finding, nameLen, foundLen int, said string) {
	t.printf("  ")
	t.verdict(f.Verdict)
	switch {
	case f.Verdict >= Warning, f.Verdict == OK && f.Why == said:
		t.printf("%-*s  %s\n", nameLen, f.short(), f.Found)
	case f.Verdict == OK:
		t.printf("%-*s  %-*s  %s\n", nameLen, f.short(), foundLen, f.Found, f.Why)
	default:
		t.printf("%-*s  %-*s  want %s: %s\n", nameLen, f.short(), foundLen, f.Found, f.Want, f.Why)
	}
}

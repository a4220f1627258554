package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report writes the table at the end, without the columns of a part that did not
// run (nil).
func (s *screen) report(without, with *result) {
	var b strings.Builder
	row := func(name, opened, off, on, gap string) {
		fmt.Fprintf(&b, "%-22s%13s", name, opened)
		if without != nil {
			fmt.Fprintf(&b, "%16s", off)
		}
		if with != nil {
			fmt.Fprintf(&b, "%13s%14s", on, gap)
		}
		b.WriteByte('\n')
	}
	numbers := func(name string, off, on tally) {
		row(name, fmt.Sprint(max(off.opened, on.opened)), fmt.Sprint(off.alive), fmt.Sprint(on.alive), gap(on))
	}
	b.WriteString("\nConnections alive at the end:\n\n")
	row("", "of", "without syncd", "with syncd", "longest gap")
	for _, k := range kinds {
		numbers(fmt.Sprintf("%s %s %s", k.protocol(), k.family(), k.path), without.kind(k), with.kind(k))
	}
	numbers("total", without.total(), with.total())

	if with != nil && with.role != nil {
		fmt.Fprintf(&b, "\nsyncd ctl primary took %s on fw2, which had noticed the death at once; keepalived\nneeds a moment more.\n", milliseconds(with.roleTook))
		if c := with.role.Commit; c != nil {
			t := c.Total()
			fmt.Fprintf(&b, "The commit of %d entries took %s of it:\n%d created, %d updated, %d already there, %d skipped, %d refused.\n",
				t.Entries, milliseconds(time.Duration(c.DurationS*float64(time.Second))), t.Created, t.Updated, t.AlreadyThere, t.Skipped, t.Refused)
		}
	}
	_, _ = io.WriteString(s.out, b.String())
}

// gap shows the longest time without an answer; nothing if none is alive.
func gap(t tally) string {
	if t.alive == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms", t.gap.Milliseconds())
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// into writes the tables of the results into a document, each between two comments
// that name it: <!-- peer --> and <!-- /peer -->, <!-- scale --> and <!-- /scale -->.
// What the results do not have, or the document does not want, is left as it is; it is
// an error if that is all.
func (r *Results) into(path string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	found := false
	for name, table := range map[string]string{"peer": r.peerMarkdown(), "scale": r.scaleMarkdown()} {
		if table == "" {
			continue
		}
		begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
		before, rest, ok := bytes.Cut(doc, []byte(begin))
		_, after, closed := bytes.Cut(rest, []byte(end))
		if !ok {
			continue
		}
		if !closed {
			return fmt.Errorf("%s: %q has no end", path, strings.TrimSpace(begin))
		}
		doc = bytes.Join([][]byte{before, []byte(begin), []byte("\n" + table + "\n" + end), after}, nil)
		found = true
	}
	if !found {
		return fmt.Errorf("%s has no place for a table of these results", path)
	}
	return os.WriteFile(path, doc, 0o644)
}

// markdown writes a table, the first row of which is its head.
func markdown(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
		}
	}
	return b.String()
}

// peerMarkdown is the table of the kinds against one another, "" if there is nothing.
func (r *Results) peerMarkdown() string {
	if len(r.Samples) == 0 {
		return ""
	}
	r.summarise()
	m := &r.Machine
	number := func(v float64) string {
		if v >= 1000 {
			return fmt.Sprintf("%.0f", v)
		}
		return fmt.Sprintf("%.3g", v)
	}
	ratio := func(row *Row, v float64) string {
		if row.Conntrackd == 0 || v == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", v)
	}
	rows := [][]string{{"", "conntrackd", "syncd, sealed", "ratio", "syncd, conntrackd's dialect", "ratio", "goal"}}
	for i := range r.Summary {
		row := &r.Summary[i]
		if row.detail {
			continue
		}
		what := row.What
		if row.Unit != "" {
			what += " (" + row.Unit + ")"
		}
		sealed := ratio(row, row.Ratio)
		if sealed != "" {
			sealed = "**" + sealed + "**"
		}
		rows = append(rows, []string{what, number(row.Conntrackd), number(row.Syncd), sealed, number(row.Plain), ratio(row, row.RatioPlain), row.Goal})
	}
	return fmt.Sprintf("%s, %d processors, Linux %s, %s; %d standing flows, %d lives at a time, medians of %d runs of %v s for each load.\n\n",
		m.CPU, m.CPUs, m.Kernel, m.Date.Format("2006-01-02"), m.Flows, m.Lives, r.runs(), m.DurationS) + markdown(rows)
}

// scaleMarkdown is the table by the number of flows, "" if there is nothing.
func (r *Results) scaleMarkdown() string {
	if len(r.Scales) == 0 {
		return ""
	}
	head := []string{"flows", "octets a flow, internal / external", "collector's part, active / backup",
		"p99 of latency alone (ms)", "beside a bulk update", "beside a resynchronisation", "the other way, beside a bulk update"}
	for _, l := range r.Scales[0].Churn {
		head = append(head, fmt.Sprintf("µs an event / a message at %d/s", l.Target))
	}
	rows := [][]string{head}
	for i := range r.Scales {
		s := &r.Scales[i]
		row := []string{fmt.Sprint(s.Flows), fmt.Sprintf("%.0f / %.0f", s.Memory.PerFlowInternal, s.Memory.PerFlowExternal),
			fmt.Sprintf("%.2f / %.2f %%", 100*s.GCActive, 100*s.GCBackup),
			fmt.Sprintf("%.1f", 1e3*s.Calm.P99), fmt.Sprintf("%.1f", 1e3*s.Bulk.P99), fmt.Sprintf("%.1f", 1e3*s.Resync.P99), fmt.Sprintf("%.1f", 1e3*s.Back.P99)}
		for _, l := range s.Churn {
			row = append(row, fmt.Sprintf("%.2f / %.2f", l.CPUActive/1e3, l.CPUBackup/1e3))
		}
		rows = append(rows, row)
	}
	return markdown(rows)
}

package ctl

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// The text forms are for people: their layout may change, the JSON documents are
// what programs read.

// page builds a text form. What a peer or a file chose goes through it like all
// else, and its end makes that harmless to a terminal.
type page struct {
	buf bytes.Buffer
	tab *tabwriter.Writer
}

func newPage() *page {
	p := new(page)
	p.tab = tabwriter.NewWriter(&p.buf, 0, 0, 2, ' ', 0)
	return p
}

// row writes the cells of one line of a table. A table ends where text begins.
func (p *page) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			p.tab.Write([]byte{'\t'})
		}
		fmt.Fprint(p.tab, oneLine(fmt.Sprint(c)))
	}
	p.tab.Write([]byte{'\n'})
}

// section begins a new table under a title.
func (p *page) section(title string) {
	p.tab.Flush()
	if p.buf.Len() > 0 {
		p.buf.WriteByte('\n')
	}
	p.buf.WriteString(title)
	p.buf.WriteByte('\n')
}

// counts writes one row for each reason that occurred, sorted.
func (p *page) counts(indent string, m map[string]uint64) {
	for _, reason := range slices.Sorted(maps.Keys(m)) {
		if m[reason] > 0 {
			p.row(indent+reason, m[reason])
		}
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

func (p *page) writeTo(w io.Writer) error {
	p.tab.Flush()
	// The table writer pads the last cell of a row whose successor is longer.
	lines := strings.Split(p.buf.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n"))
	return err
}

// oneLine replaces control characters, so that a name can neither forge a line
// nor command a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// RenderStatus writes s as text.
func RenderStatus(w io.Writer, s *Status) error {
	p := newPage()
	p.row("node", s.Node)
	p.row("version", s.Version)
	role := s.Role
	if !s.Since.IsZero() {
		role += " since " + s.Since.Format(time.RFC3339)
	}
	if s.RoleRestored {
		role += ", as before the restart of the daemon"
	}
	p.row("role", role)
	p.row("mode", s.Mode+", wire "+s.Wire)
	p.row("uptime", seconds(s.UptimeS))
	p.row("ready", yesNo(s.Ready))
	inSync := yesNo(s.InSync)
	if s.InSync && s.ProvenAgeS > 0 {
		inSync += ", proven " + seconds(s.ProvenAgeS) + " ago"
	}
	p.row("in sync", inSync)
	if s.Task != "" {
		p.row("doing", s.Task)
	}
	if len(s.Problems) > 0 {
		p.section("problems")
		for _, problem := range s.Problems {
			p.row("  " + problem)
		}
	}

	p.section("peers")
	p.row("  NAME", "ADDRESS", "STATE", "ROLE", "HEARD", "FLOWS", "UNACKED", "DIRTY", "NOTES")
	for i := range s.Peers {
		peer := &s.Peers[i]
		heard := "never"
		if peer.State != PeerUnheard {
			heard = seconds(peer.HeardAgeS) + " ago"
		}
		role := peer.Role
		if role == "" {
			role = "-"
		}
		p.row("  "+peer.Name, peer.Address, peer.State, role, heard, peer.Flows, peer.Unacked, peer.Dirty, peer.notes())
	}

	p.section("links")
	p.row("  NAME", "TYPE", "INTERFACE", "STATE", "PAYLOAD", "NOTES")
	for _, l := range s.Links {
		state := "down"
		if l.Up {
			state = "up"
		}
		if l.Active {
			state += ", active"
		}
		p.row("  "+l.Name, l.Type, l.Interface, state, l.MaxPayloadBytes, l.Reason)
	}

	p.section("caches")
	p.row("  NAME", "ENTRIES", "EXPECTATIONS", "DEAD", "LIMIT", "REFUSED", "MEMORY")
	for _, c := range []struct {
		name string
		*CacheStatus
	}{{"internal", &s.Internal}, {"external", &s.External}} {
		p.row("  "+c.name, c.Entries, c.Expects, c.Dead, c.Limit, c.Refused, octets(c.Bytes))
	}

	p.section("kernel")
	p.row("  entries", fmt.Sprintf("%d of %d", s.Kernel.Entries, s.Kernel.Max))
	events := strconv.Itoa(s.Kernel.Events)
	if s.Kernel.Events < 0 {
		events = "not known"
	}
	p.row("  nf_conntrack_events", events)
	if s.Parked != nil {
		p.row("  parked for peers", fmt.Sprintf("%d, %d changes waiting", s.Parked.Entries, s.Parked.Waiting))
	}
	for _, warning := range s.Kernel.Warnings {
		p.row("  warning: " + warning)
	}

	if s.LastCommit != nil {
		p.section("last commit")
		s.LastCommit.rows(p, "  ")
	}
	return p.writeTo(w)
}

func (s *PeerStatus) notes() string {
	var notes []string
	if !s.InSync {
		notes = append(notes, "not in sync")
	}
	if s.Bulk {
		notes = append(notes, "bulk update runs")
	}
	if s.Resync {
		notes = append(notes, "resync outstanding")
	}
	if s.Membership != "" {
		notes = append(notes, "member "+s.Membership)
	}
	return strings.Join(notes, ", ")
}

// RenderStats writes s as text.
func RenderStats(w io.Writer, s *Stats) error {
	p := newPage()
	p.row("counting since", s.Since.Format(time.RFC3339))

	p.section("kernel events")
	e := &s.Events
	p.row("  received", e.Received)
	p.row("    new", e.New)
	p.row("    updates", e.Updates)
	p.row("    destroys", e.Destroys)
	p.row("  filtered", e.Filtered)
	p.row("  own changes", e.Own)
	p.row("  malformed", e.Malformed)
	p.row("  about expectations", e.Expects)
	p.row("    left out", e.ExpectsLeftOut)
	p.row("  overruns", e.Overruns)
	p.row("  table read", e.Dumps)
	p.row("    entries", e.Dumped)
	p.row("    repaired", e.Repaired)
	p.row("  read singly", e.Fetched)
	p.row("    changed", e.Learned)
	p.row("    failures", e.FetchFailures)
	p.row("  receive buffer", octets(e.ReceiveBufferBytes))

	p.section("caches")
	p.row("", "INTERNAL", "EXTERNAL")
	in, ex := &s.Internal, &s.External
	p.row("  created", in.Created, ex.Created)
	p.row("  updated", in.Updated, ex.Updated)
	p.row("  unchanged", in.Unchanged, ex.Unchanged)
	p.row("  deleted", in.Deleted, ex.Deleted)
	p.row("  swept", in.Swept, ex.Swept)
	p.row("  expired", in.Expired, ex.Expired)
	p.row("  not found", in.NotFound, ex.NotFound)
	p.row("  not owner", in.NotOwner, ex.NotOwner)
	p.row("  refused", in.Refused, ex.Refused)
	p.row("  left behind", in.LeftBehind, "")
	p.row("  purged", in.Purged, "")

	p.section("sync")
	y := &s.Sync
	p.row("", "SENT", "RECEIVED")
	types := maps.Clone(y.MessagesSent)
	if types == nil {
		types = make(map[string]uint64)
	}
	maps.Copy(types, y.MessagesReceived)
	for _, name := range slices.Sorted(maps.Keys(types)) {
		p.row("  messages "+name, y.MessagesSent[name], y.MessagesReceived[name])
	}
	p.row("  ACK", y.AcksSent, y.AcksReceived)
	p.row("  NACK", y.NacksSent, y.NacksReceived)
	p.row("  bulk updates", y.BulksSent, y.BulksReceived)
	p.row("  resync requests", y.ResyncsAsked, y.ResyncsServed)
	p.section("sequence")
	p.row("  lost", y.Lost)
	p.row("  before", y.Before)
	p.row("  resent", y.Resent)
	p.row("  unfollowed", y.Unfollowed)
	p.row("  digests agreed", y.DigestsAgreed)
	p.row("  digests differed", y.DigestsDiffered)
	p.row("  repaired", y.Repaired)
	for _, d := range []struct {
		title string
		by    map[string]uint64
	}{{"malformed messages", y.Malformed}, {"refused datagrams", y.Refused}} {
		p.section(d.title)
		p.row("  total", sum(d.by))
		p.counts("    ", d.by)
	}

	for _, l := range s.Links {
		p.section("link " + oneLine(l.Name))
		p.row("", "SENT", "RECEIVED")
		p.row("  datagrams", l.DatagramsSent, l.DatagramsReceived)
		p.row("  octets", l.SentBytes, l.ReceivedBytes)
		p.section("link " + oneLine(l.Name) + ", dropped datagrams")
		p.row("  total", sum(l.Drops))
		p.counts("    ", l.Drops)
	}

	p.section("commits")
	c := &s.Commit
	p.row("  done", c.Commits)
	p.row("  failed", c.Failed)
	p.row("  entries", c.Entries)
	p.row("  created", c.Created)
	p.row("  updated", c.Updated)
	p.row("  skipped", c.Skipped)
	p.row("  refused", c.Refused)
	p.row("  time", seconds(c.DurationS))

	if a := s.Parked; a != nil {
		p.section("parked for peers")
		p.row("  created", a.Created)
		p.row("  updated", a.Updated)
		p.row("  remade", a.Remade)
		p.row("  deleted", a.Deleted)
		p.row("  released", a.Released)
		p.row("  adopted", a.Adopted)
		p.row("  touched", a.Touched)
		p.row("  yielded", a.Yielded)
		p.row("  not parked", sum(a.NotParked))
		p.counts("    ", a.NotParked)
	}

	p.section("control socket")
	k := &s.Control
	p.row("  connections", k.Connections)
	p.row("  rejected", k.Rejected)
	p.row("  requests", k.Requests)
	p.row("  failed", k.Failed)
	p.row("  cut off", k.CutOff)
	return p.writeTo(w)
}

// RenderCommit writes r as text.
func RenderCommit(w io.Writer, r *CommitReport) error {
	p := newPage()
	r.rows(p, "")
	return p.writeTo(w)
}

func (r *CommitReport) rows(p *page, indent string) {
	total := r.Total()
	verb := "committed"
	if r.DryRun {
		verb = "would commit"
	}
	p.row(fmt.Sprintf("%s%s %d entries in %s, %.0f a second", indent, verb, total.Entries, seconds(r.DurationS), r.RatePerS))
	p.row(indent, "ENTRIES", "CREATED", "UPDATED", "THERE", "SKIPPED", "REFUSED")
	for _, c := range []struct {
		name string
		*CommitCount
	}{{"flows", &r.Flows}, {"related", &r.Related}, {"expectations", &r.Expects}} {
		if c.name == "expectations" && c.Entries == 0 {
			continue
		}
		p.row(indent+c.name, c.Entries, c.Created, c.Updated, c.AlreadyThere, c.Skipped, c.Refused)
	}
	for _, g := range []struct {
		what string
		by   map[string]uint64
	}{{"refused", total.RefusedBy}, {"skipped", total.SkippedBy}, {"incomplete", total.IncompleteBy}} {
		for _, why := range slices.Sorted(maps.Keys(g.by)) {
			p.row(fmt.Sprintf("%s%s: %d %s", indent, g.what, g.by[why], why))
		}
	}
	if len(r.Examples) > 0 {
		p.row(indent + "for example:")
	}
	for _, example := range r.Examples {
		p.row(indent + "  " + example)
	}
}

// RenderRole writes r as text.
func RenderRole(w io.Writer, r *RoleReport) error {
	p := newPage()
	p.row(fmt.Sprintf("%s, was %s, took %s", r.Role, r.Before, seconds(r.DurationS)))
	for _, s := range r.Steps {
		p.row("  "+s.Name, seconds(s.DurationS), s.Message)
	}
	if r.Commit != nil {
		r.Commit.rows(p, "  ")
	}
	return p.writeTo(w)
}

// seconds shows a duration with about three digits, and days as such.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	days := d / (24 * time.Hour)
	return fmt.Sprintf("%dd%s", days, (d - days*24*time.Hour).Round(time.Minute))
}

// octets shows a size in the largest binary unit that it fills.
func octets(n uint64) string {
	const units = "KMGT"
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

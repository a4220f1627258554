package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Verdict grades a finding.
type Verdict uint8

// The verdicts, the mildest first.
const (
	OK      Verdict = iota // as it should be
	Note                   // works; good to know
	Unknown                // could not be determined
	Warning                // works, and will cost connections some day
	Error                  // replication cannot work
)

var verdictNames = [...]string{"ok", "note", "unknown", "warning", "error"}

func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return "?"
}

// MarshalText implements encoding.TextMarshaler.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Verdict) UnmarshalText(text []byte) error {
	i := slices.Index(verdictNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown verdict %q, accepted: %s", text, strings.Join(verdictNames[:], ", "))
	}
	*v = Verdict(i)
	return nil
}

// Finding is what the check has to say about one thing. Its id is stable over
// versions; the sentences are for people.
type Finding struct {
	ID      string  `json:"id"`                // dotted; the first part is the group
	Subject string  `json:"subject,omitempty"` // which of several: an interface, a helper, a peer
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Want    string  `json:"want"`
	Why     string  `json:"why"`           // one sentence
	Fix     string  `json:"fix,omitempty"` // a command, or what to write where
}

// Name returns the id with its subject.
func (f *Finding) Name() string {
	if f.Subject == "" {
		return f.ID
	}
	return f.ID + "[" + f.Subject + "]"
}

// Group returns the first part of the id.
func (f *Finding) Group() string {
	group, _, _ := strings.Cut(f.ID, ".")
	return group
}

// Groups of findings in the order in which they are told, with their titles.
var groups = [...]struct{ name, title string }{
	{"config", "Configuration"},
	{"kernel", "Kernel"},
	{"sysctl", "Sysctls"},
	{"table", "Connection tracking table"},
	{"buffer", "Socket buffers"},
	{"link", "Sync links"},
	{"rules", "Rules"},
	{"peer", "Peers"},
}

func groupRank(name string) int {
	for i, g := range groups {
		if g.name == name {
			return i
		}
	}
	return len(groups)
}

// Report is all that one check has found.
type Report struct {
	Version  int       `json:"version"` // of this document: 1
	Node     string    `json:"node"`
	Config   string    `json:"config"` // path
	Kernel   string    `json:"kernel"` // release
	OK       bool      `json:"ok"`     // the exit status is 0
	Counts   Counts    `json:"counts"`
	Findings []Finding `json:"findings"`
}

// Counts says how many findings have which verdict.
type Counts struct {
	OK       int `json:"ok"`
	Notes    int `json:"notes"`
	Unknown  int `json:"unknown"`
	Warnings int `json:"warnings"`
	Errors   int `json:"errors"`
}

// Finish sorts the findings by group, counts them and sets OK. With strict a warning
// fails the check as an error does.
func (r *Report) Finish(strict bool) {
	r.Version = 1
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(groupRank(a.Group()), groupRank(b.Group()))
	})
	r.Counts = Counts{}
	for _, f := range r.Findings {
		switch f.Verdict {
		case OK:
			r.Counts.OK++
		case Note:
			r.Counts.Notes++
		case Unknown:
			r.Counts.Unknown++
		case Warning:
			r.Counts.Warnings++
		case Error:
			r.Counts.Errors++
		}
	}
	r.OK = r.Counts.Errors == 0 && (!strict || r.Counts.Warnings == 0)
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
}

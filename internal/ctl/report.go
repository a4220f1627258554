package ctl

import "time"

// CommitReport is what a commit did.
type CommitReport struct {
	Started   time.Time   `json:"started"`
	DurationS float64     `json:"duration_s"`
	RatePerS  float64     `json:"rate_per_s"` // entries
	Flows     CommitCount `json:"flows"`      // those without a master
	Related   CommitCount `json:"related"`    // those with one, done after their masters
	Expects   CommitCount `json:"expectations,omitzero"`
	DryRun    bool        `json:"dry_run,omitempty"`  // nothing was changed
	Examples  []string    `json:"examples,omitempty"` // the first few entries with a reason
}

// CommitCount counts entries by what became of them. Entries is the sum of the
// others.
type CommitCount struct {
	Entries      uint64 `json:"entries"`
	Created      uint64 `json:"created"`
	Updated      uint64 `json:"updated"`       // existed, brought up to date
	AlreadyThere uint64 `json:"already_there"` // existed and was as good or newer
	Skipped      uint64 `json:"skipped"`       // left out by our own decision
	Refused      uint64 `json:"refused"`       // by the kernel

	// Why. The reasons of related flows are among those of flows.
	SkippedBy map[string]uint64 `json:"skipped_by_reason,omitempty"`
	RefusedBy map[string]uint64 `json:"refused_by_reason,omitempty"`
	// IncompleteBy counts entries that are in the kernel, but not with all that they
	// had.
	IncompleteBy map[string]uint64 `json:"incomplete_by_reason,omitempty"`
}

// Progress says how far a commit is. Total is what the cache held when the commit
// began; it changes meanwhile, so that Done may end below or above it.
type Progress struct {
	Done     uint64  `json:"done"`
	Total    uint64  `json:"total"`
	ElapsedS float64 `json:"elapsed_s"`
}

// progressLine is the line of an answer that tells of a Progress.
type progressLine struct {
	Progress *Progress `json:"progress"`
}

// Total returns the sum over flows, related flows and expectations.
func (r *CommitReport) Total() CommitCount {
	var t CommitCount
	for _, c := range []*CommitCount{&r.Flows, &r.Related, &r.Expects} {
		t.Entries += c.Entries
		t.Created += c.Created
		t.Updated += c.Updated
		t.AlreadyThere += c.AlreadyThere
		t.Skipped += c.Skipped
		t.Refused += c.Refused
		addCounts(&t.SkippedBy, c.SkippedBy)
		addCounts(&t.RefusedBy, c.RefusedBy)
		addCounts(&t.IncompleteBy, c.IncompleteBy)
	}
	return t
}

func addCounts(sum *map[string]uint64, m map[string]uint64) {
	for why, n := range m {
		if *sum == nil {
			*sum = make(map[string]uint64)
		}
		(*sum)[why] += n
	}
}

// RoleReport is what a change of role did.
type RoleReport struct {
	Role      string        `json:"role"`
	Before    string        `json:"role_before"`
	DurationS float64       `json:"duration_s"`
	Steps     []RoleStep    `json:"steps"` // in the order in which they were done
	Commit    *CommitReport `json:"commit,omitempty"`
}

// RoleStep is one thing that a change of role did.
type RoleStep struct {
	Name      string  `json:"name"` // commit, flush, resync, bulk ...
	Message   string  `json:"message,omitempty"`
	DurationS float64 `json:"duration_s"`
}

// Done answers a command that has nothing else to report.
type Done struct {
	Message string `json:"message"` // one plain sentence
}

// Error is the document of every answer that is not a success.
type Error struct {
	Error string `json:"error"`
}

package commit

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// Report says what a commit did, or with Options.DryRun what it would do.
// Entries is the sum of Created, Updated, AlreadyThere, Replaced, Skipped and
// Refused, unless the commit ended early.
type Report struct {
	Entries      int            `json:"entries"`
	Related      int            `json:"related"` // of Entries, those with a master
	Created      int            `json:"created"`
	Updated      int            `json:"updated"`             // was there, and learned something
	AlreadyThere int            `json:"already_there"`       // was there, at least as far
	Replaced     int            `json:"replaced"`            // took the place of an entry that was in its way
	Skipped      int            `json:"skipped"`             // not put in by our own decision
	Refused      int            `json:"refused"`             // refused by the kernel
	OfRelated    Counts         `json:"of_related,omitzero"` // what became of them
	DryRun       bool           `json:"dry_run,omitempty"`
	ByReason     map[string]int `json:"by_reason,omitempty"`  // of Skipped and Refused; also what was left out of created entries
	SkippedBy    map[string]int `json:"skipped_by,omitempty"` // of ByReason, those skipped
	RefusedBy    map[string]int `json:"refused_by,omitempty"` // of ByReason, those refused
	Examples     []string       `json:"examples,omitempty"`   // the first few of ByReason
	Duration     time.Duration  `json:"duration_ns"`
}

// Counts says what became of entries, in the words of Report.
type Counts struct {
	Created      int `json:"created"`
	Updated      int `json:"updated"`
	AlreadyThere int `json:"already_there"`
	Replaced     int `json:"replaced"`
	Skipped      int `json:"skipped"`
	Refused      int `json:"refused"`
}

// counts returns those of all entries.
func (r *Report) counts() Counts {
	return Counts{r.Created, r.Updated, r.AlreadyThere, r.Replaced, r.Skipped, r.Refused}
}

// add adds what has come between two counts.
func (c *Counts) add(before, after Counts) {
	c.Created += after.Created - before.Created
	c.Updated += after.Updated - before.Updated
	c.AlreadyThere += after.AlreadyThere - before.AlreadyThere
	c.Replaced += after.Replaced - before.Replaced
	c.Skipped += after.Skipped - before.Skipped
	c.Refused += after.Refused - before.Refused
}

// maxExamples bounds Report.Examples.
const maxExamples = 8

// Reasons, as they stand in Report.ByReason.
const (
	reasonDying      = "dying"             // destroyed by its owner, or about to be
	reasonTemplate   = "template"          // not a flow
	reasonClashEntry = "second of a clash" // shares its tuple with another entry
	reasonConflict   = "conflict"          // the kernel has a living entry in its place
	reasonNATClash   = "nat clash"         // what it is translated to belongs to another flow
	reasonTableFull  = "table full"        // nf_conntrack_max
	reasonLongChain  = "chain too long"    // too few hash buckets
	reasonInvalid    = "invalid"
	reasonNoSupport  = "not supported"
	reasonBusy       = "busy" // it changed under our hands

	// Created, but something is missing.
	reasonNoHelper = "without helper" // the kernel does not know the helper
	reasonNoMaster = "without master" // the master is not there
	reasonNoLabels = "without labels" // no rule uses labels, so that the kernel keeps none
)

// reasonOf names why the kernel refused a request.
func reasonOf(errno unix.Errno) string {
	switch errno {
	case unix.ENOMEM:
		return reasonTableFull
	case unix.ENOSPC:
		return reasonLongChain
	case unix.EINVAL, unix.ERANGE:
		return reasonInvalid
	case unix.EOPNOTSUPP:
		return reasonNoSupport
	case unix.EBUSY:
		return reasonBusy
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}

// remark counts f under reason, and keeps it as an example if there is room.
func (r *Report) remark(f *flow.Flow, reason string) { r.remarkAll(&f.Orig, reason, 1) }

// remarkAll is remark for n entries, one of which is t.
func (r *Report) remarkAll(t *flow.Tuple, reason string, n int) {
	if r.ByReason == nil {
		r.ByReason = make(map[string]int)
	}
	r.ByReason[reason] += n
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, describe(t)+": "+reason)
	}
}

func (r *Report) skip(f *flow.Flow, reason string) {
	r.Skipped++
	increment(&r.SkippedBy, reason)
	r.remark(f, reason)
}

func (r *Report) refuse(f *flow.Flow, reason string) {
	r.Refused++
	increment(&r.RefusedBy, reason)
	r.remark(f, reason)
}

func increment(m *map[string]int, reason string) {
	if *m == nil {
		*m = make(map[string]int)
	}
	(*m)[reason]++
}

// Incomplete counts by reason the entries that are in the kernel, but not with all
// that they had.
func (r *Report) Incomplete() map[string]int {
	var m map[string]int
	for reason, n := range r.ByReason {
		if n -= r.SkippedBy[reason] + r.RefusedBy[reason]; n > 0 {
			if m == nil {
				m = make(map[string]int)
			}
			m[reason] = n
		}
	}
	return m
}

// String returns the report as one line, without the examples.
func (r *Report) String() string {
	var b strings.Builder
	verb := "committed"
	if r.DryRun {
		verb = "would commit"
	}
	fmt.Fprintf(&b, "%s %d entries in %v: %d created, %d updated, %d already there, %d replaced, %d skipped, %d refused",
		verb, r.Entries, r.Duration.Round(time.Millisecond),
		r.Created, r.Updated, r.AlreadyThere, r.Replaced, r.Skipped, r.Refused)
	sep := " ("
	for _, reason := range slices.Sorted(maps.Keys(r.ByReason)) {
		fmt.Fprintf(&b, "%s%s: %d", sep, reason, r.ByReason[reason])
		sep = ", "
	}
	if sep == ", " {
		b.WriteByte(')')
	}
	return b.String()
}

var protocolNames = map[uint8]string{
	flow.ICMP: "icmp", flow.TCP: "tcp", flow.UDP: "udp", flow.DCCP: "dccp", flow.GRE: "gre",
	flow.ICMPv6: "icmpv6", flow.SCTP: "sctp", flow.UDPLite: "udplite",
}

// describe returns a tuple as an operator would write it, the key of an expectation as
// that.
func describe(t *flow.Tuple) string {
	if t.IsExpectKey() {
		expected := *t
		expected.Family &^= flow.ExpectKey
		return "expected " + describe(&expected)
	}
	name, ok := protocolNames[t.Proto]
	if !ok {
		name = fmt.Sprintf("proto %d", t.Proto)
	}
	src, dst := address(t, &t.Src), address(t, &t.Dst)
	switch {
	case t.IsICMP():
		return fmt.Sprintf("%s %v>%v type %d id %d", name, src, dst, t.DstPort>>8, t.SrcPort)
	case t.HasPorts():
		return fmt.Sprintf("%s %v>%v", name, netip.AddrPortFrom(src, t.SrcPort), netip.AddrPortFrom(dst, t.DstPort))
	}
	return fmt.Sprintf("%s %v>%v", name, src, dst)
}

func address(t *flow.Tuple, a *[16]byte) netip.Addr {
	if t.Family == flow.IPv6 {
		return netip.AddrFrom16(*a)
	}
	return netip.AddrFrom4([4]byte(a[:4]))
}

package ctl

import "io"

// VerifyReport says whether what is held of the peers is what they have. What
// differed has been repaired when Peers[].Proven is set.
type VerifyReport struct {
	OK        bool         `json:"ok"` // nothing differed, and every peer is proven
	DurationS float64      `json:"duration_s"`
	Peers     []VerifyPeer `json:"peers"`
	// Entries are the first of those that differed.
	Entries []VerifyEntry `json:"entries"`
}

// VerifyPeer is the comparison with one peer.
type VerifyPeer struct {
	Name      string `json:"name"`
	Flows     uint64 `json:"flows"`     // held of it
	Corrupted uint64 `json:"corrupted"` // not what its last message said: memory or program error
	Missing   uint64 `json:"missing"`   // it had them, we did not
	Stale     uint64 `json:"stale"`     // we had them, it did not
	Different uint64 `json:"different"` // in another state
	Proven    bool   `json:"proven"`    // its digest agreed after the start of this verification
	Problem   string `json:"problem,omitempty"`
}

// VerifyEntry is a flow that differed.
type VerifyEntry struct {
	Peer string `json:"peer"`
	What string `json:"what"` // missing, stale, different, corrupted
	Flow string `json:"flow"` // the original tuple
}

// RenderVerify writes r as text.
func RenderVerify(w io.Writer, r *VerifyReport) error {
	p := newPage()
	verdict := "everything held of the peers is what they have"
	if !r.OK {
		verdict = "NOT in step; see below"
	}
	p.row("verified", verdict)
	p.row("duration", seconds(r.DurationS))
	p.section("peers")
	p.row("  NAME", "FLOWS", "MISSING", "STALE", "DIFFERENT", "CORRUPTED", "PROVEN", "NOTES")
	for _, x := range r.Peers {
		proven := "yes"
		if !x.Proven {
			proven = "NO"
		}
		p.row("  "+x.Name, x.Flows, x.Missing, x.Stale, x.Different, x.Corrupted, proven, x.Problem)
	}
	if len(r.Entries) > 0 {
		p.section("entries that differed")
		for _, e := range r.Entries {
			p.row("  "+e.What, e.Peer, e.Flow)
		}
	}
	return p.writeTo(w)
}

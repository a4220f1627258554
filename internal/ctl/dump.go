package ctl

import (
	"encoding/json"
	"strconv"

	"syncd/internal/flow"
)

// DumpEntry is one line of a dump: a flow or an expectation, and what the cache knows
// about it.
type DumpEntry struct {
	Flow   flow.Flow    `json:"flow,omitzero"`    // zero if Expect is not nil
	Expect *flow.Expect `json:"expect,omitempty"` // nil if it is a flow
	Owner  string       `json:"owner,omitempty"`  // the peer whose flow it is; empty in the internal cache
	AgeS   float64      `json:"age_s"`            // since it came into the cache
	Dead   bool         `json:"dead,omitempty"`   // deleted, kept until every peer knows
}

// appendJSON appends e as encoding/json would, without its cost: a dump may have
// a million entries.
func (e *DumpEntry) appendJSON(b []byte) []byte {
	if e.Expect != nil {
		b = append(b, `{"expect":`...)
		b = e.Expect.AppendJSON(b)
	} else {
		b = append(b, `{"flow":`...)
		b = e.Flow.AppendJSON(b)
	}
	if e.Owner != "" {
		b = append(b, `,"owner":`...)
		b = appendString(b, e.Owner)
	}
	b = append(b, `,"age_s":`...)
	b = strconv.AppendFloat(b, e.AgeS, 'f', 3, 64)
	if e.Dead {
		b = append(b, `,"dead":true`...)
	}
	return append(b, '}')
}

// AppendText appends e as one line without its newline: the flow or the expectation
// as conntrack(8) lists it, then its age, owner and fate in brackets.
func (e *DumpEntry) AppendText(b []byte) []byte {
	if e.Expect != nil {
		b = e.Expect.AppendText(b)
	} else {
		b = e.Flow.AppendText(b)
	}
	b = append(b, " [active since "...)
	b = strconv.AppendInt(b, int64(e.AgeS), 10)
	b = append(b, "s]"...)
	if e.Owner != "" {
		b = append(b, " [owner "...)
		b = append(b, oneLine(e.Owner)...)
		b = append(b, ']')
	}
	if e.Dead {
		b = append(b, " [DEAD]"...)
	}
	return b
}

// appendString appends s as a JSON string.
func appendString(b []byte, s string) []byte {
	q, _ := json.Marshal(s) // a string always marshals
	return append(b, q...)
}

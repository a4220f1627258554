package filter

import (
	"bytes"

	"syncd/internal/flow"
)

// MatchExpect reports whether an expectation is replicated, as far as that depends on
// its helper. It must also be one of a flow that is.
//
// The kernel names a helper on another port than the usual one by adding that, as in
// "ftp-2121". Case does not count.
func (f *Filter) MatchExpect(x *flow.Expect) bool {
	if f.expects.All {
		return true
	}
	if x.Has&flow.ExpectHasHelper == 0 {
		return false
	}
	name := x.Helper[:]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	for _, h := range f.expects.Helpers {
		if len(name) >= len(h) && equalFold(name[:len(h)], h) && (len(name) == len(h) || name[len(h)] == '-') {
			return true
		}
	}
	return false
}

// equalFold compares strings of the same length as ASCII without case.
func equalFold(a []byte, b string) bool {
	for i, c := range a {
		if lower(c) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

package config

import "fmt"

// Error is one thing that is wrong with a configuration. What Parse and
// Validate return joins one or more of them, by line.
type Error struct {
	File string // as given to Parse; empty from Validate
	Line int    // 1 is the first; of the key, or of its table when the key is missing; 0 from Validate
	Key  string // "link.type"; empty for an error of syntax
	Text string // what was found, and what is accepted
}

func (e *Error) Error() string {
	s := e.Text
	if e.Key != "" {
		s = e.Key + ": " + s
	}
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d: %s", e.File, e.Line, s)
	}
	return s
}

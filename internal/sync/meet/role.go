package meet

import "syncd/internal/wire"

// Self is what a node says of its own role.
type Self struct{ says wire.Standing }

// NewSelf returns what a node says that has not been told its role.
func NewSelf() Self { return Self{wire.Standing{Edition: 1}} }

// Says returns the role as a HELLO has it.
func (s *Self) Says() wire.Standing { return s.says }

// Set changes the role, and reports whether that is something to tell.
func (s *Self) Set(r wire.Role) bool {
	if r == s.says.Role {
		return false
	}
	s.says.Role = r
	if s.says.Edition++; s.says.Edition == 0 {
		s.says.Edition = 1 // 0 is that of nodes that know of no roles
	}
	return true
}

// View is what a session that is met has said of its role, and of which role of ours it
// had heard by then. HELLOs may come in any order.
type View struct {
	wire.Standing
	heard uint8
}

// Hear takes what a HELLO says, and which edition of our role its sender had heard. It
// reports whether the sender should be told at once that we have heard of its role: of
// another one, that is. With the first one there is no hurry.
func (v *View) Hear(says wire.Standing, heard uint8) (news bool) {
	if older(says.Edition, v.Edition) {
		return false
	}
	news = v.Edition != 0 && says.Edition != v.Edition
	v.Standing = says
	if !older(heard, v.heard) {
		v.heard = heard
	}
	return news
}

// older reports whether edition a is one from before b. None is older than any.
func older(a, b uint8) bool {
	return b != 0 && (a == 0 || int8(a-b) < 0)
}

// Leads reports whether the session may be in charge, by its word.
func (v *View) Leads() bool { return v.Role <= wire.RolePrimary }

// Knows reports whether the session had heard of our present role when it spoke. If two
// nodes stop being in charge at the same time, each may still have the old word of the
// other. One that leads and knows gives up nothing in our favour from then on, whatever
// happens to its own role, before it hears that ours has changed again.
func (v *View) Knows(self *Self) bool { return v.Edition == 0 || v.heard == self.says.Edition }

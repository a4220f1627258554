package filter

// octets is a set of the numbers 0 to 255.
type octets [4]uint64

// makeOctets returns what passes a list.
func makeOctets(l List[uint8]) octets {
	var s octets
	for _, n := range l.Accept {
		s[n>>6] |= 1 << (n & 63)
	}
	if len(l.Accept) == 0 {
		s = octets{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	}
	for _, n := range l.Ignore {
		s[n>>6] &^= 1 << (n & 63)
	}
	return s
}

func (s *octets) has(n uint8) bool { return s[n>>6]&(1<<(n&63)) != 0 }

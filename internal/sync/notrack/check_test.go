package notrack

import "fmt"

// checkSyncd returns an error that names the first invariant of m that does not hold.
func checkSyncd(m *Syncd) error {
	b := &m.bulk
	switch {
	case b.walk.Active() && b.ending:
		return fmt.Errorf("part %d is under way and at its end", b.part)
	case b.part < 0 || b.part >= parts:
		return fmt.Errorf("part %d of %d", b.part, parts)
	case b.running() && b.begun[b.part] == 0:
		return fmt.Errorf("part %d is under way and never began", b.part)
	}
	for _, p := range m.peers.Peers() {
		switch f := &p.State; {
		case !p.Met && f.expected != 0, p.Met != (p.Owner != 0):
			return fmt.Errorf("%s: met %v, owner %d, %d expected", p.Name, p.Met, p.Owner, f.expected)
		case f.intact && !f.open && f.bulk == 0:
			return fmt.Errorf("%s: intact without a bulk update", p.Name)
		}
	}
	return nil
}

func checkConntrackd(m *Conntrackd) error {
	r := &m.resync
	switch {
	case m.again && !m.walk.Active():
		return fmt.Errorf("another bulk update was asked for, and none is under way")
	case r.tries > resyncTries:
		return fmt.Errorf("%d requests", r.tries)
	case r.sent && r.last == 0:
		return fmt.Errorf("a request was sent at no time")
	case m.known && m.heard == 0:
		return fmt.Errorf("number %d of a peer that was never heard", m.last)
	}
	return nil
}

package config

import "slices"

// Diff returns the keys whose values differ between c and other, in the order of
// the reference: those that a running daemon can take over, and those that need
// a restart. A key of links stands there once, however many links differ in it;
// "link" itself means that their number differs.
func (c *Config) Diff(other *Config) (reloadable, needRestart []string) {
	for _, k := range configKeys {
		switch {
		case !k.differs(c, other):
		case k.reload:
			reloadable = append(reloadable, k.name)
		default:
			needRestart = append(needRestart, k.name)
		}
	}
	if len(c.Links) != len(other.Links) {
		return reloadable, append(needRestart, "link")
	}
	for _, k := range linkKeys {
		for i := range c.Links {
			if name := "link." + k.name; k.differs(&c.Links[i], &other.Links[i]) && !slices.Contains(needRestart, name) {
				needRestart = append(needRestart, name)
			}
		}
	}
	return reloadable, needRestart
}

package config

import "strings"

// unavailable lists the words that the file format knows and this version of
// the program cannot do yet. Removing a line is all that lifting one takes.
var unavailable = []string{
	"link.type = tcp",
}

func isUnavailable(key, word string) bool {
	for _, u := range unavailable {
		if k, w, _ := strings.Cut(u, " = "); k == key && w == word {
			return true
		}
	}
	return false
}

// ready returns the words of a key that this version can do.
func ready[T ~string](key string, words ...T) []string {
	var can []string
	for _, w := range words {
		if !isUnavailable(key, string(w)) {
			can = append(can, string(w))
		}
	}
	return can
}

// checkSecurity holds the choice of dialect against the keys: nothing travels
// in the clear, and nothing is thought to be sealed when it is not.
func (k *checker) checkSecurity(c *Config) {
	if !k.ok("sync.wire", "sync.keys", "sync.insecure") {
		return
	}
	switch c.Sync.Wire {
	case WireConntrackd:
		if len(c.Sync.Keys) > 0 {
			k.reject("sync.keys", c.Sync.Keys, `has no meaning with wire = "conntrackd", which is never sealed`, "no keys")
		}
		if !c.Sync.Insecure {
			k.reject("sync.insecure", c.Sync.Insecure,
				`does not go with wire = "conntrackd", whose plain datagrams anyone on the link can read and forge`, "true")
		}
	case WireSyncd:
		if len(c.Sync.Keys) == 0 && !c.Sync.Insecure {
			k.reject("sync.keys", c.Sync.Keys, "seals nothing", "at least one key file, or insecure = true")
		}
	}
}

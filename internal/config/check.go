package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// checker gathers what is wrong with a configuration.
type checker struct {
	doc    *document      // nil when a Config is checked without its file
	given  map[string]any // path: the value in the file
	bad    map[string]bool
	names  []string // of every key, to suggest one for another
	errors []*Error
}

// indices are no part of the key that an error names: the line tells which one
// of several is meant.
var indices = regexp.MustCompile(`\[\d+\]`)

// reject reports a value. What the file says is shown as it stands there;
// otherwise found is, which is the default then.
func (k *checker) reject(path string, found any, problem, accepted string) {
	shown := show(found)
	if k.doc != nil {
		if raw, ok := k.given[path]; ok {
			shown = show(raw)
		} else if !strings.HasSuffix(path, "]") {
			shown += " (the default)"
		}
	}
	k.add(path, fmt.Sprintf("%s %s; accepted: %s", shown, problem, accepted))
}

// missing reports a key without which nothing works.
func (k *checker) missing(path, accepted string) {
	k.add(path, "missing; accepted: "+accepted)
}

func (k *checker) add(path, text string) {
	e := &Error{Key: indices.ReplaceAllString(path, ""), Text: text}
	if k.doc != nil {
		e.File, e.Line = k.doc.file, k.doc.line(path)
	}
	k.errors = append(k.errors, e)
	k.bad[path] = true
}

// ok reports whether nothing was wrong with the paths and their items so far,
// so that one mistake is not reported twice.
func (k *checker) ok(paths ...string) bool {
	for b := range k.bad {
		for _, p := range paths {
			if rest, ok := strings.CutPrefix(b, p); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
				return false
			}
		}
	}
	return true
}

// err joins what was found, by line.
func (k *checker) err() error {
	slices.SortStableFunc(k.errors, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Key, b.Key), strings.Compare(a.Text, b.Text))
	})
	errs := make([]error, len(k.errors))
	for i, e := range k.errors {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// Validate reports what is wrong with c, as Parse does but without positions.
// What Parse returned is always valid.
func (c *Config) Validate() error {
	k := &checker{bad: make(map[string]bool)}
	k.check(c)
	return k.err()
}

// check applies the rules of every key, then those that join several keys.
func (k *checker) check(c *Config) {
	applyRules(k, "", configKeys, c)
	k.checkSizes(c)
	k.checkSecurity(c)
	k.checkLinks(c)
}

// applyRules looks at every key of s that could be decoded.
func applyRules[S any](k *checker, prefix string, keys []key[S], s *S) {
	for _, key := range keys {
		path := prefix + key.name
		if !k.ok(path) {
			continue
		}
		key.check(s, func(at string, found any, problem, accepted string) {
			k.reject(path+at, found, problem, accepted)
		})
	}
}

func (k *checker) checkSizes(c *Config) {
	if c.Sync.ResendQueue < c.Sync.AckWindow && k.ok("sync.resend_queue", "sync.ack_window") {
		k.reject("sync.resend_queue", c.Sync.ResendQueue, "is smaller than ack_window, so acknowledgements would come too late",
			fmt.Sprintf("%d or more", c.Sync.AckWindow))
	}
	if c.Events.BufferMax < c.Events.Buffer && k.ok("events.buffer", "events.buffer_max") {
		k.reject("events.buffer_max", c.Events.BufferMax, "is smaller than buffer", sizeText(c.Events.Buffer)+" or more")
	}
	checkUnique(k, "sync.keys", c.Sync.Keys)
}

// checkUnique refuses an item that stands in the list before.
func checkUnique[T comparable](k *checker, path string, items []T) {
	for i, x := range items {
		if slices.Contains(items[:i], x) && k.ok(path) {
			k.reject(fmt.Sprintf("%s[%d]", path, i), x, "stands in the list twice", "each once")
		}
	}
}

func (k *checker) checkLinks(c *Config) {
	if k.bad["link"] {
		return
	}
	switch n := len(c.Links); {
	case n == 0:
		k.missing("link", fmt.Sprintf("1 to %d tables [[link]]", MaxLinks))
	case n > MaxLinks:
		k.add(fmt.Sprintf("link[%d]", MaxLinks), fmt.Sprintf("%d links; accepted: 1 to %d", n, MaxLinks))
	}
	for i := range c.Links[:min(len(c.Links), MaxLinks)] {
		k.checkLink(c, i)
	}
}

// checkLink holds the keys of one link against each other, and the link against
// those before it.
func (k *checker) checkLink(c *Config, i int) {
	l, at := &c.Links[i], fmt.Sprintf("link[%d].", i)
	if l.Type == "" && k.ok(at+"type") && !k.has(at+"type") {
		k.missing(at+"type", strings.Join(ready("link.type", LinkUDP, LinkMulticast, LinkTCP), ", "))
	}
	if l.Interface == "" && k.ok(at+"interface") && !k.has(at+"interface") {
		k.missing(at+"interface", "the network interface of the link")
	}
	applyRules(k, at, linkKeys, l)
	if !k.ok(at + "type") {
		return // what else is needed or forbidden hangs on it
	}
	if l.Type == LinkMulticast {
		k.checkMulticast(l, at)
	} else {
		k.checkUnicast(l, at)
	}
	if k.ok(at + "peers") {
		k.checkPeers(c, l, at)
	}
	for j := range c.Links[:i] {
		k.checkDuplicate(c, j, i)
	}
}

func (k *checker) checkMulticast(l *Link, at string) {
	if !k.ok(at+"group", at+"local") {
		return
	}
	switch {
	case !l.Group.IsValid():
		k.missing(at+"group", "the multicast address that the nodes share")
	case l.Local.IsValid() && l.Local.Is4() != l.Group.Is4():
		k.reject(at+"local", l.Local, "is not of the same family as group", family(l.Group.Is4()))
	case !l.Local.IsValid() && l.Group.Is4():
		k.missing(at+"local", "this node's address on the link, from which to send to an IPv4 group")
	}
}

func (k *checker) checkUnicast(l *Link, at string) {
	if l.Group.IsValid() {
		k.reject(at+"group", l.Group, fmt.Sprintf("has no meaning with type = %q", l.Type), "the key peers instead")
	}
	if k.has(at + "ttl") {
		k.reject(at+"ttl", l.TTL, fmt.Sprintf("has no meaning with type = %q", l.Type), "no ttl")
	}
	if !l.Local.IsValid() && k.ok(at+"local") {
		k.missing(at+"local", "this node's address on the link")
	}
	if len(l.Peers) == 0 && k.ok(at+"peers") {
		k.missing(at+"peers", "the addresses of the other nodes on the link")
	}
}

func (k *checker) checkPeers(c *Config, l *Link, at string) {
	if len(l.Peers) > 1 && c.Sync.Wire == WireConntrackd {
		k.reject(at+"peers", l.Peers, `has several nodes, but wire = "conntrackd" joins two`, "one address")
	}
	checkUnique(k, at+"peers", l.Peers)
	decides, other := l.Local, "local"
	if l.Type == LinkMulticast {
		decides, other = l.Group, "group"
	}
	if !k.ok(at+other) || !decides.IsValid() {
		return
	}
	for i, p := range l.Peers {
		path := fmt.Sprintf("%speers[%d]", at, i)
		switch {
		case p == l.Local:
			k.reject(path, p, "is the address of this node itself", "the addresses of the other nodes")
		case p.Is4() != decides.Is4():
			k.reject(path, p, "is not of the same family as "+other, family(decides.Is4()))
		}
	}
}

// checkDuplicate refuses two links that would share a socket address.
func (k *checker) checkDuplicate(c *Config, first, second int) {
	a, b := &c.Links[first], &c.Links[second]
	if a.Type != b.Type || a.Port != b.Port {
		return
	}
	same := a.Local.IsValid() && a.Local == b.Local && a.Interface == b.Interface
	if a.Type == LinkMulticast {
		same = a.Group.IsValid() && a.Group == b.Group && a.Interface == b.Interface
	}
	if same {
		k.add(fmt.Sprintf("link[%d]", second),
			fmt.Sprintf("the same %s address, interface and port as link %d; accepted: each once", a.Type, first+1))
	}
}

// has reports whether the file gives the key.
func (k *checker) has(path string) bool {
	_, ok := k.given[path]
	return ok
}

func family(is4 bool) string {
	if is4 {
		return "an IPv4 address"
	}
	return "an IPv6 address"
}

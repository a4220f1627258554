package config

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// maxFile bounds a configuration file, in octets. A thousand networks to filter
// take some twenty thousand.
const maxFile = 1 << 20

// Load reads and parses the file at path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	return Parse(path, f)
}

// Parse reads a configuration from r and validates it; name is what errors call
// the file. It reads nothing but r. An error joins one *Error for everything
// that is wrong, by line, except for an error of syntax, which comes alone, and
// of r.
func Parse(name string, r io.Reader) (*Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: read %s: %w", name, err)
	}
	if len(text) > maxFile {
		return nil, &Error{File: name, Line: 1, Text: fmt.Sprintf("the file has more than %d octets", maxFile)}
	}
	doc, err := newDocument(name, string(text))
	if err != nil {
		return nil, err
	}
	k := &checker{doc: doc, given: make(map[string]any), bad: make(map[string]bool), names: keyNames()}
	c := Default()
	k.decode(c)
	if c.Sync.Wire == WireConntrackd && !k.has("filter.expectations") {
		c.Filter.Expectations = Expectations{} // as conntrackd's, with which it must agree
	}
	k.check(c)
	if err := k.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// decode moves the tree of the document into c.
func (k *checker) decode(c *Config) {
	tables := append(sections(), "link")
	k.known("", k.doc.tree, tables)
	for _, section := range sections() {
		raw, given := k.doc.tree[section]
		if !given {
			continue
		}
		if table, ok := raw.(map[string]any); ok {
			decodeTable(k, section+".", table, section+".", configKeys, c)
		} else {
			k.add(section, fmt.Sprintf("%s is %s; accepted: the table [%s]", show(raw), typeName(raw), section))
		}
	}
	if raw, given := k.doc.tree["link"]; given {
		k.decodeLinks(raw, c)
	}
}

// decodeLinks takes [[link]] tables, and the same as an array of inline tables.
func (k *checker) decodeLinks(raw any, c *Config) {
	var tables []map[string]any
	switch raw := raw.(type) {
	case []map[string]any:
		tables = raw
	case []any:
		for _, item := range raw {
			table, _ := item.(map[string]any)
			tables = append(tables, table)
		}
	}
	if len(tables) == 0 || slices.ContainsFunc(tables, func(t map[string]any) bool { return t == nil }) {
		k.add("link", fmt.Sprintf("%s; accepted: 1 to %d tables [[link]]", strings.TrimPrefix(typeName(raw), "an array of "), MaxLinks))
		return
	}
	for i, table := range tables {
		l := DefaultLink()
		decodeTable(k, fmt.Sprintf("link[%d].", i), table, "", linkKeys, &l)
		c.Links = append(c.Links, l)
	}
}

// decodeTable moves one table into s. Keys are named in the file by path+name,
// and in the table of keys by group+name.
func decodeTable[S any](k *checker, path string, table map[string]any, group string, keys []key[S], s *S) {
	var names []string
	for _, key := range keys {
		name, ok := strings.CutPrefix(key.name, group)
		if !ok {
			continue
		}
		names = append(names, name)
		if raw, given := table[name]; given {
			k.given[path+name] = raw
			key.decode(s, value{k, path + name, raw})
		}
	}
	k.known(strings.TrimSuffix(path, "."), table, names)
}

// known reports the keys of a table that nothing reads, and returns whether
// there were none.
func (k *checker) known(path string, table map[string]any, names []string) bool {
	ok := true
	for name := range table {
		if slices.Contains(names, name) {
			continue
		}
		ok = false
		what, hint := "is not a known key", ""
		if path == "" {
			what = "is not a known table"
		}
		if near := suggest(name, names, k.names); near != "" {
			hint = " (did you mean " + near + "?)"
		}
		k.add(joinKey(path, name), fmt.Sprintf("%q %s%s; accepted: %s", name, what, hint, strings.Join(names, ", ")))
	}
	return ok
}

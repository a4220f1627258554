package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// FuzzParse: no text makes Parse panic; what is accepted is valid; every error
// points into the file; and the index of lines ends on anything and knows every
// key that the TOML parser knows.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.toml", configs + "/*.toml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text))
		}
	}
	f.Add(indexed)
	f.Add(minimal)
	f.Fuzz(func(t *testing.T, text string) {
		index := indexLines(text)
		var tree map[string]any
		if md, err := toml.Decode(text, &tree); err == nil && !strings.Contains(text, "[[") {
			for _, key := range md.Keys() {
				path := ""
				for _, name := range key {
					path = joinKey(path, name)
				}
				if len(key) <= maxIndexDepth && index[path] == 0 && !inArray(tree, key) {
					t.Errorf("no line for %s", path)
				}
			}
		}
		lines := strings.Count(text, "\n") + 1
		c, err := Parse("fuzz.toml", strings.NewReader(text))
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Errorf("accepted, but invalid: %v", err)
			}
			if reload, restart := c.Diff(c); len(reload)+len(restart) > 0 {
				t.Errorf("differs from itself in %v %v", reload, restart)
			}
			return
		}
		for _, err := range flatten(err) {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("not an *Error: %v", err)
			} else if e.Line < 1 || e.Line > lines {
				t.Errorf("line %d of %d: %v", e.Line, lines, e)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of two lines: %q", err)
			}
		}
	})
}

func flatten(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// inArray reports whether a key of the parser lies inside of an array of inline
// tables, for which its list of keys has no indices.
func inArray(tree map[string]any, key []string) bool {
	for _, name := range key {
		switch v := tree[name].(type) {
		case map[string]any:
			tree = v
		case []any, []map[string]any:
			return true
		}
	}
	return false
}

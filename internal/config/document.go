package config

import (
	"errors"
	"strings"

	"github.com/BurntSushi/toml"
)

// document is a TOML file whose syntax is good.
type document struct {
	file  string
	tree  map[string]any
	lines map[string]int // path of a key, table or item: its line
}

func newDocument(file, text string) (*document, error) {
	d := &document{file: file}
	if _, err := toml.Decode(text, &d.tree); err != nil {
		var syntax toml.ParseError
		if !errors.As(err, &syntax) {
			return nil, &Error{File: file, Line: 1, Text: err.Error()}
		}
		return nil, &Error{File: file, Line: max(syntax.Position.Line, 1), Text: "not TOML: " + syntax.Message}
	}
	d.lines = indexLines(text)
	return d, nil
}

// line finds a path, or the nearest table around it that the file has.
func (d *document) line(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 1
}

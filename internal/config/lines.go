package config

import (
	"fmt"
	"strconv"
	"strings"
)

// maxIndexDepth bounds the length of a path: what lies deeper is unknown to the
// Config anyway, and is reported at the line of what is around it.
const maxIndexDepth = 8

// indexLines finds the line of every table, key and array item of a TOML text.
// Paths are written as "link[0].peers[1]", counting from zero.
//
// It is no validator: the text has passed one. For any other text the index
// has some content or other, and it still ends.
func indexLines(text string) map[string]int {
	s := scanner{
		text:   strings.TrimPrefix(text, "\ufeff"),
		line:   1,
		lines:  make(map[string]int),
		tables: make(map[string]int),
	}
	s.document()
	return s.lines
}

// scanner walks over a text once, octet by octet: all that has a meaning in
// TOML is ASCII.
type scanner struct {
	text   string
	at     int // next octet
	line   int // of that octet
	lines  map[string]int
	tables map[string]int // path of an array of tables: how many it has so far
}

// peek returns the next octet, and 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) done() bool { return s.at >= len(s.text) }

func (s *scanner) advance(n int) {
	end := min(s.at+n, len(s.text))
	s.line += strings.Count(s.text[s.at:end], "\n")
	s.at = end
}

// skip passes over white space, and over line ends and comments as well where
// they mean nothing.
func (s *scanner) skip(lineEnds bool) {
	for !s.done() {
		switch c := s.peek(); {
		case c == ' ' || c == '\t':
			s.advance(1)
		case lineEnds && (c == '\n' || c == '\r'):
			s.advance(1)
		case lineEnds && c == '#':
			s.skipTo("\n")
		default:
			return
		}
	}
}

// skipTo passes over everything before any of the octets.
func (s *scanner) skipTo(octets string) {
	if n := strings.IndexAny(s.text[s.at:], octets); n >= 0 {
		s.advance(n)
	} else {
		s.advance(len(s.text))
	}
}

// found records the line of a path; the first one counts, as a dotted key may
// name the same table again.
func (s *scanner) found(path string, line int) {
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = line
	}
}

func (s *scanner) document() {
	table := path{}
	for {
		s.skip(true)
		switch {
		case s.done():
			return
		case s.peek() == '[':
			table = s.header()
		default:
			s.pair(table)
		}
	}
}

// header reads [table] or [[table]] and returns its path.
func (s *scanner) header() path {
	line := s.line
	s.advance(1)
	many := s.peek() == '['
	if many {
		s.advance(1)
	}
	p := path{}
	names := s.names("]")
	for i, name := range names {
		p = p.key(name)
		switch n := s.tables[p.text]; {
		case many && i == len(names)-1:
			s.tables[p.text] = n + 1
			s.found(p.text, line)
			p = p.item(n)
		case n > 0: // a table inside of the last one of an array
			p = p.item(n - 1)
		}
		s.found(p.text, line)
	}
	s.skipTo("\n")
	return p
}

// pair reads key = value.
func (s *scanner) pair(table path) {
	line, start := s.line, s.at
	for _, name := range s.names("=") {
		table = table.key(name)
		s.found(table.text, line)
	}
	if s.peek() == '=' {
		s.advance(1)
	}
	s.value(table)
	if s.at == start {
		s.advance(1)
	}
}

// names reads the parts of a dotted key, up to the octet that ends it.
func (s *scanner) names(end string) []string {
	var names []string
	for {
		s.skip(false)
		switch c := s.peek(); c {
		case '"', '\'':
			names = append(names, s.quoted())
		case '.':
			s.advance(1)
		default:
			start := s.at
			s.skipTo(" \t\r\n.\"'#" + end)
			if s.at == start {
				return names
			}
			names = append(names, s.text[start:s.at])
		}
	}
}

// value reads any value, and what is inside of it.
func (s *scanner) value(p path) {
	s.skip(false)
	switch s.peek() {
	case '"', '\'':
		s.quoted()
	case '[':
		s.advance(1)
		for i := 0; ; i++ {
			s.skip(true)
			if s.done() || s.peek() == ']' {
				s.advance(1)
				return
			}
			item := p.item(i)
			s.found(item.text, s.line)
			s.value(item)
			s.separator("]")
		}
	case '{':
		s.advance(1)
		for {
			s.skip(true)
			if s.done() || s.peek() == '}' {
				s.advance(1)
				return
			}
			s.pair(p)
			s.separator("}")
		}
	default: // a number, a date, a boolean
		s.skipTo(",]}#\r\n")
	}
}

// separator goes to the next item or to the octet that closes the list.
func (s *scanner) separator(end string) {
	start := s.at
	s.skip(true)
	switch {
	case s.peek() == ',':
		s.advance(1)
	case s.at == start && !strings.HasPrefix(s.text[s.at:], end):
		s.advance(1)
	}
}

// quoted reads a string of any of the four kinds and returns what is between
// the quotes; escapes are resolved where strconv knows them.
func (s *scanner) quoted() string {
	quote := s.text[s.at : s.at+1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s.text[s.at:], triple) {
		s.advance(3)
		start := s.at
		s.closing(triple, quote == `"`)
		body := s.text[start:s.at]
		s.advance(3)
		for s.peek() == quote[0] { // up to two quotes may stand before the closing ones
			s.advance(1)
		}
		return body
	}
	start := s.at
	s.advance(1)
	s.closing(quote, quote == `"`)
	body := s.text[start+1 : s.at]
	s.advance(1)
	if u, err := strconv.Unquote(s.text[start:s.at]); err == nil && quote == `"` {
		return u
	}
	return body
}

// closing goes to the quotes that end a string.
func (s *scanner) closing(quotes string, escapes bool) {
	for !s.done() && !strings.HasPrefix(s.text[s.at:], quotes) {
		if escapes && s.peek() == '\\' {
			s.advance(1)
		}
		s.advance(1)
	}
}

// joinKey appends a key to the path of its table, quoted where TOML would.
func joinKey(table, name string) string {
	bare := func(r rune) bool {
		return r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !bare(r) }) {
		name = strconv.Quote(name)
	}
	if table == "" {
		return name
	}
	return table + "." + name
}

// path is where a value stands.
type path struct {
	text  string
	depth int
}

func (p path) key(name string) path {
	if p.depth == maxIndexDepth {
		return p
	}
	return path{joinKey(p.text, name), p.depth + 1}
}

func (p path) item(i int) path {
	if p.depth == maxIndexDepth {
		return p
	}
	return path{fmt.Sprintf("%s[%d]", p.text, i), p.depth + 1}
}

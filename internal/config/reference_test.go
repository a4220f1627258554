package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"syncd/internal/filter"
	"syncd/internal/flow"
)

const configs = "../../configs"

func TestShippedFilesParse(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(configs, "*.toml"))
	if err != nil || len(files) < 2 {
		t.Fatalf("found %q (%v), want at least syncd.toml and reference.toml", files, err)
	}
	for _, f := range files {
		if _, err := Load(f); err != nil {
			t.Error(err)
		}
	}
}

// setting in the reference: the comment before it, and the line itself.
type referenceKey struct {
	name      string // "sync.mode"
	comment   string
	text      string // `mode = "ftfw"`
	commented bool
}

var (
	tableLine   = regexp.MustCompile(`^\[+(\w+)\]+$`)
	keyLine     = regexp.MustCompile(`^(#?)((\w+) = .*)$`)
	defaultLine = regexp.MustCompile(`(?m)^# Default: (.+?)( \(.*\))?$`)
)

func readReference(t *testing.T) (keys []referenceKey, text string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(configs, "reference.toml"))
	if err != nil {
		t.Fatal(err)
	}
	table, comment := "", ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if m := tableLine.FindStringSubmatch(line); m != nil {
			table, comment = m[1], ""
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			keys = append(keys, referenceKey{table + "." + m[3], comment, m[2], m[1] == "#"})
			comment = ""
		} else if line == "" {
			comment = ""
		} else {
			comment += line + "\n"
		}
	}
	return keys, string(b)
}

// The reference explains every key, and says "Default:" with the truth after it
// and "Reload." exactly where a reload works.
func TestReference(t *testing.T) {
	keys, _ := readReference(t)
	explained := make(map[string]bool)
	for _, r := range keys {
		if r.comment == "" {
			continue // a second link, which only shows what differs
		}
		if explained[r.name] {
			t.Errorf("%s is explained twice", r.name)
		}
		explained[r.name] = true
		if link, ok := strings.CutPrefix(r.name, "link."); ok {
			l := DefaultLink()
			checkReference(t, r, link, linkKeys, &l)
		} else {
			checkReference(t, r, r.name, configKeys, Default())
		}
	}
	for _, name := range keyNames() {
		if !explained[name] {
			t.Errorf("%s is missing", name)
		}
	}
	if len(explained) != len(keyNames()) {
		t.Errorf("%d keys are explained, of %d", len(explained), len(keyNames()))
	}
}

func checkReference[S any](t *testing.T, r referenceKey, name string, keys []key[S], defaults *S) {
	for _, k := range keys {
		if k.name != name {
			continue
		}
		if said := strings.Contains(r.comment, "Reload."); said != k.reload {
			t.Errorf("%s: the comment says reload %v, it is %v", r.name, said, k.reload)
		}
		said := defaultLine.FindStringSubmatch(r.comment)
		if said == nil {
			if !strings.Contains(r.comment, "Required") {
				t.Errorf("%s: the comment has neither a default nor Required", r.name)
			}
			return
		}
		// Decoding the default into the defaults must change nothing.
		var tree map[string]any
		if _, err := toml.Decode("x = "+said[1], &tree); err != nil {
			t.Errorf("%s: default %s: %v", r.name, said[1], err)
			return
		}
		got := *defaults
		c := &checker{bad: make(map[string]bool)}
		k.decode(&got, value{c, k.name, tree["x"]})
		if err := c.err(); err != nil {
			t.Error(err)
		}
		if k.differs(&got, defaults) {
			t.Errorf("%s: the default is not %s", r.name, said[1])
		}
		return
	}
	t.Errorf("%s is no key", r.name)
}

// What stands behind a comment sign is an example that works, once taken in.
func TestReferenceExamples(t *testing.T) {
	keys, text := readReference(t)
	for _, r := range keys {
		if !r.commented {
			continue
		}
		_, err := Parse("reference.toml", strings.NewReader(strings.Replace(text, "#"+r.text, r.text, 1)))
		if r.name == "sync.keys" { // for a dialect to come
			if err == nil || !strings.Contains(err.Error(), "has no meaning") {
				t.Errorf("%s: %v", r.text, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", r.text, err)
		}
	}
}

// The names of states and protocols stand for the numbers that everything else
// uses.
func TestNumbersAgreeWithFlow(t *testing.T) {
	for name, want := range map[string]uint8{
		"NONE": flow.TCPNone, "SYN_SENT": flow.TCPSynSent, "SYN_RECV": flow.TCPSynRecv, "ESTABLISHED": flow.TCPEstablished,
		"FIN_WAIT": flow.TCPFinWait, "CLOSE_WAIT": flow.TCPCloseWait, "LAST_ACK": flow.TCPLastAck,
		"TIME_WAIT": flow.TCPTimeWait, "CLOSE": flow.TCPClose, "SYN_SENT2": flow.TCPSynSent2,
	} {
		if got, ok := tcpStates[name]; !ok || got != want {
			t.Errorf("%s is %d (%v), want %d", name, got, ok, want)
		}
	}
	for name, want := range map[string]uint8{
		"icmp": flow.ICMP, "tcp": flow.TCP, "udp": flow.UDP, "dccp": flow.DCCP, "gre": flow.GRE,
		"icmpv6": flow.ICMPv6, "sctp": flow.SCTP, "udplite": flow.UDPLite,
	} {
		if got := protocols[name]; got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

// Where the system has names for the protocols, ours mean the same.
func TestNumbersAgreeWithTheSystem(t *testing.T) {
	text, err := os.ReadFile("/etc/protocols")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no /etc/protocols")
	}
	seen := 0
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		if n, ours := protocols[words[0]]; ours {
			seen++
			if strconv.Itoa(int(n)) != words[1] {
				t.Errorf("%s is %d, the system says %s", words[0], n, words[1])
			}
		}
	}
	if seen < 8 {
		t.Errorf("only %d names are known to the system", seen)
	}
}

// The lists of a Filter convert to those of the filter package, whose fields are
// the same; this compiles or it does not.
var _ = func(f Filter) *filter.Filter {
	return filter.Compile(filter.Rules{
		Protocols: filter.List[uint8](f.Protocols),
		Addresses: filter.List[netip.Prefix](f.Addresses),
		TCPStates: filter.List[uint8](f.TCPStates),
		Expects:   filter.Expects(f.Expectations),
	})
}

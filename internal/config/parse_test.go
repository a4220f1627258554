package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// minimal is the shortest accepted file.
const minimal = `
[sync]
wire = "conntrackd"
insecure = true
[[link]]
type = "udp"
interface = "eth2"
local = "192.0.2.1"
peers = ["192.0.2.2"]
`

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("test.toml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// equal compares by value; netip types have an Equal of their own kind only.
var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestMinimalTakesDefaults(t *testing.T) {
	want := Default()
	want.Sync.Wire, want.Sync.Insecure = WireConntrackd, true
	want.Filter.Expectations = Expectations{} // in this dialect
	l := DefaultLink()
	l.Type, l.Interface = LinkUDP, "eth2"
	l.Local = netip.MustParseAddr("192.0.2.1")
	l.Peers = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	want.Links = []Link{l}
	if d := cmp.Diff(want, mustParse(t, minimal), equal); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestEveryKeyArrives(t *testing.T) {
	got := mustParse(t, `
[node]
name = "fw-1.example"
socket = "/tmp/s"
state_dir = ""
log_level = "debug"
[ready]
track_file = "/run/r"
timeout = "5s"
[sync]
mode = "ftfw"
wire = "conntrackd"
insecure = true
resend_queue = 1000
ack_window = 20
startup_resync = false
peer_dead_after = "1m30s"
bulk_interval = "0s"
refresh = "2s"
cache_timeout = "6s"
[events]
buffer = 1_000_000
buffer_max = "2M"
[cache]
limit = 1
external_limit = 2
[takeover]
mode = "instant"
[commit]
timeout = "3m"
used_first = false
[purge]
after = "0s"
[filter]
protocols = { ignore = ["TCP", 17, "ipv6-icmp"] }
addresses.accept = ["192.0.2.0/24", "2001:db8::1"]
tcp_states = { accept = ["established", "SYN_SENT2"] }
local = true
labels = true
expectations = ["ftp", "sip-5070"]
mark_mask = 0xff00
[[link]]
type = "multicast"
interface = "bond0.100"
local = "2001:db8::1"
group = "ff15::7"
port = 1
recv_buffer = "64k"
send_buffer = "1GiB"
ttl = 255
[[link]]
type = "udp"
interface = "eth3"
local = "198.51.100.1"
peers = ["198.51.100.2"]
`)
	want := &Config{
		Node:     Node{"fw-1.example", "/tmp/s", "", LogDebug},
		Sync:     Sync{ModeFTFW, WireConntrackd, nil, true, 1000, 20, false, 90 * time.Second, 0, 2 * time.Second, 6 * time.Second},
		Events:   Events{1000000, 2 << 20},
		Cache:    Cache{1, 2},
		Takeover: Takeover{Mode: TakeoverInstant},
		Commit:   Commit{3 * time.Minute, false},
		Ready:    Ready{"/run/r", 5 * time.Second},
		Filter: Filter{
			Protocols: List[uint8]{Ignore: []uint8{6, 17, 58}},
			Addresses: List[netip.Prefix]{Accept: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")}},
			TCPStates: List[uint8]{Accept: []uint8{3, 9}},
			Local:     true,
			Labels:    true,
			MarkMask:  0xff00,

			Expectations: Expectations{Helpers: []string{"ftp", "sip-5070"}},
		},
		Links: []Link{
			{LinkMulticast, "bond0.100", netip.MustParseAddr("2001:db8::1"), nil, netip.MustParseAddr("ff15::7"), 1, 64 << 10, 1 << 30, 255},
			{LinkUDP, "eth3", netip.MustParseAddr("198.51.100.1"), []netip.Addr{netip.MustParseAddr("198.51.100.2")}, netip.Addr{}, 3780, 4 << 20, 4 << 20, 1},
		},
	}
	if d := cmp.Diff(want, got, equal, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// When a word is lifted from the list of what is not available yet, the
// dialect's own rules must already be there.
func TestSealedDialectNeedsKeys(t *testing.T) {
	saved := unavailable
	unavailable = nil
	t.Cleanup(func() { unavailable = saved })
	link := minimal[strings.Index(minimal, "[[link]]"):]
	for _, tt := range []struct{ sync, key string }{
		{`keys = ["/k"]`, ""},
		{`insecure = true`, ""},
		{`mode = "ftfw"`, "sync.keys"},
		{`keys = []`, "sync.keys"},
		{"wire = \"conntrackd\"\nkeys = [\"/k\"]\ninsecure = true", "sync.keys"},
		{`wire = "conntrackd"`, "sync.insecure"},
	} {
		_, err := Parse("t", strings.NewReader("[sync]\n"+tt.sync+"\n"+link))
		var e *Error
		switch {
		case tt.key == "" && err != nil:
			t.Errorf("%s: %v", tt.sync, err)
		case tt.key != "" && (!errors.As(err, &e) || e.Key != tt.key):
			t.Errorf("%s: %v, want an error of %s", tt.sync, err, tt.key)
		}
	}
}

func TestSizeForms(t *testing.T) {
	for text, want := range map[string]int{
		`65536`: 1 << 16, `"65536"`: 1 << 16, `"64k"`: 1 << 16, `"64K"`: 1 << 16, `"64KiB"`: 1 << 16, `"2M"`: 2 << 20, `"1G"`: 1 << 30,
	} {
		c := mustParse(t, "events = { buffer = "+text+", buffer_max = \"1GiB\" }\n"+minimal)
		if c.Events.Buffer != want {
			t.Errorf("%s is %d, want %d", text, c.Events.Buffer, want)
		}
	}
	for _, text := range []string{`""`, `"k"`, `"64kB"`, `"64 k"`, `"-1k"`, `"1.5M"`, `"9999999999G"`, `"2GiB"`, `4294967296`, `"0x10000"`, `"64Ki"`, `"64kk"`} {
		if _, err := Parse("t", strings.NewReader("events.buffer = "+text+"\n"+minimal)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

// A Config that was made by a program is held to the same rules as a file.
func TestValidateWithoutFile(t *testing.T) {
	c := mustParse(t, minimal)
	if err := c.Validate(); err != nil {
		t.Fatalf("a parsed configuration is invalid: %v", err)
	}
	c.Sync.AckWindow = 1
	c.Links[0].Peers = append(c.Links[0].Peers, netip.MustParseAddr("::ffff:192.0.2.2"))
	c.Filter.Addresses.Ignore = []netip.Prefix{{}, netip.MustParsePrefix("192.0.2.1/24")}
	want := []string{
		`filter.addresses.ignore: "192.0.2.1/24" has host bits; accepted: 192.0.2.0/24 for the network, 192.0.2.1 for the host`,
		`filter.addresses.ignore: "invalid Prefix" is not a network; accepted: ` + networkForms,
		`link.peers: "::ffff:192.0.2.2" is IPv4 inside of IPv6; accepted: 192.0.2.2`,
		`sync.ack_window: 1 is out of range; accepted: 2 to 1048576`,
	}
	if d := cmp.Diff(want, strings.Split(c.Validate().Error(), "\n")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "syncd.toml")
	if _, err := Load(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte("[node]\nname = 1\n"+minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(file)
	if err == nil || err.Error() != file+":2: node.name: 1 is an integer; accepted: a string" {
		t.Errorf("error %v", err)
	}
}

func TestFileTooLarge(t *testing.T) {
	if _, err := Parse("t", strings.NewReader(minimal+strings.Repeat("#", maxFile))); err == nil {
		t.Error("accepted")
	}
}

// TestExpectationsDefault: it follows the dialect, and what is said counts in both.
func TestExpectationsDefault(t *testing.T) {
	syncd := strings.Replace(minimal, `wire = "conntrackd"`, `wire = "syncd"`, 1)
	if syncd == minimal {
		t.Fatal("the minimal configuration speaks another dialect")
	}
	all, none := Expectations{All: true}, Expectations{}
	for _, c := range []struct {
		text string
		want Expectations
	}{
		{minimal, none}, {syncd, all},
		{minimal + "[filter]\nexpectations = true\n", all}, {syncd + "[filter]\nexpectations = false\n", none},
	} {
		if got := mustParse(t, c.text).Filter.Expectations; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v, want %+v of\n%s", got, c.want, c.text)
		}
	}
}

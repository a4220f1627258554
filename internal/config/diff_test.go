package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*Config)
		reload  []string
		restart []string
	}{
		{"nothing", func(*Config) {}, nil, nil},
		{"all that reloads", func(c *Config) {
			c.Node.LogLevel = LogDebug
			c.Filter.Protocols.Accept = []uint8{6}
			c.Filter.Addresses.Ignore = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			c.Filter.TCPStates.Accept = []uint8{3}
			c.Filter.Local = true
			c.Filter.Labels = true
			c.Filter.MarkMask = 1
			c.Filter.Expectations = Expectations{Helpers: []string{"ftp"}}
			c.Commit.Timeout = time.Minute
			c.Purge.After = 0
			c.Sync.PeerDeadAfter = time.Minute
		}, []string{"node.log_level", "sync.peer_dead_after", "commit.timeout", "purge.after", "filter.protocols",
			"filter.addresses", "filter.tcp_states", "filter.local", "filter.labels", "filter.expectations", "filter.mark_mask"}, nil},
		{"both", func(c *Config) { c.Node.Name = "x"; c.Purge.After = 0 }, []string{"purge.after"}, []string{"node.name"}},
		{"links", func(c *Config) {
			c.Links[0].TTL = 9
			c.Links[1].TTL = 9
			c.Links[1].Peers = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
		}, nil, []string{"link.peers", "link.ttl"}},
		{"number of links", func(c *Config) { c.Links = c.Links[:1] }, nil, []string{"link"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			second := "[[link]]\ntype=\"udp\"\ninterface=\"eth3\"\nlocal=\"192.0.2.5\"\npeers=[\"192.0.2.6\"]\n"
			a, b := mustParse(t, minimal+second), mustParse(t, minimal+second)
			tt.change(b)
			reload, restart := a.Diff(b)
			if d := cmp.Diff([][]string{tt.reload, tt.restart}, [][]string{reload, restart}); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// Whatever field is added to Config must be in the table of keys, or a reload
// would pass over it in silence.
func TestEveryFieldHasAKey(t *testing.T) {
	fields := countFields(Config{}) + countFields(Link{})
	if keys := len(configKeys) + len(linkKeys); keys != fields {
		t.Errorf("%d keys for %d fields", keys, fields)
	}
}

// countFields counts the settings in the struct of a section tree.
func countFields(v any) int {
	n := 0
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		switch {
		case f.Name == "Links":
		case f.Type.Kind() == reflect.Struct && f.Type.PkgPath() == reflect.TypeFor[Config]().PkgPath() && !strings.HasPrefix(f.Type.Name(), "List[") &&
			f.Type != reflect.TypeFor[Expectations](): // which is one value
			n += countFields(reflect.Zero(f.Type).Interface())
		default:
			n++
		}
	}
	return n
}

package config

import (
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// key is one setting of a struct S, which is Config or Link.
type key[S any] struct {
	name    string // "section.key", or "key" inside a link
	reload  bool   // a running daemon can take a new value over
	decode  func(s *S, v value)
	check   func(s *S, report fault)
	differs func(a, b *S) bool
}

// setting makes the row of one key.
func setting[S, T any](name string, field func(*S) *T, decode func(value) (T, bool), rules ...rule[T]) key[S] {
	return key[S]{
		name: name,
		decode: func(s *S, v value) {
			if x, ok := decode(v); ok {
				*field(s) = x
			}
		},
		check: func(s *S, report fault) {
			for _, r := range rules {
				r(*field(s), report)
			}
		},
		differs: func(a, b *S) bool { return !reflect.DeepEqual(*field(a), *field(b)) },
	}
}

// reloadable marks keys that a reload can change.
func reloadable[S any](k key[S]) key[S] {
	k.reload = true
	return k
}

// Limits that several rows share.
const (
	maxCache   = 1 << 30 // flows; handles are 32-bit
	maxBuffer  = 1 << 30 // octets; the kernel keeps socket buffers below half of INT_MAX
	minBuffer  = 64 << 10
	maxTimeout = 365 * 24 * time.Hour
)

// configKeys is every key outside of [[link]], in the order of the reference.
var configKeys = []key[Config]{
	setting("node.name", func(c *Config) *string { return &c.Node.Name }, text, nodeName),
	setting("node.socket", func(c *Config) *string { return &c.Node.Socket }, text, socketPath),
	reloadable(setting("node.log_level", func(c *Config) *LogLevel { return &c.Node.LogLevel }, word[LogLevel],
		oneOf("node.log_level", "a log level", LogDebug, LogInfo, LogWarn, LogError))),

	setting("node.state_dir", func(c *Config) *string { return &c.Node.StateDir }, text, emptyOrPath),

	setting("sync.mode", func(c *Config) *Mode { return &c.Sync.Mode }, word[Mode],
		oneOf("sync.mode", "a mode", ModeFTFW, ModeNotrack, ModeAlarm)),
	setting("sync.wire", func(c *Config) *Wire { return &c.Sync.Wire }, word[Wire],
		oneOf("sync.wire", "a dialect", WireSyncd, WireConntrackd)),
	reloadable(setting("sync.keys", func(c *Config) *[]string { return &c.Sync.Keys }, array(text), each(keyFile))),
	setting("sync.insecure", func(c *Config) *bool { return &c.Sync.Insecure }, boolean),
	setting("sync.resend_queue", func(c *Config) *int { return &c.Sync.ResendQueue }, integer, between(2, 1<<26)),
	setting("sync.ack_window", func(c *Config) *int { return &c.Sync.AckWindow }, integer, between(2, 1<<20)),
	setting("sync.startup_resync", func(c *Config) *bool { return &c.Sync.StartupResync }, boolean),
	// Below two seconds one lost ALIVE, of which one is sent a second, would
	// already count as a death.
	reloadable(setting("sync.peer_dead_after", func(c *Config) *time.Duration { return &c.Sync.PeerDeadAfter },
		duration, between(2*time.Second, time.Hour))),
	setting("sync.bulk_interval", func(c *Config) *time.Duration { return &c.Sync.BulkInterval },
		duration, zeroOr(time.Second, 24*time.Hour)),
	setting("sync.refresh", func(c *Config) *time.Duration { return &c.Sync.Refresh },
		duration, between(time.Second, time.Hour)),
	setting("sync.cache_timeout", func(c *Config) *time.Duration { return &c.Sync.CacheTimeout },
		duration, between(2*time.Second, 24*time.Hour)),

	setting("events.buffer", func(c *Config) *int { return &c.Events.Buffer }, size, sizeBetween(minBuffer, maxBuffer)),
	setting("events.buffer_max", func(c *Config) *int { return &c.Events.BufferMax }, size, sizeBetween(minBuffer, maxBuffer)),

	setting("cache.limit", func(c *Config) *int { return &c.Cache.Limit }, integer, between(0, maxCache)),
	setting("cache.external_limit", func(c *Config) *int { return &c.Cache.ExternalLimit }, integer, between(0, maxCache)),

	setting("takeover.mode", func(c *Config) *TakeoverMode { return &c.Takeover.Mode }, word[TakeoverMode],
		oneOf("takeover.mode", "a way to take over", TakeoverCommit, TakeoverInstant)),

	reloadable(setting("commit.timeout", func(c *Config) *time.Duration { return &c.Commit.Timeout },
		duration, zeroOr(time.Second, maxTimeout))),
	reloadable(setting("commit.used_first", func(c *Config) *bool { return &c.Commit.UsedFirst }, boolean)),
	reloadable(setting("purge.after", func(c *Config) *time.Duration { return &c.Purge.After },
		duration, zeroOr(time.Second, maxTimeout))),

	setting("ready.track_file", func(c *Config) *string { return &c.Ready.TrackFile }, text, emptyOrPath),
	setting("ready.timeout", func(c *Config) *time.Duration { return &c.Ready.Timeout },
		duration, between(time.Second, time.Hour)),

	reloadable(setting("filter.protocols", func(c *Config) *List[uint8] { return &c.Filter.Protocols }, list(protocol))),
	reloadable(setting("filter.addresses", func(c *Config) *List[netip.Prefix] { return &c.Filter.Addresses }, list(prefix), eachListed(network))),
	reloadable(setting("filter.tcp_states", func(c *Config) *List[uint8] { return &c.Filter.TCPStates }, list(tcpState))),
	reloadable(setting("filter.local", func(c *Config) *bool { return &c.Filter.Local }, boolean)),
	reloadable(setting("filter.labels", func(c *Config) *bool { return &c.Filter.Labels }, boolean)),
	reloadable(setting("filter.expectations", func(c *Config) *Expectations { return &c.Filter.Expectations }, expectations, helpers)),
	reloadable(setting("filter.mark_mask", func(c *Config) *uint32 { return &c.Filter.MarkMask }, unsigned[uint32](0))),
}

// linkKeys is every key of a [[link]].
var linkKeys = []key[Link]{
	setting("type", func(l *Link) *LinkType { return &l.Type }, word[LinkType],
		oneOf("link.type", "a link type", LinkUDP, LinkMulticast, LinkTCP)),
	setting("interface", func(l *Link) *string { return &l.Interface }, text, interfaceName),
	setting("local", func(l *Link) *netip.Addr { return &l.Local }, address, unicast),
	setting("peers", func(l *Link) *[]netip.Addr { return &l.Peers }, array(address), each(unicast)),
	setting("group", func(l *Link) *netip.Addr { return &l.Group }, address, multicast),
	setting("port", func(l *Link) *uint16 { return &l.Port }, unsigned[uint16](1), between[uint16](1, 65535)),
	setting("recv_buffer", func(l *Link) *int { return &l.RecvBuffer }, size, sizeBetween(minBuffer, maxBuffer)),
	setting("send_buffer", func(l *Link) *int { return &l.SendBuffer }, size, sizeBetween(minBuffer, maxBuffer)),
	setting("ttl", func(l *Link) *uint8 { return &l.TTL }, unsigned[uint8](1), between[uint8](1, 255)),
}

// keyNames returns the full name of every key.
func keyNames() []string {
	var names []string
	for _, k := range configKeys {
		names = append(names, k.name)
	}
	for _, k := range linkKeys {
		names = append(names, "link."+k.name)
	}
	return names
}

// sections returns the names of the tables, in order, without link.
func sections() []string {
	var names []string
	for _, k := range configKeys {
		s, _, _ := strings.Cut(k.name, ".")
		if len(names) == 0 || names[len(names)-1] != s {
			names = append(names, s)
		}
	}
	return names
}

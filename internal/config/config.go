package config

import (
	"net/netip"
	"time"
)

// Config is a validated configuration. It holds values only: a copy of the
// struct shares its lists, which nobody changes after Parse.
type Config struct {
	Node     Node
	Sync     Sync
	Events   Events
	Cache    Cache
	Takeover Takeover
	Commit   Commit
	Purge    Purge
	Ready    Ready
	Filter   Filter
	Links    []Link // 1 to MaxLinks; the first is used until it fails
}

// MaxLinks is how many dedicated links a configuration may have.
const MaxLinks = 8

// Node says who this daemon is and how to talk to it.
type Node struct {
	Name     string // empty: the caller uses the host name
	Socket   string // path of the control socket, at most 107 octets
	StateDir string // where what outlives a restart is kept, the state of the peers and the role; empty: nothing is
	LogLevel LogLevel
}

// LogLevel is the lowest level that is logged.
type LogLevel string

// The levels, most talkative first.
const (
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

// Mode is how changes are carried to the peers.
type Mode string

// The synchronisation modes.
const (
	ModeFTFW    Mode = "ftfw"    // numbered, acknowledged, resent
	ModeNotrack Mode = "notrack" // best effort
	ModeAlarm   Mode = "alarm"   // periodic refresh
)

// Wire is the dialect spoken on the links.
type Wire string

// The dialects.
const (
	WireSyncd      Wire = "syncd"      // sealed datagrams
	WireConntrackd Wire = "conntrackd" // what conntrackd sends and accepts, plain
)

// Sync says how the nodes are kept in step.
type Sync struct {
	Mode          Mode
	Wire          Wire
	Keys          []string // key files: the first seals, all open
	Insecure      bool     // plain datagrams were asked for in so many words
	ResendQueue   int      // messages kept until they are acknowledged; at least AckWindow
	AckWindow     int      // messages after which a receiver acknowledges
	StartupResync bool     // ask the peers for everything at start
	PeerDeadAfter time.Duration
	BulkInterval  time.Duration // notrack: everything is sent again this often; 0: never
	Refresh       time.Duration // alarm: the longest time between two messages of a flow
	CacheTimeout  time.Duration // alarm: life of an entry that is not refreshed
}

// Events sizes the socket that the kernel's events come from, in octets.
type Events struct {
	Buffer    int // at start; at most BufferMax
	BufferMax int // where growing after overruns ends
}

// Cache limits the caches, in flows.
type Cache struct {
	Limit         int // internal cache; 0: twice nf_conntrack_max
	ExternalLimit int // external cache; 0: twice nf_conntrack_max
}

// TakeoverMode is when the flows of peers are put into this kernel.
type TakeoverMode string

// The ways to take over.
const (
	TakeoverCommit  TakeoverMode = "commit"  // by the command that puts this node in charge
	TakeoverInstant TakeoverMode = "instant" // as they come
)

// Takeover says how this node takes over.
type Takeover struct {
	Mode TakeoverMode
}

// Commit says what is put into the kernel.
type Commit struct {
	Timeout   time.Duration // of every committed entry; 0: the time that it has left
	UsedFirst bool          // entries of which packets come go before the others
}

// Purge says when a former primary drops its kernel entries.
type Purge struct {
	After time.Duration // after it became backup; 0: never
}

// Ready says when this node may become primary.
type Ready struct {
	TrackFile string        // for keepalived's track_file; empty: none
	Timeout   time.Duration // after the start, at which the node is ready whatever is missing
}

// Filter says which flows are replicated, and which parts of them.
type Filter struct {
	Protocols List[uint8]        // IP protocol numbers
	Addresses List[netip.Prefix] // original source or reply source; masked, no zones
	TCPStates List[uint8]        // numbers as in the kernel's nf_conntrack_tcp.h
	Local     bool               // whether flows of this host itself are replicated
	Labels    bool               // whether connection labels are replicated
	MarkMask  uint32             // bits of the mark that are replicated

	Expectations Expectations // whose expectations are replicated and committed
}

// Expectations selects expectations by their helper.
type Expectations struct {
	All     bool
	Helpers []string // these, if not All; a helper on another port belongs to its name
}

// List is one criterion of a filter. At most one of the two is set; none means
// that everything passes.
type List[T any] struct {
	Accept []T // only these pass
	Ignore []T // all but these pass
}

// LinkType is the transport of a link.
type LinkType string

// The transports.
const (
	LinkUDP       LinkType = "udp"
	LinkMulticast LinkType = "multicast"
	LinkTCP       LinkType = "tcp"
)

// Link is one dedicated link. All its addresses are of one family and carry no
// zone: the interface says where a link-local address belongs.
type Link struct {
	Type       LinkType
	Interface  string
	Local      netip.Addr   // may be invalid with an IPv6 group: then the link-local address
	Peers      []netip.Addr // the other nodes; with multicast the only ones heard, or everyone if empty
	Group      netip.Addr   // multicast only
	Port       uint16
	RecvBuffer int   // octets
	SendBuffer int   // octets
	TTL        uint8 // TTL or hop limit of multicast datagrams
}

// Default returns the configuration of an empty file. It lacks what has no
// default, a link above all, and so does not pass Validate. Of expectations it has the
// default of the syncd dialect; conntrackd's is none.
func Default() *Config {
	return &Config{
		Node: Node{Socket: "/run/syncd/syncd.sock", LogLevel: LogInfo, StateDir: "/var/lib/syncd"},
		Sync: Sync{
			Mode:          ModeFTFW,
			Wire:          WireSyncd,
			ResendQueue:   131072,
			AckWindow:     300,
			StartupResync: true,
			PeerDeadAfter: 10 * time.Second,
			BulkInterval:  time.Minute,
			Refresh:       time.Minute,
			CacheTimeout:  3 * time.Minute,
		},
		Events: Events{Buffer: 64 << 20, BufferMax: 512 << 20},

		Takeover: Takeover{Mode: TakeoverCommit},
		Commit:   Commit{UsedFirst: true},

		Purge:  Purge{After: time.Minute},
		Ready:  Ready{Timeout: time.Minute},
		Filter: Filter{MarkMask: 0xffffffff, Expectations: Expectations{All: true}},
	}
}

// DefaultLink returns a link with the defaults of its optional keys.
func DefaultLink() Link {
	return Link{Port: 3780, RecvBuffer: 4 << 20, SendBuffer: 4 << 20, TTL: 1}
}

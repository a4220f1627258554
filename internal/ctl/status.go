package ctl

import "time"

// Status is what a node says about itself now. In JSON an empty list is [], never
// null.
type Status struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Role    string    `json:"role"`       // Role* constants
	Since   time.Time `json:"role_since"` // when the role was set; zero while it is unknown
	// RoleRestored says that the role is from before a restart of the daemon, and that
	// nobody has said it since.
	RoleRestored bool      `json:"role_restored,omitempty"`
	Started      time.Time `json:"started"`  // when the daemon started
	UptimeS      float64   `json:"uptime_s"` // monotonic, so not Started's difference after a clock step
	Mode         string    `json:"mode"`     // ftfw, notrack, alarm
	Wire         string    `json:"wire"`     // syncd, conntrackd
	Ready        bool      `json:"ready"`    // may become primary without losing connections
	InSync       bool      `json:"in_sync"`  // Problems is empty

	// ProvenAgeS is how long ago the last digest of the peer agreed whose last one
	// is the oldest; 0 where a living peer has none.
	ProvenAgeS float64 `json:"proven_age_s,omitzero"`

	// Problems are plain sentences that say why the node is not in sync, the
	// gravest first.
	Problems []string `json:"problems"`

	Peers      []PeerStatus  `json:"peers"`
	Links      []LinkStatus  `json:"links"`
	Internal   CacheStatus   `json:"internal_cache"`
	External   CacheStatus   `json:"external_cache"`
	Kernel     KernelStatus  `json:"kernel"`
	Parked     *ParkStatus   `json:"parked,omitempty"` // only with instant takeover
	LastCommit *CommitReport `json:"last_commit,omitempty"`

	// Task names what the node is at ("commit", "bulk update to fw2"), empty
	// when nothing special.
	Task string `json:"task,omitempty"`
}

// States of a peer.
const (
	PeerUnheard  = "unheard"  // never heard since the daemon started
	PeerHelloing = "helloing" // greeting under way
	PeerUp       = "up"
	PeerSilent   = "silent" // was up, not heard for too long
)

// PeerStatus is one other node as this one sees it.
type PeerStatus struct {
	Name       string  `json:"name"`
	Address    string  `json:"address"`
	State      string  `json:"state"`                 // Peer* constants
	Role       string  `json:"role,omitempty"`        // that it says it has, Role* constants; empty if it says none
	HeardAgeS  float64 `json:"heard_age_s,omitzero"`  // since its last message; 0 while unheard
	Flows      uint64  `json:"flows"`                 // entries of it in the external cache
	Unacked    uint64  `json:"unacknowledged"`        // messages sent that it has not acknowledged
	Dirty      uint64  `json:"dirty"`                 // flows that it still has to be sent
	Bulk       bool    `json:"bulk_running"`          // a bulk update to or from it runs
	Resync     bool    `json:"resync_outstanding"`    // a bulk update was asked for and has not begun
	ProvenAgeS float64 `json:"proven_age_s,omitzero"` // since a digest of its flows last agreed; 0 while none has
	InSync     bool    `json:"in_sync"`               // as far as this peer is concerned
	Membership string  `json:"membership,omitempty"`  // what the cluster says of it: alive, suspect, left
}

// LinkStatus is one dedicated link.
type LinkStatus struct {
	Name            string `json:"name"`
	Type            string `json:"type"` // udp, multicast, tcp
	Interface       string `json:"interface"`
	Active          bool   `json:"active"` // the one that is sent over
	Up              bool   `json:"up"`
	Reason          string `json:"reason,omitempty"` // why it is not up
	MaxPayloadBytes int    `json:"max_payload_bytes"`
}

// CacheStatus is the fill of one cache.
type CacheStatus struct {
	Entries uint64 `json:"entries"`      // live ones
	Expects uint64 `json:"expectations"` // of them, expectations
	Dead    uint64 `json:"dead"`         // deleted, kept until every peer knows
	Limit   uint64 `json:"limit"`
	Refused uint64 `json:"refused"` // not taken because the cache was full, ever
	Bytes   uint64 `json:"memory_bytes,omitzero"`
}

// ParkStatus is what instant takeover has put into this kernel for peers.
type ParkStatus struct {
	Entries uint64 `json:"entries"`
	Waiting uint64 `json:"waiting"` // changes on their way
}

// KernelStatus is the connection-tracking table of the kernel.
type KernelStatus struct {
	Entries  uint64   `json:"entries"`             // nf_conntrack_count
	Max      uint64   `json:"max"`                 // nf_conntrack_max
	Events   int      `json:"nf_conntrack_events"` // 0 off, 1 on, 2 when somebody listens, -1 not known
	Warnings []string `json:"warnings"`            // plain sentences about settings that will hurt
}

// normalize makes the lists of s non-nil.
func (s *Status) normalize() {
	notNil(&s.Problems)
	notNil(&s.Peers)
	notNil(&s.Links)
	notNil(&s.Kernel.Warnings)
}

func notNil[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

package ctl

import "time"

// Stats are all counters since the daemon started. None ever falls. In JSON an
// empty list is [] and a count of nothing {}, never null.
type Stats struct {
	Since    time.Time    `json:"since"`
	Events   EventStats   `json:"events"`
	Internal CacheStats   `json:"internal_cache"`
	External CacheStats   `json:"external_cache"`
	Sync     SyncStats    `json:"sync"`
	Links    []LinkStats  `json:"links"`
	Commit   CommitStats  `json:"commit"`
	Parked   *ParkStats   `json:"parked,omitempty"` // only with instant takeover
	Control  ControlStats `json:"control"`
}

// EventStats counts what came from the kernel.
type EventStats struct {
	Received  uint64 `json:"received"` // New + Updates + Destroys
	New       uint64 `json:"new"`
	Updates   uint64 `json:"updates"`
	Destroys  uint64 `json:"destroys"`
	Filtered  uint64 `json:"filtered"`  // received, not replicated
	Own       uint64 `json:"own"`       // caused by this daemon's own changes
	Malformed uint64 `json:"malformed"` // could not be decoded
	Overruns  uint64 `json:"overruns"`  // the kernel dropped events

	Expects        uint64 `json:"expectations"`          // about expectations, in none of the above
	ExpectsLeftOut uint64 `json:"expectations_left_out"` // of them, those not replicated

	Dumps    uint64 `json:"dumps"`    // times that the whole table was read
	Dumped   uint64 `json:"dumped"`   // entries seen by those
	Repaired uint64 `json:"repaired"` // entries that a dump had to correct
	Fetched  uint64 `json:"fetched"`  // entries that were read singly, for what no event tells
	Learned  uint64 `json:"learned"`  // of these, those of which that told something

	FetchFailures uint64 `json:"fetch_failures"` // times that reading entries singly failed

	ReceiveBufferBytes uint64 `json:"receive_buffer_bytes"`
}

// CacheStats counts what happened to one cache.
type CacheStats struct {
	Created   uint64 `json:"created"`
	Updated   uint64 `json:"updated"`
	Unchanged uint64 `json:"unchanged"` // said again, nothing new
	Deleted   uint64 `json:"deleted"`
	Swept     uint64 `json:"swept"`     // removed because nobody confirmed them
	Expired   uint64 `json:"expired"`   // removed because their time was over
	NotFound  uint64 `json:"not_found"` // deletes of what was not there
	NotOwner  uint64 `json:"not_owner"` // changes refused because another node owns the entry
	Refused   uint64 `json:"refused"`   // not taken because the cache was full

	// Of the internal cache: flows whose address has left this host, which is not their
	// end; and flows that ended here because another node has taken over.
	LeftBehind uint64 `json:"left_behind"`
	Purged     uint64 `json:"purged"`
}

// SyncStats counts messages between nodes.
type SyncStats struct {
	MessagesSent     map[string]uint64 `json:"messages_sent"`     // by type
	MessagesReceived map[string]uint64 `json:"messages_received"` // by type

	AcksSent      uint64 `json:"acks_sent"`
	AcksReceived  uint64 `json:"acks_received"`
	NacksSent     uint64 `json:"nacks_sent"`
	NacksReceived uint64 `json:"nacks_received"`

	Lost   uint64 `json:"lost"`   // numbers that did not come in their turn
	Before uint64 `json:"before"` // numbers that came again or too late
	Resent uint64 `json:"resent"`

	Unfollowed uint64 `json:"unfollowed"` // compact messages that referred to one that had not come: taken for lost

	ResyncsAsked  uint64 `json:"resyncs_asked"`  // by this node
	ResyncsServed uint64 `json:"resyncs_served"` // asked by peers
	BulksSent     uint64 `json:"bulks_sent"`
	BulksReceived uint64 `json:"bulks_received"`

	DigestsAgreed   uint64 `json:"digests_agreed"`
	DigestsDiffered uint64 `json:"digests_differed"`
	Repaired        uint64 `json:"repaired"` // entries corrected after that

	Malformed map[string]uint64 `json:"malformed"` // messages dropped, by reason
	Refused   map[string]uint64 `json:"refused"`   // sealed datagrams dropped before any parsing, by reason
}

// LinkStats counts the datagrams of one dedicated link.
type LinkStats struct {
	Name              string            `json:"name"`
	DatagramsSent     uint64            `json:"datagrams_sent"`
	DatagramsReceived uint64            `json:"datagrams_received"`
	SentBytes         uint64            `json:"sent_bytes"`
	ReceivedBytes     uint64            `json:"received_bytes"`
	Drops             map[string]uint64 `json:"drops"` // datagrams, by reason
}

// CommitStats sums all commits.
type CommitStats struct {
	Commits   uint64  `json:"commits"`
	Failed    uint64  `json:"failed"` // ended before their end
	Entries   uint64  `json:"entries"`
	Created   uint64  `json:"created"`
	Updated   uint64  `json:"updated"`
	Skipped   uint64  `json:"skipped"` // already there or not tried
	Refused   uint64  `json:"refused"`
	DurationS float64 `json:"duration_s"`
}

// ParkStats counts what instant takeover does with entries of peers.
type ParkStats struct {
	Created  uint64 `json:"created"` // put into the kernel
	Updated  uint64 `json:"updated"`
	Remade   uint64 `json:"remade"` // replaced, for what no update can change
	Deleted  uint64 `json:"deleted"`
	Released uint64 `json:"released"` // given a timeout of their own again, after a dump
	Adopted  uint64 `json:"adopted"`  // became this node's own by a takeover
	Touched  uint64 `json:"touched"`  // became this node's own because packets passed them
	Yielded  uint64 `json:"yielded"`  // this node's own that became a peer's

	NotParked map[string]uint64 `json:"not_parked"` // requests with another outcome, by reason
}

// ControlStats counts the use of the control socket.
type ControlStats struct {
	Connections uint64 `json:"connections"`
	Rejected    uint64 `json:"rejected"` // connections of users that may not command
	Requests    uint64 `json:"requests"`
	Failed      uint64 `json:"failed"`  // requests answered with an error
	CutOff      uint64 `json:"cut_off"` // dumps that were ended because their client did not read
}

// normalize makes the lists and maps of s non-nil.
func (s *Stats) normalize() {
	notNil(&s.Links)
	maps := []*map[string]uint64{&s.Sync.MessagesSent, &s.Sync.MessagesReceived, &s.Sync.Malformed, &s.Sync.Refused}
	if s.Parked != nil {
		maps = append(maps, &s.Parked.NotParked)
	}
	for i := range s.Links {
		maps = append(maps, &s.Links[i].Drops)
	}
	for _, m := range maps {
		if *m == nil {
			*m = map[string]uint64{}
		}
	}
}

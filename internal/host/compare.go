package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// profileFormat begins every profile.
const profileFormat = "syncd-host-1"

// Profile is what of a node has to fit to the other nodes. It holds no secret and no
// rule, and is written as JSON.
type Profile struct {
	Format  string            `json:"format"`
	Node    string            `json:"node"`
	Kernel  string            `json:"kernel"`
	Mode    string            `json:"mode"`
	Wire    string            `json:"wire"`
	Labels  bool              `json:"labels"`
	Mark    uint32            `json:"mark_mask"`
	Sysctls map[string]string `json:"sysctls"`
	Entries string            `json:"entries"` // of the table, "" where unreadable
	Links   []ProfileLink     `json:"links"`   // in the order of the configuration
	Rules   ProfileRules      `json:"rules"`
}

// ProfileLink is one link of a profile.
type ProfileLink struct {
	Interface string `json:"interface"`
	Local     string `json:"local,omitempty"`
	Group     string `json:"group,omitempty"`
	Port      uint16 `json:"port"`
	MTU       int    `json:"mtu,omitempty"` // 0 where there is no such interface
}

// ProfileRules is what the rules do to connections, as far as it must be the same.
type ProfileRules struct {
	Unreadable bool     `json:"unreadable,omitempty"`
	Helpers    []string `json:"helpers"`
	Zones      bool     `json:"zones"`
	Labels     bool     `json:"labels"`
	Timeouts   bool     `json:"timeout_policies"`
	Masquerade bool     `json:"masquerade"`
}

// sameSysctls are those that have to be the same, besides the timeouts.
var sameSysctls = [...]string{
	"nf_conntrack_events", "nf_conntrack_max", "nf_conntrack_buckets", "nf_conntrack_expect_max",
	"nf_conntrack_tcp_loose", "nf_conntrack_tcp_be_liberal", "nf_conntrack_tcp_ignore_invalid_rst",
	"nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_checksum", "nf_conntrack_tcp_max_retrans",
}

// NewProfile returns the profile of a host.
func NewProfile(f *Facts, s *Setup) *Profile {
	p := &Profile{
		Format: profileFormat, Node: s.Node, Kernel: f.Kernel, Mode: s.Mode, Wire: s.Wire, Labels: s.Labels, Mark: s.MarkMask,
		Sysctls: make(map[string]string), Links: []ProfileLink{}, Entries: f.Count.Value,
		Rules: ProfileRules{Helpers: []string{}, Unreadable: f.Rules.Err != ""},
	}
	for _, n := range sameSysctls {
		if r, ok := f.Sysctls[netfilter+n]; ok && r.ok() {
			p.Sysctls[netfilter+n] = r.Value
		}
	}
	for _, n := range f.timeouts() {
		if r := f.Sysctls[n]; r.ok() {
			p.Sysctls[n] = r.Value
		}
	}
	for i := range s.Links {
		l := &s.Links[i]
		pl := ProfileLink{Interface: l.Interface, Port: l.Port, MTU: f.Interfaces[l.Interface].MTU}
		if l.Local.IsValid() {
			pl.Local = l.Local.String()
		}
		if l.Group.IsValid() {
			pl.Group = l.Group.String()
		}
		p.Links = append(p.Links, pl)
	}
	for _, u := range f.Rules.uses() {
		switch u.what {
		case usesHelper:
			p.Rules.Helpers = append(p.Rules.Helpers, u.name)
		case usesZone:
			p.Rules.Zones = true
		case usesLabel:
			p.Rules.Labels = true
		case usesTimeout:
			p.Rules.Timeouts = true
		case usesMasquerade:
			p.Rules.Masquerade = true
		}
	}
	slices.Sort(p.Rules.Helpers)
	p.Rules.Helpers = slices.Compact(p.Rules.Helpers)
	return p
}

// Write writes the profile as JSON.
func (p *Profile) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(p)
}

// profileLimit bounds what is read as a profile, in octets.
const profileLimit = 1 << 20

// ReadProfile reads a profile that Write has written, on whatever node.
func ReadProfile(r io.Reader) (*Profile, error) {
	b, err := io.ReadAll(io.LimitReader(r, profileLimit+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > profileLimit:
		return nil, fmt.Errorf("more than %d octets, so it is no profile of a host", profileLimit)
	case len(b) == 0:
		return nil, errors.New("the file is empty; write one with syncd check --print-host on the other node")
	}
	var p Profile
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("no profile of a host (write one with syncd check --print-host): %w", err)
	}
	if p.Format != profileFormat {
		return nil, fmt.Errorf("format %q, accepted: %q (write one with syncd check --print-host)", p.Format, profileFormat)
	}
	return &p, nil
}

// Compare says where this node and a peer differ in what has to be the same.
func Compare(mine, peer *Profile) []Finding {
	c := comparison{mine: mine, peer: peer, name: peer.Node}
	if mine.Node == peer.Node {
		c.add(Finding{ID: "peer.node", Verdict: Warning, Found: mine.Node, Want: "another node",
			Why: "the profile is of a node with the name of this one: of this node itself, or of one that needs another name"})
	}
	c.sysctls()
	c.table()
	c.settings()
	c.links()
	c.rules()
	return c.findings
}

type comparison struct {
	mine, peer *Profile
	name       string // of the peer
	findings   []Finding
}

func (c *comparison) add(f Finding) { c.findings = append(c.findings, f) }

// differ adds a finding about two values that must be the same.
func (c *comparison) differ(id, subject, here, there, why, fix string, v Verdict) {
	c.add(Finding{ID: id, Subject: subject, Verdict: v, Found: fmt.Sprintf("%s here, %s on %s", here, there, c.name),
		Want: "the same on all nodes", Why: why, Fix: fix})
}

// sysctls compares all values that both nodes have told, and tells one finding where
// they are the same.
func (c *comparison) sysctls() {
	same, different := 0, 0
	names := make([]string, 0, len(c.mine.Sysctls)+len(c.peer.Sysctls))
	for n := range c.mine.Sysctls {
		names = append(names, n)
	}
	for n := range c.peer.Sysctls {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		here, okHere := c.mine.Sysctls[n]
		there, okThere := c.peer.Sysctls[n]
		short := n[strings.LastIndexByte(n, '.')+1:]
		switch {
		case !okHere || !okThere:
			where := "this node"
			if okHere {
				where = c.name
			}
			different++
			c.add(Finding{ID: "peer.sysctl", Subject: short, Verdict: Note, Found: "missing on " + where, Want: "the same on all nodes",
				Why: "the kernels are of different versions (" + c.mine.Kernel + " here, " + c.peer.Kernel + " there)"})
		case here == there:
			same++
		case n == netfilter+"nf_conntrack_max", n == netfilter+"nf_conntrack_buckets":
			different++ // the table says it
		default:
			different++
			c.differ("peer.sysctl", short, here, there, whySame(short), setCommand(n, there), Warning)
		}
	}
	if different == 0 {
		c.add(Finding{ID: "peer.sysctl", Found: fmt.Sprintf("%d values are the same on %s", same, c.name), Want: "the same on all nodes",
			Why: "connections live on under the same rules"})
	}
}

func whySame(name string) string {
	switch {
	case strings.Contains(name, "_timeout"):
		return "restored flows live by the timeouts of the node that they are on, so idle ones end earlier or later after a takeover"
	case name == "nf_conntrack_acct", name == "nf_conntrack_timestamp":
		return "what one node counts the other does not, and it cannot be restored"
	}
	return "a connection is treated otherwise after a takeover"
}

// table compares the sizes of the tables.
func (c *comparison) table() {
	const maxName = netfilter + "nf_conntrack_max"
	number := func(s string) (int64, bool) {
		n, err := strconv.ParseInt(s, 10, 64)
		return n, err == nil
	}
	here, ok1 := number(c.mine.Sysctls[maxName])
	there, ok2 := number(c.peer.Sysctls[maxName])
	entries, ok3 := number(c.peer.Entries)
	out := Finding{ID: "peer.table", Subject: c.name, Want: "the same on all nodes", Why: "each node can hold the connections of the other",
		Found: fmt.Sprintf("room for %d here and %d there", here, there)}
	unlimited := func(n int64) bool { return n == 0 }
	switch {
	case !ok1 || !ok2:
		out.Verdict, out.Found, out.Why = Unknown, "not known", "nf_conntrack_max is missing from one of the profiles"
	case ok3 && !unlimited(here) && entries > here:
		out.Verdict, out.Fix = Error, setCommand(maxName, max(there, roundUp(entries)))
		out.Found += fmt.Sprintf(", %d entries there", entries)
		out.Why = "the peer's table holds more than this node's can: a takeover would lose connections for certain"
	case !unlimited(here) && (unlimited(there) || here < there):
		out.Verdict, out.Fix = Warning, setCommand(maxName, there)
		out.Why = "the peer may have more connections than this node can take over"
	case here != there:
		out.Verdict = Warning
		out.Fix = "on " + c.name + ": " + setCommand(maxName, here)
		out.Why = "this node may have more connections than the peer can take over"
	}
	c.add(out)
	const bucketsName = netfilter + "nf_conntrack_buckets"
	if h, t := c.mine.Sysctls[bucketsName], c.peer.Sysctls[bucketsName]; h != t && h != "" && t != "" {
		c.differ("peer.sysctl", "nf_conntrack_buckets", h, t, "a hash table of another size only makes one of them slower", "", Note)
	}
}

// settings compares what the configurations must agree on.
func (c *comparison) settings() {
	const fix = "change the configuration of one of them"
	if c.mine.Wire != c.peer.Wire {
		c.differ("peer.wire", "", c.mine.Wire, c.peer.Wire, "the nodes do not understand each other", fix, Error)
	}
	if c.mine.Mode != c.peer.Mode {
		c.differ("peer.mode", "", c.mine.Mode, c.peer.Mode, "the nodes do not understand each other", fix, Error)
	}
	if c.mine.Labels != c.peer.Labels {
		c.differ("peer.labels", "", fmt.Sprint(c.mine.Labels), fmt.Sprint(c.peer.Labels), "labels are replicated one way only", fix, Warning)
	}
	if c.mine.Mark != c.peer.Mark {
		c.differ("peer.mark_mask", "", fmt.Sprintf("%#x", c.mine.Mark), fmt.Sprintf("%#x", c.peer.Mark), "other bits of the mark are replicated one way than the other", fix, Warning)
	}
}

// links compares the links in their order: the first is for both the first choice.
func (c *comparison) links() {
	if h, t := len(c.mine.Links), len(c.peer.Links); h != t {
		c.differ("peer.links", "", strconv.Itoa(h), strconv.Itoa(t), "when a link fails the nodes must agree on the next one", "list the same links in the same order on both", Warning)
	}
	for i := range min(len(c.mine.Links), len(c.peer.Links)) {
		h, t := c.mine.Links[i], c.peer.Links[i]
		out := Finding{ID: "peer.link", Subject: h.Interface, Want: "two ends of one link", Why: "the nodes can reach each other on it",
			Found: fmt.Sprintf("port %d, MTU %d at both ends", h.Port, h.MTU)}
		switch {
		case h.Port != t.Port:
			out.Verdict, out.Found = Error, fmt.Sprintf("port %d here, %d on %s", h.Port, t.Port, c.name)
			out.Why = "the nodes send to a port that the other does not listen on"
			out.Fix = "set the same link.port on both"
		case h.Group != t.Group:
			out.Verdict, out.Found = Error, fmt.Sprintf("group %s here, %s on %s", orNone(h.Group), orNone(t.Group), c.name)
			out.Why = "the nodes send to a group that the other has not joined"
			out.Fix = "set the same link.group on both"
		case h.Local != "" && h.Local == t.Local:
			out.Verdict, out.Found = Error, "both have the address "+h.Local
			out.Why = "the nodes cannot reach each other"
		case h.MTU == 0 || t.MTU == 0:
			out.Verdict, out.Found = Unknown, "an MTU is not known"
			out.Why = "the interface is missing on one of the nodes"
		case h.MTU != t.MTU:
			out.Verdict, out.Found = Warning, fmt.Sprintf("MTU %d here, %d on %s", h.MTU, t.MTU, c.name)
			out.Why = "what one end sends in one piece the other may not receive"
			out.Fix = fmt.Sprintf("ip link set %s mtu %d", h.Interface, min(h.MTU, t.MTU))
		}
		c.add(out)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// rules compares what the rules do to connections.
func (c *comparison) rules() {
	h, t := c.mine.Rules, c.peer.Rules
	if h.Unreadable || t.Unreadable {
		c.add(Finding{ID: "peer.rules", Verdict: Unknown, Found: "unreadable", Want: "the same on all nodes",
			Why: "the rules of one of the nodes could not be read"})
		return
	}
	before := len(c.findings)
	say := func(v bool) string {
		if v {
			return "yes"
		}
		return "no"
	}
	for _, d := range [...]struct {
		what, why   string
		here, there bool
	}{
		{"zones", "an entry is found only in its zone, so a node that sets other zones cannot use what it takes over", h.Zones, t.Zones},
		{"labels", "the kernel keeps labels only where a rule uses them", h.Labels, t.Labels},
		{"timeout policies", "new flows live longer on one node than on the other", h.Timeouts, t.Timeouts},
		{"masquerade", "new connections get other addresses on one node than on the other", h.Masquerade, t.Masquerade},
	} {
		if d.here != d.there {
			c.differ("peer.rules", d.what, say(d.here), say(d.there), d.why, "load the same ruleset on both", Warning)
		}
	}
	if !slices.Equal(h.Helpers, t.Helpers) {
		c.differ("peer.rules", "helpers", orNone(strings.Join(h.Helpers, " ")), orNone(strings.Join(t.Helpers, " ")),
			"a helper that only one node assigns is missing from new connections on the other", "load the same ruleset on both", Warning)
	}
	if len(c.findings) == before {
		c.add(Finding{ID: "peer.rules", Found: "the same use of helpers, zones, labels, policies and masquerade", Want: "the same on all nodes",
			Why: "that is all that is compared; the rulesets should be the same altogether"})
	}
}

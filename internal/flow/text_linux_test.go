package flow_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"syncd/internal/flow"
)

// conntrack(8) puts flows into a kernel and lists them; the same flows, fetched
// by another library and printed by this package, must give the same lines.
func TestTextMatchesConntrackTool(t *testing.T) {
	need := func(missing string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must have " + missing)
		}
		t.Skip("needs " + missing)
	}
	if os.Geteuid() != 0 {
		need("root")
	}
	for _, tool := range []string{"conntrack", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			need("the program " + tool)
		}
	}
	netns := fmt.Sprintf("ctltext%d", os.Getpid())
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	run("ip", "netns", "add", netns)
	t.Cleanup(func() { run("ip", "netns", "del", netns) })
	tool := func(args string) string {
		t.Helper()
		return run(append([]string{"ip", "netns", "exec", netns, "conntrack"}, strings.Fields(args)...)...)
	}

	const v4, v6 = " -s 198.51.100.2 -d 203.0.113.2", " -s 2001:db8::1 -d 2001:db8:0:1::2"
	for _, entry := range []struct{ proto, ends, rest string }{
		{"tcp", v4, "--sport 1 --dport 80 -t 300 --state ESTABLISHED -u SEEN_REPLY,ASSURED -m 9"},
		{"tcp", v6, "--sport 2 --dport 80 -t 300 --state TIME_WAIT -u SEEN_REPLY"},
		{"tcp", v4, "--sport 3 --dport 80 -t 300 --state SYN_SENT2"},
		{"udp", v6, "--sport 1 --dport 53 -t 300 -w 7"},
		{"udp", v4, "--sport 1 --dport 53 -t 300 --orig-zone 5"},
		{"udp", v4, "--sport 9 --dport 53 -t 300 --src-nat 203.0.113.1:4000"},
		{"icmp", v4, "--icmp-type 8 --icmp-code 0 --icmp-id 77 -t 300"},
		{"icmpv6", v6, "--icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 78 -t 300"},
		{"gre", v4, "--srckey 5 --dstkey 106 -t 300 --reply-zone 3"},
		{"sctp", v4, "--sport 5 --dport 6 -t 300 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2"},
		{"udplite", v4, "--sport 5 --dport 6 -t 300"},
		{"50", v4, "-t 300"},
	} {
		tool("-I -p " + entry.proto + entry.ends + " " + entry.rest)
	}

	// Seconds pass between the two lists.
	mask := regexp.MustCompile(`^(\S+ +\d+) \d+`)
	var want, got []string
	for _, line := range strings.Split(strings.TrimSpace(tool("-L -o id")), "\n") {
		want = append(want, mask.ReplaceAllString(strings.TrimSpace(line), "$1 T"))
	}
	ns, err := os.Open("/run/netns/" + netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	conn, err := conntrack.Dial(&netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dump, err := conn.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range dump {
		f := fromConntrack(&c)
		got = append(got, mask.ReplaceAllString(f.String(), "$1 T"))
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) < 12 {
		t.Errorf("only %d flows were listed", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conntrack(8) - ours +\n%s", diff)
	}
}

func fromConntrack(c *conntrack.Flow) *flow.Flow {
	f := &flow.Flow{
		Orig: fromTuple(&c.TupleOrig), Reply: fromTuple(&c.TupleReply),
		Has:    flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasMark | flow.HasID | flow.HasUse,
		Status: uint32(c.Status), Timeout: c.Timeout, Mark: c.Mark, ID: c.ID, Use: c.Use,
	}
	if c.Zone != 0 {
		f.Orig.Zone, f.Reply.Zone = c.Zone, c.Zone
	}
	if p := c.ProtoInfo.TCP; p != nil {
		f.Has |= flow.HasTCP
		f.TCPState = p.State
	}
	if p := c.ProtoInfo.SCTP; p != nil {
		f.Has |= flow.HasSCTP
		f.SCTPState = p.State
	}
	return f
}

func fromTuple(c *conntrack.Tuple) flow.Tuple {
	t := flow.Tuple{
		SrcPort: c.Proto.SourcePort, DstPort: c.Proto.DestinationPort,
		Zone: c.Zone, Family: flow.IPv4, Proto: c.Proto.Protocol,
	}
	if c.IP.SourceAddress.Is6() {
		t.Family = flow.IPv6
	}
	for _, a := range []struct {
		to   *[16]byte
		from netip.Addr
	}{{&t.Src, c.IP.SourceAddress}, {&t.Dst, c.IP.DestinationAddress}} {
		copy(a.to[:], a.from.AsSlice())
	}
	if t.IsICMP() {
		t.SrcPort, t.DstPort = c.Proto.ICMPID, uint16(c.Proto.ICMPType)<<8|uint16(c.Proto.ICMPCode)
	}
	return t
}

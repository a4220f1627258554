package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var usedFirst = regexp.MustCompile(`"used_first": ?(\d+)`)

// In a commit of a large table the connections of which packets come are committed before
// the others, with and without source NAT. In the order of the cache they would come last.
func TestUsedFirst(t *testing.T) {
	for _, c := range []struct {
		name    string
		on      bool
		without string // a capability
	}{{"on", true, ""}, {"off", false, ""}, {"no capability", true, "net_raw"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			extra := fmt.Sprintf("[commit]\nused_first = %v\n", c.on)
			fw1 := newSyncd(t, p.FW1, syncdConfig(extra, newLink(udp4, 0, 1)))
			fw2 := newSyncd(t, p.FW2, syncdConfig(extra, newLink(udp4, 0, 2)))
			if c.without != "" {
				need(t, "setpriv")
				fw2.Stop()
				fw2.without = c.without
				fw2.Start()
			}
			if warned := strings.Contains(fw2.Log(), "CAP_NET_RAW is missing"); warned != (c.without != "") {
				t.Errorf("a warning at the start: %v\n%s", warned, fw2.Log())
			}
			fw1.Primary()
			fw2.Backup()
			k1 := openKernel(t, p.FW1)
			const flows = 25_000
			create(t, k1, 0, flows)
			live := openTraffic(t, p) // the youngest
			through := passes(p)
			waitFor(t, 20*time.Second, "the backup knows all of it", func() bool {
				return fw2.Status().External.Entries >= uint64(flows+len(live)) && fw2.External().missing(kernelTable(t, k1, through)) == ""
			})
			live.forgetGaps()
			ok(t, p.TakeOver(p.FW1, p.FW2))
			fw2.Primary()
			time.Sleep(2 * grace)
			live.check(t, "after the takeover")
			m := usedFirst.FindStringSubmatch(fw2.Log())
			if !c.on || c.without != "" {
				if m != nil {
					t.Errorf("packets were looked at: %s", m[0])
				}
				return
			}
			if m == nil {
				t.Fatalf("the log does not tell of connections in use:\n%s", tail(fw2.Log(), 20))
			}
			n, err := strconv.Atoi(m[1])
			ok(t, err)
			t.Logf("%d of %d connections in use were committed before their turn", n, len(live))
			if n == 0 || n > len(live)+10 { // a neighbour or two may speak, too
				t.Errorf("%d connections were committed before their turn", n)
			}
			if r := fw2.Status().LastCommit; r == nil || r.Flows.Refused > 0 || r.Flows.Entries < uint64(flows) || r.Flows.Entries > uint64(flows+2*len(live)+10) {
				t.Errorf("the commit: %+v", r)
			}
		})
	}
}

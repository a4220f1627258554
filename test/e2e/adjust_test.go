package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

// helperRules gives connections to the service the helper of FTP.
const helperRules = `table inet helpers {
	ct helper ftp { type "ftp" protocol tcp; }
	chain c { type filter hook prerouting priority 0; tcp dport %d ct helper set "ftp"; }
}
`

// The helper of FTP writes the translated address into a command, and shifts all
// that follows. The kernel tells nobody, and yet the connection goes on at the other
// node.
func TestAdjustedConnection(t *testing.T) {
	need(t, "nft")
	for _, tt := range []struct {
		name   string
		sealed bool
	}{{"syncd", true}, {"conntrackd", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			for _, n := range []*lab.Node{p.FW1, p.FW2} {
				cmd := n.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(fmt.Sprintf(helperRules, lab.PortService))
				if out, err := n.Output(cmd); err != nil {
					t.Fatalf("nft: %v\n%s", err, out)
				}
			}
			d := &duo{t: t, opts: duoOptions{sealed: tt.sealed}}
			config := func(number int) string {
				if tt.sealed {
					return d.sealedConfig(newLink(udp4, 0, number))
				}
				return syncdConfig("", newLink(udp4, 0, number))
			}
			fw1, fw2 := newSyncd(t, p.FW1, config(1)), newSyncd(t, p.FW2, config(2))
			fw1.Primary()
			fw2.Backup()

			service := netip.AddrPortFrom(p.V4.Server, lab.PortService)
			l, err := p.Server.Listen(service)
			ok(t, err)
			defer l.Close()
			client, err := p.Client.Dial(t.Context(), "tcp", p.V4.Hidden, service)
			ok(t, err)
			defer client.Close()
			server, err := l.Accept()
			ok(t, err)
			defer server.Close()
			hears, answers := bufio.NewReader(server), bufio.NewReader(client)
			say := func(from net.Conn, to *bufio.Reader, line string) string {
				t.Helper()
				_, err := from.Write([]byte(line + "\r\n"))
				ok(t, err)
				for _, c := range []net.Conn{client, server} {
					ok(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
				}
				heard, err := to.ReadString('\n')
				ok(t, err)
				return strings.TrimSpace(heard)
			}
			same := func(when string, from net.Conn, to *bufio.Reader, line string) {
				t.Helper()
				if heard := say(from, to, line); heard != line {
					t.Errorf("%s: %q arrived as %q", when, line, heard)
				}
			}
			port := func(when string, n int) {
				t.Helper()
				heard := say(client, hears, fmt.Sprintf("PORT %s,200,%d", strings.ReplaceAll(p.V4.Hidden.String(), ".", ","), n))
				if want := "PORT " + strings.ReplaceAll(p.V4.OutsideVIP.String(), ".", ",") + ","; !strings.HasPrefix(heard, want) {
					t.Fatalf("%s: the helper did not translate: %q", when, heard)
				}
			}
			held := func() (f flow.Flow) {
				t.Helper()
				ok(t, fw2.ctl.Dump(t.Context(), ctl.External, func(e *ctl.DumpEntry) error {
					if e.Flow.Orig.DstPort == lab.PortService && e.Flow.Orig.Src == [16]byte(append(p.V4.Hidden.AsSlice(), make([]byte, 12)...)) {
						f = e.Flow
					}
					return nil
				}))
				return f
			}
			same("before", server, answers, "220 ready")
			same("before", client, hears, "USER anonymous") // the helper looks behind the end of a line only
			waitFor(t, 5*time.Second, "the backup knows the connection", func() bool { return held().Has != 0 })
			dumps := fw1.Stats().Events.Dumps
			last := held().SeqAdj
			for n := range 3 {
				port("before", n)
				said := time.Now()
				same("before", server, answers, "200 done")
				waitFor(t, 5*time.Second, "the backup knows the adjustment", func() bool { return held().SeqAdj != last })
				last = held().SeqAdj
				t.Logf("command %d: adjustment %v, known after %v", n, last[0], time.Since(said).Round(time.Millisecond))
				time.Sleep(100 * time.Millisecond)
			}
			if last[0].After == 0 {
				t.Errorf("the adjustment %v changes nothing: this tests nothing", last)
			}
			if n := fw1.Stats().Events.Dumps; n != dumps {
				t.Errorf("the kernel's table was read %d times meanwhile: this tests nothing", n-dumps)
			}

			ok(t, p.TakeOver(p.FW1, p.FW2))
			fw2.Primary()
			same("after the takeover", client, hears, "NOOP")
			same("after the takeover", server, answers, "200 nothing done")
			port("after the takeover", 9)
			same("after the takeover", client, hears, "NOOP again")
			same("after the takeover", server, answers, "200 nothing done again")
		})
	}
}

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"syncd/internal/host"
	"syncd/internal/lab"
	"syncd/internal/seal"
)

// checked is a node whose host is as a firewall's should be.
type checked struct {
	t      testing.TB
	node   *lab.Node
	config string // file
}

// shippedRules are the rules that the package brings, for this link, and a firewall
// below them.
func shippedRules(t testing.TB, l link) string {
	t.Helper()
	b, err := os.ReadFile("../../deploy/nftables/sync-link.nft")
	ok(t, err)
	return "flush ruleset\n" + strings.NewReplacer(`"eth2"`, fmt.Sprintf("%q", l.ifname), "203.0.113.2", l.peer.String()).Replace(string(b)) + `
table inet fw {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		ct state established,related accept
		iifname "eth0" accept
	}
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "` + l.ifname + `" udp dport 3780 ct state untracked accept
		ct state established,related accept
	}
}
table ip nat {
	chain out {
		type nat hook postrouting priority srcnat;
		ip saddr 198.51.100.0/24 snat to 203.0.113.7
	}
}
`
}

// newChecked prepares a node of a cabled pair and writes its configuration.
func newChecked(t testing.TB, n *lab.Node, number int, key string) *checked {
	t.Helper()
	dir := t.TempDir()
	c := &checked{t: t, node: n, config: filepath.Join(dir, "syncd.toml")}
	l := newLink(udp4, 0, number)
	ok(t, os.WriteFile(c.config, []byte(fmt.Sprintf("[node]\nname = \"fw%d\"\nsocket = %q\nstate_dir = %q\n[sync]\nkeys = [%q]\n%s",
		number, filepath.Join(dir, "s"), dir, key, l.toml())), 0o600))
	ok(t, n.EnableForwarding(), n.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"))
	c.load(shippedRules(t, l))
	return c
}

// load replaces the ruleset.
func (c *checked) load(rules string) {
	c.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := c.node.Output(cmd); err != nil {
		c.t.Fatalf("%v\n%s\n%s", err, out, rules)
	}
}

// json runs the check and returns its document.
func (c *checked) json(args ...string) (r host.Report, code int) {
	c.t.Helper()
	out, code := runSyncd(c.t, c.node, nil, append([]string{"check", "-c", c.config, "--json"}, args...)...)
	doc, _, _ := strings.Cut(out, "\nsyncd: ") // the error of the exit status
	if err := json.Unmarshal([]byte(doc), &r); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	if r.OK != (code == 0) || r.Version != 1 {
		c.t.Errorf("ok=%v, but exit status %d", r.OK, code)
	}
	return r, code
}

// finding returns the one with this name.
func finding(t testing.TB, r host.Report, name string) host.Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Name() == name {
			return f
		}
	}
	t.Errorf("no finding %s", name)
	return host.Finding{}
}

func newKeyFile(t testing.TB) string {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	ok(t, os.WriteFile(key, seal.NewKey().Text(), 0o600))
	return key
}

// The program sees what is wrong with a real kernel, and that nothing is.
func TestCheckHost(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	a, _ := cabled(t, newLab(t), 1)
	c := newChecked(t, a, 1, newKeyFile(t))
	good := shippedRules(t, newLink(udp4, 0, 1))

	t.Run("good", func(t *testing.T) {
		r, code := c.json()
		if code != 0 {
			t.Errorf("exit status %d", code)
		}
		for _, f := range r.Findings {
			// The size of the table is the machine's, and may be at work.
			if f.Verdict >= host.Warning && f.Group() != "table" {
				t.Errorf("%s: %v: %s", f.Name(), f.Verdict, f.Found)
			}
		}
		if f := finding(t, r, "peer.flows"); f.Verdict != host.Unknown || f.Found != "no daemon runs" {
			t.Errorf("%+v", f)
		}
		if f := finding(t, r, "link.open[sync0]"); f.Verdict != host.OK {
			t.Errorf("%+v", f)
		}
	})
	t.Run("nothing is changed", func(t *testing.T) {
		state := func() string {
			rules, err := a.Output(exec.Command("nft", "-s", "list", "ruleset"))
			ok(t, err)
			sysctls, err := a.Output(exec.Command("sh", "-c", "cd /proc/sys/net/netfilter && grep -H . nf_conntrack_* | grep -vE '_(count|max|buckets):'; ss -Hlnu"))
			ok(t, err)
			return string(rules) + string(sysctls)
		}
		before := state()
		c.json()
		if after := state(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	for _, tt := range []struct {
		name, sysctl, value, good string
		finding                   string
		verdict                   host.Verdict
		code                      int
	}{
		{"no events", "net.netfilter.nf_conntrack_events", "0", "1", "sysctl.nf_conntrack_events", host.Error, 1},
		{"events by need", "net.netfilter.nf_conntrack_events", "2", "1", "sysctl.nf_conntrack_events", host.Warning, 0},
		{"loose", "net.netfilter.nf_conntrack_tcp_loose", "1", "0", "sysctl.nf_conntrack_tcp_loose", host.Warning, 0},
		{"liberal", "net.netfilter.nf_conntrack_tcp_be_liberal", "1", "0", "sysctl.nf_conntrack_tcp_be_liberal", host.Note, 0},
		{"timeout", "net.netfilter.nf_conntrack_udp_timeout", "1000001", "30", "sysctl.nf_conntrack_udp_timeout", host.Note, 0},
		{"reverse path", "net.ipv4.conf.sync0.rp_filter", "1", "0", "sysctl.rp_filter", host.Note, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ok(t, a.Sysctl(tt.sysctl, tt.value))
			defer func() { ok(t, a.Sysctl(tt.sysctl, tt.good)) }()
			r, code := c.json()
			if f := finding(t, r, tt.finding); f.Verdict != tt.verdict || code != tt.code {
				t.Errorf("exit status %d, %+v", code, f)
			}
			out, code := runSyncd(t, a, nil, "check", "-c", c.config)
			if code != tt.code {
				t.Errorf("exit status %d, want %d", code, tt.code)
			}
			says(t, out, tt.verdict.String(), map[bool]string{true: "failed: ", false: "passed: "}[tt.code != 0])
			if strings.Contains(out, "\x1b") {
				t.Error("colour where there is no terminal")
			}
			if tt.verdict >= host.Warning {
				says(t, out, "fix   sysctl -w "+tt.sysctl+"="+tt.good)
				if _, code := c.json("--strict"); code != 1 {
					t.Errorf("strict: exit status %d", code)
				}
			}
		})
	}
	for _, tt := range []struct {
		name, old, with string // of the rules
		finding         string
		verdict         host.Verdict
		found           string
	}{
		{"tracked in", `iifname $link_interface udp dport $link_port notrack`, ``, "rules.link_notrack_in[sync0]", host.Warning, "tracked"},
		{"tracked out", `oifname $link_interface udp dport $link_port notrack`, ``, "rules.link_notrack_out[sync0]", host.Warning, "tracked"},
		{"another port", `define link_port = 3780`, `define link_port = 3781`, "rules.link_notrack_in[sync0]", host.Warning, "tracked"},
		{"not accepted", "policy drop;\n\t\tiifname \"sync0\" udp dport 3780 ct state untracked accept", "policy drop;", "rules.link_accept_in[sync0]", host.Error, "dropped: table inet fw, chain input, policy drop"},
		{"invalid forwarded", "policy drop;\n\t\tct state invalid drop", "policy accept;", "rules.invalid", host.Warning, "forwarded"},
		{"masquerade", "snat to 203.0.113.7", "masquerade", "rules.masquerade", host.Warning, "table ip nat, chain out, handle "},
		{"labels", "ct state established,related accept\n\t\tiifname", "ct label set 1\n\t\tiifname", "rules.labels", host.Warning, "used"},
		{"zone", "ip saddr 198.51.100.0/24 snat to 203.0.113.7\n\t}", "}\n\tchain raw { type filter hook prerouting priority raw; ct zone set 3; }", "rules.zones", host.Note, "set: table ip nat, chain raw"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(good, tt.old) {
				t.Fatalf("the good rules do not say %q", tt.old)
			}
			c.load(strings.Replace(good, tt.old, tt.with, 1))
			defer c.load(good)
			r, _ := c.json()
			if f := finding(t, r, tt.finding); f.Verdict != tt.verdict || !strings.Contains(f.Found, tt.found) {
				t.Errorf("%+v", f)
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		taken, err := a.ListenUDP(netip.AddrPortFrom(newLink(udp4, 0, 1).local, port))
		ok(t, err)
		defer taken.Close()
		r, code := c.json()
		if f := finding(t, r, "link.open[sync0]"); code != 1 || f.Verdict != host.Error || !strings.Contains(f.Found, "address already in use") {
			t.Errorf("exit status %d, %+v", code, f)
		}
	})
	t.Run("link down", func(t *testing.T) {
		ok(t, a.SetLink("sync0", false))
		defer func() { ok(t, a.SetLink("sync0", true)) }()
		r, _ := c.json()
		if f := finding(t, r, "link.interface[sync0]"); f.Verdict != host.Warning || f.Fix != "ip link set sync0 up" {
			t.Errorf("%+v", f)
		}
	})
	t.Run("without the capability", func(t *testing.T) {
		need(t, "setpriv")
		out, code := runSyncd(t, a, exec.Command("setpriv", "--bounding-set=-net_admin", bin, "check", "-c", c.config))
		if code != 1 {
			t.Errorf("exit status %d", code)
		}
		says(t, out, "error   kernel.cap_net_admin: missing", "unknown nftables")
	})
}

// What must be the same on two nodes is compared by way of a file.
func TestCheckCompare(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	nA, nB := cabled(t, newLab(t), 1)
	key := newKeyFile(t)
	a, b := newChecked(t, nA, 1, key), newChecked(t, nB, 2, key)
	profile := filepath.Join(t.TempDir(), "fw2.json")
	print := func() []byte {
		out, code := runSyncd(t, nB, nil, "check", "-c", b.config, "--print-host")
		if code != 0 {
			t.Fatalf("exit status %d\n%s", code, out)
		}
		secret, err := os.ReadFile(key)
		ok(t, err)
		if strings.Contains(out, strings.TrimSpace(string(secret))) {
			t.Error("the profile tells the key")
		}
		ok(t, os.WriteFile(profile, []byte(out), 0o600))
		return []byte(out)
	}
	same := print()
	r, code := a.json("--compare", profile)
	for _, f := range r.Findings {
		if f.Group() == "peer" && f.Verdict >= host.Warning {
			t.Errorf("%+v", f)
		}
	}
	if code != 0 || finding(t, r, "peer.sysctl").Verdict != host.OK || finding(t, r, "peer.link[sync0]").Verdict != host.OK {
		t.Errorf("exit status %d", code)
	}

	ok(t, nB.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "3600"))
	b.load(shippedRules(t, newLink(udp4, 0, 2)) + "table ip t {\n ct helper ftp { type \"ftp\" protocol tcp; }\n chain p { type filter hook prerouting priority 0; tcp dport 21 ct helper set \"ftp\"; }\n}\n")
	print()
	r, code = a.json("--compare", profile)
	if f := finding(t, r, "peer.sysctl[nf_conntrack_tcp_timeout_established]"); f.Verdict != host.Warning || f.Found != "432000 here, 3600 on fw2" {
		t.Errorf("%+v", f)
	}
	if f := finding(t, r, "peer.rules[helpers]"); f.Verdict != host.Warning || f.Found != "none here, ftp on fw2" {
		t.Errorf("%+v", f)
	}
	if code != 0 {
		t.Errorf("exit status %d", code)
	}
	// By a pipe, and with a table that holds more than this node can.
	var p map[string]any
	ok(t, json.Unmarshal(same, &p))
	p["entries"] = "4000000000"
	more, err := json.Marshal(p)
	ok(t, err)
	cmd := exec.Command(bin, "check", "-c", a.config, "--compare", "-")
	cmd.Stdin = bytes.NewReader(more)
	out, code := runSyncd(t, nA, cmd)
	if code != 1 {
		t.Errorf("exit status %d", code)
	}
	says(t, out, "error   peer.table[fw2]", "4000000000 entries there", "fix   sysctl -w net.netfilter.nf_conntrack_max=")
}

// A daemon that runs tells what its peers have.
func TestCheckBesideDaemon(t *testing.T) {
	t.Parallel()
	d := newDuo(t, roles{ours, ours}, udp4, duoOptions{sealed: true})
	f := conntrack.NewFlow(17, conntrack.StatusConfirmed|conntrack.StatusSeenReply|conntrack.StatusAssured,
		client4(9), server4, 4711, 53, 300, 0)
	ok(t, d.kA.Create(f))
	d.waitReplicated(patience, "the flow")
	c := &checked{t: t, node: d.nB, config: d.b.config}
	var g host.Finding
	waitFor(t, 10*time.Second, "the peer's flows", func() bool {
		r, _ := c.json()
		for _, f := range r.Findings {
			if f.ID == "link.open" {
				t.Fatal("the sockets of a running daemon are tried")
			}
			if f.ID == "peer.flows" {
				g = f
			}
		}
		return strings.HasPrefix(g.Found, "1 flows, room for ")
	})
	if g.Verdict != host.OK || g.Subject == "" {
		t.Errorf("%+v", g)
	}
}

func TestCheckBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		ok(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good, bad := write("good.toml", goodConfig), write("bad.toml", strings.Replace(goodConfig, `"udp"`, `"avian"`, 1))
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		words []string
	}{
		{"no such profile", []string{"-c", good, "--compare", filepath.Join(dir, "nowhere")}, 1, []string{"compare: ", "nowhere", "no such file"}},
		{"a directory", []string{"-c", good, "--compare", dir}, 1, []string{"is a directory"}},
		{"no profile", []string{"-c", good, "--compare", write("x", "[node]\n")}, 1, []string{"compare: ", "x: ", "--print-host"}},
		{"empty", []string{"-c", good, "--compare", write("e", "")}, 1, []string{"empty", "--print-host"}},
		{"another document", []string{"-c", good, "--compare", write("j", `{"version":1,"findings":[]}`)}, 1, []string{`accepted: "syncd-host-1"`}},
		{"both", []string{"-c", good, "--print-host", "--compare", "x"}, 2, []string{"one of the two"}},
		{"no name", []string{"-c", good, "--compare", ""}, 2, []string{"name of a file"}},
		{"a word", []string{"-c", good, "sysctls"}, 2, []string{`"sysctls"`}},
		{"bad configuration", []string{"-c", bad, "--json"}, 1, []string{`"id": "config.file"`, `"verdict": "error"`, "link.type", `"ok": false`}},
		{"bad configuration to print", []string{"-c", bad, "--print-host"}, 1, []string{"link.type"}},
		{"no directory for the socket, no link", []string{"-c", good}, 1, []string{"config.socket", "link.interface[sync0]: no such interface"}},
		{"no key", []string{"-c", write("key.toml", strings.Replace(goodConfig, "wire = \"conntrackd\"\ninsecure = true", "keys = [\"/nowhere/key\"]", 1))}, 1, []string{"error   config.keys: ", "/nowhere/key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, code := runSyncd(t, nil, nil, append([]string{"check"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit status %d, want %d", code, tt.code)
			}
			says(t, out, tt.words...)
		})
	}
}

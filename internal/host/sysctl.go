package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"syncd/internal/flow"
)

// procSys shows the values of the network namespace of the thread that reads.
const procSys = "/proc/sys"

const netfilter = "net.netfilter."

// otherSysctls are those outside of net/netfilter that are read.
var otherSysctls = [...]string{
	"net.core.rmem_max", "net.core.wmem_max", "net.core.netdev_max_backlog",
	"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.ip_nonlocal_bind",
}

// readSysctls reads what matters below root: all of net/netfilter that is about
// conntrack, the reverse path filter of every interface, and some others. What does
// not exist is left out.
func readSysctls(root string) map[string]Reading {
	all := make(map[string]Reading)
	read := func(path string) {
		if r := readFile(path); !r.Missing {
			name, err := filepath.Rel(root, path)
			if err == nil {
				all[sysctlName(name)] = r
			}
		}
	}
	entries, _ := filepath.Glob(filepath.Join(root, "net/netfilter/nf_conntrack_*"))
	entries = slices.DeleteFunc(entries, func(p string) bool {
		return strings.HasSuffix(p, "_count") || strings.HasSuffix(p, "_log_invalid") || strings.Contains(p, "_frag6_")
	})
	filters, _ := filepath.Glob(filepath.Join(root, "net/ipv4/conf/*/rp_filter"))
	for _, path := range append(entries, filters...) {
		read(path)
	}
	for _, name := range otherSysctls {
		read(filepath.Join(root, strings.ReplaceAll(name, ".", "/")))
	}
	return all
}

// sysctlName returns the name of a path as sysctl(8) takes it: with slashes when a
// part of it, an interface, holds a dot.
func sysctlName(path string) string {
	if strings.Contains(path, ".") {
		return path
	}
	return strings.ReplaceAll(path, "/", ".")
}

// sysctl returns the value of a sysctl as a number.
func (f *Facts) sysctl(name string) (n int64, ok bool) {
	r, exists := f.Sysctls[name]
	if !exists || !r.ok() {
		return 0, false
	}
	n, err := strconv.ParseInt(r.Value, 10, 64)
	return n, err == nil
}

// opinion is what is thought of one value.
type opinion struct {
	verdict   Verdict
	want, why string
	set       string // the value to set, if another is better
}

// fixedSysctls are those of net.netfilter that are judged by their value alone, in
// the order in which they are told.
var fixedSysctls = [...]struct {
	name     string
	optional bool // some kernels do not have it
	judge    func(n int64) opinion
}{
	{"nf_conntrack_events", false, judgeEvents},
	{"nf_conntrack_tcp_loose", false, func(n int64) opinion {
		if n == 0 {
			return opinion{OK, "0", "packets of unknown connections are invalid until the connection is restored", ""}
		}
		return opinion{Warning, "0", "a packet of a connection that is not restored yet makes an entry of its own, perhaps in the wrong direction and with another source port, which is in the way of the restored one", "0"}
	}},
	{"nf_conntrack_tcp_be_liberal", false, func(n int64) opinion {
		if n == 0 {
			return opinion{OK, "0", "TCP windows are checked; restored connections are exempted one by one", ""}
		}
		return opinion{Note, "0", "no connection has its TCP windows checked, and none would need that: restored ones are exempted one by one", "0"}
	}},
	{"nf_conntrack_tcp_ignore_invalid_rst", true, func(n int64) opinion {
		if n == 0 {
			return opinion{OK, "0", "a reset outside of the window is invalid and ends nothing", ""}
		}
		return opinion{Note, "0", "resets outside of the window pass, forged ones too; a stopgap that restored connections do not need", "0"}
	}},
	{"nf_conntrack_checksum", false, func(n int64) opinion {
		if n == 0 {
			return opinion{Note, "the same on all nodes", "packets with a wrong checksum are tracked; harmless if the other nodes do the same", ""}
		}
		return opinion{OK, "the same on all nodes", "packets with a wrong checksum are invalid; the kernel takes all of UDP-Lite for wrong, so whoever needs that sets 0 on all nodes", ""}
	}},
	{"nf_conntrack_acct", false, func(int64) opinion {
		return opinion{OK, "the same on all nodes", "counters of flows cannot be restored: after a takeover they start at 0", ""}
	}},
	{"nf_conntrack_timestamp", true, func(int64) opinion {
		return opinion{OK, "as needed", "start times of flows cannot be restored; each event is 12 octets longer with 1", ""}
	}},
	{"nf_conntrack_tcp_max_retrans", true, func(int64) opinion {
		return opinion{OK, "the same on all nodes", "restored flows live by the values of the node that they are on", ""}
	}},
}

func judgeEvents(n int64) opinion {
	switch n {
	case 0:
		return opinion{Error, "1", "the kernel tells nothing about new connections, so none is replicated", "1"}
	case 1:
		return opinion{OK, "1", "the kernel tells about every connection", ""}
	}
	return opinion{Warning, "1", "connections that begin before the daemon listens are never told about as long as they live", "1"}
}

func setCommand(name string, value any) string { return fmt.Sprintf("sysctl -w %s=%v", name, value) }

// judgeSysctls judges all sysctls but those of the table's size.
func judgeSysctls(f *Facts, s *Setup) []Finding {
	var all []Finding
	if _, tracked := f.Sysctls[netfilter+"nf_conntrack_max"]; !tracked {
		// One finding of the kernel says it for all of them.
		return append(all, judgeHostSysctls(f)...)
	}
	for _, k := range fixedSysctls {
		r, exists := f.Sysctls[netfilter+k.name]
		if !exists && k.optional {
			continue
		}
		all = append(all, judgeSysctl(netfilter+k.name, r, exists, k.judge))
	}
	all = append(all, judgeTimeouts(f, s)...)
	return append(all, judgeHostSysctls(f)...)
}

// judgeSysctl judges one value.
func judgeSysctl(name string, r Reading, exists bool, judge func(int64) opinion) Finding {
	out := Finding{ID: "sysctl." + name[strings.LastIndexAny(name, "./")+1:], Verdict: Unknown, Found: "unreadable"}
	n, err := strconv.ParseInt(r.Value, 10, 64)
	switch {
	case !exists:
		out.Found, out.Why = "missing", "this kernel does not have "+name
		out.Want = judge(1).want
	case !r.ok():
		out.Want, out.Why = judge(1).want, r.Err
	case err != nil:
		out.Found, out.Want, out.Why = strconv.Quote(r.Value), "a number", "the value of "+name+" is not one that this version knows"
	default:
		o := judge(n)
		out.Verdict, out.Found, out.Want, out.Why = o.verdict, r.Value, o.want, o.why
		if o.set != "" {
			out.Fix = setCommand(name, o.set)
		}
	}
	return out
}

// timeouts returns the names of all timeouts, sorted.
func (f *Facts) timeouts() []string {
	var names []string
	for name := range f.Sysctls {
		if strings.HasPrefix(name, netfilter+"nf_conntrack_") && strings.Contains(name, "_timeout") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// judgeTimeouts judges the timeouts of all states, in seconds.
func judgeTimeouts(f *Facts, s *Setup) []Finding {
	var all []Finding
	for _, name := range f.timeouts() {
		all = append(all, judgeSysctl(name, f.Sysctls[name], true, func(n int64) opinion {
			const same = "restored flows live by this node's timeouts from their next packet on"
			switch {
			case n == 0:
				return opinion{Warning, "more than 0, the same on all nodes", "entries in this state are gone as soon as they are in it", ""}
			case n > flow.ParkedAbove && s.Instant:
				return opinion{Warning, fmt.Sprintf("at most %d, the same on all nodes", flow.ParkedAbove),
					"with takeover.mode = \"instant\" an entry with a timeout above that counts as one that only waits for a takeover", fmt.Sprint(432000)}
			case n > flow.ParkedAbove:
				return opinion{Note, fmt.Sprintf("at most %d, the same on all nodes", flow.ParkedAbove),
					"the instant takeover takes entries with a longer timeout for ones that only wait", ""}
			}
			return opinion{OK, "the same on all nodes", same, ""}
		}))
	}
	return all
}

// judgeHostSysctls judges what is not about connection tracking.
func judgeHostSysctls(f *Facts) []Finding {
	var all []Finding
	plain := func(name, want, why string, judge func(n int64) (Verdict, string)) {
		r, exists := f.Sysctls[name]
		if !exists {
			return // not in every network namespace
		}
		all = append(all, judgeSysctl(name, r, true, func(n int64) opinion {
			v, set := judge(n)
			return opinion{v, want, why, set}
		}))
	}
	always := func(int64) (Verdict, string) { return OK, "" }
	plain("net.core.rmem_max", "any, if buffers are granted beyond it", "the daemon asks for more with CAP_NET_ADMIN; what it gets is below Socket buffers", always)
	plain("net.core.wmem_max", "any, if buffers are granted beyond it", "the daemon asks for more with CAP_NET_ADMIN; what it gets is below Socket buffers", always)
	plain("net.core.netdev_max_backlog", "1000 or more", "a burst of a bulk update waits here on interfaces without a queue of their own; ctnetlink does not use it", func(n int64) (Verdict, string) {
		if n < 1000 {
			return Note, "1000"
		}
		return OK, ""
	})
	all = append(all, judgeForwarding(f)...)
	plain("net.ipv4.ip_nonlocal_bind", "1 only for services on a virtual address", "forwarded and translated connections do not need it; a service that binds a virtual address on the backup does", always)
	return append(all, judgeReversePath(f))
}

// judgeForwarding: a firewall that does not forward saves nothing. Some switch it on
// with the virtual address, and a bridge does not need it.
func judgeForwarding(f *Facts) []Finding {
	four, ok4 := f.sysctl("net.ipv4.ip_forward")
	six, _ := f.sysctl("net.ipv6.conf.all.forwarding")
	out := Finding{ID: "sysctl.ip_forward", Found: fmt.Sprintf("IPv4 %d, IPv6 %d", four, six), Want: "1",
		Why: "packets of restored connections are routed at once"}
	switch {
	case !ok4:
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "net.ipv4.ip_forward could not be read"
	case four == 0 && six == 0 && f.Rules.forwards():
		out.Verdict, out.Fix = Warning, setCommand("net.ipv4.ip_forward", 1)
		out.Why = "this host has rules for packets that it forwards, but forwards none: after a takeover no connection would go on"
	case four == 0 && six == 0:
		out.Verdict, out.Fix = Note, setCommand("net.ipv4.ip_forward", 1)
		out.Why = "this host routes nothing; that is right for a bridge, or if something sets it along with the virtual address"
	}
	return []Finding{out}
}

// judgeReversePath looks for interfaces that drop what comes in where the route back
// does not lead. The kernel takes the larger one of "all" and the interface's own.
func judgeReversePath(f *Facts) Finding {
	out := Finding{ID: "sysctl.rp_filter", Want: "0 or 2", Found: "not strict",
		Why: "packets may come in by another interface than the one that answers leave by, as they do while two firewalls exchange roles"}
	const prefix, suffix = "net.ipv4.conf.", ".rp_filter"
	all, ok := f.sysctl(prefix + "all" + suffix)
	if !ok {
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "net.ipv4.conf.all.rp_filter could not be read"
		return out
	}
	var strict []string
	for name := range f.Sysctls {
		flat := strings.ReplaceAll(name, "/", ".")
		ifname := strings.TrimSuffix(strings.TrimPrefix(flat, prefix), suffix)
		if len(ifname) != len(flat)-len(prefix)-len(suffix) || ifname == "all" || ifname == "default" || ifname == "lo" {
			continue
		}
		if n, ok := f.sysctl(name); ok && max(n, all) == 1 {
			strict = append(strict, ifname)
		}
	}
	if len(strict) == 0 {
		return out
	}
	slices.Sort(strict)
	out.Verdict, out.Found = Note, "1 (strict) on "+list(strict)
	out.Fix = setCommand(prefix+"all"+suffix, 2)
	out.Why = "a packet that comes in by another interface than the one that answers leave by is dropped without a trace, which happens when VRRP moves the addresses of only some interfaces"
	return out
}

// list joins names for a sentence, and leaves out all but the first ones.
func list(names []string) string {
	const most = 6
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

func countLines(path string) Reading {
	b, err := os.ReadFile(path)
	if err != nil {
		return Reading{Err: err.Error()}
	}
	return Reading{Value: strconv.Itoa(bytes.Count(b, []byte("\n")))}
}

package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Support says whether the kernel has a part of itself.
type Support uint8

// The kinds of support.
const (
	SupportUnknown   Support = iota // nothing on this host tells
	SupportAbsent                   // neither in the kernel nor among its modules
	SupportLoadable                 // a module that is not loaded
	SupportLoaded                   // a module that is loaded
	SupportBuiltIn                  // part of the kernel
	SupportSomewhere                // in the kernel, built in or loaded
)

func (s Support) String() string {
	return [...]string{"not known", "absent", "module, not loaded", "module, loaded", "built in", "present"}[s]
}

// helperModules names the module of each helper, without the prefix that all of them
// have. The names are those that the kernel gives helpers.
var helperModules = map[string]string{
	"RAS": "h323", "Q.931": "h323", "H.245": "h323", "netbios-ns": "netbios_ns",
	"amanda": "amanda", "ftp": "ftp", "irc": "irc", "pptp": "pptp", "sane": "sane", "sip": "sip", "snmp": "snmp", "tftp": "tftp",
}

// natHelpers are the helpers that need a second module where addresses are
// translated.
var natHelpers = []string{"amanda", "ftp", "h323", "irc", "pptp", "sip", "tftp"}

// wantedHelpers are the helpers that the rules assign or the configuration names,
// sorted.
func wantedHelpers(f *Facts, s *Setup) []string {
	var names []string
	for _, u := range f.Rules.uses() {
		if u.what == usesHelper && u.name != "" {
			names = append(names, u.name)
		}
	}
	names = append(names, s.Expectations.Names...)
	slices.Sort(names)
	return slices.Compact(names)
}

// wantedModules returns the modules whose presence is judged.
func wantedModules(f *Facts, s *Setup) []string {
	names := []string{"nf_nat"}
	for _, h := range wantedHelpers(f, s) {
		if m, ok := helperModules[h]; ok {
			names = append(names, "nf_conntrack_"+m)
			if slices.Contains(natHelpers, m) {
				names = append(names, "nf_nat_"+m)
			}
		}
	}
	return names
}

// readModules finds out about modules from what this host shows: the loaded ones,
// the lists of what can be loaded and what is built in, the symbols of the kernel.
func readModules(release string, names []string) map[string]Support {
	have := make(map[string]Support)
	missing := make(map[string]bool)
	for _, n := range names {
		missing[n] = true
	}
	found := func(name string, s Support) {
		if missing[name] {
			delete(missing, name)
			have[name] = s
		}
	}
	if f, err := os.Open("/proc/modules"); err == nil {
		eachLine(f, func(line string) {
			name, _, _ := strings.Cut(line, " ")
			found(name, SupportLoaded)
		})
	}
	listed := 0 // of the two lists of modules
	for _, list := range [...]struct {
		file string
		s    Support
	}{{"modules.builtin", SupportBuiltIn}, {"modules.dep", SupportLoadable}} {
		f, err := os.Open(filepath.Join("/lib/modules", release, list.file))
		if err != nil {
			continue
		}
		listed++
		eachLine(f, func(line string) {
			path, _, _ := strings.Cut(line, ":")
			base, _, _ := strings.Cut(filepath.Base(path), ".ko")
			found(strings.ReplaceAll(base, "-", "_"), list.s)
		})
	}
	if len(missing) > 0 {
		symbols := 0
		if f, err := os.Open("/proc/kallsyms"); err == nil {
			eachLine(f, func(line string) {
				symbols++
				if _, rest, ok := strings.Cut(line, " "); ok && len(rest) > 2 {
					name, _, _ := strings.Cut(rest[2:], "\t")
					if base, ok := strings.CutSuffix(name, "_init"); ok {
						found(base, SupportSomewhere)
					}
				}
			})
		}
		for n := range missing {
			have[n] = SupportUnknown
			if listed == 2 || (listed == 0 && symbols > 10000 && noModules()) {
				have[n] = SupportAbsent
			}
		}
	}
	return have
}

// noModules reports whether this kernel cannot load modules, so that its symbols are
// all there will be.
func noModules() bool {
	_, err := os.Stat("/proc/modules")
	return os.IsNotExist(err)
}

// eachLine calls fn for each line of f and closes it.
func eachLine(f io.ReadCloser, fn func(string)) {
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		fn(s.Text())
	}
}

// readCapability looks at the effective set of the calling thread.
func readCapability(c uint) Reading {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return Reading{Err: fmt.Sprintf("capget: %v", err)}
	}
	if data[0].Effective&(1<<c) == 0 {
		return Reading{Value: "missing"}
	}
	return Reading{Value: "present"}
}

// judgeKernel judges what the kernel and this process can do at all.
func judgeKernel(f *Facts, s *Setup) []Finding {
	track := Finding{ID: "kernel.conntrack", Found: "present", Want: "present", Why: "the kernel tracks connections"}
	_, tracks := f.Sysctls[netfilter+"nf_conntrack_max"]
	_, tells := f.Sysctls[netfilter+"nf_conntrack_events"]
	switch {
	case !tracks:
		track.Verdict, track.Found, track.Fix = Error, "missing", "modprobe nf_conntrack"
		track.Why = "this kernel or network namespace tracks no connections, or the module is not loaded"
	case !tells:
		track.Verdict, track.Found, track.Want = Error, "without events", "CONFIG_NF_CONNTRACK_EVENTS"
		track.Why = "this kernel was built without conntrack events, so nothing can be replicated"
	}
	all := []Finding{judgeAdmin(f)}
	if s.UsedFirst {
		all = append(all, judgeRaw(f))
	}
	all = append(all, track)
	if tracks {
		all = append(all, judgeCtnetlink(f))
	}
	all = append(all, judgeModule(f, "kernel.nat", "", "nf_nat", "translated connections can be restored", "translated connections cannot be restored"))
	for _, h := range wantedHelpers(f, s) {
		all = append(all, judgeHelper(f, h)...)
	}
	return all
}

func judgeAdmin(f *Facts) Finding {
	return judgeCapability(f.Admin, Error, Finding{
		ID: "kernel.cap_net_admin", Why: "needed to listen to and change conntrack entries", Fix: "run as root, or with CAP_NET_ADMIN",
	})
}

func judgeRaw(f *Facts) Finding {
	return judgeCapability(f.Raw, Warning, Finding{
		ID: "kernel.cap_net_raw", Why: "needed to commit connections in use before the others", Fix: "run as root, or with CAP_NET_RAW, or set commit.used_first = false",
	})
}

// judgeCapability completes a finding about a capability, of which out has the fix.
func judgeCapability(r Reading, missing Verdict, out Finding) Finding {
	fix := out.Fix
	out.Found, out.Want, out.Fix = r.Value, "present", ""
	switch {
	case !r.ok():
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", r.Err
	case r.Value != "present":
		out.Verdict, out.Found, out.Fix = missing, "missing", fix
	}
	return out
}

func judgeCtnetlink(f *Facts) Finding {
	out := Finding{ID: "kernel.ctnetlink", Found: "answers", Want: "answers", Why: "the kernel takes requests about its table"}
	switch {
	case f.Ctnetlink == nil:
	case errors.Is(f.Ctnetlink, os.ErrPermission):
		out.Verdict, out.Found, out.Why = Unknown, "no answer", f.Ctnetlink.Error()
	default:
		// Nobody has registered for these requests, and no module could be loaded.
		out.Verdict, out.Found, out.Fix = Error, f.Ctnetlink.Error(), "modprobe nf_conntrack_netlink"
		out.Why = "the kernel's table can be neither read nor changed"
	}
	return out
}

// judgeModule judges a module that something depends on.
func judgeModule(f *Facts, id, subject, module, good, bad string) Finding {
	s := f.Modules[module]
	out := Finding{ID: id, Subject: subject, Found: module + ": " + s.String(), Want: "present", Why: good}
	switch s {
	case SupportUnknown:
		out.Verdict, out.Why = Unknown, "this host shows neither its modules nor the kernel's symbols"
	case SupportAbsent:
		out.Verdict, out.Why = Warning, bad
	case SupportLoadable:
		out.Verdict, out.Fix = Note, "modprobe "+module
		out.Why = "the kernel loads it when it is first needed; a commit should not have to wait for that"
	}
	return out
}

func judgeHelper(f *Facts, helper string) []Finding {
	module, known := helperModules[helper]
	if !known {
		return []Finding{{ID: "kernel.helper", Subject: helper, Verdict: Unknown, Found: "no helper of the kernel", Want: "present",
			Why: "a helper in user space has to run on every node, which cannot be seen from here"}}
	}
	all := []Finding{judgeModule(f, "kernel.helper", helper, "nf_conntrack_"+module,
		"flows of this helper can be restored", "flows of this helper are restored without it, so what they announce does not pass")}
	if slices.Contains(natHelpers, module) {
		all = append(all, judgeModule(f, "kernel.nat_helper", helper, "nf_nat_"+module,
			"addresses that this helper reads are translated", "addresses inside translated connections of this helper are not"))
	}
	return all
}

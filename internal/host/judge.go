package host

import "golang.org/x/sys/unix"

// Judge says what is right and wrong with a host.
func Judge(f *Facts, s *Setup) []Finding {
	var all []Finding
	for _, part := range [][]Finding{
		judgeKernel(f, s), judgeSysctls(f, s), judgeTable(f), judgeBuffers(f, s), judgeLinks(f, s), judgeRules(f, s),
	} {
		all = append(all, part...)
	}
	return all
}

// Essentials reads and judges, in the calling thread's network namespace, what decides
// whether a daemon can work at all, and what it should warn of while it runs. It is
// cheap.
func Essentials() []Finding {
	f := &Facts{Sysctls: make(map[string]Reading), Admin: readCapability(unix.CAP_NET_ADMIN)}
	const name = netfilter + "nf_conntrack_events"
	r := readFile(procSys + "/net/netfilter/nf_conntrack_events")
	return []Finding{judgeAdmin(f), judgeSysctl(name, r, !r.Missing, judgeEvents)}
}

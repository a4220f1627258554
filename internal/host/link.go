package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Interface is the state of a network interface.
type Interface struct {
	Up, Running bool
	MTU         int
	Index       int
	Addresses   []netip.Addr
}

// readInterfaces returns all interfaces by name, and all addresses of the host.
func readInterfaces() (map[string]Interface, []string) {
	all := make(map[string]Interface)
	var addrs []string
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, nil
	}
	for _, ifi := range ifis {
		i := Interface{Up: ifi.Flags&net.FlagUp != 0, Running: ifi.Flags&net.FlagRunning != 0, MTU: ifi.MTU, Index: ifi.Index}
		here, _ := ifi.Addrs()
		for _, a := range here {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				i.Addresses = append(i.Addresses, p.Addr())
				addrs = append(addrs, p.Addr().String())
			}
		}
		all[ifi.Name] = i
	}
	return all, addrs
}

// judgeLinks judges the interfaces of the sync links and whether the daemon can open
// its sockets there.
func judgeLinks(f *Facts, s *Setup) []Finding {
	var all []Finding
	for i := range s.Links {
		l := &s.Links[i]
		all = append(all, judgeInterface(f, l))
		if ifi, ok := f.Interfaces[l.Interface]; ok {
			all = append(all, judgeMTU(l, ifi))
		}
		if i < len(f.LinkErrs) {
			out := Finding{ID: "link.open", Subject: l.Interface, Found: "can be opened", Want: "can be opened",
				Why: "the daemon can send and receive there"}
			if e := f.LinkErrs[i]; e != "" {
				out.Verdict, out.Found, out.Why = Error, e, "the daemon does not start without all of its links"
			}
			all = append(all, out)
		}
	}
	return all
}

func judgeInterface(f *Facts, l *Link) Finding {
	out := Finding{ID: "link.interface", Subject: l.Interface, Want: "up, with its address", Why: "the link can be used"}
	ifi, ok := f.Interfaces[l.Interface]
	switch {
	case f.Interfaces == nil:
		out.Verdict, out.Found, out.Why = Unknown, "unreadable", "the interfaces could not be read"
	case !ok:
		out.Verdict, out.Found, out.Why = Error, "no such interface", "the daemon does not start without the interface of each link"
		out.Fix = "ip link"
	case l.Local.IsValid() && !slices.Contains(ifi.Addresses, l.Local) && !slices.Contains(f.Addresses, l.Local.String()) && !l.Local.IsLoopback():
		out.Verdict, out.Found = Error, "without "+l.Local.String()
		out.Why = "the daemon does not start without the link's own address"
		out.Fix = fmt.Sprintf("ip address add %s dev %s", l.Local, l.Interface)
	case !ifi.Up:
		out.Verdict, out.Found, out.Fix = Warning, "down", "ip link set "+l.Interface+" up"
		out.Why = "nothing is replicated over a link that is down"
	case !ifi.Running:
		out.Verdict, out.Found = Warning, "up, no carrier"
		out.Why = "nothing is replicated over a link without a carrier: look at the cable and the other end"
	case l.Local.IsValid() && !slices.Contains(ifi.Addresses, l.Local) && !l.Local.IsLoopback():
		out.Verdict, out.Found = Note, "up, "+l.Local.String()+" is on another interface"
		out.Why = "that works as long as the peer's route to the address leads over this link"
	default:
		out.Found = "up"
		if l.Local.IsValid() {
			out.Found += ", " + l.Local.String()
		}
	}
	return out
}

func judgeMTU(l *Link, ifi Interface) Finding {
	out := Finding{ID: "link.mtu", Subject: l.Interface, Found: fmt.Sprint(ifi.MTU), Want: "the same at both ends, 1500 or more",
		Why: "datagrams are as long as the MTU allows, and never fragmented"}
	if ifi.MTU < 1500 {
		out.Verdict = Note
		out.Fix = "ip link set " + l.Interface + " mtu 1500"
		out.Why = "more datagrams are needed for the same changes"
	}
	return out
}

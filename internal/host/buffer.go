package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// eventOctets is what one event takes of a receive buffer, whatever its size.
const eventOctets = 1280

// Buffers are the sizes, in octets, that the kernel grants when asked as the daemon
// asks. It accounts twice what it is asked for.
type Buffers struct {
	Events Grant // the receive buffer of events, at start
	Grown  Grant // and as large as it may grow
	Links  []LinkBuffers
}

// LinkBuffers are those of one link.
type LinkBuffers struct{ Recv, Send Grant }

// Grant is one size asked for and what the kernel gave, both as asked.
type Grant struct {
	Asked, Got int
	Err        string // why nothing is known
}

// probeBuffers asks for each buffer on a socket that is closed at once. A buffer uses
// memory only for what is in it.
func probeBuffers(s *Setup) Buffers {
	b := Buffers{
		Events: probeBuffer(unix.AF_NETLINK, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, s.EventBuffer),
		Grown:  probeBuffer(unix.AF_NETLINK, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, s.EventBufferMax),
	}
	for _, l := range s.Links {
		b.Links = append(b.Links, LinkBuffers{
			Recv: probeBuffer(unix.AF_INET, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, l.RecvBuffer),
			Send: probeBuffer(unix.AF_INET, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, l.SendBuffer),
		})
	}
	return b
}

func probeBuffer(family, force, plain, size int) Grant {
	g := Grant{Asked: size}
	typ, proto := unix.SOCK_DGRAM, 0
	if family == unix.AF_NETLINK {
		typ, proto = unix.SOCK_RAW, unix.NETLINK_NETFILTER
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		g.Err = fmt.Sprintf("open a socket: %v", err)
		return g
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size); err != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
		if err != nil {
			g.Err = fmt.Sprintf("set a buffer: %v", err)
			return g
		}
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
	if err != nil {
		g.Err = fmt.Sprintf("read a buffer: %v", err)
		return g
	}
	g.Got = got / 2
	return g
}

// judgeBuffers judges what the kernel grants.
func judgeBuffers(f *Facts, s *Setup) []Finding {
	b := &f.Buffers
	all := []Finding{
		judgeGrant("buffer.events", "", b.Events, "net.core.rmem_max", fmt.Sprintf("room for %d events that the daemon has not read yet", 2*b.Events.Got/eventOctets)),
		judgeGrant("buffer.events_max", "", b.Grown, "net.core.rmem_max", fmt.Sprintf("after an overrun it may grow to room for %d events", 2*b.Grown.Got/eventOctets)),
	}
	for i, l := range b.Links {
		if i >= len(s.Links) {
			break
		}
		name := s.Links[i].Interface
		all = append(all,
			judgeGrant("buffer.link_recv", name, l.Recv, "net.core.rmem_max", "a burst of a bulk update fits"),
			judgeGrant("buffer.link_send", name, l.Send, "net.core.wmem_max", "a turn of the daemon fits"))
	}
	return all
}

func judgeGrant(id, subject string, g Grant, limit, good string) Finding {
	out := Finding{ID: id, Subject: subject, Found: octets(g.Got), Want: octets(g.Asked), Why: good}
	switch {
	case g.Err != "":
		out.Verdict, out.Found, out.Why = Unknown, "not known", g.Err
	case g.Got < g.Asked:
		out.Verdict, out.Fix = Warning, setCommand(limit, g.Asked)
		out.Why = "without CAP_NET_ADMIN in the first user namespace the kernel grants no more than " + limit + ", and what does not fit is lost and has to be repaired"
	}
	return out
}

// octets writes a size as the configuration takes it.
func octets(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%d octets", n)
}

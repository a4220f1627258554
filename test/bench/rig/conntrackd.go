package rig

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// conntrackdConfig is Debian's example of a configuration for FT-FW, with a unicast
// link (syncd has the same), caches that hold the load, no log, and socket buffers as
// Settings says. What is not named is as it is by default: the real-time priority
// above all.
func conntrackdConfig(d *Daemon, which int, s Settings, base string) string {
	buffer, growth := 64<<20, 512<<20
	if s.Shipped {
		buffer, growth = 2<<20, 8<<20
	}
	scheduler := ""
	if s.Ordinary {
		// There is no word for the ordinary scheduler. A priority that does not exist makes it
		// complain and go on without.
		scheduler = "\tScheduler {\n\t\tType RR\n\t\tPriority 0\n\t}\n"
	}
	return fmt.Sprintf(`Sync {
	Mode FTFW {
		StartupResync on
	}
	UDP {
		IPv4_address %s
		IPv4_Destination_Address %s
		Port %d
		Interface %s
		SndSocketBuffer 4194304
		RcvSocketBuffer 4194304
		Checksum on
	}
}
General {
	HashSize %d
	HashLimit %d
	LogFile %s
	LockFile %s.lock
	UNIX { Path %s }
	Systemd off
	NetlinkBufferSize %d
	NetlinkBufferSizeMaxGrowth %d
	NetlinkOverrunResync 5
%s	Filter From Userspace {
		Address Ignore {
			IPv4_address 127.0.0.1
			IPv4_address 192.0.2.0/24
		}
	}
}
`, syncAddrs[which].Addr(), syncAddrs[1-which].Addr(), syncPort, IfSync,
		max(32768, s.Flows), max(131072, 2*s.Flows), d.log, base, d.socket, buffer, growth, scheduler)
}

// Requests of conntrackd's control socket: one number, and text comes back.
const (
	askExternal = 17
	askCaches   = 21
	askRuntime  = 30
)

// ask sends a request to conntrackd and returns the answer. The daemon does nothing
// else until it has been read.
func (d *Daemon) ask(request uint32) (string, error) {
	c, err := net.DialTimeout("unix", d.socket, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return "", err
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], request)
	if _, err := c.Write(b[:]); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	if err == nil && len(text) == 0 && request != askExternal {
		err = fmt.Errorf("conntrackd did not answer request %d", request)
	}
	return string(text), err
}

func (d *Daemon) conntrackdCounters() (c Counters, err error) {
	caches, err := d.ask(askCaches)
	if err != nil {
		return c, err
	}
	_, external, _ := strings.Cut(caches, externalCache)
	runtime, err := d.ask(askRuntime)
	if err != nil {
		return c, err
	}
	for _, v := range []struct {
		text, key string
		to        *uint64
	}{
		{external, "connections created:", &c.Created},
		{external, "connections updated:", &c.Updated},
		{external, destroyedCount, &c.Deleted},
		{runtime, "events received:", &c.Events},
		{runtime, "netlink overrun:", &c.Overruns},
	} {
		if *v.to, err = after(v.text, v.key); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (d *Daemon) conntrackdEntries() (internal, external uint64, err error) {
	text, err := d.ask(askCaches)
	if err != nil {
		return 0, 0, err
	}
	const active = "current active connections:"
	in, ext, _ := strings.Cut(text, externalCache)
	if internal, err = after(in, active); err == nil {
		external, err = after(ext, active)
	}
	return internal, external, err
}

const (
	externalCache  = "cache external:"
	destroyedCount = "connections destroyed:"
)

// after returns the number that follows a word in a text.
func after(text, word string) (uint64, error) {
	_, rest, ok := strings.Cut(text, word)
	f := strings.Fields(rest)
	if !ok || len(f) == 0 {
		return 0, fmt.Errorf("conntrackd's statistics do not say %q: %q", word, text)
	}
	return strconv.ParseUint(f[0], 10, 64)
}

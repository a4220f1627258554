package rig

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"syncd/internal/ctl"
	"syncd/internal/flow"
	"syncd/internal/lab"
)

// Key names an IPv4 flow, as all our sources can tell it.
type Key struct {
	Src, Dst         uint32
	SrcPort, DstPort uint16
	Proto            uint8
}

// State is what is compared of a flow.
type State struct {
	TCP       string // as conntrack(8) prints it
	Assured   bool
	Unreplied bool
}

// Table is the content of a kernel or of a cache.
type Table map[Key]State

// Divergence counts how two tables differ.
type Divergence struct {
	Missing, Stale, Different int
}

// Zero reports whether there is none.
func (d Divergence) Zero() bool { return d == Divergence{} }

// Compare compares a copy with the original.
func Compare(original, replica Table) (d Divergence) {
	for k, s := range original {
		switch r, ok := replica[k]; {
		case !ok:
			d.Missing++
		case r != s:
			d.Different++
		}
	}
	for k := range replica {
		if _, ok := original[k]; !ok {
			d.Stale++
		}
	}
	return d
}

var tcpStates = []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
	"TIME_WAIT", "CLOSE", "SYN_SENT2"}

func v4(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// measured reports whether a flow is one of the load.
func measured(k Key) bool {
	return FlowSource.Contains(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, k.Src))))
}

// KernelTable reads the flows of the load in the kernel of a node. It shares no code
// with the daemon's own reading.
func KernelTable(n *lab.Node) (Table, error) {
	c, err := conntrack.Dial(&netlink.Config{NetNS: n.FD()})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		return nil, err
	}
	t := make(Table, len(flows))
	for i := range flows {
		f := &flows[i]
		o := f.TupleOrig
		k := Key{v4(o.IP.SourceAddress), v4(o.IP.DestinationAddress), o.Proto.SourcePort, o.Proto.DestinationPort, o.Proto.Protocol}
		if !measured(k) {
			continue
		}
		s := State{Assured: uint32(f.Status)&flow.StatusAssured != 0, Unreplied: uint32(f.Status)&flow.StatusSeenReply == 0}
		if f.ProtoInfo.TCP != nil {
			s.TCP = tcpStates[f.ProtoInfo.TCP.State]
		}
		t[k] = s
	}
	return t, nil
}

// FlushKernel empties the table of a node in one request.
func FlushKernel(n *lab.Node) error {
	c, err := conntrack.Dial(&netlink.Config{NetNS: n.FD()})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Flush()
}

// External reads the external cache of the daemon.
func (d *Daemon) External() (Table, error) {
	t := Table{}
	if d.Kind == Conntrackd {
		text, err := d.ask(askExternal)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			k, s, err := parseLine(line)
			if err != nil {
				return nil, fmt.Errorf("conntrackd's dump: %q: %w", line, err)
			}
			if measured(k) {
				t[k] = s
			}
		}
		return t, nil
	}
	err := d.client.Dump(context.Background(), ctl.External, func(e *ctl.DumpEntry) error {
		f := &e.Flow
		k := Key{binary.BigEndian.Uint32(f.Orig.Src[:]), binary.BigEndian.Uint32(f.Orig.Dst[:]), f.Orig.SrcPort, f.Orig.DstPort, f.Orig.Proto}
		if e.Dead || f.Orig.Family != flow.IPv4 || !measured(k) {
			return nil
		}
		s := State{Assured: f.Status&flow.StatusAssured != 0, Unreplied: f.Status&flow.StatusSeenReply == 0}
		if f.Has&flow.HasTCP != 0 {
			s.TCP = tcpStates[f.TCPState]
		}
		t[k] = s
		return nil
	})
	return t, err
}

// parseLine reads a line of a dump of conntrackd's external cache.
func parseLine(line string) (k Key, s State, err error) {
	f := strings.Fields(line)
	if len(f) < 4 {
		return k, s, fmt.Errorf("%d fields", len(f))
	}
	proto, err := strconv.ParseUint(f[1], 10, 8)
	if err != nil {
		return k, s, err
	}
	k.Proto = uint8(proto)
	if !strings.Contains(f[2], "=") {
		s.TCP = f[2]
	}
	for _, field := range f[2:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "src", "dst":
			a, err := netip.ParseAddr(value)
			if err != nil {
				return k, s, err
			}
			if key == "src" {
				k.Src = v4(a)
			} else {
				k.Dst = v4(a)
			}
		case "sport", "dport":
			p, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return k, s, err
			}
			if key == "sport" {
				k.SrcPort = uint16(p)
			} else {
				k.DstPort = uint16(p)
			}
		case "[ASSURED]":
			s.Assured = true
		case "[UNREPLIED]":
			s.Unreplied = true
		}
	}
	return k, s, nil
}

package tap

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"syncd/internal/flow"
)

// packet is hexadecimal digits, with spaces for who reads it.
func packet(t testing.TB, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tuple(proto uint8, src, dst string) (t flow.Tuple) {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	t.Family, t.Proto, t.SrcPort, t.DstPort = flow.IPv6, proto, s.Port(), d.Port()
	if s.Addr().Is4() {
		t.Family = flow.IPv4
	}
	copy(t.Src[:], s.Addr().AsSlice())
	copy(t.Dst[:], d.Addr().AsSlice())
	return t
}

const (
	v4TCP     = "4500 0034 1234 4000 4006 0000 c6336414 cb00710a  9c40 01bb 00000001 00000002 5010 0100 0000 0000"
	v4Options = "4600 0038 1234 4000 4006 0000 c6336414 cb00710a 01010101  9c40 01bb 00000001 00000002 5010 0100"
	v4First   = "4500 05dc 1234 2000 4011 0000 c6336414 cb00710a  9c40 1b58 0800 0000"
	v4Later   = "4500 05dc 1234 00b9 4011 0000 c6336414 cb00710a  9c40 1b58 0800 0000"
	v4ICMP    = "4500 0054 1234 4000 4001 0000 c6336414 cb00710a  0800 0000 0001 0001"
	v4Short   = "4500 0034 1234 4000 4006 0000 c6336414 cb00710a  9c40 01"
	v4Header  = "4400 0034 1234 4000 4006 0000 c6336414 cb00710a  9c40 01bb"
	v6UDP     = "60000000 0010 11 40 20010db8000100000000000000000020 20010db8000200000000000000000010 9c40 1b58 0010 0000"
	v6Options = "60000000 0018 00 40 20010db8000100000000000000000020 20010db8000200000000000000000010 1100 0502 0000 0100 9c40 1b58"
	v6Short   = "60000000 0010 11 40 20010db8000100000000000000000020 20010db80002000000000000000000"
	v6SCTP    = "60000000 0010 84 40 20010db8000100000000000000000020 20010db8000200000000000000000010 9c40 1b58 0010 0000"
	v5        = "5500 0034 1234 4000 4006 0000 c6336414 cb00710a  9c40 01bb"
)

var packets = map[string]struct {
	in   string
	want flow.Tuple // zero for none
}{
	"TCP":                      {v4TCP, tuple(flow.TCP, "198.51.100.20:40000", "203.0.113.10:443")},
	"IP options":               {v4Options, tuple(flow.TCP, "198.51.100.20:40000", "203.0.113.10:443")},
	"first fragment":           {v4First, tuple(flow.UDP, "198.51.100.20:40000", "203.0.113.10:7000")},
	"later fragment":           {in: v4Later},
	"ICMP":                     {in: v4ICMP},
	"cut off in the ports":     {in: v4Short},
	"header too short":         {in: v4Header},
	"UDP, IPv6":                {v6UDP, tuple(flow.UDP, "[2001:db8:1::20]:40000", "[2001:db8:2::10]:7000")},
	"SCTP, IPv6":               {v6SCTP, tuple(flow.SCTP, "[2001:db8:1::20]:40000", "[2001:db8:2::10]:7000")},
	"extension header":         {in: v6Options},
	"cut off in the addresses": {in: v6Short},
	"no IP":                    {in: v5},
	"nothing":                  {in: ""},
}

func TestDecode(t *testing.T) {
	for name, tt := range packets {
		var got flow.Tuple
		if ok := decode(packet(t, tt.in), &got); ok != (tt.want != flow.Tuple{}) || ok && got != tt.want {
			t.Errorf("%s: %v %+v, want %+v", name, ok, got, tt.want)
		}
	}
}

func TestDecodeAllocates(t *testing.T) {
	b := packet(t, v4TCP)
	var got flow.Tuple
	if n := testing.AllocsPerRun(100, func() { decode(b, &got) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever comes: no panic, and nothing but whole tuples of protocols with ports.
func FuzzDecode(f *testing.F) {
	for _, tt := range packets {
		f.Add(packet(f, tt.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got flow.Tuple
		if !decode(b, &got) {
			return
		}
		if got.Family != flow.IPv4 && got.Family != flow.IPv6 || got.Zone != 0 {
			t.Errorf("%+v", got)
		}
		if _, ok := got.Inverse(); !ok || got.IsICMP() {
			t.Errorf("%+v has no ports", got)
		}
		// What follows the ports does not count.
		var again flow.Tuple
		if len(b) > snap && (!decode(b[:snap], &again) || again != got) {
			t.Errorf("of the first %d octets: %+v, of all: %+v", snap, again, got)
		}
	})
}

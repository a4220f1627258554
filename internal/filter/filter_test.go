package filter

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"syncd/internal/flow"
)

// newFlow makes a flow from source to destination; the reply source is the
// destination unless server says otherwise.
func newFlow(proto uint8, source, destination, server string) *flow.Flow {
	tuple := func(from, to string) flow.Tuple {
		t := flow.Tuple{Family: flow.IPv4, Proto: proto}
		a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
		if a.Is6() {
			t.Family = flow.IPv6
		}
		copy(t.Src[:], a.AsSlice())
		copy(t.Dst[:], b.AsSlice())
		return t
	}
	if server == "" {
		server = destination
	}
	return &flow.Flow{Orig: tuple(source, destination), Reply: tuple(server, source)}
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func TestMatch(t *testing.T) {
	tcp := func(state uint8) *flow.Flow {
		f := newFlow(flow.TCP, "192.0.2.1", "198.51.100.1", "")
		f.Has, f.TCPState = flow.HasTCP, state
		return f
	}
	var (
		v4   = newFlow(flow.UDP, "192.0.2.1", "198.51.100.1", "")
		v6   = newFlow(flow.UDP, "2001:db8::1", "2001:db8:1::1", "")
		dnat = newFlow(flow.TCP, "192.0.2.1", "198.51.100.1", "203.0.113.9")
	)
	for _, tt := range []struct {
		name  string
		rules Rules
		flow  *flow.Flow
		want  bool
	}{
		{"no rules", Rules{}, v4, true},
		{"no rules, unknown protocol and family", Rules{}, &flow.Flow{}, true},
		{"protocol accepted", Rules{Protocols: List[uint8]{Accept: []uint8{6, 17}}}, v4, true},
		{"protocol not accepted", Rules{Protocols: List[uint8]{Accept: []uint8{6, 255}}}, v4, false},
		{"protocol ignored", Rules{Protocols: List[uint8]{Ignore: []uint8{17}}}, v6, false},
		{"other protocol ignored", Rules{Protocols: List[uint8]{Ignore: []uint8{6}}}, v6, true},

		{"source accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("192.0.2.0/24")}}, v4, true},
		{"reply source accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("198.51.100.1/32")}}, v4, true},
		{"neither accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("203.0.113.0/24")}}, v4, false},
		{"reply source ignored", Rules{Addresses: List[netip.Prefix]{Ignore: prefixes("198.51.100.1/32")}}, v4, false},
		{"real server accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("203.0.113.0/24")}}, dnat, true},
		{"virtual address is not looked at", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("198.51.100.0/24")}}, dnat, false},
		{"IPv4 list says nothing about IPv6", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("203.0.113.0/24")}}, v6, true},
		{"IPv6 list says nothing about IPv4", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("2001:db8:9::/48")}}, v4, true},
		{"IPv6 source accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("2001:db8::/64")}}, v6, true},
		{"IPv6 not accepted", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("2001:db8:9::/48")}}, v6, false},
		{"IPv4 default route is not IPv6", Rules{Addresses: List[netip.Prefix]{Ignore: prefixes("0.0.0.0/0")}}, v6, true},
		{"default route", Rules{Addresses: List[netip.Prefix]{Ignore: prefixes("::/0")}}, v6, false},
		{"host bits do not count", Rules{Addresses: List[netip.Prefix]{Ignore: prefixes("192.0.2.77/24")}}, v4, false},
		{"hole in an accepted network", Rules{Addresses: List[netip.Prefix]{Accept: prefixes("192.0.2.0/24"), Ignore: prefixes("192.0.2.1/32")}}, v4, false},
		{"invalid prefix", Rules{Addresses: List[netip.Prefix]{Ignore: []netip.Prefix{{}}}}, v4, true},

		{"state accepted", Rules{TCPStates: List[uint8]{Accept: []uint8{flow.TCPEstablished}}}, tcp(flow.TCPEstablished), true},
		{"state not accepted", Rules{TCPStates: List[uint8]{Accept: []uint8{flow.TCPEstablished}}}, tcp(flow.TCPSynSent), false},
		{"state ignored", Rules{TCPStates: List[uint8]{Ignore: []uint8{flow.TCPSynSent}}}, tcp(flow.TCPSynSent), false},
		{"state unknown", Rules{TCPStates: List[uint8]{Accept: []uint8{flow.TCPEstablished}}}, dnat, true},
		{"states and UDP", Rules{TCPStates: List[uint8]{Accept: []uint8{flow.TCPEstablished}}}, v4, true},
		{"state from a newer kernel", Rules{TCPStates: List[uint8]{Accept: []uint8{flow.TCPEstablished}}}, tcp(255), false},

		{"all criteria hold", Rules{Protocols: List[uint8]{Accept: []uint8{6}}, Addresses: List[netip.Prefix]{Accept: prefixes("192.0.2.0/24")}, TCPStates: List[uint8]{Accept: []uint8{3}}}, tcp(3), true},
		{"one criterion fails", Rules{Protocols: List[uint8]{Accept: []uint8{6}}, Addresses: List[netip.Prefix]{Accept: prefixes("192.0.3.0/24")}, TCPStates: List[uint8]{Accept: []uint8{3}}}, tcp(3), false},
	} {
		if got := Compile(tt.rules).Match(tt.flow); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestWithLocal(t *testing.T) {
	base := Compile(Rules{Protocols: List[uint8]{Ignore: []uint8{flow.GRE}}})
	local := base.WithLocal([]netip.Addr{
		netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:192.0.2.253"), {},
	})
	for _, tt := range []struct {
		name                        string
		source, destination, server string
		want                        bool
	}{
		{"forwarded", "192.0.2.1", "198.51.100.1", "", true},
		{"forwarded IPv6", "2001:db8::1", "2001:db8::2", "", true},
		{"to us", "192.0.2.1", "192.0.2.254", "", false},
		{"to us, mapped", "192.0.2.1", "192.0.2.253", "", false},
		{"from us", "192.0.2.254", "198.51.100.1", "", false},
		{"to our link-local address", "fe80::2", "fe80::1", "", false},
		{"to us, but translated to a server behind us", "192.0.2.1", "192.0.2.254", "203.0.113.9", true},
		{"translated to us", "192.0.2.1", "198.51.100.1", "192.0.2.254", false},
		{"loopback", "127.0.0.53", "127.0.0.1", "", false},
		{"loopback IPv6", "::1", "::1", "", false},
		{"multicast", "192.0.2.1", "224.0.0.18", "", false},
		{"last multicast", "192.0.2.1", "239.255.255.255", "", false},
		{"not quite multicast", "192.0.2.1", "240.0.0.1", "", true},
		{"multicast IPv6", "2001:db8::1", "ff02::12", "", false},
		{"broadcast", "192.0.2.1", "255.255.255.255", "", false},
	} {
		f := newFlow(flow.UDP, tt.source, tt.destination, tt.server)
		if got := local.Match(f); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if !base.Match(f) {
			t.Errorf("%s: the filter that it was derived from changed", tt.name)
		}
	}
	// What IPv4 leaves of the octets must not look like an IPv6 address.
	if f := newFlow(flow.UDP, "2001:db8::1", "e000::1", ""); !local.Match(f) {
		t.Error("e000::1 counts as multicast")
	}
	if local.Match(newFlow(flow.GRE, "192.0.2.1", "198.51.100.1", "")) {
		t.Error("the rules are lost")
	}
	// Deriving again replaces the addresses.
	if !local.WithLocal(nil).Match(newFlow(flow.UDP, "192.0.2.1", "192.0.2.254", "")) {
		t.Error("old local addresses live on")
	}
}

// naive is the meaning of a filter in the fewest words, on netip types.
func naive(r Rules, local []netip.Addr, withLocal bool, f *flow.Flow) bool {
	address := func(o [16]byte) netip.Addr {
		if f.Orig.Family == flow.IPv6 {
			return netip.AddrFrom16(o)
		}
		return netip.AddrFrom4([4]byte(o[:4]))
	}
	ends := []netip.Addr{address(f.Orig.Src), address(f.Reply.Src)}
	in := func(list []netip.Prefix) (hit, family bool) {
		for _, p := range list {
			family = family || p.Addr().Is4() == ends[0].Is4()
			hit = hit || p.Contains(ends[0]) || p.Contains(ends[1])
		}
		return hit, family
	}
	passes := func(l List[uint8], n uint8) bool {
		return (len(l.Accept) == 0 || slices.Contains(l.Accept, n)) && !slices.Contains(l.Ignore, n)
	}
	accepted, family := in(r.Addresses.Accept)
	ignored, _ := in(r.Addresses.Ignore)
	if withLocal {
		to := address(f.Orig.Dst)
		if to.IsMulticast() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return false
		}
		for _, e := range ends {
			if e.IsLoopback() || slices.Contains(local, e) {
				return false
			}
		}
	}
	return passes(r.Protocols, f.Orig.Proto) &&
		(f.Orig.Proto != flow.TCP || f.Has&flow.HasTCP == 0 || passes(r.TCPStates, f.TCPState)) &&
		(accepted || !family) && !ignored
}

// Addresses are drawn from few, and near each other and the ends of the space,
// so that prefixes and flows meet.
func drawAddr(t *rapid.T, is4 bool) netip.Addr {
	edge := rapid.SampledFrom([]byte{0, 1, 2, 127, 128, 224, 254, 255})
	if is4 {
		return netip.AddrFrom4([4]byte{edge.Draw(t, "a"), edge.Draw(t, "b"), edge.Draw(t, "c"), edge.Draw(t, "d")})
	}
	var a [16]byte
	for _, i := range []int{0, 7, 8, 15} {
		a[i] = edge.Draw(t, "octet")
	}
	return netip.AddrFrom16(a).Unmap()
}

func drawPrefixes(t *rapid.T, label string) []netip.Prefix {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := drawAddr(t, rapid.Bool().Draw(t, "is4"))
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	}), 0, 12).Draw(t, label)
}

func TestAgreesWithNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		protos := rapid.SliceOfN(rapid.SampledFrom([]uint8{1, 6, 17, 63, 64, 255}), 0, 3)
		states := rapid.SliceOfN(rapid.Uint8Range(0, 10), 0, 4)
		rules := Rules{
			Protocols: List[uint8]{protos.Draw(t, "accept"), protos.Draw(t, "ignore")},
			Addresses: List[netip.Prefix]{drawPrefixes(t, "accept"), drawPrefixes(t, "ignore")},
			TCPStates: List[uint8]{states.Draw(t, "accept"), states.Draw(t, "ignore")},
		}
		filter, withLocal := Compile(rules), rapid.Bool().Draw(t, "local")
		var local []netip.Addr
		if withLocal {
			for range rapid.IntRange(0, 4).Draw(t, "n") {
				local = append(local, drawAddr(t, rapid.Bool().Draw(t, "is4")))
			}
			filter = filter.WithLocal(local)
		}
		for range 16 {
			is4 := rapid.Bool().Draw(t, "is4")
			proto := rapid.SampledFrom([]uint8{1, 6, 17, 64}).Draw(t, "proto")
			draw := func() string {
				for {
					if a := drawAddr(t, is4); a.Is4() == is4 {
						return a.String()
					}
				}
			}
			f := newFlow(proto, draw(), draw(), draw())
			if rapid.Bool().Draw(t, "state known") {
				f.Has, f.TCPState = flow.HasTCP, rapid.Uint8Range(0, 10).Draw(t, "state")
			}
			if got, want := filter.Match(f), naive(rules, local, withLocal, f); got != want {
				t.Fatalf("%v, want %v, for %+v with local %v", got, want, f, local)
			}
		}
	})
}

// The table keeps what it promises: ascending, apart, and never longer than
// the list.
func TestSpansAreMerged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := drawPrefixes(t, "prefixes")
		n := makeNetworks(list)
		if len(n[ipv4])+len(n[ipv6]) > len(list) {
			t.Fatalf("%d spans of %d prefixes", len(n[ipv4])+len(n[ipv6]), len(list))
		}
		for _, s := range n {
			for i := range s {
				if s[i].last.less(s[i].first) {
					t.Fatalf("span %d is upside down: %v", i, s[i])
				}
				if i > 0 && !s[i-1].last.next().less(s[i].first) {
					t.Fatalf("spans %d and %d touch: %v %v", i-1, i, s[i-1], s[i])
				}
			}
		}
	})
}

// thousand is a filter that looks into two tables of a thousand networks for
// both families, and finds nothing in the second.
func thousand() *Filter {
	var r Rules
	for i := range 1000 {
		r.Addresses.Ignore = append(r.Addresses.Ignore,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18 + byte(i>>9&1), byte(i >> 1), byte(i&1) << 7}), 26),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i >> 8), byte(i)}), 49)) // half of a /48, so that none touch
	}
	r.Addresses.Accept = prefixes("192.0.2.0/24", "2001:db8:ffff::/48")
	return Compile(r).WithLocal([]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:fffe::1")})
}

var benchmarkFlows = map[string]*flow.Flow{
	"IPv4": newFlow(flow.UDP, "192.0.2.1", "203.0.113.9", ""),
	"IPv6": newFlow(flow.UDP, "2001:db8:ffff::1", "2001:db8:ffff::2", ""),
}

// spread returns flows like f to a thousand servers all over the tables, so that
// the processor cannot learn the way through them.
func spread(f *flow.Flow) []flow.Flow {
	random := rand.New(rand.NewPCG(1, 2))
	flows := make([]flow.Flow, 128)
	for i := range flows {
		flows[i] = *f
		server := &flows[i].Reply.Src
		if f.Orig.Family == flow.IPv6 {
			server[4], server[5], server[6] = byte(random.IntN(4)), byte(random.Uint32()), 0x80
		} else {
			copy(server[:], []byte{198, 18 + byte(random.IntN(2)), byte(random.Uint32()), 100})
		}
	}
	return flows
}

func TestMatchAllocatesNothing(t *testing.T) {
	filter := thousand()
	for name, f := range benchmarkFlows {
		if !filter.Match(f) {
			t.Errorf("%s: the flow does not go through all of the filter", name)
		}
		if n := testing.AllocsPerRun(1000, func() { filter.Match(f) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkMatch1000(b *testing.B) {
	filter := thousand()
	for name, f := range benchmarkFlows {
		b.Run(name, func(b *testing.B) {
			flows, i := spread(f), 0
			b.ReportAllocs()
			for b.Loop() {
				filter.Match(&flows[i%len(flows)])
				i++
			}
		})
	}
}

func BenchmarkMatchNoRules(b *testing.B) {
	filter, f := Compile(Rules{}), benchmarkFlows["IPv4"]
	b.ReportAllocs()
	for b.Loop() {
		filter.Match(f)
	}
}

// TestMatchExpect: helpers by name, whatever their port and case.
func TestMatchExpect(t *testing.T) {
	some := Compile(Rules{Expects: Expects{Helpers: []string{"ftp", "SIP"}}})
	all := Compile(Rules{Expects: Expects{All: true}})
	none := Compile(Rules{})
	for name, want := range map[string]bool{
		"ftp": true, "ftp-2121": true, "FTP": true, "sip": true, "sip-5070": true,
		"tftp": false, "ftps": false, "ft": false, "": false, "fifteen-letters": false,
	} {
		var x flow.Expect
		if x.Helper, _ = flow.MakeName(name); name != "" {
			x.Has |= flow.ExpectHasHelper
		}
		if got := some.MatchExpect(&x); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
		if !all.MatchExpect(&x) || none.MatchExpect(&x) {
			t.Errorf("%q: all %v, none %v", name, all.MatchExpect(&x), none.MatchExpect(&x))
		}
		if n := testing.AllocsPerRun(10, func() { some.MatchExpect(&x) }); n != 0 {
			t.Errorf("%q: %v allocations", name, n)
		}
	}
}

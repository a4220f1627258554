package daemon

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/channel"
	"syncd/internal/config"
	"syncd/internal/flow"
)

func TestLinkConfig(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		name string
		in   config.Link
		want channel.Config
	}{
		{"udp",
			config.Link{Type: config.LinkUDP, Interface: "eth2", Local: addr("203.0.113.1"), Peers: []netip.Addr{addr("203.0.113.2")}, Port: 3780, RecvBuffer: 1, SendBuffer: 2, TTL: 1},
			channel.Config{Type: channel.UDP, Interface: "eth2", Local: addr("203.0.113.1"), Peers: []netip.Addr{addr("203.0.113.2")}, Port: 3780, RecvBuffer: 1, SendBuffer: 2, TTL: 1}},
		{"multicast",
			config.Link{Type: config.LinkMulticast, Interface: "eth3", Group: addr("ff05::50"), Port: 3781, TTL: 3},
			channel.Config{Type: channel.Multicast, Interface: "eth3", Group: addr("ff05::50"), Port: 3781, TTL: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := linkConfig(&tt.in)
			if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCompileFilter(t *testing.T) {
	host := []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}
	tuple := func(proto uint8, src byte) *flow.Flow {
		f := testFlow(int(src), flow.TCPEstablished)
		f.Orig.Proto, f.Orig.Src[3] = proto, src
		f.Reply, _ = f.Orig.Inverse()
		return &f
	}
	for _, tt := range []struct {
		name   string
		change func(*config.Filter)
		f      *flow.Flow
		want   bool
	}{
		{"by default", nil, tuple(flow.TCP, 7), true},
		{"of this host", nil, tuple(flow.TCP, 1), false}, // the address, not its network
		{"of this host, wanted", func(f *config.Filter) { f.Local = true }, tuple(flow.TCP, 1), true},
		{"protocol accepted", func(f *config.Filter) { f.Protocols.Accept = []uint8{flow.TCP} }, tuple(flow.TCP, 7), true},
		{"protocol not accepted", func(f *config.Filter) { f.Protocols.Accept = []uint8{flow.TCP} }, tuple(flow.UDP, 7), false},
		{"protocol ignored", func(f *config.Filter) { f.Protocols.Ignore = []uint8{flow.TCP} }, tuple(flow.TCP, 7), false},
		{"address ignored", func(f *config.Filter) { f.Addresses.Ignore = host }, tuple(flow.TCP, 7), false},
		{"address not accepted", func(f *config.Filter) { f.Addresses.Accept = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }, tuple(flow.TCP, 7), false},
		{"state ignored", func(f *config.Filter) { f.TCPStates.Ignore = []uint8{flow.TCPEstablished} }, tuple(flow.TCP, 7), false},
		{"state accepted", func(f *config.Filter) { f.TCPStates.Accept = []uint8{flow.TCPEstablished} }, tuple(flow.TCP, 7), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config.Default()
			if tt.change != nil {
				tt.change(&cfg.Filter)
			}
			if got := compileFilter(cfg, host).Match(tt.f); got != tt.want {
				t.Errorf("match: %v, want %v", got, tt.want)
			}
		})
	}
}

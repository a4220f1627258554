package channel

import (
	"net/netip"
	"strings"
	"testing"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func udpConfig() Config {
	return Config{
		Type:      UDP,
		Interface: "eth2",
		Local:     addr("192.0.2.1"),
		Peers:     []netip.Addr{addr("192.0.2.2")},
		Port:      3780,
	}
}

func multicastConfig() Config {
	return Config{
		Type:      Multicast,
		Interface: "eth2",
		Local:     addr("192.0.2.1"),
		Group:     addr("239.255.0.50"),
		Port:      3780,
	}
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		want  string // part of the message; empty: no error
		start func() Config
		edit  func(*Config)
	}{
		{"", udpConfig, func(*Config) {}},
		{"", multicastConfig, func(*Config) {}},
		{"no interface given", udpConfig, func(c *Config) { c.Interface = "" }},
		{"longer than 15", udpConfig, func(c *Config) { c.Interface = "sixteen-octets--" }},
		{"no port given", udpConfig, func(c *Config) { c.Port = 0 }},
		{"negative socket buffer", udpConfig, func(c *Config) { c.RecvBuffer = -1 }},
		{"negative socket buffer", udpConfig, func(c *Config) { c.SendBuffer = -1 }},
		{"TTL 256", multicastConfig, func(c *Config) { c.TTL = 256 }},
		{"unknown link type 0", udpConfig, func(c *Config) { c.Type = 0 }},
		{"unknown link type 9", udpConfig, func(c *Config) { c.Type = 9 }},
		{"has no group", udpConfig, func(c *Config) { c.Group = addr("239.255.0.50") }},
		{"no local address given", udpConfig, func(c *Config) { c.Local = netip.Addr{} }},
		{"no peers given", udpConfig, func(c *Config) { c.Peers = nil }},
		{"local address 0.0.0.0 is not", udpConfig, func(c *Config) { c.Local = addr("0.0.0.0") }},
		{"peer 239.255.0.50 is not", udpConfig, func(c *Config) { c.Peers[0] = addr("239.255.0.50") }},
		{"peer 255.255.255.255 is not", udpConfig, func(c *Config) { c.Peers[0] = addr("255.255.255.255") }},
		{"not of the family", udpConfig, func(c *Config) { c.Peers[0] = addr("2001:db8::2") }},
		{"is the local address", udpConfig, func(c *Config) { c.Peers[0] = addr("::ffff:192.0.2.1") }},
		{"given twice", udpConfig, func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) }},
		{"is on eth3, not on eth2", udpConfig, func(c *Config) { c.Local, c.Peers[0] = addr("fe80::1%eth3"), addr("fe80::2") }},
		{"", udpConfig, func(c *Config) { c.Local, c.Peers[0] = addr("fe80::1%eth2"), addr("fe80::2") }},
		{"no group given", multicastConfig, func(c *Config) { c.Group = netip.Addr{} }},
		{"not a multicast address", multicastConfig, func(c *Config) { c.Group = addr("192.0.2.50") }},
		{"never leaves this node", multicastConfig, func(c *Config) { c.Group, c.Local = addr("ff11::50"), netip.Addr{} }},
		{"an IPv4 group needs one", multicastConfig, func(c *Config) { c.Local = netip.Addr{} }},
		{"", multicastConfig, func(c *Config) { c.Group, c.Local = addr("ff12::50"), netip.Addr{} }},
		{"different families", multicastConfig, func(c *Config) { c.Group = addr("ff12::50") }},
		{"not of the family", multicastConfig, func(c *Config) { c.Peers = []netip.Addr{addr("fe80::2")} }},
	} {
		cfg := tt.start()
		tt.edit(&cfg)
		_, err := cfg.normal()
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", cfg, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("error %v, want one with %q", err, tt.want)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	cfg, err := Config{
		Type:      UDP,
		Interface: "eth2",
		Local:     addr("fe80::1"),
		Peers:     []netip.Addr{addr("fe80::2"), addr("2001:db8::2")},
		Port:      3780,
	}.normal()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.RecvBuffer != 4<<20 || cfg.SendBuffer != 4<<20 || cfg.TTL != 1 {
		t.Errorf("defaults %+v", cfg)
	}
	if cfg.Local != addr("fe80::1%eth2") || cfg.Peers[0] != addr("fe80::2%eth2") || cfg.Peers[1] != addr("2001:db8::2") {
		t.Errorf("zones: local %v, peers %v", cfg.Local, cfg.Peers)
	}
}

func TestTypeText(t *testing.T) {
	for _, typ := range []Type{UDP, Multicast} {
		text, err := typ.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Type
		if err := back.UnmarshalText(text); err != nil || back != typ || string(text) != typ.String() {
			t.Errorf("%v: text %q, back %v, %v", typ, text, back, err)
		}
	}
	var typ Type
	for _, text := range []string{"", "UDP", "carrier pigeon"} {
		if err := typ.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	if _, err := Type(0).MarshalText(); err == nil {
		t.Error("the zero Type has a text")
	}
}

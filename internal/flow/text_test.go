package flow

import (
	"net/netip"
	"strings"
	"testing"
)

func addr(s string) (a [16]byte) {
	copy(a[:], netip.MustParseAddr(s).AsSlice())
	return a
}

// mirror sets the reply tuple of f to the inverse of its original one.
func mirror(f *Flow) *Flow {
	f.Reply, _ = f.Orig.Inverse()
	f.Has |= HasReply
	return f
}

func tcpFlow() *Flow {
	return mirror(&Flow{
		Orig: Tuple{Src: addr("198.51.100.2"), Dst: addr("203.0.113.2"), SrcPort: 40000, DstPort: 80, Family: IPv4, Proto: TCP},
		Has:  HasStatus | HasTimeout | HasMark | HasTCP, Status: StatusSeenReply | StatusAssured | StatusConfirmed,
		Timeout: 300, Mark: 9, TCPState: TCPEstablished,
	})
}

func icmpFlow() *Flow {
	return mirror(&Flow{
		Orig: Tuple{Src: addr("2001:db8::1"), Dst: addr("2001:db8::2"), SrcPort: 77, DstPort: 128 << 8, Family: IPv6, Proto: ICMPv6},
		Has:  HasStatus, Status: StatusConfirmed,
	})
}

// fullFlow has every attribute but those of SCTP's state.
func fullFlow() *Flow {
	f := tcpFlow()
	f.Has = (HasEventTime<<1 - 1) &^ HasSCTP
	f.Master = Tuple{Src: addr("198.51.100.2"), Dst: addr("203.0.113.2"), SrcPort: 30000, DstPort: 21, Family: IPv4, Proto: TCP, Zone: 5}
	f.ID, f.Use = 4294967295, 1
	f.TCPFlags, f.TCPWScale = [2]uint8{0x23, 0x23}, [2]uint8{7, 10}
	f.SCTPVtag = [2]uint32{1, 2}
	f.Labels[0], f.Labels[15] = 0b10, 0x80
	f.Helper, _ = MakeName("ftp")
	f.SeqAdj = [2]SeqAdj{{1, -2, 3}, {4, 5, -6}}
	f.Synproxy = Synproxy{1, 2, 3}
	copy(f.Secctx[:], "system_u:object_r:x")
	f.Counters = [2]Counter{{1, 60}, {2, 120}}
	f.Start, f.Stop, f.EventTime = 1700000000_000000001, 1700000001_000000000, 1700000002_500000000
	return f
}

func TestFlowText(t *testing.T) {
	zoned := tcpFlow()
	zoned.Orig.Zone = 5
	bothZones := tcpFlow()
	bothZones.Orig.Zone, bothZones.Reply.Zone = 7, 7
	offload := tcpFlow()
	offload.Status |= StatusOffload
	strange := tcpFlow()
	strange.TCPState = 200
	for _, tt := range []struct {
		f    *Flow
		want string
	}{
		{tcpFlow(), "tcp      6 300 ESTABLISHED src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 [ASSURED] mark=9"},
		{icmpFlow(), "icmpv6   58 src=2001:db8::1 dst=2001:db8::2 type=128 code=0 id=77 [UNREPLIED] " +
			"src=2001:db8::2 dst=2001:db8::1 type=129 code=0 id=77"},
		{zoned, "tcp      6 300 ESTABLISHED src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 zone-orig=5 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 [ASSURED] mark=9"},
		{bothZones, "tcp      6 300 ESTABLISHED src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 [ASSURED] mark=9 zone=7"},
		{offload, "tcp      6 300 ESTABLISHED src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 [OFFLOAD] mark=9"},
		{strange, "tcp      6 300 200 src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 [ASSURED] mark=9"},
		{fullFlow(), "tcp      6 300 ESTABLISHED src=198.51.100.2 dst=203.0.113.2 sport=40000 dport=80 packets=1 bytes=60 " +
			"src=203.0.113.2 dst=198.51.100.2 sport=80 dport=40000 packets=2 bytes=120 [ASSURED] mark=9 " +
			"secctx=system_u:object_r:x helper=ftp labels=1,127 use=1 id=4294967295 " +
			"[master tcp src=198.51.100.2 dst=203.0.113.2 sport=30000 dport=21 zone=5]"},
	} {
		if got := tt.f.String(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestTupleString(t *testing.T) {
	gre := Tuple{Src: addr("198.51.100.2"), Dst: addr("203.0.113.2"), SrcPort: 5, DstPort: 0x6a, Family: IPv4, Proto: GRE, Zone: 3}
	esp := Tuple{Src: addr("198.51.100.2"), Dst: addr("203.0.113.2"), Family: IPv4, Proto: 50}
	for want, tp := range map[string]Tuple{
		"gre src=198.51.100.2 dst=203.0.113.2 srckey=0x5 dstkey=0x6a zone=3": gre,
		"unknown-50 src=198.51.100.2 dst=203.0.113.2":                        esp,
	} {
		if got := tp.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// A name that a peer chose neither forges a field nor reaches the terminal raw.
func TestTextEscapesNames(t *testing.T) {
	f := tcpFlow()
	f.Has |= HasHelper
	f.Helper, _ = MakeName("a b\x1b[2J\n\xff\\")
	const want = ` helper=a\x20b\x1b[2J\x0a\xff\x5c`
	if got := f.String(); !strings.HasSuffix(got, want) {
		t.Errorf("%q does not end in %q", got, want)
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	f, buf := fullFlow(), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { f.AppendJSON(buf) }); n != 0 {
		t.Errorf("AppendJSON allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { f.AppendText(buf) }); n != 0 {
		t.Errorf("AppendText allocates %v times", n)
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	f, buf := tcpFlow(), make([]byte, 0, 4096)
	for b.Loop() {
		f.AppendJSON(buf)
	}
}

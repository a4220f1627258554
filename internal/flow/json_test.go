package flow

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawFlow draws any flow that the package's invariants allow: fields are zero
// unless their bit is set, and names are NUL-padded.
func drawFlow(t *rapid.T) *Flow {
	f := new(Flow)
	family := rapid.SampledFrom([]uint8{IPv4, IPv6}).Draw(t, "family")
	proto := rapid.SampledFrom([]uint8{ICMP, TCP, UDP, DCCP, GRE, ICMPv6, SCTP, UDPLite, 50}).Draw(t, "proto")
	f.Orig = drawTuple(t, family, proto)
	f.Reply = drawTuple(t, family, proto)
	f.Has = Attrs(rapid.Uint32Range(0, uint32(HasEventTime)<<1-1).Draw(t, "has"))
	if proto != TCP {
		f.Has &^= HasTCP
	}
	if proto != SCTP {
		f.Has &^= HasSCTP
	}
	u32 := func(has Attrs, p *uint32) {
		if f.Has&has != 0 {
			*p = rapid.Uint32().Draw(t, "u32")
		}
	}
	u64 := func(has Attrs, p *uint64) {
		if f.Has&has != 0 {
			*p = rapid.Uint64().Draw(t, "u64")
		}
	}
	u8 := func(has Attrs, p *uint8) {
		if f.Has&has != 0 {
			*p = rapid.Uint8().Draw(t, "u8")
		}
	}
	name := func(has Attrs, p []byte) {
		if f.Has&has != 0 {
			copy(p, rapid.SliceOfN(rapid.ByteRange(1, 255), 0, len(p)).Draw(t, "name"))
		}
	}
	if f.Has&HasMaster != 0 {
		f.Master = drawTuple(t, rapid.SampledFrom([]uint8{IPv4, IPv6}).Draw(t, "mfamily"), TCP)
	}
	u32(HasStatus, &f.Status)
	u32(HasTimeout, &f.Timeout)
	u32(HasMark, &f.Mark)
	u32(HasID, &f.ID)
	u32(HasUse, &f.Use)
	u8(HasTCP, &f.TCPState)
	u8(HasSCTP, &f.SCTPState)
	for dir := range 2 {
		u8(HasTCPFlags, &f.TCPFlags[dir])
		u8(HasTCPWScale, &f.TCPWScale[dir])
		u32(HasSCTPVtags, &f.SCTPVtag[dir])
		u64(HasCounters, &f.Counters[dir].Packets)
		u64(HasCounters, &f.Counters[dir].Bytes)
		if f.Has&(HasSeqAdjOrig<<dir) != 0 {
			f.SeqAdj[dir] = SeqAdj{rapid.Uint32().Draw(t, "pos"), rapid.Int32().Draw(t, "before"), rapid.Int32().Draw(t, "after")}
		}
	}
	if f.Has&HasLabels != 0 {
		copy(f.Labels[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "labels"))
	}
	name(HasHelper, f.Helper[:15])
	name(HasSecctx, f.Secctx[:])
	u32(HasSynproxy, &f.Synproxy.ISN)
	u32(HasSynproxy, &f.Synproxy.ITS)
	u32(HasSynproxy, &f.Synproxy.TSOff)
	u64(HasStart, &f.Start)
	u64(HasStop, &f.Stop)
	u64(HasEventTime, &f.EventTime)
	return f
}

func drawTuple(t *rapid.T, family, proto uint8) Tuple {
	tp := Tuple{Family: family, Proto: proto, Zone: rapid.SampledFrom([]uint16{0, 0, 7, 65535}).Draw(t, "zone")}
	n := tp.AddrLen()
	copy(tp.Src[:n], rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "src"))
	copy(tp.Dst[:n], rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "dst"))
	if tp.HasPorts() || tp.IsICMP() {
		tp.SrcPort = rapid.Uint16().Draw(t, "sport")
		tp.DstPort = rapid.Uint16().Draw(t, "dport")
	}
	return tp
}

// Any flow comes back from its JSON form as it was, and encoding/json agrees
// that the form is valid.
func TestJSONRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFlow(t)
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatalf("%v\n%s", err, f.AppendJSON(nil))
		}
		var got Flow
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if got != *f {
			t.Fatalf("%s\n%s", b, cmp.Diff(*f, got))
		}
	})
}

// Every member that is written is read: nothing falls under the rule that
// unknown members are ignored.
func TestJSONHasNoUnknownMember(t *testing.T) {
	f := fullFlow()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(f.AppendJSON(nil), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"family", "protocol", "protocol_number", "state", "original", "reply", "master", "status", "timeout_s",
		"mark", "id", "use", "tcp_flags", "tcp_window_scale", "sctp_vtags", "labels", "helper", "seqadj_original",
		"seqadj_reply", "synproxy", "secctx", "packets", "bytes", "start", "stop", "event_time",
	} {
		if _, ok := members[name]; !ok {
			t.Errorf("member %s is missing", name)
		}
		delete(members, name)
	}
	for name := range members {
		t.Errorf("member %s is not documented", name)
	}
}

func TestJSONForm(t *testing.T) {
	const want = `{"family":"ipv4","protocol":"tcp","protocol_number":6,"state":"ESTABLISHED",` +
		`"original":{"src":"198.51.100.2","dst":"203.0.113.2","sport":40000,"dport":80},` +
		`"reply":{"src":"203.0.113.2","dst":"198.51.100.2","sport":80,"dport":40000},` +
		`"status":["seen_reply","assured","confirmed"],"timeout_s":300,"mark":9}`
	f := tcpFlow()
	if got := string(f.AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestJSONRefuses(t *testing.T) {
	const tuple = `{"src":"198.51.100.2","dst":"203.0.113.2"}`
	for name, doc := range map[string]string{
		"no tuples":       `{"family":"ipv4","protocol_number":6}`,
		"no family":       `{"protocol_number":6,"original":` + tuple + `,"reply":` + tuple + `}`,
		"wrong family":    `{"family":"ipv6","protocol_number":6,"original":` + tuple + `,"reply":` + tuple + `}`,
		"no address":      `{"family":"ipv4","protocol_number":6,"original":{},"reply":` + tuple + `}`,
		"state of no one": `{"family":"ipv4","protocol_number":17,"state":"ESTABLISHED","original":` + tuple + `,"reply":` + tuple + `}`,
		"unknown state":   `{"family":"ipv4","protocol_number":6,"state":"AJAR","original":` + tuple + `,"reply":` + tuple + `}`,
		"unknown status":  `{"family":"ipv4","protocol_number":6,"status":["x"],"original":` + tuple + `,"reply":` + tuple + `}`,
		"label 128":       `{"family":"ipv4","protocol_number":6,"labels":[128],"original":` + tuple + `,"reply":` + tuple + `}`,
		"long helper":     `{"family":"ipv4","protocol_number":6,"helper":"0123456789abcdef","original":` + tuple + `,"reply":` + tuple + `}`,
		"NUL in helper":   `{"family":"ipv4","protocol_number":6,"helper":"a\u0000b","original":` + tuple + `,"reply":` + tuple + `}`,
		"not JSON":        `x`,
		"half a counter":  `{"family":"ipv4","protocol_number":6,"packets":[1,2],"original":` + tuple + `,"reply":` + tuple + `}`,
		"port out of range": `{"family":"ipv4","protocol_number":6,"original":{"src":"198.51.100.2","dst":"203.0.113.2","sport":65536},"reply":` +
			tuple + `}`,
	} {
		var f Flow
		if err := f.UnmarshalJSON([]byte(doc)); err == nil {
			t.Errorf("%s was accepted as %v", name, &f)
		} else if f != (Flow{}) {
			t.Errorf("%s: an error changed the flow", name)
		}
	}
}

func FuzzUnmarshalJSON(f *testing.F) {
	for _, fl := range []*Flow{tcpFlow(), icmpFlow(), fullFlow()} {
		f.Add(fl.AppendJSON(nil))
	}
	f.Add([]byte(`{"family":"ipv6","protocol_number":47,"original":{"src":"::","dst":"::1"},"reply":{"src":"::","dst":"::"}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var a, b Flow
		if a.UnmarshalJSON(doc) != nil {
			return
		}
		_ = a.String()
		again := a.AppendJSON(nil)
		if err := b.UnmarshalJSON(again); err != nil {
			t.Fatalf("own form refused: %v\n%s", err, again)
		}
		if a != b {
			t.Fatalf("%s\n%s", again, cmp.Diff(a, b))
		}
	})
}

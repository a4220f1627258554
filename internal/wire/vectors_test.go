package wire_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// A vector is one datagram of conntrackd 1.4.7 on Linux 6.18, as captured on the
// sync link, and what it means, in words.
type vector struct {
	Name, Title, Hex string
	Messages         []vectorMessage
}

type vectorMessage struct {
	Off, Version, Type, Flags, Len int
	FlagNames, TypeName            string
	Seq, From, To                  uint32
	Attrs                          []vectorAttr
}

type vectorAttr struct {
	Type, Len              int
	Name, Payload, Meaning string
}

func vectors(t testing.TB) []vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v []vector
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if len(v) != 48 {
		t.Fatalf("%d vectors, want 48", len(v))
	}
	return v
}

// octets reads hexadecimal digits with spaces anywhere.
func octets(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read returns all messages of a datagram. No datagram of n octets has more than
// n/8+1, the fault at its end included.
func read(b []byte, strict bool) []wire.Message { return readIn(wire.Conntrackd, b, strict) }

// readIn is read in a dialect. Hashes, and the handles of data messages, are left out.
func readIn(d wire.Dialect, b []byte, strict bool) (all []wire.Message) {
	r := wire.Reader{Strict: strict, Sync: d == wire.Syncd}
	r.Reset(b)
	for m := new(wire.Message); r.Next(m); m = new(wire.Message) {
		if m.Hash, m.Fixed = 0, 0; !m.IsCompact() {
			m.Handle = 0
		}
		all = append(all, *m)
		if len(all) > len(b)/wire.HeaderLen+1 {
			panic("the walk does not end")
		}
	}
	return all
}

func TestVectorsDecode(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			for _, strict := range []bool{false, true} {
				got := read(octets(t, v.Hex), strict)
				if len(got) != len(v.Messages) {
					t.Fatalf("%d messages, want %d", len(got), len(v.Messages))
				}
				for i := range got {
					if diff := cmp.Diff(v.Messages[i].message(t), got[i]); diff != "" {
						t.Errorf("message %d (-want +got):\n%s", i, diff)
					}
					if !got[i].HeaderValid() {
						t.Errorf("message %d: header refused", i)
					}
					if n := v.Messages[i].TypeName; got[i].Type.String() != n {
						t.Errorf("type %v, want %v", got[i].Type, n)
					}
					if n := v.Messages[i].FlagNames; got[i].Flags.String() != n {
						t.Errorf("flags %v, want %v", got[i].Flags, n)
					}
				}
			}
		})
	}
}

// message is what the words of the capture say.
func (v *vectorMessage) message(t *testing.T) wire.Message {
	m := wire.Message{
		Type: wire.Type(v.Type), Flags: wire.Flags(v.Flags), Seq: wire.Seq(v.Seq),
		From: wire.Seq(v.From), To: wire.Seq(v.To),
	}
	switch {
	case v.Type <= 2:
		m.Flow = v.flow(t)
	case v.Type <= 5:
		m.Expect = v.expect(t)
	}
	return m
}

func (v *vectorMessage) flow(t *testing.T) flow.Flow {
	var (
		f              flow.Flow
		snat, dnat     string
		spat, dpat     = -1, -1
		icmpType, code int
	)
	for _, a := range v.Attrs {
		w := words{t, a.Meaning}
		switch a.Name {
		case "IPV4", "IPV6":
			w.addrs(&f.Orig)
		case "L4PROTO":
			f.Orig.Proto = uint8(w.number())
		case "PORT":
			w.ports(&f.Orig)
		case "TCP_STATE":
			f.TCPState = uint8(w.number())
			f.Has |= flow.HasTCP
		case "STATUS":
			f.Status = uint32(w.number())
			f.Has |= flow.HasStatus
		case "TIMEOUT":
			f.Timeout = uint32(w.number())
			f.Has |= flow.HasTimeout
		case "MARK":
			f.Mark = uint32(w.number())
			f.Has |= flow.HasMark
		case "MASTER_IPV4", "MASTER_IPV6":
			w.addrs(&f.Master)
			f.Has |= flow.HasMaster
		case "MASTER_L4PROTO":
			f.Master.Proto = uint8(w.number())
		case "MASTER_PORT":
			w.ports(&f.Master)
		case "SNAT_IPV4", "SNAT_IPV6":
			snat = a.Meaning
		case "DNAT_IPV4", "DNAT_IPV6":
			dnat = a.Meaning
		case "SPAT_PORT":
			spat = w.number()
		case "DPAT_PORT":
			dpat = w.number()
		case "NAT_SEQ_ADJ":
			o, r := &f.SeqAdj[0], &f.SeqAdj[1]
			w.scan("orig(pos=%v before=%d after=%d) reply(pos=%v before=%d after=%d)",
				&o.Pos, &o.Before, &o.After, &r.Pos, &r.Before, &r.After)
			f.Has |= flow.HasSeqAdjOrig | flow.HasSeqAdjRepl
		case "SCTP_STATE":
			f.SCTPState = uint8(w.number())
			f.Has |= flow.HasSCTP
		case "SCTP_VTAG_ORIG":
			f.SCTPVtag[0] = uint32(w.number())
		case "SCTP_VTAG_REPL":
			f.SCTPVtag[1] = uint32(w.number())
			f.Has |= flow.HasSCTPVtags
		case "ICMP_TYPE":
			icmpType = w.number()
		case "ICMP_CODE":
			code = w.number()
		case "ICMP_ID":
			f.Orig.SrcPort = uint16(w.number())
		case "TCP_WSCALE_ORIG":
			f.TCPWScale[0] = uint8(w.number())
		case "TCP_WSCALE_REPL":
			f.TCPWScale[1] = uint8(w.number())
			f.Has |= flow.HasTCPWScale
		case "HELPER_NAME":
			copy(f.Helper[:], w.name())
			f.Has |= flow.HasHelper
		case "LABELS":
			list := strings.TrimPrefix(a.Meaning, "bits [")
			list, _, _ = strings.Cut(list, "]")
			for n := range strings.SplitSeq(list, ", ") {
				bit, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				f.Labels[bit/8] |= 1 << (bit % 8)
			}
			f.Has |= flow.HasLabels
		case "SYNPROXY":
			s := &f.Synproxy
			w.scan("its=%v isn=%v tsoff=%v", &s.ITS, &s.ISN, &s.TSOff)
			f.Has |= flow.HasSynproxy
		case "ZONE":
			f.Orig.Zone = uint16(w.number())
		default:
			t.Fatalf("attribute %s", a.Name)
		}
	}

	icmp := f.Orig.Proto == 1 || f.Orig.Proto == 58
	f.Reply = f.Orig
	f.Reply.Src, f.Reply.Dst = f.Orig.Dst, f.Orig.Src
	if icmp {
		answer, ok := map[int]int{8: 0, 128: 129}[icmpType]
		if !ok {
			t.Fatalf("ICMP type %d", icmpType)
		}
		f.Orig.DstPort = uint16(icmpType<<8 | code)
		f.Reply.DstPort = uint16(answer<<8 | code)
	} else {
		f.Reply.SrcPort, f.Reply.DstPort = f.Orig.DstPort, f.Orig.SrcPort
	}
	if snat != "" {
		setAddr(t, &f.Reply.Dst, snat)
		f.Has |= flow.HasReply
	}
	if dnat != "" {
		setAddr(t, &f.Reply.Src, dnat)
		f.Has |= flow.HasReply
	}
	if spat >= 0 && !icmp {
		f.Reply.DstPort = uint16(spat)
		f.Has |= flow.HasReply
	}
	if dpat >= 0 && !icmp {
		f.Reply.SrcPort = uint16(dpat)
		f.Has |= flow.HasReply
	}
	return f
}

func (v *vectorMessage) expect(t *testing.T) flow.Expect {
	var e flow.Expect
	tuples := map[string]*flow.Tuple{"MASTER": &e.Master, "EXPECT": &e.Tuple, "MASK": &e.Mask, "NAT": &e.NAT}
	for _, a := range v.Attrs {
		w := words{t, a.Meaning}
		if whose, what, ok := strings.Cut(a.Name, "_"); ok && tuples[whose] != nil {
			tuple := tuples[whose]
			switch what {
			case "IPV4", "IPV6":
				w.addrs(tuple)
				continue
			case "L4PROTO":
				tuple.Proto = uint8(w.number())
				continue
			case "PORT":
				w.ports(tuple)
				continue
			}
		}
		switch a.Name {
		case "TIMEOUT":
			e.Timeout = uint32(w.number())
			e.Has |= flow.ExpectHasTimeout
		case "FLAGS":
			e.Flags = uint32(w.number())
			e.Has |= flow.ExpectHasFlags
		case "CLASS":
			e.Class = uint32(w.number())
			e.Has |= flow.ExpectHasClass
		case "NAT_DIR":
			e.NATDir = uint32(w.number())
			e.Has |= flow.ExpectHasNAT
		case "HELPER_NAME":
			copy(e.Helper[:], w.name())
			e.Has |= flow.ExpectHasHelper
		case "FN":
			copy(e.Fn[:], w.name())
			e.Has |= flow.ExpectHasFn
		default:
			t.Fatalf("attribute %s", a.Name)
		}
	}
	return e
}

// words is the meaning of one attribute in words.
type words struct {
	t *testing.T
	s string
}

func (w words) scan(format string, into ...any) {
	w.t.Helper()
	if n, err := fmt.Sscanf(w.s, format, into...); n != len(into) || err != nil {
		w.t.Fatalf("%q: %v", w.s, err)
	}
}

func (w words) number() int {
	w.t.Helper()
	n, err := strconv.ParseUint(strings.Fields(w.s)[0], 0, 32)
	if err != nil {
		w.t.Fatal(err)
	}
	return int(n)
}

func (w words) name() string {
	name, ok := strings.CutSuffix(strings.TrimPrefix(w.s, "'"), `\x00'`)
	if !ok {
		w.t.Fatalf("%q has no NUL", w.s)
	}
	return name
}

func (w words) addrs(tuple *flow.Tuple) {
	src, dst, _ := strings.Cut(w.s, " > ")
	setAddr(w.t, &tuple.Src, src)
	setAddr(w.t, &tuple.Dst, dst)
	tuple.Family = flow.IPv4
	if strings.Contains(src, ":") {
		tuple.Family = flow.IPv6
	}
}

func (w words) ports(tuple *flow.Tuple) {
	w.scan("%d > %d", &tuple.SrcPort, &tuple.DstPort)
}

func setAddr(t *testing.T, dst *[16]byte, s string) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	*dst = [16]byte{}
	copy(dst[:], a.AsSlice())
}

// Where a conntrackd sends what we do not imitate, this is what we send for the
// flow that was meant, and why.
var deviations = map[string]struct {
	why     string
	edit    func(*flow.Flow) // from what the datagram says to what was meant
	instead func(b []byte) []byte
}{
	"icmp4-nat-box": {
		why:     "translated ports of zero mean nothing for ICMP",
		instead: func(b []byte) []byte { return cut(b, 76, 92) },
	},
	"icmp6-nat-box": {
		why:     "translated ports of zero mean nothing for ICMPv6",
		instead: func(b []byte) []byte { return cut(b, 92, 108) },
	},
	"dccp-stale-port": {
		why:     "the ports are those of the message before: the kernel knows none",
		edit:    func(f *flow.Flow) { f.Orig.SrcPort, f.Orig.DstPort, f.Reply.SrcPort, f.Reply.DstPort = 0, 0, 0, 0 },
		instead: func(b []byte) []byte { return cut(b, 36, 44) },
	},
	"udplite-noport": {
		why: "without ports all flows between two hosts are one",
		edit: func(f *flow.Flow) {
			f.Orig.SrcPort, f.Orig.DstPort, f.Reply.SrcPort, f.Reply.DstPort = 1011, 53, 53, 1011
		},
		instead: func(b []byte) []byte { return insert(b, 36, 0, 8, 0, 3, 0x03, 0xf3, 0, 53) },
	},
	"gre-nokey": {
		why: "without keys all flows between two hosts are one",
		edit: func(f *flow.Flow) {
			f.Orig.SrcPort, f.Orig.DstPort, f.Reply.SrcPort, f.Reply.DstPort = 0x10, 0x20, 0x20, 0x10
		},
		instead: func(b []byte) []byte { return insert(b, 36, 0, 8, 0, 3, 0, 0x10, 0, 0x20) },
	},
}

// cut and insert change the attributes of the first message, and its length.
func cut(b []byte, from, to int) []byte {
	b = append(bytes.Clone(b[:from]), b[to:]...)
	b[3] -= byte(to - from)
	return b
}

func insert(b []byte, at int, what ...byte) []byte {
	b = append(append(bytes.Clone(b[:at]), what...), b[at:]...)
	b[3] += byte(len(what))
	return b
}

func TestVectorsEncode(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			want := octets(t, v.Hex)
			d, deviates := deviations[v.Name]
			if deviates {
				want = d.instead(want)
			}
			var got []byte
			for i := range v.Messages {
				m := v.Messages[i].message(t)
				if d.edit != nil {
					d.edit(&m.Flow)
				}
				got = appendMessage(got, &m)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("sent\n% x\nwant\n% x", got, want)
			}
			if deviates && bytes.Equal(got, octets(t, v.Hex)) {
				t.Errorf("no deviation although %s", d.why)
			}
		})
	}
}

// TestDCCPPorts: with ports that are known, DCCP is like the others.
func TestDCCPPorts(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Name != "dccp-stale-port" {
			continue
		}
		m := v.Messages[0].message(t)
		if got := appendMessage(nil, &m); !bytes.Equal(got, octets(t, v.Hex)) {
			t.Errorf("sent % x", got)
		}
	}
}

// appendMessage sends what was read.
func appendMessage(b []byte, m *wire.Message) []byte { return appendIn(wire.Conntrackd, b, m) }

// appendIn is appendMessage in a dialect.
func appendIn(d wire.Dialect, b []byte, m *wire.Message) []byte {
	switch {
	case m.Type <= wire.CTDel:
		return wire.AppendFlow(b, d, m.Type, m.Flags, m.Seq, &m.Flow)
	case m.Type <= wire.ExpDel:
		return wire.AppendExpect(b, d, m.Type, m.Flags, m.Seq, &m.Expect)
	case m.Type == wire.CTState:
		return wire.AppendCTState(b, m.Seq, m.Handle, m.Base, m.State)
	case m.Type == wire.CTEnd:
		return wire.AppendCTEnd(b, m.Seq, m.Handle, m.Base)
	}
	return wire.AppendControl(b, m.Flags, m.Seq, m.From, m.To)
}

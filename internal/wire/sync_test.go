package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/big"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"syncd/internal/flow"
	"syncd/internal/wire"
)

// document returns docs/protocol.md with its line breaks as spaces.
func document(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// readSync returns the messages of a datagram of the syncd dialect.
func readSync(b []byte) (all []wire.Message) {
	r := wire.Reader{Sync: true, Seed: 7}
	r.Reset(b)
	for m := new(wire.Message); r.Next(m); m = new(wire.Message) {
		all = append(all, *m)
	}
	return all
}

// appendSync appends s as the message that it came from.
func appendSync(b []byte, seq wire.Seq, s *wire.Sync) []byte {
	switch s.Kind {
	case wire.Hello:
		name, _, _ := bytes.Cut(s.Name[:], []byte{0})
		return wire.AppendHello(b, seq, string(name), s.Says, s.Features, s.Greets[:s.N])
	case wire.Status:
		return wire.AppendStatus(b, seq, s.To, s.Last, s.Bulk, s.Mask, s.Ranges[:s.N])
	case wire.Void:
		return wire.AppendVoid(b, seq, s.To, s.Lost, s.Ranges[:s.N])
	case wire.BulkBegin, wire.BulkEnd:
		return wire.AppendBulk(b, s.Kind, seq, s.Bulk, s.Mask)
	}
	return wire.AppendDigest(b, seq, s.Count, s.Bulk, &s.Sums)
}

var kinds = []wire.Kind{wire.Hello, wire.Status, wire.Void, wire.BulkBegin, wire.BulkEnd, wire.Digest}

// syncs draws a control message with the fields that its kind has.
func syncs() *rapid.Generator[wire.Sync] {
	return rapid.Custom(func(t *rapid.T) (s wire.Sync) {
		u32 := func(what string) uint32 { return rapid.Uint32().Draw(t, what) }
		u64 := func(what string) uint64 { return rapid.Uint64().Draw(t, what) }
		octets := func(b []byte) {
			copy(b, rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, "octets"))
		}
		s.Kind = rapid.SampledFrom(kinds).Draw(t, "kind")
		switch s.Kind {
		case wire.Hello:
			copy(s.Name[:], rapid.SliceOfN(rapid.ByteRange(1, 255), 1, wire.MaxName).Draw(t, "name"))
			s.Says.Role = wire.Role(rapid.IntRange(0, 3).Draw(t, "role"))
			s.Says.Edition = rapid.Byte().Draw(t, "edition")
			s.Features = u32("features")
			s.N = rapid.IntRange(0, wire.MaxGreets).Draw(t, "entries")
			for i := range s.N {
				s.Greets[i].Session = u64("session")
				octets(s.Greets[i].Challenge[:])
				octets(s.Greets[i].Echo[:])
				s.Greets[i].Heard = rapid.Byte().Draw(t, "heard")
			}
		case wire.Status:
			s.To, s.Last, s.Bulk = u64("to"), wire.Seq(u32("last")), u32("bulk")
		case wire.Void:
			s.To, s.Lost = u64("to"), rapid.Bool().Draw(t, "lost")
		case wire.BulkBegin, wire.BulkEnd:
			s.Bulk = u32("bulk")
		case wire.Digest:
			s.Count, s.Bulk = u32("count"), u32("bulk")
			for i := range s.Sums {
				s.Sums[i] = u64("sum")
			}
		}
		if s.Kind == wire.Status || s.Kind == wire.Void {
			s.N = rapid.IntRange(0, wire.MaxRanges).Draw(t, "ranges")
			for i := range s.N {
				from := wire.Seq(u32("from"))
				s.Ranges[i] = wire.Range{From: from, To: from + wire.Seq(rapid.Uint32Max(1<<31-1).Draw(t, "length"))}
			}
		}
		if s.Kind != wire.Hello && s.Kind != wire.Void && s.Kind != wire.Digest {
			s.Mask = wire.Mask{u64("mask"), u64("mask")}
		}
		return s
	})
}

func TestRoundTripSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sync := syncs().Draw(t, "sync")
		want := wire.Message{Type: wire.SyncCtl, Seq: wire.Seq(rapid.Uint32().Draw(t, "seq")), Sync: &sync}
		want.Flags = wire.Flags(want.Sync.Kind)
		b := appendSync([]byte("before"), want.Seq, want.Sync)[6:]
		if len(b)%4 != 0 || len(b) > wire.MaxSyncLen {
			t.Fatalf("%d octets", len(b))
		}
		got := readSync(b)
		if len(got) != 1 {
			t.Fatalf("%d messages", len(got))
		}
		if diff := cmp.Diff(want, got[0]); diff != "" {
			t.Fatalf("% x (-want +got):\n%s", b, diff)
		}
	})
}

// diagrams are the messages of docs/protocol.md, each field with octets of its own,
// and what the page says of the layout.
var diagrams = []struct {
	quote string
	sync  wire.Sync
	want  string
}{
	{
		"HELLO 8: name length (1) 9: role (1) 10: number of entries (1), at most 32 11: edition (1) " +
			"12: name, padded with zeros to a multiple of 4, then for each entry 40 octets: session (8) challenge (16) echo (16) " +
			"then for each entry the edition heard (1), padded with zeros to a multiple of 4 then features (4)",
		wire.Sync{Kind: wire.Hello, Name: [64]byte{'f', 'w', '-', 'a', '1'}, Says: wire.Standing{Role: wire.RoleBackup, Edition: 0x51}, Features: 0x71727374, N: 1, Greets: [32]wire.Greet{{
			Session: 0x0102030405060708, Challenge: [16]byte{0: 0xc0, 15: 0xcf}, Echo: [16]byte{0: 0xe0, 15: 0xef}, Heard: 0x61,
		}}},
		"1b01 0044 0a0b0c0d  05 02 01 51  66772d6131 000000  0102030405060708 c00000000000000000000000000000cf e00000000000000000000000000000ef  61 000000 71727374",
	},
	{
		"STATUS 8: to session (8) 16: last number (4) 20: last bulk update seen (4), 0 for none " +
			"24: wanted buckets (16) 40: number of ranges (1), at most 32 41: 0 (3) 44: ranges: from (4), to (4)",
		wire.Sync{Kind: wire.Status, To: 0x0102030405060708, Last: 0x11121314, Bulk: 0x21222324, Mask: wire.Mask{}.With(0).With(9).With(127),
			N: 2, Ranges: [32]wire.Range{{From: 0x31323334, To: 0x41424344}, {From: 0xffffffff, To: 0}}},
		"1b02 003c 0a0b0c0d  0102030405060708 11121314 21222324 80000000000000000000000000000201 02 000000 3132333441424344 ffffffff00000000",
	},
	{
		"VOID 8: to session (8) 16: flags (1): 1 = lost 17: number of ranges (1), at most 32 18: 0 (2) 20: ranges: from (4), to (4)",
		wire.Sync{Kind: wire.Void, To: 0x0102030405060708, Lost: true, N: 1, Ranges: [32]wire.Range{{From: 0x31323334, To: 0x41424344}}},
		"1b03 001c 0a0b0c0d  0102030405060708 01 01 0000 3132333441424344",
	},
	{
		"BULK_BEGIN, BULK_END 8: id (4) 12: buckets (16)",
		wire.Sync{Kind: wire.BulkBegin, Bulk: 0x21222324, Mask: wire.Mask{1, 2}},
		"1b04 001c 0a0b0c0d  21222324 00000000000000020000000000000001",
	},
	{
		"BULK_BEGIN, BULK_END 8: id (4) 12: buckets (16)",
		wire.Sync{Kind: wire.BulkEnd, Bulk: 0x21222324, Mask: wire.Mask{1, 2}},
		"1b05 001c 0a0b0c0d  21222324 00000000000000020000000000000001",
	},
	{
		"DIGEST 8: number of flows (4) 12: id of the bulk update under way, or 0 (4) 16: 128 sums (8 each)",
		wire.Sync{Kind: wire.Digest, Count: 0x31323334, Bulk: 0x21222324, Sums: [128]uint64{0: 0x0102030405060708, 127: 0xf1f2f3f4f5f6f7f8}},
		"1b06 0410 0a0b0c0d  31323334 21222324 0102030405060708 " + strings.Repeat("00", 126*8) + " f1f2f3f4f5f6f7f8",
	},
}

func TestDiagrams(t *testing.T) {
	page := document(t)
	for _, d := range diagrams {
		if !strings.Contains(page, d.quote) {
			t.Errorf("%v: the page does not say %q", d.sync.Kind, d.quote)
		}
		want := octets(t, d.want)
		if got := appendSync(nil, 0x0a0b0c0d, &d.sync); !bytes.Equal(got, want) {
			t.Errorf("%v: appended\n% x, want\n% x", d.sync.Kind, got, want)
		}
		got := readSync(want)
		if len(got) != 1 || got[0].Seq != 0x0a0b0c0d || *got[0].Sync != d.sync {
			t.Errorf("%v: read %+v", d.sync.Kind, got)
		}
	}
	// "in which bucket b is the bit of value 2^b"
	for b := range uint8(wire.Buckets) {
		msg := wire.AppendBulk(nil, wire.BulkBegin, 1, 1, wire.Mask{}.With(b))
		if got := new(big.Int).SetBytes(msg[12:]); got.Cmp(new(big.Int).Lsh(big.NewInt(1), uint(b))) != 0 {
			t.Errorf("bucket %d is sent as %x", b, got)
		}
	}
}

// TestMalformedSync: what must be refused, and what must not.
func TestMalformedSync(t *testing.T) {
	hello := func(n, entries byte, rest int) []byte {
		return message(11, 1, 1, []byte{n, 0, entries, 0}, bytes.Repeat([]byte{'x'}, rest))
	}
	status := func(n byte, ranges ...uint32) []byte {
		b := make([]byte, 36)
		b[32] = n
		for _, r := range ranges {
			b = binary.BigEndian.AppendUint32(b, r)
		}
		return message(11, 2, 1, b)
	}
	void := func(n byte, ranges ...uint32) []byte {
		b := make([]byte, 12)
		b[9] = n
		for _, r := range ranges {
			b = binary.BigEndian.AppendUint32(b, r)
		}
		return message(11, 3, 1, b)
	}
	const ok, bad = wire.FaultNone, wire.FaultPayload
	type row struct {
		name string
		b    []byte
		want wire.Fault
	}
	rows := []row{
		{"HELLO without body", message(11, 1, 1), bad},
		{"HELLO with a short body", message(11, 1, 1, []byte{1, 0, 0}), bad},
		{"HELLO without name", hello(0, 0, 4), bad},
		{"HELLO, name of 1", hello(1, 0, 4), ok},
		{"HELLO, name of 1, not padded", hello(1, 0, 1), bad},
		{"HELLO, name of 63", hello(63, 0, 64), ok},
		{"HELLO, name of 64", hello(64, 0, 64), bad},
		{"HELLO, name of 255", hello(255, 0, 256), bad},
		{"HELLO, name cut", hello(5, 0, 4), bad},
		{"HELLO, zero in the name", message(11, 1, 1, []byte{3, 0, 0, 0, 'a', 0, 'b', 0}), bad},
		{"HELLO with an entry", hello(4, 1, 44), ok},
		{"HELLO, entry cut", hello(4, 1, 43), bad},
		{"HELLO with 32 entries", hello(4, 32, 4+32*40), ok},
		{"HELLO with 33 entries", hello(4, 33, 4+33*40), bad},
		{"HELLO with more behind", hello(4, 1, 60), ok},
		{"STATUS without body", message(11, 2, 1), bad},
		{"STATUS, cut", message(11, 2, 1, make([]byte, 35)), bad},
		{"STATUS", status(0), ok},
		{"STATUS with a range", status(1, 5, 5), ok},
		{"STATUS, range missing", status(1), bad},
		{"STATUS, range cut", status(2, 5, 5, 6), bad},
		{"STATUS, range across the wrap", status(1, 1<<32-1, 3), ok},
		{"STATUS, range backwards", status(1, 6, 5), bad},
		{"STATUS, range of 2^31", status(1, 6, 5+1<<31), ok},
		{"STATUS, range of 2^31+1", status(1, 6, 6+1<<31), bad},
		{"STATUS with 32 ranges", status(32, make([]uint32, 64)...), ok},
		{"STATUS with 33 ranges", status(33, make([]uint32, 66)...), bad},
		{"STATUS with more behind", status(0, 1, 2, 3), ok},
		{"VOID without body", message(11, 3, 1), bad},
		{"VOID, cut", message(11, 3, 1, make([]byte, 11)), bad},
		{"VOID", void(0), ok},
		{"VOID, range missing", void(1, 5), bad},
		{"VOID, range backwards", void(2, 5, 5, 9, 8), bad},
		{"VOID with 32 ranges", void(32, make([]uint32, 64)...), ok},
		{"VOID with 33 ranges", void(33, make([]uint32, 66)...), bad},
		{"BULK_BEGIN, cut", message(11, 4, 1, make([]byte, 19)), bad},
		{"BULK_BEGIN", message(11, 4, 1, make([]byte, 20)), ok},
		{"BULK_END, cut", message(11, 5, 1, make([]byte, 19)), bad},
		{"BULK_END with more behind", message(11, 5, 1, make([]byte, 21)), ok},
		{"DIGEST, cut", message(11, 6, 1, make([]byte, 8+1023)), bad},
		{"DIGEST", message(11, 6, 1, make([]byte, 8+1024)), ok},
		{"kind 0", message(11, 0, 1), ok},
		{"kind 7", message(11, 7, 1, []byte{1, 2, 3}), ok},
		{"kind 255", message(11, 255, 1), ok},
		{"type 14", message(14, 1, 1), wire.FaultHeader},
		{"another version", withVersion(status(0), 2), wire.FaultVersion},
	}
	for _, r := range rows {
		// What comes behind must be read whatever became of it.
		got := readSync(join(r.b, good(2)))
		if len(got) != 2 || got[0].Fault != r.want || got[0].Seq != 1 || got[1].Fault != ok || got[1].Seq != 2 {
			t.Errorf("%s: %d messages, the first %v, want %v", r.name, len(got), got[0].Fault, r.want)
		}
		if got := read(r.b, false); got[0].Type == wire.SyncCtl && got[0].Fault == ok {
			t.Errorf("%s: accepted in the dialect of conntrackd", r.name)
		}
	}
	for k := range 256 {
		if known := k >= 1 && k <= 6; (wire.Kind(k).String() != "?") != known {
			t.Errorf("kind %d is %q", k, wire.Kind(k))
		}
		if stream := k >= 4 && k <= 6; wire.Kind(k).InStream() != stream {
			t.Errorf("kind %d in the stream: %v", k, !stream)
		}
	}
}

// TestAppendBeyond: what has no room is left out, never sent broken.
func TestAppendBeyond(t *testing.T) {
	got := readSync(wire.AppendHello(nil, 1, strings.Repeat("n", 80), wire.Standing{}, 0, make([]wire.Greet, 40)))
	if len(got) != 1 || got[0].Fault != 0 || got[0].Sync.N != 32 || string(got[0].Sync.Name[:]) != strings.Repeat("n", 63)+"\x00" {
		t.Errorf("HELLO: %+v", got)
	}
	got = readSync(wire.AppendStatus(nil, 1, 1, 1, 1, wire.AllBuckets, make([]wire.Range, 40)))
	if len(got) != 1 || got[0].Fault != 0 || got[0].Sync.N != 32 {
		t.Errorf("STATUS: %+v", got)
	}
	got = readSync(wire.AppendVoid(nil, 1, 1, false, make([]wire.Range, 40)))
	if len(got) != 1 || got[0].Fault != 0 || got[0].Sync.N != 32 {
		t.Errorf("VOID: %+v", got)
	}
}

// FuzzSync: any octets at all are read without a panic, and a control message that
// is accepted can be sent on and arrives as it was.
// roleless is a HELLO with one entry of a node that knows of no roles, roleful the same
// with a role that nobody knows, and octets behind what is known.
const (
	roleless = "1b01 0038 00000001  01 00 01 00  41000000 0102030405060708 c0000000000000000000000000000000 e0000000000000000000000000000000"
	roleful  = "1b01 0044 00000001  01 04 01 09  41000000 0102030405060708 c0000000000000000000000000000000 e0000000000000000000000000000000 07000000 fffffffd ffffffff"

	// featureless is of a node that knows of no features.
	featureless = "1b01 003c 00000001  01 04 01 09  41000000 0102030405060708 c0000000000000000000000000000000 e0000000000000000000000000000000 07000000"
)

func TestOldHello(t *testing.T) {
	for _, c := range []struct {
		hex      string
		says     wire.Standing
		heard    uint8
		features uint32
	}{{roleless, wire.Standing{}, 0, 0}, {featureless, wire.Standing{Edition: 9}, 7, 0}, {roleful, wire.Standing{Edition: 9}, 7, 0xfffffffd}} {
		var m wire.Message
		m.Sync = new(wire.Sync)
		m.Sync.Greets[0].Heard, m.Sync.Features = 5, 9 // of the message before
		r := wire.Reader{Sync: true}
		r.Reset(octets(t, c.hex))
		if !r.Next(&m) || m.Fault != wire.FaultNone || m.Sync.N != 1 || m.Sync.Says != c.says || m.Sync.Greets[0].Heard != c.heard || m.Sync.Features != c.features {
			t.Errorf("%+v, heard %d", m.Sync.Says, m.Sync.Greets[0].Heard)
		}
	}
}

func FuzzSync(f *testing.F) {
	for _, d := range diagrams {
		f.Add(octets(f, d.want))
	}
	f.Add(join(good(1), octets(f, diagrams[1].want), message(11, 9, 3)))
	f.Add(octets(f, roleless))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range readSync(b) {
			if m.Fault != wire.FaultNone || m.Type != wire.SyncCtl || m.Sync.Kind.String() == "?" {
				continue
			}
			got := readSync(appendSync(nil, m.Seq, m.Sync))
			if len(got) != 1 || !reflect.DeepEqual(got[0].Sync, m.Sync) {
				t.Fatalf("(-want +got):\n%s", cmp.Diff(m.Sync, got[0].Sync))
			}
		}
	})
}

func TestAllocsSync(t *testing.T) {
	var m wire.Message
	r := wire.Reader{Sync: true, Seed: 7}
	buf := make([]byte, 0, 2048)
	for _, d := range diagrams {
		b := octets(t, d.want)
		if n := testing.AllocsPerRun(100, func() {
			r.Reset(b)
			for r.Next(&m) {
			}
			buf = appendSync(buf[:0], 1, m.Sync)
		}); n > 1 || n > 0 && d.sync.Kind != wire.Hello { // the name becomes a string
			t.Errorf("%v: %v allocations", d.sync.Kind, n)
		}
	}
	b := fullMessage()
	if n := testing.AllocsPerRun(100, func() {
		wire.FlowHash(1, b)
		wire.Bucket(&m.Flow.Orig)
		r.Reset(b)
		r.Next(&m)
	}); n != 0 {
		t.Errorf("hashes: %v allocations", n)
	}
}

// hashOf is the function of docs/protocol.md, (7.1), with big integers: as the page
// has it, not as wire has it.
func hashOf(seed uint64, b []byte) uint64 {
	number := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 16); return n }
	k0, k1, k2 := number("a0761d6478bd642f"), number("e7037ed1a0b428db"), number("8ebc6af09c88c6e3")
	modulus := new(big.Int).Lsh(big.NewInt(1), 64)
	fold := func(x, y *big.Int) *big.Int {
		product := new(big.Int).Mul(x, y)
		high, low := new(big.Int).DivMod(product, modulus, new(big.Int))
		return new(big.Int).Xor(high, low)
	}
	xor := func(x *big.Int, y uint64) *big.Int { return new(big.Int).Xor(x, new(big.Int).SetUint64(y)) }
	h := xor(k0, seed)
	for at := 0; at < len(b); at += 8 {
		word := uint64(0)
		for i := 0; i < 8 && at+i < len(b); i++ {
			word += uint64(b[at+i]) << (8 * i)
		}
		h = fold(xor(h, word), k1)
		h = new(big.Int).Mod(h.Add(h, k2), modulus)
	}
	return fold(xor(h, uint64(len(b))), k0).Uint64()
}

func TestHash(t *testing.T) {
	page := document(t)
	for _, v := range []struct {
		name string
		seed uint64
		b    []byte
		want uint64
	}{
		{"`Hash(0, \"\")`", 0, nil, 0xf47cdffd9671363d},
		{"`Hash(1, \"syncd\")`", 1, []byte("syncd"), 0xffeedcdc22689ecf},
		{"`Hash(0x0123456789abcdef, 00 01 02 ... 0f)`", 0x0123456789abcdef, octets(t, "000102030405060708090a0b0c0d0e0f"), 0xa935fedbd60f8061},
	} {
		if line := fmt.Sprintf("| %s | `%016x` |", v.name, v.want); !strings.Contains(page, line) {
			t.Errorf("the page does not have %s", line)
		}
		if got := wire.Hash(v.seed, v.b); got != v.want {
			t.Errorf("%s is %x, want %x", v.name, got, v.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		seed, b := rapid.Uint64().Draw(t, "seed"), rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "octets")
		if got, want := wire.Hash(seed, b), hashOf(seed, b); got != want {
			t.Fatalf("%x, want %x", got, want)
		}
	})
}

// TestFlowHash: "A data message of a flow without STATE at its end is hashed like that".
func TestFlowHash(t *testing.T) {
	withTimeout := func(seconds byte, more ...[]byte) []byte {
		return message(0, 0, 1, attrIPv4, attrTCP, attr(6, 0, 0, 0, seconds), attrPort, join(more...))
	}
	b := withTimeout(1)
	before, after := join(attrIPv4, attrTCP), attrPort
	if got, want := wire.FlowHash(9, b), hashOf(hashOf(9, before), after); got != want {
		t.Errorf("with TIMEOUT: %x, want %x", got, want)
	}
	if got, want := wire.FlowHash(9, message(1, 0, 5, attrIPv4, attrTCP)), hashOf(hashOf(9, before), nil); got != want {
		t.Errorf("without TIMEOUT: %x, want %x", got, want)
	}
	if wire.FlowHash(9, b) != wire.FlowHash(9, withTimeout(200)) {
		t.Error("it depends on TIMEOUT")
	}
	other := bytes.Clone(b)
	other[0] |= 1 // CT_UPD
	binary.BigEndian.PutUint32(other[4:], 99)
	if wire.FlowHash(9, b) != wire.FlowHash(9, other) {
		t.Error("it depends on the type or the number")
	}
	if wire.FlowHash(9, b) == wire.FlowHash(8, b) {
		t.Error("it does not depend on the seed")
	}

	// Every octet of every attribute but TIMEOUT counts, and so does the presence of all.
	full := fullMessage()
	want, seen := wire.FlowHash(9, full), map[uint64]int{}
	for at := 8; at < len(full); {
		n := int(binary.BigEndian.Uint16(full[at:]))
		timeout := binary.BigEndian.Uint16(full[at+2:]) == 6
		end := at + (n+3)&^3
		for i := at + 4; i < at+n; i++ {
			changed := bytes.Clone(full)
			changed[i] ^= 1
			got := wire.FlowHash(9, changed)
			if timeout != (got == want) {
				t.Errorf("octet %d of attribute %x: %v", i-at, full[at:at+4], got == want)
			}
			if j, ok := seen[got]; ok && !timeout {
				t.Errorf("octets %d and %d give the same", i, j)
			}
			seen[got] = i
		}
		without := join(full[:at], full[end:])
		if wire.FlowHash(9, without) == want {
			t.Errorf("without attribute %x it is the same", full[at:at+4])
		}
		at = end
	}

	// The Reader says the same of what it accepts, and nothing it refuses panics.
	r := wire.Reader{Sync: true, Seed: 9}
	var m wire.Message
	r.Reset(full)
	if r.Next(&m); m.Fault != 0 || m.Hash != want {
		t.Errorf("the Reader has %x, want %x: %v", m.Hash, want, m.Fault)
	}
	rapid.Check(t, func(t *rapid.T) {
		wire.FlowHash(1, rapid.SliceOf(rapid.Byte()).Draw(t, "octets"))
	})
}

// TestExpectHash is the same for expectations, whose TIMEOUT has another number.
func TestExpectHash(t *testing.T) {
	x := flow.Expect{Has: 1<<16 - 1, Timeout: 100}
	for i, tuple := range []*flow.Tuple{&x.Master, &x.Tuple, &x.Mask, &x.NAT} {
		*tuple = flow.Tuple{Family: flow.IPv6, Proto: flow.TCP, Src: [16]byte{15: byte(i)}, SrcPort: 7}
	}
	x.Tuple.Zone = 5
	x.Helper, _ = flow.MakeName("a-long-helper")
	x.Fn[0] = 'f'
	msg := wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 1, &x)
	want := wire.FlowHash(9, msg)
	if r := (&wire.Reader{Sync: true, Seed: 9}); true {
		var m wire.Message
		if r.Reset(msg); !r.Next(&m) || m.Hash != want {
			t.Errorf("a reader says %x, want %x", m.Hash, want)
		}
	}
	x.Timeout = 7
	if wire.FlowHash(9, wire.AppendExpect(nil, wire.Syncd, wire.ExpUpd, 0, 2, &x)) != want {
		t.Error("it depends on TIMEOUT, type or number")
	}
	for at := 8; at < len(msg); {
		n := int(binary.BigEndian.Uint16(msg[at:]))
		for i := at + 4; i < at+n; i++ {
			changed := bytes.Clone(msg)
			changed[i] ^= 1
			if timeout := binary.BigEndian.Uint16(msg[at+2:]) == 12; timeout != (wire.FlowHash(9, changed) == want) {
				t.Errorf("octet %d of attribute %x", i-at, msg[at:at+4])
			}
		}
		at += (n + 3) &^ 3
	}
}

func TestBucket(t *testing.T) {
	page := document(t)
	v6 := func(last byte) [16]byte { return [16]byte{0x20, 1, 0x0d, 0xb8, 15: last} }
	a, b := [16]byte{192, 0, 2, 1}, [16]byte{198, 51, 100, 7}
	for _, v := range []struct {
		name  string
		tuple flow.Tuple
		want  uint8
	}{
		{"TCP 192.0.2.1:40000 > 198.51.100.7:443", flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: a, Dst: b, SrcPort: 40000, DstPort: 443}, 91},
		{"UDP [2001:db8::1]:5353 > [2001:db8::2]:53 in zone 7", flow.Tuple{Family: flow.IPv6, Proto: flow.UDP, Src: v6(1), Dst: v6(2), SrcPort: 5353, DstPort: 53, Zone: 7}, 92},
		{"ICMP echo request 192.0.2.1 > 198.51.100.7, identifier 0x1234", flow.Tuple{Family: flow.IPv4, Proto: flow.ICMP, Src: a, Dst: b, SrcPort: 0x1234, DstPort: 0x0800}, 19},
	} {
		if line := fmt.Sprintf("| bucket of %s | `%d` |", v.name, v.want); !strings.Contains(page, line) {
			t.Errorf("the page does not have %s", line)
		}
		if got := wire.Bucket(&v.tuple); got != v.want {
			t.Errorf("%s: %d, want %d", v.name, got, v.want)
		}
		// Whoever receives the flow must find it in the same bucket.
		f := flow.Flow{Orig: v.tuple}
		f.Reply, _ = f.Orig.Inverse()
		m := readSync(wire.AppendFlow(nil, wire.Syncd, wire.CTNew, 0, 1, &f))[0]
		if got := wire.Bucket(&m.Flow.Orig); got != v.want {
			t.Errorf("%s, received: %d, want %d", v.name, got, v.want)
		}
	}

	// An expectation is in another one than the flow that it expects, as a rule.
	x := flow.Expect{Tuple: flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: a, Dst: b, DstPort: 2001}}
	x.Master = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: a, Dst: b, SrcPort: 40000, DstPort: 21}
	key := x.Key()
	if line := fmt.Sprintf("| bucket of the expectation of TCP 192.0.2.1:0 > 198.51.100.7:2001 | `%d` |", wire.Bucket(&key)); !strings.Contains(page, line) {
		t.Errorf("the page does not have %s", line)
	}
	x.Tuple.Zone = 7
	inZone := x.Key()
	m := readSync(wire.AppendExpect(nil, wire.Syncd, wire.ExpNew, 0, 1, &x))[0]
	if got := m.Expect.Key(); got != inZone || wire.Bucket(&got) == wire.Bucket(&key) || wire.Bucket(&x.Tuple) == wire.Bucket(&got) {
		t.Errorf("received: %v", got)
	}

	// 128,000 flows of one service: every bucket gets 1000, give or take six times
	// the standard deviation.
	var n [wire.Buckets]int
	for i := range 128000 {
		tuple := flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{198, 18, byte(i >> 8)}, Dst: b, SrcPort: uint16(i), DstPort: 443}
		tuple.Src[3] = byte(i >> 16)
		n[wire.Bucket(&tuple)]++
	}
	for i, n := range n {
		if n < 810 || n > 1190 {
			t.Errorf("%d flows of 128000 in bucket %d", n, i)
		}
	}
}

func TestMask(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOf(rapid.Uint8Max(wire.Buckets - 1))
		a, b := list.Draw(t, "a"), list.Draw(t, "b")
		set := func(l []uint8) (m wire.Mask, in [wire.Buckets]bool) {
			for _, x := range l {
				m, in[x] = m.With(x), true
			}
			return m, in
		}
		ma, ia := set(a)
		mb, ib := set(b)
		for x := range uint8(wire.Buckets) {
			if ma.Has(x) != ia[x] || ma.Or(mb).Has(x) != (ia[x] || ib[x]) || ma.And(mb).Has(x) != (ia[x] && ib[x]) || ma.Less(mb).Has(x) != (ia[x] && !ib[x]) || !wire.AllBuckets.Has(x) {
				t.Fatalf("bucket %d of %v and %v", x, a, b)
			}
		}
		if ma.Empty() != (len(a) == 0) {
			t.Fatalf("%v empty: %v", a, ma.Empty())
		}
	})
}

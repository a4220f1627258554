package flow

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// ftpExpect is an active data connection through source translation.
func ftpExpect() *Expect {
	tuple := func(src, dst [4]byte, sport, dport uint16) (t Tuple) {
		t = Tuple{Family: IPv4, Proto: TCP, SrcPort: sport, DstPort: dport}
		copy(t.Src[:], src[:])
		copy(t.Dst[:], dst[:])
		return t
	}
	client, server, router, all := [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 1}, [4]byte{203, 0, 113, 9}, [4]byte{255, 255, 255, 255}
	x := &Expect{
		Master: tuple(client, server, 1003, 21), Tuple: tuple(server, router, 0, 2003), Mask: tuple(all, all, 0, 65535),
		NAT: tuple(client, [4]byte{}, 2003, 0), NATDir: DirReply, Timeout: 300, ID: 7,
		Has: ExpectHasTimeout | ExpectHasFlags | ExpectHasClass | ExpectHasNAT | ExpectHasHelper | ExpectHasFn | ExpectHasID,
	}
	x.Helper, _ = MakeName("ftp")
	copy(x.Fn[:], "nat-follow-master")
	return x
}

func TestExpectText(t *testing.T) {
	x := ftpExpect()
	const plain = `proto=6 src=198.51.100.1 dst=203.0.113.9 sport=0 dport=2003 mask-src=255.255.255.255 mask-dst=255.255.255.255 ` +
		`sport=0 dport=65535 master-src=192.0.2.1 master-dst=198.51.100.1 sport=1003 dport=21`
	want := "300 " + plain + ` class=0 helper=ftp [nat reply src=192.0.2.1 dst=0.0.0.0 sport=2003 dport=0] [function nat-follow-master]`
	if got := x.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	x.Flags, x.Tuple.Zone = ExpectFlagPermanent|ExpectFlagInactive, 7
	x.Has = ExpectHasFlags | ExpectHasHelper
	copy(x.Helper[:], "f\nx")
	if got, want := x.String(), plain+` PERMANENT,INACTIVE helper=f\x0ax [zone 7]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	key := x.Key()
	if got, want := key.String(), "expected tcp src=198.51.100.1 dst=203.0.113.9 sport=0 dport=2003 zone=7"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !key.IsExpectKey() || x.Tuple.IsExpectKey() || key == x.Tuple {
		t.Error("a key is not told from a tuple")
	}
}

func TestSameExpect(t *testing.T) {
	x, y := ftpExpect(), ftpExpect()
	y.ID, y.Timeout = 9, 1
	y.Has &^= ExpectHasID | ExpectHasTimeout
	if !SameExpect(x, y) {
		t.Error("timeout and id count")
	}
	for i, change := range []func(){
		func() { y.Class++ }, func() { y.NATDir-- }, func() { y.Fn[3]++ }, func() { y.Mask.SrcPort++ },
		func() { y.Master.DstPort++ }, func() { y.NAT.Src[3]++ }, func() { y.Flags++ }, func() { y.Has &^= ExpectHasFn },
	} {
		if y = ftpExpect(); true {
			change()
		}
		if SameExpect(x, y) {
			t.Errorf("change %d does not count", i)
		}
	}
}

func drawExpect(t *rapid.T) *Expect {
	family := rapid.SampledFrom([]uint8{IPv4, IPv6}).Draw(t, "family")
	proto := rapid.SampledFrom([]uint8{TCP, UDP, GRE, 50}).Draw(t, "proto")
	x := &Expect{
		Tuple: drawTuple(t, family, proto), Master: drawTuple(t, family, TCP),
		Has: ExpectAttrs(rapid.Uint16Range(0, uint16(ExpectHasID)<<1-1).Draw(t, "has")),
	}
	if rapid.Bool().Draw(t, "mask") {
		x.Mask = drawTuple(t, family, proto)
	}
	u32 := func(has ExpectAttrs, p *uint32) {
		if x.Has&has != 0 {
			*p = rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(0, 7)).Draw(t, "u32")
		}
	}
	name := func(has ExpectAttrs, p []byte) {
		if x.Has&has != 0 {
			copy(p, rapid.SliceOfN(rapid.ByteRange(1, 255), 0, len(p)).Draw(t, "name"))
		}
	}
	u32(ExpectHasTimeout, &x.Timeout)
	u32(ExpectHasFlags, &x.Flags)
	u32(ExpectHasClass, &x.Class)
	u32(ExpectHasID, &x.ID)
	if x.Has&ExpectHasNAT != 0 {
		x.NAT = drawTuple(t, family, proto)
		u32(ExpectHasNAT, &x.NATDir)
	}
	name(ExpectHasHelper, x.Helper[:15])
	name(ExpectHasFn, x.Fn[:27])
	return x
}

func TestExpectJSONRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := drawExpect(t)
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatalf("%v\n%s", err, x.AppendJSON(nil))
		}
		var got Expect
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if got != *x {
			t.Fatalf("%s\n%s", b, cmp.Diff(*x, got))
		}
		_ = x.String()
	})
}

func TestExpectJSONForm(t *testing.T) {
	const kind = `"family":"ipv4","protocol":"tcp","protocol_number":6,`
	const want = `{` + kind + `"expected":{"src":"198.51.100.1","dst":"203.0.113.9","sport":0,"dport":2003},` +
		`"mask":{` + kind + `"src":"255.255.255.255","dst":"255.255.255.255","sport":0,"dport":65535},` +
		`"master":{` + kind + `"src":"192.0.2.1","dst":"198.51.100.1","sport":1003,"dport":21},` +
		`"timeout_s":300,"flags":[],"class":0,` +
		`"nat":{"direction":"reply",` + kind + `"src":"192.0.2.1","dst":"0.0.0.0","sport":2003,"dport":0},` +
		`"id":7,"helper":"ftp","function":"nat-follow-master"}`
	if got := string(ftpExpect().AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestExpectJSONRefuses(t *testing.T) {
	const ends = `"src":"198.51.100.2","dst":"203.0.113.2"`
	const kind = `"family":"ipv4","protocol_number":6,`
	const good = `{` + kind + `"expected":{` + ends + `},"master":{` + kind + ends + `}`
	var x Expect
	if err := x.UnmarshalJSON([]byte(good + `}`)); err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"nothing":           `{}`,
		"no master":         `{` + kind + `"expected":{` + ends + `}}`,
		"no kind of master": `{` + kind + `"expected":{` + ends + `},"master":{` + ends + `}}`,
		"bad mask":          good + `,"mask":{}}`,
		"bad nat":           good + `,"nat":{"direction":"reply"}}`,
		"bad direction":     good + `,"nat":{"direction":"up",` + kind + ends + `}}`,
		"bad flag":          good + `,"flags":["x"]}`,
		"long helper":       good + `,"helper":"0123456789abcdef"}`,
		"long function":     good + `,"function":"0123456789abcdef0123456789abcdef"}`,
		"not JSON":          `x`,
	} {
		var x Expect
		if err := x.UnmarshalJSON([]byte(doc)); err == nil {
			t.Errorf("%s was accepted as %v", name, &x)
		} else if x != (Expect{}) {
			t.Errorf("%s: an error changed the expectation", name)
		}
	}
}

func FuzzUnmarshalExpectJSON(f *testing.F) {
	f.Add(ftpExpect().AppendJSON(nil))
	f.Add([]byte(`{"family":"ipv6","protocol_number":47,"expected":{"src":"::","dst":"::1"},"master":{"family":"ipv6","src":"::","dst":"::"},"flags":["0x10"]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var a, b Expect
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

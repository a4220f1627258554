package wire

import (
	"bytes"
	"encoding/binary"
	"testing"

	"syncd/internal/flow"
)

// layoutFlows are flows of all kinds that have a layout, and some that have none.
func layoutFlows() (with, without []flow.Flow) {
	f := flow.Flow{Status: flow.StatusConfirmed | flow.StatusSrcNATDone | flow.StatusDstNATDone, Timeout: 60, Mark: 7, TCPState: flow.TCPEstablished,
		TCPFlags: [2]uint8{3, 7}, TCPWScale: [2]uint8{7, 14}}
	f.Orig = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 7}, SrcPort: 40000, DstPort: 443}
	f.Has = flow.HasStatus | flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale
	add := func(edit func(f *flow.Flow)) {
		g := f
		edit(&g)
		reply, _ := g.Orig.Inverse()
		if g.Has&flow.HasReply == 0 {
			g.Reply = reply
		}
		with = append(with, g)
	}
	nat := func(edit func(r *flow.Tuple)) {
		add(func(f *flow.Flow) {
			f.Reply, _ = f.Orig.Inverse()
			f.Has |= flow.HasReply
			edit(&f.Reply)
		})
	}
	add(func(*flow.Flow) {})
	add(func(f *flow.Flow) { f.Has |= flow.HasMark })
	add(func(f *flow.Flow) { f.Has &^= flow.HasTimeout })
	add(func(f *flow.Flow) { f.Has &^= flow.HasTCPWScale | flow.HasTCPFlags })
	add(func(f *flow.Flow) {
		f.Orig.Family, f.Orig.Src, f.Orig.Dst = flow.IPv6, [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}, [16]byte{0x20, 1, 0xd, 0xb8, 15: 2}
	})
	add(func(f *flow.Flow) {
		f.Orig.Proto = flow.UDP
		f.Has &= flow.HasStatus | flow.HasTimeout
	})
	nat(func(r *flow.Tuple) { r.Dst, r.DstPort = [16]byte{203, 0, 113, 1}, 1025 })
	nat(func(r *flow.Tuple) { r.Src, r.SrcPort = [16]byte{203, 0, 113, 2}, 8080 })
	nat(func(r *flow.Tuple) { r.DstPort = 1026 })
	for _, edit := range []func(f *flow.Flow){
		func(f *flow.Flow) { f.Orig.Proto, f.Orig.DstPort = flow.ICMP, 8<<8 },
		func(f *flow.Flow) { f.Orig.Zone = 5 },
		func(f *flow.Flow) { f.Master, f.Has = f.Orig, f.Has|flow.HasMaster },
		func(f *flow.Flow) { f.Has |= flow.HasLabels },
	} {
		g := f
		edit(&g)
		g.Reply, _ = g.Orig.Inverse()
		without = append(without, g)
	}
	return with, without
}

// learned returns a reader that has seen the messages of b some times.
func learned(d Dialect, b []byte) *Reader {
	r := &Reader{Sync: d == Syncd, Seed: 9}
	var m Message
	for range 24 { // it learns from every eighth
		for r.Reset(b); r.Next(&m); {
		}
	}
	return r
}

// sameAsWalk reads c with r, and each of its messages with a reader that knows no layout,
// and compares.
func sameAsWalk(t *testing.T, r *Reader, c []byte) {
	t.Helper()
	var got Message
	var want Message
	all, was := c, bytes.Clone(c)
	for r.Reset(c); r.Next(&got); c = r.b {
		fresh := Reader{Sync: r.Sync, Strict: r.Strict, Seed: r.Seed}
		fresh.Reset(c)
		if !fresh.Next(&want) {
			t.Fatal("no message")
		}
		if want.Fault != got.Fault || want.Type != got.Type || want.Seq != got.Seq {
			t.Fatalf("% x: %v %v, walked %v %v", c, got.Type, got.Fault, want.Type, want.Fault)
		}
		if got.Fault == FaultNone && got.Type <= CTDel && (got.Flow != want.Flow || got.Hash != want.Hash || got.Fixed != want.Fixed || got.Handle != want.Handle) {
			t.Fatalf("% x:\n%+v %x, walked\n%+v %x", c, got.Flow, got.Hash, want.Flow, want.Hash)
		}
	}
	if !bytes.Equal(all, was) {
		t.Fatal("the datagram was written to")
	}
}

// TestLayouts: what is frequent is known after it was seen a few times, what is not has
// no layout, and every single bit of a message means to a layout what it means to the walk.
func TestLayouts(t *testing.T) {
	with, without := layoutFlows()
	for _, d := range []Dialect{Conntrackd, Syncd} {
		for i, f := range append(with, without...) {
			msg := AppendFlow(nil, d, CTUpd, 0, 77, &f)
			SetHandle(msg, 0x01020304)
			r := learned(d, msg)
			if l := r.layouts.find(msg[HeaderLen:], d); (l != nil) != (i < len(with)) {
				t.Errorf("dialect %d, flow %d: layout %v", d, i, l != nil)
			}
			sameAsWalk(t, r, msg)
			for bit := range 8 * len(msg) {
				c := bytes.Clone(msg)
				c[bit/8] ^= 1 << (bit % 8)
				sameAsWalk(t, r, c)
			}
			// The length of the last attribute may leave out its padding.
			for cut := range 12 {
				c := bytes.Clone(msg[:len(msg)-cut])
				binary.BigEndian.PutUint16(c[2:], uint16(len(c)))
				sameAsWalk(t, r, c)
			}
			// Without one of its attributes, and with one twice.
			for at := HeaderLen; at < len(msg); {
				next := at + (int(binary.BigEndian.Uint16(msg[at:]))+3)&^3
				for _, from := range []int{next, at} {
					c := append(bytes.Clone(msg[:at]), msg[from:]...)
					if from == at {
						c = append(bytes.Clone(msg[:next]), msg[at:]...)
						c[next+4] ^= 1
					}
					binary.BigEndian.PutUint16(c[2:], uint16(len(c)))
					sameAsWalk(t, learned(d, c), c)
				}
				at = next
			}
			// With what does not count beside STATE, and STATE not at the end.
			for _, more := range [][]byte{append32(nil, ctMark, 5), append32(nil, ctStatus, 5), append32(nil, ctTimeout, 5), append8(nil, ctTCPState, 5), append16(nil, ctTCPFlags+ownToWire, 0x0303)} {
				for _, at := range []int{HeaderLen, len(msg)} {
					c := append(append(bytes.Clone(msg[:at]), more...), msg[at:]...)
					binary.BigEndian.PutUint16(c[2:], uint16(len(c)))
					sameAsWalk(t, learned(d, c), c)
				}
			}
			// Another dialect has other attributes.
			r.Sync = !r.Sync
			sameAsWalk(t, r, msg)
		}
	}
}

// All that is frequent is known at the same time.
func TestLayoutsTogether(t *testing.T) {
	with, _ := layoutFlows()
	for _, d := range []Dialect{Conntrackd, Syncd} {
		var all []byte
		for i := range with {
			all = AppendFlow(all, d, CTUpd, 0, Seq(i), &with[i])
		}
		r := learned(d, all)
		sameAsWalk(t, r, all)
		known := 0
		for i := range with {
			if r.layouts.find(AppendFlow(nil, d, CTUpd, 0, 0, &with[i])[HeaderLen:], d) != nil {
				known++
			}
		}
		if known < len(with)-1 { // three of one length share two places
			t.Errorf("dialect %d: %d of %d are known", d, known, len(with))
		}
	}
}

// FuzzLayouts: whatever a reader has learned, it reads what a reader does that walks.
func FuzzLayouts(f *testing.F) {
	with, without := layoutFlows()
	for _, d := range []Dialect{Conntrackd, Syncd} {
		for i, fl := range append(with, without...) {
			other := with[(i+1)%len(with)]
			b := AppendFlow(nil, d, CTUpd, 0, 1, &fl)
			f.Add(d == Syncd, b, b)
			f.Add(d == Syncd, b, AppendFlow(nil, d, CTNew, 0, 2, &other))
		}
	}
	f.Fuzz(func(t *testing.T, sync bool, b, c []byte) {
		d := Conntrackd
		if sync {
			d = Syncd
		}
		r := learned(d, b)
		sameAsWalk(t, r, b)
		sameAsWalk(t, r, c)
		sameAsWalk(t, r, b)
	})
}

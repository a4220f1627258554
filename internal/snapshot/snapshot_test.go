package snapshot

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"syncd/internal/flow"
)

// sample is a snapshot of two owners with flows and expectations, and what is in it.
func sample(t testing.TB) (file []byte, want []string) {
	tuple := func(i int) flow.Tuple {
		return flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, byte(i)}, Dst: [16]byte{198, 51, 100, 1}, SrcPort: uint16(i), DstPort: 21, Zone: 3}
	}
	var b bytes.Buffer
	w := NewWriter(&b, time.Unix(1000, 7))
	for _, owner := range []string{"fw1", "fw2"} {
		if err := w.Owner(owner); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			f := flow.Flow{Orig: tuple(i), Has: flow.HasStatus | flow.HasMark, Mark: uint32(i)}
			f.Reply, _ = f.Orig.Inverse()
			x := flow.Expect{Master: tuple(i), Tuple: tuple(i), NAT: tuple(9), Class: uint32(i), NATDir: 1, Timeout: 20}
			x.Has = flow.ExpectHasClass | flow.ExpectHasNAT | flow.ExpectHasFlags | flow.ExpectHasHelper | flow.ExpectHasTimeout
			x.NAT.Zone = 0
			x.Helper, _ = flow.MakeName("a-long-helper")
			age := time.Duration(i) * time.Minute
			if err := errors.Join(w.Flow(&f, age), w.Expect(&x, age)); err != nil {
				t.Fatal(err)
			}
			want = append(want, owner+" "+age.String()+" "+f.String(), owner+" "+age.String()+" "+x.String())
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), want
}

func read(file []byte) (got []string, written time.Time, err error) {
	owner := ""
	written, err = Read(bytes.NewReader(file), func(name string) error { owner = name; return nil }, func(e *Entry) error {
		text := e.Flow.String()
		if e.IsExpect {
			text = e.Expect.String()
		}
		got = append(got, owner+" "+e.Age.String()+" "+text)
		return nil
	})
	return got, written, err
}

// TestRoundTrip: what is written is read, of both kinds and in order.
func TestRoundTrip(t *testing.T) {
	file, want := sample(t)
	got, written, err := read(file)
	if err != nil || !written.Equal(time.Unix(1000, 7)) {
		t.Errorf("written %v, %v", written, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestDamage: every cut and every changed octet is found.
func TestDamage(t *testing.T) {
	file, _ := sample(t)
	for i := range file {
		if _, _, err := read(file[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at octet %d: %v", i, err)
		}
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if _, _, err := read(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("octet %d changed: %v", i, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	file, _ := sample(f)
	f.Add(file)
	f.Add(file[:60])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := read(b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%v", err)
		}
	})
}

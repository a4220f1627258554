package seal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"testing"
)

// testdata/vectors.json was written by a third implementation, on top of Python's
// cryptography package. Changing it means changing the format.
type vector struct {
	Name       string `json:"name"`
	Key        octets `json:"key"`
	Session    string `json:"session"` // hex
	Counter    string `json:"counter"` // decimal
	TrafficKey octets `json:"traffic_key"`
	Plaintext  octets `json:"plaintext"`
	Datagram   octets `json:"datagram"`
}

type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

func TestVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) < 5 {
		t.Fatalf("%d vectors, %v", len(vectors), err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			session, err1 := strconv.ParseUint(v.Session, 16, 64)
			counter, err2 := strconv.ParseUint(v.Counter, 10, 64)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			datagram, trafficKey := straightSeal(v.Key, session, counter, v.Plaintext)
			if !bytes.Equal(trafficKey, v.TrafficKey) {
				t.Errorf("the oracle's traffic key is %x, want %x", trafficKey, v.TrafficKey)
			}
			if !bytes.Equal(datagram, v.Datagram) {
				t.Errorf("the oracle seals %x, want %x", datagram, v.Datagram)
			}

			k := Key{[32]byte(v.Key)}
			b := newBox(t, session, k)
			b.counter = counter - 1
			if got := b.Seal(nil, v.Plaintext); !bytes.Equal(got, v.Datagram) {
				t.Errorf("Seal: %x, want %x", got, v.Datagram)
			}
			plain, p, fault := newBox(t, session+1, k).Open(nil, v.Datagram, 1)
			if fault != FaultNone || !bytes.Equal(plain, v.Plaintext) {
				t.Fatalf("Open: %x, %v; want %x", plain, fault, v.Plaintext)
			}
			if p.Session() != session {
				t.Errorf("session %x, want %x", p.Session(), session)
			}
		})
	}
}

// Any length and counter: the product and the oracle agree.
func TestSealAgreesWithTheOracle(t *testing.T) {
	k := testKey(1)
	b := newBox(t, 77, k)
	plain := make([]byte, 100)
	for i := range plain {
		plain[i] = byte(i * 7)
	}
	for n := range len(plain) {
		want, _ := straightSeal(k.secret[:], 77, uint64(n+1), plain[:n])
		if got := b.Seal(nil, plain[:n]); !bytes.Equal(got, want) {
			t.Fatalf("%d octets: %x, want %x", n, got, want)
		}
	}
}

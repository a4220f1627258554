package wire_test

import (
	"bytes"
	"testing"

	"syncd/internal/wire"
)

func TestStrings(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{wire.CTDel.String(), "CT_DEL"},
		{wire.ExpUpd.String(), "EXP_UPD"},
		{wire.Ctl.String(), "CTL"},
		{wire.Type(7).String(), "type 7"},
		{wire.Flags(0).String(), "0"},
		{(wire.FlagHello | wire.FlagAck).String(), "ACK|HELLO"},
		{wire.Flags(0xff).String(), "0x1|RESYNC|NACK|ACK|ALIVE|HELLO|HELLO_BACK|0x80"},
		{wire.FaultNone.String(), "none"},
		{wire.FaultType.String(), "bad message type"},
		{wire.Fault(99).String(), "fault 99"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestAppendControl(t *testing.T) {
	for _, c := range []struct {
		f    wire.Flags
		want string
	}{
		{wire.FlagAlive | wire.FlagHello, "1a300008 01020304"},
		{wire.FlagAck | wire.FlagHelloBack, "1a480010 01020304 00000005 fffffffe"},
		{wire.FlagNack, "1a040010 01020304 00000005 fffffffe"},
		{wire.FlagResync, "1a020010 01020304 00000005 fffffffe"},
	} {
		got := wire.AppendControl([]byte("before"), c.f, 0x01020304, 5, 0xfffffffe)
		want := append([]byte("before"), octets(t, c.want)...)
		if !bytes.Equal(got, want) {
			t.Errorf("%v: % x, want % x", c.f, got, want)
		}
	}
}

func TestHeaderValid(t *testing.T) {
	for _, c := range []struct {
		name     string
		typ      wire.Type
		f        wire.Flags
		from, to wire.Seq
		want     bool
	}{
		{name: "data", typ: wire.CTNew, want: true},
		{name: "data, helloing", typ: wire.ExpDel, f: wire.FlagHello | wire.FlagHelloBack, want: true},
		{name: "data with ACK", typ: wire.CTUpd, f: wire.FlagAck},
		{name: "data with ALIVE", typ: wire.CTUpd, f: wire.FlagAlive},
		{name: "data with RESYNC", typ: wire.CTUpd, f: wire.FlagResync},
		{name: "data with 0x01", typ: wire.CTUpd, f: 0x01},
		{name: "data with 0x80", typ: wire.CTUpd, f: 0x80},
		{name: "unused type", typ: 6},
		{name: "unused type with ALIVE", typ: 9, f: wire.FlagAlive},
		{name: "type 15", typ: 15},
		{name: "ALIVE", typ: wire.Ctl, f: wire.FlagAlive, want: true},
		{name: "RESYNC", typ: wire.Ctl, f: wire.FlagResync, from: 9, to: 1, want: true},
		{name: "control without flag", typ: wire.Ctl},
		{name: "control with HELLO alone", typ: wire.Ctl, f: wire.FlagHello},
		{name: "control with 0x80", typ: wire.Ctl, f: 0x80},
		{name: "ACK of one", typ: wire.Ctl, f: wire.FlagAck, from: 7, to: 7, want: true},
		{name: "ACK across the wrap", typ: wire.Ctl, f: wire.FlagAck, from: 1<<32 - 2, to: 3, want: true},
		{name: "ACK backwards", typ: wire.Ctl, f: wire.FlagAck, from: 8, to: 7},
		{name: "NACK", typ: wire.Ctl, f: wire.FlagNack, from: 7, to: 8, want: true},
		{name: "NACK backwards", typ: wire.Ctl, f: wire.FlagNack, from: 8, to: 7},
		{name: "ACK backwards with ALIVE", typ: wire.Ctl, f: wire.FlagAck | wire.FlagAlive, from: 8, to: 7},
	} {
		m := wire.Message{Type: c.typ, Flags: c.f, From: c.from, To: c.to}
		if got := m.HeaderValid(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

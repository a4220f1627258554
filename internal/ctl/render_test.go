package ctl

import (
	"bytes"
	"testing"
)

func TestRender(t *testing.T) {
	for name, render := range map[string]func(b *bytes.Buffer) error{
		"status.txt": func(b *bytes.Buffer) error { return RenderStatus(b, sampleStatus()) },
		"fresh.txt": func(b *bytes.Buffer) error {
			return RenderStatus(b, &Status{Node: "fw1", Role: RoleUnknown, InSync: true, Ready: true, Kernel: KernelStatus{Events: -1}})
		},
		"stats.txt":  func(b *bytes.Buffer) error { return RenderStats(b, sampleStats()) },
		"commit.txt": func(b *bytes.Buffer) error { return RenderCommit(b, sampleCommit()) },
		"role.txt":   func(b *bytes.Buffer) error { return RenderRole(b, sampleRole()) },
		"entry.txt": func(b *bytes.Buffer) error {
			e := DumpEntry{Flow: sampleFlow(), AgeS: 12.9}
			b.Write(append(e.AppendText(nil), '\n'))
			e.Owner, e.Dead = "fw2\n", true
			b.Write(append(e.AppendText(nil), '\n'))
			return nil
		},
	} {
		var b bytes.Buffer
		if err := render(&b); err != nil {
			t.Error(err)
		}
		golden(t, name, b.Bytes())
	}
}

func TestSeconds(t *testing.T) {
	for s, want := range map[float64]string{
		0: "0s", 0.0123456: "12.35ms", 1.239: "1.24s", 61.2: "1m1s", 3600 * 47: "47h0m0s", 3600*50 + 61: "2d2h1m0s",
	} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%v) = %s, want %s", s, got, want)
		}
	}
}

func TestOctets(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 1 << 60: "1048576.0 TiB"} {
		if got := octets(n); got != want {
			t.Errorf("octets(%d) = %s, want %s", n, got, want)
		}
	}
}

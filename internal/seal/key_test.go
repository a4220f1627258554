package seal

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// secretText is the key of testdata and tests as a file has it.
const secretText = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func TestParseKey(t *testing.T) {
	want := testKey(0)
	for _, text := range []string{
		"syncd-key-1 " + secretText,
		"syncd-key-1 " + secretText + "\n",
		"syncd-key-1   " + secretText + " \r\n",
		"# a comment\n\n  # another one\n\tsyncd-key-1 " + secretText + "\n# the end",
		string(want.Text()),
	} {
		k, err := ParseKey([]byte(text))
		if err != nil || k != want {
			t.Errorf("%q: %v, %v", text, k, err)
		}
	}
}

func TestParseKeyErrors(t *testing.T) {
	octets := func(n int) string {
		return base64.StdEncoding.EncodeToString(append(make([]byte, n-1), 1))
	}
	tests := []struct{ text, want string }{
		{"", "there is no key in it"},
		{"# syncd-key-1 " + secretText, "there is no key in it"},
		{"\n" + secretText, `line 2: want "syncd-key-1 " and the key in base64`},
		{"syncd-key-2 " + secretText, `line 1: want "syncd-key-1 " and the key in base64`},
		{"syncd-key-1\t" + secretText, `line 1: want "syncd-key-1 " and the key in base64`},
		{"syncd-key-1", "line 1: the key has 0 octets, want 32"},
		{"syncd-key-1 " + octets(31), "line 1: the key has 31 octets, want 32"},
		{"syncd-key-1 " + octets(33), "line 1: the key has 33 octets, want 32"},
		{"syncd-key-1 " + secretText + " # mine", "line 1: the key is not in base64 (44 characters, the last one is =)"},
		{"syncd-key-1 " + secretText[:40], "line 1: the key has 30 octets, want 32"},
		{"syncd-key-1 " + secretText[:43], "line 1: the key is not in base64 (44 characters, the last one is =)"},
		{"syncd-key-1 " + strings.Replace(secretText, "8=", "9=", 1), "line 1: the key is not in base64 (44 characters, the last one is =)"},
		{"syncd-key-1 " + base64.StdEncoding.EncodeToString(make([]byte, 32)), "line 1: the key is all zeros"},
		{"#\nsyncd-key-1 " + secretText + "\nsyncd-key-1 " + secretText, "line 3: there is a key in line 2 already; a file holds one"},
	}
	for _, tt := range tests {
		k, err := ParseKey([]byte(tt.text))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%q: error %v, want %s", tt.text, err, tt.want)
			continue
		}
		if k != (Key{}) {
			t.Errorf("%q: a key comes with the error", tt.text)
		}
		if strings.Contains(err.Error(), secretText[:8]) {
			t.Errorf("%q: the error tells the secret: %v", tt.text, err)
		}
	}
}

func TestNewKey(t *testing.T) {
	a, b := NewKey(), NewKey()
	if a == b || a == (Key{}) {
		t.Error("no random keys")
	}
	if k, err := ParseKey(a.Text()); err != nil || k != a {
		t.Errorf("the text of a new key: %v", err)
	}
	if id := testKey(0).ID(); id != 0xa16e { // as in testdata/vectors.json
		t.Errorf("id %04x", id)
	}
}

// No verb prints the secret, not even of what has a key in it.
func TestKeyIsNotPrinted(t *testing.T) {
	k := testKey(0)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b", "%c"} {
		for _, x := range []any{k, &k, []Key{k}, struct{ Key Key }{k}, map[string]Key{"k": k}} {
			if s := fmt.Sprintf(verb, x); !strings.Contains(s, "key 0xa16e") && !strings.Contains(s, "0xc0") {
				t.Errorf("%s of %T: %s", verb, x, s)
			}
		}
	}
	if s := fmt.Sprint(k); s != "key 0xa16e" {
		t.Error(s)
	}
}

func TestReadKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sync.key")
	k := NewKey()
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // the umask has no say
			t.Fatal(err)
		}
	}
	fails := func(want string) {
		t.Helper()
		got, err := ReadKeyFile(path)
		if err == nil || !strings.HasPrefix(err.Error(), "key file") || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), want) || got != (Key{}) {
			t.Errorf("error %v, want one about %q", err, want)
		}
	}

	for _, mode := range []os.FileMode{0o600, 0o400, 0o700} {
		write(string(k.Text()), mode)
		if got, err := ReadKeyFile(path); err != nil || got != k {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666} {
		write(string(k.Text()), mode)
		fails(fmt.Sprintf("%04o, which opens it to others than its owner: chmod 0600 %s", mode, path))
	}
	write("# nothing\n", 0o600)
	fails("there is no key in it")
	write(strings.Repeat("#\n", 40000), 0o600)
	fails("that is no key file")

	os.Remove(path)
	fails("no such file")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	fails("no regular file")
	os.Remove(path)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("no regular file") // and does not wait for a writer
}

func TestKeyFileOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("not root")
		}
		t.Skip("not root: cannot give a file to another user")
	}
	path := filepath.Join(t.TempDir(), "sync.key")
	if err := os.WriteFile(path, NewKey().Text(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyFile(path); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
		t.Error(err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(testKey(1).Text())
	f.Add([]byte("syncd-key-1 " + secretText))
	f.Add([]byte("# only\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		again, err := ParseKey(k.Text())
		if err != nil || again != k {
			t.Fatalf("%v becomes %v, %v", k, again, err)
		}
	})
}

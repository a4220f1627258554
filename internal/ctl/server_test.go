package ctl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"syncd/internal/flow"
)

// start serves node on a socket of its own until the test ends. change may be
// nil.
func start(t *testing.T, node Node, change func(*Server)) (path string) {
	t.Helper()
	return startAt(t, filepath.Join(t.TempDir(), "s"), node, change)
}

func startAt(t *testing.T, path string, node Node, change func(*Server)) string {
	t.Helper()
	s, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, node) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return path
}

func unixHTTP(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

func do(t *testing.T, path, method, target, body string) (code int, answer string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://syncd"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := unixHTTP(path).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return resp.StatusCode, string(b)
}

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: want - got +\n%s", name, diff)
	}
}

func TestRoutes(t *testing.T) {
	node := &fakeNode{entries: 2}
	path := start(t, node, nil)
	for _, tt := range []struct {
		method, target string
		code           int
		golden         string // file, or the answer itself
		call           string
	}{
		{"GET", "/v1/status", 200, "status.json", ""},
		{"GET", "/v1/stats", 200, "", ""},
		{"GET", "/v1/dump/internal", 200, "internal.jsonl", ""},
		{"GET", "/v1/dump/external", 200, "external.jsonl", ""},
		{"POST", "/v1/commit", 200, "commit.json", "commit"},
		{"POST", "/v1/commit?dry-run=true&peer=fw2&progress=false", 200, "commit.json", "commit dry of fw2"},
		{"POST", "/v1/flush", 200, `{"message":"flushed both"}`, "flush both"},
		{"POST", "/v1/flush?which=internal", 200, `{"message":"flushed internal"}`, "flush internal"},
		{"POST", "/v1/flush?which=external", 200, `{"message":"flushed external"}`, "flush external"},
		{"POST", "/v1/resync", 200, `{"message":"asked"}`, "resync kernel=false"},
		{"POST", "/v1/resync?kernel=true", 200, `{"message":"asked"}`, "resync kernel=true"},
		{"POST", "/v1/verify", 200, `{"ok":false,"duration_s":1.5,"peers":[{"name":"fw2","flows":10,"corrupted":4,"missing":1,"stale":2,"different":3,"proven":true},{"name":"fw3","flows":0,"corrupted":0,"missing":0,"stale":0,"different":0,"proven":false,"problem":"silent"}],"entries":[{"peer":"fw2","what":"missing","flow":"tcp 192.0.2.1:1\u003e192.0.2.2:2"}]}`, "verify"},
		{"POST", "/v1/bulk", 200, `{"message":"sending"}`, "bulk"},
		{"POST", "/v1/role/primary", 200, "role.json", "role primary"},
		{"POST", "/v1/role/backup", 200, "", "role backup"},
		{"POST", "/v1/role/fault", 200, "", "role fault"},
		{"POST", "/v1/reload", 200, `{"message":"reloaded"}`, "reload"},

		{"POST", "/v1/flush?which=kernel", 400, `{"error":"bad request: which is \"kernel\", it can be [\"internal\" \"external\" \"both\"]"}`, ""},
		{"POST", "/v1/resync?kernel=perhaps", 400, `{"error":"bad request: kernel is \"perhaps\", it can be [\"true\" \"false\"]"}`, ""},
		{"POST", "/v1/commit?dry-run=1", 400, `{"error":"bad request: dry-run is \"1\", it can be [\"true\" \"false\"]"}`, ""},
		{"POST", "/v1/commit?progress=1", 400, `{"error":"bad request: progress is \"1\", it can be [\"true\" \"false\"]"}`, ""},
		{"POST", "/v1/role/backup?peer=fw2", 400, `{"error":"bad request: unknown option \"peer\""}`, ""},
		{"POST", "/v1/commit?kernel=true", 400, `{"error":"bad request: unknown option \"kernel\""}`, ""},
		{"GET", "/", 404, `{"error":"no such path: /"}`, ""},
		{"GET", "/v1/dump/kernel", 404, `{"error":"no such path: /v1/dump/kernel"}`, ""},
		{"POST", "/v1/role/unknown", 404, `{"error":"no such path: /v1/role/unknown"}`, ""},
		{"GET", "/v1/commit", 405, `{"error":"/v1/commit takes POST, not GET"}`, ""},
		{"GET", "/v1/role/primary", 405, `{"error":"/v1/role/primary takes POST, not GET"}`, ""},
		{"POST", "/v1/status", 405, `{"error":"/v1/status takes GET, not POST"}`, ""},
		{"DELETE", "/v1/dump/internal", 405, `{"error":"/v1/dump/internal takes GET, not DELETE"}`, ""},
	} {
		code, answer := do(t, path, tt.method, tt.target, "")
		if code != tt.code {
			t.Errorf("%s %s: %d %s, want %d", tt.method, tt.target, code, answer, tt.code)
		}
		switch {
		case strings.HasPrefix(tt.golden, "{"):
			if answer != tt.golden+"\n" {
				t.Errorf("%s %s:\ngot  %s\nwant %s", tt.method, tt.target, answer, tt.golden)
			}
		case strings.HasSuffix(tt.golden, ".json"):
			var b bytes.Buffer
			if err := json.Indent(&b, []byte(answer), "", "\t"); err != nil {
				t.Errorf("%s %s: %v", tt.method, tt.target, err)
			}
			golden(t, tt.golden, b.Bytes())
		case tt.golden != "":
			golden(t, tt.golden, []byte(answer))
		}
		if got := strings.Join(node.takeCalls(), ", "); got != tt.call {
			t.Errorf("%s %s called %q, want %q", tt.method, tt.target, got, tt.call)
		}
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	node := &fakeNode{}
	path := start(t, node, nil)
	for _, tt := range []struct {
		err  error
		code int
		is   error
	}{
		{fmt.Errorf("commit: %w", ErrBusy), 409, ErrBusy},
		{fmt.Errorf("daemon starts: %w", ErrNotReady), 503, ErrNotReady},
		{fmt.Errorf("no bulk update in mode alarm: %w", ErrInvalid), 400, ErrInvalid},
		{errors.New("netlink: permission denied"), 500, nil},
	} {
		node.err = tt.err
		for _, target := range []string{"POST /v1/commit", "GET /v1/status", "GET /v1/stats", "GET /v1/dump/internal", "POST /v1/role/primary"} {
			method, target, _ := strings.Cut(target, " ")
			code, answer := do(t, path, method, target, "")
			want, _ := json.Marshal(Error{tt.err.Error()})
			if code != tt.code || answer != string(want)+"\n" {
				t.Errorf("%s: %d %s, want %d %s", target, code, answer, tt.code, want)
			}
		}
		c, _ := Dial(path)
		_, err := c.Commit(t.Context(), CommitOptions{})
		if err == nil || err.Error() != tt.err.Error() {
			t.Errorf("client: %v, want %v", err, tt.err)
		}
		for _, sentinel := range []error{ErrBusy, ErrNotReady, ErrInvalid, ErrNoDaemon} {
			if got := errors.Is(err, sentinel); got != (sentinel == tt.is) {
				t.Errorf("client: errors.Is(%v, %v) = %t", err, sentinel, got)
			}
		}
	}
}

// What the client returns is what the node said.
func TestClient(t *testing.T) {
	node := &fakeNode{entries: 3000}
	path := start(t, node, nil)
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	check := func(name string, got, want any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: want - got +\n%s", name, diff)
		}
	}
	status, err := c.Status(ctx)
	check("status", status, sampleStatus(), err)
	stats, err := c.Stats(ctx)
	want := sampleStats()
	want.Control = ControlStats{Connections: 2, Requests: 2}
	check("stats", stats, want, err)
	commit, err := c.Commit(ctx, CommitOptions{})
	check("commit", commit, sampleCommit(), err)
	role, err := c.SetRole(ctx, RolePrimary, nil)
	check("role", role, sampleRole(), err)
	done, err := c.Flush(ctx, External)
	check("flush", done, &Done{"flushed external"}, err)
	done, err = c.Resync(ctx, true)
	check("resync", done, &Done{"asked"}, err)
	done, err = c.Bulk(ctx)
	check("bulk", done, &Done{"sending"}, err)
	done, err = c.Reload(ctx)
	check("reload", done, &Done{"reloaded"}, err)
	check("calls", node.takeCalls(), []string{"commit", "role primary", "flush external", "resync kernel=true", "bulk", "reload"}, nil)

	n := 0
	err = c.Dump(ctx, External, func(e *DumpEntry) error {
		w := DumpEntry{Flow: sampleFlow(), AgeS: 1.5, Owner: "fw2", Dead: true}
		w.Flow.Orig.SrcPort = uint16(n)
		if *e != w {
			t.Errorf("entry %d: %s", n, cmp.Diff(w, *e))
		}
		n++
		return nil
	})
	if err != nil || n != node.entries {
		t.Errorf("dump of %d entries: %d, %v", node.entries, n, err)
	}
	stop := errors.New("enough")
	if err := c.Dump(ctx, Internal, func(*DumpEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("dump that was stopped: %v", err)
	}
}

// A dump that fails halfway says so, and is not taken for a whole one.
func TestDumpFailsHalfway(t *testing.T) {
	path := start(t, &fakeNode{entries: 1000, dumpErr: errors.New("the cache was flushed")}, nil)
	c, _ := Dial(path)
	n := 0
	err := c.Dump(t.Context(), Internal, func(*DumpEntry) error { n++; return nil })
	if err == nil || err.Error() != "the cache was flushed" || n != 1000 {
		t.Errorf("%d entries, %v", n, err)
	}
	resp, err := unixHTTP(path).Get("http://syncd/v1/dump/internal")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a client that knows nothing of error lines reads until %v, want an unexpected end", err)
	}
	if !strings.HasSuffix(string(b), "\n"+`{"error":"the cache was flushed"}`+"\n") {
		t.Errorf("the last line is %q", b[max(0, len(b)-80):])
	}
}

// The hand-made encoder of a dump agrees with encoding/json.
func TestDumpEntryJSON(t *testing.T) {
	for _, e := range []DumpEntry{
		{Flow: sampleFlow(), AgeS: 12.125},
		{Flow: sampleFlow(), AgeS: 0.5, Owner: `f"w<2`, Dead: true},
	} {
		want, err := json.Marshal(&e)
		if err != nil {
			t.Fatal(err)
		}
		var w, g any
		if err := errors.Join(json.Unmarshal(want, &w), json.Unmarshal(e.appendJSON(nil), &g)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, g); diff != "" {
			t.Error(diff)
		}
	}
}

// TestDumpExpectJSON: an expectation comes back from its line as it was, and as no flow.
func TestDumpExpectJSON(t *testing.T) {
	x := flow.Expect{Timeout: 300, Has: flow.ExpectHasTimeout | flow.ExpectHasHelper}
	x.Tuple = flow.Tuple{Family: flow.IPv4, Proto: flow.TCP, Src: [16]byte{192, 0, 2, 1}, Dst: [16]byte{198, 51, 100, 1}, DstPort: 2001}
	x.Master = x.Tuple
	x.Helper, _ = flow.MakeName("ftp")
	want := DumpEntry{Expect: &x, AgeS: 1.5, Owner: "fw2", Dead: true}
	var got DumpEntry
	line := want.appendJSON(nil)
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if bytes.Contains(line, []byte(`"flow"`)) {
		t.Errorf("%s", line)
	}
	if text := string(want.AppendText(nil)); !strings.HasPrefix(text, "300 proto=6 src=192.0.2.1") || !strings.HasSuffix(text, "helper=ftp [active since 1s] [owner fw2] [DEAD]") {
		t.Error(text)
	}
}

// short makes the server lose patience quickly.
func short(s *Server) {
	s.limits.header, s.limits.idle, s.limits.write = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
}

// endsSoon fails unless the server closes c.
func endsSoon(t *testing.T, name string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s was not cut off", name)
	}
	c.Close()
}

// Clients that hang in every way there is neither stop the others nor stay.
func TestHangingClients(t *testing.T) {
	node := &fakeNode{entries: 1 << 30}
	path := start(t, node, short)
	hang := make(map[string]net.Conn)
	for name, say := range map[string]string{
		"silent":                  "",
		"half a request":          "GET /v1/status HT",
		"half a header":           "GET /v1/status HTTP/1.1\r\nHost: syncd\r\n",
		"body that does not come": "POST /v1/commit HTTP/1.1\r\nHost: syncd\r\nContent-Length: 10\r\n\r\n",
		"dump that nobody reads":  "GET /v1/dump/internal HTTP/1.1\r\nHost: syncd\r\n\r\n",
		"idle after a request":    "GET /v1/status HTTP/1.1\r\nHost: syncd\r\n\r\n",
	} {
		for range 3 {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, say); err != nil {
				t.Fatal(err)
			}
			hang[name] = c
			defer c.Close()
		}
	}
	c, _ := Dial(path)
	began := time.Now()
	if _, err := c.Commit(t.Context(), CommitOptions{}); err != nil {
		t.Errorf("commit beside hanging clients: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("commit beside hanging clients took %v", took)
	}
	if calls := node.takeCalls(); !slices.Equal(calls, []string{"commit"}) {
		t.Errorf("calls %q", calls)
	}
	// The dumps are let run into their limit before anything of them is read.
	deadline := time.Now().Add(5 * time.Second)
	for {
		s, err := c.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Control.CutOff == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d dumps were cut off, want 3", s.Control.CutOff)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for name, c := range hang {
		endsSoon(t, name, c)
	}
}

// Connections above the bound wait their turn and get it.
func TestConnectionBound(t *testing.T) {
	path := start(t, &fakeNode{}, func(s *Server) { short(s); s.limits.connections = 2 })
	for range 4 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, _ := Dial(path)
	began := time.Now()
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("the fifth of two connections was served after %v, before the silent ones were cut off", took)
	}
}

func TestDumpBound(t *testing.T) {
	path := start(t, &fakeNode{entries: 1 << 30}, func(s *Server) { s.limits.dumps = 1 })
	resp, err := unixHTTP(path).Get("http://syncd/v1/dump/internal")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if code, answer := do(t, path, "GET", "/v1/dump/internal", ""); code != 503 {
		t.Errorf("second dump: %d %s", code, answer)
	}
}

func TestBodyIsRefused(t *testing.T) {
	node := &fakeNode{}
	path := start(t, node, nil)
	if code, answer := do(t, path, "POST", "/v1/commit", "x"); code != 400 {
		t.Errorf("%d %s", code, answer)
	}
	if calls := node.takeCalls(); calls != nil {
		t.Errorf("calls %q", calls)
	}
}

// A command outlives its client and ends with the server.
func TestCommandOutlivesItsClient(t *testing.T) {
	began, goOn, done := make(chan bool), make(chan bool), make(chan error, 2)
	node := &fakeNode{block: func(ctx context.Context) error {
		began <- true
		select {
		case <-goOn:
		case <-ctx.Done():
		}
		done <- ctx.Err()
		return ctx.Err()
	}}
	s, err := Listen(filepath.Join(t.TempDir(), "s"), nil)
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error)
	go func() { served <- s.Serve(stop, node) }()

	c, _ := Dial(s.Path())
	ctx, leave := context.WithCancel(t.Context())
	answered := make(chan error)
	commit := func(ctx context.Context) { _, err := c.Commit(ctx, CommitOptions{}); answered <- err }
	go commit(ctx)
	<-began
	leave()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("client that left: %v", err)
	}
	time.Sleep(50 * time.Millisecond) // for the server to notice
	select {
	case goOn <- true:
	case err := <-done:
		t.Fatalf("the commit ended with its client: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("the commit ended with %v", err)
	}

	go commit(t.Context())
	<-began
	cancel()
	if err := <-answered; !errors.Is(err, ErrNotReady) {
		t.Errorf("client of a server that stops: %v", err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the commit was not told to stop: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was left behind: %v", err)
	}
}

func TestCommandsAreLogged(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	path := start(t, &fakeNode{}, func(s *Server) { s.log = zap.New(core) })
	do(t, path, "GET", "/v1/status", "")
	do(t, path, "POST", "/v1/flush?which=internal", "")
	all := logs.All()
	if len(all) != 1 {
		t.Fatalf("%d lines, want 1", len(all))
	}
	m := all[0].ContextMap()
	if m["command"] != "/v1/flush?which=internal" || m["pid"] != int32(os.Getpid()) || m["uid"] != uint32(os.Geteuid()) {
		t.Errorf("%v", m)
	}
}

// The promise of the package comment, with the tool that it names.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must have curl")
		}
		t.Skip("needs the program curl")
	}
	path := start(t, &fakeNode{entries: 5}, nil)
	for args, want := range map[string]string{
		"http://syncd/v1/status":                              `{"node":"fw1",`,
		"http://syncd/v1/dump/internal":                       `{"flow":{"family":"ipv4"`,
		"-X POST http://syncd/v1/commit":                      `{"started":`,
		"-d  http://syncd/v1/flush?which=internal":            `{"message":"flushed internal"}`,
		"-X POST http://syncd/v1/flush http://syncd/v1/stats": `{"message":"flushed both"}`,
	} {
		out, err := exec.Command(curl, append([]string{"-sS", "--unix-socket", path}, strings.Split(args, " ")...)...).Output()
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("curl %s: %v %.80s", args, err, out)
		}
	}
}

func TestServeAfterTheEnd(t *testing.T) {
	s, err := Listen(filepath.Join(t.TempDir(), "s"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx, &fakeNode{}); err != nil {
		t.Error(err)
	}
}

func TestClientGivesUpWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, nil) // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, _ := Dial(path)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// A server that is not syncd's must not confuse the client.
func TestClientAgainstStrangers(t *testing.T) {
	for name, say := range map[string]string{
		"no HTTP":   "SSH-2.0-x\r\n",
		"HTML":      "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"HTML 500":  "HTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\n<html>",
		"too short": "HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{\"node\":",
	} {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, say)
				c.Close()
			}
		}()
		c, _ := Dial(path)
		if _, err := c.Status(t.Context()); err == nil || errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: status: %v", name, err)
		}
		if err := c.Dump(t.Context(), Internal, func(*DumpEntry) error { return nil }); err == nil || errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: dump: %v", name, err)
		}
		ln.Close()
	}
}

// emptyNode has nothing to say.
type emptyNode struct{ fakeNode }

func (*emptyNode) Status(context.Context) (*Status, error) { return new(Status), nil }
func (*emptyNode) Stats(context.Context) (*Stats, error) {
	return &Stats{Links: make([]LinkStats, 1)}, nil
}

// Programs that walk a list must find one.
func TestNoNull(t *testing.T) {
	path := start(t, new(emptyNode), nil)
	for _, target := range []string{"/v1/status", "/v1/stats"} {
		if _, answer := do(t, path, "GET", target, ""); strings.Contains(answer, "null") {
			t.Errorf("%s: %s", target, answer)
		}
	}
}

// A daemon in use can be asked where its time and its memory go.
func TestProfiles(t *testing.T) {
	path := start(t, &fakeNode{}, nil)
	for target, want := range map[string]string{
		"/debug/pprof/goroutine?debug=1":  "goroutine profile:",
		"/debug/pprof/heap?debug=1":       "heap profile:",
		"/debug/pprof/profile?seconds=1":  "\x1f\x8b", // gzip
		"/debug/pprof/trace?seconds=0.01": "go 1.",
	} {
		if code, answer := do(t, path, "GET", target, ""); code != 200 || !strings.HasPrefix(answer, want) {
			t.Errorf("%s: %d %.80q", target, code, answer)
		}
	}
	if code, _ := do(t, path, "POST", "/debug/pprof/heap", ""); code != 405 {
		t.Errorf("POST: %d", code)
	}
}

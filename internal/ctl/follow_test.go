package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFollow(t *testing.T) {
	node := &fakeNode{steps: 3, pace: make(chan struct{})}
	c, _ := Dial(start(t, node, nil))
	var seen []Progress
	progress := func(p Progress) {
		seen = append(seen, p)
		node.pace <- struct{}{}
	}
	want := []Progress{{Done: 1, Total: 3}, {Done: 2, Total: 3, ElapsedS: 1}, {Done: 3, Total: 3, ElapsedS: 2}}

	commit, err := c.Commit(t.Context(), CommitOptions{DryRun: true, Peer: "fw 2&3", Progress: progress})
	if diff := cmp.Diff(sampleCommit(), commit); err != nil || diff != "" {
		t.Errorf("%v: want - got +\n%s", err, diff)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("told %+v, want %+v", seen, want)
	}
	seen = nil
	role, err := c.SetRole(t.Context(), RolePrimary, progress)
	if diff := cmp.Diff(sampleRole(), role); err != nil || diff != "" {
		t.Errorf("%v: want - got +\n%s", err, diff)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("told %+v, want %+v", seen, want)
	}
	if calls := node.takeCalls(); !slices.Equal(calls, []string{"commit dry of fw 2&3", "role primary"}) {
		t.Errorf("calls %q", calls)
	}
}

// The lines as a program reads them that knows no client.
func TestFollowLines(t *testing.T) {
	node := &fakeNode{steps: 2, pace: make(chan struct{})}
	path := start(t, node, nil)
	resp, err := unixHTTP(path).Post("http://syncd/v1/commit?progress=true", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "application/x-ndjson" {
		t.Errorf("%s, %s", resp.Status, ct)
	}
	d := json.NewDecoder(resp.Body)
	for i, want := range []string{`{"progress":{"done":1,"total":2,"elapsed_s":0}}`, `{"progress":{"done":2,"total":2,"elapsed_s":1}}`} {
		var line json.RawMessage
		if err := d.Decode(&line); err != nil || string(line) != want {
			t.Errorf("line %d: %s, %v, want %s", i, line, err, want)
		}
		node.pace <- struct{}{}
	}
	rest, err := io.ReadAll(io.MultiReader(d.Buffered(), resp.Body))
	if err != nil {
		t.Fatal(err)
	}
	line, rest, _ := bytes.Cut(bytes.TrimPrefix(rest, []byte("\n")), []byte("\n"))
	var report CommitReport
	if err := json.Unmarshal(line, &report); err != nil || len(rest) != 0 || !cmp.Equal(&report, sampleCommit()) {
		t.Errorf("the last line is %s, %v, after it comes %q", line, err, rest)
	}
}

// A command that fails at once has its status code; later its last line tells.
func TestFollowFailure(t *testing.T) {
	node := &fakeNode{err: errors.Join(errors.New("no peer fw9"), ErrInvalid)}
	path := start(t, node, nil)
	c, _ := Dial(path)
	ignore := func(Progress) {}
	if _, err := c.Commit(t.Context(), CommitOptions{Progress: ignore}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "no peer fw9") {
		t.Errorf("%v", err)
	}
	node.err, node.steps, node.pace = errors.New("netlink: gone"), 1, make(chan struct{})
	_, err := c.Commit(t.Context(), CommitOptions{Progress: func(Progress) { node.pace <- struct{}{} }})
	if err == nil || err.Error() != "netlink: gone" {
		t.Errorf("%v", err)
	}
	resp, err := unixHTTP(path).Post("http://syncd/v1/role/primary?progress=true", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	node.pace <- struct{}{}
	b, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasSuffix(string(b), "\n{\"error\":\"netlink: gone\"}\n") {
		t.Errorf("the answer ends with %v, after %q", err, b)
	}
}

// A client that asks for progress and reads none of it delays no command.
func TestFollowerThatDoesNotRead(t *testing.T) {
	node := &fakeNode{steps: 5000, pace: make(chan struct{})} // far more than a socket holds
	path := start(t, node, short)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /v1/role/primary?progress=true HTTP/1.1\r\nHost: syncd\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	limit := time.After(10 * time.Second)
	for range node.steps {
		select {
		case node.pace <- struct{}{}:
			time.Sleep(50 * time.Microsecond)
		case <-limit:
			t.Fatal("the command does not get on")
		}
	}
	time.Sleep(500 * time.Millisecond) // nothing is read until the server has lost patience
	endsSoon(t, "the client", c)
	client, _ := Dial(path)
	if s, err := client.Stats(t.Context()); err != nil || s.Control.CutOff != 1 {
		t.Errorf("%+v, %v: the client should have been cut off", s.Control, err)
	}
}

// A dry run has nothing to finish when its client goes away.
func TestDryRunEndsWithItsClient(t *testing.T) {
	began, ended := make(chan bool), make(chan error, 1)
	node := &fakeNode{block: func(ctx context.Context) error {
		began <- true
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
		ended <- ctx.Err()
		return ctx.Err()
	}}
	c, _ := Dial(start(t, node, nil))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	answered := make(chan error)
	go func() { _, err := c.Commit(ctx, CommitOptions{DryRun: true}); answered <- err }()
	<-began
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the dry run went on without its client: %v", err)
	}
	<-answered
}

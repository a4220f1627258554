package ctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// ErrNoDaemon says that nobody listens at the control socket.
var ErrNoDaemon = errors.New("no syncd is running")

// Time limits of a client. A commit takes as long as it takes, and so does a
// change of role: there only the caller's context counts.
const (
	queryTimeout   = 10 * time.Second // status and statistics
	commandTimeout = 60 * time.Second // commands that commit nothing
	stallTimeout   = 60 * time.Second // of a dump, between two lines
)

// DefaultSocket is where the daemon listens when its configuration says nothing
// else.
const DefaultSocket = "/run/syncd/syncd.sock"

// Client is the other end of the control socket. Its methods can be called at
// the same time from several goroutines. Their errors match ErrNoDaemon,
// ErrBusy, ErrNotReady and ErrInvalid.
type Client struct {
	path string
	http http.Client
}

var _ Node = (*Client)(nil)

// Dial returns a client of the daemon at path, or at the abstract socket @name.
// It connects for each request anew, so that a daemon may restart between two;
// an error of Dial is one of the path alone.
func Dial(path string) (*Client, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
			if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
				return nil, fmt.Errorf("%w at %s", ErrNoDaemon, path)
			}
			return conn, err
		},
	}
	return c, nil
}

// RemoteError is an error that the daemon answered.
type RemoteError struct {
	Code    int // HTTP status code
	Message string
}

func (e *RemoteError) Error() string { return e.Message }

// Is matches the sentinel that the status code stands for.
func (e *RemoteError) Is(target error) bool {
	switch e.Code {
	case http.StatusBadRequest:
		return target == ErrInvalid
	case http.StatusConflict:
		return target == ErrBusy
	case http.StatusServiceUnavailable:
		return target == ErrNotReady
	}
	return false
}

// Status is Node's.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", queryTimeout)
}

// Stats is Node's, with Stats.Control.
func (c *Client) Stats(ctx context.Context) (*Stats, error) {
	return call[Stats](ctx, c, http.MethodGet, "/v1/stats", queryTimeout)
}

// Commit is Node's. It has no time limit but ctx.
func (c *Client) Commit(ctx context.Context, o CommitOptions) (*CommitReport, error) {
	q := make(url.Values)
	if o.DryRun {
		q.Set("dry-run", "true")
	}
	if o.Peer != "" {
		q.Set("peer", o.Peer)
	}
	return follow[CommitReport](ctx, c, "/v1/commit", q, o.Progress)
}

// Flush is Node's.
func (c *Client) Flush(ctx context.Context, which string) (*Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/v1/flush?which="+which, commandTimeout)
}

// Resync is Node's.
func (c *Client) Resync(ctx context.Context, kernel bool) (*Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/v1/resync?kernel="+strconv.FormatBool(kernel), commandTimeout)
}

// Bulk is Node's.
func (c *Client) Bulk(ctx context.Context) (*Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/v1/bulk", commandTimeout)
}

// Verify is Node's. It has no time limit but ctx.
func (c *Client) Verify(ctx context.Context) (*VerifyReport, error) {
	return call[VerifyReport](ctx, c, http.MethodPost, "/v1/verify", 0)
}

// SetRole is Node's. It has no time limit but ctx.
func (c *Client) SetRole(ctx context.Context, role string, progress ProgressFunc) (*RoleReport, error) {
	return follow[RoleReport](ctx, c, "/v1/role/"+role, make(url.Values), progress)
}

// Reload is Node's.
func (c *Client) Reload(ctx context.Context) (*Done, error) {
	return call[Done](ctx, c, http.MethodPost, "/v1/reload", commandTimeout)
}

// Dump is Node's. It fails when the daemon ends the dump before its end.
func (c *Client) Dump(ctx context.Context, which string, fn func(*DumpEntry) error) error {
	var e DumpEntry
	return c.DumpLines(ctx, which, func(line []byte) error {
		e = DumpEntry{}
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("dump: %w", err)
		}
		return fn(&e)
	})
}

// DumpLines is Dump with the entries as they come, each one JSON object without
// a newline. line is valid until fn returns.
func (c *Client) DumpLines(ctx context.Context, which string, fn func(line []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallTimeout, func() {
		cancel(fmt.Errorf("dump: the daemon sent nothing for %v", stallTimeout))
	})
	defer stall.Stop()
	resp, err := c.do(ctx, http.MethodGet, "/v1/dump/"+which)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for lines.Scan() {
		stall.Stop()
		line := lines.Bytes()
		if remote, ok := errorLine(line); ok {
			return remote
		}
		if err := fn(line); err != nil {
			return err
		}
		stall.Reset(stallTimeout)
	}
	if err := lines.Err(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("dump: the answer is incomplete: %w", err)
	}
	return nil
}

// follow sends a command without a time limit and tells progress, if it is not nil,
// how far it is until its answer comes.
func follow[T any](ctx context.Context, c *Client, path string, q url.Values, progress ProgressFunc) (*T, error) {
	if progress != nil {
		q.Set("progress", "true")
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	if progress == nil {
		return call[T](ctx, c, http.MethodPost, path, 0)
	}
	resp, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var line json.RawMessage
		if err := d.Decode(&line); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("control socket %s: answer to %s: %w", c.path, path, err)
		}
		if remote, ok := errorLine(line); ok {
			return nil, remote
		}
		var p progressLine
		if json.Unmarshal(line, &p) == nil && p.Progress != nil {
			progress(*p.Progress)
			continue
		}
		doc := new(T)
		if err := json.Unmarshal(line, doc); err != nil {
			return nil, fmt.Errorf("control socket %s: answer to %s: %w", c.path, path, err)
		}
		return doc, nil
	}
}

// errorLine recognises the Error document that ends an answer that failed.
func errorLine(line []byte) (*RemoteError, bool) {
	const begin = `{"error":` // no entry begins so
	if len(line) < len(begin) || string(line[:len(begin)]) != begin {
		return nil, false
	}
	var doc Error
	if json.Unmarshal(line, &doc) != nil {
		return nil, false
	}
	return &RemoteError{Code: http.StatusInternalServerError, Message: doc.Error}, true
}

// call makes one request and decodes its answer. No timeout means none.
func call[T any](ctx context.Context, c *Client, method, path string, timeout time.Duration) (*T, error) {
	if timeout != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the daemon did not answer within %v", timeout))
		defer cancel()
	}
	resp, err := c.do(ctx, method, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	doc := new(T)
	if err := json.NewDecoder(resp.Body).Decode(doc); err != nil {
		return nil, fmt.Errorf("control socket %s: answer to %s: %w", c.path, path, err)
	}
	return doc, nil
}

// do sends a request and returns a successful answer, whose body is the
// caller's to close.
func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://syncd"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var outer *url.Error // repeats method and URL, which tell the user nothing
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var doc Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&doc); err != nil || doc.Error == "" {
		doc.Error = fmt.Sprintf("control socket %s: unexpected answer: %s", c.path, resp.Status)
	}
	return nil, &RemoteError{Code: resp.StatusCode, Message: doc.Error}
}

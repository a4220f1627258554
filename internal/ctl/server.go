package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// limits bound what a client can use up.
type limits struct {
	header time.Duration // to send the whole request header
	idle   time.Duration // between two requests of one connection
	write  time.Duration // to take one chunk of an answer
	grace  time.Duration // for answers under way when the server stops

	connections int // at once
	dumps       int // at once; each may hold a copy of a part of a cache
	chunk       int // octets of a dump that are sent at once
}

func defaultLimits() limits {
	return limits{
		header: 5 * time.Second, idle: 30 * time.Second, write: 10 * time.Second, grace: time.Second,
		connections: 64, dumps: 4, chunk: 32 << 10,
	}
}

// Server is the daemon's end of the control socket.
type Server struct {
	path   string
	socket *socket
	log    *zap.Logger
	limits limits

	handlers gate
	dumps    chan struct{} // one token for each dump that runs

	connections, rejected, requests, failed, cutOff atomic.Uint64
}

// Listen claims the control socket at path, or the abstract socket @name. It
// fails when another process has it, when the directory is missing and when the
// path is too long for a socket. A socket left behind by a killed process is
// replaced. Clients can connect from now on and are answered once Serve runs.
// log may be nil.
func Listen(path string, log *zap.Logger) (*Server, error) {
	s, err := openSocket(path)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = zap.NewNop()
	}
	return &Server{path: path, socket: s, log: log, limits: defaultLimits()}, nil
}

// Path returns what Listen was given.
func (s *Server) Path() string { return s.path }

// Close gives the socket up. It is needed only when Serve is never called.
func (s *Server) Close() error { return s.socket.Close() }

// Serve answers clients with what node says until ctx ends, then returns nil. When
// it returns, the socket is gone and node is not called any more. A Server
// serves once.
func (s *Server) Serve(ctx context.Context, node Node) error {
	s.dumps = make(chan struct{}, s.limits.dumps)
	ln := &boundedListener{
		Listener: s.socket.UnixListener, slots: make(chan struct{}, s.limits.connections), done: make(chan struct{}),
		admit: s.admit,
	}
	errorLog, _ := zap.NewStdLogAt(s.log, zap.ErrorLevel) // fails for unknown levels only
	srv := &http.Server{
		Handler:           s.routes(ctx, node),
		ReadHeaderTimeout: s.limits.header,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withCred,
		ErrorLog:          errorLog,
	}
	stopped := make(chan struct{})
	unwatch := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// Answers under way get a moment; whoever does not take his is cut off.
		// ctx has ended, so the time limit hangs on a context of its own.
		grace, cancel := context.WithTimeout(context.Background(), s.limits.grace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if unwatch() { // ctx lives: the listener failed
		srv.Close()
	} else {
		<-stopped
		err = nil
	}
	s.handlers.shut()
	s.socket.Close()
	if err != nil {
		return fmt.Errorf("control socket: serve: %w", err)
	}
	return nil
}

// admit says who may connect. The mode of a socket file has decided already; an
// abstract socket has none.
func (s *Server) admit(cred *unix.Ucred) bool {
	s.connections.Add(1)
	if !isAbstract(s.path) || cred != nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
		return true
	}
	s.rejected.Add(1)
	return false
}

// gate knows how many requests are being served and lets no more in once it is
// shut.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// shut closes the gate and waits until everybody has left.
func (g *gate) shut() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

type credKey struct{}

// withCred keeps who is at the other end of c with the requests that come over
// it.
func withCred(ctx context.Context, c net.Conn) context.Context {
	if bc, ok := c.(*boundedConn); ok && bc.cred != nil {
		return context.WithValue(ctx, credKey{}, bc.cred)
	}
	return ctx
}

// request is one request that is being served.
type request struct {
	*Server
	w http.ResponseWriter
	r *http.Request
}

// errUsage is a mistake of the client in its request.
var errUsage = errors.New("bad request")

// routes returns the handler of all paths. stop is the life of the server.
func (s *Server) routes(stop context.Context, node Node) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(q *request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, f) })
	}
	handle("GET /v1/status", func(q *request) error {
		doc, err := node.Status(q.r.Context())
		if err == nil {
			doc.normalize()
		}
		return q.answer(doc, err)
	})
	handle("GET /v1/stats", func(q *request) error {
		doc, err := node.Stats(q.r.Context())
		if err == nil {
			doc.Control = s.controlStats()
			doc.normalize()
		}
		return q.answer(doc, err)
	})
	handle("GET /v1/dump/{cache}", func(q *request) error {
		which := q.r.PathValue("cache")
		if which != Internal && which != External {
			return q.notFound()
		}
		return q.dump(node, which)
	})

	// Where the processor time and the memory of a daemon in use go can be asked as well:
	// whoever may command it may know.
	for name, profile := range map[string]http.HandlerFunc{"": pprof.Index, "profile": pprof.Profile, "trace": pprof.Trace} {
		handle("GET "+profiles+name, func(q *request) error {
			profile(q.w, q.r)
			return nil
		})
	}

	// A command lives as long as the server, not as its client.
	command := func(pattern string, f func(ctx context.Context, q *request) (any, error)) {
		handle("POST "+pattern, func(q *request) error {
			began := time.Now()
			doc, err := f(stop, q)
			q.logCommand(time.Since(began), err)
			return q.answer(doc, err)
		})
	}
	// One that takes long tells those who ask how far it is.
	long := func(pattern string, f func(ctx context.Context, q *request, progress ProgressFunc) (any, error)) {
		handle("POST "+pattern, func(q *request) error {
			follow, err := q.flag("progress")
			if err != nil {
				return q.answer(nil, err)
			}
			began := time.Now()
			var tell *teller
			var progress ProgressFunc
			if follow {
				tell = q.newTeller()
				progress = tell.progress
			}
			doc, err := f(stop, q, progress)
			q.logCommand(time.Since(began), err)
			if follow {
				return tell.answer(doc, err)
			}
			return q.answer(doc, err)
		})
	}
	long("/v1/commit", func(ctx context.Context, q *request, progress ProgressFunc) (any, error) {
		o := CommitOptions{Peer: q.r.URL.Query().Get("peer"), Progress: progress}
		var err error
		if o.DryRun, err = q.flag("dry-run"); err != nil {
			return nil, err
		}
		if o.DryRun {
			ctx = q.r.Context() // nothing has begun that must be finished
		}
		return node.Commit(ctx, o)
	})
	command("/v1/verify", func(ctx context.Context, q *request) (any, error) { return node.Verify(ctx) })
	command("/v1/bulk", func(ctx context.Context, q *request) (any, error) { return node.Bulk(ctx) })
	command("/v1/reload", func(ctx context.Context, q *request) (any, error) { return node.Reload(ctx) })
	command("/v1/flush", func(ctx context.Context, q *request) (any, error) {
		which, err := q.option("which", Both, Internal, External, Both)
		if err != nil {
			return nil, err
		}
		return node.Flush(ctx, which)
	})
	command("/v1/resync", func(ctx context.Context, q *request) (any, error) {
		kernel, err := q.flag("kernel")
		if err != nil {
			return nil, err
		}
		return node.Resync(ctx, kernel)
	})
	for _, role := range []string{RolePrimary, RoleBackup, RoleFault} {
		long("/v1/role/"+role, func(ctx context.Context, q *request, progress ProgressFunc) (any, error) {
			doc, err := node.SetRole(ctx, role, progress)
			if err == nil {
				notNil(&doc.Steps)
			}
			return doc, err
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.serve(w, r, func(q *request) error {
			// The mux knows the methods of a path only when no pattern takes
			// them all, as this one does.
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				probe := &http.Request{Method: method, URL: &url.URL{Path: r.URL.Path}, Host: r.Host}
				if _, pattern := mux.Handler(probe); pattern != "/" {
					w.Header().Set("Allow", method)
					return q.fail(http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s, not %s", r.URL.Path, method, r.Method))
				}
			}
			return q.notFound()
		})
	})
	return mux
}

// serve runs one request. The error of f says that the client could not be
// answered.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, f func(q *request) error) {
	if !s.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.handlers.leave()
	s.requests.Add(1)
	q := &request{Server: s, w: w, r: r}
	err := q.checkForm()
	if err == nil {
		err = f(q)
	} else {
		err = q.answer(nil, err)
	}
	if err != nil {
		// The answer is incomplete; only tearing the connection down tells.
		panic(http.ErrAbortHandler)
	}
}

// profiles begins the paths of net/http/pprof, which judges its options itself.
const profiles = "/debug/pprof/"

// checkForm refuses what no request has: a body and unknown options. A client
// that announces a body and never sends it must not be waited for.
func (q *request) checkForm() error {
	if q.r.ContentLength != 0 {
		http.NewResponseController(q.w).SetReadDeadline(time.Now().Add(q.limits.header))
		q.w.Header().Set("Connection", "close")
		return fmt.Errorf("%w: a request has no body", errUsage)
	}
	for name := range q.r.URL.Query() {
		if !slices.Contains(options[q.r.URL.Path], name) && !strings.HasPrefix(q.r.URL.Path, profiles) {
			return fmt.Errorf("%w: unknown option %q", errUsage, name)
		}
	}
	return nil
}

// options are the names of what can be asked of a path.
var options = map[string][]string{
	"/v1/flush":               {"which"},
	"/v1/resync":              {"kernel"},
	"/v1/commit":              {"dry-run", "peer", "progress"},
	"/v1/role/" + RolePrimary: {"progress"},
	"/v1/role/" + RoleBackup:  {"progress"},
	"/v1/role/" + RoleFault:   {"progress"},
}

// flag returns the value of a query parameter that is true or false, or absent.
func (q *request) flag(name string) (bool, error) {
	v, err := q.option(name, "false", "true", "false")
	return v == "true", err
}

// option returns the value of a query parameter, or def when it is absent.
func (q *request) option(name, def string, allowed ...string) (string, error) {
	v := q.r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	for _, a := range allowed {
		if v == a {
			return v, nil
		}
	}
	return "", fmt.Errorf("%w: %s is %q, it can be %q", errUsage, name, v, allowed)
}

// answer sends doc, or the error that the command ended with.
func (q *request) answer(doc any, err error) error {
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: the daemon stops", ErrNotReady)
	}
	if err != nil {
		return q.fail(statusCode(err), err)
	}
	return q.send(http.StatusOK, doc)
}

func (q *request) notFound() error {
	return q.fail(http.StatusNotFound, fmt.Errorf("no such path: %s", q.r.URL.Path))
}

func (q *request) fail(code int, err error) error {
	q.failed.Add(1)
	return q.send(code, &Error{Error: err.Error()})
}

func statusCode(err error) int {
	switch {
	case errors.Is(err, errUsage), errors.Is(err, ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, ErrBusy):
		return http.StatusConflict
	case errors.Is(err, ErrNotReady):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (q *request) send(code int, doc any) error {
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	q.refreshDeadline()
	q.w.WriteHeader(code)
	_, err = q.w.Write(append(b, '\n'))
	return err
}

// refreshDeadline gives the client its time to take the next piece.
func (q *request) refreshDeadline() {
	http.NewResponseController(q.w).SetWriteDeadline(time.Now().Add(q.limits.write))
}

// dump streams one cache.
func (q *request) dump(node Node, which string) error {
	select {
	case q.dumps <- struct{}{}:
		defer func() { <-q.dumps }()
	default:
		return q.answer(nil, fmt.Errorf("%d dumps run already: %w", cap(q.dumps), ErrNotReady))
	}
	var (
		buf  = make([]byte, 0, q.limits.chunk+4096)
		sent bool
		lost error // the client is gone or does not read
	)
	flush := func() error {
		if !sent {
			q.w.Header().Set("Content-Type", "application/x-ndjson")
			sent = true
		}
		q.refreshDeadline()
		if _, lost = q.w.Write(buf); lost == nil {
			lost = http.NewResponseController(q.w).Flush()
		}
		buf = buf[:0]
		return lost
	}
	err := node.Dump(q.r.Context(), which, func(e *DumpEntry) error {
		buf = append(e.appendJSON(buf), '\n')
		if len(buf) < q.limits.chunk {
			return nil
		}
		return flush()
	})
	switch {
	case lost != nil:
		return q.cut(lost, "control client cut off: it does not read its dump")
	case err != nil && !sent:
		return q.answer(nil, err)
	case err != nil:
		q.failed.Add(1)
		line, _ := json.Marshal(&Error{Error: err.Error()}) // a struct of a string always marshals
		buf = append(append(buf, line...), '\n')
		flush()
		return err
	}
	return flush()
}

// cut counts a client that is gone or does not read, as err says, and returns err.
func (q *request) cut(err error, why string) error {
	q.failed.Add(1)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		q.cutOff.Add(1)
		q.log.Warn(why, q.credFields()...)
	}
	return err
}

func (q *request) logCommand(took time.Duration, err error) {
	fields := append(q.credFields(), zap.String("command", q.r.URL.RequestURI()), zap.Duration("took", took))
	if err != nil {
		q.log.Warn("control command failed", append(fields, zap.Error(err))...)
		return
	}
	q.log.Info("control command", fields...)
}

func (q *request) credFields() []zap.Field {
	cred, ok := q.r.Context().Value(credKey{}).(*unix.Ucred)
	if !ok {
		return nil
	}
	return []zap.Field{zap.Int32("pid", cred.Pid), zap.Uint32("uid", cred.Uid)}
}

func (s *Server) controlStats() ControlStats {
	return ControlStats{
		Connections: s.connections.Load(), Rejected: s.rejected.Load(), Requests: s.requests.Load(),
		Failed: s.failed.Load(), CutOff: s.cutOff.Load(),
	}
}

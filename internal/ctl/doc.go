// Package ctl is the control socket of the daemon, both ends: HTTP and JSON over
// a UNIX socket, so that
//
//	curl --unix-socket /run/syncd/syncd.sock http://syncd/v1/status
//
// works and so does every HTTP library. It owns the documents that travel
// there, their text form for people, the server and the client. It decides
// nothing: what a command does is behind the interface Node.
//
// # Requests
//
//	GET  /v1/status
//	GET  /v1/stats
//	GET  /v1/dump/internal  /v1/dump/external      one DumpEntry a line
//	POST /v1/commit?dry-run=true|false&peer=NAME&progress=true|false
//	POST /v1/flush?which=internal|external|both    default both
//	POST /v1/resync?kernel=true|false              default false
//	POST /v1/bulk
//	POST /v1/verify
//	POST /v1/role/primary  /v1/role/backup  /v1/role/fault      ?progress=true|false
//	POST /v1/reload
//	GET  /debug/pprof/…                            profiles, as net/http/pprof has them
//
// No request has a body; options are false or empty when they are absent. An answer is one JSON document, an error is an Error
// document with a status code that says whose fault it was: 400 and 404 and 405
// the client's, 409 the same thing is running already, 503 not now, 500 it was
// tried and failed. A dump that fails halfway ends with an Error document as
// its last line, and the connection is then torn down, so that no reader takes
// half a table for a whole one.
//
// With progress=true the answer to a command is one document a line: as many as
// {"progress":{…}} as there is time for while it runs, and at last what the answer
// would have been without. A command that fails before the first of them is answered
// as ever; after it an Error document is the last line. A client that does not read
// its lines misses some and delays nobody.
//
// # Who may do what
//
// A socket file has mode 0660: whoever may write to it may command. An abstract
// socket (a path that begins with @) has no mode; there only root and the user
// that the daemon runs as are let in.
//
// # No client can hurt
//
// Every connection has its own goroutine, which waits for the client and for
// nothing else, so that a client that says nothing, or reads nothing, stops
// nobody. It is cut off when it has not sent its request header, or not taken a
// chunk of its answer, within the limits of type limits. The number of
// connections is bounded; those above the bound wait in the backlog until one
// is cut off or ends.
//
// A command that changes state and has begun is carried through although its
// client goes away; it ends early only when the daemon stops.
//
// # Units
//
// Field names in JSON end in their unit: _s seconds, _bytes octets, _per_s.
// Points in time are RFC 3339 strings. All else are counts.
package ctl

// Package config turns a TOML file into a validated [Config].
//
// It owns the names, defaults, limits and meaning of every key, and the texts
// that tell an operator what is wrong with a file: each error names file, line,
// key, the value found and what is accepted, and all errors of a file come at
// once. Nothing here opens a file (but [Load]), reads a clock or asks the
// kernel, and nothing imports another package of the program: what a setting
// means to a subsystem is decided where everything is assembled.
//
// A file is decoded into a generic tree first, not into structs: decoding into
// structs stops at the first value of a wrong type and knows no positions. The
// table in keys.go then moves every value of the tree into the Config. One row
// of that table is all that a key needs: its name, its field, its type, its
// limits, and whether a reload can change it.
//
// Units: sizes are octets, durations are time.Duration, limits of caches and
// queues are entries and messages.
package config

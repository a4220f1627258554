package commit

import (
	"errors"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// Op is what a request asks of the kernel.
type Op uint8

const (
	// Create makes an entry and fails with EEXIST if either tuple is taken
	// (NLM_F_CREATE|NLM_F_EXCL). The translation follows from Orig and Reply.
	Create Op = iota
	// Update changes the entry that holds Orig. Only Status, Timeout, Mark, the
	// protocol state, sequence adjustment, SYN proxy and labels count, each if its
	// bit in Has is set. With ENOSPC all is done but the labels, for which the
	// entry has no room.
	Update
	// Delete removes the entry that holds Orig; with HasID only if it has that ID,
	// and fails with ENOENT otherwise.
	Delete
)

func (op Op) String() string {
	switch op {
	case Create:
		return "create"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return "?"
}

// Kernel is a connection-tracking table, with requests gathered into batches.
// It is used by one goroutine.
type Kernel interface {
	// Add puts one request at the end of the batch and returns its index there,
	// from 0. It keeps no reference to f. ErrBatchFull means that Flush must come
	// first, any other error that f cannot be put into words of the kernel; the
	// batch is then as it was.
	Add(op Op, f *flow.Flow) (int, error)
	// Flush sends the batch, calls fail for each request that the kernel
	// refused, and empties the batch. An error that is or wraps ENOBUFS means that
	// answers were lost; any other that this Kernel is of no more use.
	Flush(fail func(index int, errno unix.Errno)) error
	// Get fills f with the entry that holds t in either direction. The error is
	// or wraps ENOENT if there is none.
	Get(t *flow.Tuple, f *flow.Flow) error
}

// ErrBatchFull is returned by Kernel.Add when the batch has no room for another
// request.
var ErrBatchFull = errors.New("commit: batch is full")

// batchSize is how many requests go into one sendmsg. More gains nothing (the
// kernel takes its lock for each request anyway), and the error answers of two
// such batches still fit into the default receive buffer.
const batchSize = 128

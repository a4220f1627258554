package daemon

import (
	"io"

	"syncd/internal/commit"
)

// readAhead is a source that reads the next entries while those before are being
// committed: the kernel keeps one processor busy, the loop is on another.
type readAhead struct {
	src  commit.Source
	pass commit.Pass

	// One of them is being filled while the other is handed out.
	buf, spare []commit.Entry
	pos, n     int // of buf
	err        error
	pending    chan fetched // of one; nil when nothing is being read
}

// fetched is what a source gave.
type fetched struct {
	n   int
	err error
}

// aheadEntries is how many entries are read at once.
const aheadEntries = 512

func newReadAhead(src commit.Source) *readAhead {
	return &readAhead{src: src, buf: make([]commit.Entry, aheadEntries), spare: make([]commit.Entry, aheadEntries)}
}

// Next implements commit.Source.
func (r *readAhead) Next(p commit.Pass, dst []commit.Entry) (int, error) {
	if p != r.pass {
		r.close()
		r.pass, r.pos, r.n, r.err = p, 0, 0, nil
	}
	if r.pos == r.n {
		if r.err != nil {
			return 0, r.err
		}
		if r.pending == nil {
			r.fetch()
		}
		f := <-r.pending
		r.pending = nil
		r.buf, r.spare = r.spare, r.buf
		r.pos, r.n, r.err = 0, f.n, f.err
		if r.err == nil {
			r.fetch()
		}
	}
	n := copy(dst, r.buf[r.pos:r.n])
	if r.pos += n; r.pos == r.n && r.err == io.EOF {
		return n, io.EOF
	}
	return n, nil
}

// fetch begins to fill spare.
func (r *readAhead) fetch() {
	done := make(chan fetched, 1)
	r.pending = done
	go func(p commit.Pass, dst []commit.Entry) {
		n, err := r.src.Next(p, dst)
		done <- fetched{n, err}
	}(r.pass, r.spare)
}

// close waits for what is being read.
func (r *readAhead) close() {
	if r.pending != nil {
		<-r.pending
		r.pending = nil
	}
}

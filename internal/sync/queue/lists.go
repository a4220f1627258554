package queue

import "syncd/internal/flow"

// chunkLen is the number of nodes that are allocated at once.
const chunkLen = 4096

// node is what is kept for a handle. Invariant: list != 0 iff the node is linked
// into Lists.lists[list-1].
type node struct {
	prev, next flow.Handle
	list       uint16
	mark       bool
}

// list is a chain of nodes, oldest first.
type list struct {
	head, tail flow.Handle
	n          int
}

// Lists is a fixed number of first-in-first-out lists of flows. A flow is in at
// most one of them. Every step takes the same time, however many flows there are.
type Lists struct {
	nodes []*[chunkLen]node // by handle; chunks never move
	lists []list
}

// NewLists returns n empty lists, of at most 65535, numbered from 1.
func NewLists(n int) Lists { return Lists{lists: make([]list, n)} }

// In returns the list that h is in, or 0.
func (l *Lists) In(h flow.Handle) int { return int(l.node(h).list) }

// First returns the oldest flow of a list, or 0.
func (l *Lists) First(k int) flow.Handle { return l.lists[k-1].head }

// Len returns the number of flows in a list.
func (l *Lists) Len(k int) int { return l.lists[k-1].n }

// Put appends h to a list, taking it out of any other. In its own list h keeps its
// place.
func (l *Lists) Put(k int, h flow.Handle) {
	n := l.node(h)
	if int(n.list) == k {
		return
	}
	l.unlink(n)
	q := &l.lists[k-1]
	n.list, n.prev, n.next = uint16(k), q.tail, 0
	if q.tail == 0 {
		q.head = h
	} else {
		l.node(q.tail).next = h
	}
	q.tail = h
	q.n++
}

// Take takes h out of its list, if it is in one. Its mark stays.
func (l *Lists) Take(h flow.Handle) { l.unlink(l.node(h)) }

// Forget takes h out of its list and takes its mark away.
func (l *Lists) Forget(h flow.Handle) {
	n := l.node(h)
	l.unlink(n)
	n.mark = false
}

// Clear forgets every flow.
func (l *Lists) Clear() {
	l.nodes = nil
	clear(l.lists)
}

// Mark sets the mark of h, one bit that is the mode's.
func (l *Lists) Mark(h flow.Handle, mark bool) { l.node(h).mark = mark }

// Marked returns the mark of h.
func (l *Lists) Marked(h flow.Handle) bool { return l.node(h).mark }

func (l *Lists) unlink(n *node) {
	if n.list == 0 {
		return
	}
	q := &l.lists[n.list-1]
	if n.prev == 0 {
		q.head = n.next
	} else {
		l.node(n.prev).next = n.next
	}
	if n.next == 0 {
		q.tail = n.prev
	} else {
		l.node(n.next).prev = n.prev
	}
	q.n--
	n.list, n.prev, n.next = 0, 0, 0
}

// node returns the node of h, growing the table to hold it.
func (l *Lists) node(h flow.Handle) *node {
	c := int(h / chunkLen)
	for c >= len(l.nodes) {
		l.nodes = append(l.nodes, new([chunkLen]node))
	}
	return &l.nodes[c][h%chunkLen]
}

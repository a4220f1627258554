package ctl

import "testing"

// BenchmarkDump measures one entry of a dump from the node to a client that
// takes the lines as they are.
func BenchmarkDump(b *testing.B) {
	s, err := Listen("@syncd-bench-dump", nil)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	node := &fakeNode{entries: b.N}
	ctx := b.Context()
	go func() { served <- s.Serve(ctx, node) }()
	b.Cleanup(func() { <-served }) // ctx ends before
	c, _ := Dial(s.Path())
	b.ResetTimer()
	n := 0
	if err := c.DumpLines(ctx, Internal, func([]byte) error { n++; return nil }); err != nil || n != b.N {
		b.Fatal(n, err)
	}
}

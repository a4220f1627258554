package ctnetlink

import (
	"fmt"
	"math/bits"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct nlmsghdr.
const (
	offsetType = 4
	offsetPort = 12
)

// quiet keeps messages about entries and expectations that were created or updated
// by the socket with this port away from s. The kernel has built them, but they take no
// room in the buffer and wake nobody.
func (s *eventSocket) quiet(port uint32) error {
	prog, err := quietFilter(port)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, op := range prog {
		filter[i] = unix.SockFilter{Code: op.Op, Jt: op.Jt, Jf: op.Jf, K: op.K}
	}
	return s.do(func() error {
		return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
}

// quietFilter is the program of quiet. What a program loads counts as big-endian,
// while the header is in the order of the host.
func quietFilter(port uint32) ([]bpf.RawInstruction, error) {
	message := uint32(offsetType) // its other octet is the subsystem
	if native.Uint16([]byte{1, 0}) == 1 {
		port = bits.ReverseBytes32(port)
	} else {
		message++
	}
	prog, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: message, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: msgNew & 0xff, SkipTrue: 3},
		bpf.LoadAbsolute{Off: offsetPort, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: ^uint32(0)},
	})
	if err != nil {
		err = fmt.Errorf("assemble a filter: %w", err)
	}
	return prog, err
}

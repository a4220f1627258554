package ctnetlink

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// CPUStats are the counters of one CPU since boot (CTA_STATS_*), as in
// /proc/net/stat/nf_conntrack.
type CPUStats struct {
	CPU           int
	Found         uint32
	Invalid       uint32 // packets that belong to no flow
	Insert        uint32
	InsertFailed  uint32
	Drop          uint32 // packets dropped because no entry could be made
	EarlyDrop     uint32 // entries dropped to make room
	Error         uint32
	SearchRestart uint32
	ClashResolve  uint32
	ChainTooLong  uint32
}

// Count returns how many entries the network namespace of descriptor netNS (0 for
// that of the calling thread) holds, and how many each namespace may hold, 0 for no
// limit. Entries count until they are collected, some time after they expired.
func Count(netNS int) (entries, limit uint32, err error) {
	b := finish(appendHeader(nil, msgStats, 0, dumpSeq, unix.AF_UNSPEC), 0)
	err = query(context.Background(), netNS, b, func(msg []byte) error {
		const ctaEntries, ctaMax = 1, 2
		var d decoder
		for b := attributesOf(msg); len(b) >= attrHeaderLen; {
			var typ uint16
			var v []byte
			switch typ, v, b = d.next(b); typ {
			case ctaEntries:
				entries = d.u32(v)
			case ctaMax:
				limit = d.u32(v)
			}
		}
		if d.err != nil {
			return d.err
		}
		return errEnough
	})
	return entries, limit, err
}

// Stats returns the counters of every CPU in the network namespace of descriptor
// netNS (0 for that of the calling thread).
func Stats(netNS int) ([]CPUStats, error) {
	var stats []CPUStats
	b := finish(appendHeader(nil, msgStatsCPU, unix.NLM_F_DUMP, dumpSeq, unix.AF_UNSPEC), 0)
	err := query(context.Background(), netNS, b, func(msg []byte) error {
		if native.Uint16(msg[4:]) != msgStatsCPU {
			return nil
		}
		if len(msg) < headerLen {
			return errMessageLength
		}
		s := CPUStats{CPU: int(binary.BigEndian.Uint16(msg[nlHeaderLen+2:]))} // res_id
		var d decoder
		for b := attributesOf(msg); len(b) >= attrHeaderLen; {
			var typ uint16
			var v []byte
			typ, v, b = d.next(b)
			if p := s.field(typ); p != nil {
				*p = d.u32(v)
			}
		}
		stats = append(stats, s)
		return d.err
	})
	return stats, err
}

// field returns where the counter of attribute typ is kept, nil for none.
func (s *CPUStats) field(typ uint16) *uint32 {
	switch typ {
	case 2:
		return &s.Found
	case 4:
		return &s.Invalid
	case 8:
		return &s.Insert
	case 9:
		return &s.InsertFailed
	case 10:
		return &s.Drop
	case 11:
		return &s.EarlyDrop
	case 12:
		return &s.Error
	case 13:
		return &s.SearchRestart
	case 14:
		return &s.ClashResolve
	case 15:
		return &s.ChainTooLong
	}
	return nil
}

// attributesOf returns what follows the headers of msg.
func attributesOf(msg []byte) []byte { return msg[min(len(msg), headerLen):] }

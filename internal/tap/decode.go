package tap

import (
	"encoding/binary"

	"syncd/internal/flow"
)

// decode reads the tuple of an IP packet, of which b is at least the beginning. ok is
// false for packets that tell none: of protocols without ports, too.
func decode(b []byte, t *flow.Tuple) (ok bool) {
	if len(b) == 0 {
		return false
	}
	*t = flow.Tuple{}
	var ports []byte
	switch b[0] >> 4 {
	case 4: // RFC 791, section 3.1
		header := int(b[0]&15) * 4
		if header < 20 || len(b) < header+4 {
			return false
		}
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a fragment, not the first
			return false
		}
		t.Family, t.Proto = flow.IPv4, b[9]
		copy(t.Src[:4], b[12:16])
		copy(t.Dst[:4], b[16:20])
		ports = b[header:]
	case 6: // RFC 8200, section 3
		if len(b) < 40+4 {
			return false
		}
		t.Family, t.Proto = flow.IPv6, b[6]
		copy(t.Src[:], b[8:24])
		copy(t.Dst[:], b[24:40])
		ports = b[40:]
	default:
		return false
	}
	switch t.Proto {
	case flow.TCP, flow.UDP, flow.SCTP, flow.UDPLite:
	default:
		return false
	}
	t.SrcPort, t.DstPort = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
	return true
}

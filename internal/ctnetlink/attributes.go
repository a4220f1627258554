package ctnetlink

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink headers. Attribute values are big endian.
var native = binary.NativeEndian

// Message types: subsystem in the high octet (linux/netfilter/nfnetlink.h,
// nfnetlink_conntrack.h).
const (
	msgNew      = unix.NFNL_SUBSYS_CTNETLINK << 8 // | IPCTNL_MSG_CT_NEW, which is 0
	msgGet      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete   = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	msgStatsCPU = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4
	msgStats    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5
)

const (
	nlHeaderLen   = unix.SizeofNlMsghdr
	headerLen     = nlHeaderLen + 4 // with nfgenmsg: family, version, res_id
	attrHeaderLen = unix.SizeofNlAttr
	attrTypeMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	attrNested    = 0x8000
	labelsLen     = 16 // of CTA_LABELS as the kernel sends it
)

// Attributes of an entry (CTA_*).
const (
	ctaTupleOrig    = 1
	ctaTupleReply   = 2
	ctaStatus       = 3
	ctaProtoInfo    = 4
	ctaHelp         = 5
	ctaNATSrc       = 6
	ctaTimeout      = 7
	ctaMark         = 8
	ctaCountersOrig = 9
	ctaCountersRepl = 10
	ctaUse          = 11
	ctaID           = 12
	ctaNATDst       = 13
	ctaTupleMaster  = 14
	ctaSeqAdjOrig   = 15
	ctaSeqAdjRepl   = 16
	ctaZone         = 18
	ctaSecctx       = 19
	ctaTimestamp    = 20
	ctaMarkMask     = 21
	ctaLabels       = 22
	ctaSynproxy     = 24
	ctaStatusMask   = 26
	ctaEventTime    = 27 // CTA_TIMESTAMP_EVENT
)

// Attributes of the nests.
const (
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9

	ctaProtoInfoTCP  = 1
	ctaProtoInfoSCTP = 3

	ctaTCPState      = 1
	ctaTCPWScaleOrig = 2
	ctaTCPWScaleRepl = 3
	ctaTCPFlagsOrig  = 4
	ctaTCPFlagsRepl  = 5

	ctaSCTPState    = 1
	ctaSCTPVtagOrig = 2
	ctaSCTPVtagRepl = 3

	ctaHelpName   = 1
	ctaSecctxName = 1

	ctaNATIPv4Min = 1
	ctaNATProto   = 3
	ctaNATIPv6Min = 4
	ctaNATPortMin = 1
	ctaNATPortMax = 2

	ctaCountersPackets   = 1
	ctaCountersBytes     = 2
	ctaCountersPackets32 = 3 // of kernels before 2.6.39
	ctaCountersBytes32   = 4

	ctaTimestampStart = 1
	ctaTimestampStop  = 2

	ctaSeqAdjPos    = 1
	ctaSeqAdjBefore = 2
	ctaSeqAdjAfter  = 3

	ctaSynproxyISN   = 1
	ctaSynproxyITS   = 2
	ctaSynproxyTSOff = 3
)

// hostLabelWord is the length of the words that the kernel keeps labels in, or 1
// on little-endian hosts, where those words are the plain order of octets.
var hostLabelWord = func() int {
	if native.Uint16([]byte{1, 0}) == 1 {
		return 1
	}
	return int(unsafe.Sizeof(uintptr(0)))
}()

// swapLabels turns labels between the kernel's order, a bitmap of unsigned longs
// of word octets in host order, and that of flow.Flow: label n is bit n%8 of
// octet n/8. It is its own inverse.
func swapLabels(l *[labelsLen]byte, word int) {
	for w := 0; w < len(l); w += word {
		for i, j := w, w+word-1; i < j; i, j = i+1, j-1 {
			l[i], l[j] = l[j], l[i]
		}
	}
}

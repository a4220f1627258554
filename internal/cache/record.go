package cache

import "syncd/internal/flow"

// record is a flow as it lies in the slab, or an expectation, of which it has the key,
// timeout, id and times.
type record struct {
	// word is keyWord of Orig. It stands first so that it shares a cache line
	// with the first word of addr wherever the record lies: a comparison of
	// IPv4 then waits for memory once.
	word uint64
	// addr has the addresses of Orig: for IPv4 both in the first word, for
	// all other families source and destination in two words each. The second
	// word of IPv4 has both addresses of Reply.
	addr [4]uint64

	replyPorts uint32 // as in keyWord
	has        flow.Attrs

	status, timeout, mark, id uint32

	sctpVtag  [2]uint32
	sctpState uint8
	tcpState  uint8
	tcpFlags  [2]uint8
	tcpWScale [2]uint8

	replyZone uint16

	created, updated uint32 // in units of 1<<timeShift ns, see Cache.coarse
	extra            uint32 // row of the side table, 0 for none; links the free list when the slot is free

	state state
	epoch uint8 // the last three belong to the owner of the cache
	owner uint8
	flags uint8
}

// state is 0 for a free slot.
type state uint8

const (
	stateInUse     state = 1 << iota
	stateDead            // found by Lookup, counted apart
	stateWideReply       // Reply is in the side table; what the record has of it is stale
	stateExpect          // an expectation; extra is its row in the table of expectations
	stateAltered         // something else than its flow.State has changed since Settle
)

// extra is a row of the side table. A value that is zero needs no row, even when
// the attribute is known. A row that is all zero does not exist.
type extra struct {
	reply    flow.Tuple
	master   flow.Tuple
	labels   [16]byte
	helper   flow.Name
	seqAdj   [2]flow.SeqAdj
	synproxy flow.Synproxy
	secctx   [64]byte
	next     uint32 // links the free list, 0 while in use
}

const (
	rareAttrs = flow.HasMaster | flow.HasLabels | flow.HasHelper | flow.HasSeqAdjOrig |
		flow.HasSeqAdjRepl | flow.HasSynproxy | flow.HasSecctx

	protocolAttrs = flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale | flow.HasSCTP | flow.HasSCTPVtags

	storedAttrs = flow.HasReply | flow.HasStatus | flow.HasTimeout | flow.HasMark | flow.HasID |
		protocolAttrs | rareAttrs

	// replicatedAttrs are those of which it matters that they are known.
	// Reply is always known; HasReply only says how.
	replicatedAttrs = storedAttrs &^ (flow.HasReply | flow.HasTimeout | flow.HasID | flow.HasSecctx)

	// stateMatters are those of flow.State of which the rest of what is told of a flow does
	// not depend: it is the status that says whether the reply tuple is final.
	stateMatters = flow.HasTimeout | flow.HasTCP | flow.HasTCPFlags | flow.HasTCPWScale | flow.HasSCTP

	natDone = flow.StatusSrcNATDone | flow.StatusDstNATDone
)

// is reports whether r has this key.
func (r *record) is(k *key) bool {
	if r.word != k.word || r.addr[0] != k.addr[0] {
		return false
	}
	return isIPv4(k.word) || r.addr[1] == k.addr[1] && r.addr[2] == k.addr[2] && r.addr[3] == k.addr[3]
}

// orig writes the key of r to t, which is zero.
func (r *record) orig(t *flow.Tuple) {
	setKeyWord(t, r.word)
	if isIPv4(r.word) {
		setAddrsIPv4(t, r.addr[0])
		return
	}
	setAddrWords(&t.Src, r.addr[0], r.addr[1])
	setAddrWords(&t.Dst, r.addr[2], r.addr[3])
}

// narrowReply writes the reply tuple of r to t, which is zero. It is not for one
// that is in the side table.
func (r *record) narrowReply(t *flow.Tuple) {
	setKeyWord(t, r.word)
	t.SrcPort, t.DstPort, t.Zone = uint16(r.replyPorts), uint16(r.replyPorts>>16), r.replyZone
	if isIPv4(r.word) {
		setAddrsIPv4(t, r.addr[1])
		return
	}
	setAddrWords(&t.Src, r.addr[2], r.addr[3])
	setAddrWords(&t.Dst, r.addr[0], r.addr[1])
}

// fits reports whether the record itself has room for the reply tuple t whose
// keyWord is w: any of IPv4, and otherwise one whose addresses are those of Orig
// swapped, so all but IPv6 with translated addresses.
func (r *record) fits(t *flow.Tuple, w uint64) bool {
	if w>>familyProtoShift != r.word>>familyProtoShift {
		return false
	}
	if isIPv4(w) {
		return true
	}
	srcLo, srcHi := addrWords(&t.Src)
	dstLo, dstHi := addrWords(&t.Dst)
	return r.addr == [4]uint64{dstLo, dstHi, srcLo, srcHi}
}

// load writes the wide form of r without the rare attributes to f, which is zero.
func (r *record) load(f *flow.Flow) {
	r.orig(&f.Orig)
	if r.state&stateWideReply == 0 {
		r.narrowReply(&f.Reply)
	}
	f.Has = r.has
	f.Status, f.Timeout, f.Mark, f.ID = r.status, r.timeout, r.mark, r.id
	f.TCPState, f.TCPFlags, f.TCPWScale = r.tcpState, r.tcpFlags, r.tcpWScale
	f.SCTPState, f.SCTPVtag = r.sctpState, r.sctpVtag
}

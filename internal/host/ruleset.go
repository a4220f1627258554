package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Ruleset is the packet filter of the namespace: nftables, and with it what
// iptables-nft has put there.
type Ruleset struct {
	Err    string // why it could not be read; then the rest is empty
	Chains []*Chain
	Sets   map[setKey]set
	Index  map[string]int // of interfaces

	// Objects are the helpers and timeout policies that rules refer to by name.
	Objects map[setKey]string

	Flowtables []string // "table inet f: ft"

	// Legacy are the tables of the older iptables ("iptables filter"). Their rules
	// cannot be seen here.
	Legacy []string
}

// setKey names a set or an object.
type setKey struct {
	family nftables.TableFamily
	table  string
	name   string
}

// set is a set or map that a rule looks into.
type set struct {
	interval bool // its elements are the boundaries of intervals
	elements []nftables.SetElement
}

// Chain is a chain with its rules in order.
type Chain struct {
	Family   nftables.TableFamily
	Table    string
	Name     string
	Base     bool
	Type     string // of a base chain: filter, nat, route
	Hook     uint32
	Priority int32
	Drop     bool // the policy of a base chain
	Rules    []Rule
}

// Rule is one rule. Its expressions are those of package expr as far as the package
// judges them, the extensions of iptables, and what is opaque.
type Rule struct {
	Handle uint64
	Exprs  []any
}

// extension is a match or target of iptables.
type extension struct {
	target bool
	name   string
	rev    uint32
	info   []byte
}

// opaque is an expression that this package does not know.
type opaque struct{ name string }

// place says where a rule is, so that nft -a shows it.
func (c *Chain) place(r *Rule) string {
	where := fmt.Sprintf("table %s %s, chain %s", familyName(c.Family), c.Table, c.Name)
	if r == nil {
		return where
	}
	return fmt.Sprintf("%s, handle %d", where, r.Handle)
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprint(f)
}

// maxGenerations is how often the ruleset is read again because it was changed
// meanwhile.
const maxGenerations = 5

// readRuleset reads the ruleset of the calling thread's network namespace.
func readRuleset(ctx context.Context) Ruleset {
	legacy := readLegacy()
	for range maxGenerations {
		r, err := readRulesetOnce()
		if err == nil {
			r.Legacy = legacy
			return r
		}
		if !errors.Is(err, errChanged) || ctx.Err() != nil {
			return Ruleset{Err: err.Error(), Legacy: legacy}
		}
	}
	return Ruleset{Err: "the rules change all the time", Legacy: legacy}
}

// readTimeout bounds one reading of the ruleset.
const readTimeout = 30 * time.Second

var errChanged = errors.New("the rules were changed while they were read")

// nft is a netlink socket for requests to nf_tables.
type nft struct{ *netlink.Conn }

// request is one request, a dump if all is set; family 0 is all families.
func (c nft) request(msg uint16, family byte, all bool, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	flags := netlink.Request
	if all {
		flags |= netlink.Dump
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg), Flags: flags},
		Data:   append([]byte{family, 0, 0, 0}, data...),
	})
	for _, m := range replies {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return nil, errChanged
		}
	}
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		return nil, errChanged
	}
	return replies, err
}

func readRulesetOnce() (Ruleset, error) {
	var r Ruleset
	dialed, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return r, fmt.Errorf("open a socket for nftables: %w", err)
	}
	defer dialed.Close()
	if err := dialed.SetDeadline(time.Now().Add(readTimeout)); err != nil {
		return r, fmt.Errorf("set a deadline: %w", err)
	}
	conn := nft{dialed}
	before, err := conn.generation()
	if err != nil {
		return r, err
	}
	if err := r.readChains(conn); err != nil {
		return r, err
	}
	if err := r.readRules(conn); err != nil {
		return r, err
	}
	if err := r.readOthers(conn); err != nil {
		return r, err
	}
	after, err := conn.generation()
	if err == nil && after != before {
		err = errChanged
	}
	return r, err
}

// generation returns the number that every change of the ruleset raises.
func (c nft) generation() (uint32, error) {
	const getGen, genID = unix.NFT_MSG_GETGEN, unix.NFTA_GEN_ID
	replies, err := c.request(getGen, 0, false)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	var id uint32
	for _, m := range replies {
		err = eachAttribute(m.Data, func(typ uint16, v []byte) {
			if typ == genID && len(v) == 4 {
				id = binary.BigEndian.Uint32(v)
			}
		})
	}
	return id, err
}

// eachAttribute calls fn for each attribute behind the header of a message.
func eachAttribute(msg []byte, fn func(typ uint16, v []byte)) error {
	const header = 4 // nfgenmsg
	if len(msg) < header {
		return errors.New("a reply of nf_tables is too short")
	}
	return eachNested(msg[header:], fn)
}

func eachNested(b []byte, fn func(typ uint16, v []byte)) error {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return fmt.Errorf("decode a reply of nf_tables: %w", err)
	}
	for d.Next() {
		fn(d.Type(), d.Bytes())
	}
	return d.Err()
}

func text(v []byte) string { return string(bytes.TrimRight(v, "\x00")) }

func (r *Ruleset) readChains(conn nft) error {
	replies, err := conn.request(unix.NFT_MSG_GETCHAIN, 0, true)
	if err != nil {
		return fmt.Errorf("read the chains: %w", err)
	}
	for _, m := range replies {
		c := &Chain{}
		if len(m.Data) > 0 {
			c.Family = nftables.TableFamily(m.Data[0])
		}
		var bad error
		err := eachAttribute(m.Data, func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				c.Table = text(v)
			case unix.NFTA_CHAIN_NAME:
				c.Name = text(v)
			case unix.NFTA_CHAIN_TYPE:
				c.Type = text(v)
			case unix.NFTA_CHAIN_POLICY:
				c.Drop = len(v) == 4 && binary.BigEndian.Uint32(v) == 0
			case unix.NFTA_CHAIN_HOOK:
				c.Base = true
				bad = eachNested(v, func(typ uint16, v []byte) {
					switch {
					case len(v) != 4:
					case typ == unix.NFTA_HOOK_HOOKNUM:
						c.Hook = binary.BigEndian.Uint32(v)
					case typ == unix.NFTA_HOOK_PRIORITY:
						c.Priority = int32(binary.BigEndian.Uint32(v))
					}
				})
			}
		})
		if err = cmp.Or(err, bad); err != nil {
			return err
		}
		r.Chains = append(r.Chains, c)
	}
	// The order in which the kernel takes them; equal priorities keep theirs.
	slices.SortStableFunc(r.Chains, func(a, b *Chain) int { return cmp.Compare(a.Priority, b.Priority) })
	return nil
}

// chain returns a chain by its name, or nil.
func (r *Ruleset) chain(family nftables.TableFamily, table, name string) *Chain {
	for _, c := range r.Chains {
		if c.Family == family && c.Table == table && c.Name == name {
			return c
		}
	}
	return nil
}

func (r *Ruleset) readRules(conn nft) error {
	replies, err := conn.request(unix.NFT_MSG_GETRULE, 0, true)
	if err != nil {
		return fmt.Errorf("read the rules: %w", err)
	}
	for _, m := range replies {
		var rule Rule
		var table, chain string
		var bad error
		if len(m.Data) == 0 {
			continue
		}
		family := m.Data[0]
		err := eachAttribute(m.Data, func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = text(v)
			case unix.NFTA_RULE_CHAIN:
				chain = text(v)
			case unix.NFTA_RULE_HANDLE:
				if len(v) == 8 {
					rule.Handle = binary.BigEndian.Uint64(v)
				}
			case unix.NFTA_RULE_EXPRESSIONS:
				bad = eachNested(v, func(_ uint16, v []byte) {
					rule.Exprs = append(rule.Exprs, decodeExpr(family, v))
				})
			}
		})
		if err = cmp.Or(err, bad); err != nil {
			return err
		}
		if c := r.chain(nftables.TableFamily(family), table, chain); c != nil {
			c.Rules = append(c.Rules, rule)
		}
	}
	return nil
}

// decodeExpr decodes one expression. What it does not know, or cannot decode, is
// opaque.
func decodeExpr(family byte, b []byte) (decoded any) {
	var name string
	defer func() {
		// Package expr panics on what is shorter than it expects.
		if recover() != nil {
			decoded = opaque{name}
		}
	}()
	var data []byte
	if err := eachNested(b, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			name = text(v)
		case unix.NFTA_EXPR_DATA:
			data = v
		}
	}); err != nil {
		return opaque{name}
	}
	var e expr.Any
	switch name {
	case "match", "target":
		return decodeExtension(name == "target", data)
	case "notrack":
		return &expr.Notrack{}
	case "meta":
		e = &expr.Meta{}
	case "ct":
		return decodeCt(family, data)
	case "payload":
		e = &expr.Payload{}
	case "cmp":
		e = &expr.Cmp{}
	case "range":
		e = &expr.Range{}
	case "lookup":
		e = &expr.Lookup{}
	case "immediate":
		return decodeImmediate(family, data)
	case "bitwise":
		if !isMask(data) {
			return opaque{name}
		}
		e = &expr.Bitwise{}
	case "counter":
		return &expr.Counter{}
	case "log":
		return &expr.Log{}
	case "limit":
		return &expr.Limit{}
	case "quota":
		return &expr.Quota{}
	case "connlimit":
		return &expr.Connlimit{}
	case "dynset":
		return &expr.Dynset{}
	case "reject":
		return &expr.Reject{}
	case "queue":
		return &expr.Queue{}
	case "masq":
		return &expr.Masq{}
	case "nat":
		return &expr.NAT{}
	case "redir":
		return &expr.Redir{}
	case "flow_offload":
		return &expr.FlowOffload{}
	case "objref":
		e = &expr.Objref{}
	case "fib":
		e = &expr.Fib{}
	case "exthdr":
		e = &expr.Exthdr{}
	case "hash":
		e = &expr.Hash{}
	case "numgen":
		e = &expr.Numgen{}
	case "synproxy":
		return &expr.SynProxy{}
	default:
		return opaque{name}
	}
	if err := expr.Unmarshal(family, data, e); err != nil || length(e) > maxLength {
		return opaque{name}
	}
	return e
}

// maxLength is the most octets that an expression can load: all registers.
const maxLength = 64

// length returns how many octets an expression says that it loads.
func length(e expr.Any) uint32 {
	switch e := e.(type) {
	case *expr.Payload:
		return e.Len
	case *expr.Bitwise:
		return e.Len
	case *expr.Exthdr:
		return e.Len
	}
	return 0
}

// decodeCt tells loading and setting apart, which package expr does not.
func decodeCt(family byte, data []byte) any {
	e := &expr.Ct{}
	err := expr.Unmarshal(family, data, e)
	if err == nil {
		err = eachNested(data, func(typ uint16, v []byte) {
			if typ == unix.NFTA_CT_SREG && len(v) == 4 {
				e.SourceRegister, e.Register = true, binary.BigEndian.Uint32(v)
			}
		})
	}
	if err != nil {
		return opaque{"ct"}
	}
	return e
}

func decodeImmediate(family byte, data []byte) any {
	imm := &expr.Immediate{}
	if err := expr.Unmarshal(family, data, imm); err != nil {
		return opaque{"immediate"}
	}
	if imm.Register != unix.NFT_REG_VERDICT {
		return imm
	}
	const immediateData, dataVerdict = 2, 2 // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT
	var v *expr.Verdict
	err := eachNested(data, func(typ uint16, b []byte) {
		if typ == immediateData {
			_ = eachNested(b, func(typ uint16, b []byte) {
				if typ == dataVerdict {
					v = decodeVerdict(b)
				}
			})
		}
	})
	if err != nil || v == nil {
		return opaque{"immediate"}
	}
	return v
}

// isMask reports whether a bitwise expression is the one with a mask and a value, not
// one of the others (shifts, two registers) that package expr does not tell apart.
func isMask(data []byte) bool {
	const op = 6 // NFTA_BITWISE_OP
	mask := true
	err := eachNested(data, func(typ uint16, v []byte) {
		if typ == op && !bytes.Equal(v, make([]byte, len(v))) {
			mask = false
		}
	})
	return err == nil && mask
}

func decodeExtension(target bool, data []byte) any {
	e := extension{target: target}
	const name, rev, info = 1, 2, 3 // NFTA_MATCH_*, NFTA_TARGET_*
	err := eachNested(data, func(typ uint16, v []byte) {
		switch typ {
		case name:
			e.name = text(v)
		case rev:
			if len(v) == 4 {
				e.rev = binary.BigEndian.Uint32(v)
			}
		case info:
			e.info = bytes.Clone(v)
		}
	})
	if err != nil {
		return opaque{"extension"}
	}
	return e
}

// readOthers reads the sets and objects that rules refer to, and the flowtables.
func (r *Ruleset) readOthers(conn nft) error {
	lib, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	heads, err := readSetHeads(conn)
	if err != nil {
		return err
	}
	r.Sets = make(map[setKey]set)
	for _, c := range r.Chains {
		for _, rule := range c.Rules {
			for _, e := range rule.Exprs {
				l, ok := e.(*expr.Lookup)
				if !ok {
					continue
				}
				key := setKey{c.Family, c.Table, l.SetName}
				if _, done := r.Sets[key]; done {
					continue
				}
				t := &nftables.Table{Name: c.Table, Family: c.Family}
				elements, err := lib.GetSetElements(&nftables.Set{Table: t, Name: l.SetName})
				if err != nil {
					return fmt.Errorf("read set %s of table %s %s: %w", l.SetName, familyName(c.Family), c.Table, err)
				}
				head := heads[key]
				if head.verdicts {
					decodeVerdicts(elements)
				}
				r.Sets[key] = set{head.interval, elements}
			}
		}
	}
	if err := r.readObjects(conn); err != nil {
		return err
	}
	return r.readFlowtables(conn)
}

// setHead is what of a set says how to read its elements.
type setHead struct{ interval, verdicts bool }

func readSetHeads(conn nft) (map[setKey]setHead, error) {
	replies, err := conn.request(unix.NFT_MSG_GETSET, 0, true)
	if err != nil {
		return nil, fmt.Errorf("read the sets: %w", err)
	}
	heads := make(map[setKey]setHead)
	for _, m := range replies {
		const concatenation, verdict = 0x80, 0xffffff00 // NFT_SET_CONCAT, NFT_DATA_VERDICT
		var key setKey
		var head setHead
		if len(m.Data) > 0 {
			key.family = nftables.TableFamily(m.Data[0])
		}
		if err := eachAttribute(m.Data, func(typ uint16, v []byte) {
			switch {
			case typ == unix.NFTA_SET_TABLE:
				key.table = text(v)
			case typ == unix.NFTA_SET_NAME:
				key.name = text(v)
			case typ == unix.NFTA_SET_FLAGS && len(v) == 4:
				flags := binary.BigEndian.Uint32(v)
				// A concatenation has whole ranges for elements, not boundaries.
				head.interval = flags&unix.NFT_SET_INTERVAL != 0 && flags&concatenation == 0
			case typ == unix.NFTA_SET_DATA_TYPE && len(v) == 4:
				head.verdicts = binary.BigEndian.Uint32(v) == verdict
			}
		}); err != nil {
			return nil, err
		}
		heads[key] = head
	}
	return heads, nil
}

// decodeVerdicts decodes the data of a verdict map, which package nftables leaves as
// it is.
func decodeVerdicts(elements []nftables.SetElement) {
	for i := range elements {
		elements[i].VerdictData = decodeVerdict(elements[i].Val)
	}
}

// decodeVerdict decodes a code and perhaps a chain; nil if there is no code.
func decodeVerdict(b []byte) *expr.Verdict {
	var v expr.Verdict
	code := false
	err := eachNested(b, func(typ uint16, b []byte) {
		switch {
		case typ == unix.NFTA_VERDICT_CODE && len(b) == 4:
			code = true
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(b)))
		case typ == unix.NFTA_VERDICT_CHAIN:
			v.Chain = text(b)
		}
	})
	if err != nil || !code {
		return nil
	}
	return &v
}

// Types of objects (enum nft_object_attributes of the kernel's nf_tables.h).
const (
	objectHelper      = 3
	objectTimeout     = 7
	objectSynproxy    = 10
	objectExpectation = 9
)

func (r *Ruleset) readObjects(conn nft) error {
	r.Objects = make(map[setKey]string)
	replies, err := conn.request(unix.NFT_MSG_GETOBJ, 0, true)
	if err != nil {
		return fmt.Errorf("read the objects: %w", err)
	}
	for _, m := range replies {
		var key setKey
		var helper string
		var typ uint32
		var bad error
		if len(m.Data) > 0 {
			key.family = nftables.TableFamily(m.Data[0])
		}
		err := eachAttribute(m.Data, func(t uint16, v []byte) {
			switch t {
			case unix.NFTA_OBJ_TABLE:
				key.table = text(v)
			case unix.NFTA_OBJ_NAME:
				key.name = text(v)
			case unix.NFTA_OBJ_TYPE:
				if len(v) == 4 {
					typ = binary.BigEndian.Uint32(v)
				}
			case unix.NFTA_OBJ_DATA:
				bad = eachNested(v, func(t uint16, v []byte) {
					const name = 1 // NFTA_CT_HELPER_NAME
					if t == name {
						helper = text(v)
					}
				})
			}
		})
		if err = cmp.Or(err, bad); err != nil {
			return err
		}
		if typ == objectHelper {
			r.Objects[key] = helper
		}
	}
	return nil
}

func (r *Ruleset) readFlowtables(conn nft) error {
	replies, err := conn.request(unix.NFT_MSG_GETFLOWTABLE, 0, true)
	if err != nil {
		return fmt.Errorf("read the flowtables: %w", err)
	}
	for _, m := range replies {
		const table, name = 1, 2 // NFTA_FLOWTABLE_*
		var t, n string
		if err := eachAttribute(m.Data, func(typ uint16, v []byte) {
			switch typ {
			case table:
				t = text(v)
			case name:
				n = text(v)
			}
		}); err != nil {
			return err
		}
		r.Flowtables = append(r.Flowtables, fmt.Sprintf("table %s %s: %s", familyName(nftables.TableFamily(m.Data[0])), t, n))
	}
	return nil
}

// readLegacy returns the tables of the older iptables that exist. A table exists once
// somebody has looked at it, so it may be empty.
func readLegacy() []string {
	var all []string
	for _, t := range [...]struct{ program, file string }{
		{"iptables", "ip_tables_names"}, {"ip6tables", "ip6_tables_names"},
	} {
		b, err := os.ReadFile("/proc/thread-self/net/" + t.file)
		if err != nil {
			continue
		}
		names := strings.Fields(string(b))
		slices.Sort(names)
		for _, n := range names {
			all = append(all, t.program+" "+n)
		}
	}
	return all
}

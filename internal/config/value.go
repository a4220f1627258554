package config

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is one value of the TOML tree on its way into the Config. The decoders
// below report what they cannot take, and then return false.
type value struct {
	to   *checker
	path string // "link[0].peers[1]"
	raw  any
}

func (v value) reject(problem, accepted string) {
	v.to.add(v.path, fmt.Sprintf("%s %s; accepted: %s", show(v.raw), problem, accepted))
}

// typed returns v as a T, one of the types of the TOML tree.
func typed[T any](v value, accepted string) (T, bool) {
	x, ok := v.raw.(T)
	if !ok {
		v.reject("is "+typeName(v.raw), accepted)
	}
	return x, ok
}

func text(v value) (string, bool) { return typed[string](v, "a string") }

func word[T ~string](v value) (T, bool) {
	s, ok := typed[string](v, "a string")
	return T(s), ok
}

func boolean(v value) (bool, bool) { return typed[bool](v, "true or false") }

// integer leaves the range to the rules of the key, all of which are narrower
// than 32 bits.
func integer(v value) (int, bool) {
	n, ok := typed[int64](v, "an integer")
	return int(min(max(n, math.MinInt32), math.MaxInt32)), ok
}

// unsigned takes what fits into T and is not below low.
func unsigned[T uint8 | uint16 | uint32](low T) func(value) (T, bool) {
	return func(v value) (T, bool) {
		n, ok := typed[int64](v, "an integer")
		if ok && (int64(T(n)) != n || T(n) < low) {
			v.reject("is out of range", fmt.Sprintf("%d to %d", low, ^T(0)))
			ok = false
		}
		return T(n), ok
	}
}

// sizeUnits are all powers of two: where "MB" means a million octets elsewhere
// it is not accepted here.
var sizeUnits = map[string]int{
	"":  1,
	"k": 1 << 10, "K": 1 << 10, "KiB": 1 << 10,
	"M": 1 << 20, "MiB": 1 << 20,
	"G": 1 << 30, "GiB": 1 << 30,
}

func size(v value) (int, bool) {
	const forms = `octets as an integer, or a string as "64k", "64KiB" or "2MiB"`
	if n, ok := v.raw.(int64); ok {
		if n < 0 || n > math.MaxInt32 {
			v.reject("is out of range", forms)
			return 0, false
		}
		return int(n), true
	}
	s, ok := typed[string](v, forms)
	if !ok {
		return 0, false
	}
	digits := strings.TrimRight(s, "kKMGiB")
	unit, known := sizeUnits[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 31)
	if !known || err != nil || n > math.MaxInt32/uint64(unit) {
		v.reject("is not a size", forms)
		return 0, false
	}
	return int(n) * unit, true
}

func duration(v value) (time.Duration, bool) {
	const forms = `a string as "500ms", "10s" or "1h30m"`
	s, ok := typed[string](v, forms)
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		v.reject("is not a duration", forms)
		return 0, false
	}
	return d, true
}

func address(v value) (netip.Addr, bool) {
	const forms = "an IPv4 or IPv6 address as a string"
	s, ok := typed[string](v, forms)
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		v.reject("is not an IP address", forms)
		return netip.Addr{}, false
	}
	return a, true
}

// prefix takes an address as the network of that one host.
func prefix(v value) (netip.Prefix, bool) {
	s, ok := typed[string](v, networkForms)
	if !ok {
		return netip.Prefix{}, false
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		v.reject("is not a network", networkForms)
		return netip.Prefix{}, false
	}
	// Here as well as in the rules, so that it is said beside other mistakes.
	ok = true
	network(p, func(_ string, _ any, problem, accepted string) {
		v.reject(problem, accepted)
		ok = false
	})
	return p, ok
}

// protocols are the names of IP protocols, as in /etc/protocols. "ipip" is not
// among them: it is 94 there and 4 in the mind of most people.
var protocols = map[string]uint8{
	"icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50,
	"ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "pim": 103, "vrrp": 112, "sctp": 132, "udplite": 136,
}

func protocol(v value) (uint8, bool) {
	if _, number := v.raw.(int64); number {
		return unsigned[uint8](0)(v)
	}
	return named(v, protocols, strings.ToLower, "an IP protocol", ", or a number from 0 to 255")
}

// tcpStates are the states of nf_conntrack_tcp.h, by the names that conntrack(8)
// prints.
var tcpStates = map[string]uint8{
	"NONE": 0, "SYN_SENT": 1, "SYN_RECV": 2, "ESTABLISHED": 3, "FIN_WAIT": 4,
	"CLOSE_WAIT": 5, "LAST_ACK": 6, "TIME_WAIT": 7, "CLOSE": 8, "SYN_SENT2": 9,
}

func tcpState(v value) (uint8, bool) {
	return named(v, tcpStates, strings.ToUpper, "a TCP state", "")
}

// named looks a word up; fold makes the case of letters irrelevant.
func named(v value, names map[string]uint8, fold func(string) string, noun, others string) (uint8, bool) {
	accepted := make([]string, 0, len(names))
	for name := range names {
		accepted = append(accepted, name)
	}
	slices.SortFunc(accepted, func(a, b string) int {
		return cmp.Or(cmp.Compare(names[a], names[b]), strings.Compare(a, b))
	})
	forms := strings.Join(accepted, ", ") + others
	s, ok := typed[string](v, forms)
	if !ok {
		return 0, false
	}
	n, ok := names[fold(s)]
	if !ok {
		v.reject("is not "+noun, forms)
	}
	return n, ok
}

// expectationForms is what filter.expectations can be.
const expectationForms = `true, false, or names of helpers as ["ftp", "sip"]`

// expectations takes a boolean or an array of helpers.
func expectations(v value) (x Expectations, ok bool) {
	switch raw := v.raw.(type) {
	case bool:
		return Expectations{All: raw}, true
	case []any:
		if x.Helpers, ok = array(text)(v); ok && len(x.Helpers) == 0 {
			v.reject("is empty", expectationForms)
			ok = false
		}
		return x, ok
	}
	v.reject("is "+typeName(v.raw), expectationForms)
	return x, false
}

// array takes every item with the same decoder, and is good when all are. An
// empty array is the same as none.
func array[T any](item func(value) (T, bool)) func(value) ([]T, bool) {
	return func(v value) ([]T, bool) {
		raw, ok := typed[[]any](v, "an array")
		if !ok {
			return nil, false
		}
		var items []T
		for i, r := range raw {
			x, good := item(value{v.to, fmt.Sprintf("%s[%d]", v.path, i), r})
			ok = ok && good
			items = append(items, x)
		}
		return items, ok
	}
}

// list takes { accept = [...] } or { ignore = [...] }.
func list[T any](item func(value) (T, bool)) func(value) (List[T], bool) {
	return func(v value) (l List[T], ok bool) {
		const forms = "{ accept = [...] } or { ignore = [...] }"
		table, ok := typed[map[string]any](v, forms)
		if !ok {
			return l, false
		}
		ok = v.to.known(v.path, table, []string{"accept", "ignore"})
		for name, to := range map[string]*[]T{"accept": &l.Accept, "ignore": &l.Ignore} {
			raw, given := table[name]
			if !given {
				continue
			}
			inner := value{v.to, v.path + "." + name, raw}
			items, good := array(item)(inner)
			if good && len(items) == 0 {
				inner.reject("is empty", "at least one item, or no list at all")
				good = false
			}
			*to, ok = items, ok && good
		}
		if ok && len(l.Accept) > 0 && len(l.Ignore) > 0 {
			v.reject("has two lists", forms)
			ok = false
		}
		return l, ok
	}
}

package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// rule looks at one value and reports what is wrong with it.
type rule[T any] func(v T, report fault)

// fault is told about a value: where inside of the key it is ("" or "[2]"), the
// value itself, what is wrong with it, and what would be right.
type fault func(at string, found any, problem, accepted string)

func between[T cmp.Ordered](low, high T) rule[T] {
	return func(v T, report fault) {
		if v < low || v > high {
			report("", v, "is out of range", plain(low)+" to "+plain(high))
		}
	}
}

// sizeBetween is between for octets.
func sizeBetween(low, high int) rule[int] {
	return func(n int, report fault) {
		if n < low || n > high {
			report("", n, "is out of range", sizeText(low)+" to "+sizeText(high))
		}
	}
}

// zeroOr is between for durations of which 0 has a meaning of its own.
func zeroOr(low, high time.Duration) rule[time.Duration] {
	return func(d time.Duration, report fault) {
		if d != 0 {
			between(low, high)(d, func(at string, found any, problem, accepted string) {
				report(at, found, problem, "0s, or "+accepted)
			})
		}
	}
}

// oneOf accepts the words of a key. Those that this version cannot do yet are
// known, so that they are refused as such and not as typing errors.
func oneOf[T ~string](key, noun string, words ...T) rule[T] {
	return func(v T, report fault) {
		switch accepted := strings.Join(ready(key, words...), ", "); {
		case !slices.Contains(words, v):
			report("", v, "is not "+noun, accepted)
		case isUnavailable(key, string(v)):
			report("", v, "is not available in this version", accepted)
		}
	}
}

// each applies a rule to every item of an array.
func each[T any](r rule[T]) rule[[]T] {
	return func(items []T, report fault) { eachIn("", items, r, report) }
}

// eachListed applies a rule to every item of a List.
func eachListed[T any](r rule[T]) rule[List[T]] {
	return func(l List[T], report fault) {
		eachIn(".accept", l.Accept, r, report)
		eachIn(".ignore", l.Ignore, r, report)
	}
}

func eachIn[T any](at string, items []T, r rule[T], report fault) {
	for i, x := range items {
		r(x, func(_ string, found any, problem, accepted string) {
			report(fmt.Sprintf("%s[%d]", at, i), found, problem, accepted)
		})
	}
}

func nodeName(s string, report fault) {
	strange := func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.", r)
	}
	if len(s) > 63 || strings.ContainsFunc(s, strange) {
		report("", s, "is not a node name", "at most 63 letters, digits, '-', '_' and '.'")
	}
}

// maxSocketPath is the room in sockaddr_un.sun_path, less the closing NUL.
const maxSocketPath = 107

func socketPath(s string, report fault) {
	switch {
	case !isAbsolute(s):
		report("", s, "is not the path of a socket", "an absolute path")
	case len(s) > maxSocketPath:
		report("", s, fmt.Sprintf("has %d octets", len(s)), fmt.Sprintf("at most %d, the limit of the kernel", maxSocketPath))
	}
}

// emptyOrPath accepts an absolute path, and nothing.
func emptyOrPath(s string, report fault) {
	if s != "" && !isAbsolute(s) {
		report("", s, "is not a path", "an absolute path, or \"\" for none")
	}
}

func keyFile(s string, report fault) {
	if !isAbsolute(s) {
		report("", s, "is not the path of a key file", "an absolute path")
	}
}

func isAbsolute(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsRune(path, 0)
}

// interfaceName follows the kernel, which refuses the same names for devices.
func interfaceName(s string, report fault) {
	strange := func(r rune) bool { return r == '/' || r == ':' || r == 0 || unicode.IsSpace(r) }
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsFunc(s, strange) {
		report("", s, "is not the name of an interface", "1 to 15 octets without space, '/' and ':'")
	}
}

// unicast accepts the address of a host. The zero Addr passes: whether one is
// needed depends on the type of the link.
func unicast(a netip.Addr, report fault) {
	if a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		report("", a, "is not the address of a host", "a unicast address")
		return
	}
	canonical(a, report)
}

// multicast accepts the address of a group, or the zero Addr as unicast does.
func multicast(a netip.Addr, report fault) {
	if a.IsValid() && !a.IsMulticast() {
		report("", a, "is not a multicast address", "an address in 224.0.0.0/4 or ff00::/8")
		return
	}
	// RFC 4291, 2.7: scope 0 is reserved, and 1 never leaves the node.
	if a.Is6() && a.As16()[1]&0xf <= 1 {
		report("", a, "never leaves this node", "a group of scope 2 or more, as ff12::7")
		return
	}
	canonical(a, report)
}

// canonical refuses the forms of an address that would compare unequal to the
// source of a datagram.
func canonical(a netip.Addr, report fault) {
	switch {
	case a.Is4In6():
		report("", a, "is IPv4 inside of IPv6", a.Unmap().String())
	case a.Zone() != "":
		report("", a, "has a zone, which the key interface already gives", a.WithZone("").String())
	}
}

// network refuses host bits: 192.0.2.1/24 may be meant as the host or as the
// network, and only one of them replicates what the operator expects.
func network(p netip.Prefix, report fault) {
	switch {
	case !p.IsValid():
		report("", p, "is not a network", networkForms)
	case p.Addr().Is4In6():
		report("", p, "is IPv4 inside of IPv6", networkForms)
	case p != p.Masked():
		report("", p, "has host bits", fmt.Sprintf("%v for the network, %v for the host", p.Masked(), p.Addr()))
	}
}

const networkForms = "an address, or a network as 192.0.2.0/24 or 2001:db8::/32"

// helpers checks names of helpers, which the kernel keeps in 16 octets.
func helpers(x Expectations, report fault) {
	eachIn("", x.Helpers, func(name string, report fault) {
		for _, c := range name {
			if c != '-' && c != '_' && c != '.' && !(c < unicode.MaxASCII && (unicode.IsLetter(c) || unicode.IsDigit(c))) {
				report("", name, "is not the name of a helper", "letters, digits and -_.")
				return
			}
		}
		if n := len(name); n == 0 || n > 15 {
			report("", name, "is not the name of a helper", "1 to 15 characters")
		}
	}, report)
}

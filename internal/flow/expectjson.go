package flow

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// The JSON form of an expectation. Attributes that are not known are left out; the
// tuples are those of flows.
//
//	{"family":"ipv4","protocol":"tcp","protocol_number":6,
//	 "expected":{"src":"192.0.2.1","dst":"198.51.100.1","sport":0,"dport":2001},
//	 "mask":{"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"255.255.255.255","dst":"255.255.255.255","sport":0,"dport":65535},
//	 "master":{"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"192.0.2.1","dst":"198.51.100.1","sport":1001,"dport":21},
//	 "timeout_s":300,"flags":[],"class":0,"helper":"ftp"}
//
// A translation is {"direction":"reply", …} with the tuple that the expected flow is
// translated to; "function" is the kernel's function that does it.

// MarshalJSON returns x as AppendJSON does.
func (x *Expect) MarshalJSON() ([]byte, error) { return x.AppendJSON(make([]byte, 0, 512)), nil }

// AppendJSON appends x as a JSON object without white space.
func (x *Expect) AppendJSON(b []byte) []byte {
	b = x.Tuple.appendKind(append(b, '{'))
	b = append(b, `,"expected":{`...)
	b = append(x.Tuple.appendFields(b), '}')
	if x.Mask.Family != 0 {
		b = x.Mask.appendJSON(append(b, `,"mask":{`...))
	}
	b = x.Master.appendJSON(append(b, `,"master":{`...))
	if x.Has&ExpectHasTimeout != 0 {
		b = appendNumber(b, `,"timeout_s":`, uint64(x.Timeout))
	}
	if x.Has&ExpectHasFlags != 0 {
		b = append(b, `,"flags":[`...)
		sep := ""
		rest := x.Flags
		for _, n := range expectFlagNames {
			if x.Flags&n.bit != 0 {
				b = append(append(append(append(b, sep...), '"'), n.name...), '"')
				sep = ","
				rest &^= n.bit
			}
		}
		if rest != 0 {
			b = append(fmt.Appendf(append(b, sep...), `"%#x`, rest), '"')
		}
		b = append(b, ']')
	}
	if x.Has&ExpectHasClass != 0 {
		b = appendNumber(b, `,"class":`, uint64(x.Class))
	}
	if x.Has&ExpectHasNAT != 0 {
		b = append(b, `,"nat":{"direction":`...)
		if name := directionName(x.NATDir); name != "?" {
			b = append(append(append(b, '"'), name...), '"', ',')
		} else {
			b = fmt.Appendf(b, `"%d",`, x.NATDir)
		}
		b = x.NAT.appendJSON(b)
	}
	if x.Has&ExpectHasID != 0 {
		b = appendNumber(b, `,"id":`, uint64(x.ID))
	}
	if x.Has&ExpectHasHelper != 0 {
		b = appendLatin1(append(b, `,"helper":`...), x.Helper[:])
	}
	if x.Has&ExpectHasFn != 0 {
		b = appendLatin1(append(b, `,"function":`...), x.Fn[:])
	}
	return append(b, '}')
}

// appendJSON appends the members of t and the end of the object.
func (t *Tuple) appendJSON(b []byte) []byte {
	b = append(t.appendKind(b), ',')
	return append(t.appendFields(b), '}')
}

// partDocument is a tuple with what else it is.
type partDocument struct {
	kindDocument
	tupleDocument
}

func (d *partDocument) whole() (Tuple, error) { return d.tuple(&d.kindDocument) }

// expectDocument is the JSON form for decoding.
type expectDocument struct {
	kindDocument
	Expected *tupleDocument `json:"expected"`
	Mask     *partDocument  `json:"mask"`
	Master   *partDocument  `json:"master"`
	Timeout  *uint32        `json:"timeout_s"`
	Flags    *[]string      `json:"flags"`
	Class    *uint32        `json:"class"`
	NAT      *struct {
		Direction string `json:"direction"`
		partDocument
	} `json:"nat"`
	ID       *uint32 `json:"id"`
	Helper   *string `json:"helper"`
	Function *string `json:"function"`
}

// UnmarshalJSON reads what AppendJSON writes. Members that it does not know are
// ignored. On error x is unchanged.
func (x *Expect) UnmarshalJSON(data []byte) error {
	var d expectDocument
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("expectation: %w", err)
	}
	n, err := d.expect()
	if err != nil {
		return fmt.Errorf("expectation: %w", err)
	}
	*x = n
	return nil
}

func (d *expectDocument) expect() (x Expect, err error) {
	if d.Expected == nil || d.Master == nil {
		return x, errors.New("expected or master tuple is missing")
	}
	if x.Tuple, err = d.Expected.tuple(&d.kindDocument); err != nil {
		return x, fmt.Errorf("expected: %w", err)
	}
	if x.Master, err = d.Master.whole(); err != nil {
		return x, fmt.Errorf("master: %w", err)
	}
	if d.Mask != nil {
		if x.Mask, err = d.Mask.whole(); err != nil {
			return x, fmt.Errorf("mask: %w", err)
		}
	}
	number := func(has ExpectAttrs, field, v *uint32) {
		if v != nil {
			*field = *v
			x.Has |= has
		}
	}
	number(ExpectHasTimeout, &x.Timeout, d.Timeout)
	number(ExpectHasClass, &x.Class, d.Class)
	number(ExpectHasID, &x.ID, d.ID)
	if d.Flags != nil {
		for _, name := range *d.Flags {
			bit, err := expectFlag(name)
			if err != nil {
				return x, err
			}
			x.Flags |= bit
		}
		x.Has |= ExpectHasFlags
	}
	if d.NAT != nil {
		if x.NAT, err = d.NAT.whole(); err != nil {
			return x, fmt.Errorf("nat: %w", err)
		}
		if x.NATDir, err = direction(d.NAT.Direction); err != nil {
			return x, fmt.Errorf("nat: %w", err)
		}
		x.Has |= ExpectHasNAT
	}
	for _, s := range [...]struct {
		has  ExpectAttrs
		what string
		to   []byte
		from *string
	}{
		// The last octet stays the NUL.
		{ExpectHasHelper, "helper", x.Helper[:len(x.Helper)-1], d.Helper},
		{ExpectHasFn, "function", x.Fn[:len(x.Fn)-1], d.Function},
	} {
		if s.from == nil {
			continue
		}
		if err := setLatin1(s.to, *s.from); err != nil {
			return x, fmt.Errorf("%s: %w", s.what, err)
		}
		x.Has |= s.has
	}
	return x, nil
}

func direction(name string) (uint32, error) {
	for dir := range uint32(2) {
		if name == directionName(dir) {
			return dir, nil
		}
	}
	var dir uint32
	if _, err := fmt.Sscanf(name, "%d", &dir); err != nil {
		return 0, fmt.Errorf("direction %q is not known", name)
	}
	return dir, nil
}

func expectFlag(name string) (uint32, error) {
	i := slices.IndexFunc(expectFlagNames[:], func(n struct {
		bit  uint32
		name string
	}) bool {
		return n.name == name
	})
	if i >= 0 {
		return expectFlagNames[i].bit, nil
	}
	var bits uint32
	if _, err := fmt.Sscanf(name, "0x%x", &bits); err != nil {
		return 0, fmt.Errorf("flag %q is not known", name)
	}
	return bits, nil
}

package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// maxShown bounds a value in an error text, in octets.
const maxShown = 120

// show prints a value, of the Config or of the TOML tree, as a file would say
// it.
func show(v any) string {
	s := render(v)
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return s
}

func render(v any) string {
	switch v := v.(type) {
	case time.Duration, netip.Addr, netip.Prefix:
		return `"` + plain(v) + `"`
	case time.Time:
		return v.Format(time.RFC3339)
	case float64:
		if s := fmt.Sprint(v); strings.Trim(s, "-0123456789") != "" {
			return s
		}
		return fmt.Sprintf("%.1f", v)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.String:
		return fmt.Sprintf("%q", r.String())
	case reflect.Slice:
		items := make([]string, min(r.Len(), maxShown)) // more are cut off in any case
		for i := range items {
			items[i] = render(r.Index(i).Interface())
		}
		return "[" + strings.Join(items, ", ") + "]"
	case reflect.Map:
		var items []string
		for _, k := range r.MapKeys() {
			items = append(items, k.String()+" = "+render(r.MapIndex(k).Interface()))
		}
		slices.Sort(items)
		return "{ " + strings.Join(items, ", ") + " }"
	}
	return fmt.Sprint(v)
}

// plain is fmt.Sprint with durations as people write them: 1m, not 1m0s.
func plain(v any) string {
	d, ok := v.(time.Duration)
	if !ok {
		return fmt.Sprint(v)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// sizeText prints octets in the largest unit that leaves no rest.
func sizeText(n int) string {
	for _, unit := range []string{"GiB", "MiB", "KiB"} {
		if u := sizeUnits[unit]; n >= u && n%u == 0 {
			return fmt.Sprintf("%d%s", n/u, unit)
		}
	}
	return fmt.Sprint(n)
}

// typeName is the TOML type of a value of the tree.
func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case time.Time:
		return "a date"
	case []any:
		return "an array"
	case []map[string]any:
		return "an array of tables"
	case map[string]any:
		return "a table"
	}
	return fmt.Sprintf("%T", v)
}

package rig

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// GCTrace in Settings.Env lets a syncd tell of its garbage collections.
const GCTrace = "GODEBUG=gctrace=1"

// GC is the processor time that the garbage collector of a syncd has used since its
// start, and how often it ran. It needs GCTrace.
func (d *Daemon) GC() (used time.Duration, runs int, err error) {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		t, ok, err := gcLine(line)
		if err != nil {
			return 0, 0, fmt.Errorf("gctrace: %q: %w", line, err)
		}
		if ok {
			used += t
			runs++
		}
	}
	return used, runs, nil
}

// gcLine reads a line of GODEBUG=gctrace=1:
//
//	gc 1 @0.009s 0%: 0.018+1.3+0.076 ms clock, 0.036+0.40/1.1/0+0.15 ms cpu, 4->4->1 MB, …
//
// The time of idle workers, the third of the middle, is nobody's loss.
func gcLine(line string) (used time.Duration, ok bool, err error) {
	if !strings.HasPrefix(line, "gc ") || !strings.Contains(line, " ms cpu,") {
		return 0, false, nil
	}
	_, rest, _ := strings.Cut(line, "ms clock, ")
	cpu, _, _ := strings.Cut(rest, " ms cpu")
	parts := strings.FieldsFunc(cpu, func(r rune) bool { return r == '+' || r == '/' })
	if len(parts) != 5 {
		return 0, false, fmt.Errorf("%d times of five", len(parts))
	}
	for i, p := range parts {
		ms, err := strconv.ParseFloat(p, 64)
		if err != nil {
			return 0, false, err
		}
		if i != 3 {
			used += time.Duration(ms * float64(time.Millisecond))
		}
	}
	return used, true, nil
}

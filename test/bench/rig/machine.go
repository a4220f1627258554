package rig

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Machine says where and when something was measured, and of what.
type Machine struct {
	Date       time.Time `json:"date"`
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	Syncd      string    `json:"syncd"`
	Conntrackd string    `json:"conntrackd"`
}

// ThisMachine describes this one, now. bin is the syncd that is measured.
func ThisMachine(bin string) Machine {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // nothing is said where there is nothing
	return Machine{
		Date: time.Now().UTC().Truncate(time.Second), Kernel: strings.TrimSpace(string(release)), CPUs: runtime.NumCPU(),
		Syncd: firstLine(bin, "version"), Conntrackd: firstLine("conntrackd", "-v"),
	}
}

// firstLine returns the first line that a program writes, or why there is none.
func firstLine(name string, args ...string) string {
	b, err := exec.Command(name, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(b), "\n")
	if err != nil && line == "" {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// Median is that of at least one value.
func Median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

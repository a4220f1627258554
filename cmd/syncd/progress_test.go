package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onTerminal runs the program with a terminal of 100 columns as its output, and
// returns what it wrote there.
func onTerminal(t *testing.T, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	var b bytes.Buffer
	b.ReadFrom(master) // until the last writer has closed it, which reads as EIO
	if err := cmd.Wait(); err != nil {
		t.Errorf("syncd %q: %v", args, err)
	}
	return b.String()
}

func TestBar(t *testing.T) {
	socket := serve(t, &node{steps: 6})
	step := regexp.MustCompile(`committing  *\d+% [^\r]*\((\d)000/6001, \d+ entries/s\) \[\d+s:\d+s\]`)
	for args, report := range map[string]string{
		"ctl commit --dry-run": "would commit 7 entries",
		"ctl primary":          "primary, was unknown",
	} {
		out := onTerminal(t, append(strings.Fields(args), "--socket", socket)...)
		if n := len(step.FindAllString(out, -1)); n < 3 {
			t.Errorf("syncd %s: the bar shows %d steps: %q", args, n, out)
		}
		// What is left on the screen is the report.
		last := out[strings.LastIndex(strings.TrimRight(out, "\r\n"), "\r")+1:]
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if strings.Contains(line, report) {
				last = line[strings.LastIndex(strings.TrimRight(line, "\r"), "\r")+1:]
			}
		}
		if !strings.HasPrefix(last, report) {
			t.Errorf("syncd %s: the report is %q", args, last)
		}
	}
	if out := onTerminal(t, "ctl", "commit", "--json", "--socket", socket); !strings.HasPrefix(out, "{") {
		t.Errorf("with --json: %q", out)
	}
}

// A script gets the report alone.
func TestNoBar(t *testing.T) {
	socket := serve(t, &node{steps: 3})
	for args, report := range map[string]string{"commit": "committed 7 entries", "primary": "primary, was unknown"} {
		status, stdout, stderr := syncd(t, "ctl", args, "--socket", socket)
		if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, report) {
			t.Errorf("syncd ctl %s: %d %q %q", args, status, stdout, stderr)
		}
	}
}
